"""The search for updates that act as a whole or not at all: groups are dropped one after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from taia_hub.common.labels import Encoded
from taia_hub.results.tuning import Objective
from taia_hub.tuning.grouping import Grouping
from taia_hub.tuning.measured import Measure
from taia_hub.tuning.searching import Point


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

    def round(self, kept: Sequence[bool], rounds: int) -> Point:
        """Drops the groups of one of the `rounds` that are left."""
        acting = [at for at, one in enumerate(kept) if one]
        tried = [tuple(float(one and at != left) for at, one in enumerate(kept)) for left in acting]
        now, *after = self.sums([tuple(map(float, kept)), *tried])
        costs = sorted((_cost(now, one), at) for at, one in zip(acting, after, strict=True))
        dropped = {at for _, at in costs[: max(1, math.ceil(len(acting) / (rounds + 1)))]}
        cost = max(0.0, max(value for value, at in costs if at in dropped))
        weights = tuple(float(one and at not in dropped) for at, one in enumerate(kept))
        return Point(cost if math.isfinite(cost) else 0.0, weights, now.target)

    def sums(self, weights: Sequence[tuple[float, ...]]) -> list[Sums]:
        """Measures some weights on the search parts."""
        settings = [self.grouping.setting(one) for one in weights]
        target = self.measure(self.sides[0], settings, divergence=False)
        retain = self.measure(self.sides[1], settings, divergence=self.objective == "kl")
        lost = [one.divergence if self.objective == "kl" else one.loss for one in retain]
        return [Sums(one.loss, other) for one, other in zip(target, lost, strict=True)]


def _cost(now: Sums, after: Sums) -> float:
    """Returns the nats of target loss that a drop costs for a nat that it gives back."""
    cost, back = after.target - now.target, now.lost - after.lost
    if back <= 0:
        return math.inf if cost > 0 else 0.0
    return cost / back
