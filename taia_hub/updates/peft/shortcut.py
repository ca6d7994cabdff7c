"""The short way through a linear layer with an update: products with the weights, no call of the modules inside.

It is taken in eager inference in which nobody looks on. While a token is generated, the weights stream through the
processor's caches, so that between two layers every Python object has to come from memory again. What a layer costs
beyond its products is therefore the number of objects that its call touches. The usual way touches those of three or
four modules; the short way keeps the few that it needs. They are modules and the dictionaries of their attributes,
which are read at every call: whoever exchanges a weight, a scale or a module, hooks one, or lets accelerate or
`torch.compile` have it, is obeyed, most of them by the usual way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from taia_hub.common.rebuildable import Rebuildable
from taia_hub.switch.switch import Switch
from taia_hub.updates.peft.lora import add_update

_SHORTCUT, _TOKEN = "_taia_shortcut", "_taia_token"
_CALL, _LINEAR = nn.Module.__call__, nn.Linear.forward


class Inside(NamedTuple):
    """The linear layer inside a tuner layer, and what says that it may be passed by."""

    siblings: Mapping[str, nn.Module | None]
    """The tuner layer's modules."""
    base: nn.Module
    kind: type
    """Its class."""
    state: Mapping[str, Any]
    """Its attributes."""
    hooks: Mapping[int, Any]
    """Those of the tuner layer."""
    pre_hooks: Mapping[int, Any]


class Factor(NamedTuple):
    """One factor of a LoRA layer."""

    name: str
    """`lora_A` or `lora_B`."""
    adapter: str
    factors: nn.Module
    """Those of all adapters."""
    siblings: Mapping[str, nn.Module | None]
    """Adapter to its factor."""
    module: nn.Module
    state: Mapping[str, Any]
    """Its attributes."""


class Lora(NamedTuple):
    """What a LoRA layer adds."""

    switch: Switch
    site: int
    adapter: str
    active: str | list[str]
    """PEFT's own list of active adapters."""
    merged: list[str]
    scaling: Mapping[str, float]
    a: Factor
    b: Factor


class Shortcut(Rebuildable):
    """A tuner layer that keeps what its short way needs, until any attribute of it is set."""

    def _find(self) -> tuple[Any, ...] | None:
        """Collects what the short way needs; None where the layer's state asks for the usual one."""
        raise NotImplementedError

    def _parts(self) -> tuple[Any, ...] | None:
        """Returns what the short way needs, as of the last attribute that was set, in whatever thread."""
        state = self.__dict__
        token = state.get(_TOKEN)
        kept: tuple[Any, ...] | None = state.get(_SHORTCUT)
        if kept is None or kept[0] is not token:
            found = self._find()
            if found is None:
                return None
            kept = state[_SHORTCUT] = (token, *found)
        return kept

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        self.__dict__[_SHORTCUT] = None
        self.__dict__[_TOKEN] = object()  # last, so that what another thread finds meanwhile is not kept

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[assignment]
        return {**state, _SHORTCUT: None, _TOKEN: None}


class ShortBase(Shortcut):
    """A tuner layer that adds nothing: the linear layer inside runs alone."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the layer inside; anything but one tensor without gradients goes the usual way."""
        if _is_ordinary(args, kwargs) and (parts := self._parts()) is not None:
            parameters = _parameters_inside(*parts[1])
            if parameters is not None:
                return F.linear(args[0], parameters["weight"], parameters["bias"])
        return nn.Module.__call__(self, *args, **kwargs)

    def _find(self) -> tuple[Inside] | None:
        inside = _find_inside(self.__dict__)
        return None if inside is None else (inside,)


