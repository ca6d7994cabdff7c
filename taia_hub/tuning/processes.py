"""The processes that share a tuning: one, or those that `accelerate launch` started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """`count` processes, of which this one has the number `rank`."""

    rank: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> Processes:
        """Joins the processes that were started together, if there are others."""
        from accelerate import Accelerator

        accelerator = Accelerator()  # it alone heeds ACCELERATE_USE_CPU
        return cls(accelerator.process_index, accelerator.num_processes)

    def share(self, items: Sequence[T]) -> list[T]:
        """Returns the items of this process: every `count`-th one."""
        return list(items[self.rank :: self.count])

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Adds up (N,) float64 numbers of all processes; each gets the sum."""
        if self.count == 1:
            return values
        gathered = self.gather(values)
        return np.sum(gathered, axis=0)

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all processes, in the order of their ranks."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, value)
        return found

    def merge(self, parts: Sequence[Sequence[T]]) -> list[T]:
        """Puts what the processes made of their shares back into the order of the items."""
        found: list[Any] = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            found[rank :: self.count] = part
        return found

    def first(self, value: T) -> T:
        """Returns what the first process has; the others wait for it."""
        return self.gather(value)[0]
