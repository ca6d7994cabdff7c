"""The direct way through a linear layer with an update: eager inference in which nobody looks on.

While a token is generated, the weights stream through the processor's caches, so that between two layers every Python
object has to come from memory again. What a layer costs beyond its products is therefore the number of objects that
its call touches. The usual way touches those of three or four modules; the direct way keeps the few that it needs in
one tuple. They are containers, whose contents are read at every call: whoever exchanges a weight, a scale or a module,
hooks one, or lets accelerate or `torch.compile` have it, is obeyed, most of them by the usual way.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from taia_hub._subclass import Rebuildable
from taia_hub.updates.lora import add_update

_PARTS = "_taia_parts_of_call"
_TAKEN_OVER = ("forward", "_compiled_call_impl")
# ^ attributes of an instance by which accelerate and `Module.compile` take its call over

_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_is_tracing = torch._C._get_tracing_state


class DirectCall(Rebuildable):
    """A tuner layer that keeps what its direct way needs, until any attribute of it is set."""

    def _find(self) -> tuple[Any, ...] | None:
        """Collects what the direct way needs; None where the layer's state asks for the usual one."""
        raise NotImplementedError

    def _kept(self) -> tuple[Any, ...] | None:
        parts = self._find()
        if parts is not None:
            self.__dict__[_PARTS] = parts
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
        if (
            _is_compiling()
            or kwargs
            or len(args) != 1
            or type(args[0]) is not Tensor
            or _is_grad_enabled()
            or _is_tracing() is not None
            or _global_forward_hooks
            or _global_forward_pre_hooks
            or (parts := self.__dict__.get(_PARTS) or self._kept()) is None
        ):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        modules, base, its, parameters, hooks, pre_hooks, base_hooks, base_pre_hooks = parts
        if (
            hooks
            or pre_hooks
            or base_hooks
            or base_pre_hooks
            or "forward" in its
            or "_compiled_call_impl" in its
            or modules["base_layer"] is not base
            or (weight := parameters.get("weight")) is None
        ):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        return F.linear(args[0], weight, parameters.get("bias"))

    def _find(self) -> tuple[Any, ...] | None:
        state = self.__dict__
        return None if any(name in state for name in _TAKEN_OVER) else base_parts(state)


class DirectLinear(DirectCall):
    """A plain LoRA layer on a linear layer: under the setting in force its factors act, or are left alone."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Adds the update; anything but one tensor without gradients goes the usual way."""
        if (
            _is_compiling()
            or kwargs
            or len(args) != 1
            or type(args[0]) is not Tensor
            or _is_grad_enabled()
            or _is_tracing() is not None
            or _global_forward_hooks
            or _global_forward_pre_hooks
            or (parts := self.__dict__.get(_PARTS) or self._kept()) is None
        ):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        inside, own, one, other = parts
        modules, base, its, parameters, hooks, pre_hooks, base_hooks, base_pre_hooks = inside
        switch, site, merged, scaling, name = own
        if (
            hooks
            or pre_hooks
            or base_hooks
            or base_pre_hooks
            or merged
            or "forward" in its
            or "_compiled_call_impl" in its
            or modules["base_layer"] is not base
            or (weight := parameters.get("weight")) is None
        ):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        acting = switch.acting().weights[site]
        x = args[0]
        if acting == 0:
            return F.linear(x, weight, parameters.get("bias"))
        firsts, first, its_a, a_hooks, a_pre_hooks = one
        seconds, second, its_b, b_hooks, b_pre_hooks = other
        if (
            a_hooks
            or a_pre_hooks
            or b_hooks
            or b_pre_hooks
            or firsts.get(name) is not first
            or seconds.get(name) is not second
            or (a := its_a.get("weight")) is None
            or (b := its_b.get("weight")) is None
            or a.is_meta
            or a.dtype != x.dtype
        ):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        y = F.linear(x, weight, parameters.get("bias"))
        return add_update(y, x, a, b, its_b.get("bias"), scaling[name], acting, True)

    def _find(self) -> tuple[Any, ...] | None:
        state = self.__dict__
        name, active = state["_taia_adapter"], state["_active_adapter"]
        if (
            state["training"]
            or state["_disable_adapters"]
            or (active != name and active != [name])
            or any(one in state for one in _TAKEN_OVER)
            or (base := base_parts(state)) is None
        ):
            return None
        firsts, seconds = (state["_modules"][key]._modules for key in ("lora_A", "lora_B"))
        first, second = firsts.get(name), seconds.get(name)
        if type(first) is not nn.Linear or type(second) is not nn.Linear:
            return None
        own = (state["_taia_switch"], state["_taia_site"], state["merged_adapters"], state["scaling"], name)
        one = (firsts, first, first._parameters, first._forward_hooks, first._forward_pre_hooks)
        other = (seconds, second, second._parameters, second._forward_hooks, second._forward_pre_hooks)
        return base, own, one, other


def base_parts(state: dict[str, Any]) -> tuple[Any, ...] | None:
    """Collects what the direct way needs of the linear layer inside a tuner layer.

    Args:
        state: The tuner layer's attributes.

    Returns:
        The parts; None where the module inside is no plain linear layer.
    """
    modules = state["_modules"]
    base = modules.get("base_layer")
    if base is None or type(base).forward is not nn.Linear.forward or type(base).__call__ is not nn.Module.__call__:
        return None
    return (
        modules,
        base,
        base.__dict__,
        base._parameters,
        state["_forward_hooks"],
        state["_forward_pre_hooks"],
        base._forward_hooks,
        base._forward_pre_hooks,
    )
