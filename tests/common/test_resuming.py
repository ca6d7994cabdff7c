"""Locks that a dead process leaves free, marks that tell one work from another, folders that are whole or absent."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import taia_hub
from taia_hub.common import resuming
from taia_hub.common.resuming import Made, Mark, changed_inputs, differences, digest, scratch_beside, sole, whole_folder
from taia_hub.errors import ConfigError, RepositoryError

BUSY = RepositoryError("Somebody is in.")


def test_one_at_a_time_and_free_again_whatever_happens(tmp_path):
    lock = tmp_path / "new" / "lock"
    with sole(lock, BUSY), pytest.raises(RepositoryError, match="Somebody is in"), sole(lock, BUSY):
        pass
    for _ in range(2):
        with pytest.raises(KeyError), sole(lock, BUSY):
            raise KeyError
    with sole(lock), sole(tmp_path / "other", BUSY):
        pass


def test_a_killed_process_leaves_its_lock_free(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from taia_hub.common.resuming import sole\n"
        "with sole(Path(sys.argv[1])):\n    print('in', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(taia_hub.__file__).parents[1])},
    )
    assert child.stdout.readline() == b"in\n"
    with pytest.raises(RepositoryError), sole(tmp_path / "lock", BUSY):
        pass
    child.send_signal(signal.SIGKILL)
    child.communicate()
    with sole(tmp_path / "lock", BUSY):
        pass


def test_a_large_file_is_read_again_where_it_changed_and_only_there(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(resuming, "_LARGE", 4)
    monkeypatch.setattr(resuming, "sha256", lambda path, real=resuming.sha256: read.append(path) or real(path))
    path, store = tmp_path / "weights", tmp_path / "store"
    path.write_bytes(b"before")
    one = resuming.known_sha256(path, store)
    assert resuming.known_sha256(path, store) == one
    assert len(read) == 2  # written just now: its next change may have the same time
    monkeypatch.setattr(resuming, "_SETTLED", -1)
    for _ in range(3):
        assert resuming.known_sha256(path, store) == one
    assert len(read) == 3
    stat = path.stat()
    path.write_bytes(b"after!")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert resuming.known_sha256(path, store) == hashlib.sha256(b"after!").hexdigest()


def test_only_inputs_that_are_known_on_both_sides_are_compared():
    before = {"weights": "a", "tokenizer": "b", "older": "c"}
    assert changed_inputs(before, {"weights": "a", "newer": "d"}) == ""
    assert changed_inputs(before, {"weights": "x", "tokenizer": "y"}) == (
        "the weights are others and the tokenizer is another"
    )


def test_what_killed_processes_left_is_taken_away_and_what_others_write_stays(tmp_path):
    out = tmp_path / "out [1]"
    left = tmp_path / ".out [1]-dead"
    (left / "out [1]").mkdir(parents=True)
    (left / ".taia-lock").touch()
    (tmp_path / ".out [1]-mine").mkdir()  # no lock: a person's
    with scratch_beside(out) as first, scratch_beside(out) as second:
        assert not left.exists()
        assert first.is_dir()
        assert second.is_dir()
        assert first != second
        assert first.name == second.name == out.name
    assert [path.name for path in tmp_path.iterdir()] == [".out [1]-mine"]


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_nothing_is_left_beside_a_folder_that_was_not_made(tmp_path, error):
    with pytest.raises(error), scratch_beside(tmp_path / "out"):
        raise error
    assert not list(tmp_path.iterdir())


def test_a_mark_knows_its_own_work(tmp_path):
    mark = Mark(tmp_path / "work" / "mark.json", {"base": "org/base", "sizes": (1, 2)})
    assert not mark.fits()
    assert mark.read() == {}
    mark.write(done=["a"])
    mark.write(more=1)
    assert mark.fits()
    assert mark.read() == {"base": "org/base", "sizes": [1, 2], "done": ["a"], "more": 1}
    other = Mark(mark.path, {"base": "org/other", "sizes": (1, 2)})
    assert not other.fits()
    other.write()  # nothing of another work stays
    assert other.read() == {"base": "org/other", "sizes": [1, 2]}
    assert [path.name for path in mark.path.parent.iterdir()] == ["mark.json"]


def test_a_setting_that_came_later_and_is_left_out_is_no_difference(tmp_path):
    """Else the work of an earlier version would be thrown away, although nothing else was asked for."""
    Mark(tmp_path / "mark.json", {"run": {"seed": 0, "data": {"a": 1}}}).write(trained="abc")
    same = Mark(tmp_path / "mark.json", {"run": {"seed": 0, "new": None, "data": {"a": 1, "b": None}}, "newer": None})
    assert same.fits()
    assert not differences(same.read()["run"], same.asked["run"])
    same.write(evaluated="def")
    assert same.read()["trained"] == "abc"
    assert not Mark(same.path, {"run": {"seed": 0, "data": {"a": 1, "b": 2}}}).fits()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_mark_is_nobodys(tmp_path, content):
    mark = Mark(tmp_path / "mark.json", {"seed": 0})
    mark.path.write_bytes(content)
    assert not mark.fits()
    with pytest.raises(ConfigError, match=r"mark\.json' is damaged"):
        mark.read()
    mark.write()
    assert json.loads(mark.path.read_text()) == {"seed": 0}


def test_differences_are_named_in_order():
    assert differences({"a": 1, "gone": 2}, {"new": 3, "a": 1, "b": None}) == {"new": (None, 3), "gone": (2, None)}
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 2, "b": 1})


def test_failed_work_leaves_the_finished_folder(tmp_path):
    mark, again = (Mark(tmp_path / "made" / "mark.json", {"seed": seed}) for seed in (0, 1))
    with whole_folder(mark) as (folder, facts):
        (folder / "old").write_text("old")
        facts["files"] = 1
    with pytest.raises(FileNotFoundError), whole_folder(again) as (folder, _):
        (folder / "missing").rename(folder / "new")
    assert mark.fits()
    assert mark.read() == {"seed": 0, "files": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    with whole_folder(again) as (folder, _):
        (folder / "new").write_text("new")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["mark.json", "new"]
    assert again.fits()


def test_a_folder_without_a_mark_is_not_finished(tmp_path):
    assert not Mark(tmp_path / "mark.json", {}).fits()


def filled(folder, text):
    folder.mkdir(parents=True)
    (folder / "model").write_text(text)
    return folder


def test_a_new_result_takes_its_place_and_touches_nothing_beside_it(tmp_path):
    mine = filled(tmp_path / ".lora.old", "mine")
    Made(tmp_path / "lora", {"seed": 0}).put(filled(tmp_path / "new", "first"))
    Made(tmp_path / "lora", {"seed": 1}).put(filled(tmp_path / "new", "second"), overwrite=True)
    assert (mine / "model").read_text() == "mine"
    assert (tmp_path / "lora" / "model").read_text() == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lora.old", "lora"]


def test_what_was_there_is_back_where_the_new_one_cannot_be_moved(tmp_path, monkeypatch):
    Made(tmp_path / "lora", {"seed": 0}).put(filled(tmp_path / "new", "first"))
    new, rename = filled(tmp_path / "new", "second"), os.rename

    def refuse(source, target):
        if source == new:
            raise PermissionError
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(PermissionError):
        Made(tmp_path / "lora", {"seed": 1}).put(new, overwrite=True)
    assert (tmp_path / "lora" / "model").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora", "new"]


def test_links_and_empty_folders_are_a_persons_too(tmp_path):
    made, other = (Made(tmp_path / "lora", {"seed": seed}) for seed in (0, 1))
    made.put(filled(tmp_path / "new", "first"))
    (made.folder / "data").symlink_to(filled(tmp_path / "data", "mine"))
    (made.folder / "gone").symlink_to(tmp_path / "nowhere")
    (made.folder / "plans" / "later").mkdir(parents=True)
    named = "did not make: data, gone, plans/later/"
    for overwrite, words in ((False, named), (True, "would lose it: data, gone, plans/later/")):
        with pytest.raises(RepositoryError, match=words):
            other.check_free(overwrite=overwrite)
    assert made.facts() == {}
    (made.folder / "model").unlink()
    (made.folder / "model").symlink_to(tmp_path / "nowhere")
    assert made.facts() is None
    with pytest.raises(RepositoryError, match="holds a changed result"):
        made.check_free()


def test_only_cards_that_the_new_result_has_too_may_be_edited(tmp_path):
    first = Made(tmp_path / "lora", {"seed": 0}, {"model", "more/card"}, lambda old, new: False)
    new = filled(tmp_path / "new", "first")
    (new / "more").mkdir()
    (new / "more" / "card").write_text("card")
    first.put(new)
    (first.folder / "model").write_text("mine")
    (first.folder / "more" / "card").write_text("mine")
    assert first.facts() == {}
    second = Made(first.folder, {"seed": 1}, {"model"})
    with pytest.raises(RepositoryError, match="would lose it: more/card"):
        second.check_free(overwrite=True)
    (first.folder / "more" / "card").write_text("card")
    for seed in (1, 2):  # what was kept is still known as a person's
        Made(first.folder, {"seed": seed}, {"model"}).put(filled(tmp_path / "new", "new"), overwrite=True)
        assert (first.folder / "model").read_text() == "mine"


def test_a_hash_that_is_known_is_not_made_again(tmp_path):
    made = Made(tmp_path / "lora", {"seed": 0})
    made.put(filled(tmp_path / "new", "first"), hashes={"model": "0" * 64})
    assert made.facts() == {}
    os.utime(made.folder / "model", (0, 0))
    assert made.facts() is None
