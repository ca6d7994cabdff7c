"""How an update was trained, read from JSON values: each of its type, and no number that is none."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from taia_hub.cards.data import DatasetFacts, Training
from taia_hub.cards.escaping import is_repo_id

_SHA256 = re.compile(r"[0-9a-f]{64}")


def training_from_json(value: Mapping[str, Any]) -> Training:
    """Reads how an update was trained.

    Args:
        value: An object with the fields of `Training`, all of them optional; other fields are passed over.

    Returns:
        What it says.

    Raises:
        ValueError: If a field is of the wrong type, or a number is negative, infinite or none.
    """
    datasets = value.get("datasets") or ()
    if not isinstance(datasets, list | tuple):
        raise ValueError(f"datasets is {datasets!r}, and no list")
    emissions = value.get("co2_eq_emissions")
    if isinstance(emissions, Mapping):
        _number("co2_eq_emissions.emissions", emissions.get("emissions"))
        emissions = _mapping("co2_eq_emissions", emissions)
    return Training(
        datasets=tuple(_dataset(f"datasets[{index}]", one) for index, one in enumerate(datasets)),
        hyperparameters=_mapping("hyperparameters", value.get("hyperparameters")),
        hardware=_mapping("hardware", value.get("hardware")),
        versions=_mapping("versions", value.get("versions")),
        seconds=_number("seconds", value.get("seconds")),
        co2_eq_emissions=emissions if isinstance(emissions, Mapping) else _number("co2_eq_emissions", emissions),
        adapter_sha256=_sha256("adapter_sha256", value.get("adapter_sha256")),
    )


def _dataset(where: str, value: Any) -> DatasetFacts:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {value!r}, and no object")
    known: dict[str, Any] = {field.name: value.get(field.name) for field in dataclasses.fields(DatasetFacts)}
    for name in ("name", "id", "revision", "license", "url"):
        if known[name] is not None and not isinstance(known[name], str):
            raise ValueError(f"{where}.{name} is {known[name]!r}, and no text")
    if not known["name"]:
        raise ValueError(f"{where} has no name")
    if known["id"] is not None and not is_repo_id(known["id"]):
        raise ValueError(f"{where}.id is {known['id']!r}, and no id on the Hub")
    for name in ("items", "bytes"):
        if _number(f"{where}.{name}", known[name]) is not None and not isinstance(known[name], int):
            raise ValueError(f"{where}.{name} is {known[name]!r}, and no whole number")
    _sha256(f"{where}.sha256", known["sha256"])
    return DatasetFacts(**known)


def _mapping(where: str, value: Any) -> dict[str, Any]:
    """Returns names with values that a table can show: texts, numbers, truths, and lists of them."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {value!r}, and no object")
    for name, one in value.items():
        for part in one if isinstance(one, list) else [one]:
            if not (part is None or isinstance(part, str | int | float)):
                raise ValueError(f"{where}.{name} is {one!r}, and no text or number")
            if isinstance(part, float) and not math.isfinite(part):
                raise ValueError(f"{where}.{name} is {one!r}, and no number")
    return dict(value)


def _number(where: str, value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and math.isfinite(value) and value >= 0):
        raise ValueError(f"{where} is {value!r}, and no number from 0 on")
    return value


def _sha256(where: str, value: Any) -> Any:
    if value is not None and not (isinstance(value, str) and _SHA256.fullmatch(value)):
        raise ValueError(f"{where} is {value!r}, and no sha256 of 64 lowercase hexadecimal digits")
    return value
