"""What decides the numbers cannot change in silence: weights, the update's configuration, and fields of config.json."""

import json
import logging
import shutil

import pytest
import torch
from huggingface_hub import HfApi

from taia_hub import TAIAConfig, TAIAForCausalLM
from taia_hub.errors import ConfigError, RepositoryError, TAIAError
from taia_hub.hub import MANIFEST, manifest
from taia_hub.repository.creating import create_repository
from taia_hub.repository.publishing import push_folder

ADAPTER = "adapter/adapter_config.json"


@pytest.fixture
def folder(saved_copy):
    return saved_copy


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def older(folder):
    """Makes the manifest what version 1 wrote."""
    values = json.loads((folder / MANIFEST).read_text())
    files = {name: entry for name, entry in values["files"].items() if name.endswith(".safetensors")}
    (folder / MANIFEST).write_text(json.dumps({"version": 1, "files": files}))


@pytest.mark.parametrize(
    ("file", "values", "named"),
    [
        (ADAPTER, {"lora_alpha": 16}, ADAPTER),
        (ADAPTER, {"use_rslora": True}, ADAPTER),
        (ADAPTER, {"alpha_pattern": {"q_proj": 2}}, ADAPTER),
        (ADAPTER, {"fan_in_fan_out": True}, ADAPTER),
        ("config.json", {"inference_modules": "all"}, "inference_modules 'all'.*says 'attention'"),
        ("config.json", {"inference_modules": [["ffn", 0.5]]}, "inference_modules"),
        ("config.json", {"base_model_name_or_path": "qwen3"}, "base_model_name_or_path '.*qwen3'; .*says '.*llama'"),
        ("config.json", {"attn_implementation": "eager"}, "attn_implementation 'eager'.*says None"),
    ],
)
def test_what_decides_the_numbers_is_named_where_it_changed(pico, folder, file, values, named):
    values = {key: str(pico.base(value)) if "base" in key else value for key, value in values.items()}
    change(folder / file, **values)
    with pytest.raises(RepositoryError, match=named) as caught:
        TAIAForCausalLM.from_pretrained(folder)
    assert "taia " in caught.value.hint


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e38, -1e30, 10**400])
@pytest.mark.parametrize("name", ["lora_alpha", "alpha_pattern"])
def test_a_scaling_that_is_no_number_is_never_loaded(pico, tmp_path, name, number):
    adapter = shutil.copytree(pico.adapter("llama"), tmp_path / "adapter")
    change(adapter / "adapter_config.json", **{name: {"q_proj": number} if name == "alpha_pattern" else number})
    with pytest.raises(ConfigError, match=r"finite number|of at most"):
        TAIAForCausalLM.from_adapter(pico.base("llama"), adapter)


def test_what_decides_nothing_may_change(folder):
    change(folder / "config.json", transformers_version="9.9", dtype="float16", note="mine")
    assert TAIAForCausalLM.from_pretrained(folder)


def test_an_older_manifest_loads_and_says_so_once(folder, caplog):
    older(folder)
    manifest._say_older.cache_clear()
    with caplog.at_level(logging.WARNING, "taia_hub"):
        TAIAForCausalLM.from_pretrained(folder)
        TAIAForCausalLM.from_pretrained(folder)
    assert caplog.text.count("is of an older version") == 1
    data = bytearray((folder / "adapter/adapter_model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "adapter/adapter_model.safetensors").write_bytes(data)
    with pytest.raises(RepositoryError, match="damaged"):
        TAIAForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("damage", ["config", "files", "version"])
def test_a_manifest_without_one_of_its_parts_is_refused(folder, damage):
    values = json.loads((folder / MANIFEST).read_text())
    {"config": lambda: values.pop("config"), "files": lambda: values["files"].pop(ADAPTER)}.get(
        damage, lambda: values.update(version=3)
    )()
    (folder / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=MANIFEST):
        TAIAForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("how", ["config.save_pretrained", "taia card --write"])
def test_our_own_ways_to_publish_another_setting_renew_the_manifest(folder, taia, how):
    if how == "taia card --write":
        change(folder / "config.json", inference_modules="ffn")
        status, _, said = taia("card", folder, "--write", "--yes")
        assert not status, said
    else:
        config = TAIAConfig.from_pretrained(folder)
        config.inference_modules = "ffn"
        config.save_pretrained(folder)
    assert TAIAForCausalLM.from_pretrained(folder).inference_modules == "ffn"
    change(folder / ADAPTER, lora_alpha=99)
    status, _, said = taia("card", folder, "--write", "--yes")
    assert not status, said  # renews the setting, and nothing else
    with pytest.raises(RepositoryError, match="was changed"):
        TAIAForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("is_older", [False, True])
def test_pushing_renews_the_setting_that_a_person_wrote(online, tmp_path, repo_id, taia, is_older):
    folder = create_repository(online.base, online.adapter, out=tmp_path / "made").folder
    if is_older:
        older(folder)
    change(folder / "config.json", inference_modules="all")
    commit = push_folder(folder, repo_id)
    repo = commit.repo_url.repo_id
    assert TAIAForCausalLM.from_pretrained(repo).inference_modules == "all"
    values = json.loads((folder / "config.json").read_text())
    HfApi().upload_file(
        path_or_fileobj=json.dumps({**values, "inference_modules": "none"}).encode(),
        path_in_repo="config.json",
        repo_id=repo,
    )
    with pytest.raises(RepositoryError, match=r"inference_modules 'none'.*says 'all'") as caught:
        TAIAForCausalLM.from_pretrained(repo)
    assert "taia card REPO --push" in caught.value.hint
    status, _, said = taia("card", repo, "--push", "--yes")
    assert not status, said
    assert TAIAForCausalLM.from_pretrained(repo).inference_modules == "none"


def test_what_was_changed_by_hand_is_not_published(online, tmp_path, repo_id):
    folder = create_repository(online.base, online.adapter, out=tmp_path / "made").folder
    change(folder / ADAPTER, lora_alpha=99)
    with pytest.raises(TAIAError, match="was changed"):
        push_folder(folder, repo_id)


def test_the_update_is_the_same_bit_for_bit_whatever_the_manifest(folder):
    ids = torch.tensor([[1, 2, 3]])
    before = TAIAForCausalLM.from_pretrained(folder)(ids).logits
    older(folder)
    assert torch.equal(TAIAForCausalLM.from_pretrained(folder)(ids).logits, before)
