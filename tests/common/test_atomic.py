"""Single files that are written whole, with the permissions that the user asked for."""

import os

import pytest

from taia_hub.common.atomic import scratch_file, write_atomically


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
