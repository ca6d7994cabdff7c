"""Tensors of safetensors files compared and copied in small pieces, whatever their size."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.weights.checkpoint import DTYPE_NAMES, StoredTensor

SHARD_BYTES = 2 * 10**9
"""Size that a shard does not pass, unless one tensor is larger."""

_PIECE = 1 << 18  # stays in the cache between reading, hashing and writing; 8 MiB took five times as long
_WORKERS = 2  # hashing takes one core a gigabyte a second, so that two shards are written at a time


@dataclass(frozen=True)
class Shard:
    """A file that was written, with the names of the tensors in it."""

    name: str
    sha256: str
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class OutgoingTensor:
    """A tensor that is to be written.

    `pieces` gives its bytes as uint8 tensors in their order; each is read before the next is asked for.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[Tensor]]

    @property
    def size(self) -> int:
        """Number of its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def same_values(one: StoredTensor, other: StoredTensor) -> bool:
    """Tells whether two tensors hold the same numbers, bit for bit, and have the same shape.

    Tensors of different dtypes are compared in the dtype that holds the numbers of both: a bfloat16 tensor equals its
    exact float32 copy, and a float32 tensor does not equal what it was rounded to.
    """
    if one.shape != other.shape:
        return False
    if one.kind == other.kind:
        pieces = zip(_pieces(one, _PIECE), _pieces(other, _PIECE), strict=True)
        return all(torch.equal(_words(a), _words(b)) for a, b in pieces)
    count = _PIECE // 8
    wide = torch.promote_types(one.dtype, other.dtype)
    if one.dtype.is_floating_point != other.dtype.is_floating_point:
        return False
    pieces = zip(_pieces(one, count * one.dtype.itemsize), _pieces(other, count * other.dtype.itemsize), strict=True)
    return all(torch.equal(_words(a.view(one.dtype).to(wide)), _words(b.view(other.dtype).to(wide))) for a, b in pieces)


def write_shards(
    folder: Path,
    tensors: Sequence[StoredTensor],
    *,
    stem: str,
    shard_bytes: int = SHARD_BYTES,
    advance: Callable[[int], None] | None = None,
) -> tuple[Shard, ...]:
    """Copies tensors from their files into new shards; each byte is read, hashed and written once.

    No shard passes `shard_bytes`, unless one tensor is larger. `advance` is called with the number of bytes after each
    piece, from any thread.
    """
    parts = _split(sorted(tensors, key=lambda one: (one.file.name, one.start)), shard_bytes)
    names = [f"{stem}-{number:05d}-of-{len(parts):05d}.safetensors" for number in range(1, len(parts) + 1)]
    with ThreadPoolExecutor(min(_WORKERS, max(len(parts), 1))) as pool:
        jobs = [pool.submit(_write, folder / name, part, advance) for name, part in zip(names, parts, strict=True)]
        try:
            digests = [job.result() for job in jobs]
        except BaseException:
            for job in jobs:
                job.cancel()
            raise
    return tuple(
        Shard(name, digest, tuple(one.name for one in part))
        for name, digest, part in zip(names, digests, parts, strict=True)
    )


def _split(tensors: Sequence[StoredTensor], shard_bytes: int) -> list[list[StoredTensor]]:
    parts: list[list[StoredTensor]] = []
    size = 0
    for one in tensors:
        if not parts or size + one.size > shard_bytes:
            parts.append([])
            size = 0
        parts[-1].append(one)
        size += one.size
    return parts


def _write(path: Path, tensors: Sequence[StoredTensor], advance: Callable[[int], None] | None) -> str:
    # The widest dtypes first, so that every tensor lies at a multiple of its element's size.
    ordered = sorted(tensors, key=lambda one: -one.dtype.itemsize)
    return write_file(path, [outgoing(one) for one in ordered], advance)


def outgoing(stored: StoredTensor) -> OutgoingTensor:
    """Makes of a stored tensor one that is to be written as it is, in small pieces."""
    return OutgoingTensor(stored.name, stored.dtype, stored.shape, lambda: _pieces(stored, _PIECE))


def converted(stored: StoredTensor, dtype: torch.dtype) -> OutgoingTensor:
    """Makes of a stored tensor one that is to be written in another dtype, in small pieces.

    Its pieces raise ConfigError where the dtype cannot hold a value.
    """

    def pieces() -> Iterator[Tensor]:
        for piece in _pieces(stored, _PIECE):
            yield _narrowed(piece.view(stored.dtype), dtype, stored.name).view(torch.uint8)

    return OutgoingTensor(stored.name, dtype, stored.shape, pieces)


def sliced(tensor: Tensor, dtype: torch.dtype, name: str) -> Iterator[Tensor]:
    """Yields the bytes of a tensor in memory as uint8 pieces, each of at most 256 KiB before it becomes `dtype`.

    Raises:
        ConfigError: If the dtype cannot hold a value; it calls the tensor `name`.
    """
    if tensor.numel():
        for piece in tensor.contiguous().reshape(-1).split(_PIECE // tensor.itemsize):
            yield _narrowed(piece, dtype, name).view(torch.uint8)


def _narrowed(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    made = tensor.to(dtype)
    if dtype != tensor.dtype and (lost := made.isinf() & tensor.isfinite()).any():
        raise ConfigError(
            f"'{name}' holds {float(tensor[lost][0]):.4g}, which becomes infinite in {dtype}: its largest number is "
            f"{torch.finfo(dtype).max:.4g}.",
            "Choose bfloat16 or float32.",
        )
    return made


def read_whole(stored: StoredTensor) -> Tensor:
    """Reads a tensor into memory of its own; no page of the file counts as this process's memory."""
    for piece in _pieces(stored, stored.size):
        return piece.view(stored.dtype).reshape(stored.shape)
    return torch.empty(stored.shape, dtype=stored.dtype)


