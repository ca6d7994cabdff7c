"""A model's structure on the meta device: every module, name and shape, and no weight."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from taia_hub import hub
from taia_hub.errors import ConfigError, UnsupportedUpdateError


def skeleton(
    base: hub.Source,
    access: hub.HubAccess,
    trust_remote_code: bool = False,
    *,
    features_only: bool = False,
    what: str = "base model",
) -> PreTrainedModel:
    """Builds a model from its configuration alone, without its head where `features_only`; messages call it `what`."""
    try:
        with hub.hub_errors(base.name, what=what, revision=base.revision):
            config = AutoConfig.from_pretrained(
                base.name,
                revision=base.revision,
                token=access.token,
                cache_dir=access.cache_dir,
                local_files_only=access.local_files_only,
                trust_remote_code=trust_remote_code,
            )
            if config.model_type == "taia":
                raise UnsupportedUpdateError(
                    f"The {what} '{base.name}' is itself a TAIA repository.",
                    "Merge it first, and name the merged model.",
                )
            return build(config, trust_remote_code, features_only=features_only)
    except UnsupportedUpdateError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"The {what} '{base.name}' is no language model that transformers can build: "
            f"{' '.join(str(error).split())[:300]}",
            "Check its config.json, or allow its own code with trust_remote_code=True (--trust-remote-code).",
        ) from error


def build(config: Any, trust_remote_code: bool = False, *, features_only: bool = False) -> PreTrainedModel:
    """Builds the language model of a configuration on the meta device, without its head where `features_only`."""
    auto = AutoModel if features_only else AutoModelForCausalLM
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(config, trust_remote_code=trust_remote_code)
    return model
