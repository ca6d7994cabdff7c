"""A recipe of the paper: how to train, in how many runs, on what to evaluate, and what the paper reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taia_hub.common.parsing import parse_yaml
from taia_hub.errors import ConfigError, RepositoryError, closest
from taia_hub.switch.settings import parse_setting
from taia_hub.training.recipe import RECIPES, recipe_names

BROUGHT = ("data", "in_domain", "ood", "prompts")
"""What a user may have to bring."""

_OWN = ("trained_on", "bring", "sweep", "evaluation", "remarks", "paper")
_EVALUATION = ("tasks", "modes")
_MODES = ("none", "attention", "ffn", "all")


_KEYS = ("table", "setting", "precision", "source", "numbers", "others", "remarks")


@dataclass(frozen=True)
class PaperTable:
    """Numbers of the paper, in percent.

    Attributes:
        setting: Model, method and data that they belong to; it heads their column.
        precision: `"exact"`, or how exactly they were read.
        numbers: Label of a run to mode to task to the number; a task is named by its key in the results, and what is
            measured on a file of prompts by its metric.
        others: Methods of the paper that are not run here, to task to number.
    """

    table: str
    setting: str
    precision: str
    source: str
    numbers: Mapping[str, Mapping[str, Mapping[str, float]]]
    others: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def find(self, label: str, mode: str, task: str) -> float | None:
        """Returns the paper's number in percent by run, setting and key of a task, or None where it is not known."""
        known = self.numbers.get(label, {}).get(mode, {})
        name = task.partition("@")[0]
        return known.get(name, known.get(name.partition(":")[0]))


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
        """Returns the fields of `TrainingRecipe` for one run; `name` is the recipe's, with `-LABEL` in a sweep.

        Nothing is held out unless the recipe says so: the paper trained on all items, and measured on benchmarks.

        Example:
            >>> load_recipe("rank-sweep").run_fields("ar4_fr64")["rank"]
            {'attention': 4, 'ffn': 64}
        """
        about = {"name": self.name, "description": self.description, "reference": self.reference, "holdout": 0.0}
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
        return _parse_recipe(_yaml(Path(name), str(name)), str(name))
    known = recipe_names()
    if str(name) not in known:
        raise ConfigError(
            f"There is no recipe '{name}'.{closest(str(name), known)}",
            f"Choose one of {', '.join(known)}, or give a YAML file of the same form.",
        )
    where = f"recipe {name}"
    return _parse_recipe(
        {**_yaml(RECIPES / f"{name}.yaml", where), **_yaml(RECIPES / f"paper/{name}.yaml", where)}, where
    )


def _yaml(path: Path, where: str) -> Mapping[str, Any]:
    try:
        return _mapping(parse_yaml(path.read_text(encoding="utf-8")), where)
    except (OSError, UnicodeError) as error:
        raise RepositoryError(f"The recipe '{path}' cannot be read: {error}.", "Check the path.") from error
    except ValueError as error:
        raise ConfigError(f"{where} is no YAML: {' '.join(str(error).split())}.", "Mend the file.") from error


def _parse_recipe(value: Any, where: str) -> Recipe:
    """Reads a recipe from YAML values; the fields of training are checked when they become a `TrainingRecipe`."""
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
        parse_setting(mode).resolved()
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
        paper=_paper_tables(own.get("paper", []), tuple(sweep) or (name,), bool(sweep), where),
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


def _paper_tables(value: Any, labels: tuple[str, ...], is_sweep: bool, where: str) -> tuple[PaperTable, ...]:
    """Reads the `paper` of a recipe, tables with a source each; in a sweep, numbers stand under the label of a run."""
    if not isinstance(value, list):
        raise ConfigError(f"{where}: paper is {value!r}; a list of tables is expected.", "Compare a shipped recipe.")
    return tuple(_table(one, labels, is_sweep, f"{where}: paper[{index}]") for index, one in enumerate(value))


def _table(value: Any, labels: tuple[str, ...], is_sweep: bool, where: str) -> PaperTable:
    if not isinstance(value, Mapping) or not {"table", "setting", "precision", "source", "numbers"} <= set(value):
        raise ConfigError(f"{where} lacks a key.", "It has table, setting, precision, source and numbers.")
    if unknown := [key for key in value if key not in _KEYS]:
        raise ConfigError(f"{where} has the key {unknown[0]!r}.", f"Choose from {', '.join(_KEYS)}.")
    runs = value["numbers"] if is_sweep else {labels[0]: value["numbers"]}
    try:
        numbers = {
            str(label): {parse_setting(mode).resolved().label: _row(row) for mode, row in modes.items()}
            for label, modes in runs.items()
        }
        others = {str(name): _row(row) for name, row in value.get("others", {}).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{where} is no table of numbers: {error}", "Compare a shipped recipe.") from error
    if unknown := [label for label in numbers if label not in labels]:
        raise ConfigError(f"{where} has numbers of the run {unknown[0]!r}.", f"The runs are {', '.join(labels)}.")
    texts = {key: " ".join(str(value[key]).split()) for key in ("table", "setting", "precision", "source")}
    return PaperTable(**texts, numbers=numbers, others=others, remarks=tuple(map(str, value.get("remarks", ()))))


def _row(row: Mapping[str, Any]) -> dict[str, float]:
    found = {str(task): float(number) for task, number in row.items()}
    if wrong := [task for task, number in found.items() if not (math.isfinite(number) and 0 <= number <= 100)]:
        raise ValueError(f"{wrong[0]} is {found[wrong[0]]}, and no percentage.")
    return found
