"""How the stages of the demo say how far they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, how many of its steps are done, and how many there are."""


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
