"""`taia tune`: words that it cannot use, where a setting goes, and a search that is stopped and goes on."""

import dataclasses
import datetime
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig

from taia_hub import TAIAForCausalLM
from taia_hub.evaluation.environment import identify_files
from taia_hub.hub import sha256
from taia_hub.repository.creating import create_repository
from taia_hub.results import Tuned
from tests.tuning_samples import tuned

ITEMS = "".join(json.dumps({"prompt": f"the {a}{b}", "completion": b * 3}) + "\n" for a in "abcde" for b in "fghij")
TEXTS = "".join(f"the {a}{b} {b}{a}.\n\n" for a in "klmno" for b in "pqrst")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a target and texts to retain."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "items.jsonl").write_text(ITEMS)
    (tmp_path / "few.jsonl").write_text(ITEMS[: ITEMS.index("\n") + 1] * 3)
    (tmp_path / "texts.txt").write_text(TEXTS)
    (tmp_path / "few.txt").write_text("one\n\ntwo\n")
    (tmp_path / "file").write_text("")
    return tmp_path


@pytest.fixture
def folder(online, here):
    """A copy of the TAIA repository, in a folder."""
    return shutil.copytree(online.api.snapshot_download(online.taia), here / "model-taia")


@pytest.fixture
def adapter(online, here):
    """A copy of the adapter, in a folder."""
    return shutil.copytree(online.api.snapshot_download(online.adapter), here / "lora")


@pytest.fixture
def found(monkeypatch):
    """What is found, at once: the search itself is tested elsewhere, and below."""
    asked = []

    def tune(model, target, retain, **how):
        result = tuned(model=identify_files(model))
        asked.append({"target": target, "retain": retain, **how})
        result.save(how["out"]) if how["out"].is_dir() else None
        return result

    monkeypatch.setattr("taia_hub.tuning.tune", tune, raising=False)
    monkeypatch.setattr("taia_hub.cli.tuning.load_model", lambda repo, **_: (repo, None))
    return asked


