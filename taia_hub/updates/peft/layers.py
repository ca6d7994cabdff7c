"""Makes PEFT's layers obey the switch, by swapping each layer's class for a subclass of it.

Plain LoRA on Linear and Conv1D gets our own lean forward, and so do MoLoRA's experts; MoE parameters get one that
leaves the shared module alone; every other layer keeps PEFT's forward and takes its base path while its update is
masked.
Patching the instance instead would be lost on a copy, and accelerate keeps an instance's old forward.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any, cast

import torch
from accelerate.utils import align_module_device
from peft.tuners.lora.layer import (
    Conv1d,
    Conv2d,
    Conv3d,
    Embedding,
    Linear,
    LoraLayer,
    MultiheadAttention,
    ParamWrapper,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from taia_hub.common.rebuildable import Rebuildable, subclass
from taia_hub.errors import SettingError, UnsupportedUpdateError
from taia_hub.roles.sublayers import is_routed
from taia_hub.switch.switch import Switch
from taia_hub.switch.weight import LearnedWeight, RowWeights, Weight
from taia_hub.updates.molora.layers import MoLoraLinear
from taia_hub.updates.peft.lora import add_update, add_update_in_graph, with_update_in_graph
from taia_hub.updates.peft.shortcut import ShortBase, ShortLinear

_INSIDE = ("base_layer", "token_adapter", "original_module")
# ^ what tuner layers and PEFT's wrappers call the module inside
# LoRA layers whose PEFT forward takes `adapter_names`, by class name: the quantised ones import only with their backend
_ROWS_BY_NAME = (Embedding.__name__, Conv1d.__name__, Conv2d.__name__, Conv3d.__name__, "Linear8bitLt", "Linear4bit")


class SwitchedLayer(Rebuildable):
    """A tuner layer that takes its base path while its update is masked. PEFT's own forward does the rest."""

    _taia_switch: Switch
    # ^ the switch of the model that the layer belongs to; a copy of the model copies both
    _taia_site: int
    # ^ index of this layer in `Switch.sites`
    _taia_adapter: str
    # ^ name of the adapter that the switch governs

    def _acting(self) -> Weight:
        return self._taia_switch.acting().weights[self._taia_site]

    @property
    def disable_adapters(self) -> bool:
        """Whether the update is off: by PEFT's own flag, or masked by the setting in force."""
        return self._disable_adapters or self._acting() == 0  # type: ignore[attr-defined]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs PEFT's forward, with adapter names by row where the rows' settings differ."""
        weight = self._acting()
        layer: Any = self
        if getattr(layer, "merged_adapters", None):
            raise _merged(layer)
        if weight == 0 and isinstance(self, BaseTunerLayer):
            return layer.base_layer(*args, **kwargs)  # not every method's forward asks `disable_adapters`
        if isinstance(weight, RowWeights):
            names = [self._taia_adapter if one else "__base__" for one in weight.per_row(len(args[0]))]
            kwargs["adapter_names"] = names
        return super().forward(*args, **kwargs)  # type: ignore[misc]


class SwitchedLinear(ShortLinear, SwitchedLayer):
    """A plain LoRA layer on Linear or Conv1D: any weight, rows, one compiled graph."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Adds the update under the setting in force: (N, ..., D_in) to (N, ..., D_out), in the base layer's dtype."""
        layer: Any = self
        name, active = layer._taia_adapter, layer._active_adapter
        if (
            "adapter_names" in kwargs
            or layer.merged_adapters
            or layer._disable_adapters
            or (active != name and active != [name])
        ):
            return super().forward(x, *args, **kwargs)
        base = layer.base_layer
        compiling = torch.compiler.is_compiling()
        if not compiling:
            weight = self._acting()
            if weight == 0:
                return base(x, *args, **kwargs)
        first, second = layer.lora_A[name], layer.lora_B[name]
        if not compiling and weight == 1 and _hooked(first, second):  # whoever hooks the factors wants them called
            return super().forward(x, *args, **kwargs)
        if first.weight.is_meta:  # accelerate offloaded it, and would bring it where `first` and `second` were called
            with align_module_device(first), align_module_device(second):
                return self.forward(x, *args, **kwargs)
        y = base(x, *args, **kwargs)
        a, b, bias, scaling = first.weight, second.weight, second.bias, layer.scaling[name]
        if compiling:
            x = layer.lora_dropout[name](x)
            where = scaling, layer._taia_switch.number, layer._taia_site
            if torch.is_grad_enabled():
                return with_update_in_graph(y, x, a, b, bias, *where)[0]
            add_update_in_graph(y, x, a, b, bias, *where)
            return y
        if x.dtype != a.dtype:
            x = layer._cast_input_dtype(x, a.dtype)
        if layer.training:
            x = layer.lora_dropout[name](x)
        in_place = not (torch.is_grad_enabled() or base._forward_hooks)  # a hook may have kept the base's output
        return add_update(y, x, a, b, bias, scaling, weight, in_place)


