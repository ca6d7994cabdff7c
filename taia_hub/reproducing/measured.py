"""Our numbers: the score of every task and mode with its bootstrap interval, and paired differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from taia_hub.results import Interval, Results, Row, summarise
from taia_hub.results.drawing import draw
from taia_hub.results.statistics import FEWEST, Resampled, combine
from taia_hub.results.summary import AVERAGE

BASE = "none"
"""Label of the setting that is the base model, bit for bit."""

DEPTH = 1
"""Members of a group are shown, members of its members (the subjects of MMLU) are not."""


@dataclass(frozen=True)
class Cell:
    """One of our numbers, as the task gives it, over a number of items.

    Its 95 % bootstrap interval is None for fewer than 10 items, and for scores that are no mean over items.
    """

    value: float
    interval: Interval | None
    items: int


@dataclass(frozen=True)
class Measured:
    """A task as measured: its row in the summary with the paired differences, and label of a setting to its number."""

    row: Row
    cells: dict[str, Cell]


def measure(results: Results) -> dict[str, Measured]:
    """Reads the numbers of a run out of its results: key of a task or group to its numbers, in the summary's order.

    Example:
        >>> from taia_hub.results import ModelIdentity
        >>> measure(Results(ModelIdentity("m", None, "b", None, None, "float32")))
        {}
    """
    rows = [row for row in summarise(results).rows if row.depth <= DEPTH]
    top = [row.key for row in rows if row.depth == 0 and row.higher_is_better and not _is_average(row.key)]
    found = {}
    for row in rows:
        labels = list(row.scores)
        if row.items < FEWEST:
            drawn = None
        elif _is_average(row.key):
            drawn = _combined(results, top, labels, pooled=False)
        else:
            drawn = _drawn(results, row.key, labels)
        found[row.key] = Measured(
            row,
            {
                label: Cell(row.scores[label].value, drawn.interval(index) if drawn else None, row.items)
                for index, label in enumerate(labels)
            },
        )
    return found


def with_base(results: Results, other: Results) -> Results:
    """Takes over the numbers of the base model from another run on the same base.

    They go into the tasks that lack them and are the same in both; nothing changes where the base models differ.
    """
    one, two = results.model, other.model
    if (one.base_model, one.base_revision, one.dtype) != (two.base_model, two.base_revision, two.dtype):
        return results
    for key, task in results.tasks.items():
        donor = other.tasks.get(key)
        if donor is None or BASE in task.modes or BASE not in donor.modes:
            continue
        if dataclasses.replace(donor, modes={}) == dataclasses.replace(task, modes={}):
            modes = {BASE: donor.modes[BASE], **task.modes}
            results = results.with_task(dataclasses.replace(task, modes=modes))
    return results


def _is_average(key: str) -> bool:
    return key.partition("@")[0] == AVERAGE


def _drawn(results: Results, key: str, labels: Sequence[str]) -> Resampled | None:
    """Draws the items of a task or group as the summary does."""
    if key in results.groups:
        group = results.groups[key]
        return _combined(results, group.tasks, labels, pooled=group.pooled)
    return draw(results.tasks[key], labels)


def _combined(results: Results, keys: Sequence[str], labels: Sequence[str], *, pooled: bool) -> Resampled | None:
    parts = [_drawn(results, key, labels) for key in keys]
    known = [part for part in parts if part is not None]
    return combine(known, pooled=pooled) if known and len(known) == len(parts) else None
