"""Reading the checkpoints of the authors' MoLoRA code (github.com/pixas/TAIA_LLM)."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from taia_hub import hub
from taia_hub.errors import RepositoryError, UnsupportedUpdateError, UpdateMismatchError
from taia_hub.hub.layout import PREFIX
from taia_hub.roles.sublayers import find_sublayers
from taia_hub.updates.molora.config import MoLoraDescription, MoLoraSettings
from taia_hub.updates.molora.files import write_molora
from taia_hub.updates.molora.update import attach_molora
from taia_hub.updates.options import AttachOptions
from taia_hub.updates.peft.strict import CONFIG_NAME, WEIGHTS_NAME, read_config
from taia_hub.weights.skeleton import skeleton

AUTHORS_EXPERTS = "non_lora_trainables.bin"
_PICKLED = "adapter_model.bin"
_PAIR = re.compile(r"(?P<path>.+)\.lora_(?P<factor>[AB])\.weight")
_EXPERT = re.compile(r"(?P<path>.+)\.experts\.(?P<i>\d+)\.lora_(?P<factor>[AB])_(?P<same>\d+)\.weight")
_ROUTER = re.compile(r"(?P<path>.+)\.switch\.(?P<part>weight|bias)")
_FILES = f"Give the folder of a finished run, with {CONFIG_NAME}, {WEIGHTS_NAME} or {_PICKLED}, and {AUTHORS_EXPERTS}."


def convert_authors(
    source: str | Path,
    out: str | Path,
    base: str,
    *,
    base_revision: str | None = None,
    token: str | bool | None = None,
) -> MoLoraDescription:
    """Writes a checkpoint of the authors' MoLoRA code, a run's folder or its `non_lora_trainables.bin`, as our files.

    Pickled files are read as plain tensors only. Their identity experts, which their code never chooses, are left out.
    Nothing is written where tensors are missing, unknown, of another shape, or do not fit the base.
    """
    folder = Path(source)
    folder = folder.parent if folder.is_file() else folder
    run = _read_run(folder)
    pairs = _pairs(_tensors(folder, WEIGHTS_NAME, _PICKLED))
    experts, routers = _experts(_tensors(folder, AUTHORS_EXPERTS))
    total = {len(stack) for stack in experts.values()}
    if len(total) != 1:
        raise UpdateMismatchError(f"The layers in '{folder}' have {sorted(total)} experts.", _FILES)
    count = total.pop() - run.identities
    if run.experts is not None and run.experts != count:
        raise UpdateMismatchError(f"'{folder}' says {run.experts} experts and holds {count}.", _FILES)
    ffn = tuple(dict.fromkeys(path for path, _ in experts))
    settings = MoLoraSettings(
        experts=count,
        top_k=run.top_k,
        rank={"attention": run.rank, "ffn": run.expert_rank},
        alpha={"attention": run.alpha, "ffn": run.expert_alpha},
        dropout=run.dropout,
        rslora=run.rslora,
    )
    tensors = {f"{PREFIX}{path}.lora_{factor}.weight": tensor for (path, factor), tensor in pairs.items()}
    for (path, factor), stack in experts.items():
        tensors[f"{PREFIX}{path}.lora_{factor}.weight"] = _stacked(path, stack[:count])
    for (path, part), tensor in routers.items():
        tensors[f"{PREFIX}{path}.lora_router.{part}"] = tensor[:count].clone()
    description = MoLoraDescription(settings, tuple(dict.fromkeys(path for path, _ in pairs)), ffn, base, base_revision)
    _check_fit(description, tensors, base, base_revision, token)
    write_molora(description, tensors, Path(out))
    return description


@dataclass(frozen=True)
class _Run:
    rank: int
    alpha: int
    expert_rank: int
    expert_alpha: int
    dropout: float
    rslora: bool
    experts: int | None
    top_k: int
    identities: int


def _read_run(folder: Path) -> _Run:
    if not (folder / CONFIG_NAME).is_file():
        raise RepositoryError(f"'{folder}' has no {CONFIG_NAME}.", _FILES)
    lora: Any = read_config(folder)
    model = hub.read_json(path) if (path := folder / hub.CONFIG).is_file() else {}
    reason = None
    if getattr(lora, "rank_pattern", None) or getattr(lora, "alpha_pattern", None):
        reason = "its attention has several ranks or alphas"
    elif getattr(lora, "use_dora", False) or getattr(lora, "lora_bias", False):
        reason = "its attention is no plain LoRA (DoRA or lora_bias)"
    elif model.get("share_expert"):
        reason = "it has a shared expert"
    elif "use_rslora" in model and bool(model["use_rslora"]) != bool(lora.use_rslora):
        reason = "use_rslora differs between attention and experts"
    if reason:
        raise UnsupportedUpdateError(f"'{folder}' cannot be converted: {reason}.", "Train it again with `taia train`.")
    return _Run(
        rank=lora.r,
        alpha=lora.lora_alpha,
        expert_rank=model.get("molora_r") or lora.r,
        expert_alpha=model.get("molora_alpha") or lora.lora_alpha,
        dropout=lora.lora_dropout,
        rslora=bool(lora.use_rslora),
        experts=model.get("num_experts"),
        top_k=model.get("num_experts_per_token") or 2,
        identities=model.get("add_identity_mapping") or 0,
    )


def _tensors(folder: Path, *names: str) -> dict[str, Tensor]:
    """Reads the first file that is there; names are stripped of PEFT's prefix as their loader does."""
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise RepositoryError(f"'{folder}' has no {' or '.join(names)}.", _FILES)
    try:
        tensors = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except SafetensorError as error:
        raise hub.damaged(path, error) from error
    except Exception as error:  # torch's reader fails in every way on a file made to harm
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RepositoryError(
            f"'{path}' is no file of plain tensors: {reason}", "Do not load it; ask its author for safetensors."
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(one, Tensor) for one in tensors.values()):
        raise RepositoryError(f"'{path}' holds more than named tensors.", "Ask its author for safetensors.")
    short = {str(name).removeprefix("base_model."): tensor for name, tensor in tensors.items()}
    if any(name.startswith("model.model.") for name in short):
        short = {name.removeprefix("model."): tensor for name, tensor in short.items()}
    return short


