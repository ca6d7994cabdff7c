"""A plain LoRA on its base's structure by the names and shapes in its file, without PEFT's layers.

PEFT takes longer to make its layers than an export takes for all the rest, even without weights. A LoRA that is nothing
but pairs of factors on linear layers says all that an export needs by its configuration and its file's header; whatever
is or might be more than that is left to PEFT.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from torch import nn
from transformers.pytorch_utils import Conv1D

from taia_hub.hub.layout import PEFT, PREFIX, UpdateKind
from taia_hub.roles.sublayers import SublayerRoles, layer_of
from taia_hub.switch.switch import Site, Switch
from taia_hub.updates.peft.carried import ReadBase, find_carried
from taia_hub.updates.peft.strict import ADAPTER, check_expressions
from taia_hub.weights.checkpoint import StoredTensor

_ALL_LINEAR = "all-linear"
_INITIALISED = (True, False, "gaussian")
# ^ ways to begin that leave the base as it is
_STATE_SPACE = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
_PLAIN = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
    *("alpha_pattern", "lora_alpha", "lora_dropout", "r", "rank_pattern", "use_rslora", "init_lora_weights"),
    *("exclude_modules", "fan_in_fan_out", "layers_pattern", "layers_to_transform", "target_modules"),
}
# ^ keys of `adapter_config.json` whose values keep a LoRA plain, whatever they are


@dataclass(frozen=True)
class LoraPair:
    """An adapted linear layer of a plain LoRA, whose factors stay in their file. It answers as PEFT's layer does.

    Attributes:
        scaling: Adapter to what the product of its factors is multiplied by.
        lora_variant: Empty, because a LoRA of another form is left to PEFT.
    """

    base: nn.Module
    scaling: Mapping[str, float]
    lora_variant: Mapping[str, Any] = field(default_factory=dict)

    def get_base_layer(self) -> nn.Module:
        """Returns the module of the base model."""
        return self.base


@dataclass(frozen=True)
class LeanLora:
    """A plain LoRA whose factors stay in the file in `source`, on a `head_model` that is on the meta device.

    `layers` are path, site and pair of each adapted module.
    """

    head_model: nn.Module
    source: Path
    switch: Switch
    layers: tuple[tuple[str, Site, LoraPair], ...]
    kind: UpdateKind = PEFT
    method: str = "LORA"


def read_lean(
    model: nn.Module,
    config: Any,
    folder: Path,
    placed: SublayerRoles,
    stored: Mapping[str, StoredTensor],
    read_base: ReadBase,
) -> LeanLora | None:
    """Reads a plain LoRA by names and shapes; `stored` are the tensors of its file.

    None where it is more than pairs of factors on linear layers, or the file holds anything else than PEFT expects,
    copies of embeddings and head apart.
    """
    if not _is_plain(config) or is_state_space(model):
        return None
    check_expressions(config, model)
    try:
        pairs, expected = _expected(model, config)
    except re.error:
        return None
    shapes = {key: one.shape for key, one in stored.items()}
    carried = find_carried(model, config, shapes)
    for key, name in carried.tensors.items():
        is_adapted = name.rpartition(".")[0] in pairs
        if is_adapted == (".base_layer." in key) and carried.is_idle(key, stored[key], read_base):
            del shapes[key]
    if not pairs or shapes != expected:
        return None
    sites = tuple(
        Site(
            path=path,
            role=placed.roles.get(path, "other"),
            layer=layer_of(path),
            method="lora.Linear",
            parameters=sum(math.prod(expected[f"{PREFIX}{path}.lora_{factor}.weight"]) for factor in "AB"),
        )
        for path in pairs
    )
    layers = tuple((site.path, site, pairs[site.path]) for site in sites)
    return LeanLora(model, folder, Switch(sites, "all", placed.unplaced), layers)


def _expected(model: nn.Module, config: Any) -> tuple[dict[str, LoraPair], dict[str, tuple[int, ...]]]:
    """Says which modules PEFT adapts, and the shapes of their factors by name; nothing where one is not linear."""
    pairs: dict[str, LoraPair] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path, module in model.named_modules():
        if not path or not check_target_module_exists(config, path):
            continue
        shape = linear_shape(module)
        if shape is None or type(module) not in (nn.Linear, Conv1D):
            return {}, {}
        rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), path), config.r)
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), path), config.lora_alpha)
        pairs[path] = LoraPair(module, {ADAPTER: lora_scaling(alpha, rank, config.use_rslora)})
        shapes[f"{PREFIX}{path}.lora_A.weight"] = (rank, shape[0])
        shapes[f"{PREFIX}{path}.lora_B.weight"] = (shape[1], rank)
    return pairs, shapes


def lora_scaling(alpha: float, rank: int, is_rank_stabilised: bool) -> float:
    """Returns what PEFT multiplies the product of two factors by: alpha / r, or alpha / sqrt(r) where stabilised."""
    return alpha / (math.sqrt(rank) if is_rank_stabilised else rank)


def is_state_space(model: nn.Module) -> bool:
    """Tells the architectures of which PEFT refuses some modules, whatever the file says."""
    return getattr(getattr(model, "config", None), "model_type", None) in _STATE_SPACE


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Returns (D_in, D_out) of a module that LoRA can adapt; None for another one."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    return None


def _is_plain(config: Any) -> bool:
    """Tells a LoRA of nothing but factors, with numbers that are what they should be; PEFT judges others."""
    targets = config.target_modules
    if not targets or targets == _ALL_LINEAR or config.init_lora_weights not in _INITIALISED:
        return False
    if not all(isinstance(one, dict) for one in (config.rank_pattern, config.alpha_pattern)):
        return False
    ranks = (config.r, *config.rank_pattern.values())
    numbers = (config.lora_alpha, *config.alpha_pattern.values(), config.lora_dropout)
    if not all(type(rank) is int and rank > 0 for rank in ranks) or not 0 <= _number(config.lora_dropout) <= 1:
        return False
    if any(math.isnan(_number(one)) for one in numbers):
        return False
    default = LoraConfig().to_dict()
    differ = {key for key, value in config.to_dict().items() if value != default.get(key) and (value or default[key])}
    return differ <= _PLAIN


def _number(value: Any) -> float:
    return float(value) if type(value) in (int, float) else math.nan
