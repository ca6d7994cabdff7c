"""One safetensors file written tensor by tensor: copied from other files in pieces, computed one by one, or zeros."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taia_hub.errors import RepositoryError
from taia_hub.updates.dense_checkpoint import DTYPES, StoredTensor

_PIECE = 1 << 18
_KINDS = {dtype: kind for kind, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Planned:
    """A tensor that is to be written.

    Attributes:
        name: Its name.
        dtype: Its dtype, of floating point.
        shape: Its shape.
        content: Where its values come from: a tensor in a file whose bytes are copied, a function that computes them
            when their turn comes, or None for zeros.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    content: StoredTensor | Callable[[], Tensor] | None

    @property
    def size(self) -> int:
        """Number of its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(path: Path, tensors: Sequence[Planned], advance: Callable[[int, int], None] | None = None) -> int:
    """Writes tensors into one safetensors file; one computed tensor is in memory at a time.

    Args:
        path: The file.
        tensors: What is to be in it.
        advance: Called with the bytes written and those there will be.

    Returns:
        Size of the file in bytes.

    Raises:
        RepositoryError: If a file that is copied from ends early or cannot be read.
        OSError: If the file cannot be written.
    """
    # The widest dtypes first, so that every tensor lies at a multiple of its element's size.
    ordered = sorted(tensors, key=lambda one: (-one.dtype.itemsize, one.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for one in ordered:
        offsets = [end, end + one.size]
        header[one.name] = {"dtype": _KINDS[one.dtype], "shape": list(one.shape), "data_offsets": offsets}
        end += one.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    done = 0
    with path.open("wb", buffering=0) as file:
        _write_all(file, len(text).to_bytes(8, "little") + text)
        for one in ordered:
            for piece in _pieces(one):
                _write_all(file, piece)
                done += len(piece)
                if advance is not None:
                    advance(done, end)
    return 8 + len(text) + end


def read_factor(factor: StoredTensor | Tensor) -> Tensor:
    """Reads a tensor that may lie in a file, without mapping it."""
    if isinstance(factor, Tensor):
        return factor.detach()
    raw = torch.empty(factor.size, dtype=torch.uint8)
    array: Any = raw.numpy()
    view, filled = memoryview(array), 0
    for piece in _copied(factor):
        view[filled : filled + len(piece)] = piece
        filled += len(piece)
    return raw.view(factor.dtype).view(factor.shape)


def _pieces(one: Planned) -> Iterator[memoryview]:
    if isinstance(one.content, StoredTensor):
        yield from _copied(one.content)
    elif one.content is None:
        zeros = memoryview(bytes(min(_PIECE, one.size)))
        for start in range(0, one.size, _PIECE):
            yield zeros[: min(_PIECE, one.size - start)]
    else:
        values: Any = one.content().to(one.dtype).contiguous().reshape(-1).view(torch.uint8).numpy()
        yield memoryview(values)


def _copied(stored: StoredTensor) -> Iterator[memoryview]:
    """Reads a tensor's bytes in pieces. The file is read and not mapped: pages of a map count as this process's."""
    view = memoryview(bytearray(min(_PIECE, stored.size)))
    left = stored.size
    try:
        with stored.file.open("rb", buffering=0) as file:
            file.seek(stored.start)
            while left:
                count = file.readinto(view[: min(_PIECE, left)])
                if not count:
                    raise RepositoryError(
                        f"'{stored.file}' ended in the middle of '{stored.name}'.", "Download or save it again."
                    )
                left -= count
                yield view[:count]
    except OSError as error:
        if isinstance(error, RepositoryError):
            raise
        raise RepositoryError(
            f"'{stored.file}' cannot be read: {error.strerror or error}.", "Check the disk, or download it again."
        ) from error


def _write_all(file: Any, content: Any) -> None:
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]  # an unbuffered write may be short where the disk fills up