class ShortLinear(Shortcut):
    """A plain LoRA layer on a linear layer: under the setting in force its factors act, or are left alone."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Adds the update; anything but one tensor without gradients goes the usual way."""
        if _is_ordinary(args, kwargs) and (parts := self._parts()) is not None:
            _, inside, (switch, site, adapter, active, merged, scaling, first, second) = parts
            parameters = _parameters_inside(*inside)
            if parameters is not None and not merged and (active == adapter or active == [adapter]):
                x, acting = args[0], switch.acting().weights[site]
                if acting == 0:
                    return F.linear(x, parameters["weight"], parameters["bias"])
                a, b = _parameters_of(inside.siblings, *first), _parameters_of(inside.siblings, *second)
                if a is not None and b is not None:
                    y = F.linear(x, parameters["weight"], parameters["bias"])
                    if x.dtype != a["weight"].dtype:  # PEFT keeps the factors of a 16-bit base in float32
                        x = x.to(a["weight"].dtype)
                    return add_update(y, x, a["weight"], b["weight"], b["bias"], scaling[adapter], acting, True)
        return nn.Module.__call__(self, *args, **kwargs)

    def _find(self) -> tuple[Inside, Lora] | None:
        state = self.__dict__
        if state["training"] or state["_disable_adapters"] or not state.get("cast_input_dtype_enabled", True):
            return None
        adapter, active = state["_taia_adapter"], state["_active_adapter"]
        inside = _find_inside(state)
        a, b = (_find_factor(state["_modules"], name, adapter) for name in ("lora_A", "lora_B"))
        if inside is None or a is None or b is None:
            return None
        switch, site = state["_taia_switch"], state["_taia_site"]
        return inside, Lora(switch, site, adapter, active, state["merged_adapters"], state["scaling"], a, b)


def _is_ordinary(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Tells a call of one tensor in eager inference, in which nobody waits for every module."""
    return (
        not torch.compiler.is_compiling()
        and not kwargs
        and len(args) == 1
        and type(args[0]) is Tensor
        and not torch.is_grad_enabled()
        and torch._C._get_tracing_state() is None
        and not _global_forward_hooks
        and not _global_forward_pre_hooks
        and nn.Module.__call__ is _CALL
        and nn.Linear.forward is _LINEAR
    )


def _parameters_inside(
    siblings: Mapping[str, nn.Module | None],
    base: nn.Module,
    kind: type,
    state: Mapping[str, Any],
    hooks: Mapping[int, Any],
    pre_hooks: Mapping[int, Any],
) -> Mapping[str, Any] | None:
    """Returns the parameters of the linear layer inside; None where it wants to be called, or has others."""
    if hooks or pre_hooks or siblings.get("base_layer") is not base or base.__class__ is not kind:
        return None
    return _parameters(state)


def _parameters_of(
    outer: Mapping[str, nn.Module | None],
    name: str,
    adapter: str,
    factors: nn.Module,
    siblings: Mapping[str, nn.Module | None],
    module: nn.Module,
    state: Mapping[str, Any],
) -> Mapping[str, Any] | None:
    """Returns the parameters of a factor; None where it wants to be called, was exchanged, or is elsewhere."""
    if outer.get(name) is not factors or siblings.get(adapter) is not module:
        return None
    found = _parameters(state)
    return None if found is None or found["weight"].is_meta else found


def _parameters(state: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the parameters of a linear layer by its attributes; None where its call is not a product with them.

    Hooks say so, attributes of the instance with which accelerate and `Module.compile` take its call over, and
    parameters that were made into something else.
    """
    if state["_forward_hooks"] or state["_forward_pre_hooks"] or "forward" in state or "_compiled_call_impl" in state:
        return None
    parameters: Mapping[str, Any] = state["_parameters"]
    return None if parameters.get("weight") is None or "bias" not in parameters else parameters


def _find_inside(state: Mapping[str, Any]) -> Inside | None:
    """Collects what is kept of the linear layer inside a tuner layer; None where it is no plain one."""
    base = state["_modules"].get("base_layer")
    if "forward" in state or "_compiled_call_impl" in state or not isinstance(base, nn.Linear):
        return None
    if type(base).forward is not _LINEAR or type(base).__call__ is not _CALL:
        return None
    hooks, pre_hooks = state["_forward_hooks"], state["_forward_pre_hooks"]
    return Inside(state["_modules"], base, type(base), base.__dict__, hooks, pre_hooks)


def _find_factor(outer: Mapping[str, nn.Module | None], name: str, adapter: str) -> Factor | None:
    """Collects what is kept of a factor; None where it is no plain linear layer."""
    factors = outer.get(name)
    module = None if factors is None else factors._modules.get(adapter)
    if factors is None or module is None or type(module) is not nn.Linear:
        return None
    return Factor(name, adapter, factors, factors._modules, module, module.__dict__)
