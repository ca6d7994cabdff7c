"""The paper's numbers: what they were measured on, where they were read, and how exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from taia_hub.errors import ConfigError
from taia_hub.switch.settings import parse_setting

_KEYS = ("table", "setting", "precision", "source", "numbers", "others", "remarks")


@dataclass(frozen=True)
class PaperTable:
    """Numbers of the paper, in percent.

    Attributes:
        table: Which table or figure.
        setting: Model, method and data that they belong to; it heads their column.
        precision: `"exact"`, or how exactly they were read.
        source: Where they were read.
        numbers: Label of a run to mode to task to the number; a task is named by its key in the results, and what is
            measured on a file of prompts by its metric.
        others: Methods of the paper that are not run here, to task to number.
        remarks: What is odd about them.
    """

    table: str
    setting: str
    precision: str
    source: str
    numbers: Mapping[str, Mapping[str, Mapping[str, float]]]
    others: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def find(self, label: str, mode: str, task: str) -> float | None:
        """Returns the paper's number in percent, or None where it is not known.

        Args:
            label: Label of the run.
            mode: Label of the setting.
            task: Key of a task in the results.

        Returns:
            The number.
        """
        known = self.numbers.get(label, {}).get(mode, {})
        name = task.partition("@")[0]
        return known.get(name, known.get(name.partition(":")[0]))


def paper_tables(value: Any, labels: tuple[str, ...], is_sweep: bool, where: str) -> tuple[PaperTable, ...]:
    """Reads the `paper` of a recipe.

    Args:
        value: What the file holds: a list of tables.
        labels: Labels of the recipe's runs.
        is_sweep: Whether numbers stand under the label of a run.
        where: Name of the file, in error messages.

    Returns:
        The tables.

    Raises:
        ConfigError: If a table lacks its source, or a number is none from 0 to 100.
    """
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
            str(label): {parse_setting(mode).label: _row(row) for mode, row in modes.items()}
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
