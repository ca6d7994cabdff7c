"""What lies where something else is expected: a file told by its first bytes, a folder by its names, tensors by theirs.

Each answer is what it is, as the end of a sentence, and what to do next; None where nothing is known of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

Seen = tuple[str, str]

_AGAIN = "Download or save it again."
_TEXT = "TAIA takes adapters of causal language models."
_CONVERT = "Convert it to PEFT's format first: adapter_config.json beside adapter_model.safetensors."
_WHOLE = "Give the model in safetensors that it was made from."
_PICKLED = "Only safetensors are read: ask its author for them, or convert it where you trust it."

_STARTS: tuple[tuple[bytes, Seen], ...] = (
    (
        b"version https://git-lfs",
        ("a git-lfs pointer, not the file itself", "Run `git lfs pull` there, or download it with `hf download`."),
    ),
    (b"GGUF", ("a GGUF file", _WHOLE)),
    (b"PK\x03\x04", ("a zip archive, as pickled weights are", _PICKLED)),
    *((b"\x80" + version, ("a pickle", _PICKLED)) for version in (b"\2", b"\3", b"\4", b"\5")),
    (b"\x1f\x8b", ("a gzip archive", "Unpack it first.")),
    (b"<!doctype", ("a web page, as one that asks to sign in", "Download it again, with a token (HF_TOKEN).")),
    (b"<html", ("a web page, as one that asks to sign in", "Download it again, with a token (HF_TOKEN).")),
)
_NAMES: tuple[tuple[str, Seen], ...] = (
    ("adapters.safetensors", ("an adapter of mlx-lm (adapters.safetensors)", _CONVERT)),
    ("adapters.npz", ("an adapter of mlx-lm (adapters.npz)", _CONVERT)),
    ("pytorch_adapter.bin", ("an adapter of the library `adapters` (AdapterHub)", "TAIA takes adapters of PEFT.")),
    ("pytorch_lora_weights.safetensors", ("a LoRA of diffusers, for images", _TEXT)),
    ("model_index.json", ("a pipeline of diffusers, for images", "TAIA takes causal language models.")),
    ("adapter_config.json", ("a PEFT adapter", "Give the base model first and the adapter second.")),
    ("lit_model.*", ("a checkpoint of LitGPT", "Convert it with `litgpt convert_from_litgpt`.")),
    ("params.json", ("a checkpoint in its maker's own format (params.json)", "Give the one for transformers.")),
    ("*.gguf", ("a model in GGUF", _WHOLE)),
    ("*.mlpackage/*", ("a model for Core ML", _WHOLE)),
    ("*.onnx", ("a model in ONNX", _WHOLE)),
    ("dataset_dict.json", ("a data set", "Give a model.")),
    ("dataset_info*.json", ("a data set", "Give a model.")),
    ("*.parquet", ("a data set", "Give a model.")),
    ("*.arrow", ("a data set", "Give a model.")),
    ("*.zip", ("an archive", "Unpack it, and give the folder.")),
    ("*.tar*", ("an archive", "Unpack it, and give the folder.")),
)


def seen_file(path: Path) -> Seen | None:
    """Says what a file is by how it begins; also that it is empty, or no file at all."""
    if not path.is_file():
        if path.is_dir():
            return "a folder", "A file belongs there."
        return ("a device, a pipe or a link that leads nowhere", _AGAIN) if os.path.lexists(path) else None
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError:
        return None
    if not start:
        return "empty", _AGAIN
    if start[8:9] == b"{":  # safetensors, whose first bytes are a length and may be any
        return None
    text = start.lstrip().lower()
    return next((seen for begin, seen in _STARTS if start.startswith(begin) or text.startswith(begin)), None)


def seen_in(names: Iterable[str]) -> Seen | None:
    """Says what a folder or repository is by the names of its files."""
    names = [name for name in names if not name.startswith(".")]
    if not names:
        return "empty", "Check the name, and that its download came to an end."
    return next((seen for pattern, seen in _NAMES if any(fnmatch(name.lower(), pattern) for name in names)), None)


def seen_folder(folder: Path) -> Seen | None:
    """Says what a folder here is by the names of its files."""
    try:
        return seen_in(os.listdir(folder))
    except OSError:
        return None


def seen_tensors(names: Iterable[str]) -> Seen | None:
    """Says which tool an adapter's tensors are from, or that they are a whole model's, by their names."""
    names = list(names)
    if any(name.startswith(("lora_unet_", "lora_te", "lora_transformer_")) for name in names):
        return "named as kohya-ss names them", _CONVERT
    if any(name.endswith((".lora_a", ".lora_b")) for name in names):
        return "named as mlx-lm names them", _CONVERT
    image = ("unet.", "text_encoder.", "diffusion_model.", "transformer.transformer_", "transformer.single_")
    if any("lora" in name and name.startswith(image) for name in names):
        return "those of an image model's LoRA", _TEXT
    plain = not any(name.startswith("base_model.") or "lora" in name for name in names)
    if plain and any(name.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight")) for name in names):
        return "a whole model's", "A full fine-tune becomes a repository by `taia create BASE FINETUNED --dense`."
    return None
