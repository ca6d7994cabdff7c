from __future__ import annotations

import errno
import hashlib
import http.client
import importlib
import itertools
import json
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from starlette.responses import JSONResponse

import taia_hub
from taia_hub.common import imports as _imports
from taia_hub.errors import ConfigError, MissingDependencyError, RepositoryError
from taia_hub.local_hub import LocalHub
from taia_hub.local_hub.disk import Disk
from taia_hub.local_hub.history import AddFile, File
from taia_hub.local_hub.names import RepoKind, check_path, check_reference, check_repo_id
from taia_hub.local_hub.refusals import Refused
from taia_hub.local_hub.store import Store

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the child is a fork")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with LocalHub(tmp_path_factory.mktemp("local_hub")) as hub:
        yield hub


@pytest.fixture(autouse=True)
def _clear(hub):
    hub.requests.clear()
    yield
    hub.fail = None


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture
def anonymous(hub):
    return HfApi(endpoint=hub.endpoint, token=False)


_numbers = itertools.count()


@pytest.fixture
def repo(api):
    repo_id = f"user/repo-{next(_numbers)}"
    api.create_repo(repo_id)
    return repo_id


@pytest.fixture
def download(hub, tmp_path):
    def run(repo_id, name, **kwargs):
        kwargs = {"endpoint": hub.endpoint, "token": hub.token, "cache_dir": tmp_path / "cache", **kwargs}
        return Path(hf_hub_download(repo_id, name, **kwargs)).read_bytes()

    return run


def put(api, repo_id, *, message="change", files, **kwargs):
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    return api.create_commit(repo_id, operations, commit_message=message, **kwargs)


def raw(hub, method, path, headers=None, body=None):
    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=10)
    connection.putrequest(method, path, skip_host="Host" in (headers or {}), skip_accept_encoding=True)
    for name, value in {"Authorization": f"Bearer {hub.token}", **(headers or {})}.items():
        if value is not None:
            connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    reply = connection.getresponse()
    content = reply.read()
    connection.close()
    return reply.status, {name.lower(): value for name, value in reply.headers.items()}, content


def commits_sent(hub):
    return [path for method, path in hub.requests if method == "POST" and "/commit/" in path]


# Repositories


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_a_repository_is_made_once_found_and_deleted(api, kind):
    repo_id = f"user/made-{kind}"
    sdk = {"space_sdk": "gradio"} if kind == "space" else {}
    url = api.create_repo(repo_id, repo_type=kind, **sdk)
    assert (url.repo_id, url.repo_type) == (repo_id, kind)
    assert api.create_repo(repo_id, repo_type=kind, exist_ok=True, **sdk) == url
    with pytest.raises(HfHubHTTPError, match="There is already a") as e:
        api.create_repo(repo_id, repo_type=kind, **sdk)
    assert e.value.response.status_code == 409
    assert api.list_repo_files(repo_id, repo_type=kind) == [".gitattributes"]
    api.delete_repo(repo_id, repo_type=kind)
    assert not api.repo_exists(repo_id, repo_type=kind)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(repo_id, repo_type=kind)
    api.create_repo(repo_id, repo_type=kind, **sdk)


def test_a_name_without_namespace_belongs_to_the_user(api):
    assert api.create_repo("short").repo_id == "local/short"
    assert api.whoami()["name"] == "local"


def test_the_kinds_are_apart(api):
    api.create_repo("user/same-name")
    assert not api.repo_exists("user/same-name", repo_type="dataset")


def test_private_repositories_need_the_token(hub, api, anonymous, tmp_path):
    api.create_repo("user/private", private=True)
    assert api.model_info("user/private").private
    assert not anonymous.repo_exists("user/private")
    with pytest.raises(RepositoryNotFoundError):
        anonymous.list_repo_refs("user/private")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download(
            "user/private", ".gitattributes", endpoint=hub.endpoint, token=False, cache_dir=tmp_path / "cache"
        )
    api.update_repo_settings("user/private", private=False)
    assert anonymous.repo_exists("user/private")


def test_gated_repositories_show_their_files_to_holders_of_the_token(hub, api, repo, tmp_path):
    api.update_repo_settings(repo, gated="manual")
    asked = {"endpoint": hub.endpoint, "cache_dir": tmp_path / "cache"}
    with pytest.raises(GatedRepoError, match="HF_TOKEN"):
        hf_hub_download(repo, ".gitattributes", token=False, **asked)
    assert hf_hub_download(repo, ".gitattributes", token=hub.token, **asked)


@pytest.mark.parametrize("call", [lambda api, repo: api.create_repo("user/new"), lambda api, repo: api.whoami()])
def test_a_wrong_token_is_told_apart_from_a_missing_repository(hub, repo, call):
    wrong = HfApi(endpoint=hub.endpoint, token="hf_wrong")
    with pytest.raises(HfHubHTTPError) as e:
        call(wrong, repo)
    assert e.value.response.status_code == 401
    assert not isinstance(e.value, RepositoryNotFoundError)


def test_writing_needs_the_token(hub, anonymous, repo):
    for path in ("/api/repos/create", f"/api/models/{repo}/tag/main", f"/api/models/{repo}/commit/main"):
        status, _, body = raw(hub, "POST", path, {"Authorization": None}, b"{}")
        assert (status, "HF_TOKEN" in body.decode()) == (401, True)
    status, headers, _ = raw(hub, "POST", f"/api/models/{repo}/commit/main", {"Authorization": "Bearer no"}, b"{}")
    assert (status, headers["x-error-message"]) == (401, "Invalid credentials in Authorization header")


def test_a_hub_without_tokens(tmp_path):
    with LocalHub(tmp_path / "hub", require_token=False) as hub:
        api = HfApi(endpoint=hub.endpoint, token=False)
        api.create_repo("user/open", private=True)
        assert api.repo_exists("user/open")


