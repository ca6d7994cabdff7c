"""The signs by which a sublayer shows its role: names, children, shapes, arguments of `forward`.

Each sign is a pure reading of one module; `sublayers.py` weighs them and decides.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Iterator

from torch import nn

# fmt: off
ATTENTION_WORDS = frozenset({
    "attention", "attentions", "attn", "att", "mha", "mla", "mamba", "ssm", "deltanet", "mlstm", "slstm", "rglru",
    "recurrent", "retention", "shortconv", "shortconvolution", "timemix", "timemixing", "convmodule",
    "convolutionmodule", "lightconv",
})
FFN_WORDS = frozenset({
    "mlp", "mlps", "ffn", "ffns", "ff", "ffw", "feedforward", "densereludense", "moe", "expert", "experts", "router",
    "intermediate", "swiglu", "geglu", "channelmix", "channelmixing",
})
# What stands between, before and after the layers. As the name of a class it outweighs every other sign: a "block
# attention residual" weighs residual streams, a "norm" with an MLP inside is still a norm.
OTHER_CLASS_WORDS = frozenset({"norm", "embedding", "embeddings", "residual", "rotary"})
# As a name on the way from a layer to a module, or of a stack of modules that holds no sublayer.
OTHER_WORDS = OTHER_CLASS_WORDS | {
    "embed", "embedder", "projector", "projection", "projections", "merger", "head", "heads", "classifier", "pooler",
    "connector", "resampler", "extractor", "lm", "downsample", "upsample",
}
# The arguments of `forward` that only a module that mixes across tokens needs.
_ACROSS_TOKENS = frozenset({
    "attention_mask", "attn_mask", "past_key_values", "past_key_value", "layer_past", "cache_params",
    "position_embeddings", "position_bias", "encoder_hidden_states", "key_value_states", "head_mask",
    "rotary_pos_emb", "cu_seqlens", "query", "key", "value",
})
# fmt: on

_QUERY = re.compile(r"(.*_)?(q|query|queries|wq|to_q)(_.*)?")
_KEY = re.compile(r"(.*_)?(k|key|keys|wk|to_k|kv|wkv)(_.*)?")
_VALUE = re.compile(r"(.*_)?(v|value|values|wv|to_v|kv|wkv)(_.*)?")
_KEY_VALUE = re.compile(r"(.*_)?(kv|wkv)(_.*)?")
_FUSED = re.compile(r"(.*_)?(w?qkvz?|query_key_value|c_attn|in_proj_weight)(_.*)?")
_OUT = re.compile(r"w?o|(o|out|output|c|attention_out)(_proj|_lin)?|dense")
_STATE = re.compile(r"a_log|dt_bias|dt_proj(_weight)?|time_decay|time_first|recurrent_param|(.*_)?conv_?1d")
_UP = re.compile(
    r"(gate|up|gate_up|in|up_gate|fc|w)_proj|proj_(up|up_gate)|w_?(1|in|i|0)|wi(_\d)?|(fc|lin|linear|linear_fc|layer|"
    r"dense|ffn|ff)_?[01]|(c_)?fc(_in)?|dense_h_to_4h|input_linear|intermediate(_\w+)?|ffn|up|gate"
)
_DOWN = re.compile(
    r"(down|c|out)_proj|proj_down|w_?(2|out|o)|wo|(fc|lin|linear|linear_fc|layer|dense|ffn|ff)_?2|fc_out|"
    r"dense_4h_to_h|output_linear|output(_\w+)?|ffn_output|down"
)
_NORM_CLASS = re.compile(r"Norm(Gated|alization)?(\d[dD])?$")
_NORM_NAME = re.compile(r"(.*_)?(layer_?norm|layrnorm|rms_?norm|norm|ln)(_\w|\d)?|ln_\w+")
_RESIDUAL_NORM = re.compile(
    r"(layer_?norm|ln)(_?\d)?|(pre|post|input)_.*|.*_(before|after)_.*|(self_attn|sa)_layer_norm"
)
_RELATIVE_BIAS = re.compile(r"relative_(attention|position)_bias|^rel_bias|^position_bias$")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_MODEL_SUFFIX = re.compile(r"(For[A-Z]\w*|PreTrainedModel|PretrainedModel|LMHeadModel|ModelWithLMHead|Model)$")


@functools.lru_cache(maxsize=4096)
def words(name: str) -> frozenset[str]:
    """Splits a class or attribute name into lower-case words, with each pair of neighbours joined as well.

    Example:
        >>> sorted(words("FeedForward"))
        ['feed', 'feedforward', 'forward']
    """
    parts = [part.lower() for part in _WORDS.findall(name.replace("MoE", "Moe").replace("MoA", "Moa"))]
    return frozenset(parts + [a + b for a, b in itertools.pairwise(parts)])


def class_names(module: nn.Module) -> Iterator[str]:
    """Yields the names of a module's class and of its bases, without `Module` and `object`."""
    for base in type(module).__mro__:
        if base is not nn.Module and base is not object:
            yield base.__name__


def model_names(models: Iterable[nn.Module]) -> tuple[str, ...]:
    """Collects what a model and those inside it are called, longest first, to be taken off the sublayers' names.

    `"Afmoe"` (from `AfmoeForCausalLM`) is one: the "moe" in `AfmoeAttention` is no sign.
    """
    stems = {
        _MODEL_SUFFIX.sub("", name) for model in models for name in class_names(model) if _MODEL_SUFFIX.search(name)
    }
    return tuple(sorted(stems - {""}, key=lambda stem: (-len(stem), stem)))


