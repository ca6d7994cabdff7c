"""Plots of text for a terminal: points between two axes, and numbers as bars a column wide."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_BARS = "▁▂▃▄▅▆▇█"
_GAP = "·"
_TICKS = 4


@dataclass(frozen=True)
class Axis:
    """One axis of a plot: from `low` to `high`, with `ticks` on round numbers and their texts.

    Example:
        >>> Axis.over([0.02, 0.31]).texts
        ('0.1', '0.2', '0.3')
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    texts: tuple[str, ...]

    @classmethod
    def over(cls, values: Sequence[float]) -> Axis:
        """Makes the axis that all values lie on."""
        low, high = min(values), max(values)
        if low == high:
            margin = abs(low) / 10 or 1.0
            low, high = low - margin, high + margin
        power = 10.0 ** math.floor(math.log10((high - low) / _TICKS))
        step = next(one * power for one in (1, 2, 5, 10) if (high - low) / (one * power) <= _TICKS)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        ticks = tuple(number * step for number in range(first, last + 1))
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        return cls(low, high, ticks, tuple(f"{tick + 0.0:.{digits}f}" for tick in ticks))

    def place(self, value: float, size: int) -> int:
        """Returns which of `size` cells a value lies in."""
        return round((value - self.low) / (self.high - self.low) * (size - 1))


def scatter(
    points: Sequence[tuple[str, float, float]],
    *,
    x: str,
    y: str,
    line: Sequence[tuple[float, float]] = (),
    width: int = 79,
    height: int = 14,
) -> str:
    """Draws points between two axes; one whose cell is taken goes into the nearest free one beside it.

    Args:
        points: Mark (one character), x and y of each; the first of two in one place keeps it.
        x: What the horizontal axis shows.
        y: What the vertical axis shows.
        line: The (x, y) of points that a dotted line joins.
        width: Columns of the whole.
        height: Rows between the axes.

    Example:
        >>> print(scatter([("A", 0, 0), ("B", 1, 2)], x="lost", y="gained", width=24, height=5))
        gained
        2.0 ┤                  B
        1.5 ┤
        1.0 ┤
        0.5 ┤
        0.0 ┤A
            └┬────────┬────────┬
            0.0      0.5     1.0
                            lost
    """
    across, up = Axis.over([one for _, one, _ in points]), Axis.over([one for _, _, one in points])
    margin = max(map(len, up.texts))
    columns = width - margin - 2
    cells = [[" "] * columns for _ in range(height)]
    for (left, low), (right, high) in itertools.pairwise(line):
        for share in (step / (2 * columns) for step in range(2 * columns + 1)):
            row = up.place(low + share * (high - low), height)
            cells[row][across.place(left + share * (right - left), columns)] = _GAP
    taken: set[tuple[int, int]] = set()
    for mark, one, other in points:
        row, column = up.place(other, height), across.place(one, columns)
        free = [at for at in range(columns) if (row, at) not in taken]
        column = min(free, key=lambda at: (abs(at - column), -at)) if free else column
        taken.add((row, column))
        cells[row][column] = mark
    names = {up.place(tick, height): text for tick, text in zip(up.ticks, up.texts, strict=True)}
    rows = [
        f"{names.get(row, ''):>{margin}} {'┤' if row in names else '│'}{''.join(cells[row])}" for row in range(height)
    ]
    rule, below = list("─" * columns), list(" " * (width + 1))
    for tick, text in zip(across.ticks, across.texts, strict=True):
        column = across.place(tick, columns)
        rule[column] = "┬"
        start = min(margin + 2 + column - len(text) // 2, width - len(text))
        below[start : start + len(text)] = text
    lines = [y, *reversed(rows), f"{'':>{margin}} └{''.join(rule)}", "".join(below), f"{x:>{width}}"]
    return "\n".join(line.rstrip() for line in lines)


def bars(rows: Mapping[str, Sequence[float | None]], *, first: int = 0, width: int = 79) -> str:
    """Draws numbers from 0 to 1 as bars a column wide, a row each, over the number of their column.

    0 is a dot, what is not there a blank, and numbers below 0 and above 1 are arrows. What is too long goes on below.

    Args:
        rows: Name to its numbers; every row is as long.
        first: Number of the first column.
        width: Columns of the whole.

    Example:
        >>> print(bars({"attention": [1, 1, 0.5, 0.25], "ffn": [0, None, 0, 1.5]}))
        attention  ██▄▂
        ffn        · ·▲
                   0
    """
    margin = max(map(len, rows)) + 2
    count = max(map(len, rows.values()))
    size = max(10, (width - margin) // 10 * 10)
    blocks = []
    for start in range(0, count, size):
        stop = min(count, start + size)
        lines = [f"{name:<{margin}}{''.join(map(_bar, values[start:stop]))}" for name, values in rows.items()]
        ruler = [" "] * (stop - start)
        for column in range(first + start, first + stop):
            text = str(column)
            if column % 10 == 0 or column == first + start:
                place = column - first - start
                if all(one == " " for one in ruler[max(0, place - 1) : place + 1]):
                    ruler[place : place + len(text)] = text
        blocks.append("\n".join(line.rstrip() for line in [*lines, f"{'':<{margin}}{''.join(ruler)}"]))
    return "\n".join(blocks)


def _bar(value: float | None) -> str:
    if value is None:
        return " "
    if not 0 < value <= 1:
        return _GAP if value == 0 else "▲" if value > 1 else "▼"
    return _BARS[min(len(_BARS) - 1, max(0, math.ceil(value * len(_BARS)) - 1))]
