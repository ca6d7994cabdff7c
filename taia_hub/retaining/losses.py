"""What was measured of one setting on some items, as a value."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Losses:
    """What one setting makes of N items, each in its place; sums over the tokens that are measured.

    `resample([one.nats, other.nats], weights=one.tokens)` of `taia_hub.results.statistics` gives means a token with
    paired intervals.

    Attributes:
        tokens: Number of measured tokens of each item; 0 where there is nothing to measure.
        nats: Sum of -log p of the labels.
        kl: Sum of the Kullback-Leibler divergence of this setting from the base, KL(base || setting), in nats; exactly
            0.0 for the base, and empty where it was not asked for.
        changed: Number of tokens before which the most likely next token is not the base's; empty as `kl` is.

    Example:
        >>> found = Losses(tokens=(1, 3), nats=(2.0, 6.0), kl=(0.0, 0.2), changed=(0, 1))
        >>> found.loss, found.divergence, found.kept
        (2.0, 0.05, 0.75)
    """

    tokens: tuple[int, ...]
    nats: tuple[float, ...]
    kl: tuple[float, ...] = ()
    changed: tuple[int, ...] = ()

    @property
    def loss(self) -> float:
        """Nats a token over all items; nan where there are no tokens."""
        return self._mean(self.nats)

    @property
    def divergence(self) -> float:
        """KL(base || setting) in nats a token over all items; nan where there are no tokens."""
        return self._mean(self.kl)

    @property
    def kept(self) -> float:
        """Share of the tokens whose most likely next token is the base's; nan where there are no tokens."""
        return 1.0 - self._mean(self.changed)

    def _mean(self, values: tuple[float, ...]) -> float:
        total = sum(self.tokens)
        return math.fsum(values) / total if total and len(values) == len(self.tokens) else math.nan
