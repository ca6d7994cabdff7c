"""The files of a full fine-tune: configuration, index and shards, read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taia_hub import hub
from taia_hub.errors import ConfigError, RepositoryError, UpdateMismatchError, short
from taia_hub.hub.layout import DENSE
from taia_hub.weights.checkpoint import Group, group_tensors, read_shards

VERSION = 1


def read_dense_config(folder: Path) -> dict[str, Any]:
    """Reads `dense_config.json` of a full fine-tune, and refuses a later version."""
    path = folder / DENSE.config
    if not path.is_file():
        raise RepositoryError(f"'{folder}' has no {DENSE.config}.", "Write it with `taia create BASE TUNED --dense`.")
    config = hub.read_json(path)
    version = config.get("version")
    if not isinstance(version, int) or version < 1:
        raise ConfigError(f"'{path}' has the version {short(version)}; {VERSION} is expected.", "Write it again.")
    if version > VERSION:
        raise ConfigError(f"'{path}' has the version {version}; {VERSION} is known here.", "Upgrade taia-hub.")
    for name, fits in (("aliases", _is_names), ("resized", _is_rows)):
        if not fits(config.get(name)):
            raise ConfigError(f"'{path}' holds a malformed '{name}': {short(config.get(name))}.", "Write it again.")
    return config


def dense_groups(base: Any, folder: Path, config: Mapping[str, Any]) -> dict[str, Group]:
    """Finds what each tuned parameter is made of, by its name, and checks names and shapes against the base."""
    model_type = getattr(getattr(base, "config", None), "model_type", None)
    if model_type != config.get("model_type"):
        raise UpdateMismatchError(
            f"The fine-tune is of a model of type {short(config.get('model_type'))}; the base is {model_type!r}.",
            "Name the base model that it was made from.",
        )
    found, unused = group_tensors(base, read_shards(folder, DENSE.weights))
    groups = {name: group for group in found for name in group.shapes}
    for name, source in config["aliases"].items():
        if source not in groups:
            raise ConfigError(f"{DENSE.config} ties '{name}' to '{source}', which is not there.", "Write it again.")
        groups[name] = groups[source]
    own = base.state_dict()
    if unknown := [*unused, *(name for name in groups if name not in own)]:
        raise UpdateMismatchError(
            f"{len(unknown)} tensors of the fine-tune belong to no parameter of the base model, first '{unknown[0]}'.",
            "Name the base model, and its revision, that the fine-tune was made from.",
        )
    for name, group in groups.items():
        shape, expected = next(iter(group.shapes.values())), tuple(own[name].shape)
        if name in group.shapes:
            shape = group.shapes[name]
        if name in config["resized"]:
            before, after = config["resized"][name]
            expected = (after, *expected[1:]) if expected[:1] == (before,) else expected
        if shape != expected:
            raise UpdateMismatchError(
                f"The fine-tune holds '{name}' with shape {shape}; {expected} fits the base model.",
                "Name the base model, and its revision, that the fine-tune was made from.",
            )
    return groups


def _is_names(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value.values())


def _is_rows(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(rows, list) and len(rows) == 2 and all(isinstance(one, int) for one in rows)
        for rows in value.values()
    )
