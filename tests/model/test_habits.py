"""PEFT's and transformers' names on a loaded model: each does what it says under the switch, or names our way."""

import copy
import pickle

import pytest
import torch
from peft import (
    LoHaConfig,
    LoraConfig,
    LoraModel,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
    inject_adapter_in_model,
    prepare_model_for_kbit_training,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from taia_hub import TAIAForCausalLM, TAIAModel
from taia_hub.errors import ConfigError, SettingError, TAIAError, UnsupportedUpdateError

MODES = ["none", "attention", "ffn", "all"]


@torch.no_grad()
def logits(model, ids, **keywords):
    return model.eval()(input_ids=ids, **keywords).logits


def outputs(model, ids):
    return {mode: logits(model, ids, inference_modules=mode) for mode in MODES}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def is_ours(model):
    return [name for module in model.modules() for name in module.__dict__ if name.startswith("_taia")]


@pytest.fixture(scope="module")
def finetuned(pico, tmp_path_factory):
    """A full fine-tune of the small Llama, whose every parameter was changed."""
    folder, model = tmp_path_factory.mktemp("tuned"), pico.plain("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


def test_trainable_parameters_are_printed_in_pefts_words(pico, capsys):
    reference = pico.peft("llama", pico.adapter("llama"))
    model, frozen = pico.taia("llama", is_trainable=True), pico.taia("llama")
    for name, parameter in reference.named_parameters():
        parameter.requires_grad_("lora_" in name)

    reference.print_trainable_parameters()
    expected = capsys.readouterr().out
    model.print_trainable_parameters()
    assert capsys.readouterr().out == expected
    assert model.get_nb_trainable_parameters() == reference.get_nb_trainable_parameters()
    assert frozen.get_nb_trainable_parameters()[0] == 0


def test_disabling_is_mode_none(pico):
    model, ids = pico.taia("llama", is_trainable=True), pico.ids()
    expected, trained = outputs(model, ids), [one.requires_grad for one in model.parameters()]

    with model.disable_adapter() as same_model:
        assert same_model is model
        assert torch.equal(logits(model, ids), expected["none"])
    assert torch.equal(logits(model, ids), expected["all"])
    for _ in range(2):
        model.disable_adapters()
    assert model.status().inference_modules == "none"
    assert torch.equal(logits(model, ids), expected["none"])
    for _ in range(2):
        model.enable_adapters()
    assert torch.equal(logits(model, ids), expected["all"])
    model.disable_adapter_layers()
    model.inference_modules = "ffn"
    model.enable_adapter_layers()

    assert model.inference_modules == "ffn"  # what was set meanwhile stays
    assert [one.requires_grad for one in model.parameters()] == trained


def test_disabling_and_enabling_keeps_whole_modules(pico):
    label = "whole-head"
    pico.adapter("llama", pico.lora("llama", modules_to_save=["lm_head"]), label)
    model, ids = pico.taia("llama", label), pico.ids()
    expected = outputs(model, ids)

    model.disable_adapters()
    model.enable_adapters()

    assert same(outputs(model, ids), expected)


def test_the_names_of_adapters_are_read_as_in_peft_and_called_as_in_transformers(pico):
    model = pico.taia("llama")

    assert model.active_adapter == "default"
    assert model.active_adapters == model.active_adapters() == ["default"]
    model.set_adapter("default")
    model.set_adapter(["default"])
    with pytest.raises(UnsupportedUpdateError, match="'other'"):
        model.set_adapter("other")
    assert model.get_base_model() is model
    assert model.active_peft_config is model.peft_config["default"]


def test_the_state_of_layers_is_told_as_by_peft(pico):
    model, reference = pico.taia("llama"), pico.peft("llama", pico.adapter("llama"))

    assert len(model.get_layer_status()) == len(reference.get_layer_status())
    assert model.get_model_status().num_adapter_layers == reference.get_model_status().num_adapter_layers


@pytest.mark.parametrize("call", ["forward", "generate"])
def test_adapters_a_row_are_settings_a_row(pico, call):
    """Without a word the base's forward would pass PEFT's keyword by."""
    model, ids = pico.taia("llama"), pico.ids()

    for names in (["__base__", "default"], ["default", "default"]):
        with pytest.raises(SettingError, match="adapter_names"):
            getattr(model, call)(ids, adapter_names=names)
    assert torch.equal(logits(model, ids, adapter_names=None), logits(model, ids))


SECOND = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
LOHA = LoHaConfig(r=2, target_modules=["lm_head"])


@pytest.mark.parametrize(
    "add",
    [
        lambda model, folder: model.add_adapter(copy.deepcopy(SECOND), "second"),
        lambda model, folder: model.add_adapter(copy.deepcopy(SECOND)),
        lambda model, folder: model.load_adapter(folder, adapter_name="second"),
        lambda model, folder: model.load_adapter(folder),
        lambda model, folder: get_peft_model(model, copy.deepcopy(SECOND)),
        lambda model, folder: get_peft_model(model, copy.deepcopy(SECOND), "second"),
        lambda model, folder: get_peft_model(model, copy.deepcopy(LOHA), "second", mixed=True),
        lambda model, folder: PeftModel.from_pretrained(model, folder),
        lambda model, folder: PeftModel.from_pretrained(model, folder, adapter_name="second"),
        lambda model, folder: inject_adapter_in_model(copy.deepcopy(SECOND), model),
        lambda model, folder: LoraModel(model, copy.deepcopy(SECOND), "second"),
        lambda model, folder: model._taia_update.peft_model.add_adapter("second", copy.deepcopy(SECOND)),
        lambda model, folder: model.delete_adapter("default"),
        lambda model, folder: model.set_adapter("second"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_second_adapter_is_refused_and_nothing_changes(pico, add):
    model, ids = pico.taia("llama"), pico.ids()
    expected, modules = outputs(model, ids), [type(module) for module in model.modules()]

    with pytest.raises(UnsupportedUpdateError) as error:
        add(model, pico.adapter("llama"))

    assert "model" in error.value.hint
    assert [type(module) for module in model.modules()] == modules
    assert list(model.peft_config) == ["default"]
    assert same(outputs(model, ids), expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_full_fine_tune_takes_no_adapter_either(pico, finetuned):
    model = TAIAForCausalLM.from_finetuned(pico.base("llama"), finetuned)

    for add in (lambda: get_peft_model(model, copy.deepcopy(SECOND)), lambda: model.add_adapter(copy.deepcopy(SECOND))):
        with pytest.raises(UnsupportedUpdateError, match="outside the switch"):
            add()


def test_soft_prompts_may_stand_before_a_model(pico):
    """They change no module, so that every mode is what it was."""
    model = get_peft_model(pico.taia("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))

    assert logits(model, pico.ids()).isfinite().all()


def test_copies_and_pickles_keep_the_one_adapter(pico):
    model = pico.taia("llama")

    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert list(other.peft_config) == ["default"]
        with pytest.raises(UnsupportedUpdateError):
            other.peft_config["second"] = SECOND


# --- Merging and unloading -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", MODES)
def test_merging_and_unloading_gives_the_plain_class_with_the_acting_mode(pico, tmp_path, mode):
    model, ids = pico.taia("llama"), pico.ids()
    model.fuse(mode)
    expected = logits(model, ids)
    model.unfuse()
    model.inference_modules = mode
    model.gradient_checkpointing_enable()

    plain = model.merge_and_unload()

    assert plain is model
    assert type(plain) is type(pico.plain("llama"))
    assert not is_ours(plain)
    assert not hasattr(plain, "taia_config")
    assert not hasattr(plain, "peft_config")
    assert torch.equal(logits(plain, ids), expected)
    assert plain.state_dict().keys() == pico.plain("llama").state_dict().keys()
    plain.save_pretrained(tmp_path / "plain")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert torch.equal(logits(again, ids), expected)


def test_the_whole_update_merges_as_by_peft(pico):
    merged = pico.peft("llama", pico.adapter("llama")).merge_and_unload()
    model = pico.taia("llama")

    with model.using("all"):
        model.merge_and_unload(safe_merge=True)

    assert same(model.state_dict(), merged.state_dict())


def test_unloading_gives_the_base(pico):
    model, ids = pico.taia("llama"), pico.ids()

    base = model.unload()

    assert type(base) is type(pico.plain("llama"))
    assert same(base.state_dict(), pico.plain("llama").state_dict())
    assert torch.equal(logits(base, ids), logits(pico.plain("llama"), ids))
    get_peft_model(base, copy.deepcopy(SECOND))  # it may be adapted again


@pytest.mark.parametrize("label", ["whole", "embeddings"])
def test_whole_modules_and_embeddings_are_folded_in(pico, tmp_path, label):
    options = {"whole": {"modules_to_save": ["lm_head"]}, "embeddings": {"target_modules": ["embed_tokens", "q_proj"]}}
    pico.adapter("llama", pico.lora("llama", **options[label]), f"merged-{label}")
    model, ids = pico.taia("llama", f"merged-{label}", inference_modules="all"), pico.ids()
    with model.fused("all"):
        expected = logits(model, ids)

    model.merge_and_unload().save_pretrained(tmp_path)

    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path), ids), expected)


def test_a_full_fine_tune_merges_and_unloads(pico, finetuned):
    ids = pico.ids()
    tuned = AutoModelForCausalLM.from_pretrained(finetuned)
    models = [TAIAForCausalLM.from_finetuned(pico.base("llama"), finetuned) for _ in range(2)]
    with models[0].using("all"):
        assert torch.equal(logits(models[0].merge_and_unload(), ids), logits(tuned, ids))

    assert torch.equal(logits(models[1].unload(), ids), logits(pico.plain("llama"), ids))
    assert not is_ours(models[0]) + is_ours(models[1])


def test_a_backbone_merges_and_unloads(pico, tmp_path):
    pico.taia("llama").save_pretrained(tmp_path)
    model, ids = TAIAModel.from_pretrained(tmp_path, inference_modules="all").eval(), pico.ids()
    model.fuse("all")
    with torch.no_grad():
        expected = model(ids).last_hidden_state
        plain = model.merge_and_unload()
        assert torch.equal(plain(ids).last_hidden_state, expected)
    assert type(plain) is type(pico.plain("llama").model)


def test_what_cannot_be_merged_is_refused_and_stays(pico):
    model, ids = pico.taia("llama"), pico.ids()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.lora_B["default"].weight[0, 0] = float("nan")
    before = logits(model, ids, inference_modules="attention")
    model.inference_modules = "all"

    with pytest.raises(UnsupportedUpdateError, match=r"up_proj\.weight' holds values that are not finite"):
        model.merge_and_unload(safe_merge=True)

    assert model.status().fused is None
    assert torch.equal(logits(model, ids, inference_modules="attention"), before)
    with pytest.raises(UnsupportedUpdateError, match="'other'"):
        model.merge_and_unload(adapter_names=["other"])
    model.fuse("attention")
    with pytest.raises(SettingError, match="fused already"):
        model.unload()


def test_any_error_while_merged_weights_are_looked_at_leaves_the_model_as_it_was(pico, monkeypatch):
    model, ids = pico.taia("llama"), pico.ids()
    before = outputs(model, ids)

    def full(tensor):
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "isfinite", full)
        with pytest.raises(torch.OutOfMemoryError):
            model.merge_and_unload(safe_merge=True)

    assert same(outputs(model, ids), before)


def test_merging_an_adapter_is_fusing(pico):
    model, ids = pico.taia("llama"), pico.ids()
    expected = logits(model, ids)

    model.merge_adapter()
    assert model.status().fused == "attention"
    model.unmerge_adapter()

    assert model.status().fused is None
    assert torch.equal(logits(model, ids), expected)


# --- Training ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("way", ["loaded for inference", "frozen by PEFT", "checkpointing"])
def test_a_training_step_that_could_train_nothing_says_so(pico, way):
    model, ids = pico.taia("llama", is_trainable=way == "frozen by PEFT"), pico.ids()
    if way == "frozen by PEFT":
        prepare_model_for_kbit_training(model)
    if way == "checkpointing":
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()

    with pytest.raises(ConfigError, match="none of its parameters takes gradients") as error:
        model.train()(input_ids=ids, labels=ids)

    assert isinstance(error.value, TAIAError)
    assert "is_trainable=True" in error.value.hint
    with torch.no_grad():
        model(input_ids=ids)
    model.eval()(input_ids=ids)
    model.train().generate(ids, max_new_tokens=1)
    model(inputs_embeds=torch.zeros(1, 2, 16, requires_grad=True)).logits.sum().backward()


# --- Loading -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("auto", [TAIAForCausalLM, AutoModelForCausalLM])
def test_what_transformers_says_of_loading_comes_along(pico, tmp_path, auto):
    pico.taia("llama").save_pretrained(tmp_path)

    model, info = auto.from_pretrained(tmp_path, output_loading_info=True)

    assert not info["missing_keys"]
    assert torch.equal(logits(model, pico.ids()), logits(pico.taia("llama"), pico.ids()))
    other, told = TAIAForCausalLM.from_adapter(pico.base("llama"), pico.adapter("llama"), output_loading_info=True)
    assert type(other) is type(model)
    assert told.keys() == info.keys()


@pytest.mark.parametrize("auto", [AutoModelForSequenceClassification, AutoModelForTokenClassification])
def test_other_heads_are_refused_with_a_sentence(pico, tmp_path, auto):
    pico.taia("llama").save_pretrained(tmp_path)

    with pytest.raises(UnsupportedUpdateError, match="has no other head"):
        auto.from_pretrained(tmp_path)
    with pytest.raises(UnsupportedUpdateError, match="has no other head"):
        auto.from_config(AutoConfig.from_pretrained(tmp_path))
