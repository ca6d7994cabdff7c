"""Trainer trains the update, finds its files again when it resumes, and leaves the base alone."""

import copy
import inspect

import datasets
import pytest
import torch
import trl
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from taia_hub import TAIAForCausalLM
from taia_hub.errors import ConfigError, RepositoryError, UnsupportedUpdateError
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
def repository(saved_copy):
    return saved_copy


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


# --- Pushing -------------------------------------------------------------------------------------------------------
@pytest.fixture
def published(online, tmp_path):
    """A trainable model whose base is on the Hub."""
    return load(online.taia)


@pytest.mark.parametrize("push_to_hub", [False, True])
def test_trainer_pushes_a_repository_that_loads(pico, online, published, tmp_path, repo_id, caplog, push_to_hub):
    options = {"push_to_hub": True, "hub_model_id": repo_id} if push_to_hub else {"hub_model_id": repo_id}
    one = trainer(pico, published, tmp_path / "run", max_steps=2, save_steps=1, **options)
    assert ("pushes the model at the end" in caplog.text) is push_to_hub
    one.train()
    assert not push_to_hub or not online.commits()  # no half a repository meanwhile

    one.push_to_hub()

    loaded = TAIAForCausalLM.from_pretrained(repo_id, inference_modules="all")
    assert torch.equal(logits(loaded, pico.ids()), logits(published, pico.ids()))
    card = (tmp_path / "run" / "README.md").read_text()
    assert "base_model: org/base" in card
    assert "library_name: taia-hub" in card
    assert not [name for name in online.files(repo_id) if "optimizer" in name]


def test_what_trainer_could_not_push_is_refused_when_it_is_made(pico, repository, published, tmp_path, online, repo_id):
    options = {"push_to_hub": True, "hub_model_id": repo_id}
    with pytest.raises(ConfigError, match="hub_strategy='checkpoint'"):
        trainer(pico, published, tmp_path / "run", hub_strategy="checkpoint", **options)
    with pytest.raises(RepositoryError, match="is a folder on this machine"):
        trainer(pico, load(repository), tmp_path / "run", **options)
    with pytest.raises(RepositoryError, match="is a folder on this machine"):
        trainer(pico, load(repository), tmp_path / "run", hub_model_id=repo_id).push_to_hub()
    trainer(pico, pico.plain("llama"), tmp_path / "plain", **options)  # others' models are not concerned

    assert set(online.files(repo_id)) <= {"", ".gitattributes"}


# --- TRL -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["DPO", "KTO", "GRPO", "RLOO"])
def test_a_reference_that_is_not_the_start_is_refused(pico, repository, tmp_path, name):
    options = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "bf16": False}
    if name in ("GRPO", "RLOO"):
        options["beta"] = 0.1
    arguments = getattr(trl, f"{name}Config")(**options)
    rewards = {"reward_funcs": len} if name in ("GRPO", "RLOO") else {}

    with pytest.raises(ConfigError, match="plain base model as the reference") as error:
        getattr(trl, f"{name}Trainer")(model=load(repository), args=arguments, **rewards)

    assert "beta=0.0" in error.value.hint if rewards else "ref_model=copy.deepcopy(model)" in error.value.hint


@pytest.mark.parametrize(("name", "refused"), [("GRPO", False), ("RLOO", True)])
def test_arguments_that_are_not_given_count_by_their_defaults(repository, name, refused):
    model = load(repository)
    trainer = getattr(trl, f"{name}Trainer")
    with pytest.raises((ConfigError, TypeError, ValueError, OSError)) as caught:
        trainer(model, reward_funcs=[object()], train_dataset="nothing")
    assert ("plain base model as the reference" in str(caught.value)) == refused


@pytest.mark.parametrize("is_taia", [True, False])
def test_trl_writes_no_card_over_a_repositorys_own(pico, repository, tokenizer, tmp_path, is_taia):
    model, out = load(repository) if is_taia else pico.plain("llama"), tmp_path / "run"
    arguments = trl.SFTConfig(
        output_dir=str(out), report_to="none", use_cpu=True, bf16=False, disable_tqdm=True, hub_model_id="org/tuned"
    )
    rows = datasets.Dataset.from_list([{"text": "the other one"}])
    one = trl.SFTTrainer(model=model, args=arguments, processing_class=tokenizer, train_dataset=rows)
    model.save_pretrained(out)

    one.create_model_card(model_name="tuned")

    assert ("library_name: taia-hub" in (out / "README.md").read_text()) is is_taia


@pytest.mark.parametrize("way", ["a copy", "computed before"])
def test_the_reference_is_the_start_of_the_update(pico, repository, tokenizer, tmp_path, way):
    model, copied = load(repository), way == "a copy"
    arguments = trl.DPOConfig(
        **{"output_dir": str(tmp_path / "run"), "report_to": "none", "use_cpu": True, "bf16": False, "max_steps": 1},
        **{"logging_steps": 1, "save_strategy": "no", "gradient_checkpointing": False, "disable_tqdm": True},
        precompute_ref_log_probs=not copied,
    )
    rows = [{"prompt": "the ", "chosen": "other one", "rejected": "thing"}] * 4
    one = trl.DPOTrainer(
        model=model,
        ref_model=copy.deepcopy(model) if copied else None,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(rows),
    )

    one.train()

    assert one.state.log_history[0]["loss"] == pytest.approx(0.6931, abs=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["SFT", "DPO"])
def test_trl_takes_the_models_own_tokenizer(pico, repository, tokenizer, tmp_path, name):
    """TRL reads the one of the base, which has another chat template, or none."""
    folder, own = tmp_path / "repository", copy.deepcopy(tokenizer)
    load(repository).save_pretrained(folder)
    own.chat_template = "{% for one in messages %}{{ one['content'] }} ? {% endfor %}"
    own.save_pretrained(folder)
    options = {"output_dir": str(tmp_path / "run"), "report_to": "none", "use_cpu": True, "bf16": False}
    if name == "DPO":
        options["precompute_ref_log_probs"] = True
    rows = [{"prompt": "the ", "chosen": "other", "rejected": "thing"} if name == "DPO" else {"text": "the other"}] * 4

    one = getattr(trl, f"{name}Trainer")(
        load(folder),
        args=getattr(trl, f"{name}Config")(**options),
        train_dataset=datasets.Dataset.from_list(rows),
    )

    assert one.processing_class.chat_template == own.chat_template


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sft_refuses_a_second_adapter_and_a_model_that_is_not_trainable(pico, repository, tokenizer, tmp_path):
    arguments = trl.SFTConfig(
        **{"output_dir": str(tmp_path / "run"), "report_to": "none", "use_cpu": True, "bf16": False, "max_steps": 1},
        **{"disable_tqdm": True, "save_strategy": "no"},
    )
    rest = {"processing_class": tokenizer, "train_dataset": datasets.Dataset.from_list([{"text": "the other"}] * 8)}

    with pytest.raises(UnsupportedUpdateError, match="outside the switch"):
        trl.SFTTrainer(model=load(repository), args=arguments, peft_config=pico.lora("llama"), **rest)
    for model in (str(repository), AutoModelForCausalLM.from_pretrained(repository)):
        with pytest.raises(ConfigError, match="none of its parameters takes gradients"):
            trl.SFTTrainer(model=model, args=arguments, **rest).train()
