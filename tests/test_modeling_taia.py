"""A loaded model is its base model's class: generation, pipelines, copies, other processes, placement."""

import copy
import functools
import inspect
import json
import multiprocessing
import pickle

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    LlamaForCausalLM,
    LlamaModel,
    TextStreamer,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from taia_hub import TAIAConfig, TAIAForCausalLM, TAIAModel
from taia_hub.errors import ConfigError, TAIAError, UnsupportedUpdateError, UpdateMismatchError
from taia_hub.repository.info import repository_info
from tests.conftest import logits

MODES = ["none", "attention", "ffn", "all"]


def generate(model, ids, **keywords):
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, **keywords}
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)


@pytest.fixture
def model(pico):
    return pico.taia("llama")


@pytest.fixture
def saved(pico, model, tmp_path):
    model.save_pretrained(tmp_path / "model-taia")
    return tmp_path / "model-taia"


# --- What the model is ---------------------------------------------------------------------------------------------
def test_the_model_is_its_base_class(pico, model):
    base = pico.plain("llama")

    assert isinstance(model, TAIAForCausalLM)
    assert isinstance(model, LlamaForCausalLM)
    assert type(model).__name__ == "TAIALlamaForCausalLM"
    assert model.config.to_dict() == base.config.to_dict()
    assert type(model).config_class is type(base.config)
    assert isinstance(model.taia_config, TAIAConfig)
    assert type(pico.taia("llama")) is type(model)
    assert type(model).__doc__ == LlamaForCausalLM.__doc__


@pytest.mark.parametrize("method", ["forward", "generate"])
def test_the_signature_is_the_base_models_with_one_keyword(model, method):
    ours = inspect.signature(getattr(type(model), method)).parameters
    theirs = inspect.signature(getattr(LlamaForCausalLM, method)).parameters

    assert [name for name in ours if name != "inference_modules"] == list(theirs)
    assert ours["inference_modules"].kind is inspect.Parameter.KEYWORD_ONLY
    assert ours["inference_modules"].default is None


def test_a_model_cannot_be_made_from_a_configuration(model):
    with pytest.raises(ConfigError, match="from a configuration alone"):
        AutoModelForCausalLM.from_config(model.taia_config)


def test_labels_give_the_loss_of_the_reference(pico, model):
    ids = pico.ids()
    reference = pico.peft("llama", pico.adapter("llama"))

    with torch.no_grad():
        ours = model(input_ids=ids, labels=ids, inference_modules="all")
        theirs = reference(input_ids=ids, labels=ids)

    assert torch.equal(ours.loss, theirs.loss)


@pytest.mark.parametrize("mode", ["none", "all"])
def test_hidden_states_and_attentions_are_given(pico, mode):
    model, ids = pico.taia("llama", attn_implementation="eager"), pico.ids()
    reference = (
        pico.plain("llama", attn_implementation="eager")
        if mode == "none"
        else pico.peft("llama", pico.adapter("llama"), attn_implementation="eager")
    )
    options = {"input_ids": ids, "output_hidden_states": True, "output_attentions": True}

    with torch.no_grad():
        ours, theirs = model(**options, inference_modules=mode), reference(**options)

    for name in ("hidden_states", "attentions"):
        assert len(ours[name]) == len(theirs[name])
        assert all(torch.equal(one, other) for one, other in zip(ours[name], theirs[name], strict=True))


# --- Generation ----------------------------------------------------------------------------------------------------
STRATEGIES = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 0},
    "beams": {"num_beams": 3},
    "beam_sampling": {"num_beams": 3, "do_sample": True, "top_k": 0},
    "several": {"do_sample": True, "num_return_sequences": 3, "top_k": 0},
    "static_cache": {"cache_implementation": "static"},
    "prompt_lookup": {"prompt_lookup_num_tokens": 2},
    "no_cache": {"use_cache": False},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("mode", MODES)
