"""What an export is made of: which modules act under a setting, how their factors become one rank and one scale."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import Embedding, LoraLayer, ParamWrapper
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from taia_hub.common.rebuildable import Rebuildable
from taia_hub.errors import SettingError, UnsupportedUpdateError
from taia_hub.hub.layout import DENSE, PEFT, PREFIX
from taia_hub.repository.opening import OpenedUpdate
from taia_hub.roles.sublayers import is_routed
from taia_hub.switch.modes import MODES
from taia_hub.switch.settings import parse_setting
from taia_hub.updates.dense.layers import SwitchedTensors
from taia_hub.updates.molora.layers import MoLoraLinear
from taia_hub.updates.peft.methods import ADDITIVE, CONVERTED
from taia_hub.updates.peft.plain_lora import LoraPair, linear_shape
from taia_hub.updates.peft.strict import ADAPTER
from taia_hub.updates.weightless import Entry
from taia_hub.weights.checkpoint import StoredTensor

_DORA = "DoraLinearVariant"
_MERGE = "Or write the setting into a whole model, which every engine serves: `taia merge REPO --mode MODE`."


@dataclass(frozen=True)
class ActingModule:
    """A module whose update acts, with any weight but 0; one that is no plain LoRA pair is made of its difference."""

    entry: Entry
    weight: float
    is_plain: bool


@dataclass(frozen=True)
class Factors:
    """One module's update as a scaled product `scale * b @ a`.

    The setting's weight is in `scale`; `a` is (r, D_in) and `b` (D_out, r). An embedding's factors have names of their
    own.
    """

    path: str
    role: str
    scale: float
    a: StoredTensor | Tensor
    b: StoredTensor | Tensor
    is_embedding: bool = False

    @property
    def rank(self) -> int:
        """Rank of the product."""
        return int(self.a.shape[0])

    @property
    def names(self) -> tuple[str, str]:
        """Names of both factors in PEFT's file."""
        return factor_names(self.path, self.is_embedding)


@dataclass(frozen=True)
class Scale:
    """The one rank, which shorter factors are padded to with zeros, and the one scale `alpha / rank` of an export.

    `ratios` is what each module's `b` is multiplied by, in the order of the modules.
    """

    rank: int
    alpha: int
    ratios: tuple[float, ...]

    @property
    def is_exact(self) -> bool:
        """Whether every ratio is a power of two, so that multiplying by it loses no bit."""
        return all(abs(math.frexp(ratio)[0]) == 0.5 for ratio in self.ratios)


@dataclass(frozen=True)
class Targets:
    """How PEFT finds the modules of an export by plain suffixes.

    Further modules that a suffix matches get factors of zeros (path to (D_in, D_out)), or are `excluded`, so that PEFT
    is told to pass them by. `embeddings` are among the zeros.
    """

    suffixes: tuple[str, ...]
    zeros: Mapping[str, tuple[int, int]]
    excluded: tuple[str, ...]
    embeddings: frozenset[str] = frozenset()


def factor_names(path: str, is_embedding: bool = False) -> tuple[str, str]:
    """Returns the names that PEFT's file has for both factors of a module.

    Example:
        >>> factor_names("lm_head")
        ('base_model.model.lm_head.lora_A.weight', 'base_model.model.lm_head.lora_B.weight')
    """
    stem, end = ("lora_embedding_", "") if is_embedding else ("lora_", ".weight")
    return f"{PREFIX}{path}.{stem}A{end}", f"{PREFIX}{path}.{stem}B{end}"


def acting_modules(update: OpenedUpdate, setting: Any) -> tuple[ActingModule, ...]:
    """Finds the modules whose updates act under a setting; refuses what no plain LoRA holds, and where nothing acts."""
    acting = [(entry, weight) for entry, weight in update.weights(setting) if weight and not _is_idle(entry[2])]
    if not acting:
        label = parse_setting(setting).label
        raise SettingError(
            f"The setting '{label}' masks every update, so that there is nothing to export: it is the base model.",
            f"Serve '{update.base.name}' itself. {_choices(update)}",
        )
    refused = [(entry[1].path, reason) for entry, _ in acting if (reason := _obstacle(entry, update))]
    if refused:
        path, reason = refused[0]
        others = f" (and of {len(refused) - 1} more modules)" if len(refused) > 1 else ""
        raise UnsupportedUpdateError(
            f"The update of '{path}'{others} cannot be part of a plain LoRA: {reason}.",
            f"{_choices(update)} {_way_out(update, acting)}",
        )
    return tuple(ActingModule(entry, weight, _is_plain(entry[2])) for entry, weight in acting)


def share_scale(parts: Sequence[Factors]) -> Scale:
    """Chooses one rank and one scale for all modules, so that as few bits as possible are touched.

    The most frequent scale becomes the shared one where `lora_alpha` can say it as a whole number; the others are
    brought to it by their ratio. Where no scale can be said so, all are multiplied into `b`.

    Example:
        >>> pair = torch.zeros(4, 8), torch.zeros(8, 4)
        >>> share_scale([Factors("q", "attention", 1.5, *pair), Factors("up", "ffn", 0.75, *pair)])
        Scale(rank=4, alpha=6, ratios=(1.0, 0.5))
    """
    rank = max(part.rank for part in parts)
    sayable = Counter(part.scale for part in parts if round(part.scale * rank) / rank == part.scale and part.scale > 0)
    shared = sayable.most_common(1)[0][0] if sayable else 1.0
    return Scale(rank, round(shared * rank), tuple(part.scale / shared for part in parts))


