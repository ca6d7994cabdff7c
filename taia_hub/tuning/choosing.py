"""From losses on the report part to candidates with intervals, the front, and the one to use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from taia_hub.results.statistics import Interval, Resampled, resample
from taia_hub.results.text import format_difference
from taia_hub.results.tuning import Candidate, Choice, Kind, Objective
from taia_hub.retaining import Losses
from taia_hub.switch.modes import mode_title
from taia_hub.switch.settings import Setting

_TENTH = 0.1
"""What less is, is not worth a setting of many weights."""

_FIFTH = 0.2
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
) -> Judged:
    """Gives M proposals, `none` and `all` among them, their intervals by the paired bootstrap over items, and chooses.

    Chosen is what keeps the most among those whose target loss is the lowest within noise: first of the plain modes,
    then of what was tuned, as far as that beats the plain one beyond noise: with a better target loss, and no less kept
    or a tenth more gained; or with a tenth less lost, and no worse a target loss.

    `target` and `retain` are the losses of each proposal on the items of the report part, in the order of `proposals`.
    """
    table = _Table(proposals, target, retain, objective, seed)
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
    ) -> None:
        self.proposals = proposals
        self.at = {one.label: at for at, one in enumerate(proposals)}
        base = retain[self.at["none"]].nats
        lost = [
            one.kl if objective == "kl" else tuple(a - b for a, b in zip(one.nats, base, strict=True)) for one in retain
        ]
        self.target = _drawn([one.nats for one in target], target[0].tokens, seed, "target")
        self.lost = _drawn(lost, retain[0].tokens, seed, "retain")
        same = [[n - c for n, c in zip(one.tokens, one.changed, strict=True)] for one in retain]
        self.kept = _drawn(same, retain[0].tokens, seed, "retain")

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
        plain = self.best([at for at, one in enumerate(self.proposals) if one.kind != "tuned"])
        better = [at for at, one in enumerate(self.proposals) if one.kind == "tuned" and self.beats(at, plain)]
        chosen = self.best(better) if better else plain
        gain, saved = self.target.difference(plain, chosen), self.lost.difference(plain, chosen)
        labels = self.proposals[chosen].label, self.proposals[plain].label
        return Choice(labels[0], self.reason(chosen, plain), labels[1], bool(better), gain, saved)

    def best(self, among: Sequence[int]) -> int:
        """Finds what keeps the most among those whose target loss is the lowest within noise."""
        first = min(among, key=lambda at: (self.target.value[at], self.lost.value[at]))
        close = [at for at in among if not self.target.difference(at, first).low > 0]
        return min(close, key=lambda at: (round(float(self.lost.value[at]), 12), self.target.value[at]))

    def beats(self, at: int, plain: int) -> bool:
        """Tells whether a proposal is better than a plain one beyond noise, by as much as is worth it."""
        gain, saved = self.target.difference(plain, at), self.lost.difference(plain, at)
        if gain.low > 0:
            base = self.target.value[self.at["none"]]
            gained = max(base - self.target.value[plain], _FIFTH * base)
            return not saved.high < 0 or gain.value >= _TENTH * gained
        return not gain.high < 0 and saved.low > 0 and saved.value >= _TENTH * self.lost.value[plain]

    def reason(self, chosen: int, plain: int) -> str:
        name = self.proposals[chosen].label
        title = mode_title(self.proposals[plain].label)
        if chosen != plain:
            gain, saved = self.target.difference(plain, chosen), self.lost.difference(plain, chosen)
            parts = [_against("fits the target", gain), _against("keeps the base", saved)]
            return (
                f"Use {name}: against {title}, the best plain mode, it {parts[0]} and {parts[1]} (paired 95 % "
                "intervals, nats a token; above 0 is better)."
            )
        why = "it fits the target best, beyond noise"
        if self.proposals[plain].label == "none":
            why = "no mode fits the target better than the base beyond noise"
        elif any(
            at != plain and not self.target.difference(at, plain).excludes_zero
            for at, one in enumerate(self.proposals)
            if one.kind != "tuned"
        ):
            why = "no plain mode fits the target better beyond noise, and of those as good it keeps the most"
        return f"Use {title}: {why}, and no tuned setting beats it beyond noise."


def _against(what: str, difference: Interval) -> str:
    how = "better" if difference.low > 0 else "less" if difference.high < 0 else "as well within noise"
    return f"{what} {how} ({format_difference(difference)})"


def _drawn(values: Sequence[Sequence[float]], tokens: Sequence[int], seed: int, stream: str) -> Resampled:
    return resample(values, weights=tokens, seed=seed, stream=stream)
