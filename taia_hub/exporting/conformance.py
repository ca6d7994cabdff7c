"""What the loaders of serving engines take of a LoRA in PEFT's format: their rules, as functions of its two files.

Each rule stands beside the source that it was read from. A rule that an engine breaks in silence (a tensor that is
dropped, a scale that is ignored) counts as a refusal here: the engine would answer, and answer wrongly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from taia_hub.errors import ConfigError, closest
from taia_hub.updates.strict import PREFIX

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `--max-lora-rank` may be (vllm/config/lora.py, `MaxLoRARanks`, v0.27.1)."""

VLLM_DEFAULT_RANK = 16

_TENSOR = re.compile(r"(?P<path>.+)\.(?:lora_(?P<factor>[AB])\.weight|lora_embedding_(?P<other>[AB]))")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_WEIGHT_CHANGING = ("pissa", "olora", "corda", "loftq")
_TGI_TYPES = re.compile(
    r"model\.layers\.\d+\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)|lm_head"
)  # what its table of layers names


@dataclass(frozen=True)
class BaseFacts:
    """What the rules ask of the base model.

    Attributes:
        modules: Paths of the modules that LoRA can adapt (linear layers and embeddings), in the head model.
        embeddings: Those of them that are embeddings, or the head.
        tied: Whether the head shares its weight with the embedding.
        remote: Whether the base is named by a Hub id, so that an engine can fetch it.
    """

    modules: frozenset[str]
    embeddings: frozenset[str] = frozenset()
    tied: bool = False
    remote: bool = True


@dataclass(frozen=True)
class Verdict:
    """What an engine makes of an adapter.

    Attributes:
        problems: Why the engine refuses it, or would answer wrongly; empty where it takes it.
        notes: What to know, such as a flag to set.
    """

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """All of it in words: the refusals first."""
        return (*(f"refused: {problem}" for problem in self.problems), *self.notes)


@dataclass(frozen=True)
class Rule:
    """A rule of an engine's loader.

    Attributes:
        engine: Name of the engine, as in `ENGINES`.
        source: Repository, file and version that it was read from.
        find: Yields what the adapter breaks.
        is_note: Whether what it finds is to be known rather than a refusal.
    """

    engine: str
    source: str
    find: Callable[[Adapter], Iterable[str]]
    is_note: bool = False


@dataclass(frozen=True)
class Adapter:
    """An adapter's two files, read as the rules need them.

    Attributes:
        config: Contents of `adapter_config.json`.
        shapes: Name of each tensor to its shape.
        base: The base model.
    """

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    base: BaseFacts
    paths: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        matches = (_TENSOR.fullmatch(name) for name in self.shapes)
        object.__setattr__(self, "paths", frozenset(match["path"].removeprefix(PREFIX) for match in matches if match))

    @property
    def rank(self) -> int:
        """The rank that its configuration says."""
        return int(self.config.get("r") or 0)

    @property
    def targets(self) -> tuple[str, ...]:
        """The target modules as a list; an expression is one entry."""
        value = self.config.get("target_modules") or ()
        return (value,) if isinstance(value, str) else tuple(value)


def check_engine(
    engine: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], base: BaseFacts
) -> Verdict:
    """Says what an engine makes of an adapter.

    Args:
        engine: One of `ENGINES`.
        config: Contents of `adapter_config.json`.
        shapes: Name of each tensor of `adapter_model.safetensors` to its shape.
        base: The base model.

    Returns:
        Refusals and notes.

    Raises:
        ConfigError: If there is no such engine.

    Example:
        >>> config = {"peft_type": "LORA", "r": 24, "lora_alpha": 24, "target_modules": ["q_proj"], "bias": "none"}
        >>> name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
        >>> shapes = {name.format("A"): (24, 8), name.format("B"): (8, 24)}
        >>> base = BaseFacts(frozenset({"model.layers.0.self_attn.q_proj"}))
        >>> check_engine("vllm", config, shapes, base).notes
        ('--max-lora-rank 32',)
    """
    if engine not in ENGINES:
        raise ConfigError(
            f"The engine {engine!r} is not known.{closest(str(engine), ENGINES)}", f"Choose {', '.join(ENGINES)}."
        )
    adapter = Adapter(config, shapes, base)
    found: dict[bool, list[str]] = {False: [], True: []}
    for rule in RULES:
        if rule.engine == engine:
            found[rule.is_note] += [one for one in rule.find(adapter) if one not in found[rule.is_note]]
    return Verdict(tuple(found[False]), tuple(found[True]))


