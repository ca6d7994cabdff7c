"""A repository whose base model is a folder here, put on the same base model on the Hub, so that others can load it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from taia_hub import hub
from taia_hub.common.parsing import parse_json, parse_yaml
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.hub.config import Fields
from taia_hub.repository.reading import base_name
from taia_hub.repository.side_files import RECIPE_FILE
from taia_hub.results import RESULTS_FILE, TUNING_FILE
from taia_hub.results.analysis import ANALYSIS_FILE
from taia_hub.weights.base_weights import headers_of
from taia_hub.weights.checkpoint import StoredTensor, read_header

_OWN_WORDS = {"_name_or_path", "_commit_hash", "transformers_version", "dtype", "torch_dtype", "architectures"}
"""Keys of a model's configuration that do not change what it computes."""
_PIECE = 1 << 20


@contextlib.contextmanager
def on_base(folder: Path, config: Fields, base: str, access: hub.HubAccess, trust_remote_code: bool) -> Iterator[Path]:
    """Gives a folder with the files of a repository, all of which name a base model on the Hub and its commit.

    That base must be the one that the repository has now: the same weights, and the same configuration. Hashes are
    compared where the files are the same, else the tensors.

    Raises:
        RepositoryError: If it is another base, is no repository on the Hub, or one of the two cannot be read.
    """
    named = base_name(config, str(folder))
    target = hub.resolve_base(base, None, access)
    if target.revision is None:
        raise RepositoryError(
            f"The base model '{base}' is a folder on this machine.", "Give the id that it has on the Hub: org/base."
        )
    current = hub.resolve_base(named, config.base_model_revision, access)
    check_same_base(current, target, access, trust_remote_code=trust_remote_code)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / folder.resolve().name
        for name, path in hub.published_files(folder).items():
            place = root / name
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                place.symlink_to(path.resolve())
            except OSError:  # where links are not allowed
                shutil.copyfile(path, place)
        for name, keys in _named_in(config).items():
            if (folder / name).is_file():
                _rename_base(folder / name, root / name, keys, current, target)
        if renewed := hub.renewed_manifest(root, root / config.place.path, configured=True):
            (root / hub.MANIFEST).unlink()
            (root / hub.MANIFEST).write_text(renewed, encoding="utf-8")
        yield root


def check_same_base(
    one: hub.Source, other: hub.Source, access: hub.HubAccess, *, trust_remote_code: bool = False
) -> None:
    """Refuses two base models of which one cannot stand for the other, and says in what they differ.

    Raises:
        RepositoryError: If configuration, a tensor's name, dtype or shape, or a weight differs.
    """
    if (one.name, one.revision) == (other.name, other.revision):
        return
    values = [_config(source, access, trust_remote_code) for source in (one, other)]
    keys = [key for key in sorted({*values[0], *values[1]}) if values[0].get(key) != values[1].get(key)]
    if keys:
        said = f"its {hub.CONFIG} says {keys[0]} {values[1].get(keys[0])!r}, not {values[0].get(keys[0])!r}"
        raise _differs(one, other, said)
    if _same_files(_hashes(one, access), _hashes(other, access)):
        return
    headers = [headers_of(source, access) for source in (one, other)]
    if alone := sorted(headers[0].keys() ^ headers[1].keys()):
        raise _differs(one, other, f"it {'lacks' if alone[0] in headers[0] else 'has also'} the tensor '{alone[0]}'")
    for name, here in headers[0].items():
        there = headers[1][name]
        if (here.kind, here.shape) != (there.kind, there.shape):
            said = f"'{name}' is {there.kind} {list(there.shape)}, not {here.kind} {list(here.shape)}"
            raise _differs(one, other, said)
    by_file: dict[str, list[str]] = {}
    for name, stored in headers[1].items():
        by_file.setdefault(stored.file.name, []).append(name)
    for file, names in sorted(by_file.items()):  # the first file that differs ends it
        for name in names:
            if not _same(_brought(one, headers[0][name], access), _brought(other, headers[1][name], access)):
                raise _differs(one, other, f"the numbers of '{name}' in {file} are others")


def _differs(one: hub.Source, other: hub.Source, said: str) -> RepositoryError:
    return RepositoryError(
        f"'{other.name}' is not the base model that this was trained on, '{one.name}': {said}.",
        "Name the repository with the very same weights, or push the base first: `hf upload org/base DIR`.",
    )