# --- What is refused before a model is loaded ----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("repo", "words", "said"),
    [
        ("model-taia", ["--objective", "kll"], ["The objective is 'kll'. Did you mean 'kl'?"]),
        ("model-taia", ["--budget", "0"], ["The budget is 0.0"]),
        ("model-taia", ["--seed", "-1"], ["seed is -1", "0 to 4294967295"]),
        ("model-taia", ["--by", "rolle"], ["'rolle'", "role"]),
        ("model-taia", ["--target", "gone.jsonl"], ["gone.jsonl"]),
        ("model-taia", ["--target", "few.jsonl"], ["The target 'few.jsonl' has 3 items; 20 are the fewest"]),
        ("model-taia", ["--retain", "few.txt"], ["The retained texts 'few.txt' has 2 items; 20 are the fewest"]),
        ("model-taia", ["--retain", "gone.txt"], ["gone.txt"]),
        ("model-taia", ["--write", "--out", "new"], ["--write, --push and --out exclude each other"]),
        ("model-taia", ["--message", "x"], ["--message is for --push"]),
        ("model-taia", ["--revision", "main"], ["--revision is for a repository on the Hub, and 'model-taia' is"]),
        ("model-taia", ["--private"], ["--private and --public are for --push"]),
        ("model-taia", ["--push"], ["--push needs a Hub id, and 'model-taia' is a folder", "taia push model-taia"]),
        ("model-taia", ["--out", "file"], ["'file' is a file"]),
        ("model-taia", ["--out", "model-taia/tuning"], ["lies inside 'model-taia'"]),
        ("model-taia", ["--out", "lora"], ["'lora' holds a model (adapter_config.json)"]),
        ("lora", ["--write"], ["'lora' is a plain adapter", "--out DIR makes a TAIA repository of it"]),
        ("lora", ["--push"], ["'lora' is a plain adapter, whose files publish no setting", "--push REPO"]),
        ("lora", ["--push", "org/base"], ["'org/base' holds another model at its root"]),
        ("lora", ["--out", "model-taia"], ["'model-taia' holds another TAIA repository", "--overwrite"]),
        ("org/model-taia", ["--write"], ["--write needs a folder", "--push", "--out"]),
        ("org/adapter", ["--write"], ["--write needs a folder", "--out"]),
        ("org/model-taia", ["--push", "org/other"], ["--push org/other is another repository than 'org/model-taia'"]),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_loaded(taia, folder, adapter, monkeypatch, repo, words, said):
    monkeypatch.setattr("taia_hub.cli.tuning.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    before = {path: sha256(path) for path in folder.parent.rglob("*") if path.is_file()}
    status, _, err = taia("tune", repo, *([] if "--target" in words else ["--target", "items.jsonl"]), *words)
    assert status == 1
    for one in said:
        assert one in err
    assert {path: sha256(path) for path in folder.parent.rglob("*") if path.is_file()} == before


def test_a_token_that_may_only_read_is_refused_before_the_search(taia, online, here, found, monkeypatch):
    user = {"name": "x", "auth": {"accessToken": {"role": "read"}}}
    monkeypatch.setattr("taia_hub.hub.user", lambda *_, **__: user)
    status, _, err = taia("tune", online.taia, "--target", "items.jsonl", "--push")
    assert status == 1
    assert "The token may only read" in err
    assert found == []


@pytest.mark.parametrize(("module", "words"), [("matplotlib", ["--out", "new"]), ("trl", [])])
def test_a_missing_package_is_named_with_the_extra(taia, folder, found, monkeypatch, module, words):
    monkeypatch.setitem(sys.modules, module, None)
    status, _, err = taia("tune", folder, "--target", "items.jsonl", *words)
    assert status == 1
    assert f"'{module}'" in err
    assert "[tune]" in err
    assert found == []


# --- Where the setting goes ----------------------------------------------------------------------------------------
def test_the_result_is_printed_and_kept_where_the_next_run_finds_it(taia, folder, found):
    config = (folder / "config.json").read_bytes()
    status, out, _ = taia("tune", folder, "--target", "items.jsonl", "--by", "role", "--points", 2, "--extrapolate")
    assert status == 0
    assert "★  tuned 2" in out
    assert "Weights of tuned 2 by layer" in out
    (asked,) = found
    kept = str(asked["out"])
    assert kept.startswith("model-taia-")
    assert kept.endswith(".tuning")
    lines = out.splitlines()
    assert lines[-2:] == [f"Kept in {kept}:", "the same command with --write or --out DIR needs no search."]
    assert (asked["by"], asked["points"], asked["allow_extrapolation"]) == ("role", 2, True)
    assert (folder / "config.json").read_bytes() == config
    assert not (folder / "taia_tuning.json").exists()


def test_a_folder_publishes_the_setting_with_all_that_speaks_of_it(taia, folder, found):
    status, out, err = taia("tune", folder, "--target", "items.jsonl", "--write")
    assert status == 0, err
    model = TAIAForCausalLM.from_pretrained(folder)
    assert model.inference_modules == tuned().recommended.parsed.value
    assert Tuned.load(folder).choice == tuned().choice
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {f"tuning_{name}.{ending}" for name in ("front", "weights") for ending in ("png", "svg")}
    card = (folder / "README.md").read_text()
    assert "The model loads with `tuned 2`." in card
    assert card.count("(figures/tuning_front.png)") == 1
    assert taia("card", folder, "--check")[0] == 0
    assert f'Next: taia compare {folder} "Why is the sky blue?"' in out
    assert f"taia export {folder} --mode tuned --out model-taia-tuned" in out


@pytest.mark.parametrize(
    ("options", "setting", "said"),
    [
        ({}, "all", "taia export made --mode tuned --out made-tuned"),
        ({"trainable_token_indices": [3, 4]}, "all", "taia merge made --mode tuned --out made-tuned"),
        ({"trainable_token_indices": [3, 4]}, "attention", "taia export made --mode tuned --out made-tuned"),
        ({}, "none", None),
    ],
)
def test_what_goes_on_is_a_command_that_takes_the_setting(taia, pico, here, found, options, setting, said):
    adapter = pico.adapter("llama", pico.lora("llama", **options), "tuned-tokens") if options else pico.adapter("llama")
    folder = create_repository(str(pico.base("llama")), str(adapter), out=here / "made", inference_modules=setting)
    chosen = dataclasses.replace(tuned().choice, label=setting)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "taia_hub.tuning.tune",
            lambda model, *_, **how: tuned(model=identify_files(model), choice=chosen),
        )
        status, out, err = taia("tune", "made", "--target", "items.jsonl", "--write")
    assert status == 0, err
    assert folder.folder == here / "made"
    assert (said in out) if said else "--mode tuned" not in out


def test_a_full_disk_leaves_the_folder_as_it_was(taia, folder, found, monkeypatch):
    before = {path: sha256(path) for path in folder.rglob("*") if path.is_file()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("taia_hub.repository.card_updating.write_together", full)
    status, _, err = taia("tune", folder, "--target", "items.jsonl", "--write")
    assert status == 1
    assert "no space is left" in err
    assert {path: sha256(path) for path in folder.rglob("*") if path.is_file()} == before


def test_a_repository_on_the_hub_publishes_it_in_one_commit(taia, online, here, found, repo_id):
    online.model().push_to_hub(repo_id)
    before = online.api.model_info(repo_id).sha
    online.hub.requests.clear()
    status, out, err = taia("tune", repo_id, "--target", "items.jsonl", "--push", "--json")
    assert status == 0, err
    assert len(online.commits()) == 1
    first, *rest = online.api.list_repo_commits(repo_id)
    assert first.title == "Publish the tuned setting: tuned 2"
    assert rest[0].commit_id == before
    assert json.loads(out)["where"].endswith(first.commit_id)
    assert json.loads(out)["choice"]["label"] == "tuned 2"
    assert TAIAForCausalLM.from_pretrained(repo_id).inference_modules == tuned().recommended.parsed.value
    assert taia("card", repo_id, "--check")[0] == 0


def test_a_repository_that_points_to_an_adapter_publishes_it_too(taia, online, here, found, repo_id):
    create_repository(online.base, online.adapter, push=repo_id, link=True)
    status, _, err = taia("tune", repo_id, "--target", "items.jsonl", "--push")
    assert status == 0, err
    assert AutoConfig.from_pretrained(repo_id).update["repo"] == online.adapter
    assert TAIAForCausalLM.from_pretrained(repo_id).inference_modules == tuned().recommended.parsed.value


def test_a_folder_of_its_own_gets_the_tuning_and_its_figures(taia, folder, found):
    before = {path: sha256(path) for path in folder.rglob("*") if path.is_file()}
    status, out, err = taia("tune", folder, "--target", "items.jsonl", "--out", "found")
    assert status == 0, err
    assert Tuned.load(folder.parent / "found").choice.label == "tuned 2"
    assert len(list((folder.parent / "found" / "figures").iterdir())) == 4
    assert "Written to found: taia_tuning.json, tuning_front.png" in out
    assert str(found[0]["out"]) == "found"
    assert {path: sha256(path) for path in folder.rglob("*") if path.is_file()} == before


def test_an_adapter_becomes_a_repository_in_a_folder(taia, online, adapter, found):
    status, out, err = taia("tune", "lora", "--target", "items.jsonl", "--out", "lora-tuned")
    assert status == 0, err
    made = adapter.parent / "lora-tuned"
    assert TAIAForCausalLM.from_pretrained(made).inference_modules == tuned().recommended.parsed.value
    assert "## Tuned setting" in (made / "README.md").read_text()
    assert (made / "figures" / "tuning_weights.svg").is_file()
    assert taia("card", made, "--check")[0] == 0
    assert "taia export lora-tuned --mode tuned" in out
    assert re.fullmatch(r"lora-[0-9a-f]{8}\.tuning", str(found[0]["out"]))
    words = {path: sha256(path) for path in made.rglob("*") if path.is_file()}
    found[0]["out"].mkdir()
    status, out, err = taia("tune", "lora", "--target", "items.jsonl", "--out", "lora-tuned")
    assert status == 1, "nothing says that it is the same tuning"
    shutil.copy(made / "taia_tuning.json", found[0]["out"])
    status, out, err = taia("tune", "lora", "--target", "items.jsonl", "--out", "lora-tuned")
    assert status == 0, err
    assert "lora-tuned holds this tuning already" in out
    assert {path: sha256(path) for path in made.rglob("*") if path.is_file()} == words


def test_each_search_has_a_folder_of_its_own(taia, adapter, here, found):
    other = shutil.copytree(adapter, here / "other" / "lora")
    for words in (["lora"], ["lora", "--by", "role"], [other], ["lora", "--seed", 1], ["lora", "--budget", 9]):
        assert taia("tune", *words, "--target", "items.jsonl")[0] == 0
    assert (
        "the same command with --push REPO or --out DIR needs no search."
        in taia("tune", *words, "--target", "items.jsonl")[1]
    )
    kept = [str(one["out"]) for one in found]
    assert len(set(kept)) == 4
    assert kept[0] == kept[-1], "more minutes go on with the same search"


def test_an_adapter_becomes_a_repository_on_the_hub(taia, online, here, found, repo_id):
    status, _, err = taia("tune", online.adapter, "--target", "items.jsonl", "--push", repo_id)
    assert status == 0, err
    assert len(online.commits()) == 1
    assert TAIAForCausalLM.from_pretrained(repo_id).inference_modules == tuned().recommended.parsed.value
    assert taia("card", repo_id, "--check")[0] == 0


# --- The search itself ---------------------------------------------------------------------------------------------
def test_a_search_that_was_stopped_goes_on_and_is_not_done_twice(taia, online, folder, monkeypatch):
    from taia_hub.tuning import searching

    words = ["tune", folder, "--target", "items.jsonl", "--retain", "texts.txt", "--by", "role", "--points", 2]
    words += ["--limit", 20, "--max-length", 16]
    found, run = [], searching.Search.run

    def stopped(search, state, plan, *, point_done, **told):
        found.append(len(state.found))

        def kept(now):
            point_done(now)
            if len(found) == 1:
                raise KeyboardInterrupt

        return run(search, state, plan, point_done=kept, **told)

    monkeypatch.setattr(searching.Search, "run", stopped)
    status, _, err = taia(*words)
    assert status == 130
    assert re.search(r"so far is in 'model-taia-\w{8}\.tuning'; the same command goes on from there\.", err)
    assert "cpu" in err
    status, out, err = taia(*words, "--json")
    assert status == 0, err
    value = json.loads(out)
    assert Path(value["kept"], "taia_tuning.json").is_file()
    assert value["date"] == datetime.date.today().isoformat()
    assert found == [0, 1], "the second run began behind the first point"
    assert [one["kind"] for one in value["candidates"]].count("mode") == 4
    status, _, err = taia(*words, "--write")
    assert status == 0, err
    assert len(found) == 2, "what is finished is not searched again"
    assert TAIAForCausalLM.from_pretrained(folder).taia_config.setting.label == tuned_label(folder)
    assert taia("card", folder, "--check")[0] == 0


def test_a_search_that_its_budget_ended_goes_on_with_a_larger_one(taia, folder, monkeypatch):
    from taia_hub.tuning import work

    words = ["tune", folder, "--target", "items.jsonl", "--retain", "texts.txt", "--by", "role", "--points", 1]
    words += ["--limit", 20, "--max-length", 16]
    with monkeypatch.context() as patch:
        patch.setattr(work.Work, "is_over", lambda self, report: True)
        status, out, err = taia(*words, "--budget", 60)
    assert status == 0, err
    assert "with a larger one, or none, the same command goes on" in " ".join(out.split())
    status, out, err = taia(*words, "--json")
    assert status == 0, err
    assert json.loads(out)["complete"]


def tuned_label(folder):
    return Tuned.load(folder).recommended.parsed.label
