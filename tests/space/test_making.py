"""Spaces that compare the modes of a model: published whole over HTTP, brought up to date, written to a folder."""

import dataclasses
import importlib.metadata
import io
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import huggingface_hub.utils._http as client
import pytest
import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from packaging.requirements import Requirement

import taia_hub
from taia_hub import cards
from taia_hub.cli import spaces as cli_spaces
from taia_hub.errors import ConfigError, MissingDependencyError, RepositoryError, TAIAError
from taia_hub.repository.card_request import CardRequest
from taia_hub.repository.card_updating import check_repository_card, make_card
from taia_hub.repository.creating import create_repository
from taia_hub.space import making as space_making
from taia_hub.space import package as space_package
from taia_hub.space import reading as space_reading
from taia_hub.space import rendering as space_rendering
from taia_hub.space.making import plan_space, publish_space, space_files
from taia_hub.space.package import SpacePackage, dependencies, read_package, source_files
from taia_hub.space.rendering import SpaceModel, merge_space, suggested_hardware
from tests.card_samples import EVERYTHING
from tests.space.helpers import GIT, create_space

ROOT = Path(__file__).parents[2]
OURS = {"README.md", "app.py", "requirements.txt", ".taia_space.json"}
NUMBERS = itertools.count()
VERSIONS = {"gradio": "6.31.0", "torch": "2.13.0+cpu", "peft": "0.21.2"}
PACKAGE = SpacePackage((f"taia-hub[space] @ {GIT}",))
MODEL = SpaceModel("org/model-taia", "a" * 40, "org/base", "b" * 40)


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)


@pytest.fixture
def repo_id():
    """A repository id of this test's own, short enough for what is added to it."""
    return f"own/model-{next(NUMBERS)}"


@pytest.fixture
def repo(online, repo_id):
    """A TAIA repository of this test's own, whose card may be linked."""
    online.model().push_to_hub(repo_id)
    online.hub.requests.clear()
    return repo_id


@pytest.fixture
def space(repo_id):
    return f"{repo_id}-compare"


def listing(online, space):
    """Returns the Space's head, files and variables, to see whether anything changed."""
    info = online.api.space_info(space, files_metadata=True)
    variables = {key: one.value for key, one in online.api.get_space_variables(space).items()}
    return info.sha, {one.rfilename: one.blob_id for one in info.siblings}, variables


def read(space, name, repo_type="space"):
    return Path(hf_hub_download(space, name, repo_type=repo_type)).read_text(encoding="utf-8")


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


def commit(online, space, *operations, repo_type="space"):
    online.api.create_commit(space, list(operations), commit_message="by hand", repo_type=repo_type)


def add(name, text):
    return CommitOperationAdd(name, text.encode())


# Publishing


def test_a_space_is_published_in_one_commit(online, repo, space):
    head = online.api.model_info(repo).sha
    done = create_space(repo, space_id=space, private=True, hardware="zero-a10g", link=False)
    assert online.commits() == [f"/api/spaces/{space}/commit/main"]
    sha, files, variables = listing(online, space)
    assert set(files) == OURS | {".gitattributes"}
    assert variables == {"TAIA_MODEL_ID": repo, "TAIA_REVISION": head}
    info = online.api.space_info(space)
    assert (info.sdk, info.private, info.runtime.requested_hardware) == ("gradio", True, "zero-a10g")
    assert (done.commit, done.url) == (sha, f"{online.hub.endpoint}/spaces/{space}")
    assert set(done.files) == OURS
    assert (done.kept, done.warnings, done.deleted, done.card_commit) == ((), (), (), None)
    assert read(space, "app.py") == (ROOT / "spaces" / "compare" / "app.py").read_text(encoding="utf-8")


def test_the_model_is_not_in_the_code(online, repo, space):
    create_space(repo, space_id=space, link=False)
    assert repo not in read(space, "app.py")
    assert repo not in read(space, ".taia_space.json")


def test_the_front_matter_is_pinned_to_commits_that_hold_the_files(online, repo, space):
    create_space(repo, space_id=space, link=False)
    data = front(read(space, "README.md"))
    assert (data["sdk"], data["app_file"], data["license"]) == ("gradio", "app.py", "apache-2.0")
    assert data["sdk_version"] == importlib.metadata.version("gradio")
    assert data["models"] == [repo, online.base]
    assert data["suggested_hardware"] == "zero-a10g"
    assert len(data["short_description"]) <= 60
    assert "taia" in data["tags"]
    pinned = {name: (files.split(","), sha) for name, files, sha in map(str.split, data["preload_from_hub"])}
    assert pinned[repo][1] == online.api.model_info(repo).sha
    assert pinned[online.base][1] == online.base_sha
    for name, (files, sha) in pinned.items():
        assert set(files) <= set(online.api.list_repo_files(name, revision=sha))
    assert {"config.json", "taia_manifest.json", "adapter/adapter_model.safetensors"} <= set(pinned[repo][0])
    assert {"config.json", "model.safetensors"} <= set(pinned[online.base][0])
    assert "(licence: pico-1.0)" in read(space, "README.md")


