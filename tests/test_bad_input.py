"""Bad input: what came, what is allowed, what to do; and nothing changed. One test a line of the specification."""

import errno
import json
import math
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import CommitOperationAdd, snapshot_download
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from taia_hub import TAIAForCausalLM
from taia_hub.errors import ConfigError, RepositoryError, SettingError, TAIAError, UnsupportedUpdateError
from taia_hub.hub import convert_pickled_adapter


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# Settings on a loaded model


@pytest.fixture(scope="module")
def model(pico):
    return pico.taia("llama")


def ways(model, ids):
    """The ways in which a setting for the whole batch reaches a model."""

    def using(value):
        with model.using(value):
            pytest.fail("The block was entered.")

    return {
        "setter": lambda value: setattr(model, "inference_modules", value),
        "using": using,
        "forward": lambda value: model(ids, inference_modules=value),
        "generate": lambda value: model.generate(ids, inference_modules=value, max_new_tokens=1),
    }


@pytest.mark.parametrize("way", ["setter", "using", "forward", "generate"])
@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("atention", "Unknown inference modules 'atention'. Did you mean 'attention'?"),
        ({"ffn": 1.5}, "The weight of 'ffn' is 1.5"),
        ({"ffn": -0.1}, "The weight of 'ffn' is -0.1"),
        ({"ffn": math.nan}, "The weight of 'ffn' is nan"),
        ({"ffn": True}, "The weight of 'ffn' is True"),
        ({"ffn": "0.5"}, "The weight of 'ffn' is '0.5'"),
        ({"model.layers.9.*": 1}, "matches none of the model's 14 adapted modules"),
        ({"ffn@2-5": 1}, "ffn modules are in layers 0-1"),
        (3, "Inference modules cannot be 3"),
    ],
)
def test_a_bad_setting_changes_nothing(model, pico, way, value, match):
    ids = pico.ids()
    model.inference_modules = {"ffn": 0.5}
    before = model(ids).logits
    with pytest.raises(SettingError) as caught:
        ways(model, ids)[way](value)
    assert match in caught.value.message
    assert caught.value.hint
    assert model.inference_modules == {"ffn": 0.5}
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("way", ["setter", "using"])
def test_a_list_is_for_calls_alone(model, pico, way):
    model.inference_modules = "attention"
    with pytest.raises(SettingError, match="A list of 2 settings") as caught:
        ways(model, pico.ids())[way](["none", "all"])
    assert "generate" in caught.value.hint
    assert model.inference_modules == "attention"


@pytest.mark.parametrize("way", ["forward", "generate"])
@pytest.mark.parametrize("rows", [[], ["all"], ["all", "none", "ffn"]])
def test_a_list_of_the_wrong_length(model, pico, way, rows):
    ids = pico.ids()
    model.inference_modules = "attention"
    before = model(ids).logits
    with pytest.raises(SettingError, match=f"{len(rows)} settings? .*2 rows") as caught:
        ways(model, ids)[way](rows)
    assert caught.value.hint
    assert torch.equal(model(ids).logits, before)


def test_a_bad_setting_in_a_list_is_named(model, pico):
    with pytest.raises(SettingError, match=r"'al'.*Did you mean 'all'"):
        model(pico.ids(), inference_modules=["none", "al"])


@pytest.mark.parametrize("value", ["atention", {"ffn": 2}, ["all", "none"]])
def test_a_bad_setting_at_load(online, value):
    with pytest.raises(SettingError) as caught:
        AutoModelForCausalLM.from_pretrained(online.taia, inference_modules=value)
    assert caught.value.hint


def test_a_setting_that_this_update_cannot_act_on_at_load(online):
    with pytest.raises(SettingError, match="layers 0-1"):
        AutoModelForCausalLM.from_pretrained(online.taia, inference_modules={"ffn@5": 1})


# Repositories that are not there


@pytest.mark.parametrize(
    "load", [TAIAForCausalLM.from_pretrained, lambda name: TAIAForCausalLM.from_adapter("org/base", name)]
)
@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "~/nothing", "../nothing"])
def test_a_folder_that_does_not_exist(load, name):
    with pytest.raises(RepositoryError, match="is no folder here") as caught:
        load(name)
    assert f"'{name}'" in caught.value.message
    assert "Hub id" in caught.value.hint


