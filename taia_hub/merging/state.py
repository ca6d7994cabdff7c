"""The scratch folder of a merge: what is finished stays there until the whole is moved under its final name."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from taia_hub import hub
from taia_hub.common.atomic import scratch_file, write_atomically
from taia_hub.errors import ConfigError, RepositoryError

_STATE = "state.json"
_FILES = "files"
_PARTIAL = ".partial"


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keeps every other merge out of a target and of its hidden folder until the block ends.

    Args:
        out: The target, an absolute path.

    Yields:
        Nothing.

    Raises:
        RepositoryError: If another merge is running there, or a file cannot be written beside the target.
    """
    with hub.disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out.parent / f".{out.name}-merging.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RepositoryError(
                f"Another merge into '{out}' is running.", "Wait until it has ended, or choose another folder."
            ) from error
    try:
        yield
        # Only now, because who waits with the deleted file finds the target filled.
        Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()


def check_target(out: Path) -> None:
    """Refuses a target that is not a new or empty folder.

    Args:
        out: The folder that the merged model shall be in.

    Raises:
        RepositoryError: If something is there.
    """
    if out.is_symlink():
        raise RepositoryError(
            f"'{out}' is a link, which the finished folder cannot be moved to.", "Give the folder that it leads to."
        )
    hub.check_new(out)


class Scratch:
    """A hidden folder beside the target, with the shards that are finished and what they are made from.

    Args:
        out: The target, an absolute path.
        fingerprint: Names all that the shards depend on; shards of another fingerprint are thrown away.
    """

    def __init__(self, out: Path, fingerprint: str) -> None:
        self.out = out
        self.folder = out.parent / f".{out.name}-merging"
        self.files = self.folder / _FILES
        self._fingerprint = fingerprint
        self._lock = threading.Lock()
        self.finished: dict[str, str] = {}
        if self._before().get("fingerprint") == fingerprint:
            self._take_over()
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.reused = tuple(self.finished)
        self.files.mkdir(parents=True, exist_ok=True)
        self._save()

    @contextlib.contextmanager
    def partial(self) -> Iterator[Path]:
        """Gives the path of a file that is being written; what is left of it after the block is deleted."""
        path = scratch_file(self.folder, suffix=_PARTIAL)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def enter(self, name: str, path: Path, digest: str) -> None:
        """Takes a whole shard in.

        Args:
            name: Its name.
            path: Where it was written; it is moved.
            digest: Its sha256.
        """
        with self._lock:
            os.replace(path, self.files / name)
            self.finished[name] = digest
            self._save()

    def finish(self) -> None:
        """Moves the files under the final name, which holds all of them or none, and deletes the folder."""
        check_target(self.out)
        if self.out.is_dir():
            self.out.rmdir()
        os.rename(self.files, self.out)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _before(self) -> dict[str, Any]:
        try:
            return hub.read_json(self.folder / _STATE)
        except (FileNotFoundError, ConfigError):
            return {}

    def _take_over(self) -> None:
        """Keeps the shards of an earlier run that are whole, and nothing else."""
        shards = self._before().get("shards")
        for name, digest in shards.items() if isinstance(shards, dict) else ():
            path = self.files / name
            if path.is_file() and hub.sha256(path) == digest:
                self.finished[name] = digest
        for path in (*self.folder.glob(f"*{_PARTIAL}"), *self.files.glob("*")):
            if path.name not in self.finished:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _save(self) -> None:
        state = {"fingerprint": self._fingerprint, "shards": self.finished}
        write_atomically(self.folder / _STATE, json.dumps(state, indent=2) + "\n")
