"""A repository on a base in a folder is published on the same base on the Hub, whole, and on no other."""

import json
import shutil

import pytest
import torch
import yaml
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from taia_hub import TAIAForCausalLM, TrainingRecipe, cards, hub, train
from taia_hub.errors import RepositoryError
from taia_hub.evaluation.environment import identify
from taia_hub.repository.rebasing import check_same_base
from taia_hub.results import Results
from tests.tuning_samples import tuned


@pytest.fixture
def here(online, tmp_path, monkeypatch):
    """A copy of the online base in the working folder."""
    monkeypatch.chdir(tmp_path)
    snapshot_download(online.base, local_dir=tmp_path / "w" / "base")
    return tmp_path / "w" / "base"


@pytest.mark.parametrize("method", ["lora", "molora", "full"])
def test_a_training_on_a_folder_is_published_with_all_that_goes_with_it(online, here, method, tmp_path, taia, repo_id):
    (tmp_path / "items.jsonl").write_text('{"prompt": "the cat", "completion": "a dog"}\n' * 8)
    recipe = TrainingRecipe(base="w/base", data=("items.jsonl",), batch_size=4, rank=2, method=method, max_steps=2)
    train(recipe, out=tmp_path / "w" / "out")
    model = TAIAForCausalLM.from_pretrained("w/out").eval()
    Results(identify(model)).save(tmp_path / "w" / "out" / "taia_results.json")
    tuned(model=identify(model)).save(tmp_path / "w" / "out")
    before = {path: path.read_bytes() for path in sorted((tmp_path / "w" / "out").rglob("*")) if path.is_file()}

    status, out, err = taia("push", "w/out", repo_id, "--base", online.base)

    assert status == 0, err
    assert "Published" in out
    assert {path: path.read_bytes() for path in before} == before
    folder = hub.fetch(repo_id, ["*"]).folder
    texts = {
        path.name: path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".safetensors", ".bin")
    }
    assert not [name for name, text in texts.items() if str(tmp_path) in text or "w/base" in text]
    assert {"taia_training.json", "taia_losses.jsonl", "taia_recipe.yaml", "taia_results.json"} <= texts.keys()
    config, results = json.loads(texts["config.json"]), json.loads(texts["taia_results.json"])
    recipe, model_of = yaml.safe_load(texts["taia_recipe.yaml"]), results["model"]
    assert (config["base_model_name_or_path"], config["base_model_revision"]) == (online.base, online.base_sha)
    assert (recipe["base"], recipe["base_revision"]) == (online.base, online.base_sha)
    for of in (model_of, json.loads(texts["taia_tuning.json"])["model"]):
        assert (of["base_model"], of["base_revision"]) == (online.base, online.base_sha)
    assert "## Tuned setting" in texts["README.md"]
    if method != "full":
        update = json.loads(texts[f"{'adapter' if method == 'lora' else 'molora'}_config.json"])
        assert update["base_model_name_or_path"] == online.base
    assert "# Training" in texts["README.md"]
    assert cards.is_generated(texts["README.md"])
    ids = online.pico.ids()
    there = TAIAForCausalLM.from_pretrained(repo_id).eval()
    assert torch.equal(there(ids).logits, model(ids).logits)
    status, out, _ = taia("card", repo_id, "--check")
    assert status == 0, out


def test_a_loaded_model_is_published_on_the_same_base(online, here, repo_id, pico):
    model = TAIAForCausalLM.from_adapter(here, pico.adapter("llama"))
    model.push_to_hub(repo_id, base=online.base, tags=["mine"])
    there = TAIAForCausalLM.from_pretrained(repo_id)
    assert there.taia_config.base_model_revision == online.base_sha
    assert "mine" in online.api.model_info(repo_id).card_data.tags
    with pytest.raises(RepositoryError, match="is not the base model"):
        model.push_to_hub(repo_id, base=_other(online, repo_id, here, lambda tensors: tensors.popitem()))


def _other(online, repo_id, here, change):
    """Publishes a base with other tensors; returns its id."""
    name = f"{repo_id}-other"
    shutil.copytree(here, here.parent / "other")
    tensors = load_file(here / "model.safetensors")
    change(tensors)
    save_file(tensors, here.parent / "other" / "model.safetensors", metadata={"format": "pt"})
    online.api.create_repo(name)
    online.api.upload_folder(repo_id=name, folder_path=here.parent / "other")
    return name


def _check(here, name):
    check_same_base(hub.Source(str(here), here, None), hub.resolve_base(name, None, hub.HubAccess()), hub.HubAccess())


def test_equal_hashes_need_no_download(online, here, monkeypatch):
    monkeypatch.setattr("taia_hub.repository.rebasing._brought", None)
    _check(here, online.base)


def test_files_that_are_cut_otherwise_are_compared_tensor_by_tensor(online, here, tmp_path):
    AutoModelForCausalLM.from_pretrained(here).save_pretrained(tmp_path / "cut", max_shard_size="10KB")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 1
    _check(tmp_path / "cut", online.base)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors["model.norm.weight"].add_(1), "the numbers of 'model.norm.weight'"),
        (lambda tensors: tensors.pop("model.norm.weight"), "it lacks the tensor 'model.norm.weight'"),
        (lambda tensors: tensors.update(more=torch.ones(1)), "it has also the tensor 'more'"),
        (
            lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"].half()}),
            r"'model.norm.weight' is F16 \[16\], not F32 \[16\]",
        ),
    ],
    ids=["numbers", "lacks", "more", "dtype"],
)
def test_another_base_is_refused_with_what_differs(online, here, repo_id, change, said):
    name = _other(online, repo_id, here, change)
    with pytest.raises(RepositoryError, match=said):
        _check(here, name)


def test_another_configuration_is_refused(online, here):
    values = json.loads((here / "config.json").read_text())
    (here / "config.json").write_text(json.dumps({**values, "rms_norm_eps": 0.5}))
    with pytest.raises(RepositoryError, match=r"says rms_norm_eps 1e-06, not 0\.5"):
        _check(here, online.base)


def test_a_folder_is_no_base_on_the_hub(online, here, pico, repo_id, taia):
    TAIAForCausalLM.from_adapter(here, pico.adapter("llama")).save_pretrained("saved")
    for base, said in [("w/base", "is a folder on this machine"), ("org/bas", "Did you mean 'org/base'")]:
        status, _, err = taia("push", "saved", repo_id, "--base", base)
        assert status == 1
        assert said in err
    status, _, err = taia("push", "saved", repo_id)
    assert status == 1
    assert "--base org/base" in err
    assert not online.api.repo_exists(repo_id)
