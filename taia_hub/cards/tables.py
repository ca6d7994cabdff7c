"""Tables of a card as cells of Markdown: scores by mode, differences, and which mode to use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from taia_hub.cards.escaping import code, text
from taia_hub.common.text_tables import markdown_table
from taia_hub.results import Interval, Row, Score, Summary, format_difference, format_value
from taia_hub.results.summary import AVERAGE, REFERENCES

MINUS = "\N{MINUS SIGN}"
MEMBER = "\N{EN DASH} "


class ModeWords(NamedTuple):
    """What cards call a mode, after the paper: its name in the head of a table, what acts, what the model is then."""

    name: str
    acting: str
    meaning: str


MODE_WORDS: Mapping[str, ModeWords] = {
    "attention": ModeWords("TAIA", "attention", "TAIA"),
    "ffn": ModeWords("TAIF", "feed-forward", "TAIF"),
    "all": ModeWords("vanilla", "all", "the vanilla fine-tune"),
    "none": ModeWords("base", "none", "the base model"),
}
"""Mode to its words, in the order of tables."""


@dataclass(frozen=True)
class Choice:
    """Which mode the results speak for.

    Attributes:
        where: What decided: `"over these 3 tasks"` or `"on MATH"`.
        others: Labels of settings that may be as good.
    """

    mode: str
    where: str
    score: str
    items: int
    others: tuple[str, ...]


def scores_table(rows: Sequence[Row], modes: Sequence[str]) -> str:
    """Lays scores out by task and mode: the best of a row in bold, the second best in italics."""
    head = ("task", "shots", "items", "metric", *map(mode_name, modes))
    body = [(*_row_names(row), *(_score_cell(row, mode) for mode in modes)) for row in rows]
    return markdown_table(head, body, left=(0, 3))


def differences_table(rows: Sequence[Row]) -> str | None:
    """Lays differences to the base model and to the vanilla fine-tune out; None where there is nothing to compare."""
    pairs = sorted(
        dict.fromkeys(pair for row in rows for pair in row.differences),
        key=lambda pair: REFERENCES.index(pair[1]) if pair[1] in REFERENCES else len(REFERENCES),
    )
    if not pairs:
        return None
    body = [(_row_names(row)[0], *(_difference_cell(row.differences.get(pair)) for pair in pairs)) for row in rows]
    return markdown_table(("task", *(f"{code(one)} {MINUS} {code(other)}" for one, other in pairs)), body)


def choice(summary: Summary) -> Choice | None:
    """Says which mode the results speak for, or None where they name none."""
    found = summary.recommendation
    if found is None:
        return None
    row = found.row
    tasks = sum(1 for one in summary.rows if one.depth == 0 and one.key.partition("@")[0] != AVERAGE)
    where = f"over these {tasks} tasks" if row.key.partition("@")[0] == AVERAGE else f"on {text(row.title)}"
    return Choice(found.mode, where, format_value(row.scores[found.mode].value), row.items, found.within_noise)


def mode_name(mode: str) -> str:
    """Names a mode as the paper does, with its setting: ``TAIA `attention` ``."""
    return f"{MODE_WORDS[mode].name} {code(mode)}" if mode in MODE_WORDS else code(mode)


def _row_names(row: Row) -> tuple[str, str, str, str]:
    """Returns the cells that name a row: task, shots, items and metric."""
    title = f"{MEMBER * row.depth}{text(row.title)}"
    shots = "" if row.num_fewshot is None else str(row.num_fewshot)
    return title, shots, f"{row.items:,}", text(row.metric) + ("" if row.higher_is_better else " (lower is better)")


def _score_cell(row: Row, mode: str) -> str:
    """Returns the cell of a mode: its score with its standard error, marked when it is best or second best."""
    score: Score | None = row.scores.get(mode)
    if score is None:
        return ""
    error = "" if score.standard_error is None else f" ± {score.standard_error:.3f}"
    mark = "**" if mode in row.best else "*" if mode in row.second else ""
    return f"{mark}{format_value(score.value)}{mark}{error}"


def _difference_cell(interval: Interval | None) -> str:
    """Returns the cell of a difference with its interval, in bold where the interval excludes zero."""
    if interval is None:
        return ""
    mark = "**" if interval.excludes_zero else ""
    return f"{mark}{format_difference(interval).replace('[', '(').replace(']', ')').replace(', ', ' to ')}{mark}"


def name_table(values: Mapping[str, object], head: tuple[str, str]) -> str:
    """Lays names and values out, both escaped."""
    return markdown_table(head, [(text(name), code(value)) for name, value in values.items()], left=(0, 1))
