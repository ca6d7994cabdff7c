"""Comparisons in a terminal: columns that grow, and plain text where there is no terminal."""

from __future__ import annotations

import os
import re
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from taia_hub.compare.comparison import ComparedAnswer, Comparison
from taia_hub.compare.words import Part, readable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

FEWEST_CHARACTERS = 24
"""Narrower columns are stacked instead."""
_BORDERS = 4  # of a panel, with its padding
_SECONDS_A_FRAME = 1 / 15
_MARKS = {"added": ("{+", "+}"), "left out": ("[-", "-]")}
_STYLES = {"added": "cyan underline", "left out": "red strike"}
_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours, movements
    r"|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)"  # titles, links, clipboard
    r"|\x1b[ -/]*[0-~]|\x9b[0-?]*[ -/]*[@-~]"
)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def safe_text(text: str) -> str:
    r"""Takes out of anybody's text what would act in a terminal; line breaks and tabs stay.

    Those are sequences of control characters, and marks of direction.

    Example:
        >>> safe_text("\x1b[31mred\x1b[0m\n")
        'red\n'
    """
    return _CONTROL.sub("", _SEQUENCE.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))


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


class LiveColumns:
    """Draws a comparison over itself as it grows, a column a mode, or one under the other where it is narrow.

    `against` is the label of the mode that the finished answers are compared with word by word, or None.

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
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
        self._shown = -1.0  # when the last frame was drawn

    def __enter__(self) -> LiveColumns:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
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
    pieces = []
    for answer in comparison.answers:
        text = answer.text
        if against is not None and answer.mode != against:
            text = "".join(_marked(part) for part in readable(comparison.diff(answer.mode, against)))
        pieces.append(f"[{safe_text(answer.mode)}]\n{safe_text(text).strip()}\n")
    return "\n".join(pieces)


def _columns(
    console: Console, comparison: Comparison, width: int, height: int | None, against: str | None = None
) -> Any:
    """Lays answers out in a width; of those that do not fit into a height the ends are shown."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    count = len(comparison.answers)
    wide = width // count if width // count - _BORDERS >= FEWEST_CHARACTERS else width
    stacked = count > 1 and wide == width
    rows = None if height is None else max(1, (height // count if stacked else height) - 2)
    bodies = []
    for answer in comparison.answers:
        text = _body(console, comparison, answer, against)
        lines = list(text.wrap(console, max(1, wide - _BORDERS), overflow="fold"))
        bodies.append(lines if rows is None else lines[-rows:])
    longest = max(map(len, bodies))
    panels = [
        Panel(
            Text("\n").join(lines),
            title=Text(safe_text(answer.mode), style="bold"),
            subtitle=Text(_footer(answer)),
            title_align="left",
            subtitle_align="left",
            width=wide,
            height=None if stacked else longest + 2,
        )
        for answer, lines in zip(comparison.answers, bodies, strict=True)
    ]
    if stacked:
        return Group(*panels)
    grid = Table.grid()
    grid.add_row(*panels)
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