def find_targets(model: nn.Module, parts: Sequence[Factors]) -> Targets:
    """Finds `target_modules` for an export, and what else these names match.

    Names with a prefix, whole paths and expressions would tell the modules apart, but SGLang does not read them, and
    TGI and LoRAX drop all modules of a type where one has no tensors. So every other module that a plain name matches
    gets factors of zeros, which change nothing. Left out are routed experts, of which there may be hundreds, and
    modules that LoRA cannot adapt: PEFT alone goes by the names, and is told to pass them by.
    """
    paths = {part.path for part in parts}
    suffixes = sorted({path.rpartition(".")[2] for path in paths})
    zeros: dict[str, tuple[int, int]] = {}
    excluded, embeddings = [], set()
    for path, module in model.named_modules():
        if path in paths or path.rpartition(".")[2] not in suffixes:
            continue
        shape = linear_shape(module)
        if shape is None or is_routed(path):
            excluded.append(path)
        else:
            zeros[path] = shape
            if isinstance(module, nn.Embedding):
                embeddings.add(path)
    return Targets(tuple(suffixes), zeros, tuple(excluded), frozenset(embeddings))


def base_layer(layer: Any) -> nn.Module:
    """Returns the module of the base model that a layer adapts."""
    inner: nn.Module = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    return inner


def _obstacle(entry: Entry, update: OpenedUpdate) -> str | None:
    """Says why a module's update cannot be a plain LoRA; None when it can."""
    layer = entry[2]
    if update.kind is PEFT and isinstance(layer, SwitchedTensors):
        return "its file holds the whole module, with other values than the base's"
    if isinstance(layer, ModulesToSaveWrapper):
        return "it replaces the whole module (modules_to_save), which vLLM and llama.cpp refuse"
    if isinstance(layer, AuxiliaryTrainingWrapper):
        return "it replaces rows of the embedding (trainable tokens)"
    if isinstance(layer, MoLoraLinear):
        return "its experts act by a router on each token, which no engine computes"
    if isinstance(layer, ParamWrapper):
        return "it updates experts as parameters (target_parameters), which engines serve wrongly or not at all"
    if isinstance(layer, LoraLayer) and layer.lora_bias.get(ADAPTER):
        return "it has a bias (lora_bias), which vLLM refuses and others drop"
    if isinstance(layer, LoraLayer):
        variant = getattr(layer, "lora_variant", {}).get(ADAPTER)
        if variant is not None and type(variant).__name__ != _DORA:
            return f"its LoRA is a {type(variant).__name__}, which no file of LoRA factors can say"
    elif not _is_known(update):
        return f"what {update.update.method} changes is no matrix that could be told from files alone"
    inner = base_layer(layer)
    if not isinstance(inner, (nn.Linear, Conv1D)) and not (isinstance(inner, nn.Embedding) and _is_plain(layer)):
        what = "changed" if update.kind is DENSE else "adapted"
        own = next(one for one in type(inner).__mro__ if not issubclass(one, Rebuildable))  # before the switch came
        return f"a {own.__name__} is {what}, and engines add LoRA to linear layers alone"
    return None


def _is_plain(layer: Any) -> bool:
    """Tells whether a layer is a LoRA pair and nothing else, whatever class it was given for the switch."""
    if not isinstance(layer, (LoraLinear, Embedding, LoraPair)):
        return False
    return ADAPTER not in layer.lora_variant and ADAPTER in layer.scaling


def _is_idle(layer: Any) -> bool:
    return _is_plain(layer) and layer.scaling[ADAPTER] == 0


def _choices(update: OpenedUpdate) -> str:
    """Says which of the named modes can be exported."""
    possible = []
    for mode in MODES:
        acting = [entry for entry, weight in update.weights(mode) if weight]
        if acting and not any(_obstacle(entry, update) for entry in acting):
            possible.append(f"'{mode}'")
    if not possible:
        return "No named mode of this update can be exported."
    return f"{' and '.join(possible)} can be exported."


def _way_out(update: OpenedUpdate, acting: Sequence[tuple[Entry, float]]) -> str:
    if any(isinstance(entry[2], MoLoraLinear) for entry, _ in acting) or not _is_known(update):
        return "With these updates the model is served by this package alone."
    return _MERGE


def _is_known(update: OpenedUpdate) -> bool:
    return update.kind is not PEFT or update.update.method in (*ADDITIVE, *CONVERTED)


def exact_dtype(values: Tensor, ratio: float) -> bool:
    """Tells whether values times a power of two are still the same numbers in their own dtype."""
    scaled = values * ratio
    return bool(torch.equal(scaled / ratio, values)) and bool(torch.isfinite(scaled).all())
