"""Repositories that are not there or cannot be fetched: which one it was, why, and what to do."""

import errno
import importlib
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoConfig

from taia_hub import TAIAForCausalLM, hub
from taia_hub.errors import RepositoryError, TAIAError
from taia_hub.hub import HubAccess
from taia_hub.hub._names import TransportError
from taia_hub.repository.update_files import open_repository
from taia_hub.training.sources import read_sources
from taia_hub.weights.checkpoint import open_checkpoint


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


def test_a_repository_that_does_not_exist_is_said_in_our_words(online):
    for load, what in [
        (lambda: TAIAForCausalLM.from_pretrained("org/nothing"), "TAIA repository"),
        (lambda: TAIAForCausalLM.from_adapter("org/nothing", online.adapter), "base model"),
        (lambda: TAIAForCausalLM.from_adapter(online.base, "org/nothing"), "adapter"),
    ]:
        with pytest.raises(RepositoryError, match=f"no folder 'org/nothing' here and no {what} of that name") as caught:
            load()
        assert "owner" in caught.value.hint
        assert "404" not in str(caught.value)
        assert "\n" not in caught.value.hint


def test_a_private_repository_without_a_token_says_how_to_give_one(online, repo_id, monkeypatch):
    TAIAForCausalLM.from_adapter(online.base, online.adapter).push_to_hub(repo_id, private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RepositoryError, match=r"on the Hub \(or it is private\)") as caught:
        TAIAForCausalLM.from_pretrained(repo_id)
    assert "hf auth login" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("w/lora2", "w/lora"),  # beside it
        ("ww/lora", "w/lora"),  # the folder above it
        ("w/deep/dwon", "w/deep/down"),  # no Hub id has so many parts
        ("loar", "lora"),  # no owner
        ("./w/lroa", "w/lora"),
        ("org/model-tai", "org/model-taia"),  # of that owner, on the Hub
        ("ORG/Model-Taja", None),
    ],
)
def test_what_may_have_been_meant_is_asked(online, tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    for folder in ("w/lora", "w/deep/down", "lora", ".hidden"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(RepositoryError) as caught:
        open_repository(name, HubAccess(cache_dir=tmp_path / "cache"))
    if said:
        assert caught.value.message.endswith(f"Did you mean '{said}'?")


def test_what_is_meant_for_a_folder_is_said_at_once_without_a_network(tmp_path, clean_process):
    """A Hub that is out of reach is asked for a name for half a minute."""
    (tmp_path / "w" / "base").mkdir(parents=True)
    code = """
import time
from taia_hub.errors import RepositoryError
from taia_hub.hub import HubAccess, fetch, resolve_base
began = time.monotonic()
for ask in (lambda: resolve_base("w/bas", None, HubAccess()), lambda: fetch("w/bas", ["*"])):
    try:
        ask()
    except RepositoryError as error:
        print(error.message)
print(time.monotonic() - began < 5)
"""
    result = clean_process(code, HF_ENDPOINT="http://127.0.0.1:9")
    *said, quick = result.stdout.splitlines()
    assert len(said) == 2, result.stderr
    assert all("no such folder here. Did you mean 'w/base'?" in one for one in said)
    assert quick == "True"


def test_another_owners_name_is_found_in_the_cache(online, tmp_path, monkeypatch):
    snapshot_download(online.taia)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RepositoryError, match=f"Did you mean '{online.taia}'"):
        open_repository("orgg/model-taia", HubAccess())


def test_data_that_is_not_there(online, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "items.jsonl").touch()
    online.api.create_repo("org/poems", repo_type="dataset", exist_ok=True)
    for name, said in [
        ("d/itms.jsonl", "is no file here. Did you mean 'd/items.jsonl'?"),
        ("d/items", "no file 'd/items' here and no data set of that name"),
        ("org/poem", "Did you mean 'org/poems'?"),
    ]:
        with pytest.raises(RepositoryError) as caught:
            read_sources([name])
        assert said in caught.value.message


def test_no_message_names_a_folder_of_the_cache(online, repo_id, tmp_path):
    """What lies in the cache is called by the name of its repository."""
    config = hub.fetch(online.adapter, [hub.ADAPTER_CONFIG], what="adapter").folder / hub.ADAPTER_CONFIG
    for number, (names, ask) in enumerate(
        [
            ((hub.ADAPTER_CONFIG,), lambda name: TAIAForCausalLM.from_pretrained(name)),  # lacks its weights
            ((hub.ADAPTER_CONFIG,), lambda name: open_checkpoint(hub.fetch(name, ["*"]).folder, what="base model")),
            (("README.md",), lambda name: TAIAForCausalLM.from_adapter(online.base, name)),
            ((), lambda name: TAIAForCausalLM.from_adapter(name, online.adapter)),
            (("config.json",), lambda name: TAIAForCausalLM.from_pretrained(name)),
        ]
    ):
        name = f"{repo_id[:60]}-{number}"
        online.api.create_repo(name)
        for file in names:
            online.api.upload_file(path_or_fileobj=config.read_bytes(), path_in_repo=file, repo_id=name)
        with pytest.raises(TAIAError) as caught:
            ask(name)
        assert name in str(caught.value)
        assert os.environ["HF_HOME"] not in str(caught.value)
        assert "--" not in caught.value.message


def test_a_path_in_the_cache_is_called_by_its_repository():
    said = "File /home/me/hub/models--gpt2/snapshots/00ab/config.json of '/my disk/datasets--org--x.y/blobs/1' is odd."
    assert TAIAError(said).message == "File gpt2/config.json of 'org/x.y/1' is odd."
    assert TAIAError("x", said).hint == TAIAError(said).message
    assert TAIAError("'w/models--of-mine' and 'a b' stay").message == "'w/models--of-mine' and 'a b' stay"


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
    with pytest.raises(RepositoryError, match=r"TAIA repository .* has no revision 'v9' \(any more\). It has main."):
        TAIAForCausalLM.from_pretrained(online.taia, revision="v9")
    with pytest.raises(RepositoryError, match=r"base model .* has no revision 'v9'"):
        TAIAForCausalLM.from_adapter(online.base, online.adapter, base_revision="v9")
    with pytest.raises(RepositoryError, match=r"adapter .* has no revision 'v9'"):
        TAIAForCausalLM.from_adapter(online.base, online.adapter, adapter_revision="v9")


def test_a_misspelt_revision(online):
    with pytest.raises(RepositoryError, match="Did you mean 'main'"):
        TAIAForCausalLM.from_pretrained(online.taia, revision="mian")


def test_a_base_whose_revision_is_gone(online, repo_id, tmp_path):
    """The base was made anew under the same name, so the recorded commit is no more."""
    base = f"{repo_id}-base"
    sha = online.push_base(base)
    TAIAForCausalLM.from_adapter(base, online.adapter).push_to_hub(repo_id)
    online.api.delete_repo(base)
    with pytest.raises(RepositoryError, match=f"'{base}' here and no base model of that name"):
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
    with pytest.raises(RepositoryError, match="no adapter repository 'org/gone' on the Hub"):
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
    assert all(line.startswith(("RepositoryError | ", "OutOfReachError | ")) for line in lines)
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
    ("why", "said"),
    [
        ("[Errno 28] No space left on device: 'm/a'", "no space is left"),
        ("[Errno 122] Disk quota exceeded: 'm/a'", "no space is left"),
        ("[Errno 13] Permission denied: 'm/a'", "permission was denied"),
        ("[Errno 30] Read-only file system: 'm/a'", "permission was denied"),
        ("the moon is full", "the moon is full"),
    ],
)
def test_what_could_not_be_copied_is_no_list_of_tuples(why, said):
    with pytest.raises(RepositoryError, match=f"'m' was not written: {said}") as caught, hub.disk_errors(Path("m")):
        raise shutil.Error([("x/a", "m/a", why), ("x/b", "m/b", why)])
    assert "[(" not in str(caught.value)


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


