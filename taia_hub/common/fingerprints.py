"""What answers depend on beside the model's weights, each input under the name that messages call it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taia_hub.common.resuming import digest, sha256

_IDLE = ("transformers_version", "_from_model_config")
_STATE = ("padding", "truncation")  # which the last call left


def prompt_inputs(tokenizer: Any, *, chat: bool = True) -> dict[str, str]:
    """Names what prompts become tokens by, and tokens text: the tokenizer and, where `chat`, its chat template.

    Example:
        ```python
        prompt_inputs(tokenizer)  # {"tokenizer": "ab12…", "chat template": "cd34…"}
        ```
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content: Any = {key: value for key, value in json.loads(backend.to_str()).items() if key not in _STATE}
    else:
        file = getattr(tokenizer, "vocab_file", None)
        content = sha256(Path(file)) if file and Path(file).is_file() else sorted(tokenizer.get_vocab().items())
    special = {name: str(value) for name, value in dict(getattr(tokenizer, "special_tokens_map", {})).items()}
    flags = [getattr(tokenizer, name, None) for name in ("add_bos_token", "add_eos_token")]
    template = {"chat template": digest(getattr(tokenizer, "chat_template", None))} if chat else {}
    return {"tokenizer": digest([type(tokenizer).__name__, content, special, flags]), **template}


def generation_inputs(settings: Any) -> dict[str, str]:
    """Names a model's own settings of generation, which complete those that are given."""
    values: Mapping[str, Any] = settings.to_dict() if settings is not None else {}
    return {"generation settings": digest({key: value for key, value in values.items() if key not in _IDLE})}


def model_inputs(model: Any) -> dict[str, str]:
    """Names what else of a loaded model answers depend on: its settings of generation and how it is quantised."""
    found: Any = getattr(model.config, "quantization_config", None)
    values = found.to_dict() if hasattr(found, "to_dict") else found
    return {**generation_inputs(getattr(model, "generation_config", None)), "quantisation": digest(values)}
