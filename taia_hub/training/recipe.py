"""`TrainingRecipe`: everything that a training run depends on, as plain values that are checked when they are made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from taia_hub.errors import ConfigError, RepositoryError, SettingError, closest
from taia_hub.switch.settings import MODES, Setting, parse_setting
from taia_hub.training.recipes import recipe_names, recipe_path

METHODS = ("lora", "molora", "full")
SCHEDULES = ("uniform", "linear")
MIXINGS = ("replace", "add")
_MOLORA_ONLY = ("experts", "top_k", "balance_loss")
_LORA_ONLY = ("rank", "alpha", "dropout")
SCHEDULERS = ("cosine", "linear", "constant", "constant_with_warmup")
DTYPES = ("auto", "float32", "bfloat16")
TRAINED_ROLES = ("attention", "ffn")
"""The roles that ranks can be given for; LoRA adapts no other."""


ByRole = int | Mapping[str, int]
"""One number for every role, or one a role."""


@dataclass(frozen=True)
class TrainingRecipe:
    """What is trained, on what and how; the defaults are those of the paper's LoRA runs (its scripts).

    Attributes:
        base: Hub id or folder of the base model.
        base_revision: Branch, tag or commit of the base model; None for main.
        data: Files or Hub data sets (`"id@revision"`, with `":split"`) that are trained on as they are.
        in_domain: Files or data sets in the domain, to be mixed with `ood`; instead of `data`.
        ood: Files or data sets out of the domain.
        ood_ratio: Share of items out of the domain, from 0 to 1.
        schedule: Whether that share is the same all along (`"uniform"`) or falls to 0 (`"linear"` annealing).
        mixing: Whether items out of the domain take the place of others (`"replace"`: a fixed total) or come on top of
            all in-domain items (`"add"`).
        total: Number of items of an epoch; None for as many as there are.
        noise_ratio: Share of the items that get another item's answer, from 0 to 1.
        method: `"lora"`, `"molora"` or `"full"`.
        train_modules: What is trained, in the grammar of a setting without weights: `"all"`, `"attention"`,
            `"attention+ffn@0-7"`. LoRA and MoLoRA adapt linear layers of the roles attention and FFN only.
        rank: Rank of the LoRA pairs, or one a role, as in `{"attention": 4, "ffn": 64}`.
        alpha: Numerator of the scaling `alpha / rank`, or one a role. One number is the same alpha for every rank.
        dropout: Dropout on the input of the LoRA pairs, from 0 to below 1.
        experts: Experts of an FFN layer (MoLoRA).
        top_k: Experts that a token uses (MoLoRA).
        balance_loss: Weight of the load-balancing loss (MoLoRA); the paper uses none.
        learning_rate: Highest learning rate of AdamW.
        scheduler: How it changes: one of `SCHEDULERS`.
        warmup_ratio: Share of the steps in which it rises, from 0 to below 1.
        weight_decay: Weight decay of AdamW.
        epochs: Passes over the items; parts of one are allowed.
        max_steps: Most optimizer steps; None for all.
        batch_size: Items of an optimizer step, over all devices. With `packing`, packed sequences.
        micro_batch_size: Items of a forward pass on one device; None for as many as fit.
        max_length: Longest item in tokens; what is longer is cut off.
        packing: Whether several items share a sequence of `max_length` tokens, without seeing each other; refused where
            the architecture cannot keep them apart.
        assistant_only_loss: Whether the loss covers the assistant's messages only.
        dtype: dtype that is computed in; `"auto"` is bfloat16 where the device is fast at it, else float32.
        gradient_checkpointing: Whether activations are computed twice to save memory; None where they do not fit else.
        seed: Of the initial weights, the dropout, the order and the noise.
        save_steps: Optimizer steps between two checkpoints; None for about twenty in a run.
        report_to: Trackers that TRL's trainer reports to: `"trackio"`, `"wandb"`, `"tensorboard"`, …
        inference_modules: The default that the repository publishes; None for `"attention"`, and `"attention+other"`
            after full fine-tuning, as in the paper's code (norms, embeddings and head stay tuned).
        name: Name of the recipe.
        description: What it is for.
        reference: Where it comes from.
        trust_remote_code: Whether the base model's own code may run.

    Raises:
        ConfigError: If a value is of the wrong type or range.
        SettingError: If `train_modules` or `inference_modules` cannot be understood.

    Example:
        >>> recipe = TrainingRecipe(base="org/base", data=("items.jsonl",), rank={"attention": 4, "ffn": 64})
        >>> recipe.rank_of("ffn"), recipe.alpha_of("ffn"), recipe.learning_rate
        (64, 32, 0.0002)
    """

    base: str = ""
    base_revision: str | None = None
    data: tuple[str, ...] = ()
    in_domain: tuple[str, ...] = ()
    ood: tuple[str, ...] = ()
    ood_ratio: float | None = None
    schedule: str = "uniform"
    mixing: str = "replace"
    total: int | None = None
    noise_ratio: float = 0.0
    method: str = "lora"
    train_modules: str = "all"
    rank: ByRole = 16
    alpha: ByRole = 32
    dropout: float = 0.05
    experts: int = 4
    top_k: int = 2
    balance_loss: float = 0.0
    learning_rate: float = 2e-4
    scheduler: str = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 64
    micro_batch_size: int | None = None
    max_length: int = 3072
    packing: bool = False
    assistant_only_loss: bool = True
    dtype: str = "auto"
    gradient_checkpointing: bool | None = None
    seed: int = 0
    save_steps: int | None = None
    report_to: tuple[str, ...] = ()
    inference_modules: Any = None
    name: str | None = None
    description: str | None = None
    reference: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for field, value in _checked(self).items():
            object.__setattr__(self, field, value)
        _check_together(self)

    @property
    def trained(self) -> Setting:
        """`train_modules`, parsed."""
        return parse_modules(self.train_modules)

    @property
    def published(self) -> Any:
        """The setting that the repository publishes."""
        if self.inference_modules is not None:
            return self.inference_modules
        return "attention+other" if self.method == "full" else "attention"

    def rank_of(self, role: str) -> int:
        """Returns the rank of the LoRA pairs of a role."""
        return self.rank if isinstance(self.rank, int) else self.rank[role]

    def alpha_of(self, role: str) -> int:
        """Returns the alpha of the LoRA pairs of a role."""
        return self.alpha if isinstance(self.alpha, int) else self.alpha[role]

    def replace(self, **changes: Any) -> TrainingRecipe:
        """Returns a recipe with other values in some fields.

        Args:
            **changes: Field to value.

        Raises:
            ConfigError: If a field is unknown or a value wrong.
        """
        return self.from_mapping({**{one.name: getattr(self, one.name) for one in dataclasses.fields(self)}, **changes})

    def check_complete(self) -> None:
        """Checks that the recipe names what a run needs: shipped recipes may leave base and data to the user.

        Raises:
            ConfigError: If base or data is missing, or a share is given of data that is not mixed.
        """
        if not self.base:
            raise ConfigError("The recipe names no base model.", "Give one: base in the YAML, or --base.")
        if not self.data and not self.in_domain:
            raise ConfigError(
                "The recipe names no data.",
                "Give data (or in_domain and ood) in the YAML, or --data: a JSONL file or a data set on the Hub.",
            )

        if self.data and self.ood_ratio:
            raise ConfigError(
                f"ood_ratio is {self.ood_ratio:g}, and data is one set that is not mixed.",
                "Name the two parts with in_domain and ood instead of data.",
            )

    def unused(self) -> tuple[str, ...]:
        """Names the fields that were given and that the method has no use for."""
        names = (*(() if self.method == "molora" else _MOLORA_ONLY), *(() if self.method != "full" else _LORA_ONLY))
        usual = {one.name: one.default for one in dataclasses.fields(self)}
        return tuple(name for name in names if getattr(self, name) != usual[name])

    def to_mapping(self) -> dict[str, Any]:
        """Returns every field as a JSON value, in order; names that were not given are left out."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        optional = ("name", "description", "reference")
        return {
            name: list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
            for name, value in values.items()
            if not (name in optional and value is None)
        }

    def to_yaml(self) -> str:
        """Returns the recipe as YAML that `from_yaml` reads back as an equal recipe."""
        return str(yaml.safe_dump(self.to_mapping(), sort_keys=False, allow_unicode=True))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainingRecipe:
        """Makes a recipe of names and values, as YAML and the command line give them.

        Args:
            values: Field to value; what is missing has its default.

        Returns:
            The recipe.

        Raises:
            ConfigError: If a field is unknown or a value wrong.

        Example:
            >>> TrainingRecipe.from_mapping({"base": "org/base", "learning_rate": "1e-3"}).learning_rate
            0.001
        """
        names = [one.name for one in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise ConfigError(
                    f"A recipe has no field {key!r}.{closest(str(key), names)}", f"Its fields are {', '.join(names)}."
                )
        return cls(**values)

    @classmethod
    def from_yaml(cls, path: str | Path) -> TrainingRecipe:
        """Reads a recipe.

        Args:
            path: A YAML file of field names and values.

        Returns:
            The recipe.

        Raises:
            RepositoryError: If the file is missing.
            ConfigError: If it is no YAML mapping, or a field or value is wrong.
        """
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise RepositoryError(f"The recipe '{path}' cannot be read: {error}.", "Give a YAML file.") from error
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"The recipe '{path}' is no YAML: {reason}.", "Correct that line.") from error
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"The recipe '{path}' holds {type(values).__name__}, and no fields.",
                "Write `base: org/base` and so on.",
            )
        try:
            return cls.from_mapping(values)
        except SettingError as error:
            raise SettingError(f"{path}: {error.message}", error.hint) from error
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.message}", error.hint) from error

    @classmethod
    def load(cls, name_or_path: str | Path) -> TrainingRecipe:
        """Reads a recipe file, or one that ships with the package.

        Args:
            name_or_path: A YAML file, or the name of a shipped recipe.

        Returns:
            The recipe.

        Raises:
            ConfigError: If there is no such file or recipe, or it is wrong.
        """
        name, known = str(name_or_path), recipe_names()
        if Path(name).is_file():
            return cls.from_yaml(name)
        if name in known:
            return cls.from_yaml(recipe_path(name))
        raise ConfigError(
            f"There is no recipe '{name}'.{closest(name, known)}", f"Give a YAML file, or one of {', '.join(known)}."
        )


