"""The rules of the engines' loaders, each beside the source that it was read from, and what they say of an adapter.

A rule that an engine breaks in silence (a tensor that is dropped, a scale that is ignored) counts as a refusal here:
the engine would answer, and answer wrongly.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from taia_hub.common.patterns import check_patterns
from taia_hub.engines.facts import TENSOR, Adapter, BaseFacts, Rule, Verdict, largest_rank
from taia_hub.errors import ConfigError, closest
from taia_hub.hub.layout import PREFIX

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `--max-lora-rank` may be (vllm/config/lora.py, `MaxLoRARanks`, v0.32.0)."""

VLLM_DEFAULT_RANK = 16

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_WRAPPED = re.compile(r"(?:\.base_layer)+$")  # of each further parameter of one module
_WEIGHT_CHANGING = ("pissa", "olora", "corda", "loftq")
_VARIANTS = ("alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora")
_TGI_TYPES = re.compile(
    r"model\.layers\.\d+\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)|lm_head"
)  # what its table of layers names


def vllm_rank(rank: int) -> int | None:
    """Returns the smallest value of vLLM's `--max-lora-rank` that takes a rank; None where none does."""
    return next((allowed for allowed in VLLM_RANKS if rank <= allowed), None)


def _required(adapter: Adapter) -> Iterator[str]:
    if not adapter.is_lora:
        yield f"the method is {adapter.config['peft_type']}, and only LoRA is read"
        return
    for key in ("r", "lora_alpha", "target_modules"):
        if not adapter.config.get(key) and not (key == "target_modules" and adapter.config.get("target_parameters")):
            yield f"{key} is missing"


def _only_lora(adapter: Adapter) -> Iterator[str]:
    other = [name for name in adapter.shapes if not TENSOR.fullmatch(name)]
    if other:
        yield f"{len(other)} tensors are no LoRA factors, first '{other[0]}'"


def _prefixed(adapter: Adapter) -> Iterator[str]:
    if adapter.is_lora and (wrong := [name for name in adapter.shapes if not name.startswith(PREFIX)]):
        yield f"'{wrong[0]}' does not begin with '{PREFIX}'"


def _of_head_model(adapter: Adapter) -> Iterator[str]:
    if adapter.config.get("task_type") == "FEATURE_EXTRACTION":
        yield "it was trained on a model without a language-modelling head, whose modules have other paths"


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
    yield from _no_variants(adapter)


def _no_variants(adapter: Adapter) -> Iterator[str]:
    for key in _VARIANTS:
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
    fused = sorted(path for path in adapter.paths if path.endswith((".experts", ".base_layer")))
    if fused:
        yield f"'{fused[0]}' are fused experts"


def _vllm_patterns(adapter: Adapter) -> Iterator[str]:
    if any(_one_scale(adapter)):
        yield "its rank_pattern and alpha_pattern are read by vLLM from 0.32 on; older versions ignore them in silence"


def _vllm_rank(adapter: Adapter) -> Iterator[str]:
    rank = largest_rank(adapter.config) or 0
    if vllm_rank(rank) is None:
        yield f"rank {rank} is above the largest --max-lora-rank, {VLLM_RANKS[-1]}"


def _vllm_flag(adapter: Adapter) -> Iterator[str]:
    rank = largest_rank(adapter.config) or 0
    allowed = vllm_rank(rank)
    if allowed is not None and rank > VLLM_DEFAULT_RANK:
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


def _converted(adapter: Adapter) -> Iterator[str]:
    yield "as GGUF: convert_lora_to_gguf.py, or `taia serve --engine llama.cpp`"
    if not adapter.config.get("base_model_name_or_path") or not adapter.base.remote:
        yield "convert_lora_to_gguf.py needs --base with the base model's folder"


def _one_rank(adapter: Adapter) -> Iterator[str]:
    for name, shape in adapter.shapes.items():
        if match := TENSOR.fullmatch(name):
            rank = shape[0] if (match["factor"] or match["other"]) == "A" else shape[1]
            if rank != adapter.rank:
                yield f"'{name}' has rank {rank} and the configuration says {adapter.rank}"
                return


def _pairs(adapter: Adapter) -> Iterator[str]:
    for name in adapter.shapes:
        if (match := TENSOR.fullmatch(name)) and _counterpart(match) not in adapter.shapes:
            yield f"'{name}' has no counterpart"
            return


