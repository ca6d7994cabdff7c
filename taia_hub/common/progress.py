"""How work that takes long says how far it is: bars on a terminal, for trainings a few lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

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
        """Moves the bar of a stage; another stage than before begins a new bar."""
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


class TrainingBars(ProgressBars):
    """Shows one bar a stage with what is left of it and the loss; where there is no terminal, a line now and then.

    Args:
        stream: Where the lines go where there is no terminal; standard error by default.
        lines: Lines a stage.

    Example:
        >>> bars = TrainingBars()
        >>> bars("training", 1, 2)
        >>> bars.note(loss=1.25)
        >>> bars.close()
    """

    def __init__(self, stream: TextIO | None = None, lines: int = 10) -> None:
        super().__init__()
        self._stream = stream or sys.stderr
        self._lines = lines
        self._told = ("", 0)
        self._started = (0.0, 0)
        self._notes = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Moves the bar of a stage, or writes a line where there is none.

        Args:
            stage: Name of the stage.
            done: Steps done.
            total: Steps there are.
        """
        if self._stream.isatty():
            super().__call__(stage, done, total)
            return
        part = done * self._lines // max(total, 1)
        if self._told[0] != stage:
            self._started, self._notes = (time.monotonic(), done), ""
        elif part == self._told[1]:
            return
        self._told = (stage, part)
        began, first = self._started
        left = (time.monotonic() - began) / (done - first) * (total - done) if done > first else None
        eta = f", {left:.0f} s left" if left is not None and done < total else ""
        self._stream.write(f"{stage} {done}/{total}{eta}{self._notes}\n")
        self._stream.flush()

    def note(self, **figures: float) -> None:
        """Shows figures beside the bar.

        Args:
            **figures: Name to value.
        """
        self._notes = "".join(f", {name} {value:.4g}" for name, value in figures.items())
        if self._bar is not None:
            self._bar.set_postfix_str(self._notes.removeprefix(", "), refresh=False)