def parse_modules(text: Any) -> Setting:
    """Parses `train_modules`: the grammar of a setting, without weights.

    Args:
        text: A mode name, or roles, roles at layers and globs joined by `+`.

    Returns:
        The setting; everything that is trained has weight 1.

    Raises:
        SettingError: If it cannot be understood, has weights or selects nothing.

    Example:
        >>> [entry.key for entry in parse_modules("attention+ffn@0-7").entries]
        ['attention', 'ffn@0-7']
    """
    if isinstance(text, Mapping):
        raise SettingError(
            f"train_modules is {dict(text)!r}; weights have no meaning in training.",
            "Join what is trained by '+', as in 'attention+ffn@0-7'.",
        )
    if not isinstance(text, str):
        raise SettingError(f"train_modules is {text!r}.", "Give a text such as 'all' or 'attention+ffn@0-7'.")
    if text == "none":
        raise SettingError("train_modules is 'none': nothing would be trained.", "Choose 'all', 'attention' or 'ffn'.")
    try:
        if text in MODES:
            return parse_setting(text)
        entries = parse_setting(dict.fromkeys(text.split("+"), 1)).entries
        for entry in entries:  # a glob may be anything, also a role that was mistyped
            if entry.role is None and (meant := closest(entry.key, (*MODES, "other"))):
                raise SettingError(f"unknown part '{entry.key}'.{meant}")
        return Setting(entries, text)
    except SettingError as error:
        raise SettingError(
            f"train_modules '{text}': {error.message}",
            "Choose 'all', 'attention' or 'ffn', or join roles, roles at layers and globs on module paths by '+': "
            "'attention+ffn@0-7'.",
        ) from error