def _counterpart(match: re.Match[str]) -> str:
    here = match["factor"] or match["other"]
    other = {"A": "B", "B": "A"}[here]
    ends = f".lora_{here}.weight", f".lora_{other}.weight"
    if not match["factor"]:
        ends = f".lora_embedding_{here}", f".lora_embedding_{other}"
    return match.string.removesuffix(ends[0]) + ends[1]


def _of_lora(adapter: Adapter) -> Iterator[str]:
    if adapter.is_lora:
        yield from _required(adapter)
    elif adapter.paths:
        yield f"the method is {adapter.config['peft_type']}, and the file holds LoRA factors"


def _exactly_targeted(adapter: Adapter) -> Iterator[str]:
    if not adapter.is_lora:
        return
    config = adapter.config
    parameters = tuple(name.rpartition(".")[0] for name in config.get("target_parameters") or ())
    experts = {path for path in adapter.paths if _matches(_WRAPPED.sub("", path), parameters)}
    modules = adapter.base.modules
    if not modules or config.get("target_modules") == "all-linear":  # which of them are linear, no name says
        modules = adapter.paths
    layers = config.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    names = {key: config.get(key) for key in ("target_modules", "exclude_modules")}
    check_patterns(names, sorted(modules), where="The adapter's configuration")
    meant = {
        path
        for path in modules - experts
        if _matches(path, names["target_modules"])
        and not _matches(path, names["exclude_modules"])
        and (layers is None or {int(one) for one in _NUMBER.findall(path)} & {*layers})
    }
    if missing := sorted(meant - adapter.paths):
        yield f"{len(missing)} targeted modules have no tensors, first '{missing[0]}'"
    if unexpected := sorted(adapter.paths - experts - meant):
        yield f"{len(unexpected)} modules are not targeted and would be dropped, first '{unexpected[0]}'"


def _matches(path: str, names: str | Iterable[str] | None) -> bool:
    """Tells whether PEFT finds a module by names, or by one expression on the whole path."""
    if isinstance(names, str):
        with contextlib.suppress(re.error):
            return names == "all-linear" or re.fullmatch(names, path) is not None
        return False
    return any(path == name or path.endswith(f".{name}") for name in names or ())


_VLLM = "vllm-project/vllm vllm/lora/peft_helper.py, _validate_features and validate_legal (v0.32.0)"
_VLLM_FIELDS = "vllm-project/vllm vllm/lora/peft_helper.py, from_dict and __post_init__ (v0.32.0)"
_VLLM_SCALES = "vllm-project/vllm vllm/lora/peft_helper.py, get_rank_and_scaling (v0.32.0)"
_VLLM_NAMES = "vllm-project/vllm vllm/lora/utils.py, parse_fine_tuned_lora_name (v0.32.0)"
_VLLM_RANKS = "vllm-project/vllm vllm/config/lora.py, MaxLoRARanks (v0.32.0)"
_SGLANG = "sgl-project/sglang python/sglang/srt/lora/lora_config.py (0ceb81fe)"
_SGLANG_MANAGER = "sgl-project/sglang python/sglang/srt/lora/lora_manager.py, validate_new_adapter (main, 2026-08)"
_TGI = "huggingface/text-generation-inference server/text_generation_server/adapters/lora.py (45d95bdc)"
_TGI_UTILS = "huggingface/text-generation-inference server/text_generation_server/utils/adapter.py (4b569341)"
_LORAX = "predibase/lorax server/lorax_server/adapters/lora.py (03679f33)"
_LLAMA_CPP = "ggml-org/llama.cpp convert_lora_to_gguf.py (0b03adaa)"
_PEFT = "huggingface/peft src/peft/tuners/tuners_utils.py, check_target_module_exists (0.21.2)"

_ALIKE = (_required, _prefixed, _only_lora, _of_head_model, _no_dora, _no_bias, _one_scale, _no_embeddings)
"""What TGI and LoRAX, which began as a copy of it, both hold against an adapter."""

