"""Repositories that are not there or cannot be fetched: which one it was, why, and what to do."""

import errno
import os

import pytest
from huggingface_hub import snapshot_download
from transformers import AutoConfig

from taia_hub import TAIAForCausalLM
from taia_hub.errors import RepositoryError, TAIAError
from taia_hub.hub import HubAccess


@pytest.mark.parametrize(
    "load", [TAIAForCausalLM.from_pretrained, lambda name: TAIAForCausalLM.from_adapter("org/base", name)]
)
@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "~/nothing", "../nothing"])
def test_a_folder_that_does_not_exist(load, name):
    with pytest.raises(RepositoryError, match="is no folder here") as caught:
        load(name)
    assert f"'{name}'" in caught.value.message
    assert "Hub id" in caught.value.hint


@pytest.mark.parametrize("name", ["a/b/c", "org/na me", "org//model", "-org/model", ""])
def test_a_malformed_repository_id(name):
    with pytest.raises(RepositoryError, match="neither a folder here nor a Hub id") as caught:
        TAIAForCausalLM.from_pretrained(name)
    assert caught.value.hint


def test_a_repository_that_does_not_exist_keeps_the_hubs_hint(online, monkeypatch):
    with pytest.raises(RepositoryError, match="TAIA repository 'org/nothing' does not exist, or is private") as caught:
        TAIAForCausalLM.from_pretrained("org/nothing")
    assert "org/nothing" in caught.value.hint
    with pytest.raises(RepositoryError, match="base model 'org/nothing' does not exist"):
        TAIAForCausalLM.from_adapter("org/nothing", online.adapter)
    with pytest.raises(RepositoryError, match="adapter 'org/nothing' does not exist"):
        TAIAForCausalLM.from_adapter(online.base, "org/nothing")


def test_a_private_repository_without_a_token_keeps_the_hubs_hint(online, repo_id, monkeypatch):
    TAIAForCausalLM.from_adapter(online.base, online.adapter).push_to_hub(repo_id, private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RepositoryError, match="does not exist, or is private") as caught:
        TAIAForCausalLM.from_pretrained(repo_id)
    assert "authenticated" in caught.value.hint


def test_a_gated_repository_keeps_the_hubs_hint(online, repo_id, tmp_path):
    TAIAForCausalLM.from_adapter(online.base, online.adapter).push_to_hub(repo_id)
    online.api.update_repo_settings(repo_id, gated="manual")
    with pytest.raises(RepositoryError, match="is gated") as caught:
        TAIAForCausalLM.from_pretrained(repo_id, token=False, cache_dir=tmp_path)
    assert repo_id in caught.value.hint


def test_a_gated_base_is_named(online, repo_id, tmp_path):
    base = f"{repo_id}-base"
    online.push_base(base)
    TAIAForCausalLM.from_adapter(base, online.adapter).push_to_hub(repo_id)
    online.api.update_repo_settings(base, gated="manual")
    with pytest.raises(RepositoryError, match=f"base model '{base}' is gated"):
        TAIAForCausalLM.from_pretrained(repo_id, token=False, cache_dir=tmp_path)


def test_a_wrong_token_is_said_so(online, tmp_path):
    with pytest.raises(RepositoryError) as caught:
        TAIAForCausalLM.from_pretrained(online.taia, token="hf_wrong", cache_dir=tmp_path)
    assert "credentials" in caught.value.hint or "token" in caught.value.hint


def test_a_revision_that_does_not_exist(online):
    with pytest.raises(RepositoryError, match=r"TAIA repository .* has no revision 'v9'"):
        TAIAForCausalLM.from_pretrained(online.taia, revision="v9")
    with pytest.raises(RepositoryError, match=r"base model .* has no revision 'v9'"):
        TAIAForCausalLM.from_adapter(online.base, online.adapter, base_revision="v9")
    with pytest.raises(RepositoryError, match=r"adapter .* has no revision 'v9'"):
        TAIAForCausalLM.from_adapter(online.base, online.adapter, adapter_revision="v9")


def test_a_base_whose_revision_is_gone(online, repo_id, tmp_path):
    """The base was made anew under the same name, so the recorded commit is no more."""
    base = f"{repo_id}-base"
    sha = online.push_base(base)
    TAIAForCausalLM.from_adapter(base, online.adapter).push_to_hub(repo_id)
    online.api.delete_repo(base)
    with pytest.raises(RepositoryError, match=f"base model '{base}' does not exist"):
        TAIAForCausalLM.from_pretrained(repo_id, cache_dir=tmp_path / "one")
    online.api.create_repo(base)
    online.api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=base)
    with pytest.raises(RepositoryError, match=f"base model '{base}' has no revision '{sha}'") as caught:
        TAIAForCausalLM.from_pretrained(repo_id, cache_dir=tmp_path / "two")
    assert "its owner can restore" in caught.value.hint


