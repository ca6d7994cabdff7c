"""A mode as a plain LoRA: it computes what the masked model does, loses no bit without need, and leaves no halves."""

import dataclasses
import errno
import inspect
import itertools
import json
import math
import shutil
from pathlib import Path

import peft
import pytest
import torch
import typer
from huggingface_hub import ModelCard, hf_hub_download
from peft import LoraConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig
from typer.testing import CliRunner

from taia_hub import TAIAForCausalLM, hub
from taia_hub.cli.exporting import export
from taia_hub.errors import ConfigError, RepositoryError, SettingError, UnsupportedUpdateError, UpdateMismatchError
from taia_hub.exporting import ExportOptions, export_adapter, export_adapters
from taia_hub.exporting import adapter as adapter_module
from taia_hub.exporting.low_rank import EXACT, product
from taia_hub.exporting.plan import Factors, find_targets, share_scale
from taia_hub.exporting.publishing import push_adapters
from taia_hub.exporting.verification import check_loads
from taia_hub.merging import merge
from taia_hub.repository.side_files import card_tags
from taia_hub.updates.molora.update import MoLoraSettings, add_molora, save_molora
from taia_hub.updates.peft.methods import ADDITIVE, CONVERTED
from taia_hub.weights import shards as dense_files
from taia_hub.weights.skeleton import skeleton
from tests.conftest import in_a_copy, logits, peak_memory

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
NUMBERS = itertools.count()
TARGETS = ["q_proj", "o_proj", "up_proj", "down_proj"]


def loaded(pico, name, folder, **keywords):
    """The export as PEFT loads it, without a warning of missing tensors."""
    return PeftModel.from_pretrained(pico.plain(name, **keywords), str(folder)).eval()


def config_of(folder):
    return json.loads((folder / CONFIG).read_text())


def assert_alike(one, other):
    assert float((one - other).abs().max()) <= 1e-5 * float(other.abs().max())


# --- Plain LoRA -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["attention", "ffn", "all"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "opt", "gpt_neox", "qwen2_moe", "jamba"])
def test_an_export_in_peft_is_the_masked_model_bit_for_bit(pico, name, mode, tmp_path, recwarn):
    report = export_adapter(pico.adapter(name), tmp_path / "out", mode)

    expected = logits(pico.taia(name), pico.ids(), inference_modules=mode)
    assert torch.equal(logits(loaded(pico, name, tmp_path / "out"), pico.ids()), expected)
    assert not [warning for warning in recwarn if "adapter keys" in str(warning.message)]
    assert report.kept
    assert report.error is None
    config = config_of(tmp_path / "out")
    assert (config["r"], config["lora_alpha"], config["use_rslora"], config["modules_to_save"]) == (4, 6, False, None)
    assert isinstance(config["target_modules"], list)
    assert not any("." in one for one in config["target_modules"])


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_the_attention_of_a_mixture_of_experts_is_exported_and_its_experts_are_refused(pico, name, tmp_path):
    export_adapter(pico.adapter(name), tmp_path / "out")

    expected = logits(pico.taia(name), pico.ids(), inference_modules="attention")
    assert torch.equal(logits(loaded(pico, name, tmp_path / "out"), pico.ids()), expected)
    with pytest.raises(UnsupportedUpdateError, match=r"target_parameters[^$]*'attention' can be exported.*taia merge"):
        export_adapter(pico.adapter(name), tmp_path / "other", "all")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "1 tensors are missing, first '.*layers.0.self_attn.q_proj.lora_A.weight'"),
        ("unexpected", "1 tensors are left over, first '.*x_proj"),
        ("shape", r"has the shape \(4, 15\) instead of \(4, 16\)"),
        ("targets", "tensors are left over"),
        ("rank", r"has the shape \(4, 16\) instead of \(5, 16\)"),
        ("impossible", "PEFT cannot put it on"),
    ],
)
def test_an_export_that_peft_would_not_load_is_found(pico, name, change, message, tmp_path):
    folder, key = tmp_path / "out", "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    export_adapter(pico.adapter(name), folder, "attention")
    model = skeleton(hub.Source(str(pico.base(name)), pico.base(name), None), hub.HubAccess())
    check_loads(folder, model)
    tensors, config = load_file(folder / WEIGHTS), config_of(folder)
    if change == "missing":
        del tensors[key]
    elif change == "unexpected":
        tensors[key.replace("q_proj", "x_proj")] = tensors[key].clone()
    elif change == "shape":
        tensors[key] = tensors[key][:, :-1].contiguous()
    elif change == "targets":
        config["target_modules"] = ["q_proj", "k_proj", "v_proj"]
    elif change == "rank":
        config["r"] = 5
    else:
        config["target_modules"] = ["q_proj", "k_proj", "v_proj", "o_proj", "input_layernorm"]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config))

    with pytest.raises(UpdateMismatchError, match=message):
        check_loads(folder, model)
    assert not any(isinstance(one, BaseTunerLayer) for one in model.modules())


