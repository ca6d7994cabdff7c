"""How work that takes long says how far it is: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

from tqdm.auto import tqdm

_MEGABYTE = 1_000_000
_SECONDS = 10  # between two lines, and
_LINES = 30  # so that this many stand in the time that has gone by

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
    """Shows one bar a stage on standard error; where that is no terminal, a line every ten seconds.

    A stage that is done within ten seconds has no line. The lines of one that takes hours come more and more rarely.

    Args:
        stream: Where bars or lines go; standard error by default.

    Example:
        >>> bars = ProgressBars()
        >>> for step in (1, 2):
        ...     bars("training", step, 2)
        >>> bars.note(loss=1.25)
        >>> bars.close()
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._stage: str | None = None
        self._bar: Any = None
        self._began = self._told = 0.0
        self._first = self._last = 0
        self._notes = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Moves the bar of a stage, or writes a line if one is due; another stage than before begins anew.

        Args:
            stage: Name of the stage.
            done: Steps done.
            total: Steps there are.
        """
        if stage != self._stage:
            self.close()
            self._stage, self._first, self._last, self._notes = stage, done, -1, ""
            self._began = self._told = time.monotonic()
            if self._stream.isatty():
                self._bar = tqdm(desc=stage, total=total, file=self._stream)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        taken, is_last = now - self._began, done >= total and self._told > self._began
        is_due = is_last or now - self._told >= max(_SECONDS, taken / _LINES)
        if is_due and not (done >= total and done == self._last):  # work beyond its plan stays at its last step
            self._told, self._last = now, done
            left = taken / (done - self._first) * (total - done) if done > self._first else None
            eta = f", {left:.0f} s left" if left else ""
            self._stream.write(f"{stage} {done}/{total}{eta}{self._notes}\n")
            self._stream.flush()

    def note(self, **figures: float) -> None:
        """Shows figures beside the bar, or in the next line.

        Args:
            **figures: Name to value.
        """
        self._notes = "".join(f", {name} {value:.4g}" for name, value in figures.items())
        if self._bar is not None:
            self._bar.set_postfix_str(self._notes.removeprefix(", "), refresh=False)

    def close(self) -> None:
        """Ends the bar that is shown, if there is one."""
        if self._bar is not None:
            self._bar.close()
        self._stage = self._bar = None
