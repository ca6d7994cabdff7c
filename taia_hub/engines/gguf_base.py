"""A base model of transformers as the GGUF that llama.cpp reads.

llama.cpp's own converter does this for every architecture. This one knows those of `LAYOUTS`, each tried against
transformers, and writes nothing that it does not know: another kind of rotary embedding, of activation or of tokenizer
is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from taia_hub import hub
from taia_hub.common.chat import end_ids
from taia_hub.common.progress import Progress, counted
from taia_hub.engines.gguf_files import begin_tensors, gguf_package, new_gguf, tensor_names
from taia_hub.engines.gguf_lora import HOW_TO_GET_A_GGUF, ROWS, Base
from taia_hub.engines.gguf_tokens import check_vocabulary
from taia_hub.engines.gguf_vocabulary import Value, Vocabulary, add_field, read_vocabulary
from taia_hub.errors import ConfigError, UnsupportedUpdateError, closest

if TYPE_CHECKING:
    from torch import Tensor

    from taia_hub.weights.checkpoint import Checkpoint, Group

GGUFType = Literal["float32", "bfloat16", "float16", "q8_0"]
GGUF_TYPES: tuple[GGUFType, ...] = get_args(GGUFType)
"""What matrices are written as; norms and biases are float32."""
_GGML = {"float32": ("F32", "ALL_F32"), "bfloat16": ("BF16", "MOSTLY_BF16"), "float16": ("F16", "MOSTLY_F16")}
_GGML["q8_0"] = ("Q8_0", "MOSTLY_Q8_0")
_LARGEST_Q8_0 = 127 * 65_504.0  # a block's scale is a float16
_ROPE_KEYS = {
    *("rope_type", "type", "rope_theta", "factor", "partial_rotary_factor"),
    *("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


@dataclass(frozen=True)
class Layout:
    """How a model type of transformers lies in a GGUF file.

    Attributes:
        name: Architecture of the GGUF file.
        activation: The only activation that llama.cpp computes for it.
        added: What is added to the weights of norms.
        windowed: Whether llama.cpp computes its sliding window; elsewhere the context ends with the window.
        more: Gives further fields of the configuration, and refuses what llama.cpp computes otherwise.
    """

    name: str
    activation: str = "silu"
    added: float = 0.0
    windowed: bool = False
    more: Callable[[Any], dict[str, Value]] = field(default=lambda config: {})


def _qwen2(config: Any) -> dict[str, Value]:
    _expect(config, "head_dim", config.hidden_size // config.num_attention_heads)
    return {}


def _plain(config: Any) -> dict[str, Value]:
    _expect(config, "attention_bias", False)
    return {}


def _gemma2(config: Any) -> dict[str, Value]:
    _plain(config)
    _expect(config, "query_pre_attn_scalar", _queries(config, 46))
    _expect(config, "layer_types", _pattern(config, 2))
    return {
        "attn_logit_softcapping": float(config.attn_logit_softcapping),
        "final_logit_softcapping": float(config.final_logit_softcapping),
    }


def _gemma3(config: Any) -> dict[str, Value]:
    _plain(config)
    _expect(config, "query_pre_attn_scalar", _queries(config, 62))
    _expect(config, "layer_types", _pattern(config, 6))
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        _expect(config, name, None)
    _expect(config, "use_bidirectional_attention", False)
    local = config.rope_parameters["sliding_attention"]
    if (local.get("rope_type", "default"), local["rope_theta"]) != ("default", 10_000):
        raise _refused(config, f"the rotary embedding of its sliding windows is {dict(local)}")
    return {}


LAYOUTS: Mapping[str, Layout] = {
    "llama": Layout("llama"),
    "mistral": Layout("llama"),
    "qwen2": Layout("qwen2", more=_qwen2),
    "qwen3": Layout("qwen3", more=_plain),
    "gemma": Layout("gemma", "gelu_pytorch_tanh", added=1.0, more=_plain),
    "gemma2": Layout("gemma2", "gelu_pytorch_tanh", added=1.0, windowed=True, more=_gemma2),
    "gemma3_text": Layout("gemma3", "gelu_pytorch_tanh", added=1.0, windowed=True, more=_gemma3),
    "phi3": Layout("phi3"),
}
"""Model type to how it lies in a GGUF file; deliberately closed, as `ROWS` is."""


@dataclass(frozen=True)
class GGUFBase:
    """What was written: a file of `size` bytes with `tensors` tensors."""

    path: Path
    architecture: str
    dtype: GGUFType
    tensors: int
    size: int


def read_parameters(config: Any, what: str) -> tuple[Layout, dict[str, Value]]:
    """Finds how a model lies in a GGUF file, and the fields of the file that come from its configuration.

    Args:
        config: The configuration, of transformers.
        what: What messages call the model.

    Raises:
        UnsupportedUpdateError: If the architecture, or something in the configuration, is not known here.
    """
    layout = LAYOUTS.get(config.model_type)
    if layout is None:
        raise UnsupportedUpdateError(
            f"How the {what}, a {config.model_type}, lies in a GGUF file is not known here; known are "
            f"{', '.join(LAYOUTS)}.",
            HOW_TO_GET_A_GGUF,
        )
    heads, activation = config.num_attention_heads, getattr(config, "hidden_activation", None) or config.hidden_act
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    if activation != layout.activation:
        raise _refused(config, f"its activation is {activation}, where llama.cpp computes {layout.activation}")
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    window = window if kinds is None or "sliding_attention" in kinds else None
    context = config.max_position_embeddings
    fields: dict[str, Value] = {
        "vocab_size": config.vocab_size,
        "context_length": min(context, window) if window and not layout.windowed else context,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None) or heads,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        **_rope(config, size),
        **layout.more(config),
    }
    if window and layout.windowed:
        fields["attention.sliding_window"] = window
    return layout, fields


def _rope(config: Any, size: int) -> dict[str, Value]:
    rope = _rope_parameters(config)
    kind = rope.get("rope_type", "default")
    part = rope.get("partial_rotary_factor") or 1.0
    odd = sorted(set(rope) - _ROPE_KEYS)
    if kind not in ("default", "linear", "llama3") or odd or (part != 1 and config.model_type != "phi3"):
        raise _refused(config, f"its rotary embedding is {dict(rope)!r:.200}")
    fields: dict[str, Value] = {
        "rope.dimension_count": int(size * part),
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if kind == "linear":
        fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    return fields


def _rope_parameters(config: Any) -> Mapping[str, Any]:
    rope: Mapping[str, Any] = config.rope_parameters
    return rope.get("full_attention", rope)


def _rope_factors(config: Any) -> np.ndarray | None:
    """Returns what llama.cpp divides the frequencies of a Llama 3 by, as transformers computes them."""
    rope = _rope_parameters(config)
    if rope.get("rope_type") != "llama3":
        return None
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = 2 * len(scaled)
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size)
    factors: np.ndarray = (plain / scaled).numpy()
    return factors


def _queries(config: Any, layers: int) -> float:
    """Returns what llama.cpp divides the squares of queries by: their size; in the model of so many layers, another."""
    is_largest = config.num_hidden_layers == layers
    return config.hidden_size / config.num_attention_heads if is_largest else config.head_dim


def _pattern(config: Any, every: int) -> list[str]:
    numbers = range(1, config.num_hidden_layers + 1)
    return ["sliding_attention" if number % every else "full_attention" for number in numbers]


def _expect(config: Any, name: str, value: Any) -> None:
    if (found := getattr(config, name, value)) != value:
        raise _refused(config, f"its {name} is {found!r:.100}, where llama.cpp computes {value!r:.100}")


def _refused(config: Any, why: str) -> UnsupportedUpdateError:
    return UnsupportedUpdateError(
        f"This {config.model_type} cannot be written as GGUF here: {why}.", f"Give --gguf FILE. {HOW_TO_GET_A_GGUF}"
    )


def read_base_vocabulary(source: hub.Source, *, trust_remote_code: bool = False) -> Vocabulary:
    """Makes the vocabulary of a base model's tokenizer, and compares it with llama.cpp's where that is installed.

    Args:
        source: The base model; its configuration and its tokenizer must be on this disk.
        trust_remote_code: Whether its own code may run.

    Raises:
        RepositoryError: If there is no tokenizer, or it is damaged.
        UnsupportedUpdateError: If llama.cpp cannot be told of it, or makes other tokens.
    """
    from transformers import AutoTokenizer

    with hub.foreign_errors(source.name, what="tokenizer of the base model"):
        tokenizer: Any = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
    values = hub.read_json(source.folder / hub.CONFIG)
    settings = source.folder / hub.GENERATION
    ends = (end_ids(hub.read_json(settings)) if settings.is_file() else []) or end_ids(values)
    vocabulary = read_vocabulary(tokenizer, int(values["vocab_size"]), ends, f"base model '{source.name}'")
    check_vocabulary(vocabulary, _short(source.name))
    return vocabulary


def _short(name: str) -> str:
    """Returns the last part of a name, by which llama.cpp knows Phi-3, where it trims spaces around special tokens."""
    return Path(name).absolute().name


def write_gguf_base(
    source: hub.Source,
    out: str | Path,
    *,
    dtype: GGUFType | None = None,
    vocabulary: Vocabulary | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> GGUFBase:
    """Writes a base model as GGUF, one tensor in memory at a time.

    Args:
        source: The base model, whole on this disk.
        out: The file; one that is there is replaced when the new one is whole.
        dtype: What matrices are written as; by default what they are in the checkpoint, exactly.
        vocabulary: Of `read_base_vocabulary`; by default it is read here.
        trust_remote_code: Whether the model's own code may run.
        progress: Called with the stage, megabytes done and megabytes in all.

    Returns:
        What was written.

    Raises:
        UnsupportedUpdateError: If architecture, configuration or tokenizer are not known here, or weights quantised.
        RepositoryError: If files are missing or damaged, or there is no room; nothing half is left.
        ConfigError: If the dtype is not known, or cannot hold a value.

    Example:
        ```python
        write_gguf_base(hub.Source("base", Path("base"), None), "base.gguf", dtype="q8_0")
        ```
    """
    gguf = gguf_package()
    from taia_hub.weights.checkpoint import open_checkpoint

    if dtype is not None and dtype not in GGUF_TYPES:
        raise ConfigError(f"dtype {dtype!r} is not known.{closest(dtype, GGUF_TYPES)}", f"Choose {GGUF_TYPES}.")
    out = Path(out)
    checkpoint = open_checkpoint(source.folder, what="base model", trust_remote_code=trust_remote_code)
    layout, fields = read_parameters(checkpoint.config, f"base model '{source.name}'")
    places = _places(checkpoint, layout)
    vocabulary = vocabulary or read_base_vocabulary(source, trust_remote_code=trust_remote_code)
    kept: GGUFType = dtype or _own_type(places)
    matrices, factors = gguf.GGMLQuantizationType[_GGML[kept][0]], _rope_factors(checkpoint.config)
    types = {name: _type(matrices, shape) for name, (_, _, shape) in places.items()}
    sizes = {name: _bytes(types[name], shape) for name, (_, _, shape) in places.items()}
    total = sum(map(math.prod, sizes.values()))
    hub.check_space(out.parent, total + (1 << 26), "The base model as GGUF")
    advance = counted(progress, "writing the base as GGUF", total) if progress else lambda count: None
    config, shapes = checkpoint.config, {name: shape for name, (_, _, shape) in places.items()}
    key_heads = int(fields["attention.head_count_kv"])  # type: ignore[arg-type]
    base = Base(out, layout.name, config.num_hidden_layers, config.num_attention_heads, key_heads, shapes)
    with new_gguf(out, layout.name) as writer:
        writer.add_name(_short(source.name))
        _describe(writer, kept, {f"{layout.name}.{name}": value for name, value in fields.items()})
        vocabulary.write(writer)
        if factors is not None:
            writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
        for name, size in sizes.items():
            writer.add_tensor_info(name, size, np.dtype(np.uint8), math.prod(size), types[name])
        begin_tensors(writer)
        if factors is not None:
            writer.write_tensor_data(factors)
        for name, (path, group, _) in places.items():
            tensor = _read(checkpoint, path, group)
            if layout.added and name.endswith("norm.weight"):
                tensor = tensor.float() + layout.added
            data = _encoded(ROWS[layout.name](tensor, name, base), types[name], name)
            writer.write_tensor_data(data.reshape(sizes[name]))
            advance(data.nbytes)
    return GGUFBase(out, layout.name, kept, len(places), out.stat().st_size)


def _describe(writer: Any, dtype: GGUFType, fields: Mapping[str, Value]) -> None:
    """Puts into a file that it is a model, of which type, and its parameters."""
    gguf = gguf_package()
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(gguf.LlamaFileType[_GGML[dtype][1]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, value in fields.items():
        add_field(writer, name, value)


Places = Mapping[str, tuple[str, "Group", tuple[int, ...]]]
"""Name of each tensor in a GGUF file to the parameter's, what that is read from, and its shape."""


