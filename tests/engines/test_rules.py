"""What the engines' loaders take: every export of the matrix, and each rule against an adapter that breaks it."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from taia_hub import hub
from taia_hub.engines import LOADERS, BaseFacts, check_engine, check_engines
from taia_hub.engines.facts import Adapter
from taia_hub.engines.rules import RULES, VLLM_RANKS
from taia_hub.errors import ConfigError
from taia_hub.exporting import export_adapter
from taia_hub.updates.peft.strict import read_config
from taia_hub.updates.weightless import injected

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
PATHS = [f"model.layers.{layer}.self_attn.{name}" for layer in range(2) for name in ATTENTION]
BASE = BaseFacts(frozenset([*PATHS, "model.embed_tokens", "lm_head"]), frozenset(["model.embed_tokens", "lm_head"]))
CONFIG = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 16,
    "target_modules": list(ATTENTION),
    "bias": "none",
    "base_model_name_or_path": "org/base",
}


def shapes_of(paths=PATHS, rank=8):
    stem = "base_model.model."
    return {
        **{f"{stem}{path}.lora_A.weight": (rank, 16) for path in paths},
        **{f"{stem}{path}.lora_B.weight": (16, rank) for path in paths},
    }


def problems(engine, shapes=None, base=BASE, **config):
    return check_engine(engine, {**CONFIG, **config}, shapes or shapes_of(), base).problems


# --- Every export of the matrix ---------------------------------------------------------------------------------------

MATRIX = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"k_proj": 2, "c_proj": 2}, "alpha_pattern": {"q_proj": 3, "c_attn": 3}},
    "dora": {"use_dora": True},
}
MODES = ["attention", "attention@1", '{"attention": 0.3}']
SERVED = {"llama": LOADERS, "qwen3": LOADERS, "qwen3_moe": LOADERS, "gpt2": [one for one in LOADERS if one != "tgi"]}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("label", MATRIX)
@pytest.mark.parametrize("name", SERVED)
def test_every_engine_takes_every_export(pico, name, label, mode, tmp_path):
    setting = json.loads(mode) if mode[0] == "{" else {mode: 1.0}
    attention = {"gpt2": r".*\.attn\.c_(attn|proj)"}.get(name, r".*\.self_attn\.[qkvo]_proj")
    if label == "dora":
        setting = dict.fromkeys(setting, 1.0)
    folder = pico.adapter(
        name, pico.lora(name, target_modules=attention, **MATRIX[label]), f"conformance-{label}", seed=2
    )

    report = export_adapter(folder, tmp_path / "out", setting)

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(pico.base(name)))
    # the check of an export does some modules
    whole = injected(model, read_config(tmp_path / "out"), tmp_path / "out", {}).update
    expected = {key: tuple(one.shape) for key, one in whole.parameters().items()}
    assert hub.tensor_shapes(tmp_path / "out" / "adapter_model.safetensors") == expected
    served = SERVED[name]
    assert {engine: report.verdicts[engine].problems for engine in served} == dict.fromkeys(served, ())
    if name == "gpt2":
        assert "would be dropped" in report.refused_by["tgi"][0]


@pytest.mark.parametrize("mode", ["ffn", "all"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2_moe"])
def test_every_engine_takes_the_ffn_too(pico, name, mode, tmp_path):
    report = export_adapter(pico.adapter(name), tmp_path / "out", mode)

    served = [one for one in LOADERS if one != "tgi"] if name != "llama" else LOADERS
    assert not set(report.refused_by) & set(served)


def test_the_rules_would_have_refused_the_adapters_themselves(pico):
    """The matrix proves something only where the update as it was trained breaks rules."""
    found = set()
    for label, options in MATRIX.items():
        folder = pico.adapter(
            "llama",
            pico.lora("llama", target_modules=r".*\.self_attn\.[qkvo]_proj", **options),
            f"conformance-{label}",
            seed=2,
        )
        config = json.loads((folder / "adapter_config.json").read_text())
        shapes = {key: tuple(one.shape) for key, one in load_file(folder / "adapter_model.safetensors").items()}
        found |= {(label, engine) for engine, one in check_engines(config, shapes, BASE).items() if one.problems}
    assert {("lora", "sglang"), ("rslora", "llama.cpp"), ("patterns", "lorax"), ("dora", "vllm")} <= found


def test_the_configuration_has_no_key_that_old_peft_does_not_know(pico, tmp_path):
    export_adapter(pico.adapter("llama"), tmp_path / "out")

    keys = set(json.loads((tmp_path / "out" / "adapter_config.json").read_text()))

    assert keys == {  # LoraConfig of PEFT 0.9
        *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "peft_type", "inference_mode"),
        *("r", "lora_alpha", "lora_dropout", "target_modules", "fan_in_fan_out", "bias", "modules_to_save"),
        *("init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
        *("use_rslora", "use_dora"),
    }
    LoraConfig.from_pretrained(str(tmp_path / "out"))


# --- Each rule --------------------------------------------------------------------------------------------------------


def test_a_plain_lora_is_taken_by_all():
    assert not any(verdict.problems for verdict in check_engines(CONFIG, shapes_of(), BASE).values())


def test_every_rule_has_a_source_and_an_engine():
    assert {rule.engine for rule in RULES} == set(LOADERS)
    assert all(
        "/" in rule.source and ("(" in rule.source or "#" in rule.source or "." in rule.source) for rule in RULES
    )


@pytest.mark.parametrize(
    ("changes", "engines"),
    [
        ({"use_dora": True}, {"vllm", "sglang", "tgi", "lorax"}),
        ({"bias": "all"}, {"vllm", "sglang", "tgi", "lorax"}),
        ({"lora_bias": True}, {"vllm", "sglang", "tgi", "lorax"}),
        ({"modules_to_save": ["lm_head"]}, {"vllm", "sglang"}),
        ({"modules_to_save": ["score"]}, set()),
        ({"init_lora_weights": "pissa_niter_16"}, {"vllm"}),
        ({"init_lora_weights": "gaussian"}, set()),
        ({"layer_replication": [[0, 2]]}, {"vllm", "llama.cpp"}),
        ({"rank_pattern": {"q_proj": 4}}, {"sglang", "tgi", "lorax", "llama.cpp"}),
        ({"alpha_pattern": {"q_proj": 4}}, {"sglang", "tgi", "lorax", "llama.cpp"}),
        ({"alpha_pattern": {"q_proj": 16}}, set()),
        ({"use_rslora": True}, {"sglang", "llama.cpp"}),
        ({"target_parameters": ["experts.up_proj"]}, {"vllm", "sglang", "lorax", "llama.cpp"}),
        ({"target_modules": r".*\.self_attn\.[qkvo]_proj"}, {"sglang"}),
        ({"target_modules": [f"self_attn.{name}" for name in ATTENTION]}, {"sglang"}),
        ({"target_modules": ["q_proj"]}, {"peft"}),
        ({"target_modules": [*ATTENTION, "lm_head"]}, {"peft"}),
        ({"target_modules": [*ATTENTION, "lm_head"], "exclude_modules": ["lm_head"]}, set()),
        ({"r": 0}, {"vllm", "sglang", "tgi", "lorax", "llama.cpp", "peft"}),
        ({"lora_alpha": None}, {"vllm", "sglang", "tgi", "lorax", "llama.cpp", "peft"}),
        ({"peft_type": "LOHA"}, {"vllm", "sglang", "tgi", "lorax", "llama.cpp", "peft"}),
    ],
)
def test_a_configuration_is_refused_by_the_engines_that_do_not_read_it(changes, engines):
    assert {engine for engine in LOADERS if problems(engine, **changes)} == engines


PREFIX = "base_model.model."


@pytest.mark.parametrize(
    ("shapes", "engines"),
    [
        ({f"{PREFIX}{PATHS[0]}.lora_magnitude_vector": (16,)}, {"vllm", "sglang", "tgi", "lorax", "llama.cpp"}),
        ({f"{PREFIX}model.embed_tokens.weight": (64, 16)}, {"vllm", "sglang", "tgi", "lorax", "llama.cpp"}),
        (shapes_of(PATHS[1:]), {"tgi", "lorax", "peft"}),
        (shapes_of(["transformer.h.0.attn.c_attn"]), {"tgi", "peft"}),
        (shapes_of(["model.layers.0.mlp.experts"]), {"vllm", "sglang", "llama.cpp", "tgi", "lorax", "peft"}),
        (shapes_of(["model.layers.0.self_attn.kv_b_proj"]), {"vllm", "tgi", "peft"}),
        ({f"{PREFIX}{PATHS[0]}.lora_A.weight": (4, 16), f"{PREFIX}{PATHS[0]}.lora_B.weight": (16, 4)}, {"llama.cpp"}),
        ({key.removeprefix(PREFIX): shape for key, shape in shapes_of().items()}, {"tgi", "lorax", "peft"}),
        ({f"{PREFIX}lm_head.lora_A.weight": (8, 16), f"{PREFIX}lm_head.lora_B.weight": (64, 8)}, {"llama.cpp"}),
        (
            {
                f"{PREFIX}model.embed_tokens.lora_embedding_A": (8, 64),
                f"{PREFIX}model.embed_tokens.lora_embedding_B": (16, 8),
            },
            {"tgi", "lorax"},
        ),
    ],
)
def test_tensors_are_refused_by_the_engines_that_drop_them(shapes, engines):
    whole = shapes_of() if len(shapes) < 3 and "peft" not in engines else {}
    base = BaseFacts(BASE.modules, BASE.embeddings, tied=True)
    names = sorted({key.rpartition(".lora_")[0].rpartition(".")[2] for key in {**whole, **shapes} if ".lora_" in key})
    config = {} if "peft" in engines else {"target_modules": names}

    assert {one for one in LOADERS if problems(one, {**whole, **shapes}, base, **config)} == engines


def test_every_rule_can_fire():
    """A rule that no adapter of anybody breaks would be a claim that nothing checks."""
    whole, embedding = shapes_of(), f"{PREFIX}model.embed_tokens.lora_embedding_"
    odd = {f"{PREFIX}x.lora_A.weight": (4, 16), "y.weight": (2,), f"{embedding}A": (8, 64), f"{embedding}B": (16, 8)}
    others = shapes_of(["lm_head", "model.layers.0.mlp.experts", "model.layers.0.self_attn.kv_b_proj"])
    options = {"use_dora": True, "bias": "all", "modules_to_save": ["norm"], "init_lora_weights": "pissa"}
    options |= {"use_rslora": True, "rank_pattern": {"q_proj": 3}, "target_parameters": ["x.y"], "use_qalora": True}
    options |= {"task_type": "FEATURE_EXTRACTION", "target_modules": ["self_attn.q_proj"], "r": 600}
    tied = BaseFacts(BASE.modules, BASE.embeddings, tied=True, remote=False)
    adapters = [
        Adapter({**CONFIG, **options}, {**whole, **odd, **others}, tied),
        Adapter({**CONFIG, "r": 24}, shapes_of(PATHS[:1], rank=24), BASE),
        Adapter({"peft_type": "LOHA"}, whole, BASE),
    ]
    silent = [rule for rule in RULES if not any([*rule.find(adapter)] for adapter in adapters)]
    assert silent == []


def test_a_factor_without_its_counterpart_is_refused():
    for start in ("A", "B"):
        shapes = shapes_of()
        del shapes[f"{PREFIX}{PATHS[0]}.lora_{start}.weight"]
        assert problems("llama.cpp", shapes)
        assert problems("peft", shapes)


@pytest.mark.parametrize(
    ("rank", "flag"), [(1, None), (16, None), (17, 32), (32, 32), (64, 64), (65, 128), (257, 320), (512, 512), (513, 0)]
)
def test_a_rank_names_the_flag_of_vllm(rank, flag):
    verdict = check_engine("vllm", {**CONFIG, "r": rank}, shapes_of(rank=rank), BASE)

    if flag == 0:
        assert "above the largest --max-lora-rank, 512" in verdict.problems[0]
    else:
        assert verdict.notes == ((f"--max-lora-rank {flag}",) if flag else ())
        assert flag is None or flag in VLLM_RANKS


def test_vllm_reads_the_patterns_whose_largest_rank_counts():
    for pattern, flag in (({"q_proj": 4}, None), ({"q_proj": 40, "k_proj": 2}, 64)):
        verdict = check_engine("vllm", {**CONFIG, "rank_pattern": pattern}, shapes_of(), BASE)
        assert "older versions ignore them" in verdict.notes[0]
        assert verdict.notes[1:] == ((f"--max-lora-rank {flag}",) if flag else ())
    assert "rank 600 is above" in problems("vllm", rank_pattern={"q_proj": 600})[0]


def test_a_rank_above_the_limit_is_refused_where_the_engine_was_asked_for(pico, tmp_path):
    folder = pico.adapter("llama", pico.lora("llama", r=600, target_modules=["q_proj"]), "conformance-wide")

    report = export_adapter(folder, tmp_path / "out")
    assert list(report.refused_by) == ["vllm"]
    with pytest.raises(ValueError, match=r"vllm does not take this export: rank 600.*--max-lora-rank, 512"):
        export_adapter(folder, tmp_path / "other", engines=["vllm"])


def test_notes_say_what_to_set(pico, tmp_path):
    report = export_adapter(pico.adapter("llama"), tmp_path / "out")

    assert report.engines["vllm"] == ()
    assert "--max-lora-rank 4 --lora-target-modules k_proj o_proj q_proj v_proj" in report.engines["sglang"][0]
    assert "taia serve" in report.engines["llama.cpp"][0]  # it reads GGUF alone
    assert "--base" in report.engines["llama.cpp"][1]  # its base is a folder
    assert "at its root" in report.engines["tgi"][0]


def test_an_adapter_of_a_model_without_a_head_is_refused_by_those_that_serve_one_with(pico, tmp_path):
    model = get_peft_model(
        AutoModel.from_pretrained(pico.base("llama")),
        LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj"], task_type="FEATURE_EXTRACTION"),
    )
    torch.nn.init.normal_(model.get_submodule("base_model.model.layers.0.self_attn.q_proj").lora_B.default.weight)
    model.save_pretrained(tmp_path / "source")

    report = export_adapter(tmp_path / "source", tmp_path / "out")

    assert set(report.refused_by) == {"vllm", "sglang", "tgi", "lorax"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base = AutoModel.from_pretrained(" in card
    assert "feature-extraction" in card
    assert "vllm serve" not in card


def test_an_unknown_engine_is_an_error():
    with pytest.raises(ConfigError, match="Did you mean 'sglang'"):
        check_engine("sgland", CONFIG, {}, BASE)


def test_embedding_copies_of_the_base_stay_out_of_an_export(pico, tmp_path):
    """PEFT saves them along; vLLM passes them by, older versions and SGLang do not."""
    options = {"target_modules": ["q_proj", "embed_tokens"]}
    folder = pico.adapter("llama", pico.lora("llama", **options), "conformance-embedding")
    source = tmp_path / "source"
    source.mkdir()
    (source / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    copy = pico.plain("llama").model.embed_tokens.weight.detach().clone()
    tensors["base_model.model.model.embed_tokens.base_layer.weight"] = copy
    save_file(tensors, source / "adapter_model.safetensors")

    report = export_adapter(source, tmp_path / "out", "all")

    assert any("copies of adapted embeddings" in note for note in report.notes)
    assert not [key for key in load_file(tmp_path / "out" / "adapter_model.safetensors") if ".lora_" not in key]