@pytest.mark.slow
def test_what_the_build_loads_beforehand_is_all_that_the_model_needs(online, repo, space, tmp_path, clean_process):
    create_space(repo, space_id=space, link=False)
    head = online.api.model_info(repo).sha
    for entry in front(read(space, "README.md"))["preload_from_hub"]:
        name, files, sha = entry.split()
        for file in files.split(","):
            hf_hub_download(name, file, revision=sha, cache_dir=tmp_path / "home" / "hub")
    commit(online, repo, add("config.json", "{}"), repo_type="model")  # the pin does not move with the branch
    result = clean_process(
        "import os, taia_hub\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "name, revision = os.environ['TAIA_MODEL_ID'], os.environ['TAIA_REVISION']\n"
        "tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)\n"
        "model = AutoModelForCausalLM.from_pretrained(name, revision=revision)\n"
        "print(model.inference_modules, len(tokenizer('the a')['input_ids']))\n",
        HF_HUB_OFFLINE="1",
        TAIA_MODEL_ID=repo,
        TAIA_REVISION=head,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[0] == "attention"


def test_an_adapter_of_another_repository_is_pinned_too(online, repo_id, space):
    create_repository(online.base, online.adapter, push=repo_id, link=True)
    create_space(repo_id, space_id=space, link=False)
    data = front(read(space, "README.md"))
    assert data["models"] == [repo_id, online.base, online.adapter]
    name, files, sha = data["preload_from_hub"][-1].split()
    assert (name, sha) == (online.adapter, online.api.model_info(online.adapter).sha)
    assert set(files.split(",")) == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_revision_is_pinned_as_its_commit(online, repo, space):
    first = online.api.model_info(repo).sha
    online.api.create_tag(repo, tag="v1")
    commit(online, repo, add("NEWS", "later"), repo_type="model")
    create_space(repo, space_id=space, revision="v1", link=False)
    assert listing(online, space)[2]["TAIA_REVISION"] == first


def test_the_requirements_are_the_versions_in_use(online, repo, space):
    create_space(repo, space_id=space, link=False)
    comment, package, *lines = read(space, "requirements.txt").splitlines()
    found = dict(line.split("==") for line in lines)
    assert (comment[0], package) == ("#", f"taia-hub[space] @ {GIT}")
    assert found["gradio"] == importlib.metadata.version("gradio")
    assert found["transformers"] == importlib.metadata.version("transformers")
    assert found["torch"] == importlib.metadata.version("torch").partition("+")[0]
    assert {"gradio", "spaces", "torch", "transformers", "peft"} <= set(found)


def test_the_name_is_made_of_the_models(online, repo):
    plan = plan_space(repo)
    assert plan.space_id == f"local/{repo.partition('/')[2]}-compare"


def test_an_owner_who_the_user_may_write_for_keeps_the_space(online, repo, monkeypatch):
    orgs = [{"name": "own", "roleInOrg": "write"}]
    monkeypatch.setattr(HfApi, "whoami", lambda self: {"name": "me", "orgs": orgs})
    assert plan_space(repo).space_id == f"{repo}-compare"
    orgs[0]["roleInOrg"] = "read"
    assert plan_space(repo).space_id.startswith("me/")


def test_a_space_that_the_hub_has_just_made_is_taken_over(online, repo, space):
    online.api.create_repo(space, repo_type="space", space_sdk="gradio", private=True)
    create_space(repo, space_id=space, link=False)
    assert set(listing(online, space)[1]) == OURS | {".gitattributes"}
    assert listing(online, space)[2]["TAIA_MODEL_ID"] == repo


# Again


def test_a_second_time_changes_nothing(online, repo, space):
    create_space(repo, space_id=space, link=False)
    before = listing(online, space)
    online.hub.requests.clear()
    done = create_space(repo, space_id=space, link=False)
    assert (done.commit, done.files, done.kept) == (None, (), ())
    assert not [path for method, path in online.hub.requests if method in ("POST", "PUT", "DELETE")]
    assert listing(online, space) == before


def test_edits_and_own_files_stay_and_the_rest_follows_the_model(online, repo, space):
    create_space(repo, space_id=space, link=False)
    readme = (
        read(space, "README.md")
        .replace("TAIA side by side'", "my title'")
        .replace("side by side:", "next to each other:")
    )
    readme = readme.replace("## Models\n", "## Mine\n\nMy text.\n\n## Models\n") + "\n"
    commit(
        online,
        space,
        add("README.md", readme),
        add("app.py", "import mine\n"),
        add("mine.py", "own = 1\n"),
        CommitOperationDelete("requirements.txt"),
    )
    online.api.add_space_variable(space, "OWN", "1")
    commit(online, repo, add("NEWS", "new head"), repo_type="model")
    head = online.api.model_info(repo).sha
    done = create_space(repo, space_id=space, link=False)
    assert set(done.files) == {"README.md", "requirements.txt"}
    assert "app.py stays as you changed it; rename it to get the new one" in done.kept
    assert any(sentence.startswith("README.md: metadata 'title'") for sentence in done.kept)
    assert read(space, "app.py") == "import mine\n"
    assert read(space, "mine.py") == "own = 1\n"
    now = read(space, "README.md")
    assert front(now)["title"].endswith(": my title")
    assert "## Mine\n\nMy text.\n" in now
    assert "next to each other:" in now
    assert any(entry.endswith(head) for entry in front(now)["preload_from_hub"])
    assert f"at `{head}`" in now
    assert "torch==" in read(space, "requirements.txt")
    assert listing(online, space)[2] == {"TAIA_MODEL_ID": repo, "TAIA_REVISION": head, "OWN": "1"}
    again = create_space(repo, space_id=space, link=False)
    assert again.commit is None
    assert "app.py stays as you changed it; rename it to get the new one" in again.kept


def test_an_edited_file_that_is_deleted_is_ours_again(online, repo, space):
    create_space(repo, space_id=space, link=False)
    commit(online, space, add("app.py", "import mine\n"))
    assert create_space(repo, space_id=space, link=False).kept
    commit(online, space, CommitOperationDelete("app.py"))
    assert create_space(repo, space_id=space, link=False).kept == ()
    assert "taia_hub" in read(space, "app.py")


def test_a_new_app_replaces_the_old_one_and_what_is_gone_is_deleted(online, repo, space, tmp_path, monkeypatch):
    app = tmp_path / "compare"
    shutil.copytree(ROOT / "spaces" / "compare", app)
    (app / "old.css").write_text("a {}\n")
    (app / "edited.css").write_text("b {}\n")
    monkeypatch.setattr(space_rendering, "app_folder", lambda: app)
    create_space(repo, space_id=space, link=False)
    commit(online, space, add("edited.css", "mine {}\n"))
    (app / "old.css").unlink()
    (app / "edited.css").unlink()
    (app / "app.py").write_text("import newer\n")
    done = create_space(repo, space_id=space, link=False)
    assert done.deleted == ("old.css",)
    assert done.kept == ("edited.css stays as you changed it, though it is no longer needed",)
    assert read(space, "app.py") == "import newer\n"
    assert "old.css" not in listing(online, space)[1]
    assert read(space, "edited.css") == "mine {}\n"


def test_a_users_file_of_a_name_that_becomes_ours_stays():
    first = merge_space({"app.py": b"1"}, None, "0")
    there = {**first.files, "new.css": b"mine"}
    merged = merge_space({"app.py": b"2", "new.css": b"ours"}, there, "0")
    assert set(merged.files) == {"app.py", ".taia_space.json"}
    assert merged.kept == ("new.css stays as you changed it; rename it to get the new one",)
    later = merge_space({"app.py": b"2", "new.css": b"newer"}, {**there, **merged.files}, "0")
    assert "new.css" not in later.files


def test_a_readme_that_was_taken_over_stays_whole():
    new = space_files(MODEL, VERSIONS, PACKAGE)
    there = {**merge_space(new, None, "0").files, "README.md": b"---\ntitle: x\n---\nmine\n"}
    merged = merge_space(new, there, "0")
    assert "README.md" not in merged.files
    assert merged.kept == ("README.md stays as you wrote it, and with it the versions that it names",)


def requested(online, space):
    return online.api.get_space_runtime(space).requested_hardware


def test_a_new_space_asks_for_zerogpu_and_one_that_is_there_stays_as_it_is(online, repo, space):
    create_space(repo, space_id=space, link=False)
    assert requested(online, space) == "zero-a10g"
    assert front(read(space, "README.md"))["python_version"].startswith("3.12")
    create_space(repo, space_id=space, hardware="cpu-upgrade", link=False)
    assert requested(online, space) == "cpu-upgrade"
    create_space(repo, space_id=space, link=False)
    assert requested(online, space) == "cpu-upgrade"
    data = front(read(space, "README.md"))
    assert data["suggested_hardware"] == "cpu-upgrade"
    assert data["python_version"] == ".".join(platform.python_version_tuple()[:2])


def test_a_model_too_large_for_zerogpu_asks_for_nothing_that_costs_money(online, repo, space, monkeypatch):
    read_model = space_making.read_model

    def sized(gibibytes):
        large = dataclasses.replace(read_model(repo, None, None), bytes=gibibytes * 2**30)
        monkeypatch.setattr(space_making, "read_model", lambda *values: large)

    sized(140)
    plan = plan_space(repo, space_id=space, package=GIT)
    assert plan.hardware is None
    assert "The weights take 140 GiB, more than ZeroGPU lends: --hardware a100x4" in plan.warnings[0]
    assert plan_space(repo, space_id=space, package=GIT, hardware="zero-a10g").warnings == plan.warnings
    assert plan_space(repo, space_id=space, package=GIT, hardware="a100x4").warnings == ()
    sized(60)
    plan = plan_space(repo, space_id=space, package=GIT)
    assert plan.hardware == "zero-a10g"
    assert "a whole card of ZeroGPU, at twice a visitor's quota" in plan.warnings[0]


# How it gets taia-hub


def test_a_bundle_is_one_commit_that_is_brought_up_to_date_without_fetching_it(online, repo, space, monkeypatch):
    done = create_space(repo, space_id=space, package=None, link=False)
    assert online.commits() == [f"/api/spaces/{space}/commit/main"]
    ours = source_files()
    assert set(done.files) == OURS | set(ours)
    assert {"taia_hub/__init__.py", "taia_hub/page/style.css", "taia_hub/_templates/space.md.j2"} <= set(ours)
    assert not [name for name in ours if re.search(r"pycache|_spaces|tests/|\.pyc", name)]
    assert set(listing(online, space)[1]) == {*OURS, *ours, ".gitattributes"}
    lines = read(space, "requirements.txt").splitlines()[1:]
    names = [Requirement(line).name for line in lines]
    assert "taia-hub" not in names
    assert len(names) == len(set(names))
    assert {"torch", "transformers", "peft", "jinja2", "matplotlib", "gradio", "spaces"} <= set(names)
    assert all("==" in line for line in lines)

    online.hub.requests.clear()
    assert create_space(repo, space_id=space, package=None, link=False).commit is None
    fetched = [path for method, path in online.hub.requests if method == "GET" and "/resolve/" in path]
    assert len(fetched) <= 2  # README and state: the rest is known by its hashes

    commit(online, space, add("taia_hub/errors.py", "mine = 1\n"))
    newer = {name: content for name, content in ours.items() if name != "taia_hub/py.typed"}
    newer["taia_hub/_version.py"] += b"# newer\n"
    monkeypatch.setattr(space_package, "source_files", lambda: newer)
    online.hub.requests.clear()
    done = create_space(repo, space_id=space, package=None, link=False)
    assert (set(done.files), done.deleted) == ({"taia_hub/_version.py", ".taia_space.json"}, ("taia_hub/py.typed",))
    assert done.kept == ("taia_hub/errors.py stays as you changed it; rename it to get the new one",)
    assert read(space, "taia_hub/errors.py") == "mine = 1\n"
    assert len(online.commits()) == 1

    done = create_space(repo, space_id=space, link=False)  # from git from now on
    assert done.kept == ("taia_hub/errors.py stays as you changed it, though it is no longer needed",)
    assert set(listing(online, space)[1]) == {*OURS, "taia_hub/errors.py", ".gitattributes"}


def test_what_lies_in_a_clone_and_does_not_ship_is_not_published(tmp_path, monkeypatch):
    clone = tmp_path / "taia_hub"
    shutil.copytree(space_package.PACKAGE, clone, ignore=shutil.ignore_patterns("__pycache__", "_*s"))
    before = len(source_files())
    for name in ("notes.md", "demo/data/patients.jsonl", "page/model.safetensors", "TODO", "keys.json", ".env"):
        (clone / name).write_text("mine")
    monkeypatch.setattr(space_package, "PACKAGE", clone)
    assert len(source_files()) == before
    tracked = subprocess.run(
        ["git", "ls-files", "taia_hub"], cwd=Path(taia_hub.__file__).parents[1], text=True, capture_output=True
    )
    assert set(tracked.stdout.split()) <= set(source_files())


def test_a_bundle_in_a_folder_leaves_no_empty_folders(online, repo, tmp_path):
    create_space(repo, out=tmp_path / "space", package="bundle")
    assert (tmp_path / "space" / "taia_hub" / "page" / "style.css").is_file()
    create_space(repo, out=tmp_path / "space")
    assert {path.name for path in (tmp_path / "space").iterdir()} == OURS


def test_the_running_version_is_taken_where_an_index_has_it(monkeypatch):
    assert read_package().files  # a clone
    monkeypatch.setattr(space_package.installing, "SOURCE", "index")
    assert read_package().files
    monkeypatch.setattr(space_package, "PACKAGE", Path("/env/site-packages/taia_hub"))
    assert read_package() == SpacePackage((f"taia-hub[space]=={taia_hub.__version__}",))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("newest", "'newest' is no version"),
        ("", "'' is no version"),
        ("99.9", r"pip finds no taia-hub 99\.9: .*"),
        ("git+ssh://git@example.org/taia-hub", "holds a name or a token"),
        ("git+http://example.org/taia-hub", "another form"),
        ("https://example.org/taia-hub.git", "another form"),
        ("git+https://example.org/taia-hub#egg=x", "another form"),
        ("git+https://example.org/taia-hub\ntorch", "another form"),
        ("../taia-hub", "another form"),
        ("git+https://me:secret@example.org/taia-hub", "holds a name or a token"),
        ("https://me:secret@example.org/taia-hub", "holds a name or a token"),
        ("git+http://secret@example.org/taia-hub", "holds a name or a token"),
        ("git+https://me:se/secret@example.org/taia-hub", "holds a name or a token"),
        ("me:secret@example.org/taia-hub", "holds a name or a token"),
    ],
)
def test_another_package_is_refused_with_what_is_allowed(taia, online, repo, monkeypatch, asked, words):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    status, _, err = taia("space", "create", repo, "--package", asked, "--private")
    assert status == 1
    assert re.search(words, " ".join(err.split()))
    assert "bundle" in err
    assert "secret" not in err
    assert not online.commits()


