"""MoLoRA: plain LoRA on attention, LoRA experts with a router on FFN linears; adding, saving and attaching it.

Files: `molora_config.json` (`MoLoraDescription`) and `molora_model.safetensors`. The tensors are named as in PEFT's
adapters: `base_model.model.<path>.lora_A.weight` is (r, D_in) at attention linears and (E, r, D_in), expert i at index
i, at FFN linears; `lora_B.weight` is (D_out, r) and (E, D_out, r); `lora_router.weight` is (E, D_in) and
`lora_router.bias` (E,). PEFT reads neither file name.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from taia_hub.errors import ConfigError, UnsupportedUpdateError, UpdateMismatchError
from taia_hub.hub.layout import MOLORA, UpdateKind
from taia_hub.roles.sublayers import find_sublayers
from taia_hub.switch.switch import Switch
from taia_hub.updates.molora.config import MoLoraDescription, MoLoraSettings, read_molora_config
from taia_hub.updates.molora.files import check_tensors, read_tensors, write_molora
from taia_hub.updates.molora.layers import MoLoraConfig, MoLoraLinear, take_balance_losses
from taia_hub.updates.molora.targets import FITS, check_modules, checked_targets, default_targets
from taia_hub.updates.options import AttachOptions
from taia_hub.updates.peft.strict import ADAPTER, check_base_untouched
from taia_hub.updates.peft.update import PeftUpdate, attach_switch


def add_molora(
    model: nn.Module,
    settings: MoLoraSettings | None = None,
    roles: Mapping[str, str] | None = None,
    targets: Sequence[str] | None = None,
    *,
    revision: str | None = None,
    autocast_adapter_dtype: bool = True,
) -> PeftModel:
    """Adds a fresh mixture of LoRA experts to a model, for training; the base's own weights are left alone.

    By default the linears of attention and FFN are adapted, as the model's structure tells them, but no routers, gates
    and routed experts: only dense FFN linears and shared experts take experts. `revision` is the base's commit.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        ...                      num_attention_heads=2)
        >>> model = add_molora(LlamaForCausalLM(config), MoLoraSettings(experts=3, rank=2))
        >>> model.get_submodule("base_model.model.model.layers.0.mlp.up_proj").lora_A["default"].weight.shape
        torch.Size([3, 2, 8])
    """
    settings = settings or MoLoraSettings()
    if settings.top_k == 1 and settings.experts > 1 and not settings.balance_loss:
        warnings.warn(
            "With top_k=1 the router gets no gradient, so that the routing stays as it was drawn; use top_k=2.",
            stacklevel=2,
        )
    roles = find_sublayers(model).roles if roles is None else roles
    chosen = default_targets(model, roles, settings) if targets is None else checked_targets(model, roles, targets)
    if not (ffn := tuple(path for path in chosen if roles[path] == "ffn")):
        raise ConfigError("No FFN linear is among the targets, so there is nothing to put experts on.", "Train a LoRA.")
    config: Any = getattr(model, "config", None)
    description = MoLoraDescription(
        settings,
        tuple(path for path in chosen if roles[path] == "attention"),
        ffn,
        getattr(config, "_name_or_path", None) or None,
        revision or getattr(config, "_commit_hash", None),
    )
    return _inject(model, description, autocast_adapter_dtype=autocast_adapter_dtype)


def balance_loss(model: nn.Module) -> torch.Tensor:
    """Returns the load-balancing loss of the last training forward, to be weighted and added to the loss.

    For each router E * sum_i f_i P_i, where f_i is expert i's share of the choices and P_i its mean probability in the
    softmax over all logits (Switch Transformers, arXiv 2101.03961, equation 4; f over k choices); the mean over
    routers. It is 1 where all experts are used alike, and 0 in evaluation mode or where the settings have no such loss.

    Raises:
        ConfigError: If no forward with gradients came before, or it ran under reentrant checkpointing.
    """
    losses = take_balance_losses(model)
    if (
        not losses
        and model.training
        and any(any(layer.balanced.values()) for layer in model.modules() if isinstance(layer, MoLoraLinear))
    ):
        raise ConfigError(
            "No router has kept its balance loss since the last call.",
            "Call it after each training forward; activation checkpointing needs `use_reentrant=False`.",
        )
    if not losses:
        return torch.zeros((), device=next(model.parameters()).device)
    return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()


def save_molora(
    peft_model: PeftModel, folder: str | Path, *, state_dict: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Writes a mixture as `molora_config.json` and `molora_model.safetensors`, each whole or not at all.

    `state_dict` is that of `peft_model` where it is sharded; a part of the update is refused.
    """
    config = peft_model.peft_config.get(ADAPTER)
    if not isinstance(config, MoLoraConfig):
        raise ConfigError("The model holds no MoLoRA update.", "Add one with `add_molora`, or save it by PEFT.")
    tensors, expected = _tensors(peft_model, state_dict), _tensors(peft_model)
    if tensors.keys() != expected.keys():
        raise UpdateMismatchError(
            f"The state dict holds {len(tensors.keys() & expected.keys())} of the update's {len(expected)} tensors.",
            "Pass the whole state dict of the model, or none.",
        )
    write_molora(config.description, tensors, Path(folder))