def check_engines(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], base: BaseFacts
) -> dict[str, Verdict]:
    """Says what every engine makes of an adapter. Arguments as in `check_engine`.

    Returns:
        Engine to its verdict.
    """
    return {engine: check_engine(engine, config, shapes, base) for engine in ENGINES}


def vllm_rank(rank: int) -> int | None:
    """Returns the smallest value of vLLM's `--max-lora-rank` that takes a rank; None where none does."""
    return next((allowed for allowed in VLLM_RANKS if rank <= allowed), None)


def _required(adapter: Adapter) -> Iterator[str]:
    for key in ("r", "lora_alpha", "target_modules"):
        if not adapter.config.get(key):
            yield f"{key} is missing"
    if str(adapter.config.get("peft_type", "LORA")).upper() != "LORA":
        yield f"the method is {adapter.config['peft_type']}, and only LoRA is read"


def _only_lora(adapter: Adapter) -> Iterator[str]:
    other = [name for name in adapter.shapes if not _TENSOR.fullmatch(name)]
    if other:
        yield f"{len(other)} tensors are no LoRA factors, first '{other[0]}'"


def _prefixed(adapter: Adapter) -> Iterator[str]:
    if wrong := [name for name in adapter.shapes if not name.startswith(PREFIX)]:
        yield f"'{wrong[0]}' does not begin with '{PREFIX}'"


def _no_dora(adapter: Adapter) -> Iterator[str]:
    if adapter.config.get("use_dora"):
        yield "DoRA is not served"


def _no_bias(adapter: Adapter) -> Iterator[str]:
    if adapter.config.get("bias", "none") != "none":
        yield f"bias={adapter.config['bias']!r} is not served"
    if adapter.config.get("lora_bias"):
        yield "lora_bias is not served"


def _no_saved_modules(adapter: Adapter) -> Iterator[str]:
    if other := [one for one in adapter.config.get("modules_to_save") or () if one not in ("classifier", "score")]:
        yield f"modules_to_save={other} is not served"


def _plain_start(adapter: Adapter) -> Iterator[str]:
    init = adapter.config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_WEIGHT_CHANGING):
        yield f"init_lora_weights={init!r} changes the base's weights"
    for key in ("alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora"):
        if adapter.config.get(key):
            yield f"{key} is not served"


def _one_scale(adapter: Adapter) -> Iterator[str]:
    for key, usual in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        values = (adapter.config.get(key) or {}).values()
        if any(value != adapter.config.get(usual) for value in values):
            yield f"{key} gives modules values of their own, which is refused or ignored"


def _no_rslora(adapter: Adapter) -> Iterator[str]:
    if adapter.config.get("use_rslora"):
        yield "use_rslora is ignored, so that the scale would be wrong"


def _no_experts(adapter: Adapter) -> Iterator[str]:
    if adapter.config.get("target_parameters"):
        yield "target_parameters (experts as parameters) are served wrongly or not at all"
    fused = [path for path in adapter.paths if path.endswith((".experts", ".base_layer"))]
    if fused:
        yield f"'{fused[0]}' are fused experts"


def _vllm_rank(adapter: Adapter) -> Iterator[str]:
    if vllm_rank(adapter.rank) is None:
        yield f"rank {adapter.rank} is above the largest --max-lora-rank, {VLLM_RANKS[-1]}"


def _vllm_flag(adapter: Adapter) -> Iterator[str]:
    allowed = vllm_rank(adapter.rank)
    if allowed is not None and adapter.rank > VLLM_DEFAULT_RANK:
        yield f"--max-lora-rank {allowed}"


def _vllm_embeddings(adapter: Adapter) -> Iterator[str]:
    if adapter.paths & adapter.base.embeddings:
        yield "embeddings and head: only for architectures whose vLLM class lists embedding_modules"


def _no_latent_projection(adapter: Adapter) -> Iterator[str]:
    if any(path.endswith(".kv_b_proj") for path in adapter.paths):
        yield "kv_b_proj of multi-head latent attention is dropped in silence"


def _sglang_targets(adapter: Adapter) -> Iterator[str]:
    if isinstance(adapter.config.get("target_modules"), str):
        yield "target_modules is an expression; a list of plain names is read"
    if dotted := [name for name in adapter.targets if "." in name]:
        yield f"target_modules names '{dotted[0]}' with a prefix; plain names are read"


def _sglang_flags(adapter: Adapter) -> Iterator[str]:
    names = " ".join(adapter.targets)
    yield f"adapters that are loaded later need --max-lora-rank {adapter.rank} --lora-target-modules {names}"


