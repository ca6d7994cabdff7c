"""The model that is trained: the base with a LoRA, MoLoRA or its own parameters, and how what was trained is saved."""

from __future__ import annotations

import copy
import functools
import os
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import set_seed

from taia_hub import hub
from taia_hub.configuration_taia import TAIAConfig
from taia_hub.errors import UnsupportedUpdateError
from taia_hub.hub.layout import DENSE, MOLORA, PEFT
from taia_hub.modeling_taia import TAIAForCausalLM
from taia_hub.repository.loading import Loaded
from taia_hub.roles.sublayers import SublayerRoles
from taia_hub.training.job import Fitted, Job
from taia_hub.training.planning import Plan
from taia_hub.training.recipe import TrainingRecipe
from taia_hub.training.selection import check_trainable, freeze_others, lora_arguments
from taia_hub.updates.attaching import attach
from taia_hub.updates.molora.update import MoLoraUpdate
from taia_hub.updates.options import AttachOptions
from taia_hub.updates.peft.update import PeftUpdate, attach_switch
from taia_hub.weights.base_model import load_base
from taia_hub.weights.checkpoint import DTYPES, read_header

UPDATE_KINDS = {"lora": PEFT, "molora": MOLORA, "full": DENSE}
"""Method of a recipe to the kind of update that comes of it."""

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def build_model(job: Job, plan: Plan, *, uniform_dtype: bool = False) -> Any:
    """Loads the base model and makes trainable what the recipe trains; the same seed gives the same weights.

    LoRA pairs are float32 on a base in the dtype of the plan, or have its dtype with `uniform_dtype`, as sharding needs
    it. Full fine-tuning returns the base model itself, keeps all weights in float32 and computes in the plan's dtype.
    """
    base, recipe, selection = job.base, job.recipe, job.selection
    set_seed(recipe.seed)
    dtype = torch.float32 if recipe.method == "full" else _DTYPES[plan.dtype]
    model: Any = load_base(
        base,
        config=copy.deepcopy(job.config),
        dtype=dtype,
        token=job.token,
        trust_remote_code=recipe.trust_remote_code,
    )
    if recipe.method == "full":
        freeze_others(model, selection)
    elif recipe.method == "molora":
        from taia_hub.updates.molora.config import MoLoraSettings
        from taia_hub.updates.molora.update import add_molora

        model = add_molora(
            model,
            MoLoraSettings(
                experts=recipe.experts,
                top_k=recipe.top_k,
                rank=recipe.rank,
                alpha=recipe.alpha,
                dropout=recipe.dropout,
                balance_loss=recipe.balance_loss,
            ),
            targets=[target.path for target in selection.targets],
            revision=base.revision,
            autocast_adapter_dtype=not uniform_dtype,
        )
    else:
        config = LoraConfig(revision=base.revision, **lora_arguments(selection, recipe, model))
        with warnings.catch_warnings():
            # PEFT looks for the names of adapted parameters among the modules; it applies their ranks all the same.
            warnings.filterwarnings("ignore", message=r"The following (rank|alpha)_pattern keys did not match")
            model = get_peft_model(model, config, autocast_adapter_dtype=not uniform_dtype)
        # Else PEFT reads the base's configuration again for every checkpoint: no embedding is resized here.
        model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)
    check_trainable(model)
    return model


def needs_uniform_dtype(arguments: Any) -> bool:
    """Tells whether the parameters of a model must have one dtype, because they are sharded in flat pieces."""
    zero = getattr(arguments, "deepspeed_plugin", None)
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
    return sharded or (zero is not None and zero.zero_stage == 3)


def check_sharding(recipe: TrainingRecipe, *, sharded: bool) -> None:
    """Refuses what cannot be gathered again: MoLoRA on a model that is shared among the processes."""
    if sharded and recipe.method == "molora":
        raise UnsupportedUpdateError(
            "MoLoRA cannot be trained on a model that is sharded (FSDP, DeepSpeed ZeRO-3).",
            "Use DDP (ddp.yaml), or method: lora.",
        )


def save_update(fitted: Fitted, folder: Path) -> None:
    """Saves what was trained in a new folder: an adapter, or a checkpoint in the dtypes that the base is stored in."""
    model, recipe, state_dict = fitted.model, fitted.job.recipe, fitted.state_dict
    folder.mkdir(parents=True)
    if recipe.method == "molora":
        from taia_hub.updates.molora.update import save_molora

        save_molora(model, folder)
    elif recipe.method == "lora":
        model.save_pretrained(str(folder), state_dict=state_dict)
        (folder / "README.md").unlink(missing_ok=True)
    else:
        usual, stored = _stored_dtypes(fitted.job.base, fitted.job.token)
        tensors = dict(model.state_dict() if state_dict is None else state_dict)
        for name, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
            if name in tensors and source in tensors and torch.equal(tensors[name], tensors[source]):
                del tensors[name]  # a cast would make two tensors of one
        cast = {
            name: tensor.to(stored.get(name, usual)) if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }
        model.save_pretrained(str(folder), state_dict=cast)


def switched(fitted: Fitted, folder: Path, placed: SublayerRoles) -> Any:
    """Makes a TAIA model of what was trained, to be measured under its modes; the trained model is used up.

    An adapter is switched where it is. A full fine-tune has taken the place of its base, which is loaded again, in the
    dtypes that it is stored in; the tuned tensors are those of the repository in `folder`. `placed` are the roles of
    the base's modules.
    """
    job = fitted.job
    kind, options = UPDATE_KINDS[job.recipe.method], (placed.roles, placed.unplaced, job.recipe.published)
    if kind is DENSE:
        device = fitted.model.device
        fitted.model.to("meta")  # else both would be held
        keywords: dict[str, Any] = {"token": job.token, "trust_remote_code": job.recipe.trust_remote_code}
        base = load_base(job.base, config=copy.deepcopy(job.config), dtype="auto", **keywords).to(device)
        update, switch = attach(base, folder / kind.folder, kind, AttachOptions(*options))
    else:
        update = {PEFT: PeftUpdate, MOLORA: MoLoraUpdate}[kind](fitted.model, folder / kind.folder)
        switch = attach_switch(update.head_model, placed.roles, job.recipe.published, placed.unplaced)
    config = TAIAConfig(
        # as the repository records it, so that the results are known to be this model's
        base_model_name_or_path=job.base.name if job.base.revision else str(job.base.folder.resolve()),
        base_model_revision=job.base.revision,
        inference_modules=job.recipe.published,
        update={"kind": kind.name, "path": kind.folder},
    )
    model: Any = update.head_model
    vars(model).pop("forward", None)  # a trainer leaves its own on the instance, which knows of no setting
    return TAIAForCausalLM.from_loaded(Loaded(model, config, update, switch))


def _stored_dtypes(base: hub.Source, token: str | bool | None = None) -> tuple[torch.dtype, dict[str, torch.dtype]]:
    """Returns the most usual floating-point dtype of the base's stored tensors, and each one's by name.

    The weights lie on this disk or in the cache; without safetensors there it is float32.
    """
    access = hub.HubAccess(token=token)
    source = hub.fetch(base.name, ["*.safetensors"], revision=base.revision, access=access, what="base model")
    headers = [read_header(path) for path in sorted(source.folder.glob("*.safetensors"))]
    found = {one.name: DTYPES[one.kind] for header in headers for one in header.values() if one.kind in DTYPES}
    usual = Counter(found.values()).most_common(1)
    return (usual[0][0] if usual else torch.float32), found