def test_tensors_keep_their_bytes(pico, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    tensors = {key: value.bfloat16() for key, value in load_file(pico.adapter("llama") / WEIGHTS).items()}
    save_file(tensors, source / WEIGHTS)
    (source / CONFIG).write_text((pico.adapter("llama") / CONFIG).read_text())

    report = export_adapter(source, tmp_path / "out", {"attention": 0.5})

    written = load_file(tmp_path / "out" / WEIGHTS)
    assert len(written) == 16
    assert report.dtype == "bfloat16"
    assert all(torch.equal(value, tensors[key]) and value.dtype == torch.bfloat16 for key, value in written.items())
    assert config_of(tmp_path / "out")["lora_alpha"] == 3


@pytest.mark.parametrize(
    ("options", "mode", "alpha", "dtype"),
    [
        ({"use_rslora": True}, "attention", 12, torch.bfloat16),
        ({"use_rslora": True, "r": 8}, "attention", 8, torch.float32),
        ({"alpha_pattern": {"q_proj": 12}}, "all", 6, torch.bfloat16),
        ({"alpha_pattern": {"q_proj": 9}}, "all", 6, torch.float32),
        ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}}, "all", 6, torch.bfloat16),
        ({}, {"attention": 1, "ffn": 0.25}, 6, torch.bfloat16),
        ({}, {"attention": 0.3, "ffn": 1}, 6, torch.float32),
        ({}, {"attention": 0.3}, 4, torch.float32),
        ({}, {"*@0-1": [0.25, 1]}, 6, torch.bfloat16),
        ({}, {"attention": 1.5, "ffn": -1, "allow_extrapolation": True}, 9, torch.float32),
        ({}, {"attention": 1, "ffn": -0.5, "allow_extrapolation": True}, 6, torch.bfloat16),
        ({}, {"attention": -1, "allow_extrapolation": True}, 4, torch.float32),
    ],
)
def test_scales_are_shared_with_as_few_touched_bits_as_possible(pico, options, mode, alpha, dtype, tmp_path):
    label = f"scales-{json.dumps(options)}".translate(str.maketrans('{}": ,', "------"))
    folder = pico.adapter("llama", pico.lora("llama", **options), label)
    source = tmp_path / "source"
    source.mkdir()
    (source / CONFIG).write_text((folder / CONFIG).read_text())
    save_file({key: one.bfloat16() for key, one in load_file(folder / WEIGHTS).items()}, source / WEIGHTS)

    export_adapter(source, tmp_path / "out", mode)

    config, tensors = config_of(tmp_path / "out"), load_file(tmp_path / "out" / WEIGHTS)
    assert config["lora_alpha"] == alpha
    assert isinstance(config["lora_alpha"], int)
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({}, {})
    assert {one.dtype for one in tensors.values()} == {dtype}
    model = TAIAForCausalLM.from_adapter(pico.base("llama"), source).eval()
    expected = logits(model, pico.ids(), inference_modules=mode)
    assert_alike(logits(loaded(pico, "llama", tmp_path / "out"), pico.ids()), expected)
    if dtype == torch.bfloat16 and "rank_pattern" not in options:  # a power of two moves no bit of a sum either
        assert torch.equal(logits(loaded(pico, "llama", tmp_path / "out"), pico.ids()), expected)


def test_modules_that_share_a_name_get_zeros(pico, tmp_path):
    report = export_adapter(pico.adapter("gpt2"), tmp_path / "out")

    tensors = load_file(tmp_path / "out" / WEIGHTS)
    shared = {key: one for key, one in tensors.items() if ".mlp.c_proj." in key}
    assert report.zeros == 2
    assert len(shared) == 4
    assert not any(one.any() for one in shared.values())
    assert sorted(config_of(tmp_path / "out")["target_modules"]) == ["c_attn", "c_proj"]


def test_a_subset_of_layers_equals_the_masked_model(pico, tmp_path):
    export_adapter(pico.adapter("llama"), tmp_path / "out", {"attention@1": 1, "model.layers.0.mlp.up_proj": 1})

    expected = logits(
        pico.taia("llama"), pico.ids(), inference_modules={"attention@1": 1, "model.layers.0.mlp.up_proj": 1}
    )
    assert torch.equal(logits(loaded(pico, "llama", tmp_path / "out"), pico.ids()), expected)


def test_routed_experts_and_other_modules_are_passed_by_instead_of_filled():
    model = nn.Module()
    model.shared_expert = nn.ModuleDict({"up_proj": nn.Linear(4, 6)})
    model.dense = nn.ModuleDict({"up_proj": nn.Linear(4, 5)})
    model.experts = nn.ModuleList(nn.ModuleDict({"up_proj": nn.Linear(4, 6)}) for _ in range(3))
    model.odd = nn.ModuleDict({"up_proj": nn.LayerNorm(4)})

    targets = find_targets(model, [Factors("shared_expert.up_proj", "ffn", 1.0, torch.zeros(2, 4), torch.zeros(6, 2))])

    assert targets.zeros == {"dense.up_proj": (4, 5)}
    assert targets.excluded == ("experts.0.up_proj", "experts.1.up_proj", "experts.2.up_proj", "odd.up_proj")


def test_a_negative_or_unsayable_scale_is_multiplied_in():
    pair = torch.zeros(3, 8), torch.zeros(8, 3)

    assert share_scale([Factors("a", "ffn", -2.0, *pair), Factors("b", "ffn", 1 / 7, *pair)]).ratios == (-2.0, 1 / 7)
    assert share_scale([Factors("a", "ffn", math.sqrt(2), *pair)]).alpha == 3


def test_embeddings_and_the_head_are_exported_and_the_engines_that_drop_them_are_named(pico, tmp_path):
    options = {"target_modules": [*TARGETS, "embed_tokens", "lm_head"]}
    folder = pico.adapter("llama", pico.lora("llama", **options), "export-embeddings")

    report = export_adapter(folder, tmp_path / "out", "all")

    expected = logits(pico.taia("llama", "export-embeddings"), pico.ids(), inference_modules="all")
    assert torch.equal(logits(loaded(pico, "llama", tmp_path / "out"), pico.ids()), expected)
    assert {"tgi", "lorax"} <= set(report.refused_by)
    assert any("embedding_modules" in line for line in report.engines["vllm"])


# --- Other methods ----------------------------------------------------------------------------------------------------

METHODS = {
    "ADALORA": {"init_r": 4, "target_r": 2, "total_step": 10},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "DEFT": {},
    "DELORA": {"r": 4},
    "FOURIERFT": {"n_frequency": 10},
    "GLORA": {"r": 4},
    "GRALORA": {"r": 4, "gralora_k": 2},
    "HIRA": {"r": 4},
    "HRA": {"r": 4},
    "IA3": {"feedforward_modules": ["down_proj"]},
    "LOHA": {"r": 2},
    "LOKR": {"r": 4},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 4, "r": 0},
    "PEANUT": {},
    "PVERA": {"r": 4},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 4},
    "SHIRA": {"r": 2},
    "SUPERTUNING": {},
    "TINYLORA": {},
    "UNILORA": {"r": 4},
    "VBLORA": {"r": 2, "vector_length": 4, "num_vectors": 8, "topk": 2},
    "VERA": {"r": 4},
    "WAVEFT": {"n_frequency": 10},
}


