"""A copy of one tuner layer for PEFT's own merge, which then touches neither the layer nor the base that it is on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from taia_hub.updates.peft.layers import peft_class


def mergeable_twin(layer: Any, adapter: str, tensors: Mapping[str, Tensor | None], weight: Any = 1) -> Any:
    """Copies a tuner layer of PEFT, without its factors, onto a base layer that holds `tensors`.

    The result is of PEFT's own class, with the adapter's scaling multiplied by `weight`. Its `merge(...)` may overwrite
    `tensors`, and leaves the merged ones in `twin.get_base_layer()`.
    """
    twin = _shallow(layer)
    twin.__class__ = peft_class(layer)
    for name, child in twin._modules.items():
        twin._modules[name] = _shallow(child)  # a merge may exchange what is in it
    base = _shallow(layer.get_base_layer())
    base.__dict__.pop("_taia_tuned", None)  # it shows what it is given, whatever the setting
    for name, tensor in tensors.items():
        if tensor is not None:
            base._parameters[name] = nn.Parameter(tensor, requires_grad=False)
    twin._modules["base_layer"] = base  # straight to it where wrappers are nested
    if weight != 1:
        twin.scaling = {**twin.scaling, adapter: twin.scaling[adapter] * weight}
    return twin


def _shallow(module: Any) -> Any:
    """Copies a module without its tensors: what is set in the copy stays there."""
    twin = copy.copy(module)
    twin.__dict__.update({k: copy.copy(v) for k, v in twin.__dict__.items() if isinstance(v, (dict, list, set))})
    return twin