@pytest.mark.parametrize("name", ["a/b/c", "org/na me", "org//model", "-org/model", ""])
def test_a_malformed_repository_id(name):
    with pytest.raises(RepositoryError, match="neither a folder here nor a Hub id") as caught:
        TAIAForCausalLM.from_pretrained(name)
    assert caught.value.hint


def test_a_repository_that_does_not_exist_keeps_the_hubs_hint(online, monkeypatch):
    with pytest.raises(RepositoryError, match="TAIA repository 'org/nothing' does not exist, or is private") as caught:
        TAIAForCausalLM.from_pretrained("org/nothing")
    assert "org/nothing" in caught.value.hint
    with pytest.raises(RepositoryError, match="base model 'org/nothing' does not exist"):
        TAIAForCausalLM.from_adapter("org/nothing", online.adapter)
    with pytest.raises(RepositoryError, match="adapter 'org/nothing' does not exist"):
        TAIAForCausalLM.from_adapter(online.base, "org/nothing")


def test_a_private_repository_without_a_token_keeps_the_hubs_hint(online, repo_id, monkeypatch):
    TAIAForCausalLM.from_adapter(online.base, online.adapter).push_to_hub(repo_id, private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RepositoryError, match="does not exist, or is private") as caught:
        TAIAForCausalLM.from_pretrained(repo_id)
    assert "authenticated" in caught.value.hint


def test_a_gated_repository_keeps_the_hubs_hint(online, repo_id, tmp_path):
    TAIAForCausalLM.from_adapter(online.base, online.adapter).push_to_hub(repo_id)
    online.api.update_repo_settings(repo_id, gated="manual")
    with pytest.raises(RepositoryError, match="is gated") as caught:
        TAIAForCausalLM.from_pretrained(repo_id, token=False, cache_dir=tmp_path)
    assert repo_id in caught.value.hint


def test_a_gated_base_is_named(online, repo_id, tmp_path):
    base = f"{repo_id}-base"
    online.push_base(base)
    TAIAForCausalLM.from_adapter(base, online.adapter).push_to_hub(repo_id)
    online.api.update_repo_settings(base, gated="manual")
    with pytest.raises(RepositoryError, match=f"base model '{base}' is gated"):
        TAIAForCausalLM.from_pretrained(repo_id, token=False, cache_dir=tmp_path)


def test_a_wrong_token_is_said_so(online, tmp_path):
    with pytest.raises(RepositoryError) as caught:
        TAIAForCausalLM.from_pretrained(online.taia, token="hf_wrong", cache_dir=tmp_path)
    assert "credentials" in caught.value.hint or "token" in caught.value.hint


def test_a_revision_that_does_not_exist(online):
    with pytest.raises(RepositoryError, match=r"TAIA repository .* has no revision 'v9'"):
        TAIAForCausalLM.from_pretrained(online.taia, revision="v9")
    with pytest.raises(RepositoryError, match=r"base model .* has no revision 'v9'"):
        TAIAForCausalLM.from_adapter(online.base, online.adapter, base_revision="v9")
    with pytest.raises(RepositoryError, match=r"adapter .* has no revision 'v9'"):
        TAIAForCausalLM.from_adapter(online.base, online.adapter, adapter_revision="v9")


def test_a_base_whose_revision_is_gone(online, repo_id, tmp_path):
    """The base was made anew under the same name, so the recorded commit is no more."""
    base = f"{repo_id}-base"
    sha = online.push_base(base)
    TAIAForCausalLM.from_adapter(base, online.adapter).push_to_hub(repo_id)
    online.api.delete_repo(base)
    with pytest.raises(RepositoryError, match=f"base model '{base}' does not exist"):
        TAIAForCausalLM.from_pretrained(repo_id, cache_dir=tmp_path / "one")
    online.api.create_repo(base)
    online.api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=base)
    with pytest.raises(RepositoryError, match=f"base model '{base}' has no revision '{sha}'") as caught:
        TAIAForCausalLM.from_pretrained(repo_id, cache_dir=tmp_path / "two")
    assert "its owner can restore" in caught.value.hint


