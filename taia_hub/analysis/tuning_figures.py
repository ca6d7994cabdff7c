"""Figures of a tuning: what each setting gains and loses, and the weights of the front by role and layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from taia_hub.analysis._style import (
    BACKGROUND,
    BLUE,
    GRID_LINES,
    PURPLE,
    TEXT,
    VERMILLION,
    Figure,
    Look,
    canvas,
    legend,
    looks,
    points,
    write,
)
from taia_hub.results.tuning import Candidate, Tuned
from taia_hub.results.tuning_text import CHOSEN, gain_of, weights_by_layer
from taia_hub.switch.modes import mode_title

_QUIET = "#57606a"
_KINDS = {
    "tuned": ("found by the search", Look(PURPLE, "o", "-")),
    "common": ("all at one weight", Look(_QUIET, "X", ":")),
}
_CHOSEN_SIZE = 17
_MOST_ROWS = 8
_NAMES_HEIGHT = 1.2  # inches that slanted names of columns take


def draw_tuning(tuned: Tuned, folder: Path) -> tuple[Figure, ...]:
    """Draws the figures of a tuning into a folder: `tuning_front` and `tuning_weights`.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
        RepositoryError: If the folder cannot be written.
    """
    return draw_tuning_front(tuned, folder), draw_tuning_weights(tuned, folder)


def draw_tuning_front(tuned: Tuned, folder: Path) -> Figure:
    """Draws what each candidate gains on the target against what it loses of the rest, with 95 % intervals.

    Plain modes are named beside their points, and the chosen candidate is a star. Errors as of `draw_tuning`.
    """
    chosen = tuned.recommended
    modes = [one for one in tuned.candidates if one.kind == "mode"]
    found = {kind: [one for one in tuned.candidates if one.kind == kind] for kind in _KINDS}
    named = [_KINDS[kind][0] for kind, some in found.items() if some]
    with canvas([4.4], [*named, f"to use: {chosen.label}"]) as (figure, axes):
        (axis,) = axes[0]
        for kind, some in found.items():
            label, look = _KINDS[kind]
            if some:
                _draw_series(axis, sorted(some, key=lambda one: one.retention.value), tuned, look, label)
        for label, look in looks([one.label for one in modes]).items():
            one = tuned.candidate(label)
            points(axis, [one.retention], [gain_of(one, tuned)], look, zorder=4)
        axis.plot(
            chosen.retention.value,
            gain_of(chosen, tuned).value,
            marker="*",
            markersize=_CHOSEN_SIZE,
            markerfacecolor="#ffd33d",
            markeredgecolor=TEXT,
            linestyle="none",
            label=f"to use: {chosen.label}",
            zorder=5,
        )
        axis.margins(0.07)
        _name_modes(axis, modes, tuned)
        retained = f"{tuned.retain.report:,} retained texts"
        lost = "KL to the base" if tuned.objective == "kl" else "loss above the base's"
        axis.set_xlabel(f"lost elsewhere: {lost} on {retained} (nats a token)")
        axis.set_ylabel("gained: target loss below the base's (nats a token)")
        axis.set_title("What each setting gains on the target, and what it loses", loc="left", color=TEXT, fontsize=11)
        axis.annotate(
            "better",
            (0.015, 0.985),
            (0.075, 0.93),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=_QUIET,
            fontsize=9,
            arrowprops={"arrowstyle": "->", "color": _QUIET},
        )
        legend(figure, axis)
        return write(figure, folder, "tuning_front", _front_in_words(tuned))


def draw_tuning_weights(tuned: Tuned, folder: Path) -> Figure:
    """Draws the weights by role and layer of the chosen candidate and of those on the front that the search found.

    A panel is of a role, a row of a candidate, from the most gain down. Errors as of `draw_tuning`.
    """
    shown = _shown(tuned)
    panels = _panels(tuned, shown)
    lowest = min(min(one.weights) for one in shown)
    highest = max(max(one.weights) for one in shown)
    heights = [max(1.1, 0.24 * len(shown) + 0.5) + panel.slants * _NAMES_HEIGHT for panel in panels]
    with canvas(heights, []) as (figure, axes):
        colours = _colours(min(0.0, lowest), max(1.0, highest))
        for (axis,), panel in zip(axes, panels, strict=True):
            values = np.ma.masked_invalid(panel.values)
            drawn = axis.pcolormesh(values, edgecolors=GRID_LINES, linewidth=0.4, **colours)
            axis.set_facecolor(GRID_LINES)
            axis.grid(visible=False)
            axis.invert_yaxis()
            axis.set_yticks(np.arange(len(shown)) + 0.5, [_row_name(one, tuned) for one in shown], fontsize=9)
            axis.set_title(panel.title, loc="left", color=TEXT, fontsize=10)
            _name_columns(axis, panel)
        bar = figure.colorbar(drawn, ax=[row[0] for row in axes], fraction=0.035, pad=0.015)
        bar.set_label("weight")
        figure.suptitle(
            "Which part of the update acts: weights from 0, masked, to 1, in full",
            x=0.01,
            ha="left",
            color=TEXT,
            fontsize=11,
        )
        return write(figure, folder, "tuning_weights", _weights_in_words(tuned))


def _draw_series(axis: Any, some: Sequence[Candidate], tuned: Tuned, look: Look, label: str) -> None:
    x, y = [one.retention for one in some], [gain_of(one, tuned) for one in some]
    smaller = {"markersize": 5, "linewidth": 1.3, "capsize": 2, "elinewidth": 1}
    points(axis, x, y, look, label=label, linestyle=look.line, zorder=3, **smaller)


def _name_modes(axis: Any, modes: Sequence[Candidate], tuned: Tuned) -> None:
    """Writes the names of modes beside their points: below, where the front never is; at the right edge to the left."""
    low, high = axis.get_xlim()
    for one in modes:
        share = (one.retention.value - low) / (high - low)
        axis.annotate(
            mode_title(one.label),
            (one.retention.value, gain_of(one, tuned).value),
            (-9 if share > 0.8 else 9, -5),
            textcoords="offset points",
            ha="right" if share > 0.8 else "left",
            va="top",
            fontsize=9,
            bbox={"boxstyle": "round,pad=0.1", "facecolor": BACKGROUND, "edgecolor": "none", "alpha": 0.8},
            zorder=3.5,  # over lines of intervals, under points
        )


def _shown(tuned: Tuned) -> list[Candidate]:
    """Returns the chosen candidate and those of the front that were found, evenly picked where they are many."""
    front = [one for one in tuned.front if one.kind == "tuned" and one.label != tuned.choice.label]
    most = _MOST_ROWS - 1
    if len(front) > most:
        front = [front[round(at * (len(front) - 1) / (most - 1))] for at in range(most)]
    return sorted([*front, tuned.recommended], key=lambda one: -gain_of(one, tuned).value)


class _Panel(NamedTuple):
    """Weights as (candidates, columns); a column is a layer, or has a name of its own."""

    title: str
    values: np.ndarray
    names: tuple[str, ...] = ()

    @property
    def slants(self) -> bool:
        """Whether the names of the columns have no room beside each other."""
        return max(map(len, self.names), default=0) * len(self.names) > 60


def _panels(tuned: Tuned, shown: Sequence[Candidate]) -> list[_Panel]:
    placed = [weights_by_layer(tuned, one.weights) for one in shown]
    by_role, others = placed[0]
    panels = [
        _Panel(role, np.array([[np.nan if w is None else w for w in rows[role]] for rows, _ in placed], dtype=float))
        for role in by_role
    ]
    if others:
        title = "outside the layers" if by_role else "by selector"
        panels.append(_Panel(title, np.array([[*found.values()] for _, found in placed]), tuple(others)))
    return panels


def _colours(low: float, high: float) -> Mapping[str, Any]:
    """Returns matplotlib's words for a scale from white at 0 to blue, below 0 to vermillion."""
    from matplotlib.colors import CenteredNorm, LinearSegmentedColormap, Normalize

    if low >= 0:
        return {"cmap": LinearSegmentedColormap.from_list("", ["#ffffff", BLUE, "#00304d"]), "norm": Normalize(0, high)}
    both = LinearSegmentedColormap.from_list("", ["#7a3600", VERMILLION, "#ffffff", BLUE, "#00304d"])
    return {"cmap": both, "norm": CenteredNorm(0, max(-low, high))}