def test_a_repository_is_renamed(api, repo):
    put(api, repo, files={"a.txt": b"a"})
    api.move_repo(repo, f"{repo}-moved")
    assert not api.repo_exists(repo)
    assert "a.txt" in api.list_repo_files(f"{repo}-moved")


def test_missing_things_raise_the_errors_that_callers_catch(api, repo, download):
    with pytest.raises(RepositoryNotFoundError, match="There is no model 'user/absent'"):
        api.model_info("user/absent")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("gpt2")
    with pytest.raises(RepositoryNotFoundError):
        download("gpt2", "config.json")
    with pytest.raises(RevisionNotFoundError, match="no revision 'absent'"):
        api.model_info(repo, revision="absent")
    with pytest.raises(RevisionNotFoundError):
        download(repo, ".gitattributes", revision="0" * 40)
    with pytest.raises(EntryNotFoundError, match=r"no file 'absent\.txt'"):
        download(repo, "absent.txt")
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(repo, "absent"))
    assert not api.file_exists(repo, "absent.txt")
    assert api.file_exists(repo, ".gitattributes")


# Commits


def test_upload_file_and_folder(hub, api, repo, tmp_path, download):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "ü b%2F.txt").write_bytes(b"deep")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 50)
    api.upload_file(path_or_fileobj=b"one", path_in_repo="one.txt", repo_id=repo)
    api.upload_folder(folder_path=folder, repo_id=repo)
    assert set(api.list_repo_files(repo)) == {".gitattributes", "model.safetensors", "one.txt", "sub/ü b%2F.txt"}
    assert download(repo, "sub/ü b%2F.txt") == b"deep"
    assert download(repo, "model.safetensors") == bytes(range(256)) * 50
    head = api.model_info(repo).sha
    api.upload_folder(folder_path=folder, repo_id=repo)
    api.upload_file(path_or_fileobj=b"one", path_in_repo="one.txt", repo_id=repo)
    assert api.model_info(repo).sha == head
    assert len(commits_sent(hub)) == 2


def test_a_commit_adds_deletes_and_copies(api, repo, download):
    put(api, repo, files={"a.txt": b"a", "b.txt": b"b", "dir/c.txt": b"c", "dir/deep/d.txt": b"d"})
    api.create_commit(
        repo,
        [
            CommitOperationAdd("a.txt", b"changed"),
            CommitOperationDelete("b.txt"),
            CommitOperationDelete("dir/", is_folder=True),
            CommitOperationCopy("dir/c.txt", "copy.txt"),
        ],
        commit_message="title",
        commit_description="words",
    )
    assert set(api.list_repo_files(repo)) == {".gitattributes", "a.txt", "copy.txt"}
    assert download(repo, "a.txt") == b"changed"
    newest, *_, oldest = api.list_repo_commits(repo)
    assert (newest.title, newest.message, newest.authors) == ("title", "words", ["local"])
    assert oldest.title == "initial commit"
    assert newest.created_at > oldest.created_at
    with pytest.raises(EntryNotFoundError, match=r"no file 'b\.txt' to delete"):
        api.delete_file("b.txt", repo)
    with pytest.raises(EntryNotFoundError, match="no folder 'dir' to delete"):
        api.delete_folder("dir", repo)


def test_a_stale_parent_is_refused_and_the_head_stays(api, repo):
    first = put(api, repo, files={"a.txt": b"1"}).oid
    second = put(api, repo, files={"a.txt": b"2"}, parent_commit=first).oid
    with pytest.raises(HfHubHTTPError, match="another commit came first") as e:
        put(api, repo, files={"a.txt": b"3"}, parent_commit=first)
    assert e.value.response.status_code == 412
    assert api.model_info(repo).sha == second
    put(api, repo, files={"a.txt": b"3"}, parent_commit=second[:7])


def test_of_concurrent_commits_with_one_parent_one_wins(hub, api, repo):
    def attempt(name, head, start):
        start.wait()
        return put(api, repo, files={"race.txt": name.encode()}, parent_commit=head)

    for n in range(5):
        head, start = api.model_info(repo).sha, threading.Barrier(4)
        with ThreadPoolExecutor(4) as pool:
            attempts = [pool.submit(attempt, f"{n} {i}", head, start) for i in range(4)]
        errors = [attempt.exception() for attempt in attempts]
        won = [attempt.result().oid for attempt in attempts if not attempt.exception()]
        assert won == [api.model_info(repo).sha]
        assert [error.response.status_code for error in errors if error] == [412] * 3


def test_concurrent_commits_without_a_parent_all_arrive(api, repo):
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: put(api, repo, files={f"{i}.txt": b"x"}), range(12)))
    assert len(api.list_repo_files(repo)) == 13
    assert len(api.list_repo_commits(repo)) == 13


def test_a_pull_request_leaves_the_branch_alone(api, repo, download):
    head = api.model_info(repo).sha
    commit = put(api, repo, files={"a.txt": b"proposed"}, message="Please", create_pr=True)
    assert commit.pr_revision == "refs/pr/1"
    assert commit.pr_num == 1
    assert api.model_info(repo).sha == head
    assert download(repo, "a.txt", revision="refs/pr/1") == b"proposed"
    put(api, repo, files={"a.txt": b"better"}, revision="refs/pr/1")
    assert download(repo, "a.txt", revision="refs/pr/1") == b"better"
    assert put(api, repo, files={"b.txt": b"b"}, create_pr=True).pr_num == 2
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    assert [pull.ref for pull in refs.pull_requests] == ["refs/pr/1", "refs/pr/2"]
    assert next((d.num, d.title, d.is_pull_request) for d in api.get_repo_discussions(repo)) == (1, "Please", True)