def test_an_adapter_that_a_pointer_points_to_and_that_is_gone(online, repo_id, tmp_path):
    config = AutoConfig.from_pretrained(online.taia)
    config.update = {"kind": "peft", "path": "", "repo": "org/gone", "revision": "0" * 40}
    config.save_pretrained(tmp_path)
    with pytest.raises(RepositoryError, match="adapter repository 'org/gone' does not exist"):
        TAIAForCausalLM.from_pretrained(tmp_path)
    config.update["repo"] = online.adapter
    config.save_pretrained(tmp_path)
    with pytest.raises(RepositoryError, match=f"adapter repository '{online.adapter}' has no revision '0000"):
        TAIAForCausalLM.from_pretrained(tmp_path)


def test_a_base_without_a_configuration(online, repo_id):
    online.api.create_repo(repo_id)
    with pytest.raises(RepositoryError, match=r"base model .* lacks a file"):
        TAIAForCausalLM.from_adapter(repo_id, online.adapter)


# No network

OFFLINE = """
import taia_hub, huggingface_hub.utils._http as client
client.time.sleep = lambda seconds: None
from transformers import AutoModelForCausalLM
for load in (
    lambda: taia_hub.TAIAForCausalLM.from_pretrained({taia!r}),
    lambda: taia_hub.TAIAForCausalLM.from_adapter({base!r}, {adapter!r}),
    lambda: taia_hub.TAIAForCausalLM.from_pretrained({folder!r}),
    lambda: taia_hub.TAIAForCausalLM.from_pretrained({folder!r}, local_files_only=True),
    lambda: taia_hub.repository.publishing.push_folder(__import__("pathlib").Path({folder!r}), "org/new"),
):
    try:
        load()
    except taia_hub.TAIAError as error:
        print(type(error).__name__, "|", error.message, "|", " ".join(error.hint.split()))
"""


def test_no_network(online, clean_process):
    folder = snapshot_download(online.taia)
    code = OFFLINE.format(taia=online.taia, base=online.base, adapter=online.adapter, folder=folder)
    result = clean_process("import taia_hub.repository.publishing\n" + code, HF_ENDPOINT="http://127.0.0.1:9")
    lines = result.stdout.splitlines()
    assert len(lines) == 5, result.stderr
    assert all(line.startswith("RepositoryError | ") for line in lines)
    for line, name in zip(lines, [online.taia, online.adapter, online.base, online.base], strict=False):
        assert f"'{name}' is not in the cache and the Hub cannot be reached" in line
        assert "HF_ENDPOINT" in line
    assert "cannot be reached" in lines[-1]


