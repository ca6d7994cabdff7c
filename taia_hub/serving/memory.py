"""What serving costs in memory, from the shapes of files.

    vLLM, SGLang    base + slots x max rank x sum(rows + columns) x bytes of a number + tokens x KV bytes
    llama.cpp       GGUF + the LoRA of the mode that is loaded + n_ctx x KV bytes
    transformers    modes that are loaded x base + tokens x KV bytes

vLLM and SGLang set slots of the largest rank aside at the start, however few adapters there are and however small their
ranks: vLLM for every layer that LoRA could adapt, SGLang for those that its adapters do adapt. Activations, CUDA graphs
and the engine itself come on top.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taia_hub import hub
from taia_hub.errors import ConfigError
from taia_hub.updates.peft.plain_lora import tensor_shapes
from taia_hub.updates.peft.strict import PREFIX
from taia_hub.weights.checkpoint import read_header

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
    """Adds up the bytes of the tensors in a model's or adapter's safetensors files, from their headers.

    Args:
        folder: The folder.

    Returns:
        Bytes.

    Raises:
        ConfigError: If there is no such file.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ConfigError(f"'{folder}' holds no safetensors file.", "Give the folder of a model or an adapter.")
    return sum(stored.size for path in files for stored in read_header(path).values())


def lora_shapes(folder: str | Path) -> dict[str, tuple[int, int]]:
    """Reads which layers a LoRA adapts.

    Args:
        folder: Folder of an export.

    Returns:
        Path of each layer to its (rows, columns).

    Raises:
        RepositoryError: If there is no adapter.
    """
    shapes = tensor_shapes(hub.adapter_weights(Path(folder)))
    end_a, end_b = ".lora_A.weight", ".lora_B.weight"
    paths = [key.removesuffix(end_a) for key in shapes if key.endswith(end_a)]
    return {path.removeprefix(PREFIX): (shapes[path + end_b][0], shapes[path + end_a][1]) for path in paths}


def lora_bytes(shapes: Shapes, rank: int, itemsize: int) -> int:
    """Returns the bytes of a LoRA.

    Args:
        shapes: The layers that it adapts.
        rank: Its rank; in a slot, the largest rank that the engine was told.
        itemsize: Bytes of a number: 4 in float32, 2 in bfloat16.

    Returns:
        Bytes.

    Example:
        >>> lora_bytes({"q_proj": (576, 576), "k_proj": (192, 576)}, rank=8, itemsize=2)
        30720
    """
    return rank * itemsize * sum(rows + columns for rows, columns in shapes.values())


def kv_bytes(config: Mapping[str, Any], itemsize: int = 2) -> int:
    """Returns the bytes of the keys and values of one token, where every layer has full attention.

    Args:
        config: `config.json` of the base model.
        itemsize: Bytes of a number.

    Returns:
        Bytes; layers with a sliding window or a state hold less.

    Example:
        >>> kv_bytes({"num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3})
        23040
    """
    heads = int(config["num_attention_heads"])
    size = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    return 2 * int(config["num_hidden_layers"]) * int(config.get("num_key_value_heads") or heads) * size * itemsize


def slots_memory(base: int, token: int, shapes: Shapes, *, slots: int, max_rank: int, itemsize: int) -> ServingMemory:
    """Returns what vLLM or SGLang hold on the GPUs of one copy.

    Args:
        base: Bytes of the base model.
        token: Bytes of keys and values of a token.
        shapes: Every layer that vLLM could adapt; for SGLang those that an adapter adapts.
        slots: `--max-loras`, or `--max-loras-per-batch`.
        max_rank: `--max-lora-rank`.
        itemsize: Bytes of a number of the LoRAs, by default of the base's dtype.

    Returns:
        The memory.
    """
    return ServingMemory(base, slots * lora_bytes(shapes, max_rank, itemsize), token)


def merged_memory(models: Iterable[int], token: int) -> ServingMemory:
    """Returns what `transformers serve` holds: every merged model that is loaded.

    Args:
        models: Bytes of each.
        token: Bytes of keys and values of a token.

    Returns:
        The memory.
    """
    return ServingMemory(sum(models), 0, token)