def method_adapter(pico, method, **options):
    config = PEFT_TYPE_TO_CONFIG_MAPPING[getattr(peft.PeftType, method)](
        target_modules=TARGETS, task_type="CAUSAL_LM", **(options or METHODS.get(method, {}))
    )
    return pico.adapter("llama", config, f"export-{method}")


def test_every_method_that_is_converted_is_tested():
    assert set(METHODS) == {*ADDITIVE, *CONVERTED} - {"LORA"}


QUICK = ("ADALORA", "IA3", "LOHA", "LOKR", "OFT", "SHIRA", "VERA")


@pytest.mark.parametrize(
    "method", [pytest.param(one, marks=[] if one in QUICK else pytest.mark.slow) for one in METHODS]
)
def test_another_method_becomes_a_lora_that_computes_the_same(pico, method, tmp_path):
    report = export_adapter(method_adapter(pico, method), tmp_path / "out")

    expected = logits(pico.taia("llama", f"export-{method}"), pico.ids(), inference_modules="attention")
    assert_alike(logits(loaded(pico, "llama", tmp_path / "out"), pico.ids()), expected)
    assert not torch.equal(expected, logits(pico.plain("llama"), pico.ids()))
    assert report.error is None
    assert not report.kept
    assert max(report.errors.values()) <= EXACT
    if method in ("ADALORA", "LOHA", "VERA"):  # rank of the method itself, r^2 for a Hadamard product
        assert report.rank == 4


@pytest.mark.parametrize("method", ["ADALORA", "LOHA", "VERA"])
def test_a_loaded_model_of_another_method_is_exported_as_its_files_are(pico, method, tmp_path):
    folder = method_adapter(pico, method)
    export_adapter(folder, tmp_path / "files", "all")

    pico.taia("llama", f"export-{method}").export_adapter(tmp_path / "loaded", "all")

    assert (tmp_path / "loaded" / WEIGHTS).read_bytes() == (tmp_path / "files" / WEIGHTS).read_bytes()


@pytest.mark.parametrize(("method", "options"), [("OSF", {}), ("LILY", {"r": 4})])
def test_a_method_that_no_lora_can_say_is_refused(pico, method, options, tmp_path):
    with pytest.raises(UnsupportedUpdateError, match=f"what {method} changes.*\n.*by this package alone"):
        export_adapter(method_adapter(pico, method, **options), tmp_path / "out")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_dora_is_exact_where_the_rank_allows(pico, name, tmp_path):
    folder = pico.adapter(name, pico.lora(name, use_dora=True), "export-dora")

    export_adapter(folder, tmp_path / "out", verify=True)

    expected = logits(pico.taia(name, "export-dora"), pico.ids(), inference_modules="attention")
    assert_alike(logits(loaded(pico, name, tmp_path / "out"), pico.ids()), expected)


def test_what_a_bounded_rank_loses_is_said_or_refused(pico, tmp_path):
    folder = pico.adapter("llama", pico.lora("llama", use_dora=True), "export-dora")
    with pytest.raises(UnsupportedUpdateError, match=r"rank 2, 8 of 8 modules lose more than 0.02.*\n.*taia merge"):
        export_adapter(folder, tmp_path / "out", rank=2)
    assert not (tmp_path / "out").exists()

    report = export_adapter(folder, tmp_path / "out", rank=2, max_error=0.95)

    merged = pico.peft("llama", folder).merge_and_unload().state_dict()
    base, path = pico.plain("llama").state_dict(), "model.layers.0.self_attn.q_proj"
    delta = merged[f"{path}.weight"] - base[f"{path}.weight"]
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    b, a = (tensors[f"base_model.model.{path}.lora_{one}.weight"] for one in "BA")
    assert report.errors[path] == pytest.approx(float((delta - b @ a).norm() / delta.norm()), rel=1e-3)
    assert report.error == max(report.errors.values()) > 0.1
    assert "Not exact" in (tmp_path / "out" / "README.md").read_text()


def test_a_product_of_a_large_matrix_finds_its_rank():
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(1100, 70, generator=generator) @ torch.randn(70, 1030, generator=generator)

    b, a, error = product(delta, None)

    assert (b.shape, a.shape) == ((1100, 70), (70, 1030))
    assert error <= EXACT


@pytest.mark.parametrize(
    "mode", ["attention", "all", {"attention": 0.5}, {"attention": 1.5, "ffn": -1, "allow_extrapolation": True}]
)
def test_a_full_fine_tune_becomes_a_lora(pico, mode, tmp_path):
    tuned = _tuned(pico, tmp_path / "tuned", "proj")

    report = export_adapter(tuned, tmp_path / "out", mode, verify=True)

    model = TAIAForCausalLM.from_pretrained(tuned).eval()
    expected = logits(model, pico.ids(), inference_modules=mode)
    assert_alike(logits(loaded(pico, "llama", tmp_path / "out"), pico.ids()), expected)
    assert report.error is None


def test_changed_norms_of_a_full_fine_tune_are_refused(pico, tmp_path):
    tuned = _tuned(pico, tmp_path / "tuned", "norm")

    with pytest.raises(UnsupportedUpdateError, match=r"a LlamaRMSNorm is changed"):
        export_adapter(tuned, tmp_path / "out", "all")


def _tuned(pico, folder, part):
    model = pico.plain("llama")
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder / "whole")
    TAIAForCausalLM.from_finetuned(pico.base("llama"), folder / "whole").save_pretrained(folder / "taia")
    return folder / "taia"


