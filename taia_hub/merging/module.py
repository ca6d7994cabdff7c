"""The update of one module merged into the base's tensors, by PEFT's own code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft.tuners.ln_tuning.layer import LNTuningLayer
from peft.tuners.lora.layer import Embedding, Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from taia_hub import hub
from taia_hub.errors import RepositoryError, UnsupportedUpdateError
from taia_hub.hub.layout import PEFT
from taia_hub.repository.opening import OpenedUpdate
from taia_hub.updates.dense.layers import SwitchedTensors
from taia_hub.updates.molora.layers import MoLoraLinear
from taia_hub.updates.peft.methods import MERGEABLE
from taia_hub.updates.peft.plain_lora import LoraPair
from taia_hub.updates.peft.strict import ADAPTER
from taia_hub.updates.peft.twin import mergeable_twin
from taia_hub.updates.weightless import Entry
from taia_hub.weights.checkpoint import DTYPES

_BLOCK = 1 << 20  # elements
_OF_BASE = ("base_layer.", "original_module.", "token_adapter.base_layer.")


@contextlib.contextmanager
def holding(update: OpenedUpdate, entry: Entry) -> Iterator[Any]:
    """Reads the tensors of one layer of a streamed update into the layer, and takes them out again after the block.

    Tensors of 16 bits become float32, as PEFT has them by default. Nothing is done where the layers hold their tensors.

    It yields the layer, whose own parameters are real tensors on the CPU. An update that was opened lean is a
    `TypeError`.
    """
    _, _, layer = entry
    if isinstance(layer, LoraPair):
        raise TypeError("An update that was opened lean has no layers that could hold tensors.")
    if not update.streamed or not isinstance(layer, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
        yield layer
        return
    module: Any = layer
    put: list[tuple[nn.Module, str, nn.Parameter]] = []
    weights = update.folder / update.kind.weights
    try:
        with safe_open(weights, framework="pt") as file:
            for path, parameter in list(module.named_parameters(remove_duplicate=False)):
                key = update.keys.get(id(parameter))
                if key is None or not parameter.is_meta or path.startswith(_OF_BASE):
                    continue
                tensor = file.get_tensor(key)
                if isinstance(layer, BaseTunerLayer) and tensor.dtype in (torch.float16, torch.bfloat16):
                    tensor = tensor.to(torch.float32)
                owner, attribute = module.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
                put.append((owner, attribute, parameter))
                owner._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)
        yield layer
    except (SafetensorError, OSError) as error:
        if isinstance(error, RepositoryError):
            raise
        raise hub.damaged(weights, error) from error
    finally:
        for owner, attribute, parameter in put:
            owner._parameters[attribute] = parameter


@torch.no_grad()
def merged_weights(
    update: OpenedUpdate, entry: Entry, base: Mapping[str, Tensor], weight: float, *, in_place: bool = False
) -> dict[str, Tensor]:
    """Merges the update of one module into the base's tensors, as PEFT's own `merge` does.

    Bit for bit what `PeftModel.merge_and_unload` gives on the CPU for this module, in the dtype of `base`. A weight
    other than 1 multiplies the LoRA's scaling. Of a full fine-tune: the tuned tensors, or `torch.lerp` of both.

    `base` is the base's tensors on the CPU, by their names within the module, as are those returned; with `in_place`
    they may be overwritten, which saves a copy. `weight` is not 0, and 1 unless `Site.whole_only` is None.
    """
    _, site, layer = entry
    if isinstance(layer, SwitchedTensors):
        return _tuned(layer, base, weight)
    if isinstance(layer, MoLoraLinear):
        raise UnsupportedUpdateError(
            f"The experts of '{site.path}' act by a router on each token, so that no single weight stands for them.",
            "Merge mode 'attention', or serve the mixture with this package.",
        )
    check_mergeable(update)
    with holding(update, entry):
        try:
            return _merge(layer, base, weight, in_place)
        except (ValueError, RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
            raise UnsupportedUpdateError(
                f"PEFT cannot merge the update of '{site.path}' ({site.method}): {error}",
                "Choose a mode in which it does not act, or use the update unmerged.",
            ) from error


def check_mergeable(update: OpenedUpdate) -> None:
    """Refuses methods that cannot be merged one module at a time."""
    method = update.update.method
    if update.kind is PEFT and method not in MERGEABLE:
        raise UnsupportedUpdateError(
            f"A {method} update cannot be merged one module at a time: it needs the whole base model when it is "
            "attached, or has no merged form.",
            "Where PEFT can, merge in memory: `PeftModel.from_pretrained(base, adapter).merge_and_unload()`.",
        )


def _merge(layer: Any, base: Mapping[str, Tensor], weight: float, in_place: bool) -> dict[str, Tensor]:
    if isinstance(layer, ModulesToSaveWrapper):
        saved = layer.modules_to_save[ADAPTER].state_dict()
        if in_place and all(saved[name].shape == tensor.shape for name, tensor in base.items()):
            return {name: tensor.copy_(saved[name]) for name, tensor in base.items()}  # from the file's own pages
        return {name: saved[name].to(tensor.dtype, copy=True) for name, tensor in base.items()}
    if isinstance(layer, LNTuningLayer):  # its `merge` swaps the two modules
        saved = layer.ln_tuning_layers[ADAPTER].state_dict()
        return {name: saved[name].to(tensor.dtype, copy=True) for name, tensor in base.items()}
    tuner = layer.token_adapter if isinstance(layer, AuxiliaryTrainingWrapper) else layer
    if inside := [name for name in base if "." in name]:
        raise UnsupportedUpdateError(f"'{inside[0]}' lies in a module of its own.", None)
    own = {name: tensor if in_place else tensor.clone() for name, tensor in base.items()}
    twin = mergeable_twin(tuner, ADAPTER, own, weight)
    if _is_plain(twin):
        _add_plain(twin, twin.get_base_layer().weight)
    else:
        twin.merge(safe_merge=False, adapter_names=[ADAPTER])
    merged = twin.get_base_layer()._parameters
    return {name: merged[name].detach() for name in base}


def _is_plain(tuner: Any) -> bool:
    """Tells whether PEFT's merge of a layer is `weight += scaling * B @ A` and nothing else."""
    own = (type(tuner).merge, getattr(type(tuner), "get_delta_weight", None))
    return (
        own in ((Linear.merge, Linear.get_delta_weight), (Embedding.merge, Embedding.get_delta_weight))
        and ADAPTER not in tuner.lora_variant
        and not tuner.lora_bias.get(ADAPTER)
        and tuner.get_base_layer().weight.dtype in DTYPES.values()
    )


def _add_plain(tuner: Any, weight: Tensor) -> None:
    """Does what PEFT's `merge` does, bit for bit, with one float32 tensor of the weight's size instead of four.

    The product is computed whole: in blocks of rows its bits differ by the library of linear algebra. What follows
    goes element by element.
    """
    if embeds := isinstance(tuner, Embedding):
        one, other, flipped = tuner.lora_embedding_B[ADAPTER], tuner.lora_embedding_A[ADAPTER], True
    else:
        one, other = tuner.lora_B[ADAPTER].weight, tuner.lora_A[ADAPTER].weight
        flipped = tuner.fan_in_fan_out
    delta = (one @ other).mul_(tuner.scaling[ADAPTER])
    delta = delta.T if flipped else delta
    step = max(_BLOCK // max(weight[:1].numel(), 1), 1)  # torch converts whole operands of two dtypes
    for to, part in zip(weight.split(step), delta.split(step), strict=True):
        to += part.to(weight.dtype) if embeds else part


def _tuned(layer: Any, base: Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
    made = {}
    for name, tensor in base.items():
        one = layer._taia_tuned.get(name)
        made[name] = tensor if one is None else one.at(tensor, weight)
        if one is not None:
            one.release()
    return made
