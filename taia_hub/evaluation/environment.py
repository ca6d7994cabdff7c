"""Which model was evaluated, with which versions, on what."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from taia_hub import hub
from taia_hub.common.environment import hardware, installed_versions
from taia_hub.common.fingerprints import generation_inputs, prompt_inputs
from taia_hub.hub.config import Fields
from taia_hub.results import ModelIdentity, config_sha256


def identify(model: Any) -> ModelIdentity:
    """Says which model this is, so that results are never taken for another's.

    The hash of its update is that of the file while the weights are those of the file, else that of the weights.
    """
    config, update = model.taia_config, model._taia_update
    if update.is_unchanged():
        sha256 = hub.sha256(update.source / update.kind.weights)
        adapter_config = hub.read_json(update.source / update.kind.config)
    else:
        from safetensors.torch import save

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(update.parameters().items())}
        sha256 = hashlib.sha256(save(tensors)).hexdigest()
        adapter_config = update.settings
    return ModelIdentity(
        name=config._name_or_path or config.base_model_name_or_path,
        revision=getattr(config, "_commit_hash", None),
        base_model=config.base_model_name_or_path,
        base_revision=config.base_model_revision,
        adapter_sha256=sha256,
        dtype=str(model.dtype).removeprefix("torch."),
        adapter_config_sha256=config_sha256(adapter_config),
        base_files=_base_files(config),
    )


def identify_files(
    name: str, *, dtype: str = "auto", revision: str | None = None, token: str | bool | None = None
) -> ModelIdentity | None:
    """Says which model a repository or adapter is, as `identify` does once it is loaded; None if its dtype is not told.

    The update's weights are brought to this disk, those of the base model are not.
    """
    from taia_hub.repository.update_files import open_repository

    access = hub.HubAccess(token=token)
    files = open_repository(name, access, revision=revision).with_weights(access)
    base = hub.read_json(files.base.folder / hub.CONFIG)
    held = (base.get("dtype") or base.get("torch_dtype")) if dtype == "auto" else dtype
    if not isinstance(held, str) or base.get("quantization_config"):
        return None
    return ModelIdentity(
        name=files.name,
        revision=files.revision,
        base_model=files.config.base_model_name_or_path,
        base_revision=files.base.revision,
        adapter_sha256=hub.sha256(files.folder / files.kind.weights),
        dtype=held,
        adapter_config_sha256=config_sha256(hub.read_json(files.folder / files.kind.config)),
        base_files=_base_files(files.config),
    )


def known_inputs(
    name: str, *, revision: str | None = None, token: str | bool | None = None, trust_remote_code: bool = False
) -> Mapping[str, str] | None:
    """Names what answers depend on beside a model that is not loaded; None where files do not tell all of it."""
    from transformers import GenerationConfig

    from taia_hub.repository.tokenizer import load_tokenizer
    from taia_hub.repository.update_files import open_repository

    access = hub.HubAccess(token=token)
    found = open_repository(name, access, revision=revision).with_tokenizer(access)
    if (generation := found.generation) is None:
        return None
    stand_in = SimpleNamespace(taia_config=found.config)
    tokenizer = load_tokenizer(stand_in, places=found.places, token=token, trust_remote_code=trust_remote_code)
    return {**prompt_inputs(tokenizer), **generation_inputs(GenerationConfig.from_pretrained(str(generation.parent)))}


def _base_files(config: Fields) -> Mapping[str, str] | None:
    """Names the content of a base model in a folder, without what prompts are made of."""
    if config.base_model_revision is not None:
        return None
    return hub.folder_print(Path(config.base_model_name_or_path or ""), hub.MODEL_PARTS) or None


def describe(model: Any, processes: int) -> Mapping[str, Any]:
    """Returns `versions`, `hardware` and `date`, as JSON values, of a loaded model whose items `processes` share."""
    return {
        "versions": installed_versions("lm-eval", "datasets", "accelerate"),
        "hardware": hardware(model.device, processes),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def renewed(before: Mapping[str, Any], now: Mapping[str, Any]) -> Mapping[str, Any]:
    """Describes results of several runs: the latest, and under `earlier` those before it that differed."""
    earlier = list(before.get("earlier", ()))
    last = {key: value for key, value in before.items() if key != "earlier"}
    if {**last, "date": None} != {**now, "date": None}:
        earlier.append(last)
    return {**now, "earlier": earlier} if earlier else now
