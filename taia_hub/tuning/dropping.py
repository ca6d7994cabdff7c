"""The search for updates that act as a whole or not at all: groups are dropped one after the other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from taia_hub.common.labels import Encoded
from taia_hub.results.tuning import Objective
from taia_hub.tuning.grouping import Grouping
from taia_hub.tuning.measured import Measure
from taia_hub.tuning.searching import Point

_LEAST_BACK = 0.1
"""The least that a drop counts as giving back, as a part of its equal share: the price of nearly nothing is noise."""


@dataclass(frozen=True)
class Sums:
    """Target loss and retention of some weights, in nats a token."""

    target: float
    lost: float


class Dropping:
    """Drops groups from `all`, those first that cost the least target loss for what they give back.

    Every round measures the drop of each group that is left, all of them as rows of one batch where the update allows
    it, and drops as many groups as makes the rounds come out even.
    """

    def __init__(
        self,
        measure: Measure,
        grouping: Grouping,
        target: Sequence[Encoded],
        retain: Sequence[Encoded],
        objective: Objective,
    ) -> None:
        self.measure, self.grouping, self.objective = measure, grouping, objective
        self.sides = (target, retain)
        self.computed = 0
        # ^ tokens of all calls, over all processes

    def round(self, kept: Sequence[bool], rounds: int) -> Point:
        """Drops the groups of one of the `rounds` that are left."""
        acting = [at for at, one in enumerate(kept) if one]
        weights = tuple(map(float, kept))
        now, *after = self.sums([weights, *(_dropped(weights, {at}) for at in acting)])
        least = max(_LEAST_BACK * abs(now.lost) / len(acting), 1e-12)
        costs = sorted((_price(now, one, least), at) for at, one in zip(acting, after, strict=True))
        dropped = {at: price for price, at in costs[: max(1, math.ceil(len(acting) / (rounds + 1)))]}
        return Point(max(0.0, *dropped.values()), _dropped(weights, dropped), now.target)

    def without(self, point: Point, groups: Sequence[int]) -> Point:
        """Drops those of some groups without which a point is better, at what a nat of retention was worth there."""
        single = [_dropped(point.weights, {group}) for group in groups]
        now, *after = self.sums([point.weights, *single])
        costs = [_cost(now, one, point.trade_off) for one in after]
        dropped = {group for group, cost in zip(groups, costs, strict=True) if cost < 0}
        if len(dropped) > 1:  # each is better without, and perhaps not without all
            together = self.sums([_dropped(point.weights, dropped)])[0]
            if _cost(now, together, point.trade_off) > min(costs):
                dropped = {groups[costs.index(min(costs))]}
        return dataclasses.replace(point, weights=_dropped(point.weights, dropped))

    def sums(self, weights: Sequence[tuple[float, ...]]) -> list[Sums]:
        """Measures some weights on the search parts."""
        settings = [self.grouping.setting(one) for one in weights]
        target_tokens, retain_tokens = (sum(len(row.input_ids) for row in side) for side in self.sides)
        base = retain_tokens if self.objective == "kl" else 0  # which the divergence is from
        self.computed += len(settings) * (target_tokens + retain_tokens) + base
        target = self.measure(self.sides[0], settings, divergence=False)
        retain = self.measure(self.sides[1], settings, divergence=self.objective == "kl")
        lost = [one.divergence if self.objective == "kl" else one.loss for one in retain]
        return [Sums(one.loss, other) for one, other in zip(target, lost, strict=True)]


def _dropped(weights: Sequence[float], groups: Collection[int]) -> tuple[float, ...]:
    return tuple(0.0 if at in groups else one for at, one in enumerate(weights))


def _cost(now: Sums, after: Sums, price: float) -> float:
    """Returns the nats of target loss that a drop costs, less what it gives back at a price."""
    return after.target - now.target - price * (now.lost - after.lost)


def _price(now: Sums, after: Sums, least: float) -> float:
    """Returns the nats of target loss that a drop costs for a nat that it gives back, or for the least that counts."""
    return (after.target - now.target) / max(now.lost - after.lost, least)
