"""Folding the acting updates into the live weights, so that a model runs at its base's speed, and back bit for bit.

Every folded module gets new tensors and keeps its own beside them; nothing is subtracted again. Each tuner layer goes
straight to the module inside, and the switch tells the layers that nothing acts besides: whatever reaches a layer's
own forward after all (a hook of accelerate's, a graph that was compiled before) adds no update a second time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from peft.tuners.lora.layer import ParamWrapper
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from taia_hub.common.rebuildable import Rebuildable, subclass
from taia_hub.common.shown import Shown
from taia_hub.common.text_tables import byte_size
from taia_hub.errors import SettingError, TAIAError, UnsupportedUpdateError
from taia_hub.switch.calls import CHANGING
from taia_hub.switch.settings import parse_setting
from taia_hub.switch.switch import Acting, Switch
from taia_hub.updates.dense.layers import SwitchedTensors, TunedTensor, mixin_for
from taia_hub.updates.peft.layers import FusedLayer, SwitchedLayer, describe, peft_class, switched_class
from taia_hub.updates.peft.twin import mergeable_twin

_WHOLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_UNFUSED = "Leave the model unfused: every setting acts as it is."


@dataclass(frozen=True, repr=False)
class FuseReport(Shown):
    """What fusing did, and what it costs.

    Attributes:
        bytes: Memory that those tensors take beside the originals, which are kept for `unfuse`. Copies of whole
            modules that the update holds anyway (`modules_to_save`) are shown, not copied, and do not count.
    """

    setting: str | dict[str, Any]
    modules: int
    bytes: int

    def to_text(self) -> str:
        """Says in a line what was folded."""
        label = parse_setting(self.setting).label
        return f"Fused '{label}' into {self.modules} modules; the originals take {byte_size(self.bytes)} beside."


class FoldedModule(Rebuildable):
    """A module of a fused model: it shows folded tensors and keeps its own, which `state_dict()` gives."""

    _taia_own: dict[str, Tensor | None]
    # ^ attribute name to the tensor that `unfuse` puts back

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        for name, own in self._taia_own.items():
            if own is None:
                destination.pop(prefix + name, None)
            elif prefix + name in destination:
                destination[prefix + name] = own if keep_vars else own.detach()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)  # type: ignore[misc]
        with torch.no_grad():
            for name, own in self._taia_own.items():
                if isinstance(own, nn.Parameter):
                    own.data = fn(own.data)
                elif own is not None:
                    self._taia_own[name] = fn(own)
        return result


@dataclass(frozen=True)
class _Fold:
    """A tensor that a module shall show while the model is fused."""

    module: nn.Module
    name: str
    tensor: Tensor
    shared: bool = False
    # ^ whether the update holds the tensor anyway


@dataclass(frozen=True)
class _Fused:
    """What a fused model remembers."""

    report: FuseReport
    handle: RemovableHandle
    blocks: list[object] = field(default_factory=list)
    # ^ the open blocks that need it


def fuse(model: Any, inference_modules: Any) -> FuseReport:
    """Folds the updates that act under a setting into the live weights, by PEFT's own merge of each layer.

    Everything is computed before anything is changed, and an error leaves the model as it was; what holds until
    `unfuse` is told at `TAIAModel.fuse`. Calls of a part of the model (`model.model(...)`) are not checked.
    """
    switch: Switch = model._taia_switch
    acting = switch.resolve(inference_modules)
    with CHANGING, torch.no_grad(), torch.inference_mode(False):
        if switch.fused is not None:
            if switch.fused.weights != acting.weights:
                raise SettingError(
                    f"The setting '{acting.settings[0].value}' was to be fused, but "
                    f"'{switch.fused.settings[0].value}' is fused already.",
                    "Call `model.unfuse()` first, or leave the `with model.fused(...)` block.",
                )
            return cast(_Fused, model._taia_fused).report
        with switch.calls.between("fused"):
            layers = list(_layers(model))
            folds = _folds(layers, acting)
            report = _report(acting, folds)
            try:
                handle = model.register_load_state_dict_pre_hook(_refuse_loading)
                object.__setattr__(model, "_taia_fused", _Fused(report, handle))
                switch.fused = acting
                for layer in layers:
                    is_dense = isinstance(layer, SwitchedTensors)
                    layer.__class__ = _plain_class(layer) if is_dense else subclass(FusedLayer, peft_class(layer))
                for fold in folds:
                    _show(fold)
            except BaseException:  # also an interrupt: half a model would be wrong without a word
                _restore(model)
                raise
    return report


def unfuse(model: Any) -> None:
    """Puts the original tensors back: the same objects, bit for bit. A model that is not fused stays as it is."""
    switch: Switch = model._taia_switch
    with CHANGING:
        if switch.fused is not None:
            with switch.calls.between("unfused"):
                _restore(model)


def _restore(model: Any) -> None:
    """Puts the original tensors back, also those of a model that is fused in part."""
    modules: list[Any] = list(model._taia_update.head_model.modules())
    for module in modules:
        if isinstance(module, FoldedModule):
            own = module.__dict__.pop("_taia_own", {})
            for name, tensor in own.items():
                _tensors(cast(Any, module), name)[name] = tensor
            module.__class__ = _plain_class(module)
        if isinstance(module, FusedLayer):
            module.__class__ = switched_class(cast(Any, module), module._taia_adapter)
        elif "_taia_tuned" in module.__dict__ and not isinstance(module, SwitchedTensors):
            module.__class__ = subclass(mixin_for(module), type(module))
    model._taia_switch.fused = None
    if (fused := model.__dict__.pop("_taia_fused", None)) is not None:
        fused.handle.remove()


@contextlib.contextmanager
def fused(model: Any, inference_modules: Any) -> Iterator[FuseReport]:
    """Fuses a setting for a block, errors as in `fuse`, until the last block that needs it ends.

    Where it was fused already, by `fuse`, the block leaves it so.
    """
    switch, block = model._taia_switch, object()
    with CHANGING:
        before = switch.fused
        report = fuse(model, inference_modules)
        state: _Fused = model._taia_fused
        if before is None or state.blocks:
            state.blocks.append(block)
    try:
        yield report
    finally:
        with CHANGING:
            if block in state.blocks:
                state.blocks.remove(block)
                if not state.blocks and model.__dict__.get("_taia_fused") is state:
                    unfuse(model)


def _layers(model: Any) -> Iterator[Any]:
    """Finds what obeys the model's switch; also outside the model that is held, where that is the backbone alone."""
    for module in model._taia_update.head_model.modules():
        if isinstance(module, (SwitchedLayer, SwitchedTensors)) and module._taia_switch is model._taia_switch:
            yield module


