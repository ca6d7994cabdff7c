"""Figures of an analysis and of results, as PNG and SVG with words for those who do not see them.

They are drawn on a solid light ground: nothing in them depends on whether the page behind is light or dark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taia_hub.analysis._style import BLACK, TEXT, Figure, Look, canvas, legend, looks, points, write
from taia_hub.errors import ConfigError
from taia_hub.results import Row, Summary, format_value
from taia_hub.results.analysis import Analysis, Curve, HiddenStates
from taia_hub.results.norms import UpdateAnalysis
from taia_hub.results.statistics import Interval

_TASKS_IN_ALT = 6


def draw_figures(folder: Path, analysis: Analysis | None = None, summary: Summary | None = None) -> tuple[Figure, ...]:
    """Draws every figure that there are numbers for, in the order in which a card shows them.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
        RepositoryError: If the folder cannot be written.
    """
    drawn = []
    if summary is not None and summary.rows:
        drawn.append(draw_scores(summary, folder))
    if analysis is not None and analysis.update.by_layer:
        drawn.append(draw_update_norms(analysis.update, folder))
    if analysis is not None and analysis.hidden is not None:
        drawn += [draw_similarity(analysis.hidden, folder), draw_residual_rank(analysis.hidden, folder)]
    return tuple(drawn)


def draw_update_norms(update: UpdateAnalysis, folder: Path) -> Figure:
    """Draws the Frobenius norm of the update by layer and role, relative to the base where that was measured.

    Errors as of `draw_figures`, and a `ConfigError` if no module with norms lies in a layer.
    """
    measure = "relative_frobenius" if update.is_relative else "frobenius"
    points: dict[str, list[tuple[int, float]]] = {}
    for (layer, role), part in update.by_layer.items():
        if (value := getattr(part, measure)) is not None:
            points.setdefault(role, []).append((layer, value))
    if not points:
        raise ConfigError("No module of this update that has norms lies in a layer.", "Leave this figure out.")
    points = {role: points[role] for role in ("attention", "ffn", "other") if role in points}
    title = "Size of the update" + (" relative to the base's weights" if update.is_relative else "")
    says = []
    for role, found in points.items():
        layer, top = max(found, key=lambda point: point[1])
        says.append(f"{role} from {min(v for _, v in found):.3g} to {top:.3g}, largest in layer {layer}")
    with canvas([3.2], list(points)) as (figure, axes):
        (axis,) = axes[0]
        for role, look in looks(list(points)).items():
            axis.plot(*zip(*points[role], strict=True), label=role, **_line(look))
        _finish(axis, "layer", "‖ΔW‖ / ‖W‖ (Frobenius)" if update.is_relative else "‖ΔW‖ (Frobenius)", title)
        axis.set_ylim(bottom=0)
        legend(figure, axis)
        axis.xaxis.get_major_locator().set_params(integer=True)
        alt = f"Line chart. {title} by layer and role, Frobenius norm: {'; '.join(says)}."
        return write(figure, folder, "update_norms", alt)


def draw_scores(summary: Summary, folder: Path) -> Figure:
    """Draws the score of every mode in every task, with its standard error.

    Shares between 0 and 1 stand on one axis, every other score on one of its own. Errors as of `draw_figures`, and a
    `ConfigError` if the summary has no rows.
    """
    if not summary.rows:
        raise ConfigError("There are no scores to draw.", "Evaluate first: `taia eval`.")
    shares = [row for row in summary.rows if all(0 <= score.value <= 1 for score in row.scores.values())]
    panels = [*([shares] if shares else []), *([row] for row in summary.rows if row not in shares)]
    styles = looks(summary.modes)
    height = max(0.34, 0.13 * len(summary.modes))
    with canvas([height * len(panel) + 0.7 for panel in panels], summary.modes) as (figure, axes):
        for number, panel in enumerate(panels):
            axis = axes[number][0]
            _draw_rows(axis, panel, styles)
            better = "higher" if panel[0].higher_is_better else "lower"
            unit = "score" if panel is shares else f"{panel[0].metric}, {better} is better"
            errors = any(score.standard_error is not None for row in panel for score in row.scores.values())
            _finish(axis, unit + errors * " (± standard error)", "", "Scores by mode" if number == 0 else "")
        legend(figure, axes[0][0])
        alt = "Chart of the score of each mode by task, with standard errors. " + " ".join(
            f"{row.title}: {', '.join(f'{mode} {format_value(score.value)}' for mode, score in row.scores.items())}."
            for row in _shown(summary.rows)
        )
        return write(figure, folder, "scores", alt)


def draw_similarity(hidden: HiddenStates, folder: Path) -> Figure:
    """Draws the density of the cosine similarity between a mode's hidden states and the base model's.

    One panel is of the last layer, one of all layers together. Mode `none` is a line at 1. Errors as of `draw_figures`.
    """
    panels = (("last layer", hidden.last_density), ("all layers", hidden.pooled_density))
    styles = looks(list(hidden.similarity))
    with canvas([3.2], list(hidden.similarity), columns=2) as (figure, axes):
        for axis, (title, densities) in zip(axes[0], panels, strict=True):
            for label, values in densities.items():
                style = styles[label]
                if set(hidden.similarity[label].mean[1:]) == {1.0}:
                    axis.axvline(1.0, color=style.color, linestyle=style.line, label=f"{label} (all at 1)")
                    continue
                axis.plot(hidden.grid, values, label=label, markevery=len(hidden.grid) // 8, **_line(style))
            _finish(axis, "cosine similarity to the base", "density", title)
            axis.set_ylim(bottom=0)
        legend(figure, axes[0][0])
        means = ", ".join(f"{label} {curve.mean[-1]:.3g}" for label, curve in hidden.similarity.items())
        alt = (
            "Density of the cosine similarity between the hidden states of each mode and those of the base model, over "
            f"{hidden.tokens} tokens of {hidden.texts} texts. Mean in the last layer: {means}."
        )
        return write(figure, folder, "similarity", alt)


def draw_residual_rank(hidden: HiddenStates, folder: Path) -> Figure:
    """Draws the residual rank by layer for each mode. Errors as of `draw_figures`."""
    curves: Mapping[str, Curve] = hidden.residual_rank
    with canvas([3.2], list(curves)) as (figure, axes):
        (axis,) = axes[0]
        for label, look in looks(list(curves)).items():
            mean, error = np.array(curves[label].mean), np.array(curves[label].standard_error)
            layers = np.arange(len(mean))
            axis.plot(layers, mean, label=label, **_line(look))
            axis.fill_between(layers, mean - error, mean + error, color=look.color, alpha=0.15, linewidth=0)
        _finish(axis, "layer (0: embeddings)", "‖res(X)‖ / ‖X‖", "Residual rank by layer (± standard error)")
        legend(figure, axis)
        axis.xaxis.get_major_locator().set_params(integer=True)
        ends = ", ".join(f"{label} {curve.mean[-1]:.3g}" for label, curve in curves.items())
        alt = f"Line chart of the residual rank by layer for each mode over {hidden.texts} texts. Last layer: {ends}."
        return write(figure, folder, "residual_rank", alt)


def draw_trade(
    inside: str,
    gained: Mapping[str, Interval],
    outside: Mapping[str, Mapping[str, Interval]],
    names: Mapping[str, str],
    folder: Path,
    name: str,
) -> Figure:
    """Draws what each mode gains in the domain that was trained on against what it costs in others, a panel each.

    Args:
        inside: The trained domain.
        gained: Mode to its loss there, less the base model's.
        outside: Each other domain to the same of that.
        names: Mode to its name for people; that of `none`, the base model, is a point at zero.
        folder: Where the figure goes.
        name: Name of its files without the ending.

    Errors as of `draw_figures`.
    """
    nothing = Interval(0.0, 0.0, 0.0)
    styles = looks(list(names))
    with canvas([3.6], list(names.values()), columns=len(outside)) as (figure, axes):
        for axis, (domain, found) in zip(axes[0], outside.items(), strict=True):
            for mode, look in styles.items():
                less, cost = gained.get(mode, nothing), found.get(mode, nothing)
                gain = Interval(-less.value, -less.high, -less.low)
                points(axis, [gain], [cost], look, label=names[mode])
            _finish(axis, f"gain on {inside}, nats a token", "", f"Loss on {domain}, less the base's")
            axis.margins(0.12)
        ends = [end for axis in axes[0] for end in axis.get_ylim()]
        for axis in axes[0]:
            axis.set_ylim(min(ends), max(ends))
            axis.axhspan(0, max(ends), color=BLACK, alpha=0.05, linewidth=0)
            corner = {"transform": axis.get_yaxis_transform(), "ha": "right", "fontsize": 9}
            axis.text(0.99, max(ends), "worse than the base ", va="top", **corner)
            axis.text(0.99, min(ends), "better than the base ", va="bottom", **corner)
        legend(figure, axes[0][0])
        says = "; ".join(
            f"{mode} {-gained[mode].value:+.3f} on {inside}, "
            + ", ".join(f"{found[mode].value:+.3f} on {domain}" for domain, found in outside.items())
            for mode in gained
        )
        alt = f"Chart of the gain on {inside} and the change of the loss elsewhere (above 0 is worse), by mode: {says}."
        return write(figure, folder, name, alt)


def _draw_rows(axis: Any, rows: Sequence[Row], styles: Mapping[str, Look]) -> None:
    modes = list(styles)
    step = 0.7 / max(1, len(modes))
    for place, mode in enumerate(modes):
        scores = [(number, row.scores[mode]) for number, row in enumerate(rows) if mode in row.scores]
        axis.errorbar(
            [score.value for _, score in scores],
            [number + (place - (len(modes) - 1) / 2) * step for number, _ in scores],
            xerr=[score.standard_error or 0.0 for _, score in scores],
            label=mode,
            color=styles[mode].color,
            marker=styles[mode].marker,
            linestyle="none",
            markersize=5,
            capsize=2,
            elinewidth=1,
        )
    axis.set_yticks(range(len(rows)), [_title(row) for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)


def _finish(axis: Any, x: str, y: str, title: str) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_title(title, loc="left", color=TEXT, fontsize=11)


def _line(look: Look) -> dict[str, Any]:
    return {"color": look.color, "marker": look.marker, "linestyle": look.line, "markersize": 4, "linewidth": 1.5}


def _title(row: Row) -> str:
    title = " ".join(row.title.split())
    return "  " * row.depth + (f"{title[:37]}…" if len(title) > 38 else title)


def _shown(rows: Sequence[Row]) -> Sequence[Row]:
    top = [row for row in rows if row.depth == 0]
    return top if len(top) <= _TASKS_IN_ALT else top[-1:]  # the average stands last
