"""Files that are whole or absent: blobs named by their hash, and the lock of a folder.

A file is written under `incoming/`, flushed to the disk and only then moved to its name, so a process that dies at
any moment leaves the old file or the new one. What it leaves in `incoming/` is removed at the next start.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from taia_hub.common.atomic import flush, put_in_place
from taia_hub.errors import RepositoryError
from taia_hub.local_hub.names import SHA256

_OWN_NAMES = ("lock", "incoming", "blobs", "local_hub.json")


@dataclass(frozen=True)
class Blob:
    """A content on disk: its hash, which is its name, and its length in bytes."""

    sha256: str
    size: int


class Disk:
    """The folder of a local Hub, made with its token if need be; RepositoryError when another process holds it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._incoming = folder / "incoming"
        self._blobs = folder / "blobs"
        marker = folder / "local_hub.json"
        if folder.exists() and not marker.exists() and any(p.name not in _OWN_NAMES for p in folder.iterdir()):
            raise RepositoryError(
                f"'{folder}' is not empty and holds no local Hub.", hint="Choose an empty or a new folder."
            )
        folder.mkdir(parents=True, exist_ok=True)
        # The system frees this lock when its process dies, however it dies: none is ever stale.
        self._lock = FileLock(folder / "lock", timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout as e:
            raise RepositoryError(
                f"'{folder}' is in use by another local Hub.", hint="Stop that one first, or choose another folder."
            ) from e
        shutil.rmtree(self._incoming, ignore_errors=True)
        self._incoming.mkdir(exist_ok=True)
        self._blobs.mkdir(exist_ok=True)
        if not marker.exists():
            self.write_json(marker, {"format": 1, "token": f"hf_local_{secrets.token_hex(16)}"})
        settings = read_json(marker)
        if settings["format"] != 1:
            self.close()
            raise RepositoryError(
                f"'{folder}' has format {settings['format']}; this version of taia-hub reads format 1.",
                hint="Install a newer taia-hub, or choose another folder.",
            )
        self.token: str = settings["token"]

    def close(self) -> None:
        """Frees the folder for other processes."""
        self._lock.release()

    def write_json(self, path: Path, value: Any) -> None:
        """Replaces a file as a whole; when that fails (OSError), the old file stays."""
        with self.draft() as draft:
            draft.write(json.dumps(value, indent=1, sort_keys=True).encode())
            draft.move_to(path)

    def new_folder(self) -> Path:
        """Returns where under `incoming/` a folder can be made, to be filled and then moved to its place."""
        return self._incoming / secrets.token_hex(8)

    def move_folder(self, source: Path, target: Path) -> None:
        """Renames a folder; `target` does not exist."""
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(source, target)
        flush(target.parent)

    def remove_folder(self, folder: Path) -> None:
        """Removes a folder so that it is there as a whole or not at all."""
        doomed = self.new_folder()
        self.move_folder(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def draft(self) -> Draft:
        """Returns a new draft, to be written in pieces and kept with `keep`."""
        return Draft(self._incoming)

    def keep(self, draft: Draft) -> Blob:
        """Makes a draft a blob, or returns the one that is there already; when that fails (OSError), there is none."""
        blob = draft.blob()
        path = self.blob_path(blob.sha256)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            draft.move_to(path)
            flush(self._blobs)
        return blob

    def put(self, content: bytes) -> Blob:
        """Keeps a content that is in memory, as `keep`."""
        with self.draft() as draft:
            draft.write(content)
            return self.keep(draft)

    def blob_path(self, sha256: str) -> Path:
        """Returns where the blob of this hash is, or would be."""
        return self._blobs / sha256[:2] / sha256

    def find(self, sha256: str) -> Blob | None:
        """Returns the blob of this hash, or None; what is no hash names no file either."""
        if not SHA256.fullmatch(sha256):
            return None
        try:
            return Blob(sha256, self.blob_path(sha256).stat().st_size)
        except FileNotFoundError:
            return None


class Draft:
    """A file that is being written; it vanishes at the end of the `with` block unless it was moved to a name."""

    def __init__(self, folder: Path) -> None:
        # For its owner alone: it may hold the token, or a file of a private repository.
        handle, name = tempfile.mkstemp(dir=folder)
        self._file = os.fdopen(handle, "wb")
        self._path = Path(name)
        self._hash = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *failure: object) -> None:
        try:
            self._file.close()
        finally:
            self._path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Appends bytes."""
        self._file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    def blob(self) -> Blob:
        """Returns the hash and size of what was written so far."""
        return Blob(self._hash.hexdigest(), self.size)

    def move_to(self, path: Path) -> None:
        """Gives the finished file its name, replacing what had it."""
        self._file.close()
        put_in_place(self._path, path)


def read_json(path: Path) -> Any:
    """Returns the value of a JSON file that `Disk.write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))
