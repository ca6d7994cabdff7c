"""Files that are written whole, with the permissions that the user asked for."""

import os

import pytest

from taia_hub.common.atomic import scratch_file, write_atomically, write_together


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_new_files_obey_the_umask_which_nothing_sets(tmp_path, monkeypatch, mask):
    before = os.umask(mask)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "umask", lambda value: pytest.fail("the umask is the whole process's"))
            write_atomically(tmp_path / "text", "content")
            path = scratch_file(tmp_path, suffix=".partial")
    finally:
        os.umask(before)
    assert {one.stat().st_mode & 0o777 for one in (tmp_path / "text", path)} == {0o666 & ~mask}
    assert path.name.startswith(".")
    assert path.suffix == ".partial"


def test_a_file_that_is_there_keeps_its_permissions(tmp_path):
    path = tmp_path / "text"
    path.write_text("old")
    path.chmod(0o640)
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_is_taken_is_not_taken_again(tmp_path, monkeypatch):
    names = iter(["a", "a", "b"])
    monkeypatch.setattr("taia_hub.common.atomic.secrets.token_hex", lambda count: next(names))
    assert [scratch_file(tmp_path).name for _ in range(2)] == [".a", ".b"]


@pytest.mark.parametrize("fails", ["open", "os.replace"])
def test_files_that_belong_together_are_written_all_or_none(tmp_path, monkeypatch, fails):
    (tmp_path / "config.json").write_text("old")
    replace = os.replace

    def refused(source, target):
        if target.name == "README.md":
            raise PermissionError("read only")
        replace(source, target)

    if fails == "open":
        (tmp_path / "README.md").write_text("old")
        contents = {"config.json": "new", "taia_tuning.json": "new", "README.md/no": "new"}
    else:
        monkeypatch.setattr(os, "replace", refused)
        contents = {"config.json": "new", "taia_tuning.json": "new", "README.md": "new"}
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    with pytest.raises(OSError, match=r"read only|README\.md"):
        write_together({tmp_path / name: content for name, content in contents.items()})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_files_take_their_places_in_the_order_given(tmp_path, monkeypatch):
    placed = []
    monkeypatch.setattr("taia_hub.common.atomic.put_in_place", lambda _, path: placed.append(path.name))
    write_together({tmp_path / "b": "1", tmp_path / "a": b"2"})
    assert placed == ["b", "a"]
    assert list(tmp_path.iterdir()) == []