def _folds(layers: list[Any], acting: Acting) -> list[_Fold]:
    found: dict[tuple[int, str], _Fold] = {}
    # What is exchanged comes first: another update of the same module is merged into it.
    for layer in sorted(layers, key=lambda one: not isinstance(one, SwitchedTensors)):
        weight = acting.weights[layer._taia_site]
        if not weight:
            continue
        if isinstance(layer, SwitchedTensors):
            folds = list(_tuned(layer, cast(float, weight)))
        else:
            _check_state(layer)
            folds = list(
                _saved(layer) if isinstance(layer, AuxiliaryTrainingWrapper) else _merged(layer, weight, found)
            )
        for fold in folds:
            found[id(fold.module), fold.name] = fold
    return list(found.values())


def _check_state(layer: Any) -> None:
    name, site = layer._taia_adapter, layer._taia_switch.sites[layer._taia_site]
    if getattr(layer, "merged_adapters", None):
        raise UnsupportedUpdateError(
            f"The update of '{site.path}' is merged into its base weight already.",
            "Unmerge it first (PEFT's `unmerge_adapter()`).",
        )
    active = layer.active_adapters
    if layer._disable_adapters or list(active) != [name]:
        raise UnsupportedUpdateError(
            f"PEFT's own switch at '{site.path}' runs {'no adapter' if layer._disable_adapters else list(active)}, so "
            "that no setting acts there.",
            f"Call `model.enable_adapters()` and `model.set_adapter('{name}')` first.",
        )


def _tuned(module: Any, weight: float) -> Iterator[_Fold]:
    """Folds a full fine-tune: the tuned tensors, or what lies between them and the base's."""
    one: TunedTensor
    for name, one in module._taia_tuned.items():
        yield _Fold(module, name, one.at(_tensors(module, name)[name], weight))