def test_the_attention_of_molora_keeps_its_bytes_and_its_experts_are_refused(pico, tmp_path):
    model = add_molora(pico.plain("llama"), MoLoraSettings(rank={"attention": 3, "ffn": 2}, alpha=6))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    save_molora(model, tmp_path / "molora")

    report = export_adapter(tmp_path / "molora", tmp_path / "out", verify=True)

    before, after = load_file(tmp_path / "molora" / "molora_model.safetensors"), load_file(tmp_path / "out" / WEIGHTS)
    assert report.kept
    assert len(after) == 16
    assert all(torch.equal(one, before[key]) for key, one in after.items())
    with pytest.raises(UnsupportedUpdateError, match=r"its experts act by a router[^$]*'attention' can be exported"):
        export_adapter(tmp_path / "molora", tmp_path / "other", "all")


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "options", "reason"),
    [
        ("saved", {"target_modules": TARGETS, "modules_to_save": ["lm_head"]}, "modules_to_save"),
        ("tokens", {"target_modules": TARGETS, "trainable_token_indices": [3, 4]}, "trainable tokens"),
        ("bias", {"lora_bias": True, "target_modules": ["c_attn", "c_proj"]}, "lora_bias"),
    ],
)
def test_what_engines_do_not_load_is_refused_with_the_modes_that_work(pico, label, options, reason, tmp_path):
    name = "gpt2" if label == "bias" else "llama"
    folder = pico.adapter(name, pico.lora(name, **options), f"export-{label}")

    with pytest.raises(UnsupportedUpdateError, match=reason) as caught:
        export_adapter(folder, tmp_path / "out", "all")

    assert "taia merge" in caught.value.hint
    if label != "bias":
        assert "'attention' and 'ffn' can be exported" in caught.value.hint
        export_adapter(folder, tmp_path / "out", "attention")