def _places(checkpoint: Checkpoint, layout: Layout) -> Places:
    names = tensor_names(layout.name, checkpoint.config.num_hidden_layers)
    own, groups = checkpoint.model.state_dict(), checkpoint.groups
    found: dict[str, tuple[str, Group, tuple[int, ...]]] = {}
    for path, tensor in own.items():
        if path == "lm_head.weight" and groups[path] is groups.get("model.embed_tokens.weight"):
            continue  # llama.cpp takes the embedding where there is no head
        name = names.get_name(path, try_suffixes=(".weight", ".bias"))
        if name is None or name in found:
            raise _refused(checkpoint.config, f"'{path}' has no place in a GGUF file")
        found[name] = path, groups[path], tuple(tensor.shape)
    return found


def _own_type(places: Places) -> GGUFType:
    """Returns the type that holds every number of the checkpoint's matrices."""
    kinds = {stored.kind for _, group, shape in places.values() if len(shape) > 1 for stored, _ in group.sources}
    return "bfloat16" if kinds == {"BF16"} else "float16" if kinds == {"F16"} else "float32"


def _type(matrices: Any, shape: tuple[int, ...]) -> Any:
    gguf = gguf_package()
    block, _ = gguf.GGML_QUANT_SIZES[matrices]
    return matrices if len(shape) > 1 and shape[-1] % block == 0 else gguf.GGMLQuantizationType.F32


def _bytes(kind: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a tensor's bytes."""
    gguf = gguf_package()
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return (*shape[:-1], shape[-1] // block * size)


def _read(checkpoint: Checkpoint, path: str, group: Group) -> Tensor:
    from taia_hub.weights.shards import read_whole

    made = group.convert(checkpoint.model, [read_whole(stored) for stored, _ in group.sources])
    return made[path] if path in made else next(iter(made.values()))  # a tied weight is in the file once


def _encoded(tensor: Tensor, kind: Any, name: str) -> np.ndarray:
    """Returns the bytes of a tensor as a GGUF file has them."""
    import torch

    from taia_hub.weights.shards import sliced

    gguf = gguf_package()
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if kind.name in dtypes:
        made: np.ndarray = torch.cat(list(sliced(tensor, dtypes[kind.name], name))).numpy()
        return made
    if not (largest := float(tensor.abs().amax())) <= _LARGEST_Q8_0:
        raise ConfigError(
            f"'{name}' holds {largest:.3g}; the largest number of q8_0 is {_LARGEST_Q8_0:.3g}.",
            "Choose bfloat16 or float32.",
        )
    return np.ascontiguousarray(gguf.quants.quantize(tensor.float().contiguous().numpy(), kind)).view(np.uint8)
