"""Comparisons in a terminal: columns that grow, and plain text where there is no terminal."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from taia_hub.compare.comparison import ComparedAnswer, Comparison
from taia_hub.compare.words import Part, readable
from taia_hub.errors import safe_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

FEWEST_CHARACTERS = 24
"""Narrower columns go below each other instead."""
_BORDERS = 4  # of a panel, with its padding
_SECONDS_A_FRAME = 1 / 15
_MARKS = {"added": ("{+", "+}"), "left out": ("[-", "-]")}
_STYLES = {"added": "cyan underline", "left out": "red strike"}
_LONGEST_SEQUENCE = 64


def make_console(file: TextIO) -> Console:
    """Makes what writes on a terminal, without markup; on a file or a pipe it writes text alone."""
    from rich.console import Console

    terminal = is_terminal(file)
    return Console(
        file=file,
        force_terminal=terminal,
        width=None if terminal else 10_000,
        no_color=None if terminal else True,
        markup=False,
        emoji=False,
        highlight=False,
    )


def is_terminal(file: TextIO) -> bool:
    """Tells whether columns can be drawn: a file, a pipe and a terminal that knows no control characters take text."""
    return file.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


@contextlib.contextmanager
def no_echo(keyboard: TextIO | None) -> Iterator[None]:
    """Keeps a terminal from showing what is typed in the block; where there is none, or no such switch, nothing."""
    if keyboard is None or not keyboard.isatty() or os.name != "posix":
        yield
        return
    import termios

    try:
        foreground = os.tcgetpgrp(keyboard.fileno()) == os.getpgrp()  # in the background it would be stopped
    except OSError:  # no terminal that controls this process
        foreground = True
    if not foreground:
        yield
        return
    before = termios.tcgetattr(keyboard)
    quiet = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(keyboard, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSANOW, before)


class LiveText:
    """Writes a text that grows: what stands before and after it, and what would act in a terminal, is left out.

    Example:
        >>> import io
        >>> growing = LiveText(io.StringIO())
        >>> for text in ("", " The", " The sea "):
        ...     growing.show(text)
        >>> growing.finish(" The sea ")
        >>> growing.file.getvalue().strip()
        'The sea'
    """

    def __init__(self, file: TextIO) -> None:
        self.file, self.shown = file, ""

    def show(self, text: str) -> None:
        """Writes what a text has beyond the one before; a sequence that may still be going on waits for its end."""
        start = max(map(text.rfind, "\x1b\x9b"))
        self._write(text[:start] if start >= max(0, len(text) - _LONGEST_SEQUENCE) else text)

    def finish(self, text: str) -> None:
        """Writes the rest of a text, and ends the line."""
        if not self._write(text):
            self.file.write(f"\n{safe_text(text).strip()}")
        self.file.write("\n")
        self.file.flush()

    def _write(self, text: str) -> bool:
        text = safe_text(text).strip()
        if not text.startswith(self.shown):
            return False
        self.file.write(text[len(self.shown) :])
        self.file.flush()
        self.shown = text
        return True


class LiveColumns:
    """Draws a comparison over itself as it grows, a column a mode, or rows of them where it is narrow.

    Meanwhile what is typed is not shown: the `^C` of an interrupt would move the frame below itself. `against` is the
    label of the mode that the finished answers are compared with word by word, or None.

    Example:
        ```python
        with LiveColumns(make_console(sys.stdout)) as columns:
            for state in stream_compare(model, tokenizer, "Why is the sky blue?"):
                columns.show(state)
            columns.finish(state)
        ```
    """

    def __init__(self, console: Console, against: str | None = None) -> None:
        from rich.live import Live

        self.console, self.against = console, against
        self._quiet = contextlib.ExitStack()
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
        self._shown = -1.0  # when the last frame was drawn

    def __enter__(self) -> LiveColumns:
        self._quiet.enter_context(no_echo(sys.stdin))
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._quiet:
            self._live.__exit__(kind, error, traceback)

    def show(self, comparison: Comparison) -> None:
        """Draws the ends of the answers so far; calls that come too fast for the eye draw nothing."""
        if comparison.finished or time.monotonic() - self._shown >= _SECONDS_A_FRAME:
            width, height = self.console.size
            self._live.update(_columns(self.console, comparison, width, height - 1), refresh=True)
            self._shown = time.monotonic()

    def finish(self, comparison: Comparison) -> None:
        """Draws the answers whole."""
        self._live.update(_columns(self.console, comparison, self.console.width, None, self.against), refresh=True)


def plain_answers(comparison: Comparison, against: str | None = None) -> str:
    """Writes answers one after the other, each under its mode, without control characters.

    They are compared with the mode `against`, if any: `{+added+}`, `[-left out-]`.
    """
    against = comparison.answer(against).mode if against is not None else None
    pieces = []
    for answer in comparison.answers:
        text = answer.text
        if against is not None and answer.mode != against:
            text = "".join(_marked(part) for part in readable(comparison.diff(answer.mode, against)))
        pieces.append(f"[{safe_text(answer.title)}]\n{safe_text(text).strip()}\n")
    return "\n".join(pieces)


def _columns(
    console: Console, comparison: Comparison, width: int, height: int | None, against: str | None = None
) -> Any:
    """Lays answers out in a width; of those that do not fit into a height the ends are shown."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    count = len(comparison.answers)
    fitting = [n for n in range(2, count + 1) if not count % n and width // n - _BORDERS >= FEWEST_CHARACTERS]
    beside = max(fitting, default=1)
    wide = width // beside
    rows = None if height is None else max(1, height // (count // beside) - 2)
    bodies = []
    for answer in comparison.answers:
        text = _body(console, comparison, answer, against)
        lines = list(text.wrap(console, max(1, wide - _BORDERS), overflow="fold"))
        bodies.append(lines if rows is None else lines[-rows:])
    tallest = [max(map(len, bodies[at - at % beside :][:beside])) for at in range(count)]  # of those beside one
    panels = [
        Panel(
            Text("\n").join(lines),
            title=Text(safe_text(answer.title), style="bold"),
            subtitle=Text(_footer(answer)),
            title_align="left",
            subtitle_align="left",
            width=wide,
            height=tallest[at] + 2,
        )
        for at, (answer, lines) in enumerate(zip(comparison.answers, bodies, strict=True))
    ]
    grid = Table.grid()
    for at in range(0, count, beside):
        grid.add_row(*panels[at : at + beside])
    return grid


def _body(console: Console, comparison: Comparison, answer: ComparedAnswer, against: str | None) -> Text:
    from rich.text import Text

    if against is None or answer.mode == against:
        return Text(safe_text(answer.text).strip())
    parts = readable(comparison.diff(answer.mode, against))
    if console.no_color or console.color_system is None:
        return Text(safe_text("".join(map(_marked, parts))).strip())
    return Text.assemble(*((safe_text(part.text), _STYLES.get(part.kind, "")) for part in parts))


def _marked(part: Part) -> str:
    """Writes a piece of a word diff between marks; the space around it stays outside."""
    words = part.text.strip()
    if part.kind not in _MARKS or not words:
        return part.text
    before, after = part.text.split(words, 1)
    opening, closing = _MARKS[part.kind]
    return f"{before}{opening}{words}{closing}{after}"


def _footer(answer: ComparedAnswer) -> str:
    speed = answer.tokens_per_second
    return f"{len(answer.tokens)} tokens" + ("" if speed is None else f", {speed:.1f}/s")