def _sglang_together(adapter: Adapter) -> Iterator[str]:
    names = {path.rpartition(".")[2] for path in adapter.paths}
    for together in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
        missing = [name for name in together if name not in names]
        if missing and len(missing) < len(together):
            yield f"{', '.join(missing)} without an update are filled with zeros, which old versions do not do"


def _whole_types(adapter: Adapter) -> Iterator[str]:
    types: dict[str, set[str]] = {}
    for path in adapter.base.modules:
        types.setdefault(_NUMBER.sub("*", path), set()).add(path)
    for name, paths in sorted(types.items()):
        if (held := paths & adapter.paths) and (lacking := sorted(paths - held)):
            yield f"'{lacking[0]}' has no tensors, so that all {len(held)} of '{name}' would be dropped"


def _tgi_types(adapter: Adapter) -> Iterator[str]:
    if other := sorted(path for path in adapter.paths if not _TGI_TYPES.fullmatch(path)):
        yield f"{len(other)} modules are none that it looks up and would be dropped, first '{other[0]}'"


def _no_embeddings(adapter: Adapter) -> Iterator[str]:
    if any(".lora_embedding_" in name for name in adapter.shapes):
        yield "updates of embeddings are dropped in silence"


def _main_only(adapter: Adapter) -> Iterator[str]:
    yield "reads the main branch of a repository, or a folder: the adapter must lie at its root"


def _untied_head(adapter: Adapter) -> Iterator[str]:
    if adapter.base.tied and "lm_head" in adapter.paths:
        yield "the head is tied to the embedding, and an update of it fails"


def _names_base(adapter: Adapter) -> Iterator[str]:
    if not adapter.config.get("base_model_name_or_path") or not adapter.base.remote:
        yield "convert_lora_to_gguf.py needs --base with the base model's folder"


def _one_rank(adapter: Adapter) -> Iterator[str]:
    for name, shape in adapter.shapes.items():
        if match := _TENSOR.fullmatch(name):
            rank = shape[0] if (match["factor"] or match["other"]) == "A" else shape[1]
            if rank != adapter.rank:
                yield f"'{name}' has rank {rank} and the configuration says {adapter.rank}"
                return


def _pairs(adapter: Adapter) -> Iterator[str]:
    for name in adapter.shapes:
        if (match := _TENSOR.fullmatch(name)) and _counterpart(match) not in adapter.shapes:
            yield f"'{name}' has no counterpart"
            return


def _counterpart(match: re.Match[str]) -> str:
    here = match["factor"] or match["other"]
    other = {"A": "B", "B": "A"}[here]
    ends = f".lora_{here}.weight", f".lora_{other}.weight"
    if not match["factor"]:
        ends = f".lora_embedding_{here}", f".lora_embedding_{other}"
    return match.string.removesuffix(ends[0]) + ends[1]


def _exactly_targeted(adapter: Adapter) -> Iterator[str]:
    excluded = adapter.config.get("exclude_modules") or ()
    meant = {
        path
        for path in adapter.base.modules
        if _matches(path, adapter.targets) and not (isinstance(excluded, (list, tuple)) and _matches(path, excluded))
    }
    if isinstance(adapter.config.get("target_modules"), str):
        expression = str(adapter.config["target_modules"])
        meant = {path for path in adapter.base.modules if re.fullmatch(expression, path)}
    if missing := sorted(meant - adapter.paths):
        yield f"{len(missing)} targeted modules have no tensors, first '{missing[0]}'"
    if unexpected := sorted(adapter.paths - meant):
        yield f"{len(unexpected)} modules are not targeted and would be dropped, first '{unexpected[0]}'"


def _matches(path: str, names: Iterable[str]) -> bool:
    return any(path == name or path.endswith(f".{name}") for name in names)


_VLLM = "vllm-project/vllm vllm/lora/peft_helper.py (main, 2026-08; e745bafffc)"
_VLLM_NAMES = "vllm-project/vllm vllm/lora/utils.py, parse_fine_tuned_lora_name (main, 2026-08)"
_SGLANG = "sgl-project/sglang python/sglang/srt/lora/lora_config.py (0ceb81fe)"
_SGLANG_MANAGER = "sgl-project/sglang python/sglang/srt/lora/lora_manager.py, validate_new_adapter (main, 2026-08)"
_TGI = "huggingface/text-generation-inference server/text_generation_server/adapters/lora.py (45d95bdc)"
_TGI_UTILS = "huggingface/text-generation-inference server/text_generation_server/utils/adapter.py (4b569341)"
_LORAX = "predibase/lorax server/lorax_server/adapters/lora.py (03679f33)"
_LLAMA_CPP = "ggml-org/llama.cpp convert_lora_to_gguf.py (0b03adaa)"
_PEFT = "huggingface/peft src/peft/tuners/tuners_utils.py, check_target_module_exists (0.21.2)"