def _checked(recipe: TrainingRecipe) -> dict[str, Any]:
    """Returns the values in the types of the fields."""
    one = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    for name in ("base", "schedule", "mixing", "method", "scheduler", "dtype"):
        if not isinstance(one[name], str):
            raise ConfigError(f"{name} is {one[name]!r}, and no text.", _QUOTE)
    for name in ("base_revision", "name", "description", "reference"):
        if one[name] is not None and not isinstance(one[name], str):
            raise ConfigError(f"{name} is {one[name]!r}, and no text.", _QUOTE)
    for name in ("data", "in_domain", "ood", "report_to"):
        one[name] = _texts(name, one[name])
    for name, allowed in _CHOICES.items():
        if one[name] not in allowed:
            raise ConfigError(
                f"{name} is '{one[name]}'.{closest(one[name], allowed)}", f"Choose one of {', '.join(allowed)}."
            )
    for name, (low, high, below) in _NUMBERS.items():
        one[name] = _number(name, one[name], low, high, below)
    for name, optional in _WHOLE.items():
        one[name] = None if optional and one[name] is None else _whole(name, one[name])
    one["seed"] = _whole("seed", one["seed"], least=0)
    for name in ("packing", "assistant_only_loss", "trust_remote_code", "gradient_checkpointing"):
        if not isinstance(one[name], bool) and not (name == "gradient_checkpointing" and one[name] is None):
            raise ConfigError(f"{name} is {one[name]!r}.", "Give true or false.")
    for name in ("rank", "alpha"):
        one[name] = _by_role(name, one[name])
    if one["ood_ratio"] is not None:
        one["ood_ratio"] = _number("ood_ratio", one["ood_ratio"], 0, 1, False)
    parse_modules(one["train_modules"])
    if one["inference_modules"] is not None:
        parse_setting(one["inference_modules"])
    return one


