"""How an update of any kind is put on a base model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class AttachOptions:
    """How an update is put on a base model.

    Attributes:
        roles: Module path to role, of the base before the update is in it.
        unplaced: Paths of modules whose role could not be told.
        inference_modules: The setting that acts at first.
        is_trainable: Whether the update can be trained on.
        autocast_adapter_dtype: Whether PEFT keeps 16-bit adapter weights in float32.
        read_base: Gives a weight of the base by its name, for a model that holds none; None where it is out of reach.
    """

    roles: Mapping[str, str]
    unplaced: Sequence[str] = ()
    inference_modules: Any = "attention"
    is_trainable: bool = False
    autocast_adapter_dtype: bool = True
    read_base: Callable[[str], Tensor | None] | None = None
