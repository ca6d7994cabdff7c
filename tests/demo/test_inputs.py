"""What a demo is made of: shipped items, the user's own, and what is refused before anything starts."""

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from taia_hub.common.resuming import Mark
from taia_hub.demo.inputs import Inputs, find_inputs
from taia_hub.demo.samples import DOMAINS, TRAINING_SAMPLE, load_items
from taia_hub.errors import ConfigError, RepositoryError

SETTINGS = {"steps": 3, "items": 10, "seed": 0}


def _written(path, count=60, question="question {}", form=None):
    form = form or (lambda asked, said: {"prompt": asked, "completion": said})
    lines = [json.dumps(form(question.format(number), f"answer {number}")) for number in range(count)]
    path.write_text("\n".join(lines))
    return str(path)


def test_shipped_items_are_the_first_of_their_samples(tmp_path):
    found = find_inputs(tmp_path / "demo", **SETTINGS)
    assert list(found.training) == load_items(TRAINING_SAMPLE)[:12]
    assert {domain: list(items) for domain, items in found.domains.items()} == {
        domain: load_items(sample)[:10] for domain, sample in DOMAINS.items()
    }
    assert found.prompt[0]["content"].startswith("A shop")
    assert (found.adapter_name, found.notes) == ("smollm2-135m-medical-taia", ())
    assert not (tmp_path / "demo").exists()


def test_inputs_survive_json(tmp_path):
    found = find_inputs(tmp_path, data=[_written(tmp_path / "x.jsonl")], **SETTINGS)
    assert Inputs.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    "form",
    [
        lambda asked, said: {"instruction": asked, "output": said},
        lambda asked, said: {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]},
        lambda asked, said: {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]},
    ],
)
def test_own_items_of_every_form_are_held_out(tmp_path, form):
    found = find_inputs(tmp_path, data=[_written(tmp_path / "x.jsonl", form=form)], **{**SETTINGS, "steps": 30})
    held_out = found.domains["your items"]
    assert (len(found.training), len(held_out)) == (50, 10)
    assert {item.question for item in held_out}.isdisjoint(item.question for item in found.training)
    assert held_out[0].answer == held_out[0].question.replace("question", "answer")
    assert list(found.domains)[1:] == ["maths", "instructions"]
    assert found.prompt == held_out[0].prompt
    assert found.notes == ("Of your 60 items 10 are held out and only measured.",)


def test_a_question_that_is_held_out_is_not_trained_on_in_another_row(tmp_path):
    one, two = _written(tmp_path / "a.jsonl"), _written(tmp_path / "b.jsonl")
    found = find_inputs(tmp_path, data=[one, two], **{**SETTINGS, "steps": 30})
    held_out = {item.question for item in found.domains["your items"]}
    assert len(held_out) == 10
    assert len(found.training) == 100
    assert held_out.isdisjoint(item.question for item in found.training)


def test_what_is_trained_on_is_drawn_and_no_more_is_kept(tmp_path):
    data = [_written(tmp_path / "x.jsonl", 300)]
    one, same, other = (find_inputs(tmp_path, data=data, **{**SETTINGS, "seed": seed}) for seed in (0, 0, 1))
    assert len(one.training) == 12
    assert one == same
    numbers = [int(item.id) for item in one.training]
    assert numbers == sorted(set(numbers)) != [int(item.id) for item in other.training]
    assert max(numbers) > 100  # not the first ones
    assert one.notes == (
        "Of your 300 items 10 are held out and only measured, and 12 of the rest are drawn to train on.",
    )


def test_too_few_items_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"There are 39 items .* too few.*\n.*at least 40"):
        find_inputs(tmp_path / "demo", data=[_written(tmp_path / "x.jsonl", 39)], **SETTINGS)
    same = _written(tmp_path / "same.jsonl", 60, question="always this")
    with pytest.raises(ConfigError, match="There are 1 items"):
        find_inputs(tmp_path / "demo", data=[same], **SETTINGS)
    assert not (tmp_path / "demo").exists()


