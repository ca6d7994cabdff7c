"""The work of one tuning: the scale of the problem, the search within the budget, the report, the choice."""

from __future__ import annotations

import dataclasses
import datetime
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taia_hub.common.environment import installed_versions
from taia_hub.common.progress import Progress
from taia_hub.results.identity import ModelIdentity
from taia_hub.results.tuning import Objective, Tuned
from taia_hub.retaining import Losses
from taia_hub.switch.settings import Setting, parse_setting
from taia_hub.tuning.choosing import Proposal, judge
from taia_hub.tuning.dropping import Dropping
from taia_hub.tuning.gradients import Gradients
from taia_hub.tuning.grouping import Grouping
from taia_hub.tuning.items import Side
from taia_hub.tuning.keeping import Keeper
from taia_hub.tuning.measured import Measure
from taia_hub.tuning.processes import Processes
from taia_hub.tuning.searching import STEPS, Plan, Point, Search, State, affordable

_COMMON = (0.25, 0.5, 0.75)
"""The weights at which `all` is a candidate (WiSE-FT, arXiv 2109.01903)."""

_SCALED = 16
"""Items a side that tell the scale of the problem, and what a point is without a group that acts as a whole."""

_NAMED = 4
"""So many groups a note names."""


@dataclass(frozen=True)
class Asked:
    """What was asked for, as of `tune`."""

    grouping: Grouping
    objective: Objective
    points: int
    seed: int
    allow_extrapolation: bool
    budget: float | None

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest weight."""
        return (-2.0, 2.0) if self.allow_extrapolation else (0.0, 1.0)

    def to_json(self) -> dict[str, Any]:
        """Returns what a result depends on, as JSON values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del values["budget"]  # a search that was interrupted may get more time
        return {**values, "grouping": self.grouping.by}


