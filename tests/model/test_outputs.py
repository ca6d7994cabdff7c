"""`model.export_adapter` and `model.merge`: what a loaded model turns into, also after it was trained on."""

import contextlib

import pytest
import torch
from peft import AdaLoraConfig, PeftModel
from peft.helpers import rescale_adapter_scale
from transformers import AutoModelForCausalLM

from taia_hub import TAIAForCausalLM
from taia_hub.errors import RepositoryError, SettingError, UnsupportedUpdateError


@pytest.fixture
def trained(pico):
    """A model whose update is no longer that of its files."""
    model = pico.taia("llama", is_trainable=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.05)
    return model.eval()


def test_an_export_is_what_the_model_computes(pico, tmp_path):
    model, ids = pico.taia("llama"), pico.ids()
    model.inference_modules = "all"

    report = model.export_adapter(tmp_path / "lora")

    exported = PeftModel.from_pretrained(pico.plain("llama"), tmp_path / "lora").eval()
    assert torch.equal(exported(ids).logits, model(ids, inference_modules="attention").logits)
    assert report.kept
    assert set(report.modules) == {"attention"}
    assert model.inference_modules == "all"


def test_an_export_after_training_holds_the_trained_tensors(pico, trained, tmp_path):
    trained.export_adapter(tmp_path / "lora", "all", verify=False)

    exported = PeftModel.from_pretrained(pico.plain("llama"), tmp_path / "lora").eval()
    ids = pico.ids()
    assert torch.equal(exported(ids).logits, trained(ids, inference_modules="all").logits)
    assert not torch.equal(exported(ids).logits, pico.taia("llama")(ids, inference_modules="all").logits)
    assert "a loaded model" in (tmp_path / "lora/README.md").read_text()


@pytest.mark.parametrize("changed", [False, True])
def test_a_merge_is_what_the_model_computes(pico, trained, tmp_path, changed):
    model, ids = trained if changed else pico.taia("llama"), pico.ids()
    model.generation_config.max_new_tokens = 7

    report = model.merge(tmp_path / "merged", {"attention": 1, "ffn": 0.5})

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    expected = model(ids, inference_modules={"attention": 1, "ffn": 0.5}).logits
    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert set(report.modules) == {"attention", "ffn"}
    assert merged.generation_config.max_new_tokens == 7


def test_an_unchanged_adalora_exports_and_merges(pico, tmp_path):
    """Its scaling is alpha alone: it divides by the rank that is left in each forward."""
    config = AdaLoraConfig(target_modules=["q_proj", "up_proj"], total_step=10, init_r=4, lora_alpha=6)
    pico.adapter("llama", config, "adalora-scaled")
    model, ids = pico.taia("llama", "adalora-scaled"), pico.ids()

    model.export_adapter(tmp_path / "lora")
    model.merge(tmp_path / "merged")

    expected = model(ids).logits
    exported = PeftModel.from_pretrained(pico.plain("llama"), tmp_path / "lora").eval()
    torch.testing.assert_close(exported(ids).logits, expected, rtol=1e-3, atol=1e-4)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-5)
    model.model.layers[0].self_attn.q_proj.scaling["default"] = 1.0
    with pytest.raises(UnsupportedUpdateError, match="was changed to 1"):
        model.merge(tmp_path / "again")


@pytest.mark.parametrize("change", ["one layer", "by PEFT"])
def test_a_scaling_that_no_file_says_is_not_saved(pico, tmp_path, change):
    model = pico.taia("llama")

    scaled = rescale_adapter_scale(model, 0.5) if change == "by PEFT" else contextlib.nullcontext()
    with scaled:
        if change == "one layer":
            model.model.layers[1].mlp.up_proj.scaling["default"] *= 2
        for write in (model.save_pretrained, model.export_adapter, model.merge):
            with pytest.raises(UnsupportedUpdateError, match=r"scaling of .* was changed"):
                write(tmp_path / "new")

    assert not (tmp_path / "new").exists()


def test_a_model_of_the_hub_is_named_on_what_it_turns_into(online, repo_id, tmp_path):
    TAIAForCausalLM.from_adapter("org/base", online.adapter).push_to_hub(repo_id)
    model = TAIAForCausalLM.from_pretrained(repo_id)

    model.export_adapter(tmp_path / "lora")
    model.merge(tmp_path / "merged")

    for card in (tmp_path / "lora/README.md", tmp_path / "merged/README.md"):
        assert repo_id in card.read_text()
        assert "base_model: org/base" in card.read_text()


def test_a_fused_model_is_exported_and_merged_as_an_unfused_one(pico, tmp_path):
    model, ids = pico.taia("llama"), pico.ids()
    expected = model(ids, inference_modules="attention").logits
    with model.fused("all"):
        model.export_adapter(tmp_path / "lora")
        model.merge(tmp_path / "merged")

    exported = PeftModel.from_pretrained(pico.plain("llama"), tmp_path / "lora").eval()
    assert torch.equal(exported(ids).logits, expected)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_bad_input_leaves_nothing(pico, tmp_path):
    model = pico.taia("llama")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for write in (model.export_adapter, model.merge):
        with pytest.raises(RepositoryError, match="not empty"):
            write(tmp_path / "full")
        with pytest.raises(SettingError):
            write(tmp_path / "new", "none")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
