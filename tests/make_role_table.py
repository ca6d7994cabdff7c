"""Builds every model of the role table on the meta device; run as `python -m tests.make_role_table` to rewrite it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from taia_hub.roles.sublayers import find_sublayers

TABLE = Path(__file__).parent / "data" / "sublayer_roles.tsv"

# Default configurations that transformers itself cannot build, and hybrids whose default has one kind of layer only.
_QWEN4_EXP: dict[str, Any] = {
    "num_hidden_layers": 8, "layer_types": ["linear_attention", "indexed_attention"] * 4, "eos_token_id": 1,
    "ple_layer_ids": [1], "ple_embed_dim": 2048, "split_ngram_parts": 1, "ngram_vocab_size_base": 1000,
    "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 256, "indexer_budget": 64,
    "indexer_compress_ratio": 4,
}  # fmt: skip
_GEMMA4_ASSISTANT = {
    "model_type": "gemma4_text", "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {"attn_config": {"rope_theta": 1e4}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "gemma4_assistant": {"text_config": _GEMMA4_ASSISTANT},
    "gemma4_unified_assistant": {"text_config": {"model_type": "gemma4_unified_text", "num_kv_shared_layers": 12}},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    "ministral": {"head_dim": 128},
    "nemotron": {"head_dim": 128, "num_key_value_heads": 8},
    "qwen4_exp": {"text_config": {"model_type": "qwen4_exp_text", **_QWEN4_EXP}},
    "qwen4_exp_text": _QWEN4_EXP,
    "reformer": {"is_decoder": True},
}
UNBUILT = {"gemma3n": "its vision tower needs the timm package; gemma3n_text and gemma3n_audio stand for it"}
# The mapping names the decoder's class for the configuration of the whole: build the class that it names.
DECODERS = {
    "musicgen": ("musicgen_decoder", "MusicgenForCausalLM"),
    "musicgen_melody": ("musicgen_melody_decoder", "MusicgenMelodyForCausalLM"),
}


class Case(NamedTuple):
    """A model of the table: its label, the model type, the Auto class and changes to the default configuration."""

    label: str
    model_type: str
    auto: str = "AutoModelForCausalLM"
    config: dict[str, Any] = {}


def cases() -> list[Case]:
    """Lists the whole causal mapping, then variants, encoders, encoder-decoders and multimodal models."""
    causal = []
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        model_type, auto = DECODERS.get(name, (name, "AutoModelForCausalLM"))
        if name not in UNBUILT:
            causal.append(Case(name, model_type, auto, CONFIGS.get(name, {})))
    return causal + OTHERS


def _of(auto: str, *names: str) -> list[Case]:
    return [Case(f"{name}/{auto.removeprefix('AutoModelFor') or 'Model'}", name, auto) for name in names]


# fmt: off
OTHERS = [
    *_of(
        "AutoModelForMaskedLM",
        "albert", "bert", "convbert", "deberta", "deberta-v2", "distilbert", "funnel", "longformer", "mobilebert",
        "modernbert", "mpnet", "nystromformer", "roberta", "squeezebert", "yoso",
    ),
    *_of(
        "AutoModelForSeq2SeqLM",
        "bart", "bigbird_pegasus", "fsmt", "led", "longt5", "m2m_100", "marian", "mbart", "mt5", "nllb-moe", "pegasus",
        "pegasus_x", "prophetnet", "switch_transformers", "t5", "t5gemma", "umt5",
    ),
    *_of(
        "AutoModelForImageTextToText",
        "aria", "blip-2", "florence2", "glm4v", "idefics2", "idefics3", "internvl", "kosmos-2", "llama4", "llava",
        "llava_next", "llava_onevision", "mistral3", "mllama", "paligemma", "qwen2_5_vl", "qwen2_vl", "qwen3_5",
        "qwen3_vl", "qwen3_vl_moe", "smolvlm",
    ),
    *_of(
        "AutoModel",
        "beit", "clip", "dinov2", "gemma3n_audio", "moshi", "siglip", "siglip2", "vit", "wav2vec2",
        "wav2vec2-conformer", "whisper",
    ),
    Case("bert+cross_attention", "bert", config={"is_decoder": True, "add_cross_attention": True}),
    Case("deberta-v2+convolution", "deberta-v2", "AutoModelForMaskedLM", {"conv_kernel_size": 3}),
    Case("doge+moe", "doge", config={"is_moe": True}),
    Case("esm/MaskedLM", "esm", "AutoModelForMaskedLM", {"vocab_size": 33, "pad_token_id": 1}),
    Case("falcon+new_decoder", "falcon", config={"new_decoder_architecture": True}),
    Case(
        "gemma4+moe",
        "gemma4_text",
        config={
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 64,
        },
    ),
    Case("gpt2+cross_attention", "gpt2", config={"add_cross_attention": True}),
    Case("zamba2+adapters", "zamba2", config={"use_shared_attention_adapter": True}),
]
# fmt: on


def build(case: Case) -> nn.Module:
    """Builds one model on the meta device: full widths, no memory."""
    config = CONFIG_MAPPING[case.model_type](**case.config)
    if case.model_type == "gemma4_assistant":  # its validator and its layers contradict each other
        config.text_config.num_kv_shared_layers = 20
    cls = getattr(transformers, case.auto)
    with torch.device("meta"), no_init_weights():  # drawing what meta tensors do not hold is a third of the time
        return cls.from_config(config) if case.auto.startswith("Auto") else cls(config)


def pattern(path: str) -> str:
    """Replaces the indices of layers and experts in a module path by `*`."""
    return re.sub(r"\.(expert_)?\d+(?=\.|$)", r".\1*", path)


def models() -> Iterator[tuple[Case, nn.Module]]:
    """Yields every model of the table with its case."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        for case in cases():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield case, build(case)
    finally:
        transformers.logging.set_verbosity(verbosity)


def lines(case: Case, model: nn.Module) -> list[str]:
    """Gives the table's lines of one model, sorted; what could not be placed says `unplaced`."""
    found = find_sublayers(model)
    unplaced = set(found.unplaced)
    return sorted(
        {
            f"{case.label}\t{pattern(p) or '(the model itself)'}\t{'unplaced' if p in unplaced else role}"
            for p, role in found.roles.items()
        }
    )


def main() -> None:
    """Writes the table; read the difference line by line before committing it."""
    rows = [line for case, model in models() for line in lines(case, model)]
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text("\n".join(["model\tmodules\trole", *sorted(rows)]) + "\n")


if __name__ == "__main__":
    main()
