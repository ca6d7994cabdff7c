import copy
import json
import pickle
import random

import pytest
from transformers import AutoConfig
from transformers import logging as transformers_logging

from taia_hub import TAIAConfig, configuration_taia
from taia_hub.errors import ConfigError, SettingError, TAIAError
from tests.switch.test_settings import random_setting

SHA = "0123456789abcdef0123456789abcdef01234567"


def config(**values):
    return TAIAConfig(base_model_name_or_path="org/base", base_model_revision=SHA, **values)


def written(folder, **values):
    """Writes a config.json by hand."""
    base = {"model_type": "taia", "base_model_name_or_path": "org/base", "base_model_revision": SHA}
    (folder / "config.json").write_text(json.dumps({**base, **values}))
    return folder


# What is stored


def test_the_defaults_are_taia_and_an_adapter_folder():
    default = TAIAConfig()
    assert default.inference_modules == "attention"
    assert default.update == {"kind": "peft", "path": "adapter"}
    assert default.model_type == "taia"


def test_two_configurations_do_not_share_an_update():
    one = TAIAConfig()
    one.update["path"] = "elsewhere"
    assert TAIAConfig().update["path"] == "adapter"


def test_pairs_keep_their_order_in_the_file(tmp_path):
    given = {"other": 1, "ffn": -0.5, "*@0-3": [0.25, 1], "allow_extrapolation": True}
    config(inference_modules=given).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    pairs = [["other", 1.0], ["ffn", -0.5], ["*@0-3", [0.25, 1.0]], ["allow_extrapolation", True]]
    assert stored["inference_modules"] == pairs
    assert list(stored) == sorted(stored)  # transformers sorts keys: the reason why pairs are stored
    assert list(TAIAConfig.from_pretrained(tmp_path).setting.value) == list(given)


@pytest.mark.parametrize("seed", range(100))
def test_random_settings_survive_a_file(seed, tmp_path):
    value = random_setting(random.Random(seed))
    config(inference_modules=value).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is TAIAConfig
    assert loaded.setting.value == value
    assert loaded.to_dict() == TAIAConfig.from_dict(json.loads(loaded.to_json_string(use_diff=False))).to_dict()


def test_a_pointer_survives_a_file(tmp_path):
    update = {"kind": "peft", "path": "", "repo": "org/adapter", "revision": SHA}
    config(update=update).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).update == update


def test_saving_says_nothing_of_its_own_paths(tmp_path):
    config().save_pretrained(tmp_path)
    assert str(tmp_path) not in (tmp_path / "config.json").read_text()


def test_a_requested_setting_is_not_what_the_file_publishes(tmp_path):
    config(inference_modules={"attention": 1, "ffn": 0.5}).save_pretrained(tmp_path)
    loaded, unused = AutoConfig.from_pretrained(tmp_path, inference_modules="all", return_unused_kwargs=True)
    assert loaded.inference_modules == [["attention", 1.0], ["ffn", 0.5]]
    assert unused["inference_modules"] == "all"


def test_no_remote_code_is_recorded_after_a_trusted_load(tmp_path):
    TAIAConfig.register_for_auto_class()
    assert getattr(TAIAConfig, "_auto_class", None) is None
    config().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


# What is refused


@pytest.mark.parametrize("name", ["base_model_name_or_path", "base_model_revision"])
@pytest.mark.parametrize("value", [3, True, ["org/base"], {"id": "org/base"}, "", " "])
def test_the_base_is_a_text(tmp_path, name, value):
    with pytest.raises(ConfigError, match=name) as caught:
        AutoConfig.from_pretrained(written(tmp_path, **{name: value}))
    assert repr(value) in caught.value.message
    assert "taia create" in caught.value.hint


@pytest.mark.parametrize(
    "value", ["atention", "", 3, None, True, ["attention"], [["atention@1", 1]], [["ffn", 2]], [["ffn"]], {"ffn": "x"}]
)
def test_the_published_setting_is_a_setting(tmp_path, value):
    with pytest.raises(SettingError, match=r"inference_modules of config.json") as caught:
        AutoConfig.from_pretrained(written(tmp_path, inference_modules=value))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ("adapter", "must be a mapping"),
        (["adapter"], "must be a mapping"),
        ({}, "update.kind is None"),
        ({"path": "adapter"}, "update.kind is None"),
        ({"kind": "lora", "path": "adapter"}, "update.kind is 'lora'.*reads peft"),
        ({"kind": ["peft"], "path": "adapter"}, "update.kind is"),
        ({"kind": "peft"}, "update.path is missing"),
        ({"kind": "peft", "path": ""}, "update.path is missing"),
        ({"kind": "peft", "path": None}, "update.path is None"),
        ({"kind": "peft", "path": 3}, "update.path is 3"),
        ({"kind": "peft", "path": "x" * 5000}, "update.path is 'xxx"),
        ({"kind": "peft", "path": "adapter", "repos": "org/x"}, "unknown keys.*repos"),
        ({"kind": "peft", "path": "", "repo": 3, "revision": SHA}, "update.repo is 3"),
        ({"kind": "peft", "path": "", "repo": "", "revision": SHA}, "update.repo is ''"),
        ({"kind": "peft", "path": "", "repo": "org/x"}, "update.revision is None.*commit sha"),
        ({"kind": "peft", "path": "", "repo": "org/x", "revision": "main"}, "update.revision is 'main'.*commit sha"),
        ({"kind": "peft", "path": "", "repo": "../x", "revision": SHA}, "update.repo is '../x'"),
        ({"kind": "peft", "path": "", "repo": "/etc", "revision": SHA}, "update.repo is '/etc'"),
    ],
)
def test_the_update_is_where_it_may_be(tmp_path, update, message):
    with pytest.raises(ConfigError, match=message) as caught:
        AutoConfig.from_pretrained(written(tmp_path, update=update))
    assert caught.value.hint


