"""What is told beside answers, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from taia_hub.compare.comparison import ComparedAnswer, Comparison
from taia_hub.compare.showing import nats
from taia_hub.compare.terminal import safe_text

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

Comparisons = Sequence[tuple[str, Comparison]]
"""Comparisons under the same modes, each with the name of its prompt."""

_BY = "log-likelihood per token by"


def figures(comparison: Comparison, reference: str) -> Group:
    """Makes tables of what is told beside the text, a row a mode; the others part from the mode `reference`.

    Raises:
        SettingError: If there is no answer of `reference`.
    """
    from rich.console import Group
    from rich.text import Text

    first = comparison.answer(reference)
    heads = ["mode", "tokens", "tokens/s", f"parts from {first.title}"]
    heads += ["entropy"] if comparison.has_entropies else []
    rows = []
    for answer in comparison.answers:
        row = [answer.title, str(len(answer.tokens)), _speed(answer.tokens_per_second)]
        row.append(parting(comparison, answer, first))
        if comparison.has_entropies:
            row.append(nats(sum(answer.entropy) / len(answer.entropy)) if answer.entropy else "")
        rows.append(row)
    tables: list[RenderableType] = [_table(heads, rows)]
    if comparison.has_likelihoods:
        found = [
            [answer.title, *(nats(answer.per_token(mode)) for mode in comparison.modes)]
            for answer in comparison.answers
        ]
        tables += [Text(""), _table([_BY, *comparison.modes], found)]
    return Group(*tables)


def overview(comparisons: Comparisons, reference: str, width: int) -> Group:
    """Makes tables of many prompts: the beginning of each answer, where it parts from a reference, and a summary.

    Rows are at most `width` characters wide, and no wider than is read with ease.
    """
    from rich.console import Group
    from rich.text import Text

    first = comparisons[0][1].answer(reference).title
    answers = comparisons[0][1].answers
    heads = ["  mode", "tokens", f"parts from\n{first}", "answer"]
    widths = [2 + max(len(answer.title) for answer in answers), 6, max(len("parts from"), len(first))]
    room = max(12, min(width, 120) - sum(widths) - 2 * len(widths))
    shown: list[RenderableType] = [_table(heads, [], [*widths, room])]
    for name, comparison in comparisons:
        rows = []
        for answer in comparison.answers:
            row = [f"  {answer.title}", str(len(answer.tokens))]
            row += [parting(comparison, answer, comparison.answer(reference)), " ".join(answer.text.split())]
            rows.append(row)
        shown += [Text(_shortened(name, min(width, 120))), _table([], rows, [*widths, room])]
    return Group(*shown, Text(""), _summary([comparison for _, comparison in comparisons], reference))


def _summary(comparisons: Sequence[Comparison], reference: str) -> Group:
    from rich.console import Group
    from rich.text import Text

    answers, first = comparisons[0].answers, comparisons[0].answer(reference).title
    text = f"The modes answer {count_different(comparisons)} of {len(comparisons)} prompts differently."
    heads = ["mode", f"other than {first}", "mean tokens", "tokens/s"]
    speeds, others = mean_speeds(comparisons), count_others(comparisons, reference)
    rows = []
    for answer in answers:
        tokens = sum(len(one.answer(answer.mode).tokens) for one in comparisons) / len(comparisons)
        other = f"{others[answer.mode]} of {len(comparisons)}" if answer.title != first else ""
        rows.append([answer.title, other, f"{tokens:.1f}", _speed(speeds[answer.mode])])
    tables: list[RenderableType] = [Text(text), Text(""), _table(heads, rows)]
    if likelihoods := mean_likelihoods(comparisons):
        found = [[answer.title, *map(nats, likelihoods[answer.mode].values())] for answer in answers]
        tables += [Text(""), _table([_BY, *(answer.mode for answer in answers)], found)]
    return Group(*tables)


def count_different(comparisons: Sequence[Comparison]) -> int:
    """Counts the prompts whose answers are not all the same."""
    return sum(len({answer.text for answer in one.answers}) > 1 for one in comparisons)


def count_others(comparisons: Sequence[Comparison], reference: str) -> Mapping[str, int]:
    """Counts by mode the prompts whose answer is another one than the reference's."""
    return {
        mode: sum(one.answer(mode).text != one.answer(reference).text for one in comparisons)
        for mode in comparisons[0].modes
    }


def mean_speeds(comparisons: Sequence[Comparison]) -> Mapping[str, float | None]:
    """Averages the tokens a second by mode, over comparisons under the same modes; None where no answer has two."""
    found: dict[str, float | None] = {}
    for mode in comparisons[0].modes:
        speeds = [speed for one in comparisons if (speed := one.answer(mode).tokens_per_second) is not None]
        found[mode] = sum(speeds) / len(speeds) if speeds else None
    return found


def mean_likelihoods(comparisons: Sequence[Comparison]) -> Mapping[str, Mapping[str, float | None]]:
    """Averages log-likelihoods in nats over all tokens: mode that answered to mode that read; empty if not measured."""
    if not all(one.has_likelihoods for one in comparisons):
        return {}
    found: dict[str, dict[str, float | None]] = {}
    for mode in (modes := comparisons[0].modes):
        answers = [one.answer(mode) for one in comparisons]
        tokens = sum(len(answer.tokens) for answer in answers)
        sums = {by: sum(answer.log_likelihoods[by] for answer in answers) for by in modes}
        found[mode] = {by: value / tokens if tokens else None for by, value in sums.items()}
    return found


def parting(comparison: Comparison, answer: ComparedAnswer, first: ComparedAnswer) -> str:
    """Says where an answer parts from another; in characters where another model, with its own tokens, wrote it."""
    if answer is first:
        return ""
    found = comparison.parting(answer.mode, first.mode)
    if answer.model != first.model:
        return "never" if answer.text == first.text else f"after {found.character} characters"
    return "never" if found.same else f"after {found.token}"


def _shortened(text: str, most: int) -> str:
    line = " ".join(safe_text(text).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _speed(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int] = ()) -> Table:
    """Makes a table whose first column is set to the left; with widths the last one too, and its cells are cut."""
    from rich.table import Table
    from rich.text import Text

    columns = len(heads or (rows[0] if rows else ()))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=bool(heads))
    for at in range(columns):
        head = Text(safe_text(heads[at]) if heads else "")
        if widths and at == columns - 1:
            table.add_column(head, max_width=widths[at], no_wrap=True, overflow="ellipsis")
        else:
            width = widths[at] if widths else None
            table.add_column(head, justify="right" if at else "left", width=width, overflow="fold")
    for row in rows:
        table.add_row(*(Text(safe_text(cell)) for cell in row))
    return table
