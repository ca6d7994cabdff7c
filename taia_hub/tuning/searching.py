"""The search: from the best plain mode to a few levels of what may be lost, each warm-started from the one before."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from taia_hub.common.labels import Encoded
from taia_hub.errors import ConfigError
from taia_hub.results.tuning import Objective
from taia_hub.tuning.descent import Descent, roughness
from taia_hub.tuning.gradients import Gradients

STEPS = 7
"""Steps of a point: fewer do not arrive, more hardly find anything."""

_FIRST = 1.5
"""How many times as many steps the first point has: the others come from where they nearly are."""

_FEWEST_STEPS = 4

_PART = 12
"""So many steps see all items once."""

_MOST, _LEAST = 0.5, 0.05
"""What the second and the last point may lose, as parts of the first one's; those between are equal ratios apart."""

_STIFF = 1.5
"""What it costs to be above a level by a factor of e, in what `all` gains: twice as much oscillates."""

_STUCK = 0.2
"""The first point is searched again if another one fits the target better by more than this part of what is gained."""

_COMPARED = 16
"""Items that two points are compared on."""

_SMOOTH = 0.03
"""What neighbouring layers cost that are 0 and 1, as a part of what `all` gains: enough that noise fits nothing."""


@dataclass(frozen=True)
class Point:
    """A point of the search.

    Attributes:
        trade_off: What a nat of retention was worth there, in nats of target loss.
        weights: The (G,) weights.
        target: Target loss on the way there, in nats a token.
        short: Whether the budget ended the way there before its last step.
    """

    trade_off: float
    weights: tuple[float, ...]
    target: float
    short: bool = False

    @classmethod
    def from_json(cls, value: Any) -> Point:
        """Makes of JSON values the point that gave them by `dataclasses.asdict`."""
        return cls(**{**value, "weights": tuple(value["weights"])})


@dataclass(frozen=True)
class Plan:
    """How a search goes.

    Attributes:
        points: Number of points: the first one fits the target best, whatever is lost, and the others lose less and
            less.
        steps: Steps of each point but the first, which has more.
        start: The (G,) weights that it begins at.
        gain: Nats a token of target loss that count as much; it is the scale of the problem, so that the search is the
            same with whatever loss.
        report: How many seconds the report is expected to take after the search, where a budget needs to know.
    """

    points: int
    steps: int
    start: tuple[float, ...]
    gain: float
    report: float = 0.0

    def steps_of(self, point: int) -> int:
        """Returns the steps of a point, by its number from 0."""
        return self.steps if point else round(_FIRST * self.steps)

    @property
    def total(self) -> int:
        """Steps of all points."""
        return self.total_from(0)

    def total_from(self, point: int) -> int:
        """Returns the steps of a point, by its number from 0, and of all behind it."""
        return sum(map(self.steps_of, range(point, self.points)))

    def part(self, point: int) -> float:
        """Returns what a point after the first may lose, as a part of what that one does.

        Example:
            >>> [Plan(3, 8, (1.0,), 0.5).part(point) for point in (1, 2)]
            [0.5, 0.05]
        """
        return float(_MOST * (_LEAST / _MOST) ** ((point - 1) / max(self.points - 2, 1)))


@dataclass
class State:
    """What a search has found and how it goes on; `to_json` holds all of it, so that nothing is done twice.

    `lost` are the retentions of the first point's steps, whose last ones tell what the levels are parts of; `again` is
    whether the first point was searched again.
    """

    descent: Descent
    found: list[Point] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    tokens: int = 0
    again: bool = False

    @classmethod
    def fresh(cls, weights: Sequence[float], bounds: tuple[float, float]) -> State:
        """Begins at the (G,) weights."""
        return cls(Descent(np.array(weights, dtype=np.float64), bounds))

    def reopen(self) -> None:
        """Forgets a point that was cut short, so that it is searched again."""
        if self.found and self.found[-1].short:
            del self.found[-1]

    def to_json(self) -> dict[str, Any]:
        """Returns the state as JSON values."""
        found = [dataclasses.asdict(one) for one in self.found]
        rest = {"lost": self.lost, "tokens": self.tokens, "again": self.again}
        return {"descent": self.descent.to_json(), "found": found, **rest}

    @classmethod
    def from_json(cls, value: Any, bounds: tuple[float, float]) -> State:
        """Takes up a search where `to_json` wrote it down."""
        descent = Descent.from_json(value["descent"], bounds)
        found = [Point.from_json(one) for one in value["found"]]
        return cls(descent, found, list(value["lost"]), int(value["tokens"]), bool(value["again"]))


