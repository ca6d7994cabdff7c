"""The demo's numbers as values: losses of each mode in each domain, with intervals by the bootstrap over items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from taia_hub.results.statistics import Interval, resample
from taia_hub.retaining.losses import Losses

MODES = ("none", "attention", "ffn", "all")
COMPARED = (("attention", "none"), ("ffn", "none"), ("all", "none"), ("attention", "all"))
"""The differences of a table: a mode and the one that it is compared with."""


@dataclass(frozen=True)
class DomainLosses:
    """The loss of each mode in one domain, and of `(mode, reference)` the loss of the first less that of the second."""

    domain: str
    items: int
    losses: Mapping[str, Interval]
    differences: Mapping[tuple[str, str], Interval]


def summarise(domain: str, losses: Mapping[str, Losses], *, resamples: int = 2000, seed: int = 0) -> DomainLosses:
    """Turns the losses of N items, in one order for all modes, into means and differences with 95 % intervals.

    Items are drawn with replacement, the same ones for every mode: what makes an item hard for all modes cancels in a
    difference, whose interval is therefore much narrower than those of the two losses. Losses are nats per answer token
    (all nats over all tokens), the differences those of `COMPARED`.

    Example:
        >>> items = Losses(tokens=(2, 2), nats=(2.0, 4.0))
        >>> summarise("maths", dict.fromkeys(MODES, items)).losses["all"]
        Interval(value=1.5, low=1.0, high=2.0)
    """
    tokens = losses[MODES[0]].tokens
    if not tokens:
        raise ValueError(f"The domain '{domain}' has no items.")
    drawn = resample(
        [losses[mode].nats for mode in MODES], weights=tokens, resamples=resamples, seed=seed, stream=domain
    )
    return DomainLosses(
        domain,
        len(tokens),
        {mode: drawn.interval(index) for index, mode in enumerate(MODES)},
        {(a, b): drawn.difference(MODES.index(a), MODES.index(b)) for a, b in COMPARED},
    )
