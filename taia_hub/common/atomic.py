"""Single files that are either the old one or the new one, never half of it."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all; what was there stays until the new content is on the disk.

    Args:
        path: The file, or a link to it; its folder is made if need be.
        content: Its new content; text is written as UTF-8.

    Raises:
        OSError: If the folder or the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "new" / "file.txt"
        >>> write_atomically(path, "content")
        >>> path.read_text()
        'content'
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch_file(path.parent, f".{path.name}-")
    try:
        scratch.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        put_in_place(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def put_in_place(scratch: Path, path: Path) -> None:
    """Gives a closed file the name, and the permissions, of what it replaces; content and name are on the disk then."""
    flush(scratch)
    if path.exists():
        os.chmod(scratch, path.stat().st_mode)
    os.replace(scratch, path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Puts a file, or the names in a folder, on the disk: a power cut takes a name whose folder was not flushed."""
    if os.name != "posix" and path.is_dir():  # Windows opens no folder
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def scratch_file(folder: Path, prefix: str = ".", suffix: str = "") -> Path:
    """Makes an empty file of a new name, with the permissions that the user's umask leaves to new files.

    `tempfile` gives its files to their owner alone, and reading the umask to widen that means setting it for the whole
    process, in which another thread may be making a file.
    """
    while True:
        path = folder / f"{prefix}{secrets.token_hex(8)}{suffix}"
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return path
