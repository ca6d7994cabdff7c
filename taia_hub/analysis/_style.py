"""How figures look, and how they are written: the same bytes for the same numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taia_hub.common.imports import import_or_raise
from taia_hub.errors import RepositoryError
from taia_hub.results.statistics import Interval

BACKGROUND = "#ffffff"
TEXT = "#1f2328"
GRID_LINES = "#d0d7de"
# Okabe & Ito's colours for all kinds of sight, less those whose contrast with the background is below 3 to 1
BLUE, VERMILLION, GREEN, PURPLE, BLACK = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000"
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
_FIXED = {
    "attention": (BLUE, "o", "-"),
    "ffn": (VERMILLION, "s", "--"),
    "all": (GREEN, "^", "-."),
    "none": (BLACK, "D", ":"),
    "other": (PURPLE, "v", ":"),
}
_WIDTH = 7.2
_LINE, _LABEL = 90, 60  # characters that fit into a line of the legend, and into one of its labels
_RESOLUTION = 150


@dataclass(frozen=True)
class Figure:
    """A figure on the disk.

    Attributes:
        name: Name of its files without the ending.
        png: The file as PNG.
        svg: The file as SVG.
        alt: What it shows, in words, for those who do not see it.
    """

    name: str
    png: Path
    svg: Path
    alt: str


@dataclass(frozen=True)
class Look:
    """How a mode or role looks in matplotlib's words: never by its colour alone."""

    color: str
    marker: str
    line: str


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """Gives every label of a mode or role a look of its own; the same one has the same look in every figure."""
    found = {label: Look(*_FIXED[label]) for label in labels if label in _FIXED}
    taken = {look.color for look in found.values()}
    colors = sorted(PALETTE, key=lambda color: color in taken)  # what no other label has comes first
    free = [Look(color, marker, line) for marker in MARKERS[4:] + MARKERS[:4] for line in LINES for color in colors]
    free = [look for look in free if look not in found.values()]
    for label, look in zip((label for label in labels if label not in _FIXED), itertools.cycle(free), strict=False):
        found[label] = look
    return found


@contextmanager
def canvas(rows: Sequence[float], labels: Sequence[str], columns: int = 1) -> Iterator[tuple[Any, Any]]:
    """Gives a figure of our style and its (rows, columns) array of axes, whatever matplotlib is set to.

    `rows` are heights in inches; `labels` is what the legend will show, which needs room too.
    """
    matplotlib = import_or_raise("matplotlib", "figures", "A figure")
    figures = import_or_raise("matplotlib.figure", "figures", "A figure")
    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    ours = {
        "svg.hashsalt": "taia-hub",
        "svg.fonttype": "path",
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "text.color": TEXT,
        "axes.labelcolor": TEXT,
        "axes.edgecolor": TEXT,
        "xtick.color": TEXT,
        "ytick.color": TEXT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": GRID_LINES,
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "figure.facecolor": BACKGROUND,
        "savefig.facecolor": BACKGROUND,
    }
    with matplotlib.rc_context({**defaults, **ours}):
        height = sum(rows) + 0.6 + 0.2 * math.ceil(len(labels) / _columns(labels))
        figure = figures.Figure(figsize=(_WIDTH, height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
        yield figure, figure.subplots(len(rows), columns, squeeze=False, height_ratios=list(rows))


def points(axis: Any, x: Sequence[Interval], y: Sequence[Interval], look: Look, **more: Any) -> None:
    """Draws N points with the intervals of both their values; `more` are other keywords of matplotlib's `errorbar`."""
    usual = {"linestyle": "none", "markersize": 8, "capsize": 3, "elinewidth": 1.2}
    axis.errorbar(
        [one.value for one in x],
        [one.value for one in y],
        xerr=_ends(x),
        yerr=_ends(y),
        color=look.color,
        marker=look.marker,
        **{**usual, **more},
    )


def legend(figure: Any, axis: Any) -> None:
    """Puts the labels of an axis above the figure, where they cannot hide a number."""
    handles, labels = axis.get_legend_handles_labels()
    shown = [label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…" for label in labels]
    figure.legend(handles, shown, loc="outside upper left", ncols=_columns(shown), fontsize=9)


def write(figure: Any, folder: Path, name: str, alt: str) -> Figure:
    """Writes a figure as PNG and SVG without dates, so that the same numbers give the same bytes.

    Call it inside `canvas`; `alt` says what the figure shows.
    """
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(png, format="png", dpi=_RESOLUTION, metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Title": alt})
    except OSError as error:
        raise RepositoryError(f"The figure '{png}' cannot be written: {error}.", "Choose another folder.") from error
    return Figure(name, png, svg, alt)


def _ends(intervals: Sequence[Interval]) -> list[list[float]]:
    """Returns the lengths of error bars, (2, N): below and above."""
    lengths = ([one.value - one.low for one in intervals], [one.high - one.value for one in intervals])
    return [[max(0.0, length) for length in ends] for ends in lengths]  # of equal ends, rounding makes one negative


def _columns(labels: Sequence[str]) -> int:
    longest = min(_LABEL, max(map(len, labels), default=0))
    return max(1, min(len(labels), _LINE // (longest + 6)))
