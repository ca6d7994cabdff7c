"""Pickled weights: never loaded, never run, converted when that is asked."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from taia_hub import TAIAForCausalLM
from taia_hub.errors import RepositoryError
from taia_hub.hub import convert_pickled_adapter


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
    values = json.loads((pickled / "adapter_config.json").read_text()) | {"base_model_name_or_path": online.base}
    config = {"path_or_fileobj": json.dumps(values).encode(), "path_in_repo": "adapter_config.json"}
    online.api.upload_file(repo_id=repo_id, **config)
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