def test_a_version_is_one_that_pip_finds(monkeypatch, tmp_path):
    name = "taia_hub-9.9-py3-none-any.whl"
    with zipfile.ZipFile(tmp_path / name, "w") as wheel:
        wheel.writestr("taia_hub-9.9.dist-info/METADATA", "Metadata-Version: 2.1\nName: taia-hub\nVersion: 9.9\n")
        wheel.writestr("taia_hub-9.9.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("taia_hub-9.9.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert read_package("9.9").requirements == ("taia-hub[space]==9.9",)


def test_what_a_bundle_needs_is_what_the_extra_of_the_package_names(monkeypatch):
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    monkeypatch.setattr(
        importlib.metadata,
        "requires",
        lambda name: [*project["dependencies"], *(f"{one}; extra == '{key}'" for key in extras for one in extras[key])],
    )
    found = {Requirement(line).name for line in dependencies()}
    wanted = {Requirement(line).name for line in (*project["dependencies"], "gradio", "matplotlib")}
    assert found == wanted
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["not-there>=1"])
    with pytest.raises(MissingDependencyError, match="'not-there' is not installed here") as caught:
        dependencies()
    assert "--package" in caught.value.hint


@pytest.mark.parametrize("version", ["2.8.0", "2.9.0+cu128", "2.12.0", "2.13.0+cpu", "2.13.1", "2.14.0", "3.0.0"])
def test_torch_is_one_that_zerogpu_has_and_only_there(version):
    def torch(hardware):
        files = space_files(MODEL, {**VERSIONS, "torch": version}, PACKAGE, hardware=hardware)
        return re.search(r"^torch==(.*)$", files["requirements.txt"].decode(), re.M)[1]

    listed = {"2.8.0", "2.9.1", "2.10.0", "2.11.0", "2.12.1", "2.13.0"}
    assert torch("cpu-upgrade") == version.partition("+")[0]
    assert torch("zero-a10g") in listed
    assert torch("zero-a10g")[:4] == version[:4] or version[:4] in ("2.14", "3.0.")
    bound = next(line for line in importlib.metadata.requires("taia-hub") if Requirement(line).name == "torch")
    assert Requirement(bound).specifier.contains(torch("zero-a10g"))


