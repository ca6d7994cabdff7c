"""Scores with standard errors, and differences between modes with paired bootstrap intervals over items."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
FEWEST = 10
"""Fewer items than these tell nothing about a difference: draws of so few are too sure, of three alike ones wholly."""
_BLOCK = 2_000_000  # drawn items at a time, so that 14,000 items take 100 MB and not gigabytes


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval.

    Attributes:
        value: The value.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside, so that a difference is more than noise."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Score:
    """The score of a mode in a task.

    Attributes:
        value: The score.
        standard_error: Its standard error, or None where the score is no mean over items or there is only one item.
        items: Number of items.
    """

    value: float
    standard_error: float | None
    items: int


@dataclass(frozen=True)
class Resampled:
    """The scores of M modes on the same items, with R bootstrap draws of them.

    `value` and `standard_error` (nan for a single item) are (M,) float64, and `drawn` is (M, R) float64, the score of
    each draw; one draw takes the same items in all modes.
    """

    value: np.ndarray
    drawn: np.ndarray
    standard_error: np.ndarray
    items: int

    def interval(self, mode: int) -> Interval:
        """Returns the score of a mode with its percentile interval."""
        return _interval(self.value[mode], self.drawn[mode])

    def difference(self, mode: int, reference: int, *, comparisons: int = 1) -> Interval:
        """Returns the score of a mode less that of another, with the interval of the paired draws.

        Of several `comparisons` all intervals hold together in 95 % of the cases (Bonferroni), so that the one that
        looks best may be picked.
        """
        value, drawn = self.value[mode] - self.value[reference], self.drawn[mode] - self.drawn[reference]
        return _interval(value, drawn, comparisons)

    def only(self, modes: Sequence[int]) -> Resampled:
        """Returns the same draws with some of the modes."""
        rows = list(modes)
        return Resampled(self.value[rows], self.drawn[rows], self.standard_error[rows], self.items)

    def score(self, mode: int) -> Score:
        """Returns the score of a mode with its standard error."""
        error = float(self.standard_error[mode])
        return Score(float(self.value[mode]), None if np.isnan(error) else error, self.items)


def resample(
    values: Sequence[Sequence[float]],
    *,
    weights: Sequence[float] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    stream: str = "",
) -> Resampled:
    """Draws items with replacement, the same ones in every mode.

    What makes an item hard for all modes cancels in a difference, whose interval is therefore much narrower than those
    of the two scores (Efron & Tibshirani 1993, chapter 13).

    `values` are (M, N), one row a mode; the score is their sum by that of the (N,) `weights`, or the mean. Another name
    of the items, `stream`, gives independent draws.

    Example:
        >>> drawn = resample([[1, 1, 0, 1], [0, 1, 0, 0]])
        >>> drawn.difference(0, 1)
        Interval(value=0.5, low=0.0, high=1.0)
    """
    if len({len(row) for row in values}) > 1:
        raise ValueError(f"The modes have {[len(row) for row in values]} items; they must be the same ones.")
    table = np.asarray(values, dtype=np.float64)  # (M, N)
    if table.ndim != 2 or not table.shape[1]:
        raise ValueError("There are no items.")
    count, size = table.shape
    weight = np.ones(size) if weights is None else np.asarray(weights, dtype=np.float64)
    generator = np.random.default_rng([seed, zlib.crc32(stream.encode())])
    drawn = np.empty((count, resamples))
    step = max(1, _BLOCK // size)
    for start in range(0, resamples, step):
        rows = generator.integers(size, size=(min(step, resamples - start), size))
        total = weight[rows].sum(-1)
        for mode in range(count):
            drawn[mode, start : start + len(rows)] = table[mode][rows].sum(-1) / total
    value = table.sum(-1) / weight.sum()
    residual = table - value[:, None] * weight
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt((residual**2).sum(-1) / (size - 1) * size) / weight.sum()
    return Resampled(value, drawn, error, size)


def combine(parts: Sequence[Resampled], *, pooled: bool) -> Resampled:
    """Puts tasks with the same M modes and R draws together into one score; the items are drawn task by task.

    Every item counts alike where `pooled`, else every task does.
    """
    if not parts:
        raise ValueError("There are no tasks.")
    share = np.array([part.items if pooled else 1 for part in parts], dtype=np.float64)
    share /= share.sum()
    return Resampled(
        sum(s * part.value for s, part in zip(share, parts, strict=True)),
        sum(s * part.drawn for s, part in zip(share, parts, strict=True)),
        np.sqrt(sum((s * part.standard_error) ** 2 for s, part in zip(share, parts, strict=True))),
        sum(part.items for part in parts),
    )


def _interval(value: float, drawn: np.ndarray, comparisons: int = 1) -> Interval:
    low, high = np.quantile(drawn, [0.025 / comparisons, 1 - 0.025 / comparisons])
    return Interval(float(value), float(low), float(high))
