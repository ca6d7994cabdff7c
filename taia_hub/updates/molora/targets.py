"""Which linears of a model a mixture of LoRA experts adapts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from taia_hub.errors import ConfigError, UnsupportedUpdateError, UpdateMismatchError, closest
from taia_hub.updates.molora.config import MOLORA_CONFIG, MoLoraDescription, MoLoraSettings
from taia_hub.updates.peft.strict import few

FITS = "Check that the update was made for this base model; its file needs the configuration that it was saved with."

_ROUTED_EXPERT = re.compile(r"(?:^|\.)experts?\.")


def default_targets(model: nn.Module, roles: Mapping[str, str], settings: MoLoraSettings) -> list[str]:
    """Lists the linears of attention and all dense FFN linears by path: no routed experts, no gates."""
    chosen = []
    for path, module in model.named_modules():
        role = roles.get(path)
        if not _linear(module) or role not in ("attention", "ffn"):
            continue
        if role == "ffn" and (_ROUTED_EXPERT.search(path) or _outputs(module) < settings.rank_of("ffn")):
            continue  # a linear with fewer outputs than the rank is a gate
        chosen.append(path)
    if not any(roles[path] == "ffn" for path in chosen):
        raise UnsupportedUpdateError(
            f"{type(model).__name__} has no dense FFN linear that experts could be put on; the routed experts of a "
            "mixture-of-experts model are a mixture already.",
            "Train a LoRA; with `target_parameters` it adapts the model's own experts.",
        )
    return chosen


def checked_targets(model: nn.Module, roles: Mapping[str, str], targets: Sequence[str]) -> list[str]:
    """Checks the linears that a user names, and returns their paths, each once."""
    modules = dict(model.named_modules())
    for path in targets:
        if path not in modules or not _linear(modules[path]) or roles.get(path) not in ("attention", "ffn"):
            raise ConfigError(
                f"'{path}' is no linear layer of attention or FFN in {type(model).__name__}.{closest(path, modules)}",
                "Name modules as in `model.named_modules()`.",
            )
        if roles[path] == "ffn" and _ROUTED_EXPERT.search(path):
            raise UnsupportedUpdateError(
                f"'{path}' is a routed expert of the base model, which is a mixture already.",
                "Name dense FFN linears and shared experts only.",
            )
    return list(dict.fromkeys(targets))


def check_modules(base: nn.Module, description: MoLoraDescription) -> None:
    """Checks that a base model has the linears that a saved mixture adapts, and that they are plain ones."""
    modules = dict(base.named_modules())
    named = [*description.attention, *description.ffn]
    if wrong := [path for path in named if path not in modules]:
        raise UpdateMismatchError(
            f"{MOLORA_CONFIG} names {len(wrong)} modules that {type(base).__name__} lacks: {few(wrong)}.", FITS
        )
    if wrong := [path for path in named if not _linear(modules[path])]:
        raise UnsupportedUpdateError(
            f"{MOLORA_CONFIG} names {len(wrong)} modules that are no plain linear layers here: {few(wrong)}.",
            "Load the base model without GPTQ, AWQ or the like.",
        )


def _linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


def _outputs(module: Any) -> int:
    return int(module.weight.shape[1] if isinstance(module, Conv1D) else module.out_features)
