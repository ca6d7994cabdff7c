"""What is told beside answers, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from taia_hub.compare.comparison import Comparison
from taia_hub.compare.terminal import safe_text

if TYPE_CHECKING:
    from rich.table import Table


def figures(comparison: Comparison, reference: str) -> Table:
    """Makes a table of what is told beside the text, a row a mode; the others part from the mode `reference`.

    Raises:
        SettingError: If there is no answer of `reference`.
    """
    measured = all(answer.log_likelihoods for answer in comparison.answers)
    heads = ["mode", "tokens", "tokens/s", f"parts from {reference}"]
    heads += ["entropy", *(f"log-likelihood by {mode}" for mode in comparison.modes)] if measured else []
    rows = []
    for answer in comparison.answers:
        row = [answer.mode, str(len(answer.tokens)), _speed(answer.tokens_per_second)]
        row.append(_parting(comparison, answer.mode, reference))
        if measured:
            row.append(f"{sum(answer.entropy) / len(answer.entropy):.2f}" if answer.entropy else "")
            row += [f"{answer.log_likelihoods[mode]:.1f}" for mode in comparison.modes]
        rows.append(row)
    return _table(heads, rows)


def overview(comparisons: Sequence[tuple[str, Comparison]], reference: str) -> Table:
    """Makes a table of many prompts: how long each answer is, where it parts from a reference, and the mean speeds.

    The comparisons, each with the name of its prompt, are all under the same modes.
    """
    modes = comparisons[0][1].modes
    rows = []
    for name, comparison in comparisons:
        row = [name if len(name) <= 40 else f"{name[:39]}…"]
        for answer in comparison.answers:
            parting = _parting(comparison, answer.mode, reference)
            row.append(f"{len(answer.tokens)} tokens{', parts ' if parting else ''}{parting}")
        rows.append(row)
    speeds = mean_speeds([comparison for _, comparison in comparisons])
    rows.append(["mean tokens/s", *(_speed(speeds[mode]) for mode in modes)])
    return _table(["prompt", *modes], rows)


def mean_speeds(comparisons: Sequence[Comparison]) -> Mapping[str, float | None]:
    """Averages the tokens a second by mode, over comparisons under the same modes; None where no answer has two."""
    found: dict[str, float | None] = {}
    for mode in comparisons[0].modes:
        speeds = [speed for one in comparisons if (speed := one.answer(mode).tokens_per_second) is not None]
        found[mode] = sum(speeds) / len(speeds) if speeds else None
    return found


def _parting(comparison: Comparison, mode: str, reference: str) -> str:
    if mode == reference:
        return ""
    parting = comparison.parting(mode, reference)
    return "never" if parting.same else f"after {parting.token}"


def _speed(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for at, head in enumerate(heads):
        table.add_column(Text(safe_text(head)), justify="right" if at else "left")
    for row in rows:
        table.add_row(*(Text(safe_text(cell)) for cell in row))
    return table