class Search:
    """A descent in target loss + smoothness + a penalty on what is lost above a level, point by point.

    With a fixed price of retention, a sum of both losses, most prices would lead to the same few points: retention is
    lost about in proportion to the weights, and what is gained nearly so. A level is reached wherever it lies. The
    penalty is a number of `all`'s gains times the logarithm of what is lost over the level, so that it has no scale.

    Each step sees a part of the items; which one depends on its number and the seed alone.
    """

    def __init__(
        self,
        gradients: Gradients,
        target: Sequence[Encoded],
        retain: Sequence[Encoded],
        objective: Objective,
        seed: int,
    ) -> None:
        self.gradients, self.objective, self.seed = gradients, objective, seed
        self.sides = (target, retain)
        held = [at for at, whole in enumerate(gradients.grouping.whole) if whole]
        pairs = [pair for pair in gradients.grouping.neighbours if not set(pair) & set(held)]
        self.neighbours = np.array(pairs, dtype=np.int64).reshape(-1, 2)

    def run(
        self,
        state: State,
        plan: Plan,
        *,
        step_done: Callable[[int], bool] = lambda steps: True,
        point_done: Callable[[State], None] = lambda state: None,
    ) -> bool:
        """Goes on from `state`, which changes, to the last point; returns whether it came to its end.

        `step_done` is called with the number of steps of this search after each, and ends it by False: the point that
        it is at then counts if half of its steps are done. `point_done` gets the state after each point.
        """
        for point in range(len(state.found), plan.points):
            found, going = self.descend(state, self.level(state, plan, point), plan.steps_of(point), plan, step_done)
            if found:
                state.found.append(found)
                point_done(state)
            if not going:
                return False
        better = state.found[0] if state.found[0].short else self.better(state, plan.gain)
        if better:
            state.descent.weights = np.array(better.weights)
            found, _ = self.descend(state, math.inf, plan.steps_of(0), plan, step_done)
            if not found:
                return False
            state.found[0], state.again = found, True
            point_done(state)
        return not state.found[0].short

    def better(self, state: State, gain: float) -> Point | None:
        """Finds a point that fits the target much better than the first one, which then was stuck; None without one."""
        found = state.found
        if state.again:
            return None
        best = min(found, key=lambda one: one.target)
        if best.target > found[0].target - _STUCK * gain:
            return None
        before = self.gradients.computed
        some = self.sides[0][:_COMPARED]  # their own losses are of other items
        first, other = (self.gradients.loss(some, np.array(one.weights)).value for one in (found[0], best))
        state.tokens += self.gradients.computed - before
        return best if other < first - _STUCK * gain else None

    def descend(
        self, state: State, level: float, steps: int, plan: Plan, step_done: Callable[[int], bool]
    ) -> tuple[Point | None, bool]:
        """Goes to a level; returns the point there, if half of the steps were done, and whether to go on."""
        seen: list[tuple[float, float]] = []
        going = True
        while going and len(seen) < steps:
            seen.append(self.step(state, level, len(seen) / steps, plan.gain))
            going = step_done(state.descent.steps)
        if 2 * len(seen) < steps:
            return None, going
        prices, targets = np.array(seen[len(seen) // 2 :]).T
        weights, short = tuple(state.descent.weights.tolist()), len(seen) < steps
        return Point(float(prices.mean()), weights, float(targets.mean()), short), going

    def level(self, state: State, plan: Plan, point: int) -> float:
        """Returns the nats a token that a point may lose."""
        if not point:
            return math.inf
        late = state.lost[-max(1, len(state.lost) // 3) :]
        return max(sum(late) / len(late), plan.gain / 100) * plan.part(point)

    def step(self, state: State, level: float, done: float, gain: float) -> tuple[float, float]:
        """Takes one step; returns what a nat of retention was worth in it, in nats of target loss, and that loss."""
        descent = state.descent
        target, retain = (self.part(side, descent.steps) for side in (0, 1))
        before = self.gradients.computed
        one = self.gradients.loss(target, descent.weights)
        other = self.gradients.retention(retain, descent.weights, self.objective)
        state.tokens += self.gradients.computed - before
        if not state.found:
            state.lost.append(other.value)
        price = _STIFF * gain * math.log(other.value / level) / other.value if other.value > level else 0.0
        smooth = roughness(descent.weights, self.neighbours)[1]
        descent.step(one.gradient + price * other.gradient + _SMOOTH * gain * smooth, done)
        return price, one.value

    def part(self, side: int, step: int) -> list[Encoded]:
        """Returns the items of a side that a step sees: each comes once in twelve steps, or in as many as there are."""
        items = self.sides[side]
        parts = min(_PART, len(items))
        order = np.random.default_rng([self.seed, side, step // parts]).permutation(len(items))
        return [items[at] for at in order[step % parts :: parts]]


def affordable(plan: Plan, seconds: float, per_step: float) -> Plan:
    """Cuts a plan to the seconds that there are, where a step takes `per_step`: first its steps, then its points.

    Raises:
        ConfigError: If there is no time for a single step.

    Example:
        >>> cut = [affordable(Plan(5, 8, (1.0,), 0.5), seconds, 1.0) for seconds in (26, 3)]
        >>> [(plan.points, plan.steps) for plan in cut]
        [(5, 4), (1, 2)]
    """
    if seconds < per_step:
        raise ConfigError(
            f"The budget is too small: beside the report, {max(seconds, 0) / 60:.2g} minutes are left, and one step of "
            f"the search takes {per_step:.3g} s.",
            "Give a larger --budget, fewer items, or coarser groups.",
        )
    fewest = min(_FEWEST_STEPS, plan.steps)
    tried = [(plan.points, steps) for steps in range(plan.steps, fewest, -1)]
    tried += [(points, fewest) for points in range(plan.points, 1, -1)]
    tried += [(1, steps) for steps in range(fewest, 0, -1)]
    cut = [dataclasses.replace(plan, points=points, steps=steps) for points, steps in tried]
    return next((one for one in cut if one.total * per_step <= seconds), cut[-1])
