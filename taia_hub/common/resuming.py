"""Work that may be stopped at any moment: who may do it, which work lies here, and nothing half under a final name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from taia_hub.common.atomic import write_atomically
from taia_hub.errors import ConfigError, TAIAError


@contextlib.contextmanager
def sole(lock: Path, busy: TAIAError | None = None) -> Iterator[None]:
    """Keeps everybody else who names the same file out until the block ends; the system frees it of a dead process.

    Args:
        lock: The file, which stays; its folder is made if need be.
        busy: What to raise where another one is in; None to wait.

    Raises:
        OSError: If the file cannot be made.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock, timeout=-1 if busy is None else 0, thread_local=False)
    try:
        held.acquire()
    except Timeout as error:
        if busy is None:
            raise
        raise busy from error
    try:
        yield
    finally:
        held.release()


def digest(value: Any) -> str:
    """Returns the sha256 of JSON values, whatever the order of their keys, as 64 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns what differs: name to what was and what is, in the order of `now`; what is absent is None, at any depth.

    Example:
        >>> differences({"seed": 0, "limit": 3}, {"limit": 3, "seed": 1})
        {'seed': (0, 1)}
    """
    names = dict.fromkeys([*now, *before])
    pairs = {name: (before.get(name), now.get(name)) for name in names}
    return {name: (was, given) for name, (was, given) in pairs.items() if _differ(was, given)}


def _differ(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return bool(differences(one, other))
    return bool(one != other)


@dataclass(frozen=True)
class Mark:
    """A file that says what the work beside it was made from, and what else is known of it.

    Attributes:
        path: The file, JSON.
        asked: All that the work depends on, as JSON values.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "mark.json"
        >>> Mark(path, {"seed": 0}).write(steps=3)
        >>> Mark(path, {"seed": 0}).fits(), Mark(path, {"seed": 1}).fits(), Mark(path, {}).read()
        (True, False, {'seed': 0, 'steps': 3})
    """

    path: Path
    asked: Mapping[str, Any]

    def read(self) -> dict[str, Any]:
        """Returns what stands in the file; nothing where it is not there.

        Raises:
            ConfigError: If it is damaged.
        """
        if not self.path.is_file():
            return {}
        try:
            value = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ConfigError(
                f"'{self.path}' is damaged.", "Move the folder that it is in elsewhere, or choose another one."
            )
        return value

    def fits(self) -> bool:
        """Tells whether this very work lies here; a damaged file belongs to none."""
        try:
            found = self.read()
        except ConfigError:
            return False
        return bool(found) and not differences({name: found.get(name) for name in self.asked}, _as_json(self.asked))

    def write(self, **facts: Any) -> None:
        """Writes the file as a whole; facts of the same work that are not given anew stay.

        Raises:
            OSError: If it cannot be written.
        """
        value = {**self.asked, **(self.read() if self.fits() else {}), **facts}
        write_atomically(self.path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def whole_folder(mark: Mark) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Gives a folder to fill, which takes the place of the mark's own when the block succeeds; the mark goes in last.

    Its name is fixed: work that keeps its own unfinished parts beside it finds them the next time.

    Yields:
        The empty folder, and a mapping for facts that the mark shall tell.

    Raises:
        OSError: If it cannot be written; what was there before stays.
    """
    target = mark.path.parent
    new = target.with_name(f".{target.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    facts: dict[str, Any] = {}
    try:
        yield new, facts
        Mark(new / mark.path.name, mark.asked).write(**facts)
        if target.exists():
            shutil.rmtree(target)
        os.rename(new, target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _as_json(value: Any) -> Any:
    """Returns a value as it comes out of a file: tuples become lists, keys text."""
    return json.loads(json.dumps(value))