def class_words(module: nn.Module, names: tuple[str, ...]) -> frozenset[str]:
    """Gives the words of a module's class name, without the model's own name in front."""
    found: frozenset[str] = frozenset()
    for name in class_names(module):
        stem = next((stem for stem in names if name.startswith(stem)), "")
        found |= words(name[len(stem) :])
    return found


def is_norm(module: nn.Module, attribute: str) -> bool:
    """Tells whether a module is a normalisation: by its class, or by its name and its vectors.

    One that holds modules must be called a norm where it is used too (a norm with a gate), and hold no attention:
    `ConvDropoutLayerNorm` is a projection, `DbrxNormAttentionNorm` a layer.
    """
    by_name = bool(_NORM_NAME.fullmatch(attribute.lower()))
    if not module._modules:
        return only_vectors(module) and (by_name or any(_NORM_CLASS.search(name) for name in class_names(module)))
    if not by_name or not any(_NORM_CLASS.search(name) for name in class_names(module)):
        return False
    return not any(words(name) & ATTENTION_WORDS for name in [*module._modules, *class_names(module)])


def is_residual_norm(attribute: str) -> bool:
    """Tells whether a norm inside a sublayer works on the residual stream (`LayerNorm`), unlike `q_norm`."""
    return bool(_RESIDUAL_NORM.fullmatch(attribute.lower()))


def only_vectors(module: nn.Module) -> bool:
    """Tells whether each parameter that the module owns is a scalar or a vector (dimensions of size 1 aside)."""
    return all(sum(size > 1 for size in p.shape) <= 1 for p in module._parameters.values() if p is not None)


def is_relative_bias(module: nn.Module, attribute: str) -> bool:
    """Tells whether a module holds a table of attention scores by distance, wherever in the model it stands."""
    return any(_RELATIVE_BIAS.search(name) for name in (attribute, *module._parameters))


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Gives (input width, output width) of a linear layer of any class, quantised ones included, or None."""
    for widths in (("in_features", "out_features"), ("nx", "nf")):
        first, second = (getattr(module, width, None) for width in widths)
        if isinstance(first, int) and isinstance(second, int):
            return first, second
    return None


def attention_part(name: str) -> bool:
    """Tells whether a child or parameter of this name belongs to an attention: a query, key, value, output, state."""
    name = name.lower()
    return any(sign.fullmatch(name) for sign in (_QUERY, _KEY, _VALUE, _FUSED, _OUT, _STATE))


def attention_structure(names: Iterable[str]) -> bool:
    """Tells whether these children and own parameters are those of an attention or of a recurrent mixer."""
    lower = [name.lower() for name in names]

    def has(sign: re.Pattern[str]) -> bool:
        return any(sign.fullmatch(name) for name in lower)

    if has(_FUSED) or has(_STATE) or {"conv", "in_proj", "out_proj"} <= set(lower):
        return True
    query, out = has(_QUERY), has(_OUT)
    return (query and has(_KEY) and has(_VALUE)) or (query and out) or has(_KEY_VALUE)


def in_both(name: str) -> bool:
    """Tells whether a child of this name is one projection for attention and MLP, as `qkv_mlp`."""
    found = words(name)
    return bool(found & FFN_WORDS) and bool(_FUSED.fullmatch(name.lower()) or found & {"attn", "attention"})


def ffn_structure(names: Iterable[str]) -> bool:
    """Tells whether these children and own parameters are those of an MLP or of a mixture of experts."""
    lower = {name.lower() for name in names}
    if "experts" in lower and lower & {"gate", "router"}:
        return True
    return any(is_up(name) for name in lower) and any(is_down(name) for name in lower)


def narrows_again(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Tells whether a second linear layer takes back what a first one widened, a gated half included."""
    return first[0] != first[1] and second[1] == first[0] and second[0] * 2 in (first[1] * 2, first[1])


def mlp_shape(modules: Iterable[nn.Module]) -> bool:
    """Tells whether two of these modules are shaped as the two layers of an MLP."""
    shapes = [shape for module in modules if (shape := linear_shape(module))]
    return any(narrows_again(first, second) for first in shapes for second in shapes)


def is_up(name: str) -> bool:
    """Tells whether a child of this name can be the first projection of an MLP."""
    return bool(_UP.fullmatch(name.lower()))


def is_down(name: str) -> bool:
    """Tells whether a child of this name can be the second projection of an MLP."""
    return bool(_DOWN.fullmatch(name.lower()))


@functools.lru_cache(maxsize=4096)
def _arguments(forward: Callable[..., object]) -> tuple[tuple[str, ...], int]:
    """Gives the names of `forward`'s arguments and how many of them have no default."""
    function = inspect.unwrap(forward)
    code = getattr(function, "__code__", None)
    if code is None:
        return (), 0
    count, defaults = code.co_argcount, getattr(function, "__defaults__", None) or ()
    return code.co_varnames[1 : count + code.co_kwonlyargcount], count - len(defaults) - 1


def forward_sign(module: nn.Module) -> str | None:
    """Reads a role from the arguments of `forward`: a mask, a cache or positions, or hidden states alone."""
    cls = type(module)
    if cls.__module__.startswith("torch.nn.") and cls is not nn.MultiheadAttention:
        return None
    arguments, required = _arguments(cls.forward)
    if _ACROSS_TOKENS & set(arguments):
        return "attention"
    return "ffn" if required == 1 else None