class Work:
    """One tuning of a loaded model, which its caller has put into evaluation."""

    def __init__(
        self,
        model: Any,
        identity: ModelIdentity,
        asked: Asked,
        target: Side,
        retain: Side,
        processes: Processes,
        progress: Progress | None,
        keeper: Keeper,
        began: float,
    ) -> None:
        self.identity, self.asked, self.target, self.retain = identity, asked, target, retain
        self.processes, self.keeper = processes, keeper
        self.progress = progress if processes.rank == 0 else None
        self.measure = Measure(model, processes)
        self.gradients = Gradients(model, asked.grouping, processes)
        self.before = float((keeper.state or {}).get("seconds", 0.0))
        self.began = began
        self.held = [at for at, whole in enumerate(asked.grouping.whole) if whole]
        self.whole = len(self.held) == len(asked.grouping.groups)
        # ^ the groups that act as a whole or not at all, and whether all do
        self.complete = True
        self.steps = self.tokens = 0

    @property
    def seconds(self) -> float:
        """How long the tuning has taken, with the parts before it was interrupted."""
        return self.before + time.monotonic() - self.began

    def run(self) -> Tuned:
        """Searches, measures every candidate on the report part, and chooses."""
        found = self.drop() if self.whole else self.descend()
        proposals = self.proposals(found)
        judged = judge(proposals, *self.report(proposals), objective=self.asked.objective, seed=self.asked.seed)
        return Tuned(
            model=self.identity,
            objective=self.asked.objective,
            by=self.asked.grouping.by,
            groups=self.asked.grouping.groups,
            candidates=judged.candidates,
            choice=judged.choice,
            target=self.target.facts,
            retain=self.retain.facts,
            seed=self.asked.seed,
            steps=self.steps,
            tokens=self.tokens,
            seconds=round(self.seconds, 3),
            versions=installed_versions(),
            date=datetime.date.today().isoformat(),
            complete=self.complete,
            allow_extrapolation=self.asked.allow_extrapolation,
            notes=self.notes,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of updates that act as a whole."""
        if self.whole:
            return ("The update takes only 0 or 1: groups were dropped one after the other.",)
        labels = [self.asked.grouping.groups[at].label for at in self.held]
        named = ", ".join(labels[:_NAMED]) + (f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else "")
        return (f"What takes only 0 or 1 stayed while the others were searched, then was tried without: {named}.",) * (
            len(labels) > 0
        )

    def descend(self) -> list[Point]:
        """Returns the points of the descent."""
        asked, known = self.asked, self.keeper.state
        search = Search(self.gradients, self.target.search, self.retain.search, asked.objective, asked.seed)
        if known is None or "search" not in known:
            plan = self.plan(search)
            state = State.fresh(plan.start, asked.bounds)
        else:
            plan, state = self.take_up(search, known)
        total = state.descent.steps + plan.total_from(len(state.found))

        def step_done(steps: int) -> bool:
            again = plan.steps_of(0) if len(state.found) == plan.points else 0  # the first point once more
            self.show("search", steps, total + again)
            return not self.is_over(plan.report)

        def point_done(state: State) -> None:
            self.keep(search=state.to_json(), plan=dataclasses.asdict(plan))

        ended = search.run(state, plan, step_done=step_done, point_done=point_done)
        self.complete = ended and len(state.found) == asked.points and plan.steps == STEPS
        self.steps, self.tokens = state.descent.steps, state.tokens
        return self.without(state.found) if self.held else state.found

    def without(self, found: Sequence[Point]) -> list[Point]:
        """Tries points without each of the groups that act as a whole, which the descent left at 1."""
        some = self.target.search[:_SCALED], self.retain.search[:_SCALED]
        dropping = Dropping(self.measure, self.asked.grouping, *some, self.asked.objective)
        points = [dropping.without(one, self.held) for one in found]
        self.tokens += dropping.computed
        return points

    def keep(self, **facts: Any) -> None:
        """Writes down how far the work is."""
        self.keeper.keep({**facts, "budget": self.asked.budget, "seconds": self.seconds})

    def take_up(self, search: Search, known: Mapping[str, Any]) -> tuple[Plan, State]:
        """Goes on from what was found; with another budget than before, by a plan of its own.

        Where that has more steps a point, all points are searched again, from the weights of the first one that was
        found: those of too few steps are no part of a whole front.
        """
        plan = Plan(**{**known["plan"], "start": tuple(known["plan"]["start"])})
        state = State.from_json(known["search"], self.asked.bounds)
        if known.get("budget") == self.asked.budget:
            return plan, state
        more = self.plan(search)
        if more.steps > plan.steps:
            return more, State.fresh(state.found[0].weights, self.asked.bounds)
        state.reopen()
        return self.plan(search, plan.steps, len(state.found)), state

    def plan(self, search: Search, steps: int = STEPS, found: int = 0) -> Plan:
        """Plans a search by the scale of the problem, and cuts it to the budget, beside what is found already."""
        forward, gain, start = self.scale()
        plan = Plan(self.asked.points, steps, start, gain)
        if self.asked.budget is None:
            return plan
        began = time.monotonic()
        search.step(State.fresh(start, self.asked.bounds), math.inf, 0.0, gain)
        per_step = time.monotonic() - began
        report = forward * self.tokens_to_report()
        left = 60 * self.asked.budget - self.seconds - report
        left, per_step, report = self.processes.first((left, per_step, report))
        left += per_step * (plan.total - plan.total_from(found))
        return affordable(dataclasses.replace(plan, report=report), left, per_step)

    def scale(self) -> tuple[float, float, tuple[float, ...]]:
        """Looks at some target items: how long they take, and where there is something to find.

        Returns:
            The seconds that a token takes under one setting, the nats a token that count as a gain, and the weights of
            the plain mode, or of `all` at a common weight, that fits them best.
        """
        began, some = time.monotonic(), self.target.search[:_SCALED]
        settings = [parse_setting(mode) for mode in ("none", "all", "attention", "ffn")]
        if not self.whole:
            settings += map(self.common, _COMMON)
        losses = [one.loss for one in self.measure(some, settings, divergence=False)]
        seconds = (time.monotonic() - began) / len(settings) / sum(len(row.input_ids) for row in some)
        best = min(range(1, len(settings)), key=losses.__getitem__)
        gain = max(abs(losses[0] - losses[best]), losses[0] / 100)
        start = self.asked.grouping.of_setting(settings[best])
        return seconds, gain, tuple(1.0 if at in self.held else one for at, one in enumerate(start))

    def tokens_to_report(self) -> int:
        """Returns how many tokens the report computes, about."""
        settings = 4 + len(_COMMON) + self.asked.points
        return settings * sum(len(row.input_ids) for side in (self.target, self.retain) for row in side.report)

    def is_over(self, report: float) -> bool:
        """Tells whether the time is over that the search has; the first process says so for all."""
        if self.asked.budget is None:
            return False
        return bool(self.processes.first(self.seconds > 60 * self.asked.budget - report))

    def drop(self) -> list[Point]:
        """Returns the points of an update that acts as a whole: groups go one after the other."""
        asked, known = self.asked, self.keeper.state or {}
        dropping = Dropping(self.measure, asked.grouping, self.target.search, self.retain.search, asked.objective)
        found = [Point.from_json(one) for one in known.get("found", ())]
        rounds = known.get("rounds")
        if rounds is None or known.get("budget") != asked.budget:
            planned = self.rounds()
            if rounds is None or planned > rounds:  # more of them drop less in each: from the start
                rounds, found = planned, []
            rounds = max(len(found), min(rounds, len(found) + planned))
        dropping.computed = known["tokens"] if found else 0
        kept = found[-1].weights if found else (1.0,) * len(asked.grouping.groups)
        for number in range(len(found), rounds):
            found.append(dropping.round([bool(one) for one in kept], rounds - number))
            kept = found[-1].weights
            self.show("search", number + 1, rounds)
            facts = {"found": [dataclasses.asdict(one) for one in found], "rounds": rounds}
            self.keep(**facts, tokens=dropping.computed)
        self.steps, self.tokens = len(found), dropping.computed
        self.complete = rounds == self.most_rounds
        return found

    @property
    def most_rounds(self) -> int:
        """How many rounds of dropping there are without a budget: the last group stays, or it would be `none`."""
        return min(self.asked.points, len(self.asked.grouping.groups) - 1)

    def rounds(self) -> int:
        """Plans how many rounds of dropping the budget has room for."""
        if self.asked.budget is None or not self.most_rounds:
            return self.most_rounds
        forward = self.scale()[0]
        per_round = forward * self.tokens_to_search() * (1 + len(self.asked.grouping.groups))
        left = 60 * self.asked.budget - self.seconds - forward * self.tokens_to_report()
        left, per_round = self.processes.first((left, per_round))
        rounds = int(max(0.0, left / per_round))
        if not rounds:
            affordable(Plan(1, 1, (), 0.0), left, per_round)  # says what is missing
        return min(rounds, self.most_rounds)

    def tokens_to_search(self) -> int:
        """Returns how many tokens the search parts have."""
        return sum(len(row.input_ids) for side in (self.target, self.retain) for row in side.search)

    def proposals(self, found: Sequence[Point]) -> list[Proposal]:
        """Returns the candidates: plain modes, `all` at common weights, and what was found; none of them twice."""
        grouping = self.asked.grouping
        made = [Proposal(mode, "mode", parse_setting(mode), ()) for mode in ("none", "all", "attention", "ffn")]
        for weight in () if self.whole else _COMMON:
            made.append(Proposal(f"all at {weight:g}", "common", self.common(weight), ()))
        for point in found:
            made.append(Proposal("", "tuned", grouping.setting(point.weights), (), point.trade_off))
        kept: dict[tuple[float, ...], Proposal] = {}
        for one in made:
            weights = one.setting.weights(grouping.sites)
            if weights not in kept:
                label = one.label or f"tuned {1 + sum(other.kind == 'tuned' for other in kept.values())}"
                kept[weights] = dataclasses.replace(one, label=label, weights=grouping.of_setting(one.setting))
        order = {"none": 0, "attention": 1, "ffn": 2, "all": 3}
        return sorted(kept.values(), key=lambda one: order.get(one.label, 4))

    def report(self, proposals: Sequence[Proposal]) -> tuple[tuple[Losses, ...], tuple[Losses, ...]]:
        """Measures the candidates on the items that the search has not seen."""
        settings = [one.setting for one in proposals]
        sides = self.target.report, self.retain.report
        total = sum(map(len, sides))

        def told(done: int, of: int) -> None:
            self.show("report", done * self.processes.count, total)

        def told_more(done: int, of: int) -> None:
            self.show("report", len(sides[0]) + done * self.processes.count, total)

        target = self.measure(sides[0], settings, divergence=False, told=told)
        return target, self.measure(sides[1], settings, told=told_more)

    def show(self, stage: str, done: int, total: int) -> None:
        """Tells how far a stage is."""
        if self.progress:
            self.progress(stage, min(done, total), total)

    def common(self, weight: float) -> Setting:
        """Returns `all` at one weight, but for what acts as a whole."""
        if not self.held:
            return parse_setting({"*": weight})
        groups = range(len(self.asked.grouping.groups))
        return self.asked.grouping.setting([1.0 if at in self.held else weight for at in groups])
