"""How the JSON files beside a model are read and written: strictly, and whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from taia_hub.common.atomic import write_atomically
from taia_hub.common.parsing import parse_json
from taia_hub.errors import ConfigError, RepositoryError

FORMAT = 1
Made = TypeVar("Made")


@dataclass(frozen=True)
class SideFile:
    """A kind of file: what it is called in an error, and the command that makes it."""

    noun: str
    command: str

    def parse(self, value: Any, name: str, make: Callable[[Any], Made]) -> Made:
        """Makes of JSON values what they describe; any of Python's own errors in `make` means a damaged file."""
        made = value.get("format") if isinstance(value, Mapping) else None
        if made != FORMAT:
            raise ConfigError(
                f"'{name}' is no {self.noun} of this version of taia-hub: its format is {made!r}, {FORMAT} is read.",
                f"{self._wanted} A later version's is read after an update of taia-hub.",
            )
        try:
            return make(value)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(f"'{name}' is damaged: {type(error).__name__}: {error}.", self._wanted) from error

    def read(self, path: Path) -> Any:
        """Returns the JSON values of a file."""
        try:
            return parse_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RepositoryError(f"'{path}' cannot be read: {error}.", f"Make it with `{self.command}`.") from error
        except ValueError as error:
            raise ConfigError(f"'{path}' is no JSON, so no {self.noun}: {error}.", self._wanted) from error

    def write(self, path: Path, value: Mapping[str, Any]) -> None:
        """Writes JSON values, on one line: a file of 14,000 items would have as many lines otherwise."""
        try:
            write_atomically(path, json.dumps(value, ensure_ascii=False) + "\n")
        except OSError as error:
            raise RepositoryError(f"'{path}' cannot be written: {error}.", "Choose another file with --out.") from error

    @property
    def _wanted(self) -> str:
        """Says what to give; whose the file is that was given nobody knows, so that it is nobody's to delete."""
        begin = f'one JSON object, {{"format": {FORMAT}, …}}'
        return f"Give the {self.noun} that `{self.command}` writes ({begin}), or make it anew with another --out."