def test_a_hub_that_fails_while_files_are_fetched(online, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    TAIAForCausalLM.from_pretrained(online.taia, cache_dir=tmp_path / "counted")
    count = len(online.hub.requests)
    errors = []
    for number in range(count):
        seen = []

        def fail(method, path, number=number, seen=seen):
            seen.append((method, path))
            return 500 if len(seen) > number and (method, path) == seen[number] else None

        online.hub.fail = fail
        try:
            TAIAForCausalLM.from_pretrained(online.taia, cache_dir=tmp_path / str(number))
        except TAIAError as error:
            errors.append(error)
        online.hub.fail = None
        assert TAIAForCausalLM.from_pretrained(online.taia, cache_dir=tmp_path / str(number))
    assert len(errors) > 5
    assert all(error.hint for error in errors)


# What is in config.json


@pytest.fixture(scope="module")
def original(pico, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad") / "taia"
    pico.taia("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "taia")


def test_a_folder_without_a_configuration(tmp_path):
    with pytest.raises(RepositoryError, match=r"holds neither a config\.json nor an adapter_config\.json") as caught:
        TAIAForCausalLM.from_pretrained(tmp_path)
    assert "PEFT adapter" in caught.value.hint


def test_a_repository_without_a_configuration(online, repo_id):
    online.api.create_repo(repo_id)
    with pytest.raises(RepositoryError, match=r"holds neither a config\.json nor an adapter_config\.json"):
        TAIAForCausalLM.from_pretrained(repo_id)


@pytest.mark.parametrize("text", ["", "{", "not json", "[]", "3", "null", '"taia"', "\x00"])
def test_a_configuration_that_is_no_json_object(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json") as caught:
        TAIAForCausalLM.from_pretrained(folder)
    assert caught.value.hint


def test_a_configuration_that_is_no_text(folder):
    (folder / "config.json").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match=r"config\.json"):
        TAIAForCausalLM.from_pretrained(folder)


def test_a_repository_of_another_model(online, pico):
    for name, model_type in [(online.base, "llama"), (str(pico.base("gpt2")), "gpt2")]:
        with pytest.raises(ConfigError, match=f"no TAIA repository: .* model_type '{model_type}'") as caught:
            TAIAForCausalLM.from_pretrained(name)
        assert "from_adapter" in caught.value.hint


@pytest.mark.parametrize(
    ("values", "kind", "match"),
    [
        ({"inference_modules": "atention"}, SettingError, "config.json.*'atention'. Did you mean 'attention'"),
        ({"inference_modules": 3}, SettingError, "inference_modules of config.json"),
        ({"inference_modules": [["ffn", "x"]]}, SettingError, "inference_modules of config.json"),
        ({"inference_modules": [["ffn@7", 1]]}, SettingError, "'ffn@7' matches none"),
        ({"base_model_name_or_path": 3}, ConfigError, "base_model_name_or_path is 3"),
        ({"base_model_name_or_path": None}, ConfigError, "names no base model"),
        ({"base_model_name_or_path": "./gone"}, RepositoryError, "base model './gone' is no folder here"),
        ({"base_model_revision": ["x"]}, ConfigError, "base_model_revision is"),
        ({"update": "adapter"}, ConfigError, "update is 'adapter'"),
        ({"update": {"kind": "galore", "path": "galore"}}, ConfigError, "update.kind is 'galore'"),
        ({"update": {"kind": "peft", "path": "../adapter"}}, ConfigError, "update.path is '../adapter'"),
        ({"update": {"kind": "peft", "path": "elsewhere"}}, RepositoryError, "has no adapter_config"),
        ({"update": {"kind": "peft", "path": "", "repo": "a/b", "revision": "main"}}, ConfigError, "commit sha"),
        ({"model_type": "tiaa"}, ConfigError, "model_type 'tiaa'"),
        ({"model_type": None}, ConfigError, "model_type None"),
        ({"dtype": "float99"}, ConfigError, "holds a value that transformers cannot use.*float99"),
    ],
)
def test_a_configuration_with_a_wrong_value(folder, values, kind, match):
    edit(folder / "config.json", **values)
    with pytest.raises(kind, match=match) as caught:
        TAIAForCausalLM.from_pretrained(folder)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"inference_modules": "atention"}, "Did you mean 'attention'"),
        ({"update": {"kind": "peft", "path": "../adapter"}}, "update.path is '../adapter'"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path is 3"),
    ],
)
def test_the_auto_classes_say_the_same(folder, values, match):
    edit(folder / "config.json", **values)
    for auto in (AutoConfig, AutoModel, AutoModelForCausalLM):
        with pytest.raises(TAIAError, match=match) as caught:
            auto.from_pretrained(folder)
        assert caught.value.hint


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"peft_type": "LORRA"}', '{"peft_type": 3}'])
def test_an_adapter_configuration_that_is_none(folder, text):
    (folder / "adapter" / "adapter_config.json").write_text(text)
    with pytest.raises(TAIAError, match=r"adapter_config\.json") as caught:
        TAIAForCausalLM.from_pretrained(folder)
    assert caught.value.hint


@pytest.mark.parametrize(
    "values", [{"r": "four"}, {"r": -1}, {"target_modules": 3}, {"lora_alpha": None}, {"target_modules": "("}]
)
def test_an_adapter_configuration_with_a_wrong_value(folder, values):
    edit(folder / "adapter" / "adapter_config.json", **values)
    with pytest.raises(TAIAError) as caught:
        TAIAForCausalLM.from_pretrained(folder)
    assert caught.value.hint


