"""The weight of one adapted module in one call: a number, a number a row, or a tensor that is being learned."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from taia_hub.errors import SettingError

_CACHED_ROWS = 256


class RowWeights:
    """The weights of the R rows of a call at one adapted module; not all the same."""

    def __init__(self, weights: tuple[float, ...]) -> None:
        self.weights = weights
        self._selected: dict[tuple[int, torch.device], tuple[slice | Tensor, float | Tensor]] = {}

    def per_row(self, n: int) -> tuple[float, ...]:
        """Repeats each row's weight evenly: beams multiply the rows, some layers flatten (R, T, H) to (R * T, H).

        Raises:
            SettingError: If n is not a multiple of R, so that rows cannot be told apart here.
        """
        times = _times(n, len(self.weights))
        return tuple(weight for weight in self.weights for _ in range(times))

    def select(self, n: int, device: torch.device) -> tuple[slice | Tensor, float | Tensor]:
        """Finds the K of n rows whose update acts, and their weights; the others are not computed.

        Rows are a slice where they are evenly spaced, else an int64 tensor (K,); weights one float where they agree,
        else a float64 tensor (K,).
        """
        key = (n, device)
        if (found := self._selected.get(key)) is None:
            with torch.inference_mode(False):  # what is kept may be used under autograd later
                found = self._select(self.per_row(n), device)
            if len(self._selected) < _CACHED_ROWS:
                self._selected[key] = found
        return found

    @staticmethod
    def _select(weights: tuple[float, ...], device: torch.device) -> tuple[slice | Tensor, float | Tensor]:
        rows = [row for row, weight in enumerate(weights) if weight]
        steps = {after - before for before, after in itertools.pairwise(rows)}
        acting = [weights[row] for row in rows]
        return (
            slice(rows[0], rows[-1] + 1, steps.pop() if steps else 1)
            if len(steps) < 2
            else torch.tensor(rows, device=device),
            acting[0] if len(set(acting)) == 1 else torch.tensor(acting, device=device, dtype=torch.float64),
        )


class LearnedWeight:
    """A weight that is a tensor, so that gradients may arrive in it; `taia_hub.switch.learned.learned` makes one.

    It equals no number, and it is true: an update is computed under a weight of 0 too, whose gradient is asked for.

    Attributes:
        values: A () tensor for all rows of a call, or an (R,) tensor for its R rows; float32 or float64.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @property
    def rows(self) -> int | None:
        """R, or None where the rows are treated alike."""
        return len(self.values) if self.values.dim() else None

    def beside(self, x: Tensor) -> Tensor:
        """Returns the weights in a shape that multiplies `x`, (n, ...), where it is; each row's is repeated evenly.

        The product has the wider of both dtypes, so that a gradient is summed up in the weight's.

        Raises:
            SettingError: If n is not a multiple of R.
        """
        values = self.values.to(x.device)
        if self.rows is None:
            return values.view((1,) * x.dim())
        values = values.repeat_interleave(_times(len(x), self.rows))
        return values.view(-1, *(1,) * (x.dim() - 1))

    def between(self, base: Tensor, tuned: Tensor) -> Tensor:
        """Returns `base + weight * (tuned - base)` in the dtype of `base`; both are (n, ...)."""
        return (base + (tuned - base) * self.beside(base)).to(base.dtype)


Weight = float | RowWeights | LearnedWeight


def _times(n: int, rows: int) -> int:
    times, rest = divmod(n, rows)
    if rest or not times:
        raise SettingError(
            f"A layer got {n} rows where the call has a setting for each of {rows}.",
            "This architecture regroups rows on the way; run the modes one after the other instead.",
        )
    return times