def _saved(wrapper: Any) -> Iterator[_Fold]:
    """Folds a whole module that the update holds (`modules_to_save`): its tensors are shown by the original."""
    if "token_adapter" in wrapper._modules:
        return  # a layer of its own, which is folded as such
    tuned = wrapper.modules_to_save[wrapper._taia_adapter]
    for path, module in wrapper.original_module.named_modules():
        other = tuned.get_submodule(path)
        for name, tensor in (*other._parameters.items(), *other._buffers.items()):
            if tensor is not None:
                yield _Fold(module, name, tensor, shared=True)


def _merged(layer: Any, weight: Any, found: dict[tuple[int, str], _Fold]) -> Iterator[_Fold]:
    """Folds a tuner layer: PEFT merges into a copy of the weights, on a twin of the layer that holds them."""
    base, name = layer.get_base_layer(), layer._taia_adapter
    path = layer._taia_switch.sites[layer._taia_site].path
    wanted = [layer.parameter_name] if isinstance(layer, ParamWrapper) else list(base._parameters)
    now = {}
    for key in wanted:
        fold, own = found.get((id(base), key)), base._parameters[key]
        now[key] = own if fold is None or own is None else fold.tensor
    _check_tensors(base, now, path)
    own = {key: None if tensor is None else tensor.detach().clone() for key, tensor in now.items()}
    twin = mergeable_twin(layer, name, own, weight)
    try:
        twin.merge(safe_merge=False, adapter_names=[name])
    except (TAIAError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        raise UnsupportedUpdateError(
            f"PEFT cannot merge the {describe(layer)} at '{path}': {str(error).rstrip('.') or type(error).__name__}.",
            _UNFUSED,
        ) from error
    if name not in twin.merged_adapters:
        raise UnsupportedUpdateError(f"PEFT merges nothing for the {describe(layer)} at '{path}'.", _UNFUSED)
    for key, tensor in twin.get_base_layer()._parameters.items():
        before = now.get(key, base._parameters.get(key))
        if tensor is not None and (before is None or not torch.equal(tensor, before)):
            yield _Fold(base, key, tensor.detach())


def _check_tensors(base: nn.Module, tensors: dict[str, Tensor | None], path: str) -> None:
    if any(tensor is not None and tensor.is_meta for tensor in tensors.values()):
        raise UnsupportedUpdateError(
            f"The weights of '{path}' are not in memory: they are offloaded, or were never loaded.",
            "Load the model without offloading, or write a merged model: `taia merge REPO --mode ...`.",
        )
    plain = [one for one in tensors.values() if one is not None]
    if not plain or any(one.dtype not in _WHOLE or type(one.data) is not Tensor for one in plain):
        raise UnsupportedUpdateError(
            f"The base weight of '{path}' is quantised ({type(base).__name__}): folding the update in would round it.",
            "Load the base without quantisation, leave the model unfused, or export the mode as an adapter: "
            "`model.export_adapter(folder, mode)`.",
        )


def _show(fold: _Fold) -> None:
    module: Any = fold.module
    if not isinstance(module, FoldedModule):
        object.__setattr__(module, "_taia_own", {})
        module.__class__ = subclass(FoldedModule, type(module))
    tensors = _tensors(module, fold.name)
    module._taia_own[fold.name] = tensors.get(fold.name)
    parameter = tensors is module._parameters
    tensors[fold.name] = nn.Parameter(fold.tensor.detach(), requires_grad=False) if parameter else fold.tensor


def _tensors(module: nn.Module, name: str) -> dict[str, Any]:
    return cast(dict[str, Any], module._buffers if name in module._buffers else module._parameters)


def _plain_class(module: Any) -> type:
    return cast(type, module._taia_parts[1])


def _report(acting: Acting, folds: list[_Fold]) -> FuseReport:
    own = {fold.tensor.untyped_storage().data_ptr(): fold.tensor.nbytes for fold in folds if not fold.shared}
    return FuseReport(
        setting=acting.settings[0].value, modules=len({id(fold.module) for fold in folds}), bytes=sum(own.values())
    )


def _refuse_loading(*args: Any) -> None:
    raise SettingError(
        "A state dict came for a fused model, whose weights hold the update already.", "Call `model.unfuse()` first."
    )
