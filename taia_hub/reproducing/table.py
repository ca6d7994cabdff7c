"""The paper's table beside ours, as values, JSON and Markdown; every column says whose numbers it holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taia_hub.cards.escaping import text
from taia_hub.common.text_tables import aligned, amount, markdown_table
from taia_hub.evaluation.tasks import TITLES
from taia_hub.reproducing.measured import Cell, Measured
from taia_hub.reproducing.recipe import PaperTable, Recipe
from taia_hub.results import Interval, format_value
from taia_hub.switch.modes import mode_title

FORMAT = 1
_TITLES = {**TITLES, "attack_success_rate": "Attack success"}
_SHARES = ("acc", "acc_norm", "exact_match", "em", "f1", "attack_success_rate", "refusal_rate", "win_rate", "mean of")
"""Metrics from 0 to 1, which are shown in percent as the paper's are."""


@dataclass(frozen=True)
class TableRow:
    """One task under one mode of one run.

    Attributes:
        task: Key of the task, or the name that the paper's numbers have.
        paper: One number a column of the paper, in percent; None where it is not known.
        ours: Our number, in percent where `percent` says so; None where it was not run.
    """

    run: str
    task: str
    title: str
    mode: str
    paper: tuple[float | None, ...]
    ours: Cell | None
    percent: bool


@dataclass(frozen=True)
class Contrast:
    """How far TAIA is from vanilla and from the base, in the paper and here.

    Attributes:
        reference: Label of the setting that is taken away.
        paper: Differences of the paper's numbers, a column each; None where they are not known.
        ours: Our difference with its paired 95 % interval.
    """

    run: str
    task: str
    title: str
    mode: str
    reference: str
    paper: tuple[float | None, ...]
    ours: Interval
    percent: bool


