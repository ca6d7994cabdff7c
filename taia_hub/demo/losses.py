"""The demo's numbers as values: losses of each mode in each domain, with intervals by the bootstrap over items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from taia_hub.results.statistics import Interval, resample

MODES = ("none", "attention", "ffn", "all")
COMPARED = (("attention", "none"), ("ffn", "none"), ("all", "none"), ("attention", "all"))
"""The differences of a table: a mode and the one that it is compared with."""


@dataclass(frozen=True)
class ItemLoss:
    """The negative log likelihood of one answer, summed over its tokens, of which the end mark is one."""

    nats: float
    tokens: int


@dataclass(frozen=True)
class DomainLosses:
    """The loss of each mode in one domain, and of `(mode, reference)` the loss of the first less that of the second."""

    domain: str
    items: int
    losses: Mapping[str, Interval]
    differences: Mapping[tuple[str, str], Interval]


def summarise(
    domain: str, losses: Mapping[str, Sequence[ItemLoss]], *, resamples: int = 2000, seed: int = 0
) -> DomainLosses:
    """Turns the losses of N items, in one order for all modes, into means and differences with 95 % intervals.

    Items are drawn with replacement, the same ones for every mode: what makes an item hard for all modes cancels in a
    difference, whose interval is therefore much narrower than those of the two losses. Losses are nats per answer token
    (all nats over all tokens), the differences those of `COMPARED`.

    Example:
        >>> items = [ItemLoss(2.0, 2), ItemLoss(4.0, 2)]
        >>> summarise("maths", dict.fromkeys(MODES, items)).losses["all"]
        Interval(value=1.5, low=1.0, high=2.0)
    """
    if not losses[MODES[0]]:
        raise ValueError(f"The domain '{domain}' has no items.")
    nats = [[loss.nats for loss in losses[mode]] for mode in MODES]
    tokens = [loss.tokens for loss in losses[MODES[0]]]
    drawn = resample(nats, weights=tokens, resamples=resamples, seed=seed, stream=domain)
    return DomainLosses(
        domain,
        len(tokens),
        {mode: drawn.interval(index) for index, mode in enumerate(MODES)},
        {(a, b): drawn.difference(MODES.index(a), MODES.index(b)) for a, b in COMPARED},
    )


def mean_loss(losses: Sequence[ItemLoss]) -> float:
    """Returns the loss of some answers together, in nats a token.

    Example:
        >>> mean_loss([ItemLoss(2.0, 1), ItemLoss(6.0, 7)])
        1.0
    """
    return sum(loss.nats for loss in losses) / max(1, sum(loss.tokens for loss in losses))