def _row_name(one: Candidate, tuned: Tuned) -> str:
    return f"{CHOSEN} {one.label}" if one.label == tuned.choice.label else one.label


def _name_columns(axis: Any, panel: _Panel) -> None:
    count = panel.values.shape[1]
    if panel.names:
        how: dict[str, Any] = {"rotation": 45, "ha": "right"} if panel.slants else {}
        axis.set_xticks(np.arange(count) + 0.5, panel.names, fontsize=8, **how)
        return
    ticks = np.arange(0, count, 1 if count <= 16 else 5 if count <= 60 else 10)
    axis.set_xticks(ticks + 0.5, [str(tick) for tick in ticks])
    axis.set_xlabel("layer", fontsize=9)


def _front_in_words(tuned: Tuned) -> str:
    says = "; ".join(
        f"{one.label} gains {gain_of(one, tuned).value:+.3f} and loses {one.retention.value:.4f}"
        for one in [*(one for one in tuned.candidates if one.kind == "mode"), *_shown(tuned)]
    )
    lost = "their KL to the base" if tuned.objective == "kl" else "how much their loss grows"
    return (
        f"Chart of what settings gain on the target over the base against {lost} on retained texts, in nats a token: "
        f"{says}. To use: {tuned.choice.label}."
    )


def _weights_in_words(tuned: Tuned) -> str:
    rows, others = weights_by_layer(tuned, tuned.recommended.weights)
    says = []
    for role, weights in rows.items():
        there = [one for one in weights if one is not None]
        says.append(f"{role} from {min(there):.2f} to {max(there):.2f}, {sum(there) / len(there):.2f} on average")
    says += [f"{label} {weight:.2f}" for label, weight in others.items()]
    return f"Heat map of weights by role and layer. Of {tuned.choice.label}: {'; '.join(says)}."
