"""The direct way through a linear layer with an update: eager inference in which nobody looks on.

While a token is generated, the weights stream through the processor's caches, so that between two layers every Python
object has to come from memory again. What a layer costs beyond its products is therefore the number of objects that
its call touches. The usual way touches those of three or four modules; the direct way keeps the few that it needs.
They are containers, whose contents are read at every call: whoever exchanges a weight, a scale or a module, hooks one,
or lets accelerate or `torch.compile` have it, is obeyed, most of them by the usual way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from taia_hub._subclass import Rebuildable
from taia_hub.switch import Switch
from taia_hub.updates.lora import add_update

_PARTS = "_taia_parts_of_call"


class Inside(NamedTuple):
    """The linear layer inside a tuner layer, and what says that it may be passed by."""

    siblings: Mapping[str, nn.Module | None]
    """The tuner layer's modules."""
    base: nn.Module
    state: Mapping[str, Any]
    """Its attributes."""
    parameters: Mapping[str, Tensor | None]
    hooks: Mapping[int, Any]
    pre_hooks: Mapping[int, Any]
    outer_hooks: Mapping[int, Any]
    """Those of the tuner layer."""
    outer_pre_hooks: Mapping[int, Any]


class Factor(NamedTuple):
    """One factor of a LoRA layer."""

    siblings: Mapping[str, nn.Module | None]
    """The factors of all adapters."""
    module: nn.Module
    parameters: Mapping[str, Tensor | None]
    hooks: Mapping[int, Any]
    pre_hooks: Mapping[int, Any]


class Lora(NamedTuple):
    """What a LoRA layer adds."""

    switch: Switch
    site: int
    adapter: str
    merged: list[str]
    scaling: Mapping[str, float]
    a: Factor
    b: Factor


class DirectCall(Rebuildable):
    """A tuner layer that keeps what its direct way needs, until any attribute of it is set."""

    def _find(self) -> Any:
        """Collects what the direct way needs; None where the layer's state asks for the usual one."""
        raise NotImplementedError

    def _parts(self) -> Any:
        parts = self.__dict__[_PARTS] = self._find()
        return parts

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__[_PARTS] = None
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[assignment]
        return {**state, _PARTS: None}


class DirectBase(DirectCall):
    """A tuner layer that adds nothing: the linear layer inside runs alone."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the layer inside; anything but one tensor without gradients goes the usual way."""
        if _is_ordinary(args, kwargs) and (inside := self.__dict__.get(_PARTS) or self._parts()) is not None:
            weight = _weight_inside(*inside)
            if weight is not None:
                return F.linear(args[0], weight, inside.parameters.get("bias"))
        return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def _find(self) -> Inside | None:
        return _find_inside(self.__dict__)


class DirectLinear(DirectCall):
    """A plain LoRA layer on a linear layer: under the setting in force its factors act, or are left alone."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Adds the update; anything but one tensor without gradients goes the usual way."""
        if _is_ordinary(args, kwargs) and (parts := self.__dict__.get(_PARTS) or self._parts()) is not None:
            inside, (switch, site, adapter, merged, scaling, first, second) = parts
            weight = _weight_inside(*inside)
            if weight is not None and not merged:
                x, acting = args[0], switch.acting().weights[site]
                if acting == 0:
                    return F.linear(x, weight, inside.parameters.get("bias"))
                a, b = _weight_of(adapter, *first), _weight_of(adapter, *second)
                if a is not None and b is not None:
                    y = F.linear(x, weight, inside.parameters.get("bias"))
                    if x.dtype != a.dtype:  # PEFT keeps the factors of a 16-bit base in float32
                        x = x.to(a.dtype)
                    return add_update(y, x, a, b, second.parameters.get("bias"), scaling[adapter], acting, True)
        return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def _find(self) -> tuple[Inside, Lora] | None:
        state = self.__dict__
        adapter, active = state["_taia_adapter"], state["_active_adapter"]
        if (
            state["training"]
            or state["_disable_adapters"]
            or not state.get("cast_input_dtype_enabled", True)
            or (active != adapter and active != [adapter])
        ):
            return None
        inside = _find_inside(state)
        factors = [_find_factor(state["_modules"][name]._modules, adapter) for name in ("lora_A", "lora_B")]
        if inside is None or None in factors:
            return None
        merged, scaling = state["merged_adapters"], state["scaling"]
        return inside, Lora(state["_taia_switch"], state["_taia_site"], adapter, merged, scaling, *factors)  # type: ignore[arg-type]


def _is_ordinary(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Tells a call of one tensor in eager inference, in which no hook waits for every module."""
    return (
        not torch.compiler.is_compiling()
        and not kwargs
        and len(args) == 1
        and type(args[0]) is Tensor
        and not torch.is_grad_enabled()
        and torch._C._get_tracing_state() is None
        and not _global_forward_hooks
        and not _global_forward_pre_hooks
    )


def _weight_inside(
    siblings: Mapping[str, nn.Module | None],
    base: nn.Module,
    state: Mapping[str, Any],
    parameters: Mapping[str, Tensor | None],
    *hooks: Mapping[int, Any],
) -> Tensor | None:
    """Returns the weight of the linear layer inside; None where it wants to be called.

    Hooks say so, and attributes of the instance with which accelerate and `Module.compile` take a call over.
    """
    if any(hooks) or siblings.get("base_layer") is not base or "forward" in state or "_compiled_call_impl" in state:
        return None
    return parameters.get("weight")


def _weight_of(
    adapter: str,
    siblings: Mapping[str, nn.Module | None],
    module: nn.Module,
    parameters: Mapping[str, Tensor | None],
    *hooks: Mapping[int, Any],
) -> Tensor | None:
    """Returns a factor; None where its module wants to be called, was exchanged, or its weight is elsewhere."""
    if any(hooks) or siblings.get(adapter) is not module:
        return None
    weight = parameters.get("weight")
    return None if weight is None or weight.is_meta else weight


def _find_inside(state: Mapping[str, Any]) -> Inside | None:
    """Collects what is kept of the linear layer inside a tuner layer; None where it is no plain one."""
    base = state["_modules"].get("base_layer")
    if "forward" in state or "_compiled_call_impl" in state or not isinstance(base, nn.Linear):
        return None
    if type(base).forward is not nn.Linear.forward or type(base).__call__ is not nn.Module.__call__:
        return None
    return Inside(
        state["_modules"],
        base,
        base.__dict__,
        base._parameters,
        base._forward_hooks,
        base._forward_pre_hooks,
        state["_forward_hooks"],
        state["_forward_pre_hooks"],
    )


def _find_factor(siblings: Mapping[str, nn.Module | None], adapter: str) -> Factor | None:
    """Collects what is kept of a factor; None where it is no plain linear layer."""
    module = siblings.get(adapter)
    if type(module) is not nn.Linear:
        return None
    return Factor(siblings, module, module._parameters, module._forward_hooks, module._forward_pre_hooks)
