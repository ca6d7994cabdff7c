"""From results to tables: the best and the second best mode a task, what is within noise, and which mode to use."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from taia_hub.common.shown import Shown
from taia_hub.results.drawing import draw
from taia_hub.results.format import Results, TaskResults
from taia_hub.results.retained import HOLDOUT, is_retention, sentences
from taia_hub.results.statistics import FEWEST, RESAMPLES, Interval, Resampled, Score, combine
from taia_hub.results.tradeoff import Tradeoff, tradeoff

REFERENCES = ("none", "all")
"""The modes that every other one is compared with: the base model and the vanilla fine-tune."""

AVERAGE = "average"


@dataclass(frozen=True)
class Row:
    """One row of the table: a task, a group, or the average.

    Attributes:
        key: Key of the task or group, or `"average"` (`"average@3"` for tasks at 3 shots).
        title: The name that tables show.
        num_fewshot: Number of examples in the prompt, or None where the tasks of a group differ.
        metric: The metric, without lm-eval's name of a filter where that is `none`.
        items: Number of items.
        higher_is_better: Whether a higher score is better.
        depth: 0 for a row of its own, 1 for a member of the group above, and so on.
        scores: Label of a setting to its score.
        differences: `(label, reference)` to the score of the setting less that of the reference, with its paired 95 %
            interval; only where every item has a value and there are at least 10 items. `all` is compared with `none`
            and not the other way round.
        best: Labels with the best score, alone or tied; none of a row of retention, where the base wins by what it is.
        second: Labels with the second best score.
        within_noise: Labels beside the best whose difference from it may be noise (its interval holds zero, or there
            is none).
    """

    key: str
    title: str
    num_fewshot: int | None
    metric: str
    items: int
    higher_is_better: bool
    depth: int
    scores: Mapping[str, Score]
    differences: Mapping[tuple[str, str], Interval] = field(default_factory=dict)
    best: tuple[str, ...] = ()
    second: tuple[str, ...] = ()
    within_noise: tuple[str, ...] = ()

    def place(self, label: str) -> int | None:
        """Returns 1 for the best setting and 2 for the second best; None for any other, and for those that are tied."""
        if (label,) == self.best:
            return 1
        return 2 if (label,) == self.second and len(self.best) == 1 else None


@dataclass(frozen=True)
class Recommendation:
    """Which mode to use, as far as the results tell: the best of the average, or of the only task (`row`).

    `within_noise` are the labels of settings that may be as good, `tied` those of them with the very same score.
    """

    mode: str
    row: Row
    within_noise: tuple[str, ...]
    tied: tuple[str, ...] = ()

    @property
    def tells_nothing(self) -> bool:
        """Whether all settings have the same score."""
        return len(self.row.best) == len(self.row.scores)


@dataclass(frozen=True, repr=False)
class Summary(Shown):
    """Results as a table.

    Attributes:
        modes: Labels of the settings, in the order of the table.
        rows: Groups before their tasks, the average last.
        retained: What each mode keeps of the base, in sentences; empty where that was not measured.
        traded: What each mode gains on a training's own held-out items and keeps, which recommends where no other task
            does; None where neither was measured.
    """

    modes: tuple[str, ...]
    rows: tuple[Row, ...]
    retained: tuple[str, ...] = ()
    traded: Tradeoff | None = None

    @property
    def recommendation(self) -> Recommendation | None:
        """Which mode to use; None while fewer than two modes, or tasks that cannot be averaged, were evaluated.

        What a mode keeps of the base decides nothing: the base keeps all. Nor do a training's own held-out items: they
        are weighed against that, in `traded`.
        """
        own = [row for row in self.rows if row.depth == 0 and len(row.scores) > 1 and not self.is_weighed(row)]
        averages = [row for row in own if row.key.partition("@")[0] == AVERAGE]
        deciding = averages if averages else own
        if len(deciding) != 1:
            return None
        (row,) = deciding
        # The paper's own choice wins a tie: what is published acts as its name says.
        mode = "attention" if "attention" in row.best else row.best[0]
        others = tuple(label for label in row.best if label != mode)
        return Recommendation(mode, row, others + row.within_noise, others)

    def is_weighed(self, row: Row) -> bool:
        """Tells whether what a row says is weighed in `traded`, and decides nothing alone."""
        return is_retention(row.key) or (self.traded is not None and row.key == HOLDOUT)


def summarise(results: Results, *, resamples: int = RESAMPLES, seed: int = 0) -> Summary:
    """Turns results into rows with scores, differences and ranks.

    Args:
        results: What was evaluated.
        resamples: Number of bootstrap draws.
        seed: Of the draws.

    Returns:
        The table.

    Example:
        >>> from taia_hub.results.format import ModelIdentity
        >>> summarise(Results(ModelIdentity("m", None, "b", None, None, "float32"))).rows
        ()
    """
    return _Table(results, resamples, seed).summary()


class _Table:
    """Builds rows from the tasks up; `drawn` and `asked` hold what a row that joins others needs of them."""

    def __init__(self, results: Results, resamples: int, seed: int) -> None:
        self.results, self.resamples, self.seed = results, resamples, seed
        self.drawn: dict[str, Resampled] = {}
        self.asked: dict[str, int | None] = {}
        self.members = {name for group in results.groups.values() for name in group.tasks}

    def summary(self) -> Summary:
        top = [key for key in (*self.results.groups, *self.results.tasks) if key not in self.members]
        rows = [row for key in top for row in self.rows(key, 0)]
        tasks = [task for task in self.results.tasks.values() if is_retention(task.name)]
        lines = [line for task in tasks for line in sentences(task)]
        traded = tradeoff(self.results, resamples=self.resamples, seed=self.seed)
        return Summary(self.results.modes, (*rows, *self.averages(rows)), tuple(lines), traded)

    def rows(self, key: str, depth: int) -> list[Row]:
        """Returns the row of a task, or that of a group before those of its members."""
        group = self.results.groups.get(key)
        if group is None:
            task = self.results.tasks.get(key)  # None while an interrupted run has not come to it
            return [self.of_task(task, depth)] if task and task.modes and task.items else []
        members = [self.rows(name, depth + 1) for name in group.tasks]
        heads = [rows[0] for rows in members if rows]
        complete = len(heads) == len(members)
        joined = self.joined(key, group.title, heads, pooled=group.pooled, depth=depth) if complete else None
        if joined is None:  # unlike tasks: each stands for itself
            members = [self.rows(name, depth) for name in group.tasks]
        return [*([joined] if joined else []), *(row for rows in members for row in rows)]

    def of_task(self, task: TaskResults, depth: int) -> Row:
        labels = [label for label in self.results.modes if label in task.modes]
        modes = [task.modes[label] for label in labels]
        self.asked[task.key] = task.fewshot_asked
        if drawn := draw(task, labels, resamples=self.resamples, seed=self.seed):
            self.drawn[task.key] = drawn
        scores = {
            label: Score(mode.scores[task.metric], None, len(task.items))
            for label, mode in zip(labels, modes, strict=True)
        }
        metric = task.metric.removesuffix(",none")
        row = Row(task.key, task.title, task.num_fewshot, metric, len(task.items), task.higher_is_better, depth, scores)
        row = _judged(row, drawn)
        return dataclasses.replace(row, best=(), second=(), within_noise=()) if is_retention(task.name) else row

    def joined(self, key: str, title: str, rows: Sequence[Row], *, pooled: bool, depth: int) -> Row | None:
        """Puts rows together in the modes that all of them have.

        None where they are too unlike: no mode in common, another direction or another scale.
        """
        labels = [label for label in self.results.modes if all(label in row.scores for row in rows)]
        alike = len({row.higher_is_better for row in rows}) == 1
        if not labels or not alike or not all(row.key in self.drawn and _is_share(row) for row in rows):
            return None
        parts = [self.drawn[row.key].only([list(row.scores).index(label) for label in labels]) for row in rows]
        self.drawn[key] = drawn = combine(parts, pooled=pooled)
        self.asked[key] = self.asked[rows[0].key]
        shots, metrics = {row.num_fewshot for row in rows}, {row.metric for row in rows}
        metric = metrics.pop() if len(metrics) == 1 else "mean of the tasks' metrics"
        shot = shots.pop() if len(shots) == 1 else None
        scores = {label: drawn.score(index) for index, label in enumerate(labels)}
        row = Row(key, title, shot, metric, drawn.items, rows[0].higher_is_better, depth, scores)
        return _judged(row, drawn)

    def averages(self, rows: Sequence[Row]) -> list[Row]:
        """Averages the rows at depth 0, for each number of shots that was asked for apart from the others."""
        if self.members - self.results.groups.keys() - self.results.tasks.keys():
            return []  # of an interrupted run: the average would change with every task
        by_shots: dict[int | None, list[Row]] = {}
        for row in rows:
            if row.depth == 0 and row.higher_is_better:
                by_shots.setdefault(self.asked[row.key], []).append(row)
        found = []
        for shots, alike in by_shots.items():
            if len(alike) > 1:
                key, title = (AVERAGE, "Average") if shots is None else (f"{AVERAGE}@{shots}", f"Average, {shots}-shot")
                found.append(self.joined(key, title, alike, pooled=False, depth=0))
        return [row for row in found if row]


def _judged(row: Row, drawn: Resampled | None) -> Row:
    """Ranks the scores of a row; with draws they get standard errors, and their differences intervals."""
    labels = list(row.scores)
    scores = {label: drawn.score(index) for index, label in enumerate(labels)} if drawn else row.scores
    best, second = _ranked({label: score.value for label, score in scores.items()}, row.higher_is_better)
    if drawn is None or drawn.items < FEWEST:  # nothing can be told apart
        close = tuple(label for label in labels if label not in best)
        return dataclasses.replace(row, scores=scores, best=best, second=second, within_noise=close)
    first = labels.index(best[0])
    close = tuple(
        label
        for index, label in enumerate(labels)
        if label not in best and not drawn.difference(first, index).excludes_zero
    )
    differences = {
        (label, reference): drawn.difference(index, labels.index(reference))
        for index, label in enumerate(labels)
        for reference in REFERENCES
        if reference in labels and reference != label and (label, reference) != REFERENCES
    }
    return dataclasses.replace(
        row, scores=scores, differences=differences, best=best, second=second, within_noise=close
    )


def _ranked(values: Mapping[str, float], higher_is_better: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the labels with the best and the second best value; tied ones stand together."""
    values = {label: round(value, 12) for label, value in values.items()}  # sums in another order are no difference
    distinct = sorted(set(values.values()), reverse=higher_is_better)
    ranks = [tuple(label for label, value in values.items() if value == wanted) for wanted in distinct[:2]]
    return ranks[0], ranks[1] if len(ranks) > 1 else ()


def _is_share(row: Row) -> bool:
    return all(0 <= score.value <= 1 for score in row.scores.values())