RULES: tuple[Rule, ...] = (
    Rule("vllm", _VLLM, _required),
    Rule("vllm", _VLLM, _no_dora),
    Rule("vllm", _VLLM, _no_bias),
    Rule("vllm", _VLLM, _no_saved_modules),
    Rule("vllm", _VLLM, _plain_start),
    Rule("vllm", _VLLM, _one_scale),  # e745bafffc ignores the patterns, later versions read them
    Rule("vllm", "vllm-project/vllm vllm/config/lora.py (v0.27.1)", _vllm_rank),
    Rule("vllm", "vllm-project/vllm vllm/config/lora.py (v0.27.1)", _vllm_flag, is_note=True),
    Rule("vllm", _VLLM_NAMES, _only_lora),
    Rule("vllm", "vllm-project/vllm #52198", _no_experts),
    Rule("vllm", "vllm-project/vllm #48974", _no_latent_projection),
    Rule("vllm", "vllm-project/vllm vllm/lora/utils.py, get_supported_lora_modules", _vllm_embeddings, is_note=True),
    Rule("sglang", _SGLANG, _required),
    Rule("sglang", _SGLANG_MANAGER, _no_dora),
    Rule("sglang", _SGLANG, _one_scale),
    Rule("sglang", "sgl-project/sglang python/sglang/srt/lora/lora.py, LoRAAdapter.__init__", _no_rslora),
    Rule("sglang", "sgl-project/sglang #11034", _sglang_targets),
    Rule("sglang", "sgl-project/sglang python/sglang/srt/lora/lora.py", _only_lora),
    Rule("sglang", "sgl-project/sglang python/sglang/srt/lora/lora.py", _no_bias),
    Rule("sglang", "sgl-project/sglang python/sglang/srt/lora/lora.py", _no_saved_modules),
    Rule("sglang", "sgl-project/sglang python/sglang/srt/lora/lora.py", _no_experts),
    Rule("sglang", _SGLANG_MANAGER, _sglang_flags, is_note=True),
    Rule("sglang", "sgl-project/sglang #28199", _sglang_together, is_note=True),
    Rule("tgi", _TGI, _required),
    Rule("tgi", _TGI, _prefixed),
    Rule("tgi", _TGI, _only_lora),
    Rule("tgi", _TGI, _no_dora),
    Rule("tgi", _TGI, _no_bias),
    Rule("tgi", _TGI, _one_scale),
    Rule("tgi", _TGI, _no_embeddings),
    Rule("tgi", _TGI_UTILS, _tgi_types),
    Rule("tgi", _TGI, _whole_types),
    Rule("tgi", _TGI_UTILS, _main_only, is_note=True),
    Rule("lorax", _LORAX, _required),
    Rule("lorax", _LORAX, _prefixed),
    Rule("lorax", _LORAX, _only_lora),
    Rule("lorax", _LORAX, _no_dora),
    Rule("lorax", _LORAX, _no_bias),
    Rule("lorax", _LORAX, _one_scale),
    Rule("lorax", _LORAX, _no_embeddings),
    Rule("lorax", _LORAX, _whole_types),
    Rule("llama.cpp", _LLAMA_CPP, _required),
    Rule("llama.cpp", _LLAMA_CPP, _only_lora),
    Rule("llama.cpp", _LLAMA_CPP, _pairs),
    Rule("llama.cpp", _LLAMA_CPP, _one_scale),
    Rule("llama.cpp", _LLAMA_CPP, _no_rslora),
    Rule("llama.cpp", _LLAMA_CPP, _one_rank),
    Rule("llama.cpp", "ggml-org/llama.cpp #9065", _untied_head),
    Rule("llama.cpp", _LLAMA_CPP, _no_experts),
    Rule("llama.cpp", _LLAMA_CPP, _names_base, is_note=True),
    Rule("peft", _PEFT, _required),
    Rule("peft", _PEFT, _prefixed),
    Rule("peft", _PEFT, _pairs),
    Rule("peft", _PEFT, _exactly_targeted),
)
"""Every rule of every engine."""

ENGINES: tuple[str, ...] = tuple(dict.fromkeys(rule.engine for rule in RULES))
"""The engines whose rules are known."""