def test_strategies_give_the_tokens_of_the_reference(pico, model, mode, strategy):
    ids = pico.ids(1)
    folder = pico.adapter("llama") if mode == "all" else mode != "none" and pico.narrowed("llama", mode)
    reference = pico.peft("llama", folder) if folder else pico.plain("llama")

    torch.manual_seed(5)
    ours = generate(model, ids, inference_modules=mode, **STRATEGIES[strategy])
    torch.manual_seed(5)

    assert torch.equal(ours, generate(reference, ids, **STRATEGIES[strategy]))


def test_the_setter_and_the_block_govern_generate(pico, model):
    ids = pico.ids(1)
    expected = {mode: generate(model, ids, inference_modules=mode) for mode in MODES}
    for mode in MODES:
        with model.using(mode):
            assert torch.equal(generate(model, ids), expected[mode])
        model.inference_modules = mode
        assert torch.equal(generate(model, ids), expected[mode])


def test_assisted_generation_with_the_plain_base(pico, model):
    ids = pico.ids(1)

    assisted = generate(model, ids, inference_modules="all", assistant_model=pico.plain("llama"))

    assert torch.equal(assisted, generate(model, ids, inference_modules="all"))


def test_a_streamer_gets_the_tokens(pico, model, tokenizer, capsys):
    ids = pico.ids(1)

    out = generate(model, ids, inference_modules="ffn", streamer=TextStreamer(tokenizer, skip_prompt=True))

    assert capsys.readouterr().out.strip() == tokenizer.decode(out[0, 7:]).strip()


def test_the_pipeline_takes_the_model(model, tokenizer):
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "return_full_text": False}
    ids = tokenizer("the cat", return_tensors="pt").input_ids

    for mode in ("none", "all"):
        text = generator("the cat", inference_modules=mode, **options)[0]["generated_text"]
        expected = generate(model, ids, inference_modules=mode, max_new_tokens=5, min_new_tokens=5)
        assert text == tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)


def test_pipelines_find_the_model_where_they_find_its_base(pico, model, tokenizer, monkeypatch):
    told = []
    monkeypatch.setattr("transformers.pipelines.base.logger.error", told.append)
    TAIAModel.from_adapter(pico.base("llama"), pico.adapter("llama"))

    pipeline("text-generation", model=model, tokenizer=tokenizer)

    assert told == []
    classes = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    assert "TAIALlamaForCausalLM" in classes
    assert "TAIALlamaModel" not in classes  # its base is no language model either
    assert type(AutoModelForCausalLM.from_config(pico.plain("llama").config)) is LlamaForCausalLM
    assert len(list(AutoModelForCausalLM._model_mapping.values())) > 100  # none of them is looked for in vain


def test_trainer_smooths_labels_as_for_the_base(pico, model, tmp_path):
    ids = pico.ids()
    arguments = TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, report_to="none", use_cpu=True)
    model.inference_modules = "none"

    losses = [
        Trainer(one, arguments).compute_loss(one, {"input_ids": ids, "labels": ids.clone()})
        for one in (model, pico.plain("llama"))
    ]
    assert torch.equal(*losses)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("inference_module", "all", "Did you mean 'inference_modules'"),
        ("inferenceModules", "all", "Did you mean 'inference_modules'"),
        ("inference_modes", "all", "Did you mean 'inference_modules'"),
        ("using", "all", "'using' is called, not set"),
        ("fused", "all", "'fused' is called, not set"),
    ],
)
def test_a_misspelt_attribute_is_refused(model, name, value, said):
    with pytest.raises(AttributeError, match=said):
        setattr(model, name, value)
    assert model.inference_modules == "attention"


def test_attributes_of_others_can_be_set(model):
    for name in ("config", "is_parallelizable", "model_tags", "inputs", "mode", "_inference_module", "hf_device_map"):
        before = getattr(model, name, None)
        setattr(model, name, before)
    model.status = functools.partial(model.status)  # as tools wrap methods
    del model.status
    model.extra = torch.nn.Linear(2, 2)
    assert dict(model.named_children())["extra"] is model.extra
    del model.extra


