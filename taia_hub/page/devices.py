"""Where the page's model runs: ZeroGPU, a GPU of its own, or a CPU."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def zero_gpu() -> Any:
    """Returns the `spaces` package that lends a GPU for a call, or None where it is not installed.

    A folder named `spaces` on the path is not it: such a namespace has no origin.
    """
    spec = importlib.util.find_spec("spaces")
    return importlib.import_module("spaces") if spec is not None and spec.origin else None


def on_gpu(duration: Callable[..., float], size: str | None = None) -> Callable[[F], F]:
    """Decorates a function that needs the GPU: on ZeroGPU one is lent for the call, elsewhere nothing changes.

    `duration` takes the call's arguments and returns the seconds that it may take; the size `"xlarge"` is a whole card.
    """
    spaces = zero_gpu()
    if spaces is None:
        return lambda function: function
    decorate: Callable[[F], F] = spaces.GPU(duration=duration, size=size)
    return decorate


def choose_dtype(device: str) -> torch.dtype:
    """Returns the dtype that models run in: bfloat16 on a GPU, and on a CPU the faster one of it and float32."""
    if device != "cpu":
        return torch.bfloat16
    return min((torch.float32, torch.bfloat16), key=_decoding_time)


def _decoding_time(dtype: torch.dtype, size: int = 1024, rows: int = 4, repeats: int = 5) -> float:
    """Times what decoding does on a CPU: a few rows times a weight."""
    weight, x = torch.zeros(size, size, dtype=dtype), torch.zeros(rows, size, dtype=dtype)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(8):
            torch.nn.functional.linear(x, weight)
        times.append(time.perf_counter() - start)
    return min(times)