def test_an_adapter_that_a_pointer_points_to_and_that_is_gone(online, repo_id, tmp_path):
    config = AutoConfig.from_pretrained(online.taia)
    config.update = {"kind": "peft", "path": "", "repo": "org/gone", "revision": "0" * 40}
    config.save_pretrained(tmp_path)
    with pytest.raises(RepositoryError, match="adapter repository 'org/gone' does not exist"):
        TAIAForCausalLM.from_pretrained(tmp_path)
    config.update["repo"] = online.adapter
    config.save_pretrained(tmp_path)
    with pytest.raises(RepositoryError, match=f"adapter repository '{online.adapter}' has no revision '0000"):
        TAIAForCausalLM.from_pretrained(tmp_path)


def test_a_base_without_a_configuration(online, repo_id):
    online.api.create_repo(repo_id)
    with pytest.raises(RepositoryError, match=r"base model .* lacks a file"):
        TAIAForCausalLM.from_adapter(repo_id, online.adapter)


OFFLINE = """
import taia_hub, huggingface_hub.utils._http as client
client.time.sleep = lambda seconds: None
from transformers import AutoModelForCausalLM
for load in (
    lambda: taia_hub.TAIAForCausalLM.from_pretrained({taia!r}),
    lambda: taia_hub.TAIAForCausalLM.from_adapter({base!r}, {adapter!r}),
    lambda: taia_hub.TAIAForCausalLM.from_pretrained({folder!r}),
    lambda: taia_hub.TAIAForCausalLM.from_pretrained({folder!r}, local_files_only=True),
    lambda: taia_hub.repository.publishing.push_folder(__import__("pathlib").Path({folder!r}), "org/new"),
):
    try:
        load()
    except taia_hub.TAIAError as error:
        print(type(error).__name__, "|", error.message, "|", " ".join(error.hint.split()))
"""


@pytest.mark.slow
def test_no_network(online, clean_process):
    folder = snapshot_download(online.taia)
    code = OFFLINE.format(taia=online.taia, base=online.base, adapter=online.adapter, folder=folder)
    result = clean_process("import taia_hub.repository.publishing\n" + code, HF_ENDPOINT="http://127.0.0.1:9")
    lines = result.stdout.splitlines()
    assert len(lines) == 5, result.stderr
    assert all(line.startswith("RepositoryError | ") for line in lines)
    for line, name in zip(lines, [online.taia, online.adapter, online.base, online.base], strict=False):
        assert f"'{name}' is not in the cache and the Hub cannot be reached" in line
        assert "HF_ENDPOINT" in line
    assert "cannot be reached" in lines[-1]


def test_a_hub_that_fails_while_files_are_fetched(online, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    TAIAForCausalLM.from_pretrained(online.taia, cache_dir=tmp_path / "counted")
    count = len(online.hub.requests)
    errors = []
    for number in range(count):
        seen = []

        def fail(method, path, number=number, seen=seen):
            seen.append((method, path))
            return 500 if len(seen) > number and (method, path) == seen[number] else None

        online.hub.fail = fail
        try:
            TAIAForCausalLM.from_pretrained(online.taia, cache_dir=tmp_path / str(number))
        except TAIAError as error:
            errors.append(error)
        online.hub.fail = None
        assert TAIAForCausalLM.from_pretrained(online.taia, cache_dir=tmp_path / str(number))
    assert len(errors) > 5
    assert all(error.hint for error in errors)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_left_for_the_cache(online, monkeypatch, tmp_path, number):
    def full(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("huggingface_hub.file_download._download_to_tmp_and_move", full)
    with pytest.raises(RepositoryError, match="no space left for the TAIA repository") as caught:
        TAIAForCausalLM.from_pretrained(online.taia, cache_dir=tmp_path)
    assert "HF_HOME" in caught.value.hint
    assert TAIAForCausalLM.from_pretrained(online.taia)


@pytest.mark.parametrize(
    ("status", "step"), [(403, "Check the token"), (500, "Try again later"), (503, "Try again later")]
)
def test_a_refusal_of_the_hub_says_what_to_do(online, tmp_path, monkeypatch, status, step):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    online.hub.fail = lambda method, path: status if path.endswith("taia_manifest.json") else None
    with pytest.raises(RepositoryError, match=rf"refused a request for the TAIA repository .* \({status}\)") as caught:
        TAIAForCausalLM.from_pretrained(online.taia, cache_dir=tmp_path)
    assert step in caught.value.hint


def test_a_token_is_not_shown():
    assert "secret" not in repr(HubAccess(token="secret"))