def test_a_misspelt_keyword_is_refused(pico, model):
    for call in (model, model.generate):
        with pytest.raises(TypeError, match="Did you mean 'inference_modules'"):
            call(pico.ids(), inference_module="all")
    with pytest.raises(ConfigError, match="Did you mean 'inference_modules'"):
        TAIAForCausalLM.from_adapter(pico.base("llama"), pico.adapter("llama"), inference_module="all")


def test_a_misspelt_key_of_config_json_is_refused(pico, tmp_path):
    pico.taia("llama").save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["inference_module"] = values.pop("inference_modules")
    (tmp_path / "config.json").write_text(json.dumps(values))
    for read in (TAIAForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained, repository_info):
        with pytest.raises(ConfigError, match="no 'inference_module'"):
            read(str(tmp_path))


def test_the_attention_implementation_can_be_changed(pico, model):
    ids = pico.ids()

    model.set_attn_implementation("eager")

    for mode, reference in {
        "none": pico.plain("llama", attn_implementation="eager"),
        "all": pico.peft("llama", pico.adapter("llama"), attn_implementation="eager"),
    }.items():
        assert torch.equal(logits(model, ids, inference_modules=mode), logits(reference, ids))


# --- The backbone --------------------------------------------------------------------------------------------------
def test_the_backbone_has_the_hidden_states_of_the_head_model(pico, saved):
    ids = pico.ids()
    whole = AutoModelForCausalLM.from_pretrained(saved).eval()
    backbone = AutoModel.from_pretrained(saved).eval()

    assert isinstance(backbone, TAIAModel)
    assert isinstance(backbone, LlamaModel)
    for mode in MODES:
        with torch.no_grad():
            inside = whole(input_ids=ids, output_hidden_states=True, inference_modules=mode).hidden_states
            alone = backbone(input_ids=ids, output_hidden_states=True, inference_modules=mode)
        assert torch.equal(alone.last_hidden_state, inside[-1])
        assert all(torch.equal(one, other) for one, other in zip(alone.hidden_states, inside, strict=True))


def test_the_backbone_switches_and_saves(pico, saved, tmp_path):
    ids = pico.ids()
    backbone = AutoModel.from_pretrained(saved, inference_modules="all").eval()
    expected = {mode: logits(pico.taia("llama"), ids, inference_modules=mode) for mode in MODES}

    assert backbone.inference_modules == "all"
    assert backbone.status().roles["ffn"].acting == 6
    backbone.save_pretrained(tmp_path / "again")

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert again.inference_modules == "attention"
    for mode in MODES:
        assert torch.equal(logits(again, ids, inference_modules=mode), expected[mode])


def test_a_changed_backbone_saves_its_change(pico, saved, tmp_path):
    ids = pico.ids()
    backbone = AutoModel.from_pretrained(saved, is_trainable=True)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                parameter.mul_(2)
        changed = backbone.eval()(input_ids=ids, inference_modules="all").last_hidden_state

    backbone.save_pretrained(tmp_path / "changed")

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "changed", inference_modules="all").eval()
    with torch.no_grad():
        assert torch.equal(again.model(input_ids=ids).last_hidden_state, changed)