# Whole or not at all


def from_request(number, answer):
    """Lets the requests before `number` pass and gives that kind of request, and its repetitions, another answer."""
    seen = []

    def fail(method, path):
        seen.append((method, path))
        return answer if len(seen) > number and (method, path) == seen[number] else None

    return fail


def test_no_request_that_fails_leaves_a_new_space(online, repo, space, no_waiting):
    plan = plan_space(repo, space_id=space)
    online.hub.requests.clear()
    publish_space(
        dataclasses.replace(plan, head=dataclasses.replace(plan.head, repo_id=f"{space}-counted")), link=False
    )
    count = len(online.hub.requests)
    assert count >= 4
    for number in range(count):
        online.hub.fail = from_request(number, 500)
        with pytest.raises(TAIAError):
            publish_space(plan, link=False)
        online.hub.fail = None
        assert not online.api.repo_exists(space, repo_type="space"), number


def test_no_request_that_fails_changes_a_space_that_is_there(online, repo, space, no_waiting):
    def state():
        return listing(online, space), online.api.get_space_runtime(space).requested_hardware

    create_space(repo, space_id=space, hardware="cpu-basic", link=False)
    commit(online, repo, add("NEWS", "new head"), repo_type="model")
    before = state()
    for number in itertools.count():
        seen = len(online.hub.requests)
        online.hub.fail = from_request(number, 500)
        try:
            create_space(repo, space_id=space, hardware="cpu-upgrade", link=False)
        except TAIAError:
            online.hub.fail = None
            assert state() == before, number
        else:
            break
    online.hub.fail = None
    assert number == len(online.hub.requests) - seen  # it went well because there was no such request
    assert number >= 10