def test_a_plain_adapter_that_names_no_base(pico, tmp_path):
    shutil.copytree(pico.adapter("llama"), tmp_path / "adapter")
    edit(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(ConfigError, match="names no base model") as caught:
        TAIAForCausalLM.from_pretrained(tmp_path / "adapter")
    assert "from_adapter" in caught.value.hint


def test_a_plain_adapter_on_a_base_that_is_gone(pico, tmp_path):
    shutil.copytree(pico.adapter("llama"), tmp_path / "adapter")
    edit(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path="/gone/base")
    with pytest.raises(RepositoryError, match="base model '/gone/base' is no folder here") as caught:
        TAIAForCausalLM.from_pretrained(tmp_path / "adapter")
    assert "from_adapter" in caught.value.hint


def test_a_prompt_learning_adapter_is_refused_with_the_reason(folder):
    values = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(values))
    with pytest.raises(UnsupportedUpdateError, match=r"PROMPT_TUNING .* updates no module"):
        TAIAForCausalLM.from_pretrained(folder)


def test_a_subfolder_has_no_meaning(online):
    with pytest.raises(ConfigError, match="subfolder"):
        TAIAForCausalLM.from_pretrained(online.taia, subfolder="adapter")


# Pickled weights


@pytest.fixture
def pickled(pico, tmp_path):
    """An adapter of the old kind: adapter_model.bin."""
    folder = shutil.copytree(pico.adapter("llama"), tmp_path / "pickled")
    (folder / "README.md").unlink()  # the Hub refuses a card that names a folder as the base model
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    return folder


class Malicious:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def test_pickled_weights_in_a_folder(pico, pickled):
    with pytest.raises(RepositoryError, match=r"holds pickled weights \(adapter_model\.bin\)") as caught:
        TAIAForCausalLM.from_adapter(pico.base("llama"), pickled)
    assert "--convert-pickle" in caught.value.hint


def test_pickled_weights_on_the_hub_are_not_even_downloaded(online, pickled, repo_id):
    online.api.create_repo(repo_id)
    online.api.upload_folder(repo_id=repo_id, folder_path=pickled)
    online.hub.requests.clear()
    for load in (
        lambda: TAIAForCausalLM.from_adapter(online.base, repo_id),
        lambda: TAIAForCausalLM.from_pretrained(repo_id),
    ):
        with pytest.raises(RepositoryError, match=f"'{repo_id}' holds pickled weights") as caught:
            load()
        assert "--convert-pickle" in caught.value.hint
    assert not [path for method, path in online.hub.requests if method == "GET" and "adapter_model.bin" in path]


def test_pickled_weights_in_a_private_repository_are_named_too(online, pickled, repo_id, monkeypatch, tmp_path):
    online.api.create_repo(repo_id, private=True)
    online.api.upload_folder(repo_id=repo_id, folder_path=pickled)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RepositoryError, match=f"'{repo_id}' holds pickled weights"):
        TAIAForCausalLM.from_adapter(online.base, repo_id, token=online.hub.token)


def test_an_adapter_without_weights_is_said_so_offline(online, pickled, repo_id):
    online.api.create_repo(repo_id)
    (pickled / "adapter_model.bin").unlink()
    online.api.upload_folder(repo_id=repo_id, folder_path=pickled)
    for local in (False, True):
        with pytest.raises(RepositoryError, match=r"has no adapter_model\.safetensors"):
            TAIAForCausalLM.from_adapter(online.base, repo_id, local_files_only=local)


def test_a_converted_pickle_has_the_same_bits(pico, pickled, tmp_path):
    convert_pickled_adapter(pickled, tmp_path / "converted")
    assert {path.name for path in (tmp_path / "converted").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    expected = load_file(pico.adapter("llama") / "adapter_model.safetensors")
    converted = load_file(tmp_path / "converted" / "adapter_model.safetensors")
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)
    ids = pico.ids()
    model = TAIAForCausalLM.from_adapter(pico.base("llama"), tmp_path / "converted")
    assert torch.equal(model(ids).logits, pico.taia("llama")(ids).logits)