@pytest.mark.parametrize(
    ("name", "targets", "task"),
    [
        ("llama", ["q_proj", "up_proj"], "FEATURE_EXTRACTION"),
        ("llama", ["q_proj", "up_proj"], None),
        ("gpt2", ["c_attn", "c_fc"], None),
    ],
)
def test_a_base_without_a_head_takes_its_own_adapters(pico, name, targets, task, tmp_path):
    """An adapter of a backbone names its modules, and says what it is by its task type or by its class."""
    from peft import LoraConfig, PeftModel, get_peft_model

    base = AutoModel.from_pretrained(pico.base(name))
    config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type=task)
    get_peft_model(base, config).save_pretrained(tmp_path / "features")
    reference = PeftModel.from_pretrained(AutoModel.from_pretrained(pico.base(name)), str(tmp_path / "features"))

    model = TAIAModel.from_adapter(pico.base(name), tmp_path / "features", inference_modules="all").eval()

    with torch.no_grad():
        expected = reference.eval()(input_ids=pico.ids()).last_hidden_state
        assert torch.equal(model(input_ids=pico.ids()).last_hidden_state, expected)
    with pytest.raises(TAIAError, match="without a language-modelling head"):
        TAIAForCausalLM.from_adapter(pico.base(name), tmp_path / "features")


# --- Copies and other processes ------------------------------------------------------------------------------------
def through_a_file(model, folder):
    torch.save(model, folder / "model.pt")
    return torch.load(folder / "model.pt", weights_only=False)


COPIES = {
    "deepcopy": lambda model, folder: copy.deepcopy(model),
    "pickle": lambda model, folder: pickle.loads(pickle.dumps(model)),
    "torch.save": through_a_file,
}


@pytest.mark.parametrize("name", ["llama", "mixtral"])
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_has_a_switch_of_its_own(pico, name, how, tmp_path):
    model, ids = pico.taia(name), pico.ids()
    expected = {mode: logits(model, ids, inference_modules=mode) for mode in MODES}

    twin = COPIES[how](model, tmp_path)
    twin.inference_modules = "all"

    assert type(twin) is type(model)
    assert twin._taia_switch is not model._taia_switch
    assert model.inference_modules == "attention"
    assert torch.equal(logits(model, ids), expected["attention"])
    assert torch.equal(logits(twin, ids), expected["all"])
    with model.using("none"):
        assert torch.equal(logits(twin, ids), expected["all"])
    with twin.using("ffn"):
        assert torch.equal(logits(model, ids), expected["attention"])
        assert torch.equal(logits(twin, ids), expected["ffn"])


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_saves_its_own_weights(pico, model, how, tmp_path):
    twin = COPIES[how](model, tmp_path)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if "lora_B" in name:
                parameter.zero_()

    twin.save_pretrained(tmp_path / "twin")
    model.save_pretrained(tmp_path / "model")

    ids = pico.ids()
    plain = logits(pico.plain("llama"), ids)
    for folder, is_plain in (("twin", True), ("model", False)):
        loaded = TAIAForCausalLM.from_pretrained(tmp_path / folder, inference_modules="all").eval()
        assert torch.equal(logits(loaded, ids), plain) == is_plain


def test_a_copy_made_inside_a_block_begins_with_the_setting_of_the_model(pico, model):
    ids = pico.ids()

    with model.using("none"):
        twin = copy.deepcopy(model)
        inside = logits(twin, ids)

    assert twin.inference_modules == "attention"
    assert torch.equal(inside, logits(model, ids))


def test_a_copied_layer_still_obeys_the_model(pico, model):
    """Shallow copies and single layers keep the switch that they belong to."""
    layer = model.model.layers[0].self_attn.q_proj
    x = torch.randn(2, 3, 16)

    with model.using("none"), torch.no_grad():
        assert torch.equal(copy.copy(layer)(x), layer.base_layer(x))


def in_a_child(model, ids, queue):
    with torch.no_grad():
        queue.put({mode: model(input_ids=ids, inference_modules=mode).logits.numpy() for mode in MODES})


@pytest.mark.slow
def test_another_process_gets_the_model(pico, model):
    ids = pico.ids()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()

    child = context.Process(target=in_a_child, args=(model, ids, queue))
    child.start()
    results = queue.get(timeout=120)
    child.join(timeout=60)

    assert child.exitcode == 0
    for mode, result in results.items():
        assert torch.equal(torch.from_numpy(result), logits(model, ids, inference_modules=mode))


