"""How work that takes long says how far it is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm

_MEGABYTE = 1_000_000

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, how many of its steps are done, and how many there are."""


def counted(progress: Progress, stage: str, total: int, done: int = 0) -> Callable[[int], None]:
    """Makes of a progress in megabytes what is called with a number of bytes, from any thread.

    Args:
        progress: Called whenever another megabyte is done.
        stage: Name of the stage.
        total: Bytes there are.
        done: Bytes that were done before.

    Returns:
        What is called whenever so many bytes more are done.
    """
    lock, size, told = threading.Lock(), max(total // _MEGABYTE, 1), -1

    def advance(count: int) -> None:
        nonlocal done, told
        with lock:
            done += count
            now = size if done >= total else min(done // _MEGABYTE, size)
            if now != told:
                told = now
                progress(stage, now, size)

    return advance


class ProgressBars:
    """Shows one bar a stage on standard error, where that is a terminal.

    Example:
        >>> bars = ProgressBars()
        >>> for step in (1, 2):
        ...     bars("training", step, 2)
        >>> bars.close()
    """

    def __init__(self) -> None:
        self._stage: str | None = None
        self._bar: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Moves the bar of a stage.

        Args:
            stage: Name of the stage; another one than before begins a new bar.
            done: Steps done.
            total: Steps there are.
        """
        if stage != self._stage:
            self.close()
            # disable=None: no bar where standard error is a file or a pipe
            self._stage, self._bar = stage, tqdm(desc=stage, total=total, disable=None)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Ends the bar that is shown, if there is one."""
        if self._bar is not None:
            self._bar.close()
        self._stage = self._bar = None