def _pairs(tensors: Mapping[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    matches = {name: _PAIR.fullmatch(name) for name in tensors}
    if unknown := [name for name, match in matches.items() if match is None]:
        raise UpdateMismatchError(f"The attention adapter holds '{unknown[0]}', which is of no LoRA pair.", _FILES)
    return {(match["path"], match["factor"]): tensors[name] for name, match in matches.items() if match}


def _experts(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[tuple[str, str], list[Tensor]], dict[tuple[str, str], Tensor]]:
    """Sorts tensors into the experts' factors, by path and factor, and the routers', by path and part."""
    found: dict[tuple[str, str], dict[int, Tensor]] = {}
    routers: dict[tuple[str, str], Tensor] = {}
    for name, tensor in tensors.items():
        if (match := _EXPERT.fullmatch(name)) and match["i"] == match["same"]:
            found.setdefault((match["path"], match["factor"]), {})[int(match["i"])] = tensor
        elif match := _ROUTER.fullmatch(name):
            routers[match["path"], match["part"]] = tensor
        else:
            raise UpdateMismatchError(
                f"{AUTHORS_EXPERTS} holds '{name}', which is neither an expert's factor nor a router's tensor.",
                "A checkpoint that carries the base model's own tensors would replace them and is not converted.",
            )
    if not found:
        raise UpdateMismatchError(f"{AUTHORS_EXPERTS} holds no experts.", _FILES)
    for (path, factor), numbered in found.items():
        if sorted(numbered) != list(range(len(numbered))):
            raise UpdateMismatchError(f"'{path}' has lora_{factor} of the experts {sorted(numbered)} only.", _FILES)
    return {key: [numbered[i] for i in range(len(numbered))] for key, numbered in found.items()}, routers


def _stacked(path: str, tensors: list[Tensor]) -> Tensor:
    if len({(tensor.shape, tensor.dtype) for tensor in tensors}) != 1:
        raise UpdateMismatchError(f"The experts of '{path}' have different shapes or dtypes.", _FILES)
    return torch.stack(tensors)


def _check_fit(
    description: MoLoraDescription,
    tensors: Mapping[str, Tensor],
    base: str,
    revision: str | None,
    token: str | bool | None,
) -> None:
    """Attaches the update to a base without weights, which is as strict as a load."""
    access = hub.HubAccess(token=token)
    model = skeleton(hub.resolve_base(base, revision, access), access)
    with tempfile.TemporaryDirectory() as scratch:
        write_molora(description, tensors, Path(scratch))
        attach_molora(model, Path(scratch), AttachOptions(find_sublayers(model).roles))