def test_a_race_is_refused(online, repo, space):
    create_space(repo, space_id=space, link=False)
    commit(online, repo, add("NEWS", "new head"), repo_type="model")
    plan = plan_space(repo, space_id=space)
    commit(online, space, add("app.py", "somebody was faster\n"))
    before = listing(online, space)
    with pytest.raises(RepositoryError, match="another commit while this one was made; nothing was published"):
        publish_space(plan)
    assert listing(online, space) == before


def test_a_space_that_somebody_makes_meanwhile_is_refused_and_stays(online, repo, space):
    plan = plan_space(repo, space_id=space)
    online.api.create_repo(space, repo_type="space", space_sdk="static")
    commit(online, space, add("index.html", "theirs"))
    with pytest.raises(RepositoryError, match=r"refused.*Space.*\(409\)") as caught:
        publish_space(plan)
    assert "Look at what is there" in caught.value.hint
    assert set(listing(online, space)[1]) == {".gitattributes", "index.html"}


@pytest.mark.parametrize("faster", [False, True])
def test_a_new_space_goes_again_unless_somebody_committed_to_it(online, repo, space, monkeypatch, faster):
    original = type(online.api).create_commit

    def fails(self, *args, **kwargs):
        if faster:
            original(self, space, [add("THEIRS", "x")], commit_message="faster", repo_type="space")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(online.api), "create_commit", fails)
        with pytest.raises(KeyboardInterrupt):
            create_space(repo, space_id=space)
    assert online.api.repo_exists(space, repo_type="space") == faster


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "Check the token"),
        (402, "Free personal accounts older than 30 days may host two Spaces on ZeroGPU (--hardware zero-a10g)"),
        (403, "Check the token"),
        (404, "Check the name and its owner"),
        (409, "Look at what is there"),
    ],
)
def test_what_the_hub_refuses_is_said_with_the_next_step(online, repo, space, status, words):
    online.hub.fail = lambda method, path: status if path == "/api/repos/create" else None
    with pytest.raises(RepositoryError, match=rf"refused a request for the Space '{space}' \({status}\)") as caught:
        create_space(repo, space_id=space)
    assert words in caught.value.hint
    assert (f"`taia compare {repo} --ui` shows the same page here" in caught.value.hint) == (status == 402)
    assert not online.api.repo_exists(space, repo_type="space")


def test_hardware_that_must_be_paid_leaves_a_space_as_it_is(online, repo, space):
    create_space(repo, space_id=space, link=False)
    before = listing(online, space)
    online.hub.fail = lambda method, path: 402 if path.endswith("/hardware") else None
    with pytest.raises(RepositoryError, match="402") as caught:
        create_space(repo, space_id=space, hardware="a100x4", link=False)
    online.hub.fail = None
    assert "any other hardware a payment method" in caught.value.hint
    assert (listing(online, space), requested(online, space)) == (before, "zero-a10g")


# The link on the model's card


def test_the_models_card_is_linked_and_nothing_else_of_it_changes(online, repo, space):
    before = read(repo, "README.md", "model")
    done = create_space(repo, space_id=space)
    assert online.commits() == [f"/api/spaces/{space}/commit/main", f"/api/models/{repo}/commit/main"]
    after = read(repo, "README.md", "model")
    line = f"Try it: [Space](https://huggingface.co/spaces/{space})"
    assert front(after) == {**front(before), "taia_space": space}
    new = [one for one in after.split("\n---\n", 1)[1].splitlines() if not one.startswith("<!-- taia:")]
    old = [one for one in before.split("\n---\n", 1)[1].splitlines() if not one.startswith("<!-- taia:")]
    assert [one for one in new if one not in old] == [line]
    assert [one for one in new if one and one != line] == [one for one in old if one]
    assert done.card_commit.endswith(online.api.model_info(repo).sha)
    assert all(finding.ok for finding in check_repository_card(repo, CardRequest()))


def test_the_link_stays_when_the_card_is_made_again(online, repo, space):
    create_space(repo, space_id=space)
    made = make_card(repo, CardRequest())
    assert (made.difference(), made.kept) == ("", ())
    online.model().push_to_hub(repo, tags=["more"])
    after = read(repo, "README.md", "model")
    assert front(after)["taia_space"] == space
    assert after.count(f"Try it: [Space](https://huggingface.co/spaces/{space})") == 1
    assert "more" in front(after)["tags"]


