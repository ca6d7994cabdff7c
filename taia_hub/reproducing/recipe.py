"""A recipe of the paper: how to train, in how many runs, on what to evaluate, and what the paper reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from taia_hub.errors import ConfigError, RepositoryError, closest
from taia_hub.reproducing.paper import PaperTable, paper_tables
from taia_hub.switch.settings import parse_setting
from taia_hub.training.recipe import RECIPES, recipe_names

BROUGHT = ("data", "in_domain", "ood", "prompts")
"""What a user may have to bring."""

_OWN = ("trained_on", "bring", "sweep", "evaluation", "remarks", "paper")
_EVALUATION = ("tasks", "modes")
_MODES = ("none", "attention", "ffn", "all")


@dataclass(frozen=True)
class Recipe:
    """A row of the paper.

    Attributes:
        name: Its name.
        description: One line.
        reference: Where it stands in the paper, and where its hyper-parameters come from.
        training: Fields of `TrainingRecipe` with their values.
        trained_on: The paper's training data, in words.
        bring: Which of `BROUGHT` the user must bring, and a description of its form and of the paper's.
        sweep: Label of a run to the fields in which it differs, in the order of the table; empty for a single run.
        tasks: Tasks that are evaluated.
        modes: Settings that are evaluated.
        remarks: What always differs from the paper's setting, or is not known of it.
        paper: The paper's numbers.
    """

    name: str
    description: str
    reference: str
    training: Mapping[str, Any]
    trained_on: str
    bring: Mapping[str, str]
    sweep: Mapping[str, Mapping[str, Any]]
    tasks: tuple[str, ...]
    modes: tuple[str, ...]
    remarks: tuple[str, ...]
    paper: tuple[PaperTable, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the runs; that of a single run is the recipe's name."""
        return tuple(self.sweep) or (self.name,)

    def run_fields(self, label: str) -> dict[str, Any]:
        """Returns the fields of `TrainingRecipe` for one run.

        Args:
            label: One of `labels`.

        Returns:
            Fields and values; `name` is the recipe's, with `-LABEL` in a sweep.

        Example:
            >>> load_recipe("rank-sweep").run_fields("ar4_fr64")["rank"]
            {'attention': 4, 'ffn': 64}
        """
        about = {"name": self.name, "description": self.description, "reference": self.reference}
        if not self.sweep:
            return {**about, **self.training}
        return {**about, **self.training, **self.sweep[label], "name": f"{self.name}-{label}"}


def load_recipe(name: str | Path) -> Recipe:
    """Reads a shipped recipe by its name, or one of the same form from a YAML file.

    Args:
        name: One of `taia_hub.training.recipe.recipe_names()`, or the path of a file that ends in `.yaml` or
            `.yml` and holds the fields of training and those of the paper together.

    Returns:
        The recipe.

    Raises:
        ConfigError: If there is no such recipe, or the file has keys or values that no recipe has.
        RepositoryError: If the file cannot be read.

    Example:
        >>> load_recipe("lora").training["rank"]
        16
    """
    if str(name).endswith((".yaml", ".yml")):
        return parse_recipe(_yaml(Path(name), str(name)), str(name))
    known = recipe_names()
    if str(name) not in known:
        raise ConfigError(
            f"There is no recipe '{name}'.{closest(str(name), known)}",
            f"Choose one of {', '.join(known)}, or give a YAML file of the same form.",
        )
    where = f"recipe {name}"
    return parse_recipe(
        {**_yaml(RECIPES / f"{name}.yaml", where), **_yaml(RECIPES / f"paper/{name}.yaml", where)}, where
    )


def _yaml(path: Path, where: str) -> Mapping[str, Any]:
    try:
        return _mapping(yaml.safe_load(path.read_text(encoding="utf-8")), where)
    except (OSError, UnicodeError) as error:
        raise RepositoryError(f"The recipe '{path}' cannot be read: {error}.", "Check the path.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is no YAML: {' '.join(str(error).split())}.", "Mend the file.") from error


def parse_recipe(value: Any, where: str) -> Recipe:
    """Reads a recipe from YAML values; the fields of training are checked when they become a `TrainingRecipe`.

    Args:
        value: What the file holds.
        where: Name of the file, in error messages.

    Returns:
        The recipe.

    Raises:
        ConfigError: If a key or value is none of a recipe's.
    """
    fields = dict(_mapping(value, where))
    own = {key: fields.pop(key) for key in _OWN if key in fields}
    name = _text(fields.pop("name", None), f"{where}: name")
    if set(name) & set("/\\") or name.startswith("."):
        raise ConfigError(f"{where}: the name {name!r} is no name of a folder.", "Use letters, digits and '-'.")
    description = _text(fields.pop("description", None), f"{where}: description")
    reference = _text(fields.pop("reference", None), f"{where}: reference")
    evaluation = _mapping(own.get("evaluation", {}), f"{where}: evaluation", _EVALUATION)
    bring = _mapping(own.get("bring", {}), f"{where}: bring", BROUGHT)
    sweep = {
        _text(label, f"{where}: sweep"): _mapping(run, f"{where}: sweep: {label}")
        for label, run in _mapping(own.get("sweep", {}), f"{where}: sweep").items()
    }
    if wrong := [label for label in sweep if set(label) & set("/\\") or label.startswith(".")]:
        raise ConfigError(f"{where}: the run {wrong[0]!r} is no name of a folder.", "Use letters, digits and '-'.")
    modes = _texts(evaluation.get("modes", list(_MODES)), f"{where}: modes")
    for mode in modes:
        parse_setting(mode)
    return Recipe(
        name=name,
        description=description,
        reference=reference,
        training=fields,
        trained_on=_text(own.get("trained_on", "not known"), f"{where}: trained_on"),
        bring={key: _text(text, f"{where}: bring: {key}") for key, text in bring.items()},
        sweep=sweep,
        tasks=_texts(evaluation.get("tasks", []), f"{where}: tasks"),
        modes=modes,
        remarks=_texts(own.get("remarks", []), f"{where}: remarks"),
        paper=paper_tables(own.get("paper", []), tuple(sweep) or (name,), bool(sweep), where),
    )


def _mapping(value: Any, where: str, allowed: tuple[str, ...] | None = None) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {value!r}; keys with values are expected.", "Compare a shipped recipe.")
    if allowed is not None and (unknown := [str(key) for key in value if key not in allowed]):
        raise ConfigError(
            f"{where} has the key {unknown[0]!r}.{closest(unknown[0], allowed)}", f"Choose from {', '.join(allowed)}."
        )
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where} is {value!r}; a text is expected.", "Put it in quotes where YAML reads a number.")
    return value.strip()


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"{where} is {value!r}; a list of texts is expected.", "As in [taia_paper].")
    return tuple(_text(one, where) for one in value)
