"""Trainer trains the update, finds its files again when it resumes, and leaves the base alone."""

import inspect

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from taia_hub import TAIAForCausalLM
from taia_hub.hub import ADAPTER_WEIGHTS

MODES = ["none", "attention", "ffn", "all"]


class Rows(torch.utils.data.Dataset):
    """Twelve rows of ids with labels, and a column that no model takes."""

    def __init__(self, pico):
        self.ids = pico.ids(12, seed=4)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, row):
        return {"input_ids": self.ids[row], "labels": self.ids[row], "unknown": torch.tensor(row)}


def trainer(pico, model, folder, **options):
    settings = {
        "output_dir": str(folder),
        "max_steps": 6,
        "save_steps": 3,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 1,
        **options,
    }
    return Trainer(model=model, args=TrainingArguments(**settings), train_dataset=Rows(pico), eval_dataset=Rows(pico))


def weights(model, update=True):
    return {name: value.detach().clone() for name, value in model.named_parameters() if ("lora_" in name) == update}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@torch.no_grad()
def logits(model, ids, **keywords):
    return model.eval()(input_ids=ids, **keywords).logits


@pytest.fixture
def repository(pico, tmp_path):
    pico.taia("llama").save_pretrained(tmp_path / "model-taia")
    return tmp_path / "model-taia"


def load(repository, **options):
    return AutoModelForCausalLM.from_pretrained(repository, is_trainable=True, **options)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_the_update_is_trained(pico, repository, tmp_path, checkpointing):
    model = load(repository)
    base, update = weights(model, update=False), weights(model)
    assert model.inference_modules == "all"

    trainer(pico, model, tmp_path / "run", gradient_checkpointing=checkpointing).train()

    assert same(weights(model, update=False), base)
    after = weights(model)
    assert all(not torch.equal(value, update[name]) for name, value in after.items())
    assert model.inference_modules == "all"
    assert {name for name, value in model.named_parameters() if value.requires_grad} == set(after)


def test_checkpointing_gives_the_same_weights(pico, repository, tmp_path):
    results = []
    for checkpointing in (False, True):
        model = load(repository)
        trainer(pico, model, tmp_path / str(checkpointing), gradient_checkpointing=checkpointing).train()
        results.append(weights(model))

    assert same(*results)


def test_training_equals_that_of_peft(pico, repository, tmp_path):
    reference = pico.peft("llama", pico.adapter("llama"))
    for name, parameter in reference.named_parameters():
        parameter.requires_grad_("lora_" in name)
    model = load(repository)

    trainer(pico, model, tmp_path / "ours").train()
    trainer(pico, reference, tmp_path / "theirs").train()

    expected = {name.removeprefix("base_model.model."): value for name, value in weights(reference).items()}
    assert same(weights(model), expected)


def test_a_role_alone_can_be_trained(pico, repository, tmp_path):
    model = load(repository, inference_modules="attention")
    before = weights(model)

    trainer(pico, model, tmp_path / "run").train()

    changed = {"mlp" in name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert changed == {False}


def test_training_resumes_where_it_stopped(pico, repository, tmp_path):
    whole = load(repository)
    trainer(pico, whole, tmp_path / "whole").train()
    broken = load(repository)
    trainer(pico, broken, tmp_path / "run", max_steps=3, lr_scheduler_type="constant").train()
    resumed, straight = load(repository), load(repository)
    trainer(pico, straight, tmp_path / "straight", lr_scheduler_type="constant").train()

    trainer(pico, resumed, tmp_path / "run", lr_scheduler_type="constant").train(resume_from_checkpoint=True)

    assert same(weights(resumed), weights(straight))
    assert not same(weights(broken), weights(straight))
    again = load(repository)
    trainer(pico, again, tmp_path / "whole").train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert same(weights(again), weights(whole))


def test_the_best_model_is_loaded_at_the_end(pico, repository, tmp_path):
    model = load(repository)
    seen = {}

    class Watched(Trainer):
        """Says that the first checkpoint was the best."""

        def evaluate(self, *args, **keywords):
            step = self.state.global_step
            seen[step] = weights(self.model)
            metrics = {"eval_loss": float(step), "epoch": self.state.epoch}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

    usual = trainer(pico, model, tmp_path / "run", eval_strategy="steps", eval_steps=3, load_best_model_at_end=True)
    Watched(model=model, args=usual.args, train_dataset=Rows(pico), eval_dataset=Rows(pico)).train()

    assert same(weights(model), seen[3])
    assert not same(seen[3], seen[6])


def test_a_checkpoint_loads_as_a_repository(pico, repository, tmp_path):
    model = load(repository)
    trainer(pico, model, tmp_path / "run").train()

    saved = TAIAForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-6")

    ids = pico.ids()
    for mode in MODES:
        assert torch.equal(logits(saved, ids, inference_modules=mode), logits(model, ids, inference_modules=mode))
    assert saved.inference_modules == "attention"
    size = (tmp_path / "run" / "checkpoint-6" / "adapter" / ADAPTER_WEIGHTS).stat().st_size
    update = sum(value.numel() * value.element_size() for value in weights(model).values())
    assert update <= size < update + 16_384  # the update alone: the base model is not in it


def test_the_trained_model_saves_through_trainer(pico, repository, tmp_path):
    model = load(repository)
    one = trainer(pico, model, tmp_path / "run", save_strategy="no")
    one.train()

    one.save_model(str(tmp_path / "saved"))

    loaded = TAIAForCausalLM.from_pretrained(tmp_path / "saved", inference_modules="all")
    assert torch.equal(logits(loaded, pico.ids()), logits(model, pico.ids(), inference_modules="all"))
    assert not (tmp_path / "saved" / "model.safetensors").exists()


def test_trainer_keeps_the_columns_that_the_base_model_takes(pico, repository, tmp_path):
    one = trainer(pico, load(repository), tmp_path / "run")
    one._set_signature_columns_if_needed()

    base = inspect.signature(type(pico.plain("llama")).forward).parameters
    assert {"input_ids", "attention_mask", "labels", "position_ids"} <= set(one._signature_columns)
    assert "unknown" not in one._signature_columns
    assert set(base) <= set(one._signature_columns) | {"self"}


def test_evaluation_follows_the_setting(pico, repository, tmp_path):
    model = load(repository)
    one = trainer(pico, model, tmp_path / "run")
    losses = {}
    for mode in MODES:
        with model.using(mode):
            losses[mode] = one.evaluate()["eval_loss"]

    assert len(set(losses.values())) == 4
    plain = trainer(pico, pico.plain("llama"), tmp_path / "plain").evaluate()["eval_loss"]
    assert losses["none"] == plain


def test_experts_are_trained(pico, tmp_path):
    """An update of MoE parameters, whose forward is our own."""
    model = pico.taia("mixtral", is_trainable=True)
    before = weights(model)

    trainer(pico, model, tmp_path / "run").train()

    after = weights(model)
    assert all(not torch.equal(value, before[name]) for name, value in after.items())
    saved = TAIAForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-6", inference_modules="all")
    assert torch.equal(logits(saved, pico.ids()), logits(model, pico.ids()))