RULES: tuple[Rule, ...] = (
    Rule("vllm", _VLLM_FIELDS, _required),
    Rule("vllm", _VLLM_NAMES, _of_head_model),
    Rule("vllm", _VLLM, _no_dora),
    Rule("vllm", _VLLM, _no_bias),
    Rule("vllm", _VLLM, _no_saved_modules),
    Rule("vllm", _VLLM, _plain_start),
    Rule("vllm", _VLLM_SCALES, _vllm_patterns, is_note=True),
    Rule("vllm", _VLLM_RANKS, _vllm_rank),
    Rule("vllm", _VLLM_RANKS, _vllm_flag, is_note=True),
    Rule("vllm", _VLLM_NAMES, _only_lora),
    Rule("vllm", "vllm-project/vllm #52198", _no_experts),
    Rule("vllm", "vllm-project/vllm #48974", _no_latent_projection),
    Rule(
        "vllm",
        "vllm-project/vllm vllm/lora/utils.py, get_supported_lora_modules (v0.32.0)",
        _vllm_embeddings,
        is_note=True,
    ),
    Rule("sglang", _SGLANG, _required),
    Rule("sglang", "sgl-project/sglang python/sglang/srt/lora/lora.py", _of_head_model),
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
    *(Rule("tgi", _TGI, find) for find in _ALIKE),
    Rule("tgi", _TGI_UTILS, _tgi_types),
    Rule("tgi", _TGI, _whole_types),
    Rule("tgi", _TGI_UTILS, _main_only, is_note=True),
    *(Rule("lorax", _LORAX, find) for find in _ALIKE),
    Rule("lorax", _LORAX, _whole_types),
    Rule("lorax", "predibase/lorax server/lorax_server/models/flash_mixtral.py (1d6a745d)", _no_experts),
    Rule("llama.cpp", _LLAMA_CPP, _required),
    Rule("llama.cpp", _LLAMA_CPP, _only_lora),
    Rule("llama.cpp", _LLAMA_CPP, _pairs),
    Rule("llama.cpp", _LLAMA_CPP, _one_scale),
    Rule("llama.cpp", _LLAMA_CPP, _no_rslora),
    Rule("llama.cpp", _LLAMA_CPP, _one_rank),
    Rule("llama.cpp", "ggml-org/llama.cpp #9065", _untied_head),
    Rule("llama.cpp", _LLAMA_CPP, _no_experts),
    Rule("llama.cpp", "ggml-org/llama.cpp #15327", _no_variants),  # aLoRA by llama-server alone, the others not at all
    Rule("llama.cpp", _LLAMA_CPP, _converted, is_note=True),
    Rule("peft", _PEFT, _of_lora),
    Rule("peft", _PEFT, _prefixed),
    Rule("peft", _PEFT, _pairs),
    Rule("peft", _PEFT, _exactly_targeted),
)
"""Every rule of every engine."""

LOADERS: tuple[str, ...] = tuple(dict.fromkeys(rule.engine for rule in RULES))
"""The engines whose rules are known."""

_IMPLIED: Mapping[str, str] = {
    "bias": "bias",
    "lora_bias": "lora_B.bias",
    "modules_to_save": "weight",
    "trainable_token_indices": "token_adapter.trainable_tokens_delta",
    "use_dora": "lora_magnitude_vector",
}
"""Option to how the names of the tensors end that PEFT writes for it beside LoRA's own two."""


def check_engine(
    engine: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], base: BaseFacts
) -> Verdict:
    """Says what an engine of `LOADERS` makes of an adapter: its `adapter_config.json` and the shapes of its tensors.

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
    check_known(engine)
    adapter = Adapter(config, shapes, base)
    found: dict[bool, dict[str, str]] = {False: {}, True: {}}
    for rule in RULES:
        if rule.engine == engine:
            for one in rule.find(adapter):
                found[rule.is_note].setdefault(one, rule.source)
    return Verdict(tuple(found[False]), tuple(found[True]), tuple(found[False].values()))


def check_engines(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], base: BaseFacts
) -> dict[str, Verdict]:
    """Says what every engine makes of an adapter; as `check_engine`, by the engine's name."""
    return {engine: check_engine(engine, config, shapes, base) for engine in LOADERS}


def config_refusals(engine: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Says what an engine refuses of a configuration alone, with the tensors that PEFT writes for it.

    Example:
        >>> config_refusals("llama.cpp", {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj"], "use_dora": True})
        ("1 tensors are no LoRA factors, first 'lora_magnitude_vector'",)
    """
    implied = {end: () for key, end in _IMPLIED.items() if config.get(key) not in (None, False, "none", [], {})}
    return check_engine(engine, config, implied, BaseFacts()).problems


def check_known(engine: str) -> None:
    """Refuses an engine whose rules are not known."""
    if engine not in LOADERS:
        raise ConfigError(
            f"The engine {engine!r} is not known.{closest(str(engine), LOADERS)}", f"Choose {', '.join(LOADERS)}."
        )
