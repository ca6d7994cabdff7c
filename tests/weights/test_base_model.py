"""What a base model is, said before anything is built or asked."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from taia_hub import hub
from taia_hub.errors import ConfigError, MissingDependencyError, OutOfMemoryError, RepositoryError, TAIAError
from taia_hub.repository.loading import load_adapter
from taia_hub.weights.base_model import load_base
from taia_hub.weights.skeleton import skeleton


def source(folder):
    return hub.Source(str(folder), folder, None)


def refused(folder, **options):
    """Returns what is said of a base model, which is the same with its weights and without."""
    said = []
    for load in (
        lambda: skeleton(source(folder), hub.HubAccess(), **options),
        lambda: load_base(source(folder), **options),
    ):
        with pytest.raises(TAIAError) as caught:
            load()
        assert caught.value.hint
        assert len(caught.value.message) < 500 + len(str(folder))
        said.append(str(caught.value))
    assert said[0] == said[1]
    return said[0]


@pytest.fixture
def written(tmp_path):
    """Writes a config.json with these values."""

    def write(**values):
        (tmp_path / "config.json").write_text(json.dumps(values))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("qwen3_vl", "an image-text model"),
        ("llava", "an image-text model"),
        ("t5", "an encoder-decoder"),
        ("wav2vec2", "a speech model"),
        ("vit", "an image model"),
        ("distilbert", "an encoder"),
        ("clip", ""),
    ],
)
def test_what_is_no_causal_language_model_is_named(tmp_path, kind, family):
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    said = refused(tmp_path, what="fine-tune")
    assert said.startswith(
        f"The fine-tune '{tmp_path}' is no language model that transformers can build: it is a {kind}"
    )
    assert f" ({family})," in said or not family
    assert "which AutoModelForCausalLM does not load; TAIA takes causal language models." in said


def test_an_encoder_is_built_without_a_head(written):
    model = skeleton(source(written(model_type="distilbert")), hub.HubAccess(), features_only=True)
    assert type(model).__name__ == "DistilBertModel"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "lama"}, r"does not know its model_type 'lama'. Did you mean 'llama'?"),
        ({}, "its model_type is None"),
        ({"model_type": ["llama"]}, "its model_type is ['llama']"),
        ({"_class_name": "UNet2DConditionModel"}, "a part of a pipeline of diffusers"),
        ({"model_type": "llama", "auto_map": 5}, "auto_map of its config.json is 5"),
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, "no head of a language model"),
        ({"model_type": "qwen3", "architectures": ["Qwen3ForTokenClassification"]}, "no head of a language model"),
        ({"model_type": "llama", "num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"model_type": "llama", "hidden_size": 7, "num_attention_heads": 0}, "ZeroDivisionError"),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_built_is_named_with_its_reason(written, values, said):
    assert said in refused(written(**values))


@pytest.mark.parametrize("kind", ["own", "vit"])
def test_code_of_its_own_is_refused_and_nobody_is_asked(written, monkeypatch, kind):
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail(f"asked: {words}"))
    code = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "org/other--modeling_own.OwnModel"}
    said = refused(written(model_type=kind, auto_map=code))
    assert "code of its own (configuration_own.py, modeling_own.py of org/other)" in said
    assert "--trust-remote-code" in said


def test_code_beside_a_model_that_transformers_knows_does_not_run(pico, written, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail(f"asked: {words}"))
    pico.plain("llama").save_pretrained(folder := written())
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}))
    (folder / "evil.py").write_text("raise SystemExit('it ran')")
    loaded = load_adapter(source(folder), str(pico.adapter("llama")), None, None, "all", options())
    assert type(loaded.model).__name__ == "LlamaForCausalLM"


def options():
    from taia_hub.repository.loading import LoadOptions

    return LoadOptions(hub.HubAccess(), {})


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (ImportError("Loading a GPTQ model requires optimum"), MissingDependencyError, "requires optimum"),
        (RuntimeError("GPU is required to run AWQ quantized model."), ConfigError, "GPU is required"),
        (KeyError("scales"), ConfigError, "KeyError: 'scales'"),
        (AssertionError(), ConfigError, "AssertionError: "),
        (ValueError("x" * 4000), ConfigError, "x…"),
    ],
)
def test_what_a_library_raises_is_said_with_the_way_out_of_quantised_weights(
    pico, written, monkeypatch, raised, kind, said
):
    AutoConfig.from_pretrained(pico.base("llama")).save_pretrained(folder := written())
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "quantization_config": {"quant_method": "gptq"}}))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **kw: (_ for _ in ()).throw(raised))
    with pytest.raises(kind) as caught:
        load_base(source(folder))
    assert said in caught.value.message
    assert "quantised (gptq)" in caught.value.hint
    assert "--base" in caught.value.hint
    assert caught.value.__cause__ is raised


def test_a_full_memory_is_still_one(pico, monkeypatch):
    def full(*args, **keywords):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(OutOfMemoryError):
        load_adapter(str(pico.base("llama")), str(pico.adapter("llama")), None, None, "all", options())


def test_weights_of_other_shapes_than_the_configuration(pico, written):
    pico.plain("llama").save_pretrained(folder := written())
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "intermediate_size": 40}))
    with pytest.raises(ConfigError, match=r"its weights have other shapes than its config\.json says"):
        load_base(source(folder))


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_weights_that_are_missing_are_not_made_up(pico, tmp_path, name):
    """A backbone saved alone has no head; transformers would load another one each time."""
    model = pico.plain(name)
    model.base_model.save_pretrained(tmp_path / "backbone")
    with pytest.raises(RepositoryError, match=r"lacks 1 of its weights, first '(lm_head|embed_out)\.weight'"):
        load_base(source(tmp_path / "backbone"))
    assert load_base(source(tmp_path / "backbone"), features_only=True)
    tensors = {key: value for key, value in model.state_dict().items() if not key.endswith("layers.1.bias")}
    tensors.pop(next(key for key in tensors if "layers.1." in key))
    model.save_pretrained(tmp_path / "gap", state_dict=tensors)
    with pytest.raises(RepositoryError, match=r"first '.*layers\.1\."):
        load_base(source(tmp_path / "gap"))


def test_tied_weights_are_not_missing(pico, tmp_path):
    config = AutoConfig.from_pretrained(pico.base("llama"), tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).base_model.save_pretrained(tmp_path)
    model, info = load_base(source(tmp_path), output_loading_info=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not info["missing_keys"]