@pytest.mark.parametrize("mode", ["none", {"attention": 0}, "other"])
def test_a_setting_that_masks_everything_is_refused(pico, mode, tmp_path):
    with pytest.raises(SettingError, match=r"masks every update.*\n.*'attention' and 'ffn' and 'all' can be exported"):
        export_adapter(pico.adapter("llama"), tmp_path / "out", mode)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_refused(pico, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")

    with pytest.raises(RepositoryError, match="is not empty"):
        export_adapter(pico.adapter("llama"), tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("make", [export_adapter, merge])
def test_what_was_made_of_a_base_that_changed_in_its_folder_is_not_the_same(pico, tmp_path, make):
    base = shutil.copytree(pico.base("llama"), tmp_path / "base")
    adapter = shutil.copytree(pico.adapter("llama"), tmp_path / "lora")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    make(adapter, tmp_path / "out")
    make(adapter, tmp_path / "out")  # known
    save_file({name: -one for name, one in load_file(base / "model.safetensors").items()}, base / "model.safetensors")
    with pytest.raises(RepositoryError, match="holds another result"):
        make(adapter, tmp_path / "out")


def test_the_same_export_again_is_known_and_another_one_wants_overwrite(pico, tmp_path, monkeypatch, taia, caplog):
    monkeypatch.chdir(tmp_path)
    words = ["export", pico.adapter("llama"), "--out", "out"]
    first = taia(*words)
    assert first[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr("taia_hub.exporting.adapter._write", None)  # nothing is done again
    status, out, _ = taia(*words)
    assert (status, before) == (0, {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()})
    assert out.replace("It is in out already, made from the same.", "Written to out") == first[1]
    status, _, err = taia(*words, "--mode", "ffn")
    assert status == 1
    assert "holds another result" in err
    assert "--overwrite" in err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "mine.txt").write_text("mine")
    status, _, err = taia(*words, "--mode", "ffn", "--overwrite")
    assert status == 1
    assert "would lose it: mine.txt" in err
    (tmp_path / "out" / "mine.txt").unlink()
    card = tmp_path / "out" / "README.md"
    card.write_text(f"{card.read_text()}\n## Mine\n\nmy words\n")
    assert "It is in out already" in taia(*words)[1]  # an edited card makes no other result
    for mode in ("all", "ffn"):  # edits stay, more than once
        assert taia(*words, "--mode", mode, "--overwrite")[0] == 0
        assert "## Mine\n\nmy words" in card.read_text()
    card.write_text("my words")
    status, _, _ = taia(*words, "--mode", "attention", "--overwrite")
    assert (status, card.read_text()) == (0, "my words")
    assert "The model card stays as it is" in caplog.text
    assert taia(*words, "--mode", "ffn", "--overwrite")[0] == 0
    assert config_of(tmp_path / "out")["target_modules"] == ["down_proj", "gate_proj", "up_proj"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_working_folder_is_not_replaced(pico, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RepositoryError, match="is the working folder"):
        export_adapter(pico.adapter("llama"), ".")
    assert not list(tmp_path.iterdir())


def test_what_appears_meanwhile_is_not_written_over(pico, tmp_path):
    out, calls = tmp_path / "out", []

    def appear(*_):
        if not calls:
            export_adapter(pico.adapter("llama"), out, "ffn")
        calls.append(1)

    with pytest.raises(RepositoryError, match="is not empty"):
        export_adapter(pico.adapter("llama"), out, "attention", progress=appear)

    assert config_of(out)["target_modules"] == ["down_proj", "gate_proj", "up_proj"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(RepositoryError, match="is a file"):
        export_adapter(pico.adapter("llama"), out / CONFIG)


def test_an_empty_folder_or_a_link_to_one_is_taken(pico, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")

    export_adapter(pico.adapter("llama"), tmp_path / "link")

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / CONFIG).is_file()
    (tmp_path / "new").mkdir()
    assert (tmp_path / "real").stat().st_mode == (tmp_path / "new").stat().st_mode


@pytest.mark.parametrize("names", [[], ["../evil"], ["a/b"], ["."], [".hidden"], ["attention", "a b"]])
def test_folders_that_lead_elsewhere_are_refused(pico, names, tmp_path):
    with pytest.raises(ConfigError, match=r"No setting|cannot be that of a sub-folder"):
        export_adapters(pico.adapter("llama"), tmp_path / "in" / "out", dict.fromkeys(names, "attention"))
    assert not list(tmp_path.iterdir())


def test_an_export_does_not_go_into_its_source(pico, tmp_path, monkeypatch):
    source = _copy(pico.adapter("llama"), tmp_path / "source")
    with pytest.raises(RepositoryError, match="lies inside"):
        export_adapter(source, source / "attention")
    monkeypatch.chdir(source)
    result = run(".")

    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in source.iterdir()) == [CONFIG, WEIGHTS]
    assert (tmp_path / "source-attention" / CONFIG).is_file()


def test_a_base_is_named_so_that_it_is_found_from_anywhere(pico, tmp_path, monkeypatch):
    (tmp_path / "b").symlink_to(pico.base("llama"))
    _copy(pico.adapter("llama"), tmp_path / "source", base_model_name_or_path="b")
    monkeypatch.chdir(tmp_path)
    export_adapter("source", "out")

    resolved = str(pico.base("llama").resolve())
    assert config_of(tmp_path / "out")["base_model_name_or_path"] == resolved
    assert f'from_pretrained("{resolved}")' in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("call", [export_adapter, TAIAForCausalLM.export_adapter])
def test_the_keywords_are_those_of_the_options(call):
    shown = inspect.signature(call).parameters
    for field in dataclasses.fields(ExportOptions):
        assert shown[field.name].default == field.default
    assert not any(one.kind is one.VAR_KEYWORD for one in shown.values())


@pytest.mark.parametrize(
    "keywords", [{"rank": 0}, {"rank": True}, {"max_error": 1}, {"max_error": -0.1}, {"engines": ["vlm"]}]
)
def test_arguments_out_of_range_are_refused(pico, keywords, tmp_path):
    with pytest.raises(ConfigError):
        export_adapter(pico.adapter("llama"), tmp_path / "out", **keywords)


def test_another_base_takes_the_place_of_one_that_is_gone(pico, tmp_path, online, repo_id):
    source = _copy(pico.adapter("llama"), tmp_path / "source", base_model_name_or_path=str(tmp_path / "gone"))

    done = run(str(source), "--base", str(pico.base("llama")), "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.exception
    assert config_of(tmp_path / "out")["base_model_name_or_path"] == str(pico.base("llama"))
    export_adapter(pico.adapter("llama"), tmp_path / "expected")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "expected" / WEIGHTS).read_bytes()
    done = run(str(source), "--base", online.base, "--push", repo_id)
    assert done.exit_code == 0, done.exception
    assert ModelCard.load(repo_id).data.base_model == online.base


def test_a_taia_repository_on_another_base_is_published_as_of_that_base(online, repo_id, pico):
    other = f"{repo_id}-base"
    online.api.create_repo(other)
    online.api.upload_folder(repo_id=other, folder_path=pico.base("llama"))
    card = b"---\nlicense: apache-2.0\n---\n# Another base\n"
    online.api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=other)

    done = run(online.taia, "--base", other, "--push", repo_id)
    assert done.exit_code == 0, done.exception
    data = ModelCard.load(repo_id).data
    assert (data.base_model, data.license) == (other, "apache-2.0")
    done = run(online.taia, "--base", str(pico.base("llama")), "--push", f"{repo_id}-folder")
    assert isinstance(done.exception, RepositoryError)
    assert not online.api.repo_exists(f"{repo_id}-folder")
    done = run(online.taia, "--base", " ", "--push", repo_id)
    assert "name is empty" in str(done.exception)


def test_a_base_that_is_gone_is_said(pico, tmp_path):
    source = _copy(pico.adapter("llama"), tmp_path / "source", base_model_name_or_path=str(tmp_path / "gone"))

    with pytest.raises(RepositoryError, match=r"base model.*is no folder here"):
        export_adapter(source, tmp_path / "out")


@pytest.mark.parametrize("damage", ["truncated", "missing", "other"])
def test_a_damaged_adapter_is_refused(pico, damage, tmp_path):
    source = _copy(pico.adapter("llama"), tmp_path / "source")
    whole = (source / WEIGHTS).read_bytes()
    if damage == "truncated":
        (source / WEIGHTS).write_bytes(whole[:-10])
    else:
        tensors = load_file(source / WEIGHTS)
        key = sorted(tensors)[0]
        tensor = tensors.pop(key)
        if damage == "other":
            tensors[key] = tensor[:, :-1].contiguous()
        save_file(tensors, source / WEIGHTS)

    with pytest.raises((RepositoryError, UpdateMismatchError)):
        export_adapter(source, tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(pico, tmp_path, monkeypatch):
    written = []

    def full(file, content):
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(file.write(content))

    monkeypatch.setattr(dense_files, "_write_all", full)
    with pytest.raises(RepositoryError, match="no space is left"):
        export_adapter(pico.adapter("llama"), tmp_path / "out")

    assert not list(tmp_path.iterdir())


def test_an_adapter_that_shrinks_while_it_is_read_is_said(pico, tmp_path, monkeypatch):
    source = _copy(pico.adapter("llama"), tmp_path / "source")
    real = adapter_module.write_tensors

    def shrink(*arguments):
        (source / WEIGHTS).write_bytes(b"")
        return real(*arguments)

    monkeypatch.setattr(adapter_module, "write_tensors", shrink)
    with pytest.raises(RepositoryError, match="ended in the middle of"):
        export_adapter(source, tmp_path / "out")


def test_an_export_that_peft_would_load_in_part_is_not_written(pico, tmp_path, monkeypatch):
    real = adapter_module.planned_tensors
    monkeypatch.setattr(adapter_module, "planned_tensors", lambda *some: list(real(*some))[:-2])

    with pytest.raises(UpdateMismatchError, match="2 tensors are missing"):
        export_adapter(pico.adapter("gpt2"), tmp_path / "out")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{}, {"use_rslora": True, "r": 8}])
def test_verification_sees_a_wrong_scale(pico, options, tmp_path, monkeypatch):
    folder = pico.adapter("llama", pico.lora("llama", **options), f"export-verify-{len(options)}")
    real = adapter_module.adapter_config

    def wrong(*arguments):
        return {**real(*arguments), "lora_alpha": real(*arguments)["lora_alpha"] + 1}

    export_adapter(folder, tmp_path / "right", verify=True)
    monkeypatch.setattr(adapter_module, "adapter_config", wrong)
    with pytest.raises(UpdateMismatchError, match="answers otherwise"):
        export_adapter(folder, tmp_path / "out", verify=True)

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("mode", "difference", "passes"),
    [
        ("attention", 0.0, True),
        ("attention", 1e-9, False),
        ({"attention": 0.3}, 9e-5, True),
        ({"attention": 0.3}, 2e-4, False),
        ({"attention": 0.3}, math.nan, False),
    ],
)
def test_kept_tensors_must_answer_bit_for_bit_and_others_closely(pico, mode, difference, passes, tmp_path, monkeypatch):
    monkeypatch.setattr(adapter_module, "compare_outputs", lambda *_, **__: difference)
    if passes:
        assert "Verified" in export_adapter(pico.adapter("llama"), tmp_path / "out", mode, verify=True).notes[-1]
        return
    with pytest.raises(UpdateMismatchError, match="are not finite" if math.isnan(difference) else "answers otherwise"):
        export_adapter(pico.adapter("llama"), tmp_path / "out", mode, verify=True)
    assert not (tmp_path / "out").exists()


