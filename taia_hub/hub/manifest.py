"""The manifest of a repository: everything that decides what its model computes, so that no change of it is silent.

Files (weights, and the update's configuration) are held by size and sha256. `config.json` also holds what decides
nothing and what transformers writes anew, so that of it the deciding fields are held themselves: a difference can be
named, and the published setting renewed alone. Version 1 held the weights only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from taia_hub.common.resuming import sha256
from taia_hub.errors import ConfigError, RepositoryError, short
from taia_hub.hub.access import CONFIG
from taia_hub.hub.config import Fields, RepositoryConfig
from taia_hub.hub.files import MANIFEST, read_json
from taia_hub.hub.layout import KINDS

logger = logging.getLogger(__name__)

_VERSION = 2
_PUBLISHED = "inference_modules"
_OF_TRANSFORMERS = ("attn_implementation", "experts_implementation", "output_hidden_states", "return_dict")
_AGAIN = "Download the repository again, or write it anew with `save_pretrained`; `verify=False` skips this check."
_CONFIGURED = (
    "Put the value back or download the repository again; where the change is meant, make the repository anew: "
    "`taia create BASE ADAPTER`. `verify=False` skips this check."
)
_RENEW = (
    "Where this is meant, `taia card REPO --push` (or `taia card DIR --write`, or `taia push DIR REPO`) renews the "
    "manifest; else put the value back. `verify=False` skips this check."
)


def write_manifest(folder: Path, files: Mapping[str, Path]) -> None:
    """Writes `taia_manifest.json`, last of all: what decides the numbers.

    `files` are path in the repository to path on this disk of the update's weights and configuration; a folder's
    `config.json` is read from there.
    """
    entries = {name: _entry(path) for name, path in sorted(files.items())}
    (folder / MANIFEST).write_text(
        _text({"config": _deciding(read_json(folder / CONFIG)), "files": entries}), encoding="utf-8"
    )


def verify_manifest(folder: Path, files: Mapping[str, Path], *, required: bool, published: bool = True) -> None:
    """Checks files and `config.json` against the manifest in `folder`, so that neither a bit nor a number can change.

    `files` are as of `write_manifest`. `published` says whether the published setting is checked too.

    Raises:
        RepositoryError: If the manifest is missing and `required`, or a file or a field differs.
        ConfigError: If the manifest is malformed.
    """
    if not (folder / MANIFEST).is_file():
        if required:
            raise RepositoryError(f"'{folder}' has no {MANIFEST}, so its files cannot be checked.", _AGAIN)
        return
    values = _read(folder)
    entries, is_older = values.get("files"), values["version"] == 1
    for name, path in files.items():
        if is_older and _is_configuration(name):
            continue
        _check_file(folder, name, path, entries)
    if is_older:
        _say_older(str(folder))
        return
    held, now = values.get("config"), _deciding(read_json(folder / CONFIG))
    if not isinstance(held, dict):
        raise ConfigError(f"{MANIFEST} in '{folder}' says nothing usable of {CONFIG}.", _AGAIN)
    for key in sorted({*held, *now}):
        if held.get(key) != now.get(key) and (published or key != _PUBLISHED):
            raise RepositoryError(
                f"{CONFIG} in '{folder}' has {key} {short(now.get(key))}; {MANIFEST} says {short(held.get(key))}.",
                _RENEW if key == _PUBLISHED else _CONFIGURED,
            )


def renewed_manifest(
    folder: Path, update: Path, *, configured: bool = False, values: Mapping[str, Any] | None = None
) -> str | None:
    """Returns the text of a manifest that holds what `config.json` publishes now; None where nothing is to be renewed.

    One of an older version gets what it lacks. Nothing else of it changes, unless all that is `configured`, in both
    configurations, was written anew. `update` is the folder of the update, and `values` what `config.json` will say
    where it is not written yet.
    """
    if not (folder / MANIFEST).is_file():
        return None
    configuration = read_json(folder / CONFIG) if values is None else values
    values, now = _read(folder), _deciding(configuration)
    entries, held = values.get("files"), values.get("config")
    if (configured or values["version"] == 1) and isinstance(entries, dict):
        place = RepositoryConfig.of(configuration).place
        if not (update / place.kind.config).is_file():  # it lies in another repository, at a fixed commit
            return None
        entries = dict(sorted({**entries, place.config: _entry(update / place.kind.config)}.items()))
        return _text({"config": now, "files": entries})
    if not isinstance(held, dict) or held.get(_PUBLISHED) == now[_PUBLISHED]:
        return None
    return _text({"config": {**held, _PUBLISHED: now[_PUBLISHED]}, "files": entries})


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps({"version": _VERSION, **values}, indent=2) + "\n"


def _entry(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def _read(folder: Path) -> dict[str, Any]:
    values = read_json(folder / MANIFEST)
    version = values.get("version")
    if type(version) is not int or not 1 <= version <= _VERSION:
        raise ConfigError(
            f"{MANIFEST} in '{folder}' has version {version!r}; this package reads 1 to {_VERSION}.",
            f"Upgrade taia-hub where it is a later one. {_AGAIN}",
        )
    return values


def _is_configuration(name: str) -> bool:
    return name.rpartition("/")[2] in {kind.config for kind in KINDS.values()}


def _check_file(folder: Path, name: str, path: Path, entries: Any) -> None:
    try:
        size, digest = int(entries[name]["size"]), str(entries[name]["sha256"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ConfigError(f"{MANIFEST} in '{folder}' says nothing usable of '{name}': {error!r}.", _AGAIN) from error
    said, hint = f"'{name}' is damaged", _AGAIN
    if _is_configuration(name):
        said, hint = f"'{name}' was changed", _CONFIGURED
    if path.stat().st_size != size:
        raise RepositoryError(f"{said}: it has {path.stat().st_size} bytes; {MANIFEST} says {size}.", hint)
    if (found := sha256(path)) != digest:
        raise RepositoryError(f"{said}: its sha256 is {found}; {MANIFEST} says {digest}.", hint)


def _deciding(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a `config.json` that decide what is computed, in the form that JSON keeps."""
    config = RepositoryConfig.of(values)
    own = {key: getattr(config, key) for key in Fields.__annotations__}
    further = {key: values[key] for name in _OF_TRANSFORMERS for key in (name, f"_{name}") if key in values}
    deciding: dict[str, Any] = json.loads(json.dumps({**own, **further}))
    return deciding


@lru_cache(maxsize=1024)
def _say_older(name: str) -> None:
    """Notes, once a repository, what an older manifest does not cover."""
    logger.warning(
        "%s of '%s' is of an older version: it covers the weights, but not the configuration of the update. "
        "`taia card REPO --push`, or `taia push` of the folder, renews it.",
        MANIFEST,
        name,
    )