def test_wrong_items_are_told_as_a_training_does(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(ConfigError, match=r"x\.jsonl:1: 'completion' is missing"):
        find_inputs(tmp_path / "demo", data=[str(tmp_path / "x.jsonl")], **SETTINGS)


def test_own_model_in_a_folder(chat_base, tmp_path):
    found = find_inputs(tmp_path / "demo", model=str(chat_base), **SETTINGS)
    assert (found.base, found.revision, found.name) == (str(chat_base), None, "tiny")
    assert found.adapter_name == "tiny-medical-taia"


def test_own_model_on_the_users_hub_is_read_only(online, chat_base, tmp_path):
    online.api.create_repo("org/own-demo", exist_ok=True)
    commit = online.api.upload_folder(repo_id="org/own-demo", folder_path=chat_base)
    online.hub.requests.clear()
    found = find_inputs(tmp_path / "demo", model="org/own-demo", **SETTINGS)
    assert (found.revision, found.name) == (commit.oid, "own-demo")
    assert (Path(found.base) / "model.safetensors").read_bytes() == (chat_base / "model.safetensors").read_bytes()
    assert {method for method, _ in online.hub.requests} <= {"GET", "HEAD"}


def test_a_model_that_is_none_is_refused(chat_base, tmp_path):
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ConfigError, match="no language model"):
        find_inputs(tmp_path / "demo", model=str(tmp_path / "vit"), **SETTINGS)
    with pytest.raises(RepositoryError, match="is no folder here"):
        find_inputs(tmp_path / "demo", model="./nowhere", **SETTINGS)
    (chat_base / "model.safetensors").rename(chat_base / "model.bin")
    with pytest.raises(RepositoryError, match="no weights as safetensors"):
        find_inputs(tmp_path / "demo", model=str(chat_base), **SETTINGS)


def test_a_model_without_a_chat_template_is_told(chat_base, tmp_path):
    (chat_base / "chat_template.jinja").unlink()
    notes = find_inputs(tmp_path / "demo", model=str(chat_base), **SETTINGS).notes
    assert any("no chat template" in note for note in notes)


def test_a_model_that_fills_the_memory_is_told(chat_base, tmp_path, monkeypatch):
    monkeypatch.setattr("taia_hub.training.planning._free_memory", lambda *_: 1000)
    notes = find_inputs(tmp_path / "demo", model=str(chat_base), **SETTINGS).notes
    assert any("1,000 bytes are free" in note for note in notes)


def test_the_folder_of_another_demo_is_refused(tmp_path):
    Mark(tmp_path / "demo.json", find_inputs(tmp_path, **SETTINGS).identity()).write()
    find_inputs(tmp_path, **SETTINGS)
    with pytest.raises(ConfigError, match=r"holds the demo of SmolLM2-135M-Instruct on MedQuAD\.\n.*--dir"):
        find_inputs(tmp_path, data=[_written(tmp_path / "x.jsonl")], **SETTINGS)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "demo", Path("/proc/foo")):
        with pytest.raises(RepositoryError, match=f"folder '{folder}' cannot be written: .*\n.*--dir"):
            find_inputs(folder, **SETTINGS)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_ours_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RepositoryError, match="cannot be written"):
        find_inputs(tmp_path / "demo", **SETTINGS)


def test_a_full_disk_is_refused_and_what_is_there_counts(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**10, 0, 5 * 10**8))
    refused = pytest.raises(RepositoryError, match=r"The demo needs 898\.1 MiB more at .*, where 476\.8 MiB are free")
    with refused:
        find_inputs(tmp_path / "demo", **SETTINGS)
    for name in ("hub/weights", "mine"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            file.truncate(5 * 10**8)
    with refused:  # no demo was here: even the folder `hub` is somebody else's
        find_inputs(tmp_path, **SETTINGS)
    Mark(
        tmp_path / "demo.json",
        Inputs("SmolLM2-135M-Instruct", None, None, ("MedQuAD",), "medical", (), {}, ()).identity(),
    ).write()
    find_inputs(tmp_path, **SETTINGS)
    (tmp_path / "hub" / "weights").unlink()
    with refused:
        find_inputs(tmp_path, **SETTINGS)


def test_a_name_that_no_hub_takes_gets_another(tmp_path):
    made = Inputs(str(tmp_path / "my model (v2)"), None, None, (), "medical", (), {}, ())
    assert made.name == "my-model-v2"
    assert made.adapter_name == "my-model-v2-medical-taia"