_QUOTE = "Write a text; put it in quotes where YAML would take it for something else."
_CHOICES = {
    "schedule": SCHEDULES,
    "mixing": MIXINGS,
    "method": METHODS,
    "scheduler": SCHEDULERS,
    "dtype": DTYPES,
}
_NUMBERS = {  # lowest, highest, and whether the highest itself is too much
    "noise_ratio": (0.0, 1.0, False),
    "dropout": (0.0, 1.0, True),
    "balance_loss": (0.0, math.inf, True),
    "learning_rate": (0.0, math.inf, True),
    "warmup_ratio": (0.0, 1.0, True),
    "weight_decay": (0.0, math.inf, True),
    "epochs": (0.0, math.inf, True),
}
_WHOLE = {  # whether None is allowed
    "total": True,
    "experts": False,
    "top_k": False,
    "max_steps": True,
    "batch_size": False,
    "micro_batch_size": True,
    "max_length": False,
    "save_steps": True,
}


def _check_together(recipe: TrainingRecipe) -> None:
    if recipe.learning_rate == 0 or recipe.epochs == 0:
        name = "learning_rate" if recipe.learning_rate == 0 else "epochs"
        raise ConfigError(f"{name} is 0: nothing would be learnt.", "Give a number above 0.")
    if recipe.micro_batch_size and recipe.batch_size % recipe.micro_batch_size:
        raise ConfigError(
            f"micro_batch_size {recipe.micro_batch_size} does not divide batch_size {recipe.batch_size}.",
            f"Choose one of {', '.join(map(str, divisors(recipe.batch_size)))}, or leave it out.",
        )
    if recipe.method == "molora" and recipe.top_k > recipe.experts:
        raise ConfigError(
            f"top_k is {recipe.top_k}, more than the {recipe.experts} experts.", "Give at most as many as there are."
        )
    if recipe.data and (recipe.in_domain or recipe.ood):
        raise ConfigError(
            "A recipe has data, or in_domain and ood that are mixed, but not both.", "Leave one of them out."
        )
    if recipe.ood and not recipe.in_domain:
        raise ConfigError("ood is there without in_domain.", "Name the in-domain items, or put everything in data.")
    if recipe.ood_ratio is not None and recipe.in_domain and not recipe.ood and recipe.ood_ratio > 0:
        raise ConfigError(f"ood_ratio is {recipe.ood_ratio:g}, and there is no ood.", "Name items with ood.")


def divisors(number: int) -> list[int]:
    """Returns the divisors of a number, rising."""
    return [one for one in range(1, number + 1) if number % one == 0]


def _texts(name: str, value: Any) -> tuple[str, ...]:
    values = (value,) if isinstance(value, str) else () if value is None else value
    if not isinstance(values, list | tuple) or not all(isinstance(one, str) and one.strip() for one in values):
        raise ConfigError(f"{name} is {value!r}.", "Give a text, or a list of texts.")
    return tuple(values)


def _number(name: str, value: Any, low: float, high: float, below: bool) -> float:
    if isinstance(value, str):  # YAML takes 2e-4 for a text
        try:
            value = float(value)
        except ValueError:
            raise ConfigError(f"{name} is {value!r}, and no number.", "Write it as in 0.0002 or 2e-4.") from None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (low <= value < high if below else low <= value <= high):
        upto = "" if high == math.inf else f" to {'below ' if below else ''}{high:g}"
        raise ConfigError(f"{name} is {value!r}.", f"Give a number from {low:g}{upto}.")
    return float(value)


def _whole(name: str, value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}.", f"Give a whole number from {least}.")
    return value


def _by_role(name: str, value: Any) -> ByRole:
    if not isinstance(value, Mapping):
        return _whole(name, value)
    for role in value:
        if role not in TRAINED_ROLES:
            raise ConfigError(
                f"{name} names the role {role!r}.{closest(str(role), TRAINED_ROLES)}",
                f"Give one for each of {', '.join(TRAINED_ROLES)}.",
            )
    if missing := [role for role in TRAINED_ROLES if role not in value]:
        raise ConfigError(f"{name} says nothing of {missing[0]}.", f"Give one for each of {', '.join(TRAINED_ROLES)}.")
    return {role: _whole(f"{name}.{role}", value[role]) for role in TRAINED_ROLES}
