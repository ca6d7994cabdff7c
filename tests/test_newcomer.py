"""What people who meet the library for the first time ran into."""

import logging
import shutil
import warnings

import pytest
from huggingface_hub import HfApi
from peft import LoHaConfig

from taia_hub import TAIAForCausalLM
from taia_hub.cli import main
from taia_hub.errors import ConfigError, RepositoryError, SettingError
from taia_hub.repository.creating import create_repository
from taia_hub.repository.publishing import push_folder
from taia_hub.repository.tokenizer import load_tokenizer


@pytest.fixture
def saved(online, tmp_path):
    """A saved TAIA repository with a tokenizer, whose base is on the Hub."""
    created = create_repository(online.base, online.adapter, out=tmp_path / "saved")
    return created.folder


def test_a_failed_push_does_not_delete_what_somebody_else_published_meanwhile(online, saved, repo_id, monkeypatch):
    real = HfApi.create_commit
    other = shutil.copytree(saved, saved.with_name("other"))
    (other / "README.md").write_text("theirs")

    def after_another(self, *arguments, **keywords):
        monkeypatch.setattr(HfApi, "create_commit", real)
        push_folder(other, repo_id)  # somebody else is quicker
        return real(self, *arguments, **keywords)

    monkeypatch.setattr(HfApi, "create_commit", after_another)
    (saved / "README.md").write_text("mine")
    with pytest.raises(RepositoryError, match="got another commit"):
        push_folder(saved, repo_id)
    assert online.api.repo_exists(repo_id)
    assert "config.json" in online.api.list_repo_files(repo_id)


def test_a_failed_push_deletes_what_it_made_itself(online, saved, repo_id):
    online.hub.fail = lambda method, path: 500 if method == "POST" and "/commit/" in path else None
    with pytest.raises(RepositoryError):
        push_folder(saved, repo_id)
    online.hub.fail = None
    assert not online.api.repo_exists(repo_id)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter/adapter_config.json", '{"foo": 1}', "adapter_config.json"),
        ("adapter/adapter_config.json", '{"peft_type": "NOPE"}', "NOPE"),
        ("generation_config.json", '{"eos_tok', "generation_config.json' is no JSON"),
        ("tokenizer.json", '{"version', "tokenizer.json' is no JSON"),
    ],
)
def test_what_cannot_be_loaded_is_not_pushed(online, saved, file, content, message):
    repo_id = "own/never-pushed"
    (saved / file).write_text(content)
    with pytest.raises(ConfigError, match=message):
        push_folder(saved, repo_id)
    assert not online.api.repo_exists(repo_id)


def test_a_damaged_tokenizer_is_not_replaced_by_the_bases_in_silence(saved):
    model = TAIAForCausalLM.from_pretrained(saved)
    assert load_tokenizer(model)("the sea")["input_ids"]
    (saved / "tokenizer.json").write_text('{"version')
    with pytest.raises(RepositoryError, match=r"The tokenizer of .*saved' cannot be read"):
        load_tokenizer(model)
    for path in saved.glob("*token*"):
        path.unlink()
    assert load_tokenizer(model)("the sea")["input_ids"]  # without one, it is the base's


def test_a_damaged_generation_config_is_named(saved):
    (saved / "generation_config.json").write_text('{"eos')
    with pytest.raises(ConfigError, match=r"generation_config.json' is no JSON"):
        TAIAForCausalLM.from_pretrained(saved)


def test_damaged_base_weights_are_named(pico, tmp_path):
    model = pico.plain("llama")
    model.save_pretrained(tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(RepositoryError, match=r"A weights file of the base model .*base' is damaged"):
        TAIAForCausalLM.from_adapter(tmp_path / "base", pico.adapter("llama"))


@pytest.mark.parametrize("words", [["create", "a", "b", "--out", ""], ["push", "", "org/x"], ["demo", "--dir", " "]])
def test_an_empty_folder_is_not_the_working_folder(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code
    assert "name is empty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_inside_a_file_is_refused(online, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RepositoryError, match=r"was not written: .* is a file"):
        create_repository(online.base, online.adapter, out=tmp_path / "file" / "folder")
    assert (tmp_path / "file").read_text() == "mine"


def test_loading_draws_no_warnings_that_nobody_can_act_on(pico, tmp_path):
    adapter = pico.adapter("llama", LoHaConfig(r=2, target_modules=["q_proj", "up_proj"]), "loha")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_repository(str(pico.base("llama")), str(adapter), out=tmp_path / "made")
        TAIAForCausalLM.from_pretrained(tmp_path / "made")


def test_a_wrong_mode_of_create_is_not_called_one_of_config_json(online, tmp_path):
    with pytest.raises(SettingError) as caught:
        create_repository(online.base, online.adapter, out=tmp_path / "out", inference_modules="atention")
    assert "config.json" not in caught.value.message
    assert "Did you mean 'attention'" in caught.value.message


def test_an_unknown_dtype_is_named(online, capsys):
    with pytest.raises(SystemExit):
        main(["generate", online.taia, "--prompt", "the", "--dtype", "float99"])
    assert "--dtype 'float99' is not known" in capsys.readouterr().err


def test_one_tag_that_is_no_list_is_refused(pico):
    with pytest.raises(ConfigError, match="tags='abc' is a text"):
        pico.taia("llama").push_to_hub("own/tags", tags="abc")


def test_a_repository_without_a_base_says_so_in_info(saved, capsys):
    config = saved / "config.json"
    config.write_text(config.read_text().replace('"org/base"', "null"))
    with pytest.raises(SystemExit):
        main(["info", str(saved)])
    assert "names no base model" in capsys.readouterr().err


def test_a_missing_tokenizer_is_said(pico, caplog):
    caplog.set_level(logging.ERROR)
    with pytest.raises(RepositoryError, match="There is no tokenizer in"):
        load_tokenizer(pico.taia("llama"))
