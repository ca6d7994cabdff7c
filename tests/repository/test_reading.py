"""What a repository and an adapter say of themselves: read strictly, and refused with what is allowed."""

import json
import re
import shutil

import pytest
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from taia_hub import TAIAForCausalLM
from taia_hub.cli import main
from taia_hub.errors import ConfigError, RepositoryError, SettingError, TAIAError, UnsupportedUpdateError
from tests.conftest import renew_manifest


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    renew_manifest(path.parent)


@pytest.fixture
def folder(saved_copy):
    return saved_copy


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


@pytest.mark.parametrize("name", ["/gone/base", "C:\\models\\base", "D:/models/base", "models\\base"])
def test_a_plain_adapter_on_a_base_that_is_gone(pico, tmp_path, name):
    shutil.copytree(pico.adapter("llama"), tmp_path / "adapter")
    edit(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=name)
    with pytest.raises(RepositoryError, match=f"base model '{re.escape(name)}' is no folder here") as caught:
        TAIAForCausalLM.from_pretrained(tmp_path / "adapter")
    assert "from_adapter" in caught.value.hint


def test_a_prompt_learning_adapter_is_refused_with_the_reason(folder):
    values = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(values))
    renew_manifest(folder)
    with pytest.raises(UnsupportedUpdateError, match=r"PROMPT_TUNING .* updates no module"):
        TAIAForCausalLM.from_pretrained(folder)


def test_a_repository_without_a_base_says_so_in_info(saved, capsys):
    config = saved / "config.json"
    config.write_text(config.read_text().replace('"org/base"', "null"))
    with pytest.raises(SystemExit):
        main(["info", str(saved)])
    assert "names no base model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"AutoModelForCausalLM": "modeling_other.Model"}, "modeling_other.Model' for AutoModelForCausalLM"),
        ({"AutoTokenizer": ["a.B", None]}, "for AutoTokenizer"),
        ("modeling_taia.TAIAModel", "for auto_map"),
        ({"AutoConfig": "somebody/else--code.Config"}, "somebody/else--code.Config"),
    ],
)
def test_a_configuration_that_names_code_of_somebodys_own_is_refused(folder, value, named):
    edit(folder / "config.json", auto_map=value)
    with pytest.raises(ConfigError, match=named) as caught:
        TAIAForCausalLM.from_pretrained(folder)
    assert "trust_remote_code" in caught.value.hint


@pytest.mark.parametrize("name", ["configuration_taia.py", "modeling_taia.py"])
@pytest.mark.parametrize(
    "code",
    [
        "import os\nfrom taia_hub import TAIAConfig",
        "from taia_hub import TAIAConfig as print\nprint()",
        "try:\n    from taia_hub import TAIAConfig\nexcept ImportError as error:\n    raise ImportError(open('x'))",
        "try:\n    from taia_hub import missing\nexcept print('run'):\n    raise ImportError('x')",
        "try:\n    from taia_hub import missing\nexcept ImportError:\n    raise ImportError('x') from print('run')",
        "try:\n    from taia_hub import missing\nexcept ImportError:\n    raise ImportError('x', name=print('run'))",
        "try:\n    from taia_hub import create_repository as ImportError, missing\nexcept:\n    raise ImportError('x')",
        "from taia_hub.errors import safe_text",
        "def broken(",
        "\0",
    ],
)
def test_code_under_the_names_of_ours_is_refused(folder, name, code):
    TAIAForCausalLM.from_pretrained(folder)
    (folder / name).write_text(code)
    with pytest.raises(RepositoryError, match=f"'{name}' .* is not taia-hub's") as caught:
        TAIAForCausalLM.from_pretrained(folder)
    assert caught.value.hint


def test_what_earlier_versions_wrote_as_code_is_ours(folder):
    (folder / "modeling_taia.py").write_text('"""Ours."""\n\nfrom taia_hub import TAIAForCausalLM, TAIAModel\n')
    assert TAIAForCausalLM.from_pretrained(folder)


def test_an_adapter_in_several_files_is_said_with_what_to_do(pico, tmp_path):
    folder = shutil.copytree(pico.adapter("llama"), tmp_path / "adapter")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model-00001-of-00001.safetensors")
    (folder / "adapter_model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(RepositoryError, match="in several files") as caught:
        TAIAForCausalLM.from_adapter(pico.base("llama"), folder)
    assert "save_file" in caught.value.hint
