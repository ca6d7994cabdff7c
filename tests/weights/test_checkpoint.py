"""Weights as files: what is no number is named before anything is made of it."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from taia_hub import TAIAForCausalLM, hub
from taia_hub.errors import RepositoryError
from taia_hub.repository.creating import create_repository
from taia_hub.repository.publishing import push_folder

KEY = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"


@pytest.fixture
def diverged(pico, tmp_path):
    """An adapter of which one tensor holds a value that is no number."""

    def make(value):
        shutil.copytree(pico.adapter("llama"), folder := tmp_path / "adapter")
        tensors = load_file(folder / "adapter_model.safetensors")
        tensors[KEY][0, 0] = value
        save_file(tensors, folder / "adapter_model.safetensors")
        return folder

    return make


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_repository_is_made_of_an_update_that_diverged(pico, diverged, tmp_path, value):
    with pytest.raises(RepositoryError, match=rf"NaN or infinite values in 1 of its tensors, first '{KEY}'") as caught:
        create_repository(str(pico.base("llama")), str(diverged(value)), out=tmp_path / "out")
    assert "earlier checkpoint" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_what_diverges_while_it_is_trained_is_not_saved(pico, tmp_path):
    model = pico.taia("llama", is_trainable=True)
    model.save_pretrained(tmp_path / "out")
    before = (tmp_path / "out/adapter/adapter_model.safetensors").read_bytes()
    with torch.no_grad():
        dict(model.named_parameters())[KEY.removeprefix("base_model.model.").replace("_B", "_B.default")].mul_(
            torch.nan
        )
    with pytest.raises(RepositoryError, match=KEY):
        model.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out/adapter/adapter_model.safetensors").read_bytes() == before


def test_what_others_wrote_is_not_published(pico, diverged, tmp_path):
    out = tmp_path / "out"
    create_repository(str(pico.base("llama")), str(pico.adapter("llama")), out=out)
    shutil.copy(diverged(float("nan")) / "adapter_model.safetensors", out / "adapter")
    (out / "taia_manifest.json").unlink()
    TAIAForCausalLM.from_pretrained(out, verify=False)
    hub.write_manifest(out, {path.relative_to(out).as_posix(): path for path in (out / "adapter").iterdir()})
    with pytest.raises(RepositoryError, match="NaN or infinite values"):
        push_folder(out, "own/diverged")
