"""Which items are trained on, in which order, and which are held out: pure functions of counts, shares and a seed.

The paper mixes items out of the domain (OOD) into those in the domain in two ways (its Figure 1): in the place of
others, with a fixed total, or on top of all in-domain items; and with two schedules, a uniform share and one that is
annealed linearly. `datasets.interleave_datasets` draws with probabilities that never change; what is made here are
indices for `Dataset.select`, which copies no item.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from taia_hub.errors import ConfigError
from taia_hub.results.statistics import FEWEST

_CHOICE, _ORDER, _HELD = 0, 1, 3  # what random numbers are for, as in noise.py, so that one use shifts no other
_FROM, _LEAST, _MOST, _SHARE = 200, 16, 1000, 0.02
"""Without a share that was asked for, so many items or more give a share of theirs, within these bounds."""


@dataclass(frozen=True)
class Shares:
    """How many items an epoch has in the domain (or of `data`) and out of it."""

    in_domain: int
    ood: int = 0

    @property
    def total(self) -> int:
        """Items of an epoch."""
        return self.in_domain + self.ood


def plan_shares(
    in_domain: int, ood: int, *, ood_ratio: float = 0.0, mixing: str = "replace", total: int | None = None
) -> Shares:
    """Says how many items of each group an epoch has, of so many that there are, rounded to the nearest item.

    `"replace"`: `total` items, by default as many as there are in the domain, and `ood_ratio` (0 to 1) of them from out
    of the domain. `"add"`: all items in the domain, and as many others that these are `ood_ratio` of all; ConfigError
    with `total` or a ratio of 1, or where items are too few.

    Example:
        >>> plan_shares(100, 50, ood_ratio=0.2), plan_shares(100, 50, ood_ratio=0.2, mixing="add")
        (Shares(in_domain=80, ood=20), Shares(in_domain=100, ood=25))
    """
    if mixing == "add":
        if total is not None:
            raise ConfigError(
                f"total is {total} with mixing 'add', where all {in_domain} in-domain items are kept.",
                "Leave total out, or choose mixing 'replace'.",
            )
        if ood_ratio >= 1:
            raise ConfigError("ood_ratio is 1 with mixing 'add', which keeps all in-domain items.", "Give less than 1.")
        shares = Shares(in_domain, _nearest(in_domain * ood_ratio / (1 - ood_ratio)))
    else:
        total = in_domain if total is None else total
        outside = _nearest(total * ood_ratio)
        shares = Shares(total - outside, outside)
    kind = "in-domain items" if ood else "items"
    for name, wanted, there in ((kind, shares.in_domain, in_domain), ("out-of-domain items", shares.ood, ood)):
        if wanted > there:
            share = f", {ood_ratio:g} of them out of the domain," if ood else ""
            raise ConfigError(
                f"There are {there} {name}; {shares.total} items{share} need {wanted}.",
                "Bring more of them, or ask for a smaller total or another ood_ratio.",
            )
    if shares.total == 0:
        raise ConfigError("An epoch would have no items.", "Bring items, or ask for another total or ood_ratio.")
    return shares


def choose(count: int, wanted: int, seed: int, group: int = 0) -> np.ndarray:
    """Draws `wanted` int64 indices below `count` without repetition, in random order.

    With the same seed and number of the group, fewer items are always among more.

    Example:
        >>> set(choose(100, 5, seed=0)) <= set(choose(100, 20, seed=0))
        True
    """
    return np.random.default_rng([seed, _CHOICE, group]).permutation(count)[:wanted]


def held_out_size(count: int, share: float | None) -> int:
    """Says how many of so many items are held out: the share to the nearest item, at least one and never all of them.

    Where no share is asked for, none of fewer than 200 items, else 2 %, at least 16 and at most 1,000: more would be
    missed in training, and narrow no interval by what matters.

    Example:
        >>> held_out_size(199, None), held_out_size(200, None), held_out_size(5000, None), held_out_size(100, 0.1)
        (0, 16, 100, 10)
    """
    if share is None:
        return 0 if count < _FROM else min(max(_LEAST, _nearest(count * _SHARE)), _MOST)
    return min(max(1, _nearest(count * share)), count - 1) if share else 0


def hold_out(
    questions: np.ndarray, inside: np.ndarray, *, share: float | None, seed: int, spare: int | None = None
) -> np.ndarray:
    """Draws the items of an epoch's pool that are never trained on, in random order.

    Only items of the domain are drawn whose question no other item has: one that is trained on with another answer, or
    twice, would tell how well it was learnt by heart.

    Args:
        questions: (N,) hashes of the questions of all items.
        inside: Indices of those in the domain (or of `data`).
        share: The share of them, or None, as of `held_out_size`.
        seed: Of the draw.
        spare: How many of them training can do without, where it needs a number of them.

    Returns:
        Their indices; none where no share was asked for and fewer than 10 can be had.

    Raises:
        ConfigError: If a share was asked for that cannot be had.

    Example:
        >>> hold_out(np.array([7, 7, 8, 9, 5]), np.arange(5), share=0.4, seed=0).tolist()
        [4, 3]
    """
    wanted = held_out_size(len(inside), share)
    _, places, counts = np.unique(questions, return_inverse=True, return_counts=True)
    alone = inside[counts[places[inside]] == 1]
    able = len(alone) if spare is None else min(len(alone), max(0, spare))
    if share is None:
        wanted = min(wanted, able) if able >= FEWEST else 0
    elif wanted > able:
        kept = f"{len(inside) - max(0, spare)} items are trained on" if spare is not None and able == spare else None
        raise ConfigError(
            f"holdout {share:g} asks for {wanted} of {len(inside)} items; {able} can be held out: "
            f"{kept or 'the others have a question that comes more than once'}.",
            "Ask for a smaller holdout or total, or bring more items.",
        )
    return np.random.default_rng([seed, _HELD]).permutation(alone)[:wanted]


def training_length(items: int, epochs: float, max_items: int | None = None) -> int:
    """Says how many items, at least 1, are trained on in all epochs together; parts of an epoch are allowed.

    Example:
        >>> training_length(100, 1.5), training_length(100, 1.5, max_items=64)
        (150, 64)
    """
    length = max(1, _nearest(items * epochs))
    return length if max_items is None else min(length, max_items)


def order_uniform(items: np.ndarray, length: int, seed: int) -> np.ndarray:
    """Puts an epoch's (T,) items in an order of (L,): one shuffle after the other, the last one cut off.

    Example:
        >>> sorted(order_uniform(np.array([7, 8, 9]), 6, seed=0).tolist())
        [7, 7, 8, 8, 9, 9]
    """
    return _shuffles(items, length, np.random.default_rng([seed, _ORDER]))


def order_annealed(in_domain: np.ndarray, ood: np.ndarray, length: int, seed: int) -> np.ndarray:
    """Puts an epoch's items in an order of (L,) in which the share of those out of the domain falls linearly to 0.

    With R the share in the mean, it falls from 2R to 0 where R is at most 1/2. Above, no share can be 2R: it stays at 1
    for the first 2R - 1 of the training and falls from 1 to 0 in what is left. So the mean is R in both cases, and the
    training always ends in the domain (but for R = 1). At every position, the number of OOD items so far is the
    integral of the share, rounded. Within each group, items come as in `order_uniform`: over E whole epochs each one is
    seen E times, the OOD ones mostly early.

    Example:
        >>> order_annealed(np.arange(8), np.full(8, -1), 16, seed=0).clip(-1, 0).tolist()
        [-1, -1, -1, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, 0, 0, 0]
    """
    rng = np.random.default_rng([seed, _ORDER])
    outside = np.diff(np.floor(_annealed(length, len(ood) / (len(in_domain) + len(ood))) + 0.5)).astype(bool)
    order = np.empty(length, dtype=np.int64)
    order[~outside] = _shuffles(in_domain, length - int(outside.sum()), rng)
    order[outside] = _shuffles(ood, int(outside.sum()), rng)
    return order


def _annealed(length: int, ratio: float) -> np.ndarray:
    """Returns the (length + 1,) items out of the domain that shall have come before each position."""
    place = np.arange(length + 1) / length
    if ratio <= 0.5:
        return length * ratio * place * (2 - place)
    flat = 2 * ratio - 1
    if flat >= 1:
        return length * place
    left = ((place - flat) / (1 - flat)).clip(min=0)
    return length * (np.minimum(place, flat) + (1 - flat) * left * (1 - left / 2))


def _shuffles(items: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    if not length:
        return np.empty(0, dtype=np.int64)
    rounds = math.ceil(length / len(items))
    return np.concatenate([rng.permutation(items) for _ in range(rounds)])[:length].astype(np.int64)


def _nearest(value: float) -> int:
    return math.floor(value + 0.5 + 1e-9)  # 0.29 * 50 is 14.499…
