"""What serving costs in memory, from the shapes of files.

    vLLM, SGLang    base + slots x max rank x sum(rows + columns) x bytes of a number + tokens x KV bytes
    llama.cpp       GGUF + the LoRAs of all roles + n_ctx x KV bytes
    transformers    modes that are loaded x base + tokens x KV bytes

vLLM and SGLang set slots of the largest rank aside at the start, however few adapters there are and however small their
ranks: vLLM for every layer that LoRA could adapt, SGLang for those that its adapters do adapt. Activations, CUDA graphs
and the engine itself come on top. `taia serve --print` says the terms for what it serves.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taia_hub import hub
from taia_hub.engines import Command, Engine, Order, saved_dtype
from taia_hub.engines.order import given_number
from taia_hub.errors import ConfigError
from taia_hub.hub.layout import PREFIX

Shapes = Mapping[str, tuple[int, int]]
"""Path of a linear layer to its (rows, columns): outputs and inputs."""


@dataclass(frozen=True)
class ServingMemory:
    """What an engine holds, in bytes.

    Attributes:
        base: The base model's weights, of all copies that are loaded.
        adapters: The LoRAs, or the slots that are set aside for them.
        token: Keys and values of one token of one request.
    """

    base: int
    adapters: int
    token: int

    def total(self, tokens: int) -> int:
        """Returns the bytes with so many tokens in flight."""
        return self.base + self.adapters + tokens * self.token


def weights_bytes(folder: str | Path) -> int:
    """Adds up the bytes of the tensors in a model's or adapter's safetensors files; no tensor is read.

    Raises:
        ConfigError: If there is no such file, or one that the index names is missing.
        RepositoryError: If one is truncated or damaged.
    """
    folder = Path(folder)
    index = folder / hub.MODEL_INDEX
    files = [folder / name for name in hub.index_shards(index)] if index.is_file() else folder.glob("*.safetensors")
    sizes = [path.stat().st_size - 8 - _header(path) for path in files if path.is_file()]
    if not sizes or (index.is_file() and len(sizes) < len(hub.index_shards(index))):
        raise ConfigError(f"'{folder}' holds no safetensors file.", "Give the folder of a model or an adapter.")
    return sum(sizes)


def _header(path: Path) -> int:
    """Returns how long the header of a safetensors file is, which stands in the first eight bytes of a whole one."""
    hub.tensor_shapes(path)
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
    return int(length)


def lora_shapes(folder: str | Path) -> dict[str, tuple[int, int]]:
    """Reads the (rows, columns) of each layer that an export adapts, by its path.

    Raises:
        RepositoryError: If there is no adapter.
    """
    shapes = hub.tensor_shapes(hub.adapter_weights(Path(folder)))
    end_a, end_b = ".lora_A.weight", ".lora_B.weight"
    paths = [key.removesuffix(end_a) for key in shapes if key.endswith(end_a)]
    return {path.removeprefix(PREFIX): (shapes[path + end_b][0], shapes[path + end_a][1]) for path in paths}


def lora_bytes(shapes: Shapes, rank: int, itemsize: int) -> int:
    """Returns the bytes of a LoRA; in a slot, `rank` is the largest one that the engine was told.

    Example:
        >>> lora_bytes({"q_proj": (576, 576), "k_proj": (192, 576)}, rank=8, itemsize=2)
        30720
    """
    return rank * itemsize * sum(rows + columns for rows, columns in shapes.values())


def kv_bytes(config: Mapping[str, Any], itemsize: int = 2) -> int:
    """Returns the bytes of the keys and values of one token, by `config.json` of the base model.

    Every layer counts as one of full attention; those with a sliding window or a state hold less.

    Example:
        >>> kv_bytes({"num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3})
        23040
    """
    heads = int(config["num_attention_heads"])
    size = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    return 2 * int(config["num_hidden_layers"]) * int(config.get("num_key_value_heads") or heads) * size * itemsize


def slots_memory(base: int, token: int, shapes: Shapes, *, slots: int, max_rank: int, itemsize: int) -> ServingMemory:
    """Returns what vLLM or SGLang hold on the GPUs of one copy: slots for LoRAs of the largest rank.

    The `shapes` are every layer that vLLM could adapt, for SGLang those that an adapter adapts; sizes are in bytes.
    """
    return ServingMemory(base, slots * lora_bytes(shapes, max_rank, itemsize), token)


def merged_memory(models: Iterable[int], token: int) -> ServingMemory:
    """Returns what `transformers serve` holds: every merged model that is loaded."""
    return ServingMemory(sum(models), 0, token)


def memory_text(engine: Engine, order: Order, command: Command, base: Path) -> str:
    """Says what the served modes need in memory, as far as the files on this disk tell; the base's weights may lack."""
    config = hub.read_json(base / hub.CONFIG)
    config = {**config, **(config.get("text_config") or {})}
    itemsize = saved = 4 if saved_dtype(config) == "float32" else 2
    if engine.needs == "adapter":
        itemsize = 4 if order.computed_in == "float32" else 2
    try:
        token = kv_bytes(config, itemsize)
    except (KeyError, TypeError, ValueError):  # an architecture without keys and values, or with other names
        token = 0
    parts = []
    if engine.needs == "merged":
        held = merged_memory((weights_bytes(mode.path) for mode in order.modes if mode.path), token)
        parts.append(f"{_size(held.base)} of weights where {_count(len(order.modes), 'model')} loaded")
    elif engine.needs == "gguf":
        loras = sum(part.path.stat().st_size for part in order.parts if part.path)
        held = ServingMemory(order.gguf.stat().st_size if order.gguf else 0, loras, token)
        parts.append(f"{_size(held.base)} of GGUF weights, {_size(held.adapters)} of LoRAs")
    else:
        try:
            weights = weights_bytes(base) * itemsize // saved
            parts.append(f"{_size(weights)} of weights")
        except ConfigError:  # not on this disk
            weights = 0
            parts.append("the base's weights")
        told = dataclasses.replace(order, extra=command.words)
        flags = (given_number(told, flag, hint="") for flag in ("--max-loras", "--max-loras-per-batch"))
        slots = next(filter(None, flags), 0)
        rank = given_number(told, "--max-lora-rank", hint="") or order.rank
        shapes = {path: shape for mode in order.updates if mode.path for path, shape in lora_shapes(mode.path).items()}
        held = slots_memory(weights, token, shapes, slots=slots, max_rank=rank, itemsize=itemsize)
        if slots:
            least = "at least " if engine.name == "vllm" else ""  # it sets slots aside for layers without a LoRA too
            parts.append(f"{least}{_size(held.adapters)} of LoRAs ({_count(slots, 'slot')} of rank {rank})")
    parts += [f"{_size(held.token)} of keys and values a token in flight"] if held.token else []
    return f"Memory: {', '.join(parts)}; activations and the engine itself come on top. See `taia serve --guide`."


def _size(count: int) -> str:
    """Writes a number of bytes.

    Example:
        >>> _size(16_060_000_000), _size(131_072)
        ('16.1 GB', '131 kB')
    """
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} bytes"


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
