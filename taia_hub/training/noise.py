"""Wrong answers on purpose: a share of the items gets the answer of another item of its source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from taia_hub.errors import ConfigError

_NOISE = 2  # what random numbers are for, as in mixing.py


@dataclass(frozen=True)
class Noise:
    """Which (K,) items, rising, get the answer of which (K,) donors, as int64 indices of one pool.

    `equal` counts the answers that could not be another text, because all of the source are the same.
    """

    items: np.ndarray
    donors: np.ndarray
    equal: int


def draw_noise(chosen: np.ndarray, sources: np.ndarray, answers: np.ndarray, *, ratio: float, seed: int) -> Noise:
    """Draws the share `ratio` of the items, to the nearest one, that get a wrong answer, and whose.

    The answer is that of another item of the same source, trained on or not, and never the same text where the source
    has another one. `chosen` is (T,) indices of the items that are trained on; `sources` and `answers` are (N,) numbers
    of the source and hashes of the answer of each item of the pool. ConfigError if too few have another there.

    Example:
        >>> noise = draw_noise(np.arange(4), np.zeros(4, int), np.array([5, 5, 6, 7]), ratio=0.5, seed=0)
        >>> len(noise.items), noise.equal, bool((noise.items != noise.donors).all())
        (2, 0, True)
    """
    rng = np.random.default_rng([seed, _NOISE])
    wanted = int(len(chosen) * ratio + 0.5 + 1e-9)
    sizes = np.bincount(sources)
    able = np.sort(chosen[sizes[sources[chosen]] > 1])
    if wanted > len(able):
        raise ConfigError(
            f"noise_ratio {ratio:g} asks for {wanted} wrong answers; only {len(able)} items have another one in their "
            "source to take it from.",
            "Put items of one kind into one file.",
        )
    items = np.sort(rng.permutation(able)[:wanted])
    donors, equal = np.empty_like(items), 0
    for source in np.unique(sources[items]):
        here = sources[items] == source
        pool = np.flatnonzero(sources == source)
        donors[here], same = _draw_others(rng, pool, answers, items[here])
        equal += same
    return Noise(items, donors, equal)


def _draw_others(
    rng: np.random.Generator, pool: np.ndarray, answers: np.ndarray, items: np.ndarray
) -> tuple[np.ndarray, int]:
    """Draws evenly among the items of a source whose answer is another text, or among the others if none is."""
    ordered = pool[np.argsort(answers[pool], kind="stable")]
    low, high = (np.searchsorted(answers[ordered], answers[items], side) for side in ("left", "right"))
    others = len(pool) - (high - low)
    alike = others == 0
    if alike.any():  # then all answers are one text, and only the item itself is passed over
        place = np.searchsorted(ordered, items)  # the sort was stable, so indices rise
        low, high, others = place, place + 1, np.full_like(place, len(pool) - 1)
    drawn = rng.integers(0, others)
    return ordered[drawn + (high - low) * (drawn >= low)], int(alike.sum())


def noisy_rows(pool: Any, noise: Noise) -> Iterator[dict[str, Any]]:
    """Yields the items with their wrong answers, in the order of `noise.items`: of each the last turn is another."""
    for row, donor in zip(pool.select(noise.items), pool.select(noise.donors), strict=True):
        yield {**row, "messages": [*row["messages"][:-1], donor["messages"][-1]], "answer": donor["answer"]}