def test_branches_and_tags(api, repo, download):
    first = put(api, repo, files={"a.txt": b"1"}).oid
    api.create_tag(repo, tag="v1.0", revision=first)
    api.create_tag(repo, tag="v1.0", exist_ok=True)
    api.create_branch(repo, branch="dev/next", revision="v1.0")
    put(api, repo, files={"a.txt": b"2"}, revision="dev/next")
    assert download(repo, "a.txt", revision="dev/next") == b"2"
    assert download(repo, "a.txt") == download(repo, "a.txt", revision="refs/tags/v1.0") == b"1"
    refs = api.list_repo_refs(repo)
    assert {b.name for b in refs.branches} == {"main", "dev/next"}
    assert {(t.name, t.target_commit) for t in refs.tags} == {("v1.0", first)}
    with pytest.raises(HfHubHTTPError, match="is no branch"):
        put(api, repo, files={"a.txt": b"3"}, revision="v1.0")
    with pytest.raises(HfHubHTTPError, match="is no branch"):
        put(api, repo, files={"a.txt": b"3"}, revision=first)
    with pytest.raises(HfHubHTTPError, match="cannot be deleted"):
        api.delete_branch(repo, branch="main")
    with pytest.raises(HfHubHTTPError, match="cannot name a branch"):
        api.create_branch(repo, branch="a..b")
    with pytest.raises(HfHubHTTPError, match="already has"):
        api.create_tag(repo, tag="v1.0")
    api.delete_tag(repo, tag="v1.0")
    api.delete_branch(repo, branch="dev/next")
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(repo, tag="v1.0")
    assert not api.revision_exists(repo, "dev/next")


def test_snapshots_at_branch_tag_and_sha(hub, api, repo, tmp_path):
    old = put(api, repo, files={"dir/a.txt": b"old"}).oid
    api.create_tag(repo, tag="v1")
    put(api, repo, files={"dir/a.txt": b"new"})
    for revision, content in (("main", "new"), ("v1", "old"), (old, "old")):
        folder = snapshot_download(
            repo, revision=revision, endpoint=hub.endpoint, token=hub.token, cache_dir=tmp_path / "cache"
        )
        assert Path(folder, "dir", "a.txt").read_text() == content


def test_a_damaged_card_is_refused_before_anything_is_sent(hub, api, repo):
    for card in (b"---\na: [\n---\n", b"---\n- a\n---\n", b"---\nbase_model: /home/me/model\n---\n"):
        with pytest.raises((ValueError, HfHubHTTPError)):
            put(api, repo, files={"README.md": card})
    assert not commits_sent(hub)


# Information


def test_info_shows_card_sizes_and_expanded_fields(api, repo):
    card = b"---\nlicense: mit\nlibrary_name: peft\ntags: [taia]\nbase_model: org/base\ndate: 2026-11-21\n---\nText\n"
    commit = put(api, repo, files={"README.md": card, "w.bin": b"x" * 100})
    info = api.model_info(repo, files_metadata=True)
    assert info.sha == commit.oid
    assert info.card_data.license == "mit"
    assert info.card_data.base_model == "org/base"
    assert info.card_data.date == "2026-11-21"
    assert info.library_name == "peft"
    assert set(info.tags) == {"taia", "peft", "license:mit", "base_model:org/base"}
    assert {s.rfilename: s.size for s in info.siblings}["w.bin"] == 100
    assert info.last_modified >= info.created_at
    expanded = api.model_info(repo, expand=["sha", "cardData"])
    assert expanded.sha == commit.oid
    assert expanded.siblings is None


def test_listings(api, anonymous):
    for name, private in (("first", False), ("second", True)):
        api.create_repo(f"lister/{name}", private=private)
        put(api, f"lister/{name}", files={"README.md": f"---\ntags: [taia, {name}]\n---\n".encode()})
    assert [m.id for m in api.list_models(author="lister")] == ["lister/first", "lister/second"]
    assert [m.id for m in anonymous.list_models(author="lister")] == ["lister/first"]
    assert [m.id for m in api.list_models(author="lister", search="SEC")] == ["lister/second"]
    assert [m.id for m in api.list_models(filter=["taia", "first"], expand=["sha"])] == ["lister/first"]
    assert len(list(api.list_models(limit=1))) == 1
    assert not list(api.list_datasets(author="lister"))


def test_trees_and_paths(api, repo):
    put(api, repo, files={"a.txt": b"a", "dir/b.txt": b"bb", "dir/deep/c.txt": b"ccc"}, message="first")
    second = put(api, repo, files={"dir/b.txt": b"bbbb"}, message="second")
    assert {e.path for e in api.list_repo_tree(repo)} == {".gitattributes", "a.txt", "dir"}
    assert {e.path for e in api.list_repo_tree(repo, "dir")} == {"dir/b.txt", "dir/deep"}
    whole = {e.path: e for e in api.list_repo_tree(repo, recursive=True, expand=True)}
    assert whole.keys() == {".gitattributes", "a.txt", "dir", "dir/b.txt", "dir/deep", "dir/deep/c.txt"}
    assert whole["dir/b.txt"].size == 4
    assert whole["dir/b.txt"].blob_id == hashlib.sha1(b"blob 4\0bbbb").hexdigest()
    assert {p: e.last_commit.title for p, e in whole.items()} == {
        ".gitattributes": "initial commit",
        "a.txt": "first",
        "dir": "second",
        "dir/b.txt": "second",
        "dir/deep": "first",
        "dir/deep/c.txt": "first",
    }
    found = api.get_paths_info(repo, ["a.txt", "dir", "absent"], expand=True, revision=second.oid)
    assert [e.path for e in found] == ["a.txt", "dir"]


