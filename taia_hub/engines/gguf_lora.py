"""A LoRA of PEFT as the GGUF LoRA that llama.cpp reads.

llama.cpp's own converter does this for every architecture that it knows, from its repository and with the base model
at hand. This one needs the base's GGUF file alone, and knows the architectures of `ROWS`: those whose weights lie in a
GGUF file row by row as in the checkpoint, or with the one permutation that is written down here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import safe_open

from taia_hub import hub
from taia_hub.engines.gguf_files import begin_tensors, gguf_package, new_gguf, tensor_names
from taia_hub.errors import ConfigError, RepositoryError, UnsupportedUpdateError, UpdateMismatchError, closest

_KEY = re.compile(r"(?:base_model\.model\.)?(?P<path>.+)\.lora_(?P<factor>[AB])\.weight")
_CONVERTER = "Use convert_lora_to_gguf.py of https://github.com/ggml-org/llama.cpp, or serve the merged model."
_EXPORT = (
    "`taia export` writes the plain LoRA of a mode, or says why it cannot; `taia merge`, and `taia serve --engine "
    "transformers`, put any mode into a whole model."
)
_DTYPES = {"float32": np.float32, "float16": np.float16}


@dataclass(frozen=True)
class Base:
    """What the header of a base model's GGUF file says; `shapes` are (rows, columns) by a matrix's name in the file."""

    path: Path
    architecture: str
    blocks: int
    heads: int
    key_heads: int
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class GGUFLora:
    """What was written: a file of `size` bytes, with a LoRA on `modules` matrices."""

    path: Path
    architecture: str
    modules: int
    rank: int
    size: int


def _as_they_are(rows: Any, name: str, base: Base) -> Any:
    return rows


def _rotary_pairs(rows: Any, name: str, base: Base) -> Any:
    """Puts the rows of a query or key side by side in pairs that rotate together, as Llama's GGUF files have them."""
    heads = {"attn_q": base.heads, "attn_k": base.key_heads}.get(name.rpartition(".")[0].split(".", 2)[-1])
    if heads is None:
        return rows
    size = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, size, -1).swapaxes(1, 2).reshape(rows.shape)


ROWS: Mapping[str, Callable[[Any, str, Base], Any]] = {
    "llama": _rotary_pairs,  # Llama, Mistral: the converter permutes q and k; the file's layout is the original Llama's
    "qwen2": _as_they_are,  # the converter changes no tensor
    "qwen3": _as_they_are,  # the same
    "gemma": _as_they_are,  # it adds 1 to the norms, which no LoRA touches
    "gemma2": _as_they_are,  # the same
    "gemma3": _as_they_are,  # the same, and it drops rows of the embedding, which is refused here
    "phi3": _as_they_are,  # its fused qkv and gate-up are fused in the checkpoint already
}
"""Architecture of a GGUF file to how rows of a weight, a bias or a lora_B lie in it (llama.cpp's conversion/*.py).

Deliberately closed: where the converter reorders rows (Falcon, BLOOM, GPT-NeoX, InternLM2), splits or joins matrices
(experts, multi-head latent attention) or transposes them, a LoRA that was written as it is would be wrong in silence.
"""


def read_base(path: Path) -> Base:
    """Reads the header of a base model's GGUF file; one part of several is refused.

    Raises:
        RepositoryError: If there is no such file, or it is no whole GGUF file.
        UnsupportedUpdateError: If how its architecture lies in a GGUF file is not known here.
    """
    return open_base(path)[0]