def test_short_writes_are_continued():
    written = bytearray()

    class Slow:
        def write(self, content):
            written.extend(content[:3])
            return len(content[:3])

    dense_files._write_all(Slow(), b"0123456789")
    assert written == b"0123456789"


def test_an_engine_that_refuses_ends_the_export(pico, tmp_path):
    with pytest.raises(UnsupportedUpdateError, match="tgi does not take this export"):
        export_adapter(pico.adapter("gpt2"), tmp_path / "out", engines=["vllm", "tgi"])

    assert not (tmp_path / "out").exists()


def _copy(folder, out, **changes):
    out.mkdir()
    (out / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    (out / CONFIG).write_text(json.dumps({**config_of(folder), **changes}))
    return out


# --- Memory -----------------------------------------------------------------------------------------------------------


def _exported_twice(source, out):
    """Exports factors as they are and scaled; returns the MiB of each file and those that its writing took."""
    marks, real = [], adapter_module.write_tensors

    def measured(*arguments):
        marks.append(peak_memory())
        return real(*arguments)

    adapter_module.write_tensors = measured
    found = []
    for name, mode in (("copied", "attention"), ("computed", {"attention": 1, "ffn": 0.3})):
        report = export_adapter(source, out / name, mode)
        found.append((report.bytes >> 20, (peak_memory() - marks[-1]) >> 20))
    return found


def test_a_large_adapter_takes_little_memory(tmp_path):
    """320 MiB of factors, in a file with holes: what is read must not stay."""
    hidden, rank, layers = 2048, 1024, 4
    config = LlamaConfig(
        vocab_size=64, hidden_size=hidden, intermediate_size=hidden, num_hidden_layers=layers, num_attention_heads=4
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "base")
    names = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj"]
    header, end = {}, 0
    for layer in range(layers):
        for name in names:
            for factor, shape in (("A", [rank, hidden]), ("B", [hidden, rank])):
                size = 4 * rank * hidden
                header[f"base_model.model.model.layers.{layer}.{name}.lora_{factor}.weight"] = {
                    "dtype": "F32",
                    "shape": shape,
                    "data_offsets": [end, end + size],
                }
                end += size
    folder = tmp_path / "adapter"
    LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=[name.rpartition(".")[2] for name in names],
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(tmp_path / "base"),
    ).save_pretrained(folder)
    text = json.dumps(header).encode()
    with (folder / WEIGHTS).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)

    (copied, copying), (computed, computing) = in_a_copy(_exported_twice, folder, tmp_path)
    assert (copied, computed) == (256, 320)
    assert max(copying, computing) < 64, "a tensor has 8 MiB"


# --- Several modes, the command and the Hub ---------------------------------------------------------------------------

cli = typer.Typer()
cli.command()(export)


def run(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_several_modes_are_all_written_or_none(pico, tmp_path):
    reports = export_adapters(pico.adapter("llama"), tmp_path / "out", {"attention": "attention", "all": "all"})

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".taia.json", "README.md", "all", "attention"]
    assert reports["all"].folder == tmp_path / "out" / "all"
    for mode in ("attention", "all"):
        expected = logits(pico.taia("llama"), pico.ids(), inference_modules=mode)
        assert torch.equal(logits(loaded(pico, "llama", tmp_path / "out" / mode), pico.ids()), expected)
    with pytest.raises(UnsupportedUpdateError):
        export_adapters(pico.adapter("mixtral"), tmp_path / "moe", {"attention": "attention", "all": "all"})
    with pytest.raises(UnsupportedUpdateError):
        export_adapters(
            pico.adapter("gpt2"),
            tmp_path / "moe",
            {"attention": "attention", "all": "all"},
            ExportOptions(engines=("tgi",)),
        )
    assert not (tmp_path / "moe").exists()


