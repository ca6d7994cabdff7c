"""A file of comparisons, one a line, that a later run completes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taia_hub.common.resuming import changed_inputs, differences, sole
from taia_hub.compare.comparison import ComparedAnswer, Comparison
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.results import ModelIdentity
from taia_hub.switch.settings import parse_setting

_FORMAT = 1
_START = f'{{"taia_comparison": {_FORMAT}, '  # of every line that is written here
_WAY_OUT = "Choose another file with --out, or throw the earlier comparisons away with --overwrite."


@dataclass(frozen=True)
class Run:
    """What all comparisons of a file share: the model, the settings as in `config.json`, and how is generated.

    `inputs` are further things that answers depend on, each by a hash.
    """

    model: ModelIdentity
    modes: tuple[Any, ...]
    options: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the run as JSON values."""
        return {**dataclasses.asdict(self), "modes": list(self.modes)}

    def difference(self, value: Mapping[str, Any]) -> str | None:
        """Says in what an earlier run, of `to_json`, differs, as in `"with seed=0, not 1"`; None where it fits."""
        other = ModelIdentity(**value["model"]).difference(self.model)
        if other:
            return f"of another model: {other}"
        if value["modes"] != list(self.modes):
            return f"with the modes {_said(value['modes'])}, not {_said(self.modes)}"
        if changed := changed_inputs(value.get("inputs", {}), self.inputs):
            return f"from before: {changed} now"
        found = differences(value["options"], self.options)
        return next((f"with {name}={found[name][0]!r}, not {found[name][1]!r}" for name in sorted(found)), None)


class Comparisons:
    """The file that comparisons are kept in; open for appending inside a `with`.

    `found` is key to comparison. A file that is none of comparisons, or holds those of another run, is a `ConfigError`,
    unless `overwrite` begins it anew.
    """

    def __init__(self, path: Path, run: Run, *, overwrite: bool = False) -> None:
        self.path, self.run, self._overwrite = path, run, overwrite
        self.found: dict[str, Comparison] = {}
        self._whole = 0  # bytes that stay
        if path.exists() and not overwrite:
            self._read()

    def __enter__(self) -> Comparisons:
        lock = self.path.with_name(f".{self.path.name}.lock")
        busy = RepositoryError(
            f"Another run writes to '{self.path}'.", "Wait until it has ended, or choose another file with --out."
        )
        with contextlib.ExitStack() as open_:
            try:
                open_.enter_context(sole(lock, busy))
                open_.callback(lock.unlink, missing_ok=True)
                self.found, self._whole = {}, 0  # another run may have written since it was read
                if self.path.exists() and not self._overwrite:
                    self._read()
                # without a buffer, what a full disk refused is not tried again on closing
                self._file = open_.enter_context(self.path.open("r+b" if self.path.exists() else "w+b", buffering=0))
                self._file.truncate(self._whole)
                self._file.seek(self._whole)
            except RepositoryError:
                raise
            except OSError as error:
                raise unwritable(self.path, error) from error
            self._open = open_.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def append(self, key: str, id: str | None, comparison: Comparison) -> None:
        """Adds a comparison as a line of its own, found by its key; the prompt's id is for readers of the file."""
        record = {"key": key, "id": id, "run": self.run.to_json(), "comparison": comparison.to_json()}
        rest = memoryview((_START + json.dumps(record)[1:] + "\n").encode())
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise unwritable(self.path, error) from error
        self.found[key] = comparison

    def _read(self) -> None:
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise RepositoryError(f"'{self.path}' cannot be read: {error.strerror or error}.", _WAY_OUT) from error
        *lines, half = content.split(b"\n")
        if not half.startswith(_START.encode()) and not _START.encode().startswith(half):
            raise self._strange(len(lines) + 1)
        self._whole = len(content) - len(half)
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line)
                known = value["taia_comparison"] == _FORMAT
                difference = self.run.difference(value["run"])
                self.found[value["key"]] = _read_comparison(value["comparison"])
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise self._strange(number) from error
            if not known:
                raise self._strange(number)
            if difference:
                raise ConfigError(f"'{self.path}' holds comparisons {difference}.", _WAY_OUT)

    def _strange(self, number: int) -> ConfigError:
        return ConfigError(f"{self.path}:{number}: this is no comparison that `taia compare` wrote.", _WAY_OUT)


def check_out(path: Path) -> None:
    """Refuses a folder, a device, and a place in a missing or read-only folder, before any work is done."""
    try:
        if path.is_dir():
            raise RepositoryError(f"'{path}' is a folder.", "Name a file with --out.")
        if path.exists() and not path.is_file():
            raise RepositoryError(f"'{path}' is no regular file.", "Name a file with --out; without it, pipes work.")
        if not path.parent.is_dir():
            raise RepositoryError(f"There is no folder '{path.parent}'.", "Make it, or choose another with --out.")
        with path.open("ab") if path.exists() else tempfile.TemporaryFile(dir=path.parent):
            pass
    except RepositoryError:
        raise
    except OSError as error:
        raise unwritable(path, error) from error


def _read_comparison(value: Mapping[str, Any]) -> Comparison:
    """Reads what `Comparison.to_json` made; other values are a `KeyError` or a `TypeError`."""
    answers = [
        ComparedAnswer(**{**answer, "tokens": tuple(answer["tokens"]), "entropy": tuple(answer["entropy"])})
        for answer in value["answers"]
    ]
    lists = {name: tuple(value[name]) for name in ("messages", "notes")}
    return Comparison(**{**value, **lists, "answers": tuple(answers)})


def _said(modes: Sequence[Any]) -> str:
    settings = (mode if isinstance(mode, str) else dict(mode) for mode in modes)
    return ", ".join(parse_setting(setting).label for setting in settings)


def unwritable(path: Path, error: OSError) -> RepositoryError:
    """Makes the error of a file that cannot be written, from what the disk said."""
    return RepositoryError(
        f"'{path}' cannot be written: {error.strerror or error}.", "Choose another file with --out, or free the place."
    )