@pytest.mark.parametrize("status", [None, 503])
def test_a_slow_hub_is_asked_again_where_a_folder_has_the_name_of_the_owner(online, tmp_path, monkeypatch, status):
    (tmp_path / online.taia.partition("/")[0]).mkdir()
    monkeypatch.chdir(tmp_path)
    httpx = importlib.import_module(TransportError.__module__.partition(".")[0])  # or what the Hub's client took for it
    request = httpx.Request("GET", "http://hub")
    refused = HfHubHTTPError("no", response=httpx.Response(status or 500, request=request))

    def hub_that_raises(error):
        asked = Mock(side_effect=error)
        monkeypatch.setattr("taia_hub.hub.access.api", lambda token: SimpleNamespace(model_info=asked))
        return asked

    asked = hub_that_raises(refused if status else httpx.ReadTimeout("slow"))
    assert open_repository(online.taia, HubAccess(cache_dir=tmp_path / "cache")).name == online.taia
    assert asked.called
    hub_that_raises(httpx.ConnectTimeout("offline"))
    monkeypatch.setattr("taia_hub.hub.access.snapshot_download", None)  # which would try for minutes
    with pytest.raises(RepositoryError, match="the Hub cannot be reached"):
        open_repository(online.taia, HubAccess(cache_dir=tmp_path / "other"))


@pytest.mark.parametrize(
    "words", [["info"], ["check"], ["create", "--out=x"], ["push", "org/x"], ["export", "--out=x"]]
)
def test_a_file_is_no_folder_and_is_called_one(online, tmp_path, monkeypatch, capsys, words):
    from taia_hub.cli import main

    monkeypatch.chdir(tmp_path)
    Path("afile").touch()
    with pytest.raises(SystemExit):
        main([words[0], "afile", *words[1:]])
    assert "'afile' is a file." in capsys.readouterr().err