def test_share_memory_and_state_dict_round_trip(pico, model):
    ids, other = pico.ids(), pico.taia("llama")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)

    result = other.load_state_dict(model.state_dict())

    assert not result.missing_keys
    assert not result.unexpected_keys
    assert torch.equal(logits(other, ids, inference_modules="all"), logits(model, ids, inference_modules="all"))


# --- Placement and loading keywords --------------------------------------------------------------------------------
def test_keywords_reach_the_base_model(pico, saved):
    model = AutoModelForCausalLM.from_pretrained(
        saved, device_map={"": "cpu"}, dtype=torch.bfloat16, attn_implementation="eager"
    ).eval()
    options = {"dtype": torch.bfloat16, "attn_implementation": "eager", "device_map": {"": "cpu"}}
    ids = pico.ids()

    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert torch.equal(logits(model, ids, inference_modules="none"), logits(pico.plain("llama", **options), ids))
    reference = pico.peft("llama", pico.adapter("llama"), **options)
    assert torch.equal(logits(model, ids, inference_modules="all"), logits(reference, ids))


def test_every_other_keyword_reaches_the_base_model(pico, saved, monkeypatch):
    """Stands for quantisation, whose backends are not installed everywhere: the keyword arrives as it was given."""
    seen = {}
    original = AutoModelForCausalLM.from_pretrained.__func__

    def watched(cls, name, *args, **keywords):
        if str(name) != str(saved):
            seen.update(keywords)
            for key in ("quantization_config", "max_memory"):
                keywords.pop(key)
        return original(cls, name, *args, **keywords)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", classmethod(watched))
    quantization, memory = object(), {"cpu": "1GB"}

    TAIAForCausalLM.from_pretrained(
        saved, quantization_config=quantization, max_memory=memory, local_files_only=True, token="hf_secret"
    )

    assert seen["quantization_config"] is quantization
    assert seen["max_memory"] is memory
    assert seen["local_files_only"] is True
    assert seen["token"] == "hf_secret"
    assert not {"inference_modules", "adapter_kwargs", "verify", "is_trainable"} & set(seen)


PLACES = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head"]


def assert_modes(pico, name, model, device="cpu"):
    ids = pico.ids().to(device)
    assert torch.equal(logits(model, ids, inference_modules="none"), logits(pico.plain(name).to(device), ids))
    for mode, folder in {
        "all": pico.adapter(name),
        "attention": pico.narrowed(name, "attention"),
        "ffn": pico.narrowed(name, "ffn"),
    }.items():
        reference = pico.peft(name, folder).to(device)
        assert torch.equal(logits(model, ids, inference_modules=mode), logits(reference, ids)), mode


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_modes_are_exact_where_weights_are_offloaded(pico, name):
    """accelerate keeps every weight, also the update's, elsewhere and brings it for the time of a call."""
    model = pico.taia(name)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())

    assert_modes(pico, name, model)
    half = logits(pico.taia(name), pico.ids(), inference_modules={"*": 0.5})
    assert torch.equal(logits(model, pico.ids(), inference_modules={"*": 0.5}), half)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_a_device_map_by_layer_is_kept(pico, name):
    places = dict.fromkeys(PLACES, "cpu")

    model = TAIAForCausalLM.from_adapter(pico.base(name), pico.adapter(name), device_map=places).eval()

    assert_modes(pico, name, model)


def test_a_device_map_with_the_disk_is_refused(pico, tmp_path):
    places = {**dict.fromkeys(PLACES, "cpu"), "model.layers.1": "disk"}

    with pytest.raises(UnsupportedUpdateError, match="on the disk"):
        TAIAForCausalLM.from_adapter(
            pico.base("llama"), pico.adapter("llama"), device_map=places, offload_folder=str(tmp_path)
        )


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_layers_offloaded_from_a_gpu_stay_there(pico, name):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    places = {**dict.fromkeys(PLACES, 0), "model.layers.1": "cpu"}

    model = TAIAForCausalLM.from_adapter(pico.base(name), pico.adapter(name), device_map=places).eval()

    assert all(parameter.is_meta for parameter in model.model.layers[1].parameters())
    assert all(parameter.is_cuda for parameter in model.model.layers[0].parameters())
    assert_modes(pico, name, model, "cuda")
    mixed = logits(model, pico.ids(4).cuda(), inference_modules=["none", "none", "attention", "attention"])
    alone = logits(model, pico.ids(4).cuda()[2:], inference_modules="attention")
    torch.testing.assert_close(mixed[2:], alone, rtol=1e-4, atol=1e-4)


