"""An export on the disk: its folder, there whole or not at all, and its weights, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taia_hub import hub
from taia_hub.common.resuming import Made, scratch_beside
from taia_hub.weights.checkpoint import StoredTensor
from taia_hub.weights.shards import OutgoingTensor, outgoing, read_whole, write_file

_ZEROS = 1 << 18


@dataclass(frozen=True)
class Planned:
    """A tensor of floating point that is to be written.

    Its `content` is a tensor in a file whose bytes are copied, a function that computes it in its turn, or None: zeros.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    content: StoredTensor | Callable[[], Tensor] | None

    def outgoing(self) -> OutgoingTensor:
        """Returns it as `write_file` takes it."""
        if isinstance(self.content, StoredTensor):
            return replace(outgoing(self.content), name=self.name)
        return OutgoingTensor(self.name, self.dtype, self.shape, self._pieces)

    def _pieces(self) -> Iterator[Tensor]:
        if callable(self.content):
            yield self.content().to(self.dtype).contiguous().reshape(-1).view(torch.uint8)
            return
        left = self.outgoing().size
        zeros = torch.zeros(min(_ZEROS, left), dtype=torch.uint8)
        for start in range(0, left, _ZEROS):
            yield zeros[: left - start]


def write_tensors(path: Path, tensors: Sequence[Planned], advance: Callable[[int, int], None] | None = None) -> int:
    """Writes tensors into one safetensors file, one computed tensor in memory at a time; returns its size in bytes."""
    # The widest dtypes first, so that every tensor lies at a multiple of its element's size.
    ordered = [one.outgoing() for one in sorted(tensors, key=lambda one: (-one.dtype.itemsize, one.name))]
    done, end = 0, sum(one.size for one in ordered)
    hub.check_space(path.parent, end, "The adapter")

    def count(size: int) -> None:
        nonlocal done
        done += size
        if advance is not None:
            advance(done, end)

    write_file(path, ordered, count)
    return path.stat().st_size


def read_factor(factor: StoredTensor | Tensor) -> Tensor:
    """Reads a tensor that may lie in a file, without mapping it."""
    return factor.detach() if isinstance(factor, Tensor) else read_whole(factor)


@contextmanager
def new_folder(made: Made, *, overwrite: bool = False) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Gives a scratch folder beside the one that is made, whose name it takes when the block succeeds, and its facts.

    Something in that folder, before the block or after it, is an error, unless it is ours and may be replaced.
    """
    out, facts = made.folder, dict[str, Any]()
    made.check_free(overwrite=overwrite)
    with hub.disk_errors(out), scratch_beside(out) as folder:
        yield folder, facts
        made.put(folder, overwrite=overwrite, **facts)  # another one may have been faster