def test_ranges(hub, api, repo):
    put(api, repo, files={"data.bin": bytes(range(100))})
    path = f"/{repo}/resolve/main/data.bin"
    assert raw(hub, "GET", path, {"Range": "bytes=10-19"})[::2] == (206, bytes(range(10, 20)))
    assert raw(hub, "GET", path, {"Range": "bytes=90-"})[::2] == (206, bytes(range(90, 100)))
    assert raw(hub, "GET", path, {"Range": "bytes=-5"})[::2] == (206, bytes(range(95, 100)))
    status, headers, _ = raw(hub, "GET", path, {"Range": "bytes=100-"})
    assert (status, headers["content-range"]) == (416, "bytes */100")
    status, headers, body = raw(hub, "HEAD", path)
    assert (status, headers["content-length"], body) == (200, "100", b"")
    assert headers["x-repo-commit"] == api.model_info(repo).sha


def test_a_space_keeps_its_settings_but_not_the_values_of_secrets(hub, api):
    api.create_repo(
        "user/space",
        repo_type="space",
        space_sdk="gradio",
        space_hardware="zero-a10g",
        space_secrets=[{"key": "S", "value": "hidden-value"}],
        space_variables=[{"key": "V", "value": "1"}],
    )
    info = api.space_info("user/space")
    assert (info.sdk, info.runtime.requested_hardware) == ("gradio", "zero-a10g")
    api.add_space_variable("user/space", "W", "2", description="two")
    api.add_space_secret("user/space", "T", "hidden-value")
    assert {k: v.value for k, v in api.get_space_variables("user/space").items()} == {"V": "1", "W": "2"}
    assert set(api.get_space_secrets("user/space")) == {"S", "T"}
    assert api.delete_space_variable("user/space", "V").keys() == {"W"}
    api.delete_space_secret("user/space", "S")
    assert set(api.get_space_secrets("user/space")) == {"T"}
    assert api.request_space_hardware("user/space", "cpu-upgrade", sleep_time=60).requested_hardware == "cpu-upgrade"
    assert api.get_space_runtime("user/space").sleep_time == 60
    files = [path for path in hub.folder.rglob("*") if path.is_file() and path.name != "lock"]
    assert not any(b"hidden-value" in path.read_bytes() for path in files)


# Who may call, and with what


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example"}, {"Host": ""}])
def test_other_host_names_are_refused(hub, headers):
    assert raw(hub, "GET", "/api/whoami-v2", headers)[0] == 403


def test_other_origins_are_refused(hub):
    assert raw(hub, "GET", "/api/whoami-v2", {"Origin": "https://evil.example"})[0] == 403
    assert raw(hub, "GET", "/api/whoami-v2", {"Origin": "null"})[0] == 403
    assert raw(hub, "GET", "/api/whoami-v2", {"Origin": hub.endpoint, "Host": "localhost:1"})[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/user/{}/resolve/main/../../../../local_hub.json",
        "/user/{}/resolve/main/..%2f..%2f..%2f..%2flocal_hub.json",
        "/user/{}/resolve/main//etc/passwd",
        "/user/{}/resolve/..%2f..%2frepository/x",
        "/user/{}/resolve/..%2f..%2f..%2f..%2fblobs/x",
        "/..%2fblobs/{}/resolve/main/x",
        "/user/..%2f..%2f..%2flocal_hub.json/resolve/main/x",
        "/api/models/../..",
        "/api/models/%2e%2e/%2e%2e",
        "/api/models/user/..%2f..%2fmodels%2fuser%2f{}",
        "/api/models/user/{}/tree/main/..%2f..",
        "/api/models/user/{}/revision/..%2fcommits",
        "/api/models/user/{}%00",
        "/lfs/..%2f..%2flocal_hub.json",
    ],
)
def test_paths_that_climb_find_nothing(hub, repo, path):
    status, _, body = raw(hub, "GET", path.format(repo.removeprefix("user/")))
    assert status in (400, 404)
    assert hub.token.encode() not in body
    assert b"root:" not in body


@pytest.mark.parametrize(
    "path", ["../x", "/x", "a/../x", "a//x", "", ".", "a/.git/x", "a\\x", "C:/x", "a\nb", "x/", "a" * 1001]
)
def test_files_that_would_climb_cannot_be_committed(hub, api, repo, path):
    head = api.model_info(repo).sha
    lines = [
        {"key": "header", "value": {"summary": "x"}},
        {"key": "file", "value": {"path": path, "content": "eA==", "encoding": "base64"}},
    ]
    body = b"\n".join(json.dumps(line).encode() for line in lines)
    status, _, reply = raw(hub, "POST", f"/api/models/{repo}/commit/main", body=body)
    assert (status, api.model_info(repo).sha) == (400, head), reply
    with pytest.raises(Refused):
        check_path(path)


@pytest.mark.parametrize(
    "name", ["a", "../b", "a/..", "a/b/c", "a/.b", "a/b.", "a/b--c", "a/b.git", "/b", "a/", "a/ b", "a/b..c"]
)
def test_repositories_that_would_climb_cannot_be_made(name):
    with pytest.raises(Refused, match="no repository name"):
        check_repo_id(name)


@pytest.mark.parametrize(
    "name", ["", "a..b", "/a", "a/", "-a", "a b", "a~1", "refs/x", "a.lock", "0" * 40, "a\n", "a//b"]
)
def test_references_that_git_refuses_cannot_be_made(name):
    with pytest.raises(Refused, match="cannot name"):
        check_reference(name)


