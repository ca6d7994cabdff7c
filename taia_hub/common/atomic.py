"""Files that are either the old ones or the new ones, never half of it."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
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
    write_together({path: content})


def write_together(contents: Mapping[Path, str | bytes]) -> None:
    """Writes files that belong together, each as `write_atomically` does: all of them, or none.

    All are written beside their places before the first takes its own, so that a full disk changes nothing; where one
    cannot take its place, those before it get back what they had. They take their places in the order given.

    Args:
        contents: File to its new content.

    Raises:
        OSError: If a folder or a file cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_together({folder / "config.json": "{}", folder / "README.md": "# Model"})
        >>> sorted(path.name for path in folder.iterdir())
        ['README.md', 'config.json']
    """
    with contextlib.ExitStack() as left:
        staged = []
        for path, content in contents.items():
            target = path.resolve()
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch = scratch_file(target.parent, f".{target.name}-")
            left.callback(scratch.unlink, missing_ok=True)
            scratch.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
            staged.append((scratch, target, target.read_bytes() if len(contents) > 1 and target.exists() else None))
        with contextlib.ExitStack() as undo:
            for scratch, target, before in staged:
                if len(staged) > 1:
                    undo.callback(_restore, target, before)
                put_in_place(scratch, target)
            undo.pop_all()


def _restore(path: Path, before: bytes | None) -> None:
    if before is None:
        path.unlink(missing_ok=True)
    elif path.read_bytes() != before:
        write_atomically(path, before)


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