def test_a_second_and_third_time_settle(online, repo, space):
    create_space(repo, space_id=space)
    second = create_space(repo, space_id=space)  # the link is a commit of the model's
    assert (second.files, second.card_commit) == (("README.md",), None)
    third = create_space(repo, space_id=space)
    assert (third.commit, third.card_commit) == (None, None)


def test_no_link_leaves_the_model_alone(online, repo, space):
    before = online.files(repo)
    create_space(repo, space_id=space, link=False)
    assert online.files(repo) == before


@pytest.mark.parametrize("why", ["forbidden", "own card", "no card", "race"])
def test_a_card_that_cannot_be_linked_is_a_warning_with_the_line(online, repo, space, why, monkeypatch):
    if why == "own card":
        commit(online, repo, add("README.md", "# Mine\n"), repo_type="model")
    if why == "no card":
        commit(online, repo, CommitOperationDelete("README.md"), repo_type="model")
    before = online.files(repo)
    if why == "forbidden":
        online.hub.fail = lambda method, path: 403 if f"{repo}/commit" in path else None
    if why == "race":
        online.hub.fail = lambda method, path: 412 if f"{repo}/commit" in path else None
    done = create_space(repo, space_id=space)
    online.hub.fail = None
    assert done.commit
    assert online.files(repo) == before
    (warning,) = done.warnings
    assert f"the card of '{repo}' was not linked" in warning
    assert warning.endswith(f"Try it: [Space](https://huggingface.co/spaces/{space})")


@pytest.mark.parametrize("template", ["model_card", "short"])
def test_a_linked_card_is_the_card_rendered_with_the_link(template):
    without = cards.render_card(dataclasses.replace(EVERYTHING, space=None), template)
    linked = cards.with_space(without, "org/a")
    rendered = cards.render_card(dataclasses.replace(EVERYTHING, space="org/a"), template)
    assert linked.split("\n---\n", 1)[1].split("\n\n", 1)[1] == rendered.split("\n---\n", 1)[1].split("\n\n", 1)[1]
    assert front(linked) == front(rendered)
    moved = cards.with_space(linked, "org/b")
    assert "spaces/org/a)" not in moved
    assert moved.count("https://huggingface.co/spaces/org/b") == 1
    assert (
        cards.merge_cards(moved, cards.render_card(dataclasses.replace(EVERYTHING, space="org/b"), template)).kept == ()
    )


def test_what_a_person_decided_about_the_link_stays():
    linked = cards.with_space(cards.render_card(dataclasses.replace(EVERYTHING, space=None)), "org/a")
    by_hand = linked.replace("taia_space: org/a", "taia_space: me/own")
    assert cards.with_space(by_hand, "org/b") == by_hand
    removed = linked.replace("taia_space: org/a\n", "")
    assert cards.with_space(removed, "org/b") == removed
    edited = linked.replace("A LoRA fine-tune", "My fine-tune")
    moved = cards.with_space(edited, "org/b")
    assert "My fine-tune" in moved
    assert "spaces/org/b)" in moved
    kept = cards.merge_cards(moved, cards.render_card(dataclasses.replace(EVERYTHING, space="org/b"))).text
    assert "My fine-tune" in kept


# A folder instead


def test_a_dry_run_writes_what_would_be_published_and_publishes_nothing(online, repo, space, tmp_path):
    done = create_space(repo, space_id=space, out=tmp_path / "space")
    assert not [path for method, path in online.hub.requests if method in ("POST", "PUT", "DELETE")]
    assert not online.api.repo_exists(space, repo_type="space")
    assert {path.name for path in (tmp_path / "space").iterdir()} == OURS
    assert (done.url, done.commit) == (str(tmp_path / "space"), None)
    create_space(repo, space_id=space, link=False)
    for name in OURS:
        assert read(space, name) == (tmp_path / "space" / name).read_text(encoding="utf-8")


def test_a_folder_is_brought_up_to_date_and_edits_stay(online, repo, tmp_path):
    folder = tmp_path / "space"
    create_space(repo, out=folder)
    (folder / "app.py").write_text("import mine\n")
    (folder / "mine.txt").write_text("mine")
    (folder / "requirements.txt").unlink()
    done = create_space(repo, out=folder, title="Another title")
    assert (folder / "app.py").read_text() == "import mine\n"
    assert (folder / "mine.txt").read_text() == "mine"
    assert front((folder / "README.md").read_text())["title"] == "Another title"
    assert "requirements.txt" in done.files
    assert done.kept == ("app.py stays as you changed it; rename it to get the new one",)


def test_a_folder_of_somebody_else_is_not_written_to(online, repo, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RepositoryError, match="not empty and holds no Space of taia-hub") as caught:
        create_space(repo, out=tmp_path)
    assert "--out" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_is_written_whole_or_not_at_all(online, repo, tmp_path, monkeypatch):
    original, moved = os.replace, []

    def fails(source, target):
        moved.append(target)
        if len(moved) == 3:
            raise PermissionError(13, "denied", str(target))
        return original(source, target)

    with monkeypatch.context() as patch:
        plan = plan_space(repo, out=tmp_path / "space")
        patch.setattr(os, "replace", fails)
        with pytest.raises(RepositoryError, match="was not written"):
            space_making.write_space(plan)
    assert not (tmp_path / "space").exists()
    assert list(tmp_path.iterdir()) == []


# The command


@pytest.mark.parametrize("command", ["space", "space create"])
def test_the_command_has_help(taia, command):
    status, out, _ = taia(*command.split(), "--help")
    assert status == 0
    assert "Usage" in out