@pytest.mark.parametrize(
    "path",
    ["..", "../x", "adapter/../../x", "/etc", "\\etc", "..\\x", "a\\..\\..\\x", "C:/x", "C:\\x", "~/x", "a*", "."],
)
def test_the_update_does_not_leave_the_repository(tmp_path, path):
    with pytest.raises(ConfigError, match="folder inside the repository") as caught:
        AutoConfig.from_pretrained(written(tmp_path, update={"kind": "peft", "path": path}))
    assert repr(path) in caught.value.message


@pytest.mark.parametrize("path", ["adapter", "a/b", "my adapter", "v1.0"])
def test_other_folders_are_fine(tmp_path, path):
    assert AutoConfig.from_pretrained(written(tmp_path, update={"kind": "peft", "path": path})).update["path"] == path


def test_errors_are_of_one_family_and_builtin():
    with pytest.raises(TAIAError):
        config(update=3)
    with pytest.raises(ValueError, match="update is 3"):
        config(update=3)


def test_nothing_is_warned_of(tmp_path, capfd):
    transformers_logging.set_verbosity_info()
    try:
        config().save_pretrained(tmp_path)
        AutoConfig.from_pretrained(tmp_path)
    finally:
        transformers_logging.set_verbosity_warning()
    assert "warn" not in capfd.readouterr().err.lower()


def test_the_published_setting_keeps_its_order_however_it_is_set(pico, tmp_path):
    model = pico.taia("llama")
    model.taia_config.inference_modules = {"model.layers.1.*": 1, "attention": 0}
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["inference_modules"] == [
        ["model.layers.1.*", 1.0],
        ["attention", 0.0],
    ]
    with pytest.raises(SettingError, match="Did you mean 'attention'"):
        model.taia_config.inference_modules = "atention"


def test_a_base_model_is_fixed_by_a_sha():
    with pytest.raises(ConfigError, match="commit sha"):
        TAIAConfig(base_model_name_or_path="org/base", base_model_revision="main")


# What the base answers


SIZES = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 128, "eos_token_id": 2}


def test_sizes_and_token_ids_are_those_of_the_base_at_its_commit(online):
    loaded = AutoConfig.from_pretrained(online.taia)
    asked = len(online.hub.requests)
    assert loaded.model_type == "taia"

    assert {name: getattr(loaded, name) for name in SIZES} == SIZES
    assert len(online.hub.requests) - asked <= 2  # the base's configuration, once
    assert loaded.num_key_value_heads == 1
    assert loaded.get_text_config() is loaded
    assert not SIZES.keys() & loaded.to_dict().keys()
    assert not any(name in loaded.to_json_string() for name in SIZES)
    for other in (copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        assert other.vocab_size == 64
    with pytest.raises(AttributeError, match="no attribute 'layer_types'"):
        loaded.layer_types  # noqa: B018


def test_a_base_in_a_folder_answers_too(pico, tmp_path):
    pico.taia("gpt2").save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)

    assert (loaded.hidden_size, loaded.num_hidden_layers) == (16, 2)  # by the names that every configuration has
    assert not hasattr(loaded, "sliding_window")


def test_a_base_that_cannot_be_read_leaves_the_attribute_out(tmp_path):
    written(tmp_path, base_model_name_or_path="nobody/there")
    loaded = AutoConfig.from_pretrained(tmp_path, local_files_only=True)

    assert not hasattr(loaded, "vocab_size")
    assert getattr(loaded, "hidden_size", None) is None
    with pytest.raises(AttributeError, match="'eos_token_id' stands in the configuration of the base model 'nobody"):
        loaded.eos_token_id  # noqa: B018
    with pytest.raises(AttributeError, match="no base model"):
        TAIAConfig().vocab_size  # noqa: B018


def test_a_configuration_of_the_hub_reads_no_folder_of_this_machine(pico, tmp_path):
    written(tmp_path, base_model_name_or_path=str(pico.base("llama")), base_model_revision=None)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.vocab_size == 64

    loaded._commit_hash = SHA

    assert not hasattr(loaded, "vocab_size")


def test_making_saving_and_loading_a_configuration_asks_no_base(monkeypatch, tmp_path):
    def ask(*args, **kwargs):
        raise AssertionError("the base was asked")

    monkeypatch.setattr(configuration_taia, "_text_config", ask)

    assert config(inference_modules="all").to_diff_dict()["inference_modules"] == "all"
    config(inference_modules="all").save_pretrained(tmp_path)
    assert TAIAConfig.from_pretrained(tmp_path).inference_modules == "all"