def test_moving_and_casting_keeps_the_modes(pico, model):
    ids = pico.ids()
    reference = pico.peft("llama", pico.adapter("llama")).to(torch.float64)

    model.to(torch.float64)

    assert torch.equal(logits(model, ids, inference_modules="all"), logits(reference, ids))
    assert torch.equal(logits(model, ids, inference_modules="none"), logits(pico.plain("llama").to(torch.float64), ids))


def test_loading_for_training_begins_with_every_update(pico, saved):
    model = AutoModelForCausalLM.from_pretrained(saved, is_trainable=True)

    assert model.inference_modules == "all"
    assert model.taia_config.inference_modules == "attention"
    assert {name.split(".")[-3] for name, value in model.named_parameters() if value.requires_grad} == {
        "lora_A",
        "lora_B",
    }


def test_the_setting_to_begin_with_is_not_published(saved, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(saved, inference_modules={"attention": 1, "ffn": 0.5})

    model.save_pretrained(tmp_path / "again")

    assert model.inference_modules == {"attention": 1.0, "ffn": 0.5}
    assert TAIAForCausalLM.from_pretrained(tmp_path / "again").inference_modules == "attention"


def test_the_backbone_of_a_class_without_its_prefix(pico, tmp_path):
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    config = Llama4TextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, intermediate_size_mlp=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_local_experts=2, moe_layers=[],
    )  # fmt: skip
    torch.manual_seed(0)
    base = Llama4ForCausalLM(config)
    base.save_pretrained(tmp_path / "base")
    from peft import get_peft_model

    lora_config = LoraConfig(r=2, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(base, lora_config).save_pretrained(tmp_path / "lora")
    backbone = TAIAModel.from_adapter(tmp_path / "base", tmp_path / "lora")
    head = TAIAForCausalLM.from_adapter(tmp_path / "base", tmp_path / "lora")
    assert not hasattr(backbone, "lm_head")
    ids = pico.ids()
    with torch.no_grad():
        inside = head(ids, output_hidden_states=True).hidden_states[-1]
        assert torch.equal(backbone(ids).last_hidden_state, inside)
    backbone.save_pretrained(tmp_path / "saved", state_dict=backbone.state_dict())
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")(ids).logits, head(ids).logits)


def test_half_a_state_dict_is_not_saved(pico, tmp_path):
    model = pico.taia("llama")
    half = {name: tensor for name, tensor in model.state_dict().items() if "layers.0." in name}
    with pytest.raises(UpdateMismatchError, match="14 of the update's 28"):
        model.save_pretrained(tmp_path / "saved", state_dict=half)
    assert not (tmp_path / "saved").exists()


def test_strict_loading_of_a_state_dict_is_strict(pico):
    model = pico.taia("llama")
    tensors = model._taia_update.parameters()
    first = next(iter(tensors))
    renamed = {("base_model.model.nothing" if name == first else name): value for name, value in tensors.items()}
    with pytest.raises(UpdateMismatchError, match="1 are missing and 1 belong"):
        model.load_state_dict(renamed)
    assert model.load_state_dict(renamed, strict=False).unexpected_keys


def test_options_of_transformers_configurations_reach_the_base(pico, tmp_path):
    pico.taia("llama").save_pretrained(tmp_path / "saved")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_hidden_states=True)
    assert model.config.output_hidden_states
    assert len(model(pico.ids()).hidden_states) == 3