@pytest.mark.parametrize(
    "lines",
    [
        [b"not json"],
        [b"[1]"],
        [b'{"key": "file", "value": {"path": "a", "content": "x", "encoding": "base64"}}'],
        [b'{"key": "other", "value": {"path": "a"}}'],
        [b'{"key": "lfsFile", "value": {"path": "a", "oid": "00"}}'],
        [b'{"key": "file", "value": {"path": "a", "content": "", "encoding": "base64"}}'],
        [b'{"key": "header", "value": {"summary": 1}}'],
        [b'{"key": "header", "value": {"summary": "x", "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}"],
        *(
            [b'{"key": "header", "value": {"summary": "x"}}', b'{"key": "file", "value": {"path": "%s"}}' % path]
            for path in (b"a\\ud800b", b"a\xed\xa0\x80b")
        ),
        [b'{"key": "header", "value": {"summary": "x"}}', b'{"key": "file", "value": {"path": "a", "content": 1}}'],
        [
            b'{"key": "header", "value": {"summary": "x"}}',
            b'{"key": "file", "value": {"path": "a", "content": "e!A==!", "encoding": "base64"}}',
        ],
    ],
)
def test_damaged_commits_are_refused(hub, api, repo, lines):
    head = api.model_info(repo).sha
    status, headers, _ = raw(hub, "POST", f"/api/models/{repo}/commit/main", body=b"\n".join(lines))
    assert status == 400
    assert headers["x-error-message"]
    assert api.model_info(repo).sha == head


@pytest.mark.parametrize("name", [b'"\\udfff"', b"[" * 100_000 + b"]" * 100_000])
def test_a_call_that_no_answer_could_repeat_is_refused(hub, api, name):
    status, _, reply = raw(hub, "POST", "/api/repos/create", body=b'{"name": ' + name + b"}")
    assert (status, "not JSON" in reply.decode()) == (400, True)
    assert list(api.list_models()) is not None


def test_a_refusal_reaches_a_client_that_is_still_sending(hub):
    status, _, body = raw(hub, "POST", "/api/models/user/absent/commit/main", body=bytes(32 << 20))
    assert (status, "no model 'user/absent'" in body.decode()) == (404, True)


def test_a_file_cannot_become_a_folder(api, repo):
    put(api, repo, files={"a": b"file"})
    with pytest.raises(HfHubHTTPError, match="a file and a folder"):
        put(api, repo, files={"a/b": b"inside"})


def test_calls_that_are_not_offered_say_so(hub, repo):
    for path in ("/api/papers", f"/api/models/{repo}/lfs-files", "/some/where/else"):
        status, headers, body = raw(hub, "GET", path)
        assert (status, headers.get("x-error-code")) == (404, None)
        assert f"does not answer GET {path}" in json.loads(body)["error"]
    calls = [
        ("POST", f"/api/models/{repo}"),
        ("GET", f"/api/models/{repo}/"),
        ("GET", f"/models/{repo}/resolve/main/x"),
    ]
    for method, path in calls:
        status, _, body = raw(hub, method, path, body=b"{}")
        assert (status, f"does not answer {method} {path}" in json.loads(body)["error"]) == (404, True)


def test_a_browser_is_told_what_this_is_and_what_it_holds(hub, api, repo):
    evil = "<script>alert(1)</script>"
    nobody = {"Authorization": None}  # a browser has no token
    commit = put(api, repo, files={"README.md": f"# A card {evil}".encode(), "a<b>.txt": b"text"})
    api.create_repo("user/hidden", private=True, exist_ok=True)
    status, headers, body = raw(hub, "GET", "/", nobody)
    page = body.decode()
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert hub.endpoint in page
    assert f'<a href="/{repo}">' in page
    assert "user/hidden" not in page
    assert "not shown" in page
    for path in (f"/{repo}", f"/{repo}/commit/{commit.oid}"):
        status, _, body = raw(hub, "GET", path, nobody)
        page = body.decode()
        assert status == 200
        assert commit.oid[:12] in page
        assert "a&lt;b&gt;.txt" in page
        assert "# A card &lt;script&gt;" in page
        assert evil not in page
    for path in ("/user/absent", "/user/hidden", f"/datasets/{repo}"):
        status, _, body = raw(hub, "GET", path, nobody)
        assert status in (401, 404)
        assert "<" not in body.decode()


def test_a_part_of_an_address_may_hold_an_escaped_slash(hub, api, repo):
    put(api, repo, files={"a.txt": b"a"}, create_pr=True)
    assert raw(hub, "GET", f"/{repo}/resolve/refs%2Fpr%2F1/a.txt")[::2] == (200, b"a")
    assert raw(hub, "GET", f"/{repo}/resolve/refs/pr/1/a.txt")[0] == 404


@pytest.mark.parametrize("mask", [0o022, 0o002])
def test_what_the_folder_holds_is_for_its_owner_alone(tmp_path, mask):
    before = os.umask(mask)
    try:
        store = Store(tmp_path / "hub")
        store.create(RepoKind.MODEL, "user/repo", author="me")
        change(store, b"private")
        store.close()
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "hub").rglob("*") if path.is_file() and path.name != "lock"]
    assert len(files) == 7
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_faults_are_injected(hub, api, repo):
    hub.fail = lambda method, path: 503 if path.endswith("/commit/main") else None
    with pytest.raises(HfHubHTTPError, match="injected") as e:
        put(api, repo, files={"a.txt": b"a"})
    assert e.value.response.status_code == 503
    assert len(commits_sent(hub)) == 1
    hub.fail = lambda method, path: JSONResponse({"name": "other"}) if path == "/api/whoami-v2" else None
    assert api.whoami() == {"name": "other"}
    put(api, repo, files={"a.txt": b"a"})


# Large files


@pytest.fixture
def large_hub(tmp_path):
    with LocalHub(tmp_path / "large", large_files="lfs") as hub:
        yield hub