def open_base(path: Path) -> tuple[Base, Any]:
    """Reads the header as `read_base` does; gives the `gguf.GGUFReader` too, which takes seconds to make."""
    gguf = gguf_package()
    if not path.is_file():
        raise RepositoryError(f"There is no GGUF file '{path}'.", HOW_TO_GET_A_GGUF)

    def value(key: str, default: Any = None) -> Any:
        found = reader.get_field(key)
        return default if found is None else found.contents()

    try:
        reader = gguf.GGUFReader(path)
        parts, architecture = value("split.count", 0), str(value("general.architecture", ""))
    except (ValueError, LookupError, ArithmeticError, RecursionError) as error:  # what stands in a foreign file
        raise RepositoryError(f"'{path}' is no GGUF file, or is truncated: {error}.", HOW_TO_GET_A_GGUF) from error
    if parts not in (0, 1):
        raise RepositoryError(f"'{path}' is one part of several.", "Join them with `llama-gguf-split --merge`.")
    if architecture not in ROWS:
        raise UnsupportedUpdateError(
            f"How a '{architecture}' model lies in a GGUF file is not known here; known are {', '.join(ROWS)}.",
            _CONVERTER,
        )
    blocks, heads = value(f"{architecture}.block_count", 0), value(f"{architecture}.attention.head_count", 0)
    key_heads = value(f"{architecture}.attention.head_count_kv", heads)
    if not all(isinstance(one, int) for one in (blocks, heads, key_heads)):
        raise UnsupportedUpdateError(f"The layers of '{path}' have different numbers of heads.", _CONVERTER)
    shapes = {tensor.name: tuple(map(int, reversed(tensor.shape))) for tensor in reader.tensors}
    return Base(path, architecture, blocks, heads, key_heads, shapes), reader


HOW_TO_GET_A_GGUF = (
    "Many base models have one on the Hub (search their name and GGUF, and take that of the very base); otherwise make "
    "it with llama.cpp: python convert_hf_to_gguf.py BASE_FOLDER --outfile base.gguf"
)