class MoLoraUpdate(PeftUpdate):
    """A mixture of LoRA experts that is attached to a loaded model; attributes as of `PeftUpdate`."""

    kind: ClassVar[UpdateKind] = MOLORA

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.kind.name.upper()

    @property
    def description(self) -> MoLoraDescription:
        """What the update's configuration file says."""
        config: Any = self.config
        found: MoLoraDescription = config.description
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """Contents of the update's configuration file."""
        return self.description.to_dict()

    def _write(self, folder: Path, named: Mapping[str, torch.Tensor] | None) -> None:
        save_molora(self.peft_model, folder, state_dict=named)


def attach_molora(
    base: nn.Module,
    folder: Path,
    options: AttachOptions,
) -> tuple[MoLoraUpdate, Switch]:
    """Puts a saved mixture on a base model, as `attach_update` does; offloaded parts are refused."""
    description = read_molora_config(folder)
    tensors = read_tensors(folder)
    check_modules(base, description)
    before = {name: (one, one.data_ptr(), one._version) for name, one in base.named_parameters()}
    skeleton = any(parameter.is_meta for parameter in base.parameters())
    peft_model = _inject(
        base,
        description,
        inference_mode=not options.is_trainable,
        init_lora_weights=False,
        autocast_adapter_dtype=options.autocast_adapter_dtype,
        low_cpu_mem_usage=skeleton,
    )
    update = MoLoraUpdate(peft_model, folder)
    check_tensors(update.parameters(), tensors)
    # PEFT renames keys by their text, and says only in what it returns that a tensor found no place.
    if not skeleton and update.load(tensors).unexpected_keys:
        raise UpdateMismatchError("PEFT did not find a place for every tensor of the update.", FITS)
    check_base_untouched(update.head_model, before)
    if not options.is_trainable:
        peft_model.eval()  # new layers begin in training mode, with dropout
    return update, attach_switch(update.head_model, options.roles, options.inference_modules, options.unplaced)


def _inject(
    model: nn.Module,
    description: MoLoraDescription,
    *,
    autocast_adapter_dtype: bool,
    low_cpu_mem_usage: bool = False,
    **options: Any,
) -> PeftModel:
    if {"cpu", "disk"} & {str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()}:
        raise UnsupportedUpdateError(
            "The device map offloads parts of the base model, where experts cannot be placed.",
            "Use a device_map of GPUs alone, or a smaller dtype.",
        )
    conv1d = any(isinstance(model.get_submodule(path), Conv1D) for path in description.attention)
    task = "CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") else None
    config = MoLoraConfig(description, task_type=task, fan_in_fan_out=conv1d, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        peft_model: Any = get_peft_model(
            model, config, autocast_adapter_dtype=autocast_adapter_dtype, low_cpu_mem_usage=low_cpu_mem_usage
        )
    config.base_model_name_or_path = description.base_model_name_or_path
    config.revision = description.base_model_revision
    made = {name: isinstance(one, MoLoraLinear) for name, one in model.named_modules() if isinstance(one, LoraLayer)}
    if made != {**dict.fromkeys(description.attention, False), **dict.fromkeys(description.ffn, True)}:
        raise UnsupportedUpdateError(
            f"PEFT adapted {len(made)} modules where {len(description.attention) + len(description.ffn)} were named.",
            "Name each linear by its whole path, as in `model.named_modules()`.",
        )
    result: PeftModel = peft_model
    return result


def _tensors(peft_model: PeftModel, state_dict: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    return dict(
        get_peft_model_state_dict(peft_model, state_dict=state_dict, adapter_name=ADAPTER, save_embedding_layers=False)
    )
