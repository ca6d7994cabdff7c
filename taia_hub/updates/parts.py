"""What an update adapts of each role: numbers of modules and parameters, and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftType
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from taia_hub import hub
from taia_hub.roles.sublayers import find_sublayers
from taia_hub.switch.switch import Site
from taia_hub.updates.peft.carried import ANOTHER_VOCABULARY
from taia_hub.updates.peft.strict import ADAPTER, is_of_backbone
from taia_hub.updates.weightless import injected, listed
from taia_hub.weights.base_weights import base_reader
from taia_hub.weights.checkpoint import StoredTensor
from taia_hub.weights.skeleton import skeleton


@dataclass(frozen=True)
class AdaptedPart:
    """How many modules of one role an update adapts, with how many parameters, and the ranks of its LoRA layers.

    `resized` says that some have the rows of another vocabulary than the base's.
    """

    modules: int
    parameters: int
    ranks: frozenset[int]
    resized: bool = False


def lora_parts(
    base: hub.Source,
    folder: Path,
    config: PeftConfig,
    stored: Mapping[str, StoredTensor],
    access: hub.HubAccess,
    trust_remote_code: bool = False,
) -> dict[str, AdaptedPart] | None:
    """Says what a LoRA adapts by role, from its configuration and the tensors of its file, which are hardly ever read.

    Returns None for other methods, and for a LoRA that PEFT cannot put on this base as it is.
    """
    if config.peft_type != PeftType.LORA:
        return None

    def make() -> PreTrainedModel:
        return skeleton(base, access, trust_remote_code, features_only=is_of_backbone(config))

    model = make()
    roles = find_sublayers(model)
    lora = injected(model, config, folder, stored, base_reader(base, access, make))
    if lora is None or not lora.fits(stored):  # PEFT converts older layouts while it loads
        return None
    return parts_by_role(lora.update.head_model, lora.switched(roles).sites)


def parts_by_role(model: nn.Module, sites: Sequence[Site]) -> dict[str, AdaptedPart]:
    """Says what the adapted layers of a model are by role; `model` is inside PEFT's wrapper."""
    found: dict[str, AdaptedPart] = {}
    counted: set[str] = set()  # PEFT puts two layers around an embedding whose single tokens are trained
    # A module of a full fine-tune is no layer of PEFT, so that only its site is known.
    layers = {id(site): layer for _, site, layer in listed(model, sites)}
    for site in sites:
        layer: Any = layers.get(id(site))
        before = found.get(site.role, AdaptedPart(0, 0, frozenset()))
        is_lora = isinstance(layer, LoraLayer) and not isinstance(layer, AdaLoraLayer)
        # AdaLoRA keeps a number beside its factors that it never saves
        unsaved = sum(one.numel() for one in getattr(layer, "ranknum", nn.ParameterDict()).values())
        found[site.role] = AdaptedPart(
            before.modules + (site.path not in counted),
            before.parameters + site.parameters - unsaved,
            before.ranks | ({int(layer.r[ADAPTER])} if is_lora else set()),
            before.resized or site.same_rows == ANOTHER_VOCABULARY,
        )
        counted.add(site.path)
    return found