def test_a_public_space_needs_a_yes(taia, online, repo, space, monkeypatch):
    status, _, err = taia("space", "create", repo, "--space", space)
    assert status == 1
    assert f"'{space}' would be a public Space" in err
    assert "--yes" in err
    assert "--private" in err
    assert not online.commits()
    monkeypatch.setattr(cli_spaces, "is_terminal", lambda: True)
    asked = []
    monkeypatch.setattr(cli_spaces.typer, "confirm", lambda text, **options: asked.append((text, options)))
    assert taia("space", "create", repo, "--space", space)[0] == 0
    ((text, options),) = asked
    assert space in text
    assert options["abort"] is True
    assert online.api.space_info(space).private is False
    assert taia("space", "create", repo, "--space", space)[0] == 0  # it is public already
    assert len(asked) == 1


def test_a_no_makes_no_space(taia, online, repo, space, monkeypatch):
    monkeypatch.setattr(cli_spaces, "is_terminal", lambda: True)
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    status, _, err = taia("space", "create", repo, "--space", space)
    assert status != 0
    assert f"Make the public Space '{space}'?" in err
    assert not online.api.repo_exists(space, repo_type="space")


@pytest.mark.parametrize("option", ["--yes", "--private"])
def test_yes_and_private_do_not_ask(taia, online, repo, space, option):
    status, out, err = taia("space", "create", repo, "--space", space, option, "--json", "--no-link")
    assert status == 0, err
    value = json.loads(out)
    assert value["url"] == f"{online.hub.endpoint}/spaces/{space}"
    assert value["commit"] == listing(online, space)[0]
    assert (value["kept"], value["warnings"]) == ([], [])
    assert online.api.space_info(space).private == (option == "--private")


def test_the_command_says_what_it_did_and_kept(taia, online, repo, space):
    status, out, err = taia("space", "create", repo, "--space", space, "--private")
    assert status == 0
    assert "Kept" not in err
    assert "Warning" not in err
    assert f"Published {online.hub.endpoint}/spaces/{space}" in out
    assert "Linked from the model's card: " in out
    commit(online, space, add("app.py", "mine"))
    taia("space", "create", repo, "--space", space)
    status, out, err = taia("space", "create", repo, "--space", space)
    assert "is up to date" in out
    assert "Kept: app.py stays as you changed it" in err


