"""`TrainingRecipe`: everything that a training run depends on, as plain values that are checked when they are made.

The recipes of the paper's rows ship in `recipes/`: `NAME.yaml` holds fields of `TrainingRecipe` and nothing else, so
that `taia train` takes it; `paper/NAME.yaml` holds what `taia reproduce` needs beside it: `trained_on` (the paper's
data, in words), `bring` (what the user must bring), `sweep` (label of a run to the fields in which it differs),
`evaluation` (tasks and modes), `remarks` and `paper` (the paper's numbers, their source and how well they are known).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from taia_hub.common.fields import asked, documented
from taia_hub.common.parsing import parse_yaml
from taia_hub.errors import ConfigError, RepositoryError, SettingError, closest
from taia_hub.switch.settings import Setting, parse_setting
from taia_hub.training.fields import ByRole, checked, parse_modules

RECIPES = Path(__file__).parent / "recipes"
"""Folder of the recipes that ship."""

METHODS = ("lora", "molora", "full")
SCHEDULES = ("uniform", "linear")
MIXINGS = ("replace", "add")
SCHEDULERS = ("cosine", "linear", "constant", "constant_with_warmup")
DTYPES = ("auto", "float32", "bfloat16")
_MOLORA_ONLY = ("experts", "top_k", "balance_loss")
_LORA_ONLY = ("rank", "alpha", "dropout")


def recipe_names() -> tuple[str, ...]:
    """Returns the names of the recipes that ship, in alphabetical order.

    Example:
        >>> "lora" in recipe_names()
        True
    """
    return tuple(sorted(path.stem for path in RECIPES.glob("*.yaml")))


def divisors(number: int) -> list[int]:
    """Returns the divisors of a number, rising."""
    return [one for one in range(1, number + 1) if number % one == 0]


# what the fields may say besides is in `fields.checked`
_data, _what = partial(asked, panel="Data"), partial(asked, panel="What is trained")
_how, _here = partial(asked, panel="How it is trained"), partial(asked, panel="Devices and memory")


@documented
@dataclass(frozen=True)
class TrainingRecipe:
    """What is trained, on what and how; the defaults are those of the paper's LoRA runs (its scripts).

    Raises:
        ConfigError: If a value is of the wrong type or range.
        SettingError: If `train_modules` or `inference_modules` cannot be understood.

    Example:
        >>> recipe = TrainingRecipe(base="org/base", data=("items.jsonl",), rank={"attention": 4, "ffn": 64})
        >>> recipe.rank_of("ffn"), recipe.alpha_of("ffn"), recipe.learning_rate
        (64, 32, 0.0002)
    """

    base: str = _what("", "Hub id or folder of the base model.")
    base_revision: str | None = _what(None, "Branch, tag or commit of the base model.")
    data: tuple[str, ...] = _data(
        (),
        "JSON Lines, JSON, Parquet or CSV file, or Hub data set (id@revision:split), as it is; repeat it.",
        metavar="DATA",
    )
    in_domain: tuple[str, ...] = _data(
        (), "Instead of that: data in the domain, to be mixed with --ood; repeat it.", metavar="DATA"
    )
    ood: tuple[str, ...] = _data((), "Data out of the domain; repeat it.", metavar="DATA")
    ood_ratio: float | None = _data(None, "Share of items out of the domain, from 0 to 1.", high=1.0, below=False)
    schedule: str = _data("uniform", "That share stays the same, or falls to 0 (linear annealing).", choices=SCHEDULES)
    mixing: str = _data(
        "replace",
        "Items out of the domain take the place of others (a fixed total), or come on top of all items in it.",
        choices=MIXINGS,
    )
    total: int | None = _data(None, "Items of an epoch; as many as there are by default.")
    holdout: float | None = _data(
        None,
        "Share of the items (of those in the domain, where others are mixed in) that is never trained on, to measure "
        "the modes with; by default 0.02 of 200 or more, at least 16 and at most 1,000, and none of fewer.",
        high=1.0,
    )
    noise_ratio: float = _data(
        0.0, "Share of the items that get another item's answer, from 0 to 1.", high=1.0, below=False
    )
    method: str = _what(
        "lora",
        "LoRA; or LoRA on attention and, on each linear layer of the FFN, a mixture of LoRA experts with a router; or "
        "all weights, computed in float32 and stored in the base's dtype: in 16 bits the smallest changes are rounded "
        "away.",
        choices=METHODS,
    )
    train_modules: str = _what(
        "all",
        "all (the paper's vanilla and TAIA), attention (its TOA), ffn, or roles, roles at layers and globs on module "
        "paths joined by '+': attention+ffn@0-7. "
        "LoRA and MoLoRA adapt linear layers of attention and FFN only.",
        check=parse_modules,
    )
    rank: ByRole = _what(16, "Rank of the LoRA pairs, or one a role: attention=4,ffn=64.")  # noqa: RUF009 - a field
    alpha: ByRole = _what(32, "Of the scaling alpha / rank; one number is for every rank, or one a role.")  # noqa: RUF009 - a field
    dropout: float = _what(0.05, "On the input of the LoRA pairs, from 0 to below 1.", high=1.0)
    experts: int = _what(4, "Experts of an FFN layer (molora).")
    top_k: int = _what(2, "Experts that a token uses (molora); with one the router gets no gradient.")
    balance_loss: float = _what(0.0, "Weight of the load-balancing loss (molora); the paper uses none.")
    learning_rate: float = _how(2e-4, "Highest learning rate of AdamW.")
    scheduler: str = _how("cosine", "How it changes.", choices=SCHEDULERS)
    warmup_ratio: float = _how(0.03, "Share of the steps in which it rises, from 0 to below 1.", high=1.0)
    weight_decay: float = _how(0.0, "Weight decay of AdamW.")
    epochs: float = _how(1.0, "Passes over the items; parts of one are allowed.")
    max_steps: int | None = _how(None, "Most optimizer steps; all by default.")
    batch_size: int = _how(64, "Items of an optimizer step, over all devices; with --packing, packed sequences.")
    micro_batch_size: int | None = _here(None, "Items of a forward pass on one device; as many as fit by default.")
    max_length: int = _data(3072, "Longest item in tokens; what is longer is cut off.")
    packing: bool = _data(
        False,
        "Several items share a sequence of --max-length tokens, without seeing each other; refused where the "
        "architecture cannot keep them apart.",
    )
    assistant_only_loss: bool = _data(
        True, "The loss covers the answers only, or everything.", flags="--assistant-only-loss/--whole-loss"
    )
    dtype: str = _here(
        "auto", "Computed in; auto is bfloat16 where the device is fast at it, else float32.", choices=DTYPES
    )
    gradient_checkpointing: bool | None = _here(
        None, "Compute activations twice to save memory; by default where they do not fit else."
    )
    seed: int = _how(0, "Of the initial weights, the dropout, the order and the noise.", low=0)
    save_steps: int | None = _here(None, "Optimizer steps between two checkpoints; about twenty in a run by default.")
    report_to: tuple[str, ...] = _here((), "Tracker: trackio, wandb, tensorboard, …; repeat it.", metavar="TRACKER")
    inference_modules: Any = field(
        default=None,
        metadata={
            "check": lambda value: parse_setting(value).resolved(),
            "doc": 'What a run publishes; None is "attention", and "attention+other" after full fine-tuning, as in the '
            "paper's code (norms, embeddings and head stay tuned).",
        },
    )
    name: str | None = field(default=None, metadata={"doc": "Name of the recipe."})
    description: str | None = field(default=None, metadata={"doc": "What it is for."})
    reference: str | None = field(default=None, metadata={"doc": "Where it comes from."})
    trust_remote_code: bool = _what(False, "Let the base model's own code run.", flags="--trust-remote-code")

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for one in dataclasses.fields(self):
            object.__setattr__(self, one.name, checked(one, kinds[one.name], getattr(self, one.name)))
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
        """Returns a recipe with other values in some fields, checked again."""
        return self.from_mapping({**{one.name: getattr(self, one.name) for one in dataclasses.fields(self)}, **changes})

    def check_complete(self) -> None:
        """Raises ConfigError if base or data is missing, as in shipped recipes, or unmixed data is given a share."""
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
        """Makes a recipe of names and values, as YAML and the command line give them; ConfigError if one is wrong.

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
        """Reads a YAML file; RepositoryError if it is missing, ConfigError if it is no mapping or a value is wrong."""
        try:
            values = parse_yaml(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise RepositoryError(f"The recipe '{path}' cannot be read: {error}.", "Give a YAML file.") from error
        except ValueError as error:
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
        """Reads a YAML file, or the recipe of this name that ships with the package; ConfigError if there is none."""
        name, known = str(name_or_path), recipe_names()
        if Path(name).is_file():
            return cls.from_yaml(name)
        if name in known:
            return cls.from_yaml(RECIPES / f"{name}.yaml")
        raise ConfigError(
            f"There is no recipe '{name}'.{closest(name, known)}", f"Give a YAML file, or one of {', '.join(known)}."
        )


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
