"""Training and publishing of the demo, with a random base model."""

import dataclasses
import math

import pytest
import torch
from peft import PeftConfig
from safetensors.torch import load_file

from taia_hub import TAIAForCausalLM
from taia_hub.demo import inputs as demo_inputs
from taia_hub.demo import stages
from taia_hub.demo.evaluation import mode_table
from taia_hub.demo.inputs import Inputs, find_inputs
from taia_hub.demo.losses import MODES
from taia_hub.demo.report import DemoReport
from taia_hub.errors import RepositoryError
from tests.demo.conftest import ITEMS

INPUTS = Inputs("org/tiny", None, None, ("x",), "medical", tuple(ITEMS * 6), {}, ())


def _train(base, folder, steps=3, seed=0, inputs=INPUTS):
    told = []
    folder.mkdir(exist_ok=True)
    made = stages.train_model(
        base, folder, inputs, steps=steps, seed=seed, progress=lambda *counts: told.append(counts)
    )
    assert made.folder == folder / "model"
    tensors = load_file(made.folder / "adapter" / "adapter_model.safetensors")
    return [counts for counts in told if counts[0] == "training"], tensors, made.is_new


def test_training_is_deterministic_and_used_again(chat_base, tmp_path):
    steps, first, is_new = _train(chat_base, tmp_path / "one")
    assert steps == [("training", done, 3) for done in (1, 2, 3)]
    assert is_new
    _, other, _ = _train(chat_base, tmp_path / "two")
    assert all(torch.equal(tensor, other[name]) for name, tensor in first.items())
    again, same, is_new = _train(chat_base, tmp_path / "one")
    assert (again, is_new) == ([], False)
    assert all(torch.equal(tensor, same[name]) for name, tensor in first.items())
    steps, other, _ = _train(chat_base, tmp_path / "one", seed=1)
    assert len(steps) == 3
    assert not all(torch.equal(tensor, other[name]) for name, tensor in first.items())


@pytest.mark.parametrize("change", ["items", "base"])
def test_other_inputs_are_trained_anew(chat_base, tmp_path, change):
    _train(chat_base, tmp_path / "one", steps=1)
    inputs = INPUTS
    if change == "items":
        inputs = dataclasses.replace(INPUTS, training=tuple(ITEMS[:2] * 6))
    else:  # unpacked again
        (chat_base / "config.json").write_text((chat_base / "config.json").read_text() + "\n")
    assert _train(chat_base, tmp_path / "one", steps=1, inputs=inputs)[2]


def test_a_model_that_is_not_the_demos_stays(chat_base, tmp_path):
    (tmp_path / "demo" / "model").mkdir(parents=True)
    (tmp_path / "demo" / "model" / "mine.txt").write_text("mine")
    for seed in (0, 1):
        with pytest.raises(RepositoryError, match=r"something else already \(mine"):
            _train(chat_base, tmp_path / "demo", seed=seed)
    assert (tmp_path / "demo" / "model" / "mine.txt").read_text() == "mine"


def test_adapter_names_its_base_and_adapts_every_linear_layer(chat_base, tmp_path):
    tensors = _train(chat_base, tmp_path / "demo", steps=1)[1]
    config = PeftConfig.from_pretrained(str(tmp_path / "demo" / "model" / "adapter"))
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (16, 32, str(chat_base))
    expected = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.rpartition(".")[2] for name in config.target_modules} == expected
    assert all(tensor.any() for tensor in tensors.values())


def test_training_lowers_the_loss(chat_base, chat_tokenizer, tmp_path):
    _train(chat_base, tmp_path / "demo", steps=60)
    model = TAIAForCausalLM.from_pretrained(tmp_path / "demo" / "model")
    table = mode_table(model, chat_tokenizer, {"trained": ITEMS})
    assert table[0].differences["all", "none"].value < -0.5


def test_publishing_twice_is_no_error(online, chat_base, tmp_path):
    _train(chat_base, tmp_path / "demo", steps=1)
    for _ in range(2):
        stages.publish_base(chat_base, "demo/tiny-twice")
        stages.publish_model(tmp_path / "demo" / "model", "demo/tiny-twice", "demo/tiny-twice-taia")
    model = TAIAForCausalLM.from_pretrained("demo/tiny-twice-taia")
    assert model.taia_config.base_model_name_or_path == "demo/tiny-twice"
    assert "taia_training.json" in online.api.list_repo_files("demo/tiny-twice-taia")


@pytest.mark.slow
def test_the_real_model_goes_through_all_stages(online, smollm2, tmp_path, monkeypatch):
    """SmolLM2 as the demo has it, for two steps and two items a domain: up to the report and its pages."""
    monkeypatch.setattr(stages, "ANSWER_TOKENS", 4)
    for module in (stages, demo_inputs):
        monkeypatch.setattr(module, "MAX_LENGTH", 64)
    folder, said = tmp_path / "demo", []
    folder.mkdir()
    (folder / "base").symlink_to(smollm2)
    inputs = find_inputs(folder, steps=2, items=2, seed=0)
    report = stages.run_stages(folder, inputs, steps=2, seed=0, log=said.append, progress=lambda *_: None)
    assert "  It is there already and used again." in said
    assert [(one.domain, one.items) for one in report.domains] == [("medical", 2), ("maths", 2), ("instructions", 2)]
    assert set(report.answers) == set(MODES)
    for one in report.domains:
        losses = {mode: one.losses[mode].value for mode in MODES}
        assert all(map(math.isfinite, losses.values())), losses
        assert losses["all"] != losses["none"] != losses["attention"] != losses["all"]
        assert losses["none"] < 5  # of a model that can read
    assert all(path.stat().st_size > 1000 for path in report.pages.values())
    assert DemoReport.from_json(report.to_json()) == report
