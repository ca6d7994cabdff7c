"""The difference of a full fine-tune as a LoRA: exact where it is of low rank, and honest where it is not."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from taia_hub.errors import ConfigError, RepositoryError, UpdateMismatchError
from taia_hub.updates.dense import compressing
from taia_hub.updates.dense.compressing import compress, truncate
from taia_hub.updates.dense.difference import write_dense


def tune(pico, name, folder, rank, matches=("attn", "attention", "mlp"), seed=1, scale=0.1):
    """Saves a fine-tune whose linear layers of some names differ by matrices of a rank, or by any where it is None."""
    model = pico.plain(name)
    torch.manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 2 and any(match in key for match in matches):
                m, n = parameter.shape
                delta = torch.randn(m, n) if rank is None else torch.randn(m, rank) @ torch.randn(rank, n)
                parameter.add_(scale * delta)
    model.save_pretrained(folder)
    return model.eval()


def loaded(pico, name, adapter: Path):
    return PeftModel.from_pretrained(pico.plain(name), str(adapter)).eval()


@torch.no_grad()
def logits(model, ids):
    return model(ids).logits


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox"])
def test_a_difference_of_low_rank_is_recovered(pico, tmp_path, name):
    matches = ("attn.", "attention.", "mlp.", "fc1", "fc2")
    tuned = tune(pico, name, tmp_path / "tuned", 3, matches)
    report = compress(pico.base(name), tmp_path / "tuned", tmp_path / "lora", rank=3, base_name="org/base")
    ids = pico.ids()
    model = loaded(pico, name, tmp_path / "lora")
    torch.testing.assert_close(logits(model, ids), logits(tuned, ids), atol=1e-4, rtol=1e-4)
    assert (logits(pico.plain(name), ids) - logits(tuned, ids)).abs().max() > 0.1
    assert set(report.roles) == {"attention", "ffn"}
    assert all(role.relative_error < 1e-5 and role.ranks == (3, 3) for role in report.roles.values())
    assert report.left_out == ()
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (3, 3, {})
    assert config["fan_in_fan_out"] is (name == "gpt2")
    assert config["base_model_name_or_path"] == "org/base"
    assert len(config["target_modules"]) <= 8  # short names, because every layer of a name is meant
    parameters = sum(tensor.numel() for tensor in load_file(tmp_path / "lora" / "adapter_model.safetensors").values())
    assert parameters == sum(role.parameters for role in report.roles.values())


def test_ranks_by_role_keep_the_scale(pico, tmp_path):
    tuned = tune(pico, "llama", tmp_path / "tuned", 4)
    report = compress(pico.base("llama"), tmp_path / "tuned", tmp_path / "lora", rank={"attention": 6, "ffn": 4})
    assert report.roles["attention"].ranks == (6, 6)
    assert report.roles["ffn"].ranks == (4, 4)
    ids = pico.ids()
    torch.testing.assert_close(
        logits(loaded(pico, "llama", tmp_path / "lora"), ids), logits(tuned, ids), atol=1e-4, rtol=1e-4
    )
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 6
    assert len(config["rank_pattern"]) == 6
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert set(config["rank_pattern"].values()) == {4}


@torch.no_grad()
def test_the_reported_error_is_that_of_the_best_product(pico, tmp_path):
    tuned = tune(pico, "llama", tmp_path / "tuned", None)
    report = compress(pico.base("llama"), tmp_path / "tuned", tmp_path / "lora", rank=5)
    base = pico.plain("llama")
    lost = whole = 0.0
    for one in report.modules:
        delta = tuned.get_submodule(one.path).weight - base.get_submodule(one.path).weight
        values = torch.linalg.svdvals(delta)
        best = float(values[5:].norm() / values.norm())
        assert one.relative_error == pytest.approx(best, rel=1e-4)
        if one.role == "ffn":
            lost, whole = lost + float(values[5:].square().sum()), whole + float(values.square().sum())
    assert report.roles["ffn"].relative_error == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    worst = report.worst(2)
    assert worst[0].relative_error == max(one.relative_error for one in report.modules)
    merged = loaded(pico, "llama", tmp_path / "lora").merge_and_unload()
    one = report.modules[0]
    delta = tuned.get_submodule(one.path).weight - base.get_submodule(one.path).weight
    kept = merged.get_submodule(one.path).weight - base.get_submodule(one.path).weight
    assert float((delta - kept).norm() / delta.norm()) == pytest.approx(one.relative_error, rel=1e-3)


def test_an_energy_share_takes_the_lowest_rank_that_keeps_it(pico, tmp_path):
    tune(pico, "llama", tmp_path / "tuned", None)
    tuned, base = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned"), pico.plain("llama")
    report = compress(pico.base("llama"), tmp_path / "tuned", tmp_path / "lora", energy={"attention": 0.8})
    assert {one.role for one in report.modules} == {"attention"}
    assert len({one.rank for one in report.modules}) > 1
    for one in report.modules:
        values = torch.linalg.svdvals(
            tuned.get_submodule(one.path).weight - base.get_submodule(one.path).weight
        ).square()
        share = values.cumsum(0) / values.sum()
        assert share[one.rank - 1] >= 0.8
        assert one.rank == 1 or share[one.rank - 2] < 0.8
    assert report.roles["ffn"].modules == 0
    assert report.roles["ffn"].total_error == 1
    assert {one.reason for one in report.left_out} == {"of role ffn, for which no rank or energy was given"}
    bounded = compress(pico.base("llama"), tmp_path / "tuned", tmp_path / "bounded", rank=2, energy=0.8)
    assert {one.rank for one in bounded.modules} == {2}
    assert loaded(pico, "llama", tmp_path / "lora") is not None


def test_what_cannot_be_compressed_is_reported(pico, tmp_path):
    model = pico.plain("gpt2")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "tuned")
    report = compress(pico.base("gpt2"), tmp_path / "tuned", tmp_path / "lora", rank=4)
    reasons = {one.name: one.reason for one in report.left_out}
    assert "Embedding" in reasons["transformer.wte.weight"]
    assert "tied" in reasons["lm_head.weight"]
    assert "LayerNorm" in reasons["transformer.ln_f.weight"]
    assert "a bias" in reasons["transformer.h.0.mlp.c_fc.bias"]
    assert len(report.modules) == 8
    assert report.roles["other"].modules == 0
    text = report.to_text()
    assert "other: no modules" in text
    assert "tied to another tensor" in text
    assert report.roles["attention"].total_error > report.roles["attention"].relative_error


def test_experts_are_left_out(pico, tmp_path):
    tune(pico, "qwen3_moe", tmp_path / "attention", 2, ("self_attn",))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "attention")
    with torch.no_grad():
        model.model.layers[0].mlp.experts.down_proj.add_(1)
    model.save_pretrained(tmp_path / "tuned")
    report = compress(pico.base("qwen3_moe"), tmp_path / "tuned", tmp_path / "lora", rank=2)
    assert [one.name for one in report.left_out] == ["model.layers.0.mlp.experts.down_proj"]
    assert "of experts" in report.left_out[0].reason
    assert report.roles["attention"].relative_error < 1e-5


def test_a_dense_update_is_compressed_as_the_fine_tune_is(pico, tmp_path):
    tune(pico, "llama", tmp_path / "tuned", None)
    write_dense(pico.base("llama"), tmp_path / "tuned", tmp_path / "dense")
    compress(pico.base("llama"), tmp_path / "tuned", tmp_path / "one", rank=4)
    compress(pico.base("llama"), tmp_path / "dense", tmp_path / "other", rank=4)
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "other"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("rank", "energy"), [(8, None), (None, 0.999), (40, 0.999)])
def test_large_matrices_are_near_the_optimum(rank, energy):
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(1100, 64))[0], torch.linalg.qr(torch.randn(1200, 64))[0]
    values = 0.8 ** torch.arange(64)
    delta = (left * values) @ right.T
    state = torch.random.get_rng_state()
    b, a = truncate(delta, rank, energy)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert compressing._EXACT_SIDE < 1100
    count = rank if energy is None else int((values.square().cumsum(0) / values.square().sum() < 0.999).sum()) + 1
    assert b.shape == (1100, count)
    assert a.shape == (count, 1200)
    best = float(values[count:].norm())
    assert float((delta - b @ a).norm()) == pytest.approx(best, rel=1e-2)
    torch.testing.assert_close(b.norm(), a.norm())


@pytest.mark.parametrize(
    ("keywords", "match"),
    [
        ({}, "Neither a rank nor an energy"),
        ({"rank": 0}, "rank for attention is 0"),
        ({"rank": True}, "rank for attention is True"),
        ({"rank": {"atention": 4}}, "Did you mean 'attention'"),
        ({"energy": 1.5}, r"share for attention is 1\.5"),
        ({"energy": {"ffn": 0}}, "share for ffn is 0"),
    ],
)
def test_wrong_limits_are_refused(pico, tmp_path, keywords, match):
    with pytest.raises(ConfigError, match=match):
        compress(pico.base("llama"), pico.base("llama"), tmp_path / "lora", **keywords)


def test_nothing_to_compress_is_an_error(pico, tmp_path):
    tune(pico, "llama", tmp_path / "tuned", None, ("mlp",))
    with pytest.raises(UpdateMismatchError, match="of role ffn"):
        compress(pico.base("llama"), tmp_path / "tuned", tmp_path / "lora", rank={"attention": 4})
    assert not (tmp_path / "lora").exists()
    compress(pico.base("llama"), tmp_path / "tuned", tmp_path / "lora", rank=4)
    with pytest.raises(RepositoryError, match="holds an adapter already"):
        compress(pico.base("llama"), tmp_path / "tuned", tmp_path / "lora", rank=4)