_LARGE_CLIENT = """
import sys
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, HfApi
folder, api = sys.argv[1], HfApi()
api.create_repo("user/large")
api.upload_folder(repo_id="user/large", folder_path=folder)
api.create_commit("user/large", [CommitOperationCopy("w.safetensors", "copy.safetensors")], commit_message="copy")
head = api.model_info("user/large").sha
api.upload_file(path_or_fileobj=folder + "/w.safetensors", path_in_repo="w.safetensors", repo_id="user/large")
api.upload_file(path_or_fileobj=folder + "/w.safetensors", path_in_repo="again.safetensors", repo_id="user/large")
for name in ("w.safetensors", "copy.safetensors", "again.safetensors"):
    with open(api.hf_hub_download("user/large", name), "rb") as a, open(folder + "/w.safetensors", "rb") as b:
        assert a.read() == b.read(), name
print(len(api.list_repo_commits("user/large")))
"""


def run_client(hub, code, *arguments):
    environment = {**os.environ, **hub.environment(), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_large_files_are_streamed_once(large_hub, tmp_path):
    weights = tmp_path / "folder" / "w.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(os.urandom(1 << 20) * 24)
    assert run_client(large_hub, _LARGE_CLIENT, weights.parent) == "4\n"
    assert [method for method, path in large_hub.requests if path.startswith("/lfs/")] == ["PUT"]
    entry = large_hub.store.get(RepoKind.MODEL, "user/large").commit_at("main").files["w.safetensors"]
    assert (entry.lfs, entry.size) == (True, 24 << 20)
    assert entry.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    status, headers, _ = raw(large_hub, "HEAD", "/user/large/resolve/main/w.safetensors")
    assert (status, headers["x-linked-size"], headers["x-linked-etag"]) == (200, str(24 << 20), f'"{entry.sha256}"')


def lfs_place(hub, content):
    oid = hashlib.sha256(content).hexdigest()
    request = json.dumps({"objects": [{"oid": oid, "size": len(content)}]}).encode()
    status, _, reply = raw(hub, "POST", "/user/large.git/info/lfs/objects/batch", body=request)
    assert status == 200, reply
    return json.loads(reply)["objects"][0]["actions"]["upload"]["href"].removeprefix(hub.endpoint)


def test_damaged_and_unannounced_large_files_are_refused(large_hub):
    HfApi(endpoint=large_hub.endpoint, token=large_hub.token).create_repo("user/large")
    place = lfs_place(large_hub, b"right")
    assert raw(large_hub, "PUT", place, body=b"wrong")[0] == 400
    assert raw(large_hub, "PUT", place, body=b"right and more")[0] == 413
    assert raw(large_hub, "PUT", place.replace("size=5", "size=50"), body=b"right")[0] == 403
    assert raw(large_hub, "PUT", place.split("?")[0], body=b"right")[0] == 403
    blobs = set((large_hub.folder / "blobs").rglob("*"))
    assert raw(large_hub, "PUT", place, body=b"right")[0] == 200
    assert len(set((large_hub.folder / "blobs").rglob("*")) - blobs) == 2
    assert not list((large_hub.folder / "incoming").iterdir())


# Disk


def test_everything_is_there_after_a_restart(tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo("user/kept", private=True)
        commit = put(api, "user/kept", files={"a.txt": b"kept"})
        api.create_tag("user/kept", tag="v1")
        pull = put(api, "user/kept", files={"a.txt": b"pull"}, create_pr=True)
        before, port, token = api.model_info("user/kept", files_metadata=True), hub.endpoint, hub.token
    with LocalHub(tmp_path / "hub", port=int(port.rsplit(":", 1)[1])) as hub:
        assert (hub.endpoint, hub.token) == (port, token)
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        assert api.model_info("user/kept", files_metadata=True) == before
        assert api.model_info("user/kept", revision="v1").sha == commit.oid
        assert api.model_info("user/kept", revision="refs/pr/1").sha == pull.oid
        path = hf_hub_download("user/kept", "a.txt", endpoint=port, token=token, cache_dir=tmp_path / "cache")
        assert Path(path).read_bytes() == b"kept"


def change(store, content):
    repository = store.get(RepoKind.MODEL, "user/repo")
    file = File.regular(store.disk.put(content), content)
    return repository.commit("main", [AddFile("a.txt", file)], title="change", author="me")[0]


def check_whole(store, repository):
    for commit in repository.history(repository.commit_at("main")):
        for file in commit.files.values():
            content = store.disk.blob_path(file.sha256).read_bytes()
            assert hashlib.sha256(content).hexdigest() == file.sha256


def in_a_fork_killed_at_step(step, action, folder):
    """Runs `action` in a child that kills itself in front of its `step`-th write to disk; True when it got there."""
    child = os.fork()
    if child == 0:
        try:
            store, counter = Store(folder), itertools.count(1)

            def guarded(function):
                def run(*args, **kwargs):
                    if next(counter) == step:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return function(*args, **kwargs)

                return run

            for name in ("fsync", "replace", "rename", "unlink", "rmdir"):
                setattr(os, name, guarded(getattr(os, name)))
            action(store)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status != 0


@needs_fork
def test_a_commit_that_is_killed_anywhere_leaves_the_old_head_or_the_new(tmp_path):
    folder = tmp_path / "hub"
    store = Store(folder)
    store.create(RepoKind.MODEL, "user/repo", author="me")
    head = change(store, b"first").sha
    store.close()
    for step in itertools.count(1):
        content = b"step %d" % step
        killed = in_a_fork_killed_at_step(step, lambda store, content=content: change(store, content), folder)
        store = Store(folder)
        repository = store.get(RepoKind.MODEL, "user/repo")
        after = repository.commit_at("main")
        check_whole(store, repository)
        assert not list((folder / "incoming").iterdir())
        moved = after.sha != head
        assert after.parent == head if moved else killed
        assert (store.disk.blob_path(after.files["a.txt"].sha256).read_bytes() == content) is moved
        head = after.sha
        store.close()
        if not killed:
            break
    assert step > 8


@needs_fork
@pytest.mark.parametrize("action", ["create", "delete", "move"])
def test_repositories_are_made_deleted_and_renamed_as_a_whole(tmp_path, action):
    folder = tmp_path / "hub"
    for step in itertools.count(1):
        store = Store(folder)
        for repository in store.all(RepoKind.MODEL):
            store.delete(repository)
        store.create(RepoKind.MODEL, "user/repo", author="me")
        store.close()

        def act(store):
            repository = store.get(RepoKind.MODEL, "user/repo")
            if action == "create":
                store.create(RepoKind.MODEL, "user/second", author="me")
            elif action == "delete":
                store.delete(repository)
            else:
                store.move(repository, "other/name")

        killed = in_a_fork_killed_at_step(step, act, folder)
        store = Store(folder)
        names = [repository.repo_id for repository in store.all(RepoKind.MODEL)]
        after = {"create": ["user/repo", "user/second"], "delete": [], "move": ["other/name"]}[action]
        assert names == after or (killed and names == ["user/repo"])
        for repository in store.all(RepoKind.MODEL):
            check_whole(store, repository)
        store.close()
        if not killed:
            break


@needs_fork
def test_a_folder_has_one_holder_and_a_killed_one_frees_it(tmp_path):
    folder = tmp_path / "hub"
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            store = Store(folder)
            store.create(RepoKind.MODEL, "user/repo", author="me")
            os.write(told, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.read(ready, 1)
    try:
        with pytest.raises(RepositoryError, match="in use by another local Hub"):
            Store(folder)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with LocalHub(folder) as hub:
        assert HfApi(endpoint=hub.endpoint, token=hub.token).repo_exists("user/repo")
        with pytest.raises(RepositoryError, match="in use by another local Hub"):
            LocalHub(folder).start()
    Store(folder).close()


@pytest.mark.parametrize("broken", ["fsync", "replace"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_full_disk_is_reported_and_changes_nothing(hub, api, repo, monkeypatch, broken, nth):
    head = put(api, repo, files={"a.txt": b"old"}).oid
    counter, works = itertools.count(1), getattr(os, broken)

    def fails(*args):
        if next(counter) >= nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return works(*args)

    content = f"{broken} {nth} {repo}".encode()
    with monkeypatch.context() as patch:
        patch.setattr(os, broken, fails)
        with pytest.raises(HfHubHTTPError, match="No space left on device") as e:
            put(api, repo, files={"a.txt": content})
    assert e.value.response.status_code == 507
    assert api.model_info(repo).sha == head
    assert not list((hub.folder / "incoming").iterdir())
    put(api, repo, files={"a.txt": content}, parent_commit=head)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "incoming").mkdir()
    with pytest.raises(RepositoryError, match="holds no local Hub"):
        LocalHub(tmp_path).start()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["incoming", "thesis.txt"]


def test_a_folder_that_cannot_be_made_is_refused_in_our_words(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (Path("/proc/foo"), tmp_path / "file", tmp_path / "file" / "hub"):
        with pytest.raises(RepositoryError, match=f"A Hub cannot be kept in '{folder}': .*\nChoose a folder"):
            LocalHub(folder).start()


def test_a_newer_format_is_refused(tmp_path):
    Disk(tmp_path).close()
    (tmp_path / "local_hub.json").write_text('{"format": 2, "token": "x"}')
    for _ in range(2):
        with pytest.raises(RepositoryError, match="has format 2"):
            Store(tmp_path)


# The server


def test_a_taken_port_is_named(hub, tmp_path):
    port = int(hub.endpoint.rsplit(":", 1)[1])
    with pytest.raises(ConfigError, match=f"Port {port} .* in use"):
        LocalHub(tmp_path / "other", port=port).start()
    LocalHub(tmp_path / "other").start().stop()


def test_a_hub_that_does_not_run_says_so(tmp_path):
    hub = LocalHub(tmp_path / "hub")
    hub.stop()
    for ask in (lambda: hub.endpoint, lambda: hub.token, hub.environment):
        with pytest.raises(RepositoryError, match="not running"):
            ask()
    assert not (tmp_path / "hub").exists()


def test_a_hub_starts_again(tmp_path):
    hub = LocalHub(tmp_path / "hub")
    for _ in range(2):
        assert hub.start() is hub.start()
        HfApi(endpoint=hub.endpoint, token=hub.token).whoami()
        hub.stop()
    with pytest.raises(ConfigError, match="Choose 'regular' or 'lfs'"):
        LocalHub(tmp_path / "hub", large_files="xet")
    with pytest.raises(Refused):
        LocalHub(tmp_path / "hub", user="../x")


def test_collections(api, anonymous):
    for name, private in (("shelf/one", False), ("shelf/two", True)):
        api.create_repo(name, private=private)
    made = api.create_collection("My models: modes!", namespace="shelf", description="What they are")
    assert made.slug.startswith("shelf/my-models-modes-")
    api.add_collection_item(made.slug, "shelf/one", "model", note="the first")
    found = api.add_collection_item(made.slug, "shelf/two", "model")
    assert [(one.item_id, one.note) for one in found.items] == [("shelf/one", "the first"), ("shelf/two", None)]
    assert api.get_collection(made.slug) == found
    assert [one.item_id for one in anonymous.get_collection(made.slug).items] == ["shelf/one"]
    assert [one.slug for one in api.list_collections(owner="shelf", item="models/shelf/two")] == [made.slug]
    assert not list(anonymous.list_collections(owner="shelf", item="models/shelf/two"))
    assert not list(api.list_collections(owner="nobody"))

    assert api.create_collection("My models: modes!", namespace="shelf", exists_ok=True) == found
    assert api.add_collection_item(made.slug, "shelf/one", "model", exists_ok=True) == found
    for refused, status in (
        (lambda: api.create_collection("My models: modes!", namespace="shelf"), 409),
        (lambda: api.add_collection_item(made.slug, "shelf/one", "model"), 409),
        (lambda: api.add_collection_item(made.slug, "shelf/none", "model"), 404),
        (lambda: api.add_collection_item(made.slug, "shelf/one", "paper"), 400),
        (lambda: api.create_collection("x", namespace="shelf", description="d" * 151), 400),
        (lambda: api.create_collection("x", namespace="../shelf"), 400),
        (lambda: anonymous.add_collection_item(made.slug, "shelf/one", "model"), 401),
        (lambda: anonymous.create_collection("x", namespace="shelf"), 401),
        (lambda: anonymous.delete_collection(made.slug), 401),
        (lambda: api.get_collection("shelf/none-0123"), 404),
    ):
        with pytest.raises(HfHubHTTPError) as caught:
            refused()
        assert caught.value.response.status_code == status
    hidden = api.create_collection("Hidden", namespace="shelf", private=True)
    with pytest.raises(HfHubHTTPError):
        anonymous.get_collection(hidden.slug)
    assert [one.title for one in anonymous.list_collections(owner="shelf")] == ["My models: modes!"]

    api.delete_collection_item(made.slug, found.items[0].item_object_id)
    assert [one.item_id for one in api.get_collection(made.slug).items] == ["shelf/two"]
    api.delete_repo("shelf/two")
    assert api.get_collection(made.slug).items == []
    api.delete_collection(made.slug)
    with pytest.raises(HfHubHTTPError):
        api.delete_collection(made.slug)


def test_an_answer_does_not_wait_for_an_acknowledgement(api):
    taken = []
    for _ in range(10):
        start = time.perf_counter()
        api.whoami()
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.03


def test_only_this_machine_is_served(hub):
    assert hub.endpoint.startswith("http://127.0.0.1:")
    (server,) = hub._server.servers
    assert [socket.getsockname()[0] for socket in server.sockets] == ["127.0.0.1"]


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingDependencyError, match=r"pip install .*\[demo\]"):
        LocalHub(tmp_path / "hub").start()
    with pytest.raises(MissingDependencyError, match="Feature needs the module 'no_such_module'"):
        _imports.import_or_raise("no_such_module.part", "demo", "Feature")


def test_every_module_imports_without_the_extra(monkeypatch):
    monkeypatch.setattr(taia_hub, "local_hub", taia_hub.local_hub)
    for name in [name for name in sys.modules if name.split(".")[0] in ("starlette", "uvicorn")]:
        monkeypatch.setitem(sys.modules, name, None)
    names = [f"taia_hub.local_hub.{module.name}" for module in pkgutil.iter_modules(taia_hub.local_hub.__path__)]
    for name in ["taia_hub.local_hub", *names]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert len([importlib.import_module(name) for name in names]) > 8


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_ends_a_served_hub_cleanly(tmp_path):
    hub = LocalHub(tmp_path / "hub").start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a runner in the background may ignore SIGINT
    try:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        hub.serve_forever()
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(RepositoryError, match="not running"):
        hub.token  # noqa: B018
    Store(tmp_path / "hub").close()


# Libraries over the Hub


_TRANSFORMERS_AND_PEFT = """
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                     num_attention_heads=2, num_key_value_heads=2)
model, tokens = LlamaForCausalLM(config).eval(), torch.arange(8)[None]
model.push_to_hub("user/tiny")
again = AutoModelForCausalLM.from_pretrained("user/tiny").eval()
assert torch.equal(model(tokens).logits, again(tokens).logits)
tuned = get_peft_model(again, LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj", "down_proj"])).eval()
tuned.push_to_hub("user/tiny-lora", private=True)
base = AutoModelForCausalLM.from_pretrained("user/tiny")
loaded = PeftModel.from_pretrained(base, "user/tiny-lora").eval()
assert torch.equal(tuned(tokens).logits, loaded(tokens).logits)
assert not torch.equal(model(tokens).logits, loaded(tokens).logits)
"""

_DATASETS = """
import sys
from datasets import Dataset, load_dataset
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("user/data", repo_type="dataset", private=True)
lines = b'{"question": "a", "answer": 1}\\n{"question": "b", "answer": 2}\\n'
api.upload_file(path_or_fileobj=lines, path_in_repo="train.jsonl", repo_id="user/data", repo_type="dataset")
assert load_dataset("user/data", split="train")["answer"] == [1, 2]
if sys.argv[1] == "lfs":
    Dataset.from_dict({"text": ["x", "y"]}).push_to_hub("user/pushed")
    assert load_dataset("user/pushed", split="train")["text"] == ["x", "y"]
"""


@pytest.mark.slow
def test_transformers_and_peft_push_and_load(hub):
    run_client(hub, _TRANSFORMERS_AND_PEFT)
    assert len([path for path in commits_sent(hub) if "user/tiny/" in path]) == 1


@pytest.mark.parametrize("mode", ["regular", "lfs"])
def test_datasets_load_and_push(request, mode):
    # push_to_hub deletes its files once they are sent ahead of the commit: it cannot push to a "regular" Hub.
    pytest.importorskip("datasets")
    run_client(request.getfixturevalue("hub" if mode == "regular" else "large_hub"), _DATASETS, mode)
