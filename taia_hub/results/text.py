"""The summary as text for a terminal."""

from __future__ import annotations

from taia_hub.common.shown import text_of
from taia_hub.common.text_tables import aligned
from taia_hub.results.format import Results
from taia_hub.results.retained import is_retention
from taia_hub.results.statistics import FEWEST, Interval
from taia_hub.results.summary import AVERAGE, Row, Summary, summarise
from taia_hub.results.tradeoff_text import tradeoff_words
from taia_hub.switch.modes import mode_title


@text_of.register
def _(results: Results) -> str:
    return to_text(summarise(results))


@text_of.register
def to_text(summary: Summary) -> str:
    """Lays a summary out for a terminal: scores by mode, then differences that matter, then which mode to use.

    The best score of a row bears `*`, the second best `'`, as bold and underline do in the paper's tables.

    Example:
        >>> to_text(Summary((), ()))
        'Nothing was evaluated.'
    """
    if not summary.rows:
        return "Nothing was evaluated."
    head = ["task", "shots", "items", "metric", *map(mode_title, summary.modes)]
    table = [head, *([*_names(row), *(_cell(row, mode) for mode in summary.modes)] for row in summary.rows)]
    text = [aligned(table, left=(0, 3)), "", "* best  ' second best (ties bear no mark)  ± standard error"]
    differences = [line for row in summary.rows if row.depth == 0 for line in _differences(row)]
    if differences:
        text += ["", "Differences with paired 95 % intervals over items:", *differences]
    others = [row for row in summary.rows if not is_retention(row.key)]
    few = [row.title for row in others if row.depth == 0 and row.items < FEWEST and len(row.scores) > 1]
    if few:
        text += ["", f"Fewer than {FEWEST} items tell nothing about a difference: {', '.join(few)}."]
    if summary.retained:
        text += ["", *summary.retained]
    if others:
        text += ["", *recommendation_lines(summary)]
    return "\n".join(text)


def recommendation_lines(summary: Summary) -> tuple[str, ...]:
    """Says which mode to use: what tasks speak for, else what a training's own items do beside what is kept."""
    found = summary.recommendation
    if (found is None or found.tells_nothing) and summary.traded and summary.traded.best:
        return tradeoff_words(summary.traded)
    return (recommendation_text(summary),)


def recommendation_text(summary: Summary) -> str:
    """Says in a sentence or two which mode to use, hedged where the results cannot tell."""
    found = summary.recommendation
    if found is None:
        return "These results do not name one mode: look at each task."
    if found.tells_nothing:
        return f"All modes score the same {_where(found.row)} ({format_value(found.row.scores[found.mode].value)})."
    where = _where(found.row)
    score = format_value(found.row.scores[found.mode].value)
    if not found.within_noise:
        return f"Mode {found.mode} is best {where} ({score}), beyond noise."
    best = f"Mode {found.mode} has the best score {where} ({score})"
    if found.tied:
        best = f"Modes {', '.join((found.mode, *found.tied))} have the same score, the best {where} ({score})"
    others = ", ".join(label for label in found.within_noise if label not in found.tied)
    if not others:
        return f"{best}."
    return f"{best}, but {others} may be as good: over {_count(found.row.items)} the difference is within noise."


def _where(row: Row) -> str:
    return "over these tasks" if row.key.partition("@")[0] == AVERAGE else f"on {row.title}"


def _count(items: int) -> str:
    return "1 item" if items == 1 else f"{items:,} items"


def format_value(value: float) -> str:
    """Writes a score with three decimals, or four significant figures beyond 10; the card and the terminal agree.

    Example:
        >>> format_value(0.3125), format_value(12.3456), format_value(-0.0001)
        ('0.312', '12.35', '-0.000')
    """
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def format_difference(interval: Interval) -> str:
    """Writes a difference with its interval.

    Example:
        >>> format_difference(Interval(0.012, -0.004, 0.028))
        '+0.012 [-0.004, +0.028]'
    """
    value, low, high = (f"{number:+.3f}" for number in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def _names(row: Row) -> list[str]:
    shots = "" if row.num_fewshot is None else str(row.num_fewshot)
    return ["  " * row.depth + row.title, shots, str(row.items), row.metric]


def _cell(row: Row, mode: str) -> str:
    if mode not in row.scores:
        return ""
    score = row.scores[mode]
    error = "" if score.standard_error is None else f" ±{score.standard_error:.3f}"
    mark = {1: "*", 2: "'", None: " "}[row.place(mode)]
    return f"{format_value(score.value)}{error}{mark}"


def _differences(row: Row) -> list[str]:
    return [
        f"  {row.title}: {mode} less {reference} {format_difference(interval)}"
        + ("" if interval.excludes_zero else " (within noise)")
        for (mode, reference), interval in row.differences.items()
    ]
