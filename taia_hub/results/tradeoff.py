"""What each mode gains on items that were held out, what it keeps of the base, and which mode that speaks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from taia_hub.results.drawing import draw
from taia_hub.results.format import Results, TaskResults
from taia_hub.results.retained import HOLDOUT, KEPT, KL, LOSS, RETENTION
from taia_hub.results.statistics import FEWEST, RESAMPLES, Interval, Resampled

BASE = "none"
HALF = 0.5
"""With less than this share of the best mode's gain, another is not recommended for what it keeps."""


@dataclass(frozen=True)
class Traded:
    """What one mode gains and keeps, the differences with 95 % intervals; None where it was not measured.

    Attributes:
        loss: Nats a token on the held-out items.
        gain: How much less that is than the base's, by paired draws; None for the base.
        kept: Share of the tokens of general text before which the most likely next one is the base's, in [0, 1].
        divergence: KL(base || mode) there, in nats a token.
    """

    loss: float | None = None
    gain: Interval | None = None
    kept: Interval | None = None
    divergence: float | None = None


@dataclass(frozen=True)
class Tradeoff:
    """What every mode gains and keeps, and which mode that speaks for, as far as 10 items or more tell it.

    Attributes:
        modes: Label of a setting to what was measured of it.
        items: Number of held-out items, 0 where none were measured.
        texts: Number of general texts.
        best: The mode to use for the trained task alone: of those that gain most, or as much within noise, the one that
            keeps most. The base where no mode gains beyond noise, None where that is not known.
        alike: Modes that gain as much as the best one, within noise.
        keeper: Of the modes that gain, the one that keeps most where it keeps more than the best one beyond noise: with
            half of its gain or more where such a mode is there. None where no mode does.
    """

    modes: Mapping[str, Traded]
    items: int = 0
    texts: int = 0
    best: str | None = None
    alike: tuple[str, ...] = ()
    keeper: str | None = None

    @property
    def share(self) -> float:
        """The keeper's share of the best mode's gain; 1 without a keeper."""
        return self.gain(self.keeper) / self.gain(self.best) if self.keeper and self.best else 1.0

    @property
    def recommended(self) -> str | None:
        """The mode to use where not the trained task alone counts."""
        return self.keeper if self.keeper and self.share >= HALF else self.best

    def gain(self, label: str | None) -> float:
        """Returns what a mode gains, in nats a token; 0 where that is not known."""
        found = self.modes[label].gain if label else None
        return found.value if found else 0.0

    def kept(self, label: str) -> float:
        """Returns the share that a mode keeps; 0 where that is not known."""
        found = self.modes[label].kept
        return found.value if found else 0.0


def tradeoff(results: Results, *, resamples: int = RESAMPLES, seed: int = 0) -> Tradeoff | None:
    """Reads out of results what modes gain and keep.

    Args:
        results: Results with the tasks `holdout` and `retention`, or one of them.
        resamples: Number of bootstrap draws.
        seed: Of the draws.

    Returns:
        The modes and what they speak for; None where neither was measured of two modes.

    Example:
        >>> from taia_hub.results.identity import ModelIdentity
        >>> tradeoff(Results(ModelIdentity("m", None, "b", None, None, "float32"))) is None
        True
    """
    held = _Drawn(results.tasks.get(HOLDOUT), LOSS, resamples, seed)
    texts = _Drawn(results.tasks.get(RETENTION), KEPT, resamples, seed)
    labels = [label for label in results.modes if label in held.labels or label in texts.labels]
    if len(labels) < 2:
        return None
    modes = {
        label: Traded(held.value(label), held.less(BASE, label), texts.interval(label), texts.score(label, KL))
        for label in labels
    }
    return _judged(Tradeoff(modes, held.items, texts.items), held, texts)


class _Drawn:
    """The draws of a task's items in one metric, for the modes that have it."""

    def __init__(self, task: TaskResults | None, metric: str, resamples: int, seed: int) -> None:
        self.modes = {label: mode for label, mode in (task.modes if task else {}).items() if metric in mode.values}
        self.labels = list(self.modes)
        self.drawn: Resampled | None = None
        if task and self.labels:
            self.drawn = draw(task, self.labels, metric, resamples=resamples, seed=seed)

    @property
    def items(self) -> int:
        return self.drawn.items if self.drawn else 0

    def value(self, label: str) -> float | None:
        return float(self.drawn.value[self.labels.index(label)]) if self.drawn and label in self.labels else None

    def interval(self, label: str) -> Interval | None:
        return self.drawn.interval(self.labels.index(label)) if self.drawn and label in self.labels else None

    def score(self, label: str, metric: str) -> float | None:
        return self.modes[label].scores.get(metric) if label in self.modes else None

    def less(self, label: str, other: str) -> Interval | None:
        """Returns the value of a mode less that of another one."""
        if self.drawn is None or label == other or not {label, other} <= self.modes.keys():
            return None
        return self.drawn.difference(self.labels.index(label), self.labels.index(other))


def _judged(found: Tradeoff, held: _Drawn, texts: _Drawn) -> Tradeoff:
    if held.items < FEWEST or BASE not in held.labels:
        return found
    gaining = [label for label, one in found.modes.items() if one.gain is not None and one.gain.low > 0]
    if not gaining:
        return dataclasses.replace(found, best=BASE)
    most = max(gaining, key=found.gain)
    alike = [label for label in gaining if label == most or not _beyond(held.less(label, most))]
    best = max(alike, key=lambda label: (found.kept(label), found.gain(label)))
    found = dataclasses.replace(found, best=best, alike=tuple(label for label in alike if label != best))
    if texts.items < FEWEST:
        return found
    more = [label for label in gaining if (kept := texts.less(label, best)) is not None and kept.low > 0]
    half = [label for label in more if found.gain(label) >= HALF * found.gain(best)]
    return dataclasses.replace(found, keeper=max(half or more, key=found.kept, default=None))


def _beyond(difference: Interval | None) -> bool:
    return difference is not None and difference.excludes_zero
