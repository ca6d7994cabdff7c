"""Tables of a card as cells of Markdown: scores by mode, differences, and which mode to use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from taia_hub.cards.escaping import code, text
from taia_hub.common.text_tables import markdown_table
from taia_hub.results import Interval, Row, Score, Summary, format_difference, format_value
from taia_hub.results.summary import AVERAGE, REFERENCES
from taia_hub.results.tradeoff import Tradeoff
from taia_hub.results.tradeoff_text import keeping_words, tradeoff_note, tradeoff_rows, tradeoff_words
from taia_hub.switch.modes import PAPER_NAMES

MEMBER = "\N{EN DASH} "


class ModeWords(NamedTuple):
    """What cards call a mode, after the paper: its name in the head of a table, what acts, what the model is then."""

    name: str
    acting: str
    meaning: str


MODE_WORDS: Mapping[str, ModeWords] = {
    mode: ModeWords(PAPER_NAMES[mode], acting, meaning.format(PAPER_NAMES[mode]))
    for mode, acting, meaning in (
        ("attention", "attention", "{}"),
        ("ffn", "feed-forward", "{}"),
        ("all", "all", "the {} fine-tune"),
        ("none", "none", "the {} model"),
    )
}
"""Mode to its words, in the order of tables."""


@dataclass(frozen=True)
class Choice:
    """Which mode the results speak for.

    Attributes:
        where: What decided: `"over these 3 tasks"` or `"on MATH"`.
        others: Labels of settings that may be as good, without those of `tied`.
        tied: Labels of settings with the very same score.
        tells_nothing: Whether all of them have it.
    """

    mode: str
    where: str
    score: str
    items: int
    others: tuple[str, ...]
    tied: tuple[str, ...] = ()
    tells_nothing: bool = False


@dataclass(frozen=True)
class TradedTable:
    """What each mode gains and keeps: sentences, the table, and what its columns are."""

    words: tuple[str, ...]
    table: str
    note: str


def traded(found: Tradeoff, chosen: str | None = None) -> TradedTable:
    """Says and lays out what each mode gains on held-out items and keeps of the base.

    Where something else says which mode is `chosen`, the sentences only say what that one keeps.
    """
    head, *rows = tradeoff_rows(found)
    body = [
        (f"{code(mode)} ({MODE_WORDS[mode].name})" if mode in MODE_WORDS else code(mode), *cells)
        for mode, *cells in rows
    ]
    words = tradeoff_words(found, code) if chosen is None else keeping_words(found, chosen, code)
    return TradedTable(words, markdown_table(head, body), tradeoff_note(found))


def scores_table(rows: Sequence[Row], modes: Sequence[str]) -> str:
    """Lays scores out by task and mode: the best of a row in bold, the second best in italics."""
    body = [(_row_title(row), *(_score_cell(row, mode) for mode in modes)) for row in rows]
    return markdown_table(("task", *map(mode_name, modes)), body)


def measured_table(rows: Sequence[Row]) -> str:
    """Lays out what each task's scores are: metric, shots and items; apart, since a phone shows five narrow columns."""
    body = [(_row_title(row), *_measure(row)) for row in rows]
    return markdown_table(("task", "metric", "shots", "items"), body, left=(0, 1))


def differences_tables(rows: Sequence[Row]) -> dict[str, str]:
    """Lays differences out: reference (the base model, the vanilla fine-tune) to its table; empty without any."""
    found = {}
    for reference in REFERENCES:
        modes = list(dict.fromkeys(mode for row in rows for mode, other in row.differences if other == reference))
        body = [
            (_row_title(row), *(_difference_cell(row.differences.get((mode, reference))) for mode in modes))
            for row in rows
        ]
        if modes:
            found[reference] = markdown_table(("task", *map(mode_name, modes)), body)
    return found


def choice(summary: Summary) -> Choice | None:
    """Says which mode the results speak for, or None where they name none."""
    found = summary.recommendation
    if found is None:
        return None
    row = found.row
    top = [one for one in summary.rows if one.depth == 0 and not summary.is_weighed(one)]
    tasks = sum(1 for one in top if one.key.partition("@")[0] != AVERAGE)
    where = f"over these {tasks} tasks" if row.key.partition("@")[0] == AVERAGE else f"on {text(row.title)}"
    others = tuple(label for label in found.within_noise if label not in found.tied)
    score = format_value(row.scores[found.mode].value)
    return Choice(found.mode, where, score, row.items, others, found.tied, found.tells_nothing)


def mode_name(mode: str) -> str:
    """Names a mode in the head of a table as the paper does; other settings by their label."""
    return MODE_WORDS[mode].name if mode in MODE_WORDS else code(mode)


def _row_title(row: Row) -> str:
    """Names a row, indented as deep as it lies in its group."""
    return f"{MEMBER * row.depth}{text(row.title)}"


def _measure(row: Row) -> tuple[str, str, str]:
    """Returns the cells that say what the scores of a row are; a metric may break before the name of its filter."""
    metric = text(row.metric.replace(",", ", ")) + ("" if row.higher_is_better else " (lower is better)")
    return metric, "" if row.num_fewshot is None else str(row.num_fewshot), f"{row.items:,}"


def _score_cell(row: Row, mode: str) -> str:
    """Returns the cell of a mode: its score with its standard error, marked when it is best or second best."""
    score: Score | None = row.scores.get(mode)
    if score is None:
        return ""
    error = "" if score.standard_error is None else f" ± {score.standard_error:.3f}"
    mark = {1: "**", 2: "*", None: ""}[row.place(mode)]
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