class SwitchedParameters(SwitchedLayer):
    """A LoRA update of a module's parameter, as of MoE experts (`target_parameters`).

    PEFT registers a parametrization on the shared module for the time of each forward, which other threads then see.
    Here the forward runs on a shallow copy of the module that holds the updated parameters: nothing shared changes.
    """

    @torch.compiler.disable
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Runs the wrapped module with the acting updates of all its wrapped parameters."""
        acting: list[Any] = []
        layer: Any = self
        while isinstance(layer, ParamWrapper):  # wrappers of several parameters of one module are nested
            if not layer.disable_adapters and not layer.merged:
                acting.append(layer)
            layer = layer.base_layer
        if not acting:
            return layer(x, *args, **kwargs)
        with contextlib.ExitStack() as stack:
            name = self._taia_adapter
            for part in (layer, *(factors[name] for one in acting for factors in (one.lora_A, one.lora_B))):
                stack.enter_context(align_module_device(part))  # brings what accelerate offloaded
            module = copy.copy(layer)
            module._parameters = {**layer._parameters, **{one.parameter_name: one._updated() for one in acting}}
            module.__dict__.pop("forward", None)  # accelerate's hook would run the module that was copied
            return module(x, *args, **kwargs)

    def _updated(self) -> Tensor:
        """Returns the parameter with its update, computed as PEFT does, under the weight in force."""
        name = self._taia_adapter
        parameter: Tensor = self.get_param()  # type: ignore[attr-defined]
        weight: Any = self._acting()
        if self.num_experts > 1:  # type: ignore[attr-defined]
            left, right, scaling = self.get_delta_factors(name)  # type: ignore[attr-defined]
            if isinstance(weight, LearnedWeight):
                left, weight = (left * weight.beside(left)).to(left.dtype), 1.0
            with torch.autocast(device_type=parameter.device.type, enabled=False):
                return torch.baddbmm(parameter, left, right, alpha=scaling * weight)
        delta: Tensor = self.get_delta_weight(name)  # type: ignore[attr-defined]
        if isinstance(weight, LearnedWeight):
            return (parameter + delta * weight.beside(delta)).to(parameter.dtype)
        return parameter + (delta if weight == 1 else delta * weight)


class SwitchedExperts(SwitchedLayer):
    """A linear layer with routed LoRA experts (MoLoRA): any weight, and rows."""

    @torch.compiler.disable  # the sizes of the groups of tokens depend on the data
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Adds the chosen experts' updates under the setting in force. Arguments as in `SwitchedLinear.forward`."""
        layer: Any = self
        name, weight = self._taia_adapter, self._acting()
        if weight == 0 or "adapter_names" in kwargs or layer._disable_adapters or layer.active_adapters != [name]:
            return cast(Tensor, super().forward(x, *args, **kwargs))
        base = layer.base_layer
        y = base(x, *args, **kwargs)
        in_place = not (torch.is_grad_enabled() or base._forward_hooks)  # a hook may have kept the base's output
        return cast(Tensor, layer.add_update(y, x, name, weight, in_place))


