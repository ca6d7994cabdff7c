"""A model's structure on the meta device: every module, name and shape, and no weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from taia_hub import hub
from taia_hub.weights.base_model import check_base


def skeleton(
    base: hub.Source,
    access: hub.HubAccess,
    trust_remote_code: bool = False,
    *,
    features_only: bool = False,
    what: str = "base model",
) -> PreTrainedModel:
    """Builds a model from its configuration alone, without its head where `features_only`; messages call it `what`."""
    check_base(base, trust_remote_code, features_only=features_only, what=what)
    with hub.foreign_errors(base.name, what=what, revision=base.revision):
        config = AutoConfig.from_pretrained(
            base.name,
            revision=base.revision,
            token=access.token,
            cache_dir=access.cache_dir,
            local_files_only=access.local_files_only,
            trust_remote_code=trust_remote_code,
        )
        return build(config, trust_remote_code, features_only=features_only)


def build(config: Any, trust_remote_code: bool = False, *, features_only: bool = False) -> PreTrainedModel:
    """Builds the language model of a configuration on the meta device, without its head where `features_only`."""
    auto = AutoModel if features_only else AutoModelForCausalLM
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(config, trust_remote_code=trust_remote_code)
    return model


def give_zeros(model: nn.Module) -> None:
    """Puts zeros that take no memory in the place of weights on the meta device.

    PEFT then puts an update's tensors beside them, not on the meta device.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                setattr(module, name, nn.Parameter(zeros, requires_grad=False))
