"""What the two files of an export hold: the tensors, `adapter_config.json`, and what to know of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from taia_hub import hub
from taia_hub.common.chat import end_ids
from taia_hub.engines.facts import BaseFacts
from taia_hub.exporting.plan import Factors, Scale, Targets, exact_dtype, factor_names
from taia_hub.exporting.writing import Planned, read_factor
from taia_hub.hub.layout import PEFT
from taia_hub.repository.opening import OpenedUpdate
from taia_hub.repository.update_files import own_tokenizer
from taia_hub.updates.peft.plain_lora import linear_shape
from taia_hub.weights.checkpoint import StoredTensor, read_header

_ROWS = 256


def planned_tensors(
    parts: Sequence[Factors], scale: Scale, targets: Targets, wide: torch.dtype | None
) -> Iterator[Planned]:
    """Says what the weights file is to hold: in `wide` where a scale cannot be multiplied in exactly."""
    for part, ratio in zip(parts, scale.ratios, strict=True):
        for name, factor, dimension, times in ((part.names[0], part.a, 0, 1.0), (part.names[1], part.b, 1, ratio)):
            dtype = wide or factor.dtype
            shape = tuple(scale.rank if number == dimension else size for number, size in enumerate(factor.shape))
            content: Any = partial(_computed, factor, times, dtype, shape)
            if isinstance(factor, StoredTensor) and times == 1 and shape == factor.shape and dtype == factor.dtype:
                content = factor
            yield Planned(name, dtype, shape, content)
    zero = wide or parts[0].b.dtype
    for path, (inputs, outputs) in targets.zeros.items():
        a, b = factor_names(path, path in targets.embeddings)
        yield Planned(a, zero, (scale.rank, inputs), None)
        yield Planned(b, zero, (outputs, scale.rank), None)


def _computed(factor: StoredTensor | Tensor, times: float, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Multiplies a factor, rounded once, and puts zeros behind it; some rows at a time, to take no more memory."""
    values = read_factor(factor)
    made = torch.zeros(shape, dtype=dtype)
    for start in range(0, len(values), _ROWS):
        rows = values[start : start + _ROWS]
        made[start : start + len(rows), : rows.shape[1]] = rows if times == 1 else rows.double() * times
    return made


def stays_exact(parts: Sequence[Factors], scale: Scale) -> bool:
    """Tells whether multiplying the scales in loses no bit of any factor in its own dtype."""
    if not scale.is_exact:
        return False
    changed = ((part, ratio) for part, ratio in zip(parts, scale.ratios, strict=True) if ratio != 1)
    return all(exact_dtype(read_factor(part.b), ratio) for part, ratio in changed)


def is_kept(parts: Sequence[Factors], scale: Scale) -> bool:
    """Tells whether every factor goes into the export as it is."""
    return all(ratio == 1 and part.rank == scale.rank for part, ratio in zip(parts, scale.ratios, strict=True))


def base_name(update: OpenedUpdate) -> str:
    """Returns the base's Hub id, or its folder as it is found from anywhere on this machine."""
    return update.base.name if update.base.revision else str(update.base.folder.resolve())


def adapter_config(
    update: OpenedUpdate, model: nn.Module, parts: Sequence[Factors], scale: Scale, targets: Targets
) -> dict[str, Any]:
    """Makes `adapter_config.json` of the keys that old PEFT knows too: it refuses others, and engines pin it."""
    task = "FEATURE_EXTRACTION" if update.files.features_only else getattr(update.files.settings, "task_type", None)
    linears = [model.get_submodule(part.path) for part in parts if not part.is_embedding]
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base_name(update),
        "bias": "none",
        **({"exclude_modules": list(targets.excluded)} if targets.excluded else {}),
        "fan_in_fan_out": bool(linears) and all(isinstance(module, Conv1D) for module in linears),
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": scale.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": scale.rank,
        "rank_pattern": {},
        "revision": update.base.revision,
        "target_modules": list(targets.suffixes),
        "task_type": str(getattr(task, "value", task)) if task else "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def _stored_names(update: OpenedUpdate) -> Iterator[str]:
    """Yields the names of the tensors in a plain LoRA's file; those of other updates say nothing here."""
    if update.kind is PEFT and update.streamed:
        yield from read_header(update.folder / PEFT.weights)


def base_facts(model: nn.Module, update: OpenedUpdate) -> BaseFacts:
    """Collects what the engines' rules ask of the base model, which is on any device and without adapters."""
    modules = {path: module for path, module in model.named_modules() if linear_shape(module) is not None}
    embeddings = {path for path, module in modules.items() if isinstance(module, nn.Embedding)}
    head = {path for path in modules if path.rpartition(".")[2] in ("lm_head", "embed_out")}
    tied = bool(getattr(getattr(model, "config", None), "tie_word_embeddings", False))
    return BaseFacts(frozenset(modules), frozenset(embeddings | head), tied, update.base.revision is not None)


def _said_of_answers(update: OpenedUpdate) -> Iterator[str]:
    """Says whose tokenizer belongs to an export, and where its answers end, where the base model's may not do."""
    files, own = update.files, own_tokenizer(update.files.places)
    if own is not None and (files.is_plain or files.name != own.name):
        yield f"Its tokenizer and chat template are those of '{own.name}', not the base model's."
    path = files.root / hub.GENERATION
    found = end_ids(hub.read_json(path)) if path.is_file() else []
    before = end_ids(hub.read_json(update.base.folder / hub.CONFIG))
    if more := [one for one in found if one not in before]:
        yield (
            f"Its answers end at the tokens {', '.join(map(str, found))}; the base model's configuration does not know "
            f"{', '.join(map(str, more))}: give `eos_token_id={found}` to `generate`, and engines `stop_token_ids`."
        )


def notes_on(
    update: OpenedUpdate, parts: Sequence[Factors], scale: Scale, targets: Targets, is_exact: bool
) -> Iterator[str]:
    """Says what to know of an export, in sentences."""
    yield from _said_of_answers(update)
    if not update.base.revision:
        yield f"The base model is the folder '{base_name(update)}'; whoever loads the export needs it there."
    if carried := [name for name in _stored_names(update) if name.endswith(".weight") and ".lora_" not in name]:
        yield (
            f"The update's file holds {len(carried)} tensors that are no LoRA, first '{carried[0]}': modules that it "
            "keeps whole and the setting masks, or PEFT's copies of adapted embeddings. They are left out."
        )
    if targets.zeros:
        yield (
            f"{len(targets.zeros)} more modules have a name in target_modules ({', '.join(targets.suffixes)}); their "
            "factors are zeros, which change nothing."
        )
    if targets.excluded:
        yield (
            f"{len(targets.excluded)} more modules have a name in target_modules and no tensors; PEFT passes them by "
            "(exclude_modules, from PEFT 0.14 on)."
        )
    if len({part.rank for part in parts}) > 1:
        yield f"Factors of lower rank are padded with zeros to rank {scale.rank}."
    if any(ratio != 1 for ratio in scale.ratios):
        how = "by powers of two, which is exact" if is_exact else "in float32"
        yield f"The modules' scales differ; they are multiplied into lora_B, {how}."