class FusedLayer(ShortBase, SwitchedLayer):
    """A tuner layer of a fused model: the module inside holds the update, or does without it."""

    @property
    def inside(self) -> nn.Module:
        """The module inside."""
        layer: Any = self
        return next(layer._modules[name] for name in _INSIDE if name in layer._modules)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module inside."""
        return self.inside(*args, **kwargs)

    def merge(self, *args: Any, **kwargs: Any) -> None:
        """Refuses to add the update a second time."""
        raise SettingError(
            "A layer of a fused model was to be merged; its weight may hold the update already.",
            "Call `model.unfuse()` first.",
        )


def switched_class(layer: nn.Module, adapter: str) -> type:
    """Returns the subclass of a tuner layer's or auxiliary wrapper's own class that makes it obey the switch."""
    return subclass(_mixin(layer, adapter), peft_class(layer))


def whole_only(layer: nn.Module, adapter: str) -> str | None:
    """Says why the layer's update cannot take another weight than 0 or 1; None when it can."""
    if _mixin(layer, adapter) is not SwitchedLayer:
        return None
    return f"{describe(layer)} is switched as a whole; only plain LoRA on Linear, Conv1D and MoE parameters scales"


def same_rows(layer: Any, adapter: str, path: str) -> str | None:
    """Says why the rows of a batch must be treated alike in this layer; None when they need not."""
    mixin = _mixin(layer, adapter)
    if mixin is SwitchedParameters:
        return "the experts' parameters are shared by all rows of the batch"
    if is_routed(path):
        return "a routed expert sees the tokens of all rows mixed"
    if mixin in (SwitchedLinear, SwitchedExperts) or isinstance(layer, AuxiliaryTrainingWrapper):
        return None
    if isinstance(layer, LoraLayer) and type(layer).__name__ in _ROWS_BY_NAME and adapter not in layer.lora_variant:
        return None
    return f"PEFT's {describe(layer)} has no forward by row"


def describe(layer: nn.Module) -> str:
    """Names the method and class of a tuner layer, as in `lora.Linear` or `loha.Linear`."""
    base = peft_class(layer)
    package = base.__module__.split(".")
    name = f"{package[2]}.{base.__name__}" if package[:2] == ["peft", "tuners"] else base.__name__
    variants = getattr(layer, "lora_variant", None) or {}
    return " ".join([name, *sorted({type(variant).__name__ for variant in variants.values()})])


def refusal(layer: nn.Module) -> str | None:
    """Says why a layer cannot be switched at all; None when it can."""
    if isinstance(layer, MultiheadAttention):
        return "PEFT merges its update into the shared weight in every forward, which other threads see"
    return None


def _hooked(*modules: nn.Module) -> bool:
    """Tells factors that do more than multiply: hooked, with a forward of their own, or of another class."""
    return any(
        module._forward_hooks
        or module._forward_pre_hooks
        or ("forward" in module.__dict__ and not hasattr(module, "_hf_hook"))
        or type(module).forward is not nn.Linear.forward
        for module in modules
    )


def _merged(layer: Any) -> UnsupportedUpdateError:
    return UnsupportedUpdateError(
        f"The update of a {describe(layer)} layer is merged into its base weight, so that no setting can act.",
        "Unmerge it first (PEFT's `unmerge_adapter()`).",
    )


def peft_class(layer: nn.Module) -> type:
    """Returns PEFT's class of a layer whose class obeys a switch."""
    return next(cls for cls in type(layer).__mro__ if not issubclass(cls, Rebuildable))


def _mixin(layer: Any, adapter: str) -> type[SwitchedLayer]:
    base = peft_class(layer)
    if base is ParamWrapper:
        return SwitchedParameters
    if base is MoLoraLinear:
        return SwitchedExperts
    # Exactly PEFT's class: quantised layers derive from it or replace it, and have forwards of their own.
    if base is Linear and adapter not in layer.lora_variant and layer.cast_input_dtype_enabled:
        return SwitchedLinear
    return SwitchedLayer
