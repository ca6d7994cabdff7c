"""Folders that are either complete or not there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MARKER = "demo.json"


@contextmanager
def complete_folder(target: Path, made_from: Mapping[str, Any]) -> Iterator[Path]:
    """Gives a folder to fill; it takes the place of `target` only when the block ends without an error.

    Args:
        target: The folder to make; what it held is replaced.
        made_from: What the content depends on, as JSON values; `is_complete` compares it later.

    Yields:
        An empty folder beside `target`.

    Raises:
        OSError: The folder cannot be written.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "made"
        >>> with complete_folder(target, {"seed": 0}) as folder:
        ...     _ = (folder / "file").write_text("content")
        >>> is_complete(target, {"seed": 0}), is_complete(target, {"seed": 1})
        (True, False)
    """
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        (partial / MARKER).write_text(json.dumps(made_from, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_complete(target: Path, made_from: Mapping[str, Any]) -> bool:
    """Tells whether `complete_folder` finished this folder from these very inputs.

    Args:
        target: The folder.
        made_from: What the content should depend on.

    Returns:
        False when the folder is missing or was made from something else.

    Raises:
        OSError: The marker is there and cannot be read.

    Example:
        >>> is_complete(Path("missing"), {})
        False
    """
    marker = target / MARKER
    return marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == dict(made_from)
