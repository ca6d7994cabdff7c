"""Work that may be stopped at any moment: who may do it, which work lies here, and nothing half under a final name."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from taia_hub.common.atomic import write_atomically
from taia_hub.common.parsing import parse_json
from taia_hub.errors import ConfigError, RepositoryError, TAIAError

_LOCK = ".taia-lock"
_LARGE = 1 << 20
"""Files below this many bytes are read as quickly as looked up."""
_SETTLED = 2_000_000_000
"""Nanoseconds after which a file's next change has another time, whatever the disk."""


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


@contextlib.contextmanager
def scratch_beside(folder: Path) -> Iterator[Path]:
    """Gives an empty folder beside another for what shall become it, and takes away those that dead processes left.

    Each holds a lock as long as its process lives, by which the others know it.

    Raises:
        OSError: If it cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for lock in folder.parent.glob(f".{glob.escape(folder.name)}-*/{_LOCK}"):
        with contextlib.suppress(Timeout, OSError), FileLock(lock, timeout=0, thread_local=False):
            shutil.rmtree(lock.parent)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with sole(scratch / _LOCK):
            inside = scratch / folder.name  # the scratch folder itself is its owner's alone
            inside.mkdir()
            yield inside
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def digest(value: Any) -> str:
    """Returns the sha256 of JSON values, whatever the order of their keys, as 64 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Returns the sha256 of a file as 64 hex digits, reading it in pieces."""
    found = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            found.update(buffer[:count])
    return found.hexdigest()


def known_sha256(path: Path, store: Path) -> str:
    """Returns the sha256 of a file, which is read again only where its size, its times or its inode changed.

    What is known lies in the folder `store`; of a file that was written just now nothing is, since its time may stay
    the same at the next change.
    """
    path, stat = path.resolve(), path.stat()
    if stat.st_size < _LARGE:
        return sha256(path)
    facts = {
        "path": str(path),
        "size": stat.st_size,
        "times": [stat.st_mtime_ns, stat.st_ctime_ns],
        "inode": stat.st_ino,
    }
    mark = Mark(store / f"{digest(str(path))[:32]}.json", facts)
    if mark.fits() and isinstance(known := mark.read().get("sha256"), str):
        return known
    found = sha256(path)
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _SETTLED:
        with contextlib.suppress(OSError):  # then it is read again the next time
            store.mkdir(parents=True, exist_ok=True)
            mark.write(sha256=found)
    return found


def git_sha1(content: bytes) -> str:
    """Returns the hash that Git, and so the Hub, gives a file of this content, as 40 hex digits."""
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns what differs: name to what was and what is, in the order of `now`; what is absent is None, at any depth.

    Example:
        >>> differences({"seed": 0, "limit": 3}, {"limit": 3, "seed": 1})
        {'seed': (0, 1)}
    """
    names = dict.fromkeys([*now, *before])
    pairs = {name: (before.get(name), now.get(name)) for name in names}
    return {name: (was, given) for name, (was, given) in pairs.items() if _differ(was, given)}