def write_file(path: Path, tensors: Sequence[OutgoingTensor], advance: Callable[[int], None] | None = None) -> str:
    """Writes a safetensors file and returns its sha256; each byte is asked for, hashed and written once, in order.

    Tensors of wider dtypes must come first, so that every one lies at a multiple of its element's size.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for one in tensors:
        header[one.name] = {
            "dtype": DTYPE_NAMES[one.dtype],
            "shape": list(one.shape),
            "data_offsets": [end, end + one.size],
        }
        end += one.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for content in (len(text).to_bytes(8, "little"), text):
            _write_all(file, content)
            digest.update(content)
        for one in tensors:
            for piece in one.pieces():
                view = piece.numpy().data
                digest.update(view)
                _write_all(file, view)
                if advance is not None:
                    advance(len(view))
    return digest.hexdigest()


def _write_all(file: Any, content: Any) -> None:
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]  # an unbuffered write may be short where the disk fills up


def _pieces(stored: StoredTensor, size: int) -> Iterator[Tensor]:
    """Reads a tensor's bytes into one buffer, piece by piece: uint8 tensors of at most `size` bytes.

    The file is read and not mapped: pages of a map count as this process's memory until it is closed, and a file that
    shrinks under a map ends the process without an error.
    """
    buffer = torch.empty(min(size, stored.size), dtype=torch.uint8)
    array: Any = buffer.numpy()
    view = memoryview(array)
    left = stored.size
    try:
        with stored.file.open("rb", buffering=0) as file:
            file.seek(stored.start)
            while left:
                piece = view[: min(size, left)]
                filled = 0
                while filled < len(piece):
                    count = file.readinto(piece[filled:])
                    if not count:
                        raise RepositoryError(
                            f"'{stored.file}' ended in the middle of '{stored.name}'.", "Download or save it again."
                        )
                    filled += count
                left -= filled
                yield buffer[:filled]
    except OSError as error:
        if isinstance(error, RepositoryError):
            raise
        raise RepositoryError(
            f"'{stored.file}' cannot be read: {error.strerror or error}.", "Check the disk, or download it again."
        ) from error


def _words(tensor: Tensor) -> Tensor:
    """Views a tensor's bytes in words as wide as its size allows: NaNs equal themselves, and zeros keep their sign."""
    raw = tensor.reshape(-1).view(torch.uint8)
    width = math.gcd(raw.numel(), 8) or 8
    return raw.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[width])