def _config(source: hub.Source, access: hub.HubAccess, trust_remote_code: bool) -> dict[str, Any]:
    """Returns what a model's configuration says that matters, with transformers' defaults filled in."""
    from transformers import AutoConfig

    values = hub.read_json(source.folder / hub.CONFIG)
    with contextlib.suppress(ValueError, KeyError, OSError):  # of a class that is not here: as it is written
        values = AutoConfig.from_pretrained(
            source.name if source.revision else source.folder,
            revision=source.revision,
            token=access.token,
            cache_dir=access.cache_dir,
            trust_remote_code=trust_remote_code,
        ).to_dict()
    return json.loads(json.dumps({key: value for key, value in values.items() if key not in _OWN_WORDS}, default=str))


def _hashes(source: hub.Source, access: hub.HubAccess) -> list[set[str]]:
    """Returns the hashes of each weights file, sha256 or as Git has it; on the Hub nothing is downloaded for it."""
    files = sorted({stored.file for stored in headers_of(source, access).values()})
    if source.revision is None:
        return [_hashes_of(path) for path in files]
    info = hub.info(source.name, revision=source.revision, token=access.token, what="base model")
    names = {path.name for path in files}
    found = [one for one in info.siblings or () if one.rfilename in names]
    return [{str(one.lfs.sha256 if one.lfs else one.blob_id)} for one in found]


def _hashes_of(path: Path) -> set[str]:
    by_git, by_sha256 = hashlib.sha1(b"blob %d\0" % path.stat().st_size), hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            by_git.update(piece)
            by_sha256.update(piece)
    return {by_git.hexdigest(), by_sha256.hexdigest()}


def _same_files(some: list[set[str]], others: list[set[str]]) -> bool:
    left = list(others)
    for hashes in some:
        match = next((one for one in left if one & hashes), None)
        if match is None:
            return False
        left.remove(match)
    return not left


def _brought(source: hub.Source, stored: StoredTensor, access: hub.HubAccess) -> StoredTensor:
    """Brings the file of a tensor to this disk; returns where the tensor lies in it."""
    if source.revision is None:
        return stored
    path = hub.bring(source, stored.file.name, access, what="base model")
    return dataclasses.replace(read_header(path)[stored.name], file=path)


def _same(one: StoredTensor, other: StoredTensor) -> bool:
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.start)
        second.seek(other.start)
        left = one.size
        while left:
            count = min(left, _PIECE)
            if first.read(count) != second.read(count):
                return False
            left -= count
    return True


def _named_in(config: Fields) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Returns path of each file that names the base model to where it says name and revision."""
    update = ("base_model_revision",) if config.place.kind.name == "molora" else ("revision",)
    return {
        hub.CONFIG: (("base_model_name_or_path",), ("base_model_revision",)),
        config.place.config: (("base_model_name_or_path",), update),
        RESULTS_FILE: (("model", "base_model"), ("model", "base_revision")),
        ANALYSIS_FILE: (("subject", "base_model"), ("subject", "base_revision")),
        TUNING_FILE: (("model", "base_model"), ("model", "base_revision")),
        RECIPE_FILE: (("base",), ("base_revision",)),
    }


def _rename_base(
    source: Path, target: Path, keys: tuple[tuple[str, ...], tuple[str, ...]], before: hub.Source, base: hub.Source
) -> None:
    """Writes a file anew that names another base model and its commit; one that is of neither stays as it is."""
    text, is_yaml = source.read_text(encoding="utf-8"), source.suffix == ".yaml"
    try:
        values = parse_yaml(text) if is_yaml else parse_json(text)
    except ValueError as error:
        raise ConfigError(f"'{source}' cannot be read: {error}.", "Write it again.") from error
    *above, name = keys[0]
    inside: Any = values
    for part in above:
        inside = inside.get(part) if isinstance(inside, dict) else None
    named = inside.get(name) if isinstance(inside, dict) else None
    is_update = not above and name != "base"
    if not named or not (is_update or named == before.name or Path(named).resolve() == before.folder.resolve()):
        return
    inside[name], inside[keys[1][-1]] = base.name, base.revision
    written = yaml.safe_dump(values, sort_keys=False, allow_unicode=True) if is_yaml else json.dumps(values, indent=2)
    target.unlink()
    target.write_text(written.rstrip("\n") + "\n", encoding="utf-8")