def changed_inputs(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Says which inputs are others than they were, named in the singular or in -s; empty where none is.

    Inputs that an earlier version did not write down are not compared.

    Example:
        >>> changed_inputs({"tokenizer": "a", "chat template": "b"}, {"tokenizer": "a", "chat template": "c"})
        'the chat template is another'
    """
    names = [name for name in now if name in before and _differ(before[name], now[name])]
    return " and ".join(f"the {name} {'are others' if name.endswith('s') else 'is another'}" for name in names)


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
            value = parse_json(self.path.read_text(encoding="utf-8"))
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


MADE = ".taia.json"
"""The hidden file in a folder that a command made: what of, and which files."""


@dataclass(frozen=True)
class Made:
    """A folder that a command makes whole of what is `asked`, and knows again: the same is not made twice.

    What a person put into it, or changed there, is never replaced. A card that a person edited makes no other result.

    Attributes:
        folder: Where it lies.
        asked: All that it depends on, as JSON values.
        cards: Paths of its cards.
        keep_edits: Puts a person's edits of the first card, which is there, into the second one, which shall replace
            it; False where that is not possible and the first one stays.
    """

    folder: Path
    asked: Mapping[str, Any]
    cards: Collection[str] = ()
    keep_edits: Callable[[Path, Path], bool] = lambda old, new: False

    def facts(self) -> dict[str, Any] | None:
        """Returns what was written down of this very result, where it lies here unchanged; else None."""
        mark = Mark(self.folder / MADE, self.asked)
        if not mark.fits() or self._foreign(mark.read(), also_new=False):
            return None
        return dict(mark.read().get("facts") or {})

    def check_free(self, *, overwrite: bool = False) -> None:
        """Refuses a folder with something in it, unless all of that is ours and may be replaced.

        Raises:
            RepositoryError: If it is no folder, the working folder, or holds something that would be lost.
        """
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise RepositoryError(f"'{folder}' is a file.", "Give a folder.")
        if folder.is_dir() and any(folder.iterdir()):
            known = Mark(folder / MADE, {}).read()
            if not known:
                raise RepositoryError(
                    f"The folder '{folder}' is not empty.", "Give a new folder; nothing is written over."
                )
            foreign = self._foreign(known)
            named = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else "")
            if not overwrite:
                which = "a changed" if Mark(folder / MADE, self.asked).fits() else "another"
                also = f", with what taia-hub did not make: {named}" if foreign else ""
                raise RepositoryError(
                    f"The folder '{folder}' is not empty: it holds {which} result of taia-hub{also}.",
                    f"{'Move that elsewhere, then r' if foreign else 'R'}eplace it with --overwrite (overwrite=True), "
                    "or give a new folder.",
                )
            if foreign:
                raise RepositoryError(
                    f"'{folder}' holds what taia-hub did not make, and would lose it: {named}.",
                    "Move it elsewhere first, or give a new folder.",
                )
        if folder.is_dir() and folder.resolve() == Path.cwd():  # which another would replace
            raise RepositoryError(f"'{folder}' is the working folder.", "Give a new folder in it.")

    def mark(self, names: Iterable[str], hashes: Mapping[str, str] | None = None, **facts: Any) -> None:
        """Writes down that these files, which lie in the folder, are what was asked for.

        Files are read for their sha256 only where `hashes` has none.

        Raises:
            OSError: If it cannot be written.
        """
        files = {name: _print_of(self.folder / name, (hashes or {}).get(name)) for name in names}
        Mark(self.folder / MADE, self.asked).write(files=files, facts=facts)

    def put(self, new: Path, *, overwrite: bool = False, hashes: Mapping[str, str] | None = None, **facts: Any) -> None:
        """Gives a folder this one's name, with its mark; what it replaces is gone when it is there, not before.

        Edits of its cards stay. `hashes` is as of `mark`.

        Raises:
            RepositoryError: As of `check_free`.
            OSError: If it cannot be moved; what was there stays.
        """
        Made(new, self.asked).mark(made_files(new), hashes, **facts)
        self.check_free(overwrite=overwrite)
        for name in self._edited_cards():  # after the mark, so that the edits are known the next time, too
            if not self.keep_edits(self.folder / name, new / name):
                shutil.copy2(self.folder / name, new / name)
        if not self.folder.is_dir():
            os.rename(new, self.folder)
            return
        old = Path(tempfile.mkdtemp(dir=self.folder.parent, prefix=f".{self.folder.name}-old-"))
        before = old / self.folder.name
        try:
            os.rename(self.folder, before)
            os.rename(new, self.folder)
        except OSError:
            if before.is_dir():
                os.rename(before, self.folder)
            old.rmdir()
            raise
        shutil.rmtree(old, ignore_errors=True)

    def _foreign(self, known: Mapping[str, Any], *, also_new: bool = True) -> list[str]:
        """Lists what is not as it was made: changed, gone, or, where `also_new`, there besides; of cards, gone ones."""
        there, made = _paths(self.folder), known.get("files") or {}
        changed = [name for name, was in made.items() if not _is_as(there.get(name), *was)]
        if not also_new:
            return sorted(name for name in changed if name not in self.cards or name not in there)
        new = [name for name in there if name not in made]
        return sorted(name for name in {*changed, *new} if name in there and name not in self.cards)

    def _edited_cards(self) -> list[str]:
        made = Mark(self.folder / MADE, {}).read().get("files") or {}
        there = {name: self.folder / name for name in self.cards if (self.folder / name).is_file()}
        return [name for name, path in there.items() if name not in made or not _is_as(path, *made[name])]


def _paths(folder: Path) -> dict[str, Path]:
    """Lists what would be lost with a folder, by paths in it: all but folders, links to these, and empty folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not path.is_dir():
            found[name] = path
        elif not any(path.iterdir()):
            found[f"{name}/"] = path
    found.pop(MADE, None)
    return found


def made_files(folder: Path) -> dict[str, Path]:
    """Lists the files in a folder that a command made, by their paths in it, without the mark."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MADE)
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _print_of(path: Path, known: str | None = None) -> tuple[int, int, str]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, known or sha256(path)


def _is_as(path: Path | None, size: int, time: int, hashed: str) -> bool:
    """Tells whether a file is as it was: by size and time, else by its hash."""
    if path is None or not path.is_file() or path.stat().st_size != size:
        return False
    return path.stat().st_mtime_ns == time or sha256(path) == hashed


def _as_json(value: Any) -> Any:
    """Returns a value as it comes out of a file: tuples become lists, keys text."""
    return json.loads(json.dumps(value))