def test_the_command_writes_one_mode_at_the_root_and_several_in_folders(pico, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = run(pico.adapter("llama"), "--out", "one", "--verify", "--engine", "vllm")
    several = run(pico.adapter("llama"), "--mode", "attention", "--mode", '{"attention": 1, "ffn@0": 0.5}', "--json")

    assert one.exit_code == 0, one.output
    assert (tmp_path / "one" / CONFIG).is_file()
    assert "8 attention modules, rank 4, alpha 6, float32" in one.output
    assert "bit for bit" in one.output
    answer = json.loads(several.stdout)
    assert answer["where"] == "llama-lora-exports"
    assert sorted(answer["exports"]) == ["attention", "attention-1-ffn-0-0.5"]
    assert (tmp_path / "llama-lora-exports" / "attention-1-ffn-0-0.5" / WEIGHTS).is_file()
    assert answer["exports"]["attention"]["engines"]["vllm"] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x", "--push", "own/x"], "do not go together"),
        (["--private"], "are for --push"),
        (["--mode", "all", "--mode", "all"], "comes twice"),
        (["--mode", "{x"], "is no JSON"),
        (["--engine", "vlm"], "Did you mean 'vllm'"),
    ],
)
def test_the_command_refuses_what_does_not_go_together(pico, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(pico.adapter("llama"), *words)

    assert result.exit_code != 0
    assert message in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_a_push_is_one_commit_that_peft_loads(online, repo_id, tmp_path, pico):
    result = run(online.taia, "--push", repo_id, "--mode", "attention")

    assert result.exit_code == 0, result.output
    assert len(online.commits()) == 1
    assert set(online.files(repo_id)) - {"", ".gitattributes"} == {CONFIG, WEIGHTS, "README.md"}
    model = PeftModel.from_pretrained(pico.plain("online-llama"), repo_id).eval()
    expected = logits(TAIAForCausalLM.from_pretrained(online.taia).eval(), pico.ids(), inference_modules="attention")
    assert torch.equal(logits(model, pico.ids()), expected)
    assert model.peft_config["default"].revision == online.base_sha
    card = ModelCard.load(repo_id)
    assert card.data.base_model == online.base
    assert card.data.base_model_relation == "adapter"
    assert {"lora", "taia"} <= set(card.data.tags)
    assert card.data.library_name == "peft"
    assert card.data.license == "other"
    assert card.data.license_name == "pico-1.0"
    assert online.api.model_info(online.taia).sha in card.content
    assert f'"{repo_id}"' in card.content
    again = run(online.taia, "--push", repo_id, "--mode", "all")
    assert again.exit_code == 0
    assert len(online.commits()) == 2


BOTH = {"attention": "attention", "all": "all"}


def collections(online, repo_id):
    return [online.api.get_collection(one.slug) for one in online.api.list_collections(owner=repo_id.split("/")[0])]


@pytest.fixture
def owned():
    """A name of this test's own, whose owner has no collections yet."""
    return f"owner-{next(NUMBERS)}/lora"


def test_several_modes_are_a_repository_each_and_a_collection(online, owned, pico):
    result = run(online.taia, "--push", owned, "--mode", "attention", "--mode", "ffn", "--private")

    assert result.exit_code == 0, result.output
    names = [f"{owned}-attention", f"{owned}-ffn"]
    assert online.commits() == [f"/api/models/{name}/commit/main" for name in names]
    for mode, name, other in zip(("attention", "ffn"), names, reversed(names), strict=True):
        assert set(online.files(name)) - {"", ".gitattributes"} == {CONFIG, WEIGHTS, "README.md"}
        assert online.api.model_info(name).private
        model = PeftModel.from_pretrained(pico.plain("online-llama"), name).eval()
        expected = logits(TAIAForCausalLM.from_pretrained(online.taia).eval(), pico.ids(), inference_modules=mode)
        assert torch.equal(logits(model, pico.ids()), expected)
        card = ModelCard.load(name)
        assert card.data.library_name == "peft"
        assert f"(https://huggingface.co/{other})" in card.content
        assert f"(https://huggingface.co/{name})" not in card.content
    (collection,) = collections(online, owned)
    assert (collection.title, collection.private) == ("lora: modes", True)
    assert [(one.item_id, one.item_type, one.note) for one in collection.items] == [
        (names[0], "model", "The mode attention"),
        (names[1], "model", "The mode ffn"),
    ]
    assert result.stdout.splitlines()[-1] == f"Published {collection.url}"
    assert not online.api.repo_exists(owned)

    before = [online.files(name) for name in names]
    assert run(online.taia, "--push", owned, "--mode", "attention", "--mode", "ffn").exit_code == 0
    assert [online.files(name) for name in names] == before
    assert collections(online, owned) == [collection]
    assert run(online.taia, "--push", owned, "--mode", "all", "--mode", "attention+other").exit_code == 0
    (collection,) = collections(online, owned)
    assert [one.item_id for one in collection.items] == [*names, f"{owned}-all", f"{owned}-attention-other"]


@pytest.mark.parametrize("what", ["second repository", "collection", "item"])
def test_what_fails_in_the_middle_is_completed_by_the_same_command(online, owned, what):
    path = {"second repository": f"{owned}-all/commit", "collection": "/api/collections", "item": "/items"}[what]
    online.hub.fail = lambda method, asked: 403 if method == "POST" and path in asked else None
    with pytest.raises(RepositoryError) as caught:
        push_adapters(online.taia, owned, BOTH)
    online.hub.fail = None
    if what == "second repository":
        assert caught.value.message.startswith(f"{owned}-attention was published, {owned}-all not: ")
    else:
        assert f"{owned}-attention and {owned}-all were published, the collection not: " in caught.value.message
    assert "Then give the same command again: it does what is left." in caught.value.hint
    assert online.api.repo_exists(f"{owned}-all") == (what != "second repository")

    online.hub.requests.clear()
    done = push_adapters(online.taia, owned, BOTH)
    assert len(online.commits()) == (what == "second repository")
    (collection,) = collections(online, owned)
    assert [one.item_id for one in collection.items] == [f"{owned}-attention", f"{owned}-all"]
    assert done.collection == collection.url


def test_what_can_be_known_is_known_before_the_first_is_published(online, owned, monkeypatch):
    online.api.create_repo(f"{owned}-all")
    online.api.upload_file(path_or_fileobj=b"mine", path_in_repo="mine.txt", repo_id=f"{owned}-all")
    online.hub.requests.clear()
    with pytest.raises(RepositoryError, match=f"'{owned}-all' holds something else than exports"):
        push_adapters(online.taia, owned, BOTH)
    with pytest.raises(SettingError, match="masks every update"):
        push_adapters(online.taia, owned, {"attention": "attention", "none": "none"})
    with pytest.raises(RepositoryError, match="neither a folder here nor a Hub id"):
        push_adapters(online.taia, f"own/{'x' * 90}", BOTH)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RepositoryError, match=r"without a token|\(401\)"):
        push_adapters(online.taia, owned, BOTH)
    assert not online.commits()
    assert not online.api.repo_exists(f"{owned}-attention")