def test_a_pickle_keeps_its_dtypes_and_shared_tensors(pickled, tmp_path):
    shared = torch.ones(4, 6, dtype=torch.bfloat16)
    tensors = {"a": shared, "b": shared, "c": shared.t(), "d": torch.zeros(2, 0)}
    torch.save(tensors, pickled / "adapter_model.bin")
    convert_pickled_adapter(pickled, tmp_path / "converted")
    converted = load_file(tmp_path / "converted" / "adapter_model.safetensors")
    assert all(torch.equal(converted[name], tensors[name]) for name in tensors)
    assert converted["c"].dtype == torch.bfloat16


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_pickle_is_not_run(pickled, tmp_path, save):
    ran = tmp_path / "ran"
    save({"weight": Malicious(ran)}, pickled / "adapter_model.bin")
    with pytest.raises(RepositoryError, match=r"no file of plain tensors|more than named tensors") as caught:
        convert_pickled_adapter(pickled, tmp_path / "converted")
    assert caught.value.hint
    assert not ran.exists()
    assert not (tmp_path / "converted").exists()
    pickle.loads(pickle.dumps(Malicious(ran)))
    assert ran.exists()  # it would have run


@pytest.mark.parametrize(
    "value", [[torch.zeros(2)], torch.zeros(2), {"a": 3}, {"a": [torch.zeros(2)]}, {1: torch.zeros(2)}]
)
def test_a_pickle_of_something_else(pickled, tmp_path, value):
    torch.save(value, pickled / "adapter_model.bin")
    with pytest.raises(RepositoryError, match="more than named tensors"):
        convert_pickled_adapter(pickled, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 not a zip", b"\x80\x02.", b"hello"])
def test_a_file_that_is_no_pickle(pickled, tmp_path, data):
    (pickled / "adapter_model.bin").write_bytes(data)
    with pytest.raises(RepositoryError) as caught:
        convert_pickled_adapter(pickled, tmp_path / "converted")
    assert caught.value.hint


# Publishing (what else cannot be published: test_publishing.py)


def test_an_adapter_that_was_published_by_hand_with_a_broken_manifest(online, repo_id):
    files = {path.name: path for path in Path(snapshot_download(online.taia)).iterdir() if path.is_file()}
    folder = Path(snapshot_download(online.taia)) / "adapter"
    operations = [CommitOperationAdd(name, path) for name, path in files.items() if name != "taia_manifest.json"]
    operations += [CommitOperationAdd(f"adapter/{path.name}", path) for path in folder.iterdir()]
    online.api.create_repo(repo_id)
    online.api.create_commit(repo_id, operations, commit_message="by hand")
    with pytest.raises(RepositoryError, match=r"has no taia_manifest\.json"):
        AutoModelForCausalLM.from_pretrained(repo_id)
    assert AutoModelForCausalLM.from_pretrained(repo_id, verify=False)


def test_messages_stand_apart_from_hints():
    error = TAIAError("What came.", "What to do.")
    assert (error.message, error.hint, str(error)) == ("What came.", "What to do.", "What came.\nWhat to do.")
    assert os.linesep not in str(TAIAError("What came."))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_left_for_the_cache(online, monkeypatch, tmp_path, number):
    def full(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("huggingface_hub.file_download._download_to_tmp_and_move", full)
    with pytest.raises(RepositoryError, match="no space left for the TAIA repository") as caught:
        TAIAForCausalLM.from_pretrained(online.taia, cache_dir=tmp_path)
    assert "HF_HOME" in caught.value.hint
    assert TAIAForCausalLM.from_pretrained(online.taia)


@pytest.mark.parametrize(
    ("status", "step"), [(403, "Check the token"), (500, "Try again later"), (503, "Try again later")]
)
def test_a_refusal_of_the_hub_says_what_to_do(online, tmp_path, monkeypatch, status, step):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    online.hub.fail = lambda method, path: status if path.endswith("taia_manifest.json") else None
    with pytest.raises(RepositoryError, match=rf"refused a request for the TAIA repository .* \({status}\)") as caught:
        TAIAForCausalLM.from_pretrained(online.taia, cache_dir=tmp_path)
    assert step in caught.value.hint
