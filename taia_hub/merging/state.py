"""The scratch folder of a merge: what is finished stays there until the whole is moved under its final name."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from taia_hub import hub
from taia_hub.common.atomic import scratch_file
from taia_hub.common.resuming import Made, Mark, sole
from taia_hub.errors import RepositoryError

_PARTIAL = ".partial"


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keeps other merges out of a target, an absolute path, and of its hidden folder; where one runs, it is refused."""
    lock = out.parent / f".{out.name}-merging.lock"
    busy = RepositoryError(
        f"Another merge into '{out}' is running.", "Wait until it has ended, or choose another folder."
    )
    with hub.disk_errors(out), sole(lock, busy):
        yield
        # Only now, because who waits with the deleted file finds the target filled.
        lock.unlink(missing_ok=True)


def check_target(made: Made, *, overwrite: bool = False) -> None:
    """Refuses a target that is not a new or empty folder, or a link, or an earlier merge that may be replaced."""
    if made.folder.is_symlink():
        raise RepositoryError(
            f"'{made.folder}' is a link, which the finished folder cannot be moved to.",
            "Give the folder that it leads to.",
        )
    made.check_free(overwrite=overwrite)


class Scratch:
    """A hidden folder beside the target, with the shards that are finished and what they are made from.

    Shards of another `fingerprint`, which names all that they depend on, are thrown away.
    """

    def __init__(self, out: Path, fingerprint: str) -> None:
        self.out = out
        self.folder = out.parent / f".{out.name}-merging"
        self.files = self.folder / "files"
        self._mark = Mark(self.folder / "state.json", {"fingerprint": fingerprint})
        self._lock = threading.Lock()
        self.finished: dict[str, str] = {}
        if self._mark.fits():
            self._take_over()
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.reused = tuple(self.finished)
        self.files.mkdir(parents=True, exist_ok=True)
        self._mark.write(shards=self.finished)

    @contextlib.contextmanager
    def partial(self) -> Iterator[Path]:
        """Gives the path of a file that is being written; what is left of it after the block is deleted."""
        path = scratch_file(self.folder, suffix=_PARTIAL)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def enter(self, name: str, path: Path, digest: str) -> None:
        """Moves a whole shard in, under its name and with its sha256."""
        with self._lock:
            os.replace(path, self.files / name)
            self.finished[name] = digest
            self._mark.write(shards=self.finished)

    def finish(self, made: Made | None = None, *, overwrite: bool = False, **facts: Any) -> None:
        """Moves the files under the final name, which holds all of them or none, and deletes the folder."""
        made = made or Made(self.out, {})
        check_target(made, overwrite=overwrite)
        made.put(self.files, overwrite=overwrite, hashes=self.finished, **facts)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _take_over(self) -> None:
        """Keeps the shards of an earlier run that are whole, and nothing else."""
        shards = self._mark.read().get("shards")
        for name, digest in (shards if isinstance(shards, dict) else {}).items():
            path = self.files / name
            if path.is_file() and hub.sha256(path) == digest:
                self.finished[name] = digest
        for path in (*self.folder.glob(f"*{_PARTIAL}"), *self.files.glob("*")):
            if path.name not in self.finished:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
