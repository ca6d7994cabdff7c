"""How a training says how far it is: a bar with the loss on a terminal, a few lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from taia_hub.common.progress import ProgressBars


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