def write_gguf_lora(
    adapter: str | Path, base: str | Path | Base, out: str | Path, *, dtype: Literal["float32", "float16"] = "float32"
) -> GGUFLora:
    """Writes a plain LoRA of PEFT as a GGUF LoRA, one tensor in memory at a time.

    `adapter` is a folder of `taia export` or PEFT, with one scale for all modules; `base` is a GGUF of any precision,
    of which only the header is read, or what `read_base` made of it. Pairs of zeros are left out. A file that is there
    is replaced when the new one is whole.

    Raises:
        UnsupportedUpdateError: If llama.cpp cannot apply it: another method, several scales, biases, embeddings, or an
            architecture that is not known here.
        UpdateMismatchError: If a tensor does not fit the base.

    Example:
        ```python
        export_adapter("org/model-taia", "export", "attention")
        write_gguf_lora("export", "base.gguf", "attention.gguf")
        ```
    """
    gguf = gguf_package()
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not known.{closest(dtype, _DTYPES)}", f"Choose {', '.join(_DTYPES)}.")
    adapter, out = Path(adapter), Path(out)
    weights = hub.adapter_weights(adapter)
    scale = _scale(hub.read_json(adapter / hub.ADAPTER_CONFIG), adapter)
    header = base if isinstance(base, Base) else read_base(Path(base))
    with safe_open(weights, framework="pt") as file:
        places = _places(file, header)
        rank = next(iter(places.values()))[1][0]
        with new_gguf(out, header.architecture) as writer:
            writer.add_type(gguf.GGUFType.ADAPTER)
            writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
            writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(scale * rank))  # llama.cpp divides it by the rank
            kind = np.dtype(_DTYPES[dtype])
            for name, (_, shape, _) in places.items():
                writer.add_tensor_info(name, shape, kind, int(np.prod(shape)) * kind.itemsize)
            begin_tensors(writer)
            for key, _, rearrange in places.values():
                tensor = file.get_tensor(key).float().numpy()
                writer.write_tensor_data(np.ascontiguousarray(rearrange(tensor)).astype(kind, copy=False))
    return GGUFLora(out, header.architecture, len(places) // 2, rank, out.stat().st_size)


def _places(file: Any, base: Base) -> dict[str, tuple[str, tuple[int, ...], Callable[[np.ndarray], np.ndarray]]]:
    """Finds each tensor's name in the GGUF file, its shape, and how its rows are rearranged, in the file's order."""
    names = tensor_names(base.architecture, base.blocks)
    found: dict[str, tuple[str, tuple[int, ...], Callable[[np.ndarray], np.ndarray]]] = {}
    ranks: dict[str, set[int]] = {}
    keys = set(file.keys())
    for key in sorted(keys):
        match = _KEY.fullmatch(key)
        if match is None:
            raise UnsupportedUpdateError(
                f"The adapter holds '{key}', no LoRA factor of a linear layer; llama.cpp applies nothing else.",
                _EXPORT,
            )
        up = f"{key[: match.start('factor')]}B.weight"
        if up in keys and not bool(file.get_tensor(up).any()):
            continue  # it adds nothing, as where an export had to name more modules, and would be computed
        target = names.get_name(match["path"])
        shape = tuple(file.get_slice(key).get_shape())
        if target is None or f"{target}.weight" not in base.shapes:
            tied = " The base ties its head to the embedding." if match["path"] == "lm_head" else ""
            raise UpdateMismatchError(
                f"'{match['path']}' has no weight in '{base.path.name}'.{tied}",
                "Give the GGUF file of the base model that the adapter was trained on, or serve the merged model.",
            )
        name = f"{target}.weight"
        rows, columns = _matrix(base, name)
        expected, rank = (columns, shape[0]) if match["factor"] == "A" else (rows, shape[1])
        if len(shape) != 2 or expected != (shape[1] if match["factor"] == "A" else shape[0]):
            raise UpdateMismatchError(
                f"'{key}' has shape {shape}, but '{name}' in '{base.path.name}' is ({rows}, {columns}).",
                "Give the GGUF file of the base model that the adapter was trained on.",
            )
        ranks.setdefault(name, set()).add(rank)
        found[f"{name}.lora_{match['factor'].lower()}"] = (key, shape, _rearrange(match["factor"], name, base))
    _check_pairs(found, ranks)
    return found


def _matrix(base: Base, name: str) -> tuple[int, int]:
    shape = base.shapes[name]
    if len(shape) != 2 or name == "token_embd.weight":
        raise UnsupportedUpdateError(f"llama.cpp applies no plain LoRA to '{name}' of shape {shape}.", _CONVERTER)
    return shape[0], shape[1]


def _rearrange(factor: str, name: str, base: Base) -> Callable[[np.ndarray], np.ndarray]:
    if factor == "A":  # its columns are the layer's inputs, which lie as they did
        return lambda tensor: tensor
    return lambda tensor: ROWS[base.architecture](tensor, name, base)


def _check_pairs(found: Mapping[str, Any], ranks: Mapping[str, set[int]]) -> None:
    if not found:
        raise UnsupportedUpdateError("The adapter holds no tensor.", "Choose a mode in which an update acts.")
    single = [name for name in ranks if f"{name}.lora_a" not in found or f"{name}.lora_b" not in found]
    if single or any(len(each) > 1 for each in ranks.values()):
        name = single[0] if single else next(name for name, each in ranks.items() if len(each) > 1)
        raise UpdateMismatchError(f"The two factors of '{name}' do not belong together.", "Export the adapter again.")
    if len(set().union(*ranks.values())) > 1:
        raise UnsupportedUpdateError(
            f"The modules have ranks {sorted(set().union(*ranks.values()))}; llama.cpp scales them by one alpha.",
            _EXPORT,
        )


def _scale(config: Mapping[str, Any], adapter: Path) -> float:
    """Reads the one scale of all modules: alpha over rank, or over its root."""
    told = {
        "another method than LoRA": config.get("peft_type", "LORA") != "LORA",
        "DoRA": config.get("use_dora"),
        "biases": config.get("bias", "none") != "none" or config.get("lora_bias"),
        "whole modules": config.get("modules_to_save"),
        "a rank or scale of its own for some modules": config.get("rank_pattern") or config.get("alpha_pattern"),
        "repeated layers": config.get("layer_replication"),
    }
    if wrong := [what for what, is_so in told.items() if is_so]:
        raise UnsupportedUpdateError(
            f"The adapter '{adapter}' has {wrong[0]}, which llama.cpp does not apply.",
            _EXPORT,
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)):
        raise ConfigError(f"{hub.ADAPTER_CONFIG} of '{adapter}' has r {rank!r} and lora_alpha {alpha!r}.", "Export it.")
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