def test_a_dry_run_of_the_command(taia, online, repo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = taia("space", "create", repo, "--dry-run")
    folder = tmp_path / f"{repo.partition('/')[2]}-compare"
    assert status == 0
    assert "Warning" not in err
    assert f"Written to {folder.name}" in out
    assert {path.name for path in folder.iterdir()} == OURS | {"taia_hub"}
    status, _, err = taia("space", "create", repo, "--out", "x")
    assert status == 1
    assert "--dry-run" in err


# Bad input


def test_a_folder_is_refused_with_the_way_out(online, tmp_path):
    with pytest.raises(ConfigError, match="is a folder here") as caught:
        create_space(str(tmp_path))
    assert "taia push DIR REPO" in caught.value.hint


def test_what_is_no_taia_repository_is_refused_with_how_to_make_one(online, repo_id):
    online.api.create_repo(repo_id)
    for name in (online.base, online.adapter, repo_id):
        with pytest.raises(TAIAError, match=f"'{name}' is no TAIA repository") as caught:
            create_space(name, private=True)
        assert "taia create" in caught.value.hint
    with pytest.raises(RepositoryError, match="no TAIA repository 'own/nobody' on the Hub"):
        create_space("own/nobody", private=True)


def test_a_revision_that_is_not_there(online, space):
    with pytest.raises(RepositoryError, match="has no revision 'v9'"):
        create_space(online.taia, space_id=space, revision="v9")


@pytest.mark.parametrize("name", ["a b", "own/--x", "x" * 97, "a/b/c", "own/x.git"])
def test_a_name_that_is_none_is_refused(online, name):
    with pytest.raises(ConfigError, match="is no name for a Space") as caught:
        create_space(online.taia, space_id=name)
    assert "--space" in caught.value.hint


def test_without_a_token_nothing_is_published(online, space, monkeypatch):
    with pytest.raises(ConfigError, match="without a token"):
        create_space(online.taia, token=False)
    monkeypatch.delenv("HF_TOKEN")
    for name in (None, space):
        with pytest.raises(RepositoryError, match=r"without a token|\(401\)") as caught:
            create_space(online.taia, space_id=name)
        assert "token" in caught.value.hint


def test_hardware_that_is_not_known_is_refused(online, space):
    with pytest.raises(ConfigError, match=r"no hardware 'zero-a10'\. Did you mean 'zero-a10g'"):
        create_space(online.taia, space_id=space, hardware="zero-a10")


def test_a_space_of_somebody_else_is_not_written_to(online, repo, space):
    online.api.create_repo(space, repo_type="space", space_sdk="gradio")
    commit(online, space, add("app.py", "theirs"))
    before = listing(online, space)
    with pytest.raises(RepositoryError, match="not made by taia-hub; nothing in it was touched") as caught:
        create_space(repo, space_id=space)
    assert "--space" in caught.value.hint
    assert listing(online, space) == before


def test_a_visibility_that_differs_is_refused(online, repo, space):
    create_space(repo, space_id=space, link=False)
    with pytest.raises(ConfigError, match="is there already, and public"):
        create_space(repo, space_id=space, private=True, link=False)


@pytest.mark.parametrize("state", ["{", "[]", "{}", '{"files": []}'])
def test_a_damaged_state_is_refused(online, repo, space, state):
    create_space(repo, space_id=space, link=False)
    commit(online, space, add(".taia_space.json", state))
    before = listing(online, space)
    with pytest.raises(ConfigError, match=r"\.taia_space\.json is damaged"):
        create_space(repo, space_id=space, link=False)
    assert listing(online, space) == before


def test_a_damaged_readme_is_refused(online, repo, space):
    create_space(repo, space_id=space, link=False)
    commit(online, space, add("README.md", read(space, "README.md") + "<!-- taia:yours -->\n"))
    with pytest.raises(ConfigError, match="never closed"):
        create_space(repo, space_id=space, link=False)


def test_without_gradio_it_is_said_how_to_get_it(online, space, monkeypatch):
    original = importlib.metadata.version

    def hidden(name):
        if name in ("gradio", "spaces"):
            raise importlib.metadata.PackageNotFoundError(name)
        return original(name)

    monkeypatch.setattr(importlib.metadata, "version", hidden)
    with pytest.raises(MissingDependencyError, match="Gradio is not installed") as caught:
        create_space(online.taia, space_id=space)
    assert "[space]" in caught.value.hint


def test_a_private_model_is_not_loaded_beforehand_and_needs_a_token(online, repo, space):
    online.api.update_repo_settings(repo, private=True)
    plan = plan_space(repo, space_id=space)
    assert plan.model.closed == (repo,)
    done = publish_space(plan, link=False)
    names = [entry.split()[0] for entry in front(read(space, "README.md"))["preload_from_hub"]]
    assert names == [online.base]
    assert "secret HF_TOKEN" in done.warnings[0]


# Rendering


@pytest.mark.parametrize(
    "title",
    [
        '"]: x',
        "two\nlines\n---\n# a heading",
        "<script>alert(1)</script>",
        "[a](javascript:x)",
        "{{ card }}",
        "yes",
        "- x",
    ],
)
def test_a_title_stays_text(title):
    plain = space_files(MODEL, VERSIONS, PACKAGE, title="Harmless")["README.md"].decode()
    text = space_files(MODEL, VERSIONS, PACKAGE, title=title)["README.md"].decode()
    assert front(text)["title"] == " ".join(title.split())
    assert {**front(text), "title": ""} == {**front(plain), "title": ""}
    heads = [line for line in text.split("\n---\n", 1)[1].splitlines() if line.startswith("#")]
    assert len(heads) == 3
    assert not re.search(r"<(?!!-- taia:)", text.split("\n---\n", 1)[1])


@pytest.mark.parametrize("title", ["", " \n"])
def test_an_empty_title_is_refused(title):
    with pytest.raises(ConfigError, match="title of the Space is empty"):
        space_files(MODEL, VERSIONS, PACKAGE, title=title)


@pytest.mark.parametrize(
    ("gibibytes", "hardware"),
    [(0.3, "zero-a10g"), (15, "zero-a10g"), (62, "zero-a10g"), (77, "a100x4"), (140, "a100x4"), (700, "a100x8")],
)
def test_hardware_goes_by_the_models_size(gibibytes, hardware):
    size = int(gibibytes * 2**30)
    assert suggested_hardware(size) == hardware
    text = space_files(dataclasses.replace(MODEL, bytes=size), VERSIONS, PACKAGE)["README.md"].decode()
    assert front(text)["suggested_hardware"] == hardware


def test_hardware_that_is_asked_for_is_suggested_and_zerogpu_has_its_own_python():
    def data(**options):
        return front(space_files(MODEL, VERSIONS, PACKAGE, python="3.11", **options)["README.md"].decode())

    assert data(hardware="cpu-upgrade")["python_version"] == "3.11"
    assert data(hardware="zero-a10g")["suggested_hardware"] == "zero-a10g"
    assert data(hardware="zero-a10g")["python_version"].startswith("3.12")


def test_float32_weights_count_at_16_bits(online):
    model = space_reading.read_model(online.taia, None, None)
    (weights,) = (
        one.size
        for one in online.api.model_info(online.base, files_metadata=True).siblings
        if one.rfilename.endswith(".safetensors")
    )
    assert model.bytes == weights // 2


def test_files_whose_names_the_hub_would_split_are_not_named():
    model = dataclasses.replace(MODEL, preload={"org/base": ("a b.json", "c,d.json", "e.json"), "org/x": ("f",)})
    data = front(space_files(model, VERSIONS, PACKAGE)["README.md"].decode())
    assert data["preload_from_hub"] == [f"org/base e.json {'b' * 40}"]


def test_a_long_description_is_cut_at_the_hubs_limit():
    text = cards.render_card(cards.SpaceCardData("x", "6.31.0", short_description="many words " * 20))
    assert len(front(text)["short_description"]) <= 60


def test_the_space_of_the_repository_is_one_that_the_hub_runs():
    folder = ROOT / "spaces" / "compare"
    data = front((folder / "README.md").read_text(encoding="utf-8"))
    assert (data["sdk"], data["app_file"]) == ("gradio", "app.py")
    assert {path.name for path in folder.iterdir()} >= {"app.py", "requirements.txt"}
    assert compile((folder / "app.py").read_text(encoding="utf-8"), "app.py", "exec")


def test_settings_that_cannot_be_put_back_are_said(online, repo, space, no_waiting, caplog):
    create_space(repo, space_id=space, link=False)
    commit(online, repo, add("NEWS", "new head"), repo_type="model")
    plan = plan_space(repo, space_id=space)
    seen = []

    def fail(method, path):
        if "/commit/" in path:
            seen.append(path)
            return 500
        return 500 if seen and path.endswith("/variables") else None

    online.hub.fail = fail
    with pytest.raises(RepositoryError):
        publish_space(plan, link=False)
    online.hub.fail = None
    assert f"settings of '{space}' were changed for a commit that failed" in caplog.text
    with pytest.raises(HfHubHTTPError):
        online.api.delete_space_variable("own/nobody", "X")