def test_a_push_replaces_all_exports_that_were_there(online, repo_id, tmp_path):
    export_adapters(online.taia, tmp_path / "both", BOTH)  # as they lay in one repository once
    online.api.create_repo(repo_id)
    online.api.upload_folder(repo_id=repo_id, folder_path=tmp_path / "both", ignore_patterns=".taia.json")
    push_adapters(online.taia, repo_id, {"": "ffn"})
    assert set(online.files(repo_id)) - {"", ".gitattributes"} == {"README.md", CONFIG, WEIGHTS}


def test_a_push_keeps_what_a_person_wrote_into_the_cards(online, repo_id):
    push_adapters(online.taia, repo_id, BOTH)
    name = f"{repo_id}-all"
    card = Path(hf_hub_download(name, "README.md")).read_bytes() + b"\n## Notes\n\nMINE BELOW\n"
    online.api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=name)

    push_adapters(online.taia, repo_id, {"all": {"attention": 0.5}})
    card = Path(hf_hub_download(name, "README.md")).read_text()
    assert "MINE BELOW" in card
    assert "attention=0.5" in card


def test_a_card_without_our_mark_stays_as_it_is(online, repo_id, caplog):
    push_adapters(online.taia, repo_id, {"": "attention"})
    text = Path(hf_hub_download(repo_id, "README.md")).read_text()
    mine = "\n".join(line for line in text.splitlines() if "taia:card" not in line)
    online.api.upload_file(path_or_fileobj=mine.encode(), path_in_repo="README.md", repo_id=repo_id)

    push_adapters(online.taia, repo_id, {"": "ffn"})
    assert Path(hf_hub_download(repo_id, "README.md")).read_text() == mine
    assert "card stays as it is" in caplog.text


@pytest.mark.parametrize("metadata", ["tags: [taia", "tags: taia", "license: a: b", "", "\ttags: [taia, export, lora]"])
def test_a_card_whose_metadata_cannot_be_read_has_no_tags(tmp_path, metadata):
    card = tmp_path / "README.md"
    card.write_text(f"---\n{metadata}\n---\n# Broken\n")
    assert card_tags(card) == frozenset()


def test_an_adapter_with_a_card_of_its_own_is_no_export_of_ours(online, repo_id):
    online.push_adapter(repo_id)
    card = b"---\ntags: [taia, lora]\n---\n# My adapter\n"
    online.api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=repo_id)
    before = online.files(repo_id)

    with pytest.raises(RepositoryError, match="holds something else than exports"):
        push_adapters(online.taia, repo_id, {"": "attention"})
    assert online.files(repo_id) == before


def test_an_export_does_not_replace_what_it_is_made_of(online, repo_id):
    push_adapters(online.taia, repo_id, {"": "all"})
    before = online.files(repo_id)

    with pytest.raises(RepositoryError, match="is the repository that is exported"):
        push_adapters(repo_id, repo_id, {"": "attention"})
    assert online.files(repo_id) == before


def test_a_commit_that_is_made_meanwhile_stays(online, repo_id):
    push_adapters(online.taia, repo_id, {"": "attention"})
    calls = []

    def meanwhile(*_):
        if not calls:
            online.api.upload_file(path_or_fileobj=b"mine", path_in_repo="mine.txt", repo_id=repo_id)
        calls.append(1)

    with pytest.raises(RepositoryError, match="got another commit"):
        push_adapters(online.taia, repo_id, {"": "all"}, options=ExportOptions(progress=meanwhile))
    assert "mine.txt" in online.files(repo_id)


def test_a_push_over_another_model_is_refused(online, pico, repo_id):
    before = {name: online.files(name) for name in (online.taia, online.adapter, online.base)}
    for name in before:
        with pytest.raises(RepositoryError, match="holds something else than exports"):
            push_adapters(online.taia, name, {"": "attention"})
    with pytest.raises(RepositoryError, match="is a folder on this machine"):
        push_adapters(pico.adapter("llama"), repo_id, {"": "attention"})
    with pytest.raises(SettingError, match="masks every update"):
        push_adapters(online.taia, repo_id, {"": "none"})

    assert not online.commits()
    assert not online.api.repo_exists(repo_id)
    assert {name: online.files(name) for name in before} == before


def test_a_push_that_fails_leaves_no_repository(online, repo_id):
    online.hub.fail = lambda request: 500 if "/commit/" in str(getattr(request, "path", request)) else None
    with pytest.raises(RepositoryError):
        push_adapters(online.taia, repo_id, {"": "attention"})
    online.hub.fail = None

    assert not online.api.repo_exists(repo_id)


def test_the_card_says_what_it_is_and_how_to_load_it(pico, tmp_path):
    folder = pico.adapter("llama", pico.lora("llama", r=24, lora_alpha=24), "export-card")
    export_adapter(folder, tmp_path / "out" / "lora", {"attention": 1, "ffn": 0.5})

    card = (tmp_path / "out" / "lora" / "README.md").read_text()
    assert "`attention=1, ffn=0.5`" in card
    assert "PeftModel.from_pretrained(base," in card
    assert "--enable-lora --max-lora-rank 32 --lora-modules" in card
    assert not Path(str(tmp_path / "out" / "lora" / ".gitkeep")).exists()
    assert ModelCard.load(tmp_path / "out" / "lora" / "README.md").data.library_name == "peft"
