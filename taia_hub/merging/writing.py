"""Writing the shards of a plan: untouched tensors pass through in small pieces, computed ones are held one job long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from taia_hub.merging.jobs import Job
from taia_hub.merging.planning import MergePlan, Piece
from taia_hub.merging.state import Scratch
from taia_hub.repository.opening import OpenedUpdate
from taia_hub.weights.checkpoint import Checkpoint
from taia_hub.weights.shards import OutgoingTensor, converted, outgoing, sliced, write_file

_WORKERS = 2  # hashing takes one core a gigabyte a second, so that two shards are written at a time


def write_plan(
    plan: MergePlan,
    update: OpenedUpdate,
    checkpoint: Checkpoint,
    scratch: Scratch,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Writes the shards that are not there yet, and enters each in `scratch` when it is whole.

    `advance` is called with the number of bytes after each piece, from any thread. A dtype that cannot hold a weight is
    a `ConfigError`; a shard that cannot be written, an `OSError`.
    """
    stop = threading.Event()
    # One job at a time, because it fills the layers, and in one thread: every thread that computes keeps buffers.
    computer = ThreadPoolExecutor(1)

    def compute(job: Job) -> Mapping[str, Tensor]:
        return computer.submit(job.tensors, update, checkpoint).result()

    def tell(count: int) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        if advance is not None:
            advance(count)

    def write(name: str) -> None:
        with scratch.partial() as path:
            digest = write_file(path, list(_outgoing(plan.shards[name], compute)), tell)
            scratch.enter(name, path, digest)

    missing = [name for name in plan.shards if name not in scratch.finished]
    with computer, ThreadPoolExecutor(min(_WORKERS, max(len(missing), 1))) as pool:
        jobs = [pool.submit(write, name) for name in missing]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            stop.set()
            for job in jobs:
                job.cancel()
            raise


def _outgoing(pieces: tuple[Piece, ...], compute: Callable[[Job], Mapping[str, Tensor]]) -> Iterator[OutgoingTensor]:
    held: dict[int, Mapping[str, Tensor]] = {}
    last = {id(piece.job): piece.name for piece in pieces if piece.job is not None}

    def computed(piece: Piece, job: Job) -> Iterator[Tensor]:
        if id(job) not in held:
            held.clear()  # before the next one takes its memory
            held[id(job)] = compute(job)
        yield from sliced(held[id(job)][piece.name], piece.dtype, piece.name)
        if last[id(job)] == piece.name:
            held.clear()

    def bound(piece: Piece, job: Job) -> OutgoingTensor:
        return OutgoingTensor(piece.name, piece.dtype, piece.shape, lambda: computed(piece, job))

    for piece in pieces:
        if piece.job is not None:
            yield bound(piece, piece.job)
        elif piece.dtype == piece.source.dtype:
            yield outgoing(piece.source)
        else:
            yield converted(piece.source, piece.dtype)