@dataclass(frozen=True)
class ReproductionTable:
    """The paper's table beside ours.

    Attributes:
        recipe: Name of the recipe.
        description: What it is.
        reference: Where it stands in the paper.
        setting: What our numbers were measured on, the head of our column.
        differences: What is not as in the paper.
        paper: The paper's tables, one column each.
        rows: The numbers.
        contrasts: Paired differences between modes.
    """

    recipe: str
    description: str
    reference: str
    setting: str
    differences: tuple[str, ...]
    paper: tuple[PaperTable, ...]
    rows: tuple[TableRow, ...]
    contrasts: tuple[Contrast, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the table as JSON values."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    def to_markdown(self) -> str:
        """Returns the table as Markdown: what differs from the paper stands above the numbers."""
        return "\n".join(_lines(self)) + "\n"

    def to_text(self) -> str:
        """Lays the table out for a terminal: what was run, and of the rest only how much it is."""
        return "\n".join(_text_lines(self))


def make_table(
    recipe: Recipe,
    measured: Mapping[str, Mapping[str, Measured]],
    *,
    labels: Sequence[str],
    modes: Sequence[str],
    setting: str,
    differences: Sequence[str],
) -> ReproductionTable:
    """Puts the paper's numbers and ours side by side; a number that the paper or we do not have is None.

    Keys are labels of runs, missing where a run is not done yet; `modes` are in the order of the rows, and `setting`
    says what our numbers were measured on.
    """
    rows = [row for label in labels for row in _rows(recipe, label, measured.get(label, {}), modes)]
    contrasts = [one for label in labels for one in _contrasts(recipe, label, measured.get(label, {}))]
    return ReproductionTable(
        recipe.name,
        recipe.description,
        recipe.reference,
        setting,
        tuple(differences),
        recipe.paper,
        tuple(rows),
        tuple(contrasts),
    )


def _rows(recipe: Recipe, label: str, found: Mapping[str, Measured], modes: Sequence[str]) -> Iterator[TableRow]:
    known = {task for table in recipe.paper for row in table.numbers.get(label, {}).values() for task in row}
    absent = known - {name for key in found for name in _names(key)}
    order = [*found, *(task for task in _TITLES if task in absent), *sorted(absent - set(_TITLES))]
    for task in order:
        one = found.get(task)
        title = one.row.title if one else _TITLES.get(task, task)
        percent = _is_share(one) if one else True
        for mode in modes:
            paper = tuple(table.find(label, mode, task) for table in recipe.paper)
            ours = one.cells.get(mode) if one else None
            if ours or any(number is not None for number in paper):
                yield TableRow(label, task, title, mode, paper, ours, percent)


def _contrasts(recipe: Recipe, label: str, found: Mapping[str, Measured]) -> Iterator[Contrast]:
    for task, one in found.items():
        for (mode, reference), interval in one.row.differences.items():
            pairs = [(table.find(label, mode, task), table.find(label, reference, task)) for table in recipe.paper]
            paper = tuple(a - b if a is not None and b is not None else None for a, b in pairs)
            yield Contrast(label, task, one.row.title, mode, reference, paper, interval, _is_share(one))


def _names(key: str) -> tuple[str, str]:
    name = key.partition("@")[0]
    return name, name.partition(":")[0]


def _is_share(one: Measured) -> bool:
    return one.row.metric.startswith(_SHARES) and all(0 <= cell.value <= 1 for cell in one.cells.values())


def _lines(table: ReproductionTable) -> Iterator[str]:
    yield f"# Reproduction of {text(table.recipe)}"
    yield ""
    yield f"{text(table.description)} Reference: {text(table.reference)}."
    yield ""
    yield "What differs from the paper's setting, or is not known of it:"
    yield ""
    yield from (f"- {text(line)}" for line in table.differences)
    yield ""
    if table.paper:
        yield "The paper's columns:"
        yield ""
        for one in table.paper:
            remarks = "".join(f" {remark}" for remark in one.remarks)
            yield f"- {text(f'{one.setting}: {one.table}, {one.precision}. {one.source}{remarks}')}"
    else:
        yield "The paper's numbers for this are not known."
    yield ""
    heads = [text(f"paper: {one.setting}") for one in table.paper] or ["paper"]
    ours = text(f"ours: {table.setting}")
    several = len({row.run for row in table.rows}) > 1
    lead = ["run"] if several else []
    yield markdown_table(
        [*lead, "task", "mode", *heads, ours, "items"],
        [
            [
                *([text(row.run)] if several else []),
                text(row.title),
                _mode(row.mode),
                *_paper(row.paper, table.paper, ""),
                _ours(row.ours, row.percent),
                f"{row.ours.items:,}" if row.ours else "",
            ]
            for row in table.rows
        ],
        left=range(len(lead) + 2),
    )
    yield ""
    yield (
        "Scores in percent where they are shares. In parentheses the 95 % bootstrap interval over items, from 10 items "
        "on; the paper gives none."
    )
    if table.contrasts:
        yield ""
        yield "Differences between modes; ours with paired 95 % intervals over the same items:"
        yield ""
        yield markdown_table(
            [*lead, "task", "difference", *heads, ours],
            [
                [
                    *([text(one.run)] if several else []),
                    text(one.title),
                    f"{_mode(one.mode)} less {_mode(one.reference)}",
                    *_paper(one.paper, table.paper, "+"),
                    _difference(one.ours, one.percent),
                ]
                for one in table.contrasts
            ],
            left=range(len(lead) + 2),
        )
    yield from _others(table)


def _text_lines(table: ReproductionTable) -> Iterator[str]:
    yield f"Reproduction of {table.recipe}: {table.description}"
    yield "\nWhat differs from the paper's setting, or is not known of it:"
    yield from (f"  {line}" for line in table.differences)
    run = [row for row in table.rows if row.ours is not None]
    heads = ["paper"] if len(table.paper) < 2 else [f"paper {number}" for number in range(1, len(table.paper) + 1)]
    for head, one in zip(heads, table.paper, strict=False):
        yield f"  {head}: {one.setting}, {one.table}"
    several = len({row.run for row in table.rows}) > 1
    lead = ["run"] if several else []
    yield ""
    yield aligned(
        [
            [*lead, "task", "mode", *heads, f"ours: {table.setting}", "items"],
            *(
                [
                    *([row.run] if several else []),
                    row.title,
                    mode_title(row.mode),
                    *_paper(row.paper, table.paper, ""),
                    _ours(row.ours, row.percent),
                    f"{row.ours.items:,}" if row.ours else "",
                ]
                for row in run
            ),
        ],
        left=range(len(lead) + 2),
    )
    if left := len(table.rows) - len(run):
        yield f"{amount(left, 'row')} of the paper's table {'was' if left == 1 else 'were'} not run."
    if table.contrasts:
        yield "\nDifferences between modes, with paired 95 % intervals:"
        yield aligned(
            [
                [
                    *([one.run] if several else []),
                    one.title,
                    f"{mode_title(one.mode)} less {mode_title(one.reference)}",
                    *_paper(one.paper, table.paper, "+"),
                    _difference(one.ours, one.percent),
                ]
                for one in table.contrasts
            ],
            left=range(len(lead) + 2),
        )


def _others(table: ReproductionTable) -> Iterator[str]:
    """Lays out the methods that the paper compares with, which are not run here."""
    for one in table.paper:
        if one.others:
            known = {task for row in one.others.values() for task in row}
            tasks = sorted(known, key=lambda task: [*_TITLES, task].index(task))
            yield ""
            yield f"Other methods of the paper, not run here ({text(one.setting)}):"
            yield ""
            yield markdown_table(
                ["method", *(text(_TITLES.get(task, task)) for task in tasks)],
                [
                    [text(name), *(_paper([row.get(task)], [one], "")[0] for task in tasks)]
                    for name, row in one.others.items()
                ],
                left=(0,),
            )


def _mode(mode: str) -> str:
    """Writes a mode with its name beside it, for Markdown."""
    return text(mode_title(mode))


def _paper(numbers: Sequence[float | None], tables: Sequence[PaperTable], sign: str) -> list[str]:
    """Writes the paper's numbers, with as many decimals as are known."""
    if not tables:
        return ["not known"]
    decimals = (2 if one.precision == "exact" else 1 for one in tables)
    return [
        "not known" if number is None else f"{number:{sign}.{places}f}"
        for number, places in zip(numbers, decimals, strict=True)
    ]


def _ours(cell: Cell | None, percent: bool) -> str:
    if cell is None:
        return "not run"
    if cell.interval is None:
        return _score(cell.value, percent)
    low, high = _score(cell.interval.low, percent), _score(cell.interval.high, percent)
    return f"{_score(cell.value, percent)} ({low} to {high})"


def _difference(interval: Interval, percent: bool) -> str:
    scale = 100 if percent else 1
    value, low, high = (f"{scale * one:+.2f}" for one in (interval.value, interval.low, interval.high))
    return f"{value} ({low} to {high}){'' if interval.excludes_zero else ', within noise'}"


def _score(value: float, percent: bool) -> str:
    return f"{100 * value:.2f}" if percent else format_value(value)
