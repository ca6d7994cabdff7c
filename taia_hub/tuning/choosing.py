"""From losses on the report part to candidates with intervals, the front, and the one to use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from taia_hub.results.statistics import RESAMPLES, Interval, resample
from taia_hub.results.text import format_difference
from taia_hub.results.tuning import Candidate, Choice, Kind, Objective
from taia_hub.retaining import Losses
from taia_hub.switch.modes import mode_title
from taia_hub.switch.settings import Setting

_WORTH = 0.1
"""What a setting of many weights has to gain or to save to be worth it, as a part of what the plain one gains or loses;
what is surely less than this part counts as no difference."""

_LEAST_GAIN = 0.2
"""The least that counts as a mode's gain, as a part of the base's loss: of nothing gained a tenth is soon more."""


@dataclass(frozen=True)
class Proposal:
    """A setting to be measured; its fields are as of `Candidate`."""

    label: str
    kind: Kind
    setting: Setting
    weights: tuple[float, ...]
    trade_off: float | None = None


@dataclass(frozen=True)
class Judged:
    """The candidates as they were proposed, with what was measured, and which one to use."""

    candidates: tuple[Candidate, ...]
    choice: Choice


def judge(
    proposals: Sequence[Proposal],
    target: Sequence[Losses],
    retain: Sequence[Losses],
    *,
    objective: Objective,
    seed: int,
    resamples: int = RESAMPLES,
) -> Judged:
    """Gives M proposals, `none` and `all` among them, their intervals by the paired bootstrap over items, and chooses.

    First a plain mode is chosen: of those that gain over the base beyond noise, what keeps the most among those that
    fit the target as well as the best, to within a tenth of what that one gains; the base where none gains.

    Then what was tuned, as far as it is better than that mode, and than the plain one that fits best, beyond noise: it
    fits the target better, and keeps the base as well, to within a tenth of what the plain mode loses, or gains a tenth
    more than that; or it loses a tenth less, and fits the target as well, to within a tenth of what the plain mode
    gains. "As well, to within" is that it is not worse beyond noise, and that the interval ends before it is worse by
    more: few items leave much open, and then nothing is given up on their word.

    No search has seen these items, but the choice among the candidates is made on them. What it rests on are therefore
    intervals that hold for all candidates of a kind at once, so that in at most about 5 % of the cases a tuned setting
    is called better than the plain mode where none is (simulated with five: 4 % of 32 and of 60 items, but 12 % of
    ten, where percentile intervals are too sure). Those of `Candidate` hold for each by itself.

    `target` and `retain` are the losses of each proposal on the items of the report part, in the order of `proposals`.
    """
    table = _Table(proposals, target, retain, objective, seed, resamples)
    front = table.front()
    candidates = tuple(table.candidate(at, on_front=at in front) for at in range(len(proposals)))
    return Judged(candidates, table.choice())


class _Table:
    """M proposals with R paired draws of their target loss and of what they lose."""

    def __init__(
        self,
        proposals: Sequence[Proposal],
        target: Sequence[Losses],
        retain: Sequence[Losses],
        objective: Objective,
        seed: int,
        resamples: int,
    ) -> None:
        self.proposals = proposals
        self.at = {one.label: at for at, one in enumerate(proposals)}
        base = retain[self.at["none"]].nats
        lost = [
            one.kl if objective == "kl" else tuple(a - b for a, b in zip(one.nats, base, strict=True)) for one in retain
        ]
        drawn = partial(resample, resamples=resamples, seed=seed)
        self.target = drawn([one.nats for one in target], weights=target[0].tokens, stream="target")
        self.lost = drawn(lost, weights=retain[0].tokens, stream="retain")
        same = [[n - c for n, c in zip(one.tokens, one.changed, strict=True)] for one in retain]
        self.kept = drawn(same, weights=retain[0].tokens, stream="retain")
        self.modes = [at for at, one in enumerate(proposals) if one.kind != "tuned"]
        self.tuned = [at for at, one in enumerate(proposals) if one.kind == "tuned"]

    def candidate(self, at: int, *, on_front: bool) -> Candidate:
        one = self.proposals[at]
        references = {one.label: other for other, one in enumerate(self.proposals) if one.kind == "mode"}
        return Candidate(
            label=one.label,
            kind=one.kind,
            setting=one.setting.published,
            weights=one.weights,
            target=self.target.interval(at),
            retention=self.lost.interval(at),
            gain={name: self.target.difference(other, at) for name, other in references.items()},
            saved={name: self.lost.difference(other, at) for name, other in references.items()},
            kept=self.kept.interval(at),
            trade_off=one.trade_off,
            on_front=on_front,
        )

    def front(self) -> set[int]:
        """Finds the proposals that no other one is as good as in both and better than in one."""
        values = zip(self.target.value.tolist(), self.lost.value.tolist(), strict=True)
        points = [(round(target, 12), round(lost, 12)) for target, lost in values]
        return {
            at for at, (a, b) in enumerate(points) if not any(c <= a and d <= b and (c, d) != (a, b) for c, d in points)
        }

    def choice(self) -> Choice:
        """Chooses what to use: its gain and what it saves are those of all tuned settings at once."""
        plain = self.plain()
        better = [at for at in self.tuned if self.beats(at, plain) and self.beats(at, self.first(self.modes))]
        chosen = self.best(better) if better else plain
        gain, saved = self.against(chosen, plain, len(self.tuned))
        labels = self.proposals[chosen].label, self.proposals[plain].label
        return Choice(labels[0], self.reason(chosen, plain), labels[1], bool(better), gain, saved)

    def plain(self) -> int:
        """Finds the best plain mode: the base where no other one gains beyond noise."""
        base, others = self.at["none"], len(self.modes) - 1
        gaining = [at for at in self.modes if at != base and self.against(at, base, others)[0].low > 0]
        return self.best(gaining) if gaining else base

    def best(self, among: Sequence[int]) -> int:
        """Finds what keeps the most among those that fit the target as well as the best of them."""
        close = [at for at in among if self.is_close(at, among)]
        return min(close, key=lambda at: (round(float(self.lost.value[at]), 12), self.target.value[at]))

    def first(self, among: Sequence[int]) -> int:
        """Finds what fits the target best."""
        return min(among, key=lambda at: (self.target.value[at], self.lost.value[at]))

    def is_close(self, at: int, among: Sequence[int]) -> bool:
        """Tells whether a proposal fits the target as well as the best of some, to within the margin."""
        first = self.first(among)
        return at == first or _as_well(self.against(at, first, len(among) - 1)[0], _WORTH * self.gained(first))

    def against(self, at: int, other: int, comparisons: int) -> tuple[Interval, Interval]:
        """Returns what a proposal gains over another and saves of it, as one of so many that are compared with it."""
        several = max(1, comparisons)
        gain, saved = (one.difference(other, at, comparisons=several) for one in (self.target, self.lost))
        return gain, saved

    def gained(self, at: int) -> float:
        """Returns the target loss of the base less that of a proposal, or 0."""
        return max(0.0, float(self.target.value[self.at["none"]] - self.target.value[at]))

    def margins(self, plain: int) -> tuple[float, float]:
        """Returns what counts as no difference to a plain mode, in target loss and in what is lost."""
        return _WORTH * self.gained(plain), _WORTH * max(0.0, float(self.lost.value[plain]))

    def beats(self, at: int, plain: int) -> bool:
        """Tells whether a tuned proposal is better than a plain one beyond noise, by as much as is worth it."""
        gain, saved = self.against(at, plain, len(self.tuned))
        fit, keep = self.margins(plain)
        if gain.low > 0:
            least = _LEAST_GAIN * float(self.target.value[self.at["none"]])
            return _as_well(saved, keep) or gain.value >= _WORTH * max(self.gained(plain), least)
        return _as_well(gain, fit) and saved.low > 0 and saved.value >= keep

    def reason(self, chosen: int, plain: int) -> str:
        """Says which one to use, and why."""
        name = self.proposals[chosen].label
        title = mode_title(self.proposals[plain].label)
        if chosen != plain:
            gain, saved = self.against(chosen, plain, len(self.tuned))
            fit, keep = self.margins(plain)
            parts = [_against("fits the target", gain, fit), _against("keeps the base", saved, keep)]
            return (
                f"Use {name}: against {title}, the best plain mode, it {parts[0]} and {parts[1]} (paired 95 % "
                "intervals of all tuned settings at once, nats a token; above 0 is better)."
            )
        close = [at for at in self.modes if at != self.at["none"] and self.is_close(at, self.modes)]
        why = "no plain mode fits the target better"
        if self.proposals[plain].label == "none":
            why = "no mode fits the target better than the base beyond noise"
        elif len(close) > 1:
            why = "of the plain modes that fit the target as well, to within a tenth of the gain, it keeps the most"
        elif all(self.against(at, plain, len(self.modes) - 1)[0].high < 0 for at in self.modes if at != plain):
            why = "it fits the target best, beyond noise"
        return f"Use {title}: {why}, and no tuned setting beats it beyond noise."


def _as_well(difference: Interval, margin: float) -> bool:
    """Tells whether something is not worse beyond noise, and by less than a margin whatever the noise."""
    return difference.high >= 0 and difference.low >= -margin


def _against(what: str, difference: Interval, margin: float) -> str:
    how = "about as well, within noise"
    if difference.low > 0:
        how = "better"
    elif _as_well(difference, margin):
        how = f"as well, to within {margin:.3f}"
    elif difference.high < 0:
        how = "less"
    return f"{what} {how} ({format_difference(difference)})"
