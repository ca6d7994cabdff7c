"""Where models run: CUDA or MPS where there is one, or what was asked for, checked before anything is loaded."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import traceback
from collections.abc import Iterator
from typing import Any

from taia_hub.errors import ConfigError, OutOfMemoryError, closest

_KINDS = ("cpu", "cuda", "mps")
_SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")  # what accelerate spreads over all there is
_FULL = re.compile("out of memory|not enough memory|can't allocate memory", re.IGNORECASE)
_CPU = "Give --device cpu, or leave it out."


def choose_device(asked: str | None = None) -> str:
    """Returns where a model goes: `"cuda"` where there is a GPU, else `"mps"` on a Mac, else `"cpu"`.

    Each of several processes that accelerate launched has a GPU of its own, and ACCELERATE_USE_CPU holds here too.

    Args:
        asked: What was asked for instead: `"cpu"`, `"cuda"`, `"cuda:1"` and so on, or `"mps"`.

    Raises:
        ConfigError: If what was asked for is no device, or not there.

    Example:
        >>> choose_device("cpu")
        'cpu'
    """
    import torch

    if asked is not None:
        _check(asked)
        return asked
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true"):
        return "cpu"
    if torch.cuda.is_available():
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if several else "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def place(device: str | None = None, device_map: str | None = None) -> str | None:
    """Returns the `device_map` to load a model with: None for the CPU.

    Args:
        device: As of `choose_device`.
        device_map: transformers' own, such as `"auto"`, instead.

    Raises:
        ConfigError: If both are given, or what is asked for is not there.

    Example:
        >>> place("cpu"), place(device_map="auto")
        (None, 'auto')
    """
    if device is not None and device_map is not None:
        raise ConfigError("--device and --device-map do not go together.", "Leave one out.")
    if device_map in _SPREAD:
        return device_map
    if device_map is not None:
        _check(device_map, _SPREAD)
        return device_map
    chosen = choose_device(device)
    return None if chosen == "cpu" else chosen


def placement(model: Any) -> str:
    """Says where a loaded model runs and in which dtype, as in `"on cuda:0, bfloat16"`."""
    devices = dict.fromkeys(str(parameter.device) for parameter in model.parameters())
    return f"on {' and '.join(devices) or model.device}, {str(model.dtype).removeprefix('torch.')}"


@contextlib.contextmanager
def fitting() -> Iterator[None]:
    """Says of a model that is loaded and does not fit into the memory what would, once that is free again."""
    full = False
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError, and what MPS and the CPU raise in its place
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold what was allocated
        full = True
    if full:
        free_memory()
        raise OutOfMemoryError(
            "The model does not fit into the memory of the device; what was allocated is free again.",
            'Spread it over all devices with --device-map auto (device_map="auto"), load it on the CPU with --device '
            "cpu, or in a smaller --dtype, such as bfloat16.",
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an error says that the memory does not suffice."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_FULL.search(str(error))))


def free_memory() -> None:
    """Gives back what was allocated and is no longer used."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _check(asked: str, more: tuple[str, ...] = ()) -> None:
    """Refuses a device that is none, or that is not there."""
    import torch

    kind, _, index = asked.partition(":")
    if kind not in _KINDS or (":" in asked and (kind == "cpu" or not re.fullmatch(r"0|[1-9]\d{0,3}", index))):
        try:
            torch.device(asked)  # of another kind than these, for people who have one
            known = kind not in _KINDS
        except RuntimeError:
            known = False
        if known:
            return
        raise ConfigError(
            f"The device '{asked}' is not known.{closest(asked, (*_KINDS, *more))}",
            f"Choose {', '.join(('cpu', 'cuda', 'cuda:1 (or another number)', 'mps', *more))}.",
        )
    if kind == "cuda":
        _check_cuda(asked, int(index or 0))
    elif kind == "mps" and (index not in ("", "0") or not torch.backends.mps.is_available()):
        raise ConfigError(f"The device '{asked}' is not there: it is the GPU of a Mac.", _CPU)


def _check_cuda(asked: str, index: int) -> None:
    import torch

    if not torch.cuda.is_available():
        if torch.version.cuda is None and torch.version.hip is None:
            raise ConfigError(
                f"The device '{asked}' is not there: this PyTorch ({torch.__version__}) is built without CUDA.",
                f"Install one with CUDA (https://pytorch.org/get-started/locally). {_CPU}",
            )
        raise ConfigError(
            f"The device '{asked}' is not there: PyTorch {torch.__version__} finds no GPU that it can use.",
            f"`nvidia-smi` says whether there is one, and its driver's version. {_CPU}",
        )
    if index >= (count := torch.cuda.device_count()):
        there = ", ".join(f"cuda:{number}" for number in range(count))
        raise ConfigError(f"The device '{asked}' is not there: there is {there}.", "Choose one of them.")
