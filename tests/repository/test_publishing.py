"""Publishing and saving: one commit or nothing, one whole folder or the old one."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import httpx
import huggingface_hub.utils._http as client
import pytest
import torch
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from taia_hub import TAIAConfig, TAIAForCausalLM, TAIAModel, cards, hub
from taia_hub.cards.snippets import engines
from taia_hub.errors import ConfigError, RepositoryError, TAIAError
from taia_hub.hub import HubAccess, published_files
from taia_hub.hub._names import TransportError
from taia_hub.repository.card import describe_files
from taia_hub.repository.publishing import push_folder
from taia_hub.repository.update_files import open_repository
from taia_hub.weights import skeleton
from tests.conftest import renew_manifest


@pytest.fixture
def model(online):
    model = online.model()
    online.hub.requests.clear()
    return model


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# One commit


def test_a_push_is_one_commit_on_top_of_the_head(online, model, repo_id, monkeypatch):
    heads = []
    original = type(online.api).create_commit

    def create_commit(self, *args, **kwargs):
        heads.append(kwargs["parent_commit"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(online.api), "create_commit", create_commit)
    online.api.create_repo(repo_id)
    head = online.api.model_info(repo_id).sha
    commit = model.push_to_hub(repo_id)
    assert online.commits() == [f"/api/models/{repo_id}/commit/main"]
    assert heads == [head]
    assert isinstance(commit, CommitInfo)
    assert commit.oid == online.api.model_info(repo_id).sha
    assert len(online.api.list_repo_commits(repo_id)) == 2


def test_message_and_description_are_those_given(online, model, repo_id):
    model.push_to_hub(repo_id, commit_message="A title", commit_description="And more.")
    commit = online.api.list_repo_commits(repo_id)[0]
    assert (commit.title, commit.message.strip()) == ("A title", "And more.")
    model.push_to_hub(f"{repo_id}-2")
    assert online.api.list_repo_commits(f"{repo_id}-2")[0].title == "Upload TAIA model"


def test_what_did_not_change_is_not_committed_again(online, model, repo_id):
    first = model.push_to_hub(repo_id)
    assert model.push_to_hub(repo_id).oid == first.oid
    assert len(online.commits()) == 1


def test_a_folder_is_published_as_the_model_is(online, model, folder, repo_id):
    model.push_to_hub(repo_id)
    online.hub.requests.clear()
    push_folder(folder, f"{repo_id}-2")
    assert len(online.commits()) == 1
    one, two = (contents(Path(snapshot_download(name))) for name in (repo_id, f"{repo_id}-2"))
    assert one.keys() == two.keys()
    hashes = re.compile(r"(?<=taia:)([\w-]+) [0-9a-f]{8}")  # of sections that name the repository
    cards = [hashes.sub(r"\1", files.pop("README.md").decode()) for files in (one, two)]
    assert one == two
    name = repo_id.partition("/")[2]
    assert cards[0].replace(name, f"{name}-2") == cards[1]


def test_the_backbone_publishes_the_same_repository(online, model, repo_id):
    model.push_to_hub(repo_id)
    TAIAModel.from_pretrained(repo_id).push_to_hub(f"{repo_id}-2")
    one, two = (contents(Path(snapshot_download(name))) for name in (repo_id, f"{repo_id}-2"))
    same = ("config.json", "taia_manifest.json", "adapter/adapter_model.safetensors", "adapter/adapter_config.json")
    assert {name: one[name] for name in same} == {name: two[name] for name in same}


def test_save_pretrained_can_push(online, model, tmp_path, repo_id):
    model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id=repo_id, commit_message="Both")
    assert online.api.list_repo_commits(repo_id)[0].title == "Both"
    assert (tmp_path / "saved" / "config.json").is_file()


def test_a_name_alone_is_in_ones_own_namespace(online, model, repo_id):
    name = repo_id.partition("/")[2]
    model.push_to_hub(name)
    full = f"{online.api.whoami()['name']}/{name}"
    assert online.api.repo_exists(full)
    assert f'from_pretrained("{full}")' in ModelCard.load(full).text
    before = online.files(full)
    online.hub.fail = lambda method, path: 403 if "/commit/" in path else None
    with pytest.raises(RepositoryError):
        model.push_to_hub(name, tags=["other"])
    online.hub.fail = None
    assert online.files(full) == before


def test_no_path_of_this_machine_is_published(online, folder, repo_id, tmp_path):
    push_folder(folder, repo_id)
    for name, content in contents(Path(snapshot_download(repo_id))).items():
        for private in (tmp_path, os.environ["HF_HOME"], Path.home()):
            assert str(private).encode() not in content, name


# All or nothing


class Drop:
    """An answer that breaks off: the client sees a connection that was dropped."""

    async def __call__(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        raise ConnectionError("dropped on purpose")


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)


def from_request(number, answer):
    """Lets the requests before `number` pass and gives that kind of request, and its repetitions, another answer."""
    seen = []

    def fail(method, path):
        seen.append((method, path))
        return answer if len(seen) > number and (method, path) == seen[number] else None

    return fail


@pytest.fixture(params=["new", "existing", "new branch", "name alone"])
def push(request, online, model, repo_id):
    """A push, and what tells whether it changed anything."""
    full = f"{online.api.whoami()['name']}/{repo_id.partition('/')[2]}" if request.param == "name alone" else repo_id
    keywords = {"revision": "other"} if request.param == "new branch" else {}
    if request.param != "new":
        model.push_to_hub(full)
        with torch.no_grad():
            next(p for name, p in model.named_parameters() if "lora_B" in name).add_(1)

    def state():
        if not online.api.repo_exists(full):
            return None
        refs = online.api.list_repo_refs(full)
        return {ref.name: online.files(full, ref.name) for ref in refs.branches}

    def run():
        return model.push_to_hub(full.partition("/")[2] if request.param == "name alone" else full, **keywords)

    return run, state


@pytest.mark.parametrize("answer", [500, 403, Drop()], ids=["500", "403", "dropped"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_failure_at_any_request_changes_nothing(online, push, answer, no_waiting):
    run, state = push
    before = state()
    online.hub.requests.clear()
    errors, number = [], 0
    while True:
        online.hub.fail = from_request(number, answer)
        try:
            run()
        except TAIAError as error:
            errors.append(error)
        else:
            online.hub.fail = None
            if state() != before:
                break
            pytest.fail("The push passed and published nothing.")
        online.hub.fail = None
        assert state() == before, f"request {number} failed"
        number += 1
    assert len(errors) >= 6
    assert all(error.hint for error in errors)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_each_request_of_a_push_is_needed(online, model, repo_id, no_waiting):
    """Counts the requests and fails each of them: all but none must stop the push."""
    model.push_to_hub(f"{repo_id}-counted")
    count = len(online.hub.requests)
    for number in range(count):
        online.hub.fail = from_request(number, 500)
        with pytest.raises(TAIAError):
            model.push_to_hub(f"{repo_id}-{number}")
        online.hub.fail = None
        assert not online.api.repo_exists(f"{repo_id}-{number}")


def test_a_hub_that_goes_away_leaves_at_most_an_empty_new_repository(online, model, repo_id, no_waiting, caplog):
    online.hub.fail = lambda method, path: 500 if "/commit/" in path or path.endswith("/delete") else None
    with pytest.raises(RepositoryError, match=r"refused.*\(500\)"):
        model.push_to_hub(repo_id)
    online.hub.fail = None
    assert online.api.list_repo_files(repo_id) == [".gitattributes"]
    assert f"'{repo_id}' was made for a commit that failed, and could not be deleted again" in caplog.text


@pytest.mark.parametrize("call", ["create_commit", "create_repo", "create_branch"])
@pytest.mark.parametrize("status", [None, 502])
def test_what_the_hub_did_before_the_connection_broke_counts(online, model, repo_id, monkeypatch, call, status):
    keywords = {"revision": "other"} if call == "create_branch" else {}
    if keywords:
        model.push_to_hub(repo_id)
    original = getattr(HfApi, call)

    def lost(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if status is None:
            raise TransportError("the connection broke")
        request = httpx.Request("POST", "http://127.0.0.1")
        raise HfHubHTTPError("bad gateway", response=httpx.Response(status, request=request))

    monkeypatch.setattr(HfApi, call, lost)
    done = model.push_to_hub(repo_id, **keywords)
    assert online.api.list_repo_commits(repo_id, **keywords)[0].commit_id == done.oid
    assert done.repo_url.repo_id == repo_id
    assert "taia_manifest.json" in online.files(repo_id, keywords.get("revision"))


def test_a_hub_that_cannot_be_asked_again_is_not_said_to_have_done_nothing(online, model, repo_id, monkeypatch):
    model.push_to_hub(repo_id)
    change(model)
    original, listed = HfApi.create_commit, HfApi.list_repo_commits

    def broken(*args, **kwargs):
        raise TransportError("the connection broke")

    def lost(self, *args, **kwargs):
        original(self, *args, **kwargs)
        monkeypatch.setattr(HfApi, "list_repo_commits", broken)
        broken()

    monkeypatch.setattr(HfApi, "create_commit", lost)
    with pytest.raises(RepositoryError, match="what it did by then is not known") as caught:
        model.push_to_hub(repo_id, commit_message="Second")
    assert f"{repo_id} before you publish again" in caught.value.hint
    monkeypatch.setattr(HfApi, "list_repo_commits", listed)
    assert online.api.list_repo_commits(repo_id)[0].title == "Second"


def test_somebody_elses_commit_is_not_taken_for_the_lost_one(online, model, repo_id, monkeypatch):
    model.push_to_hub(repo_id)
    original = HfApi.create_commit

    def lost(self, *args, **kwargs):
        original(online.api, repo_id, [CommitOperationAdd("NEWS", b"faster")], commit_message="faster")
        raise TransportError("the connection broke")

    monkeypatch.setattr(HfApi, "create_commit", lost)
    with pytest.raises(RepositoryError, match="cannot be reached"):
        model.push_to_hub(repo_id)


@pytest.mark.parametrize("status", [None, 412])
@pytest.mark.parametrize("change_of", [b"another", None])
def test_a_commit_of_the_same_title_with_other_files_is_not_taken_for_the_lost_one(
    online, model, repo_id, monkeypatch, status, change_of
):
    model.push_to_hub(repo_id, commit_message="Nightly")
    original = HfApi.create_commit

    def lost(self, repo_id, operations, **kwargs):
        if change_of is None:
            operations = [one for one in operations if one.path_in_repo != "README.md"]
        else:
            operations = [*operations[:-1], CommitOperationAdd(operations[-1].path_in_repo, change_of)]
        original(online.api, repo_id, operations, commit_message="Nightly")
        if status is None:
            raise TransportError("the connection broke")
        raise HfHubHTTPError(
            "faster", response=httpx.Response(status, request=httpx.Request("POST", "http://127.0.0.1"))
        )

    monkeypatch.setattr(HfApi, "create_commit", lost)
    with pytest.raises(RepositoryError):
        model.push_to_hub(repo_id, commit_message="Nightly", tags=["new"])


def test_a_race_is_refused_and_said_so(online, model, repo_id, monkeypatch):
    model.push_to_hub(repo_id)
    original = type(online.api).create_commit

    def race(self, *args, **kwargs):
        operation = CommitOperationAdd("NEWS", b"somebody was faster")
        original(online.api, repo_id, [operation], commit_message="faster")
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(type(online.api), "create_commit", race)
        with pytest.raises(RepositoryError, match="another commit while this one was made; nothing was") as caught:
            model.push_to_hub(repo_id, tags=["new"])
    assert "push again" in caught.value.hint
    assert online.api.list_repo_commits(repo_id)[0].title == "faster"
    assert "new" not in ModelCard.load(repo_id).data.tags
    model.push_to_hub(repo_id, tags=["new"])
    assert "NEWS" in online.api.list_repo_files(repo_id)


def test_a_repository_that_somebody_makes_meanwhile_is_not_deleted(online, model, repo_id, monkeypatch):
    original = type(online.api).create_repo

    def race(self, *args, **kwargs):
        original(online.api, repo_id)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(type(online.api), "create_repo", race)
        with pytest.raises(RepositoryError):
            model.push_to_hub(repo_id)
    assert online.api.repo_exists(repo_id)


def test_an_interrupted_push_leaves_no_new_repository(online, model, repo_id, monkeypatch):
    def interrupted(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(online.api), "create_commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.push_to_hub(repo_id)
    assert not online.api.repo_exists(repo_id)


def test_bad_card_metadata_is_refused_before_anything_is_sent(online, model, repo_id):
    online.hub.fail = lambda method, path: 400 if path == "/api/validate-yaml" else None
    with pytest.raises((RepositoryError, ValueError)):
        model.push_to_hub(repo_id)
    assert online.commits() == []
    assert not online.api.repo_exists(repo_id)


# Where it goes


def test_a_pull_request_leaves_main(online, model, repo_id):
    model.push_to_hub(repo_id)
    before = online.files(repo_id)
    commit = model.push_to_hub(repo_id, create_pr=True, tags=["proposed"])
    assert commit.pr_url
    assert commit.pr_revision == "refs/pr/1"
    assert online.files(repo_id) == before
    assert AutoModelForCausalLM.from_pretrained(repo_id, revision="refs/pr/1").inference_modules == "attention"


def test_a_branch_is_made_from_main_and_committed_to(online, model, repo_id):
    model.push_to_hub(repo_id)
    before = online.files(repo_id)
    for tags in (["one"], ["two"]):
        commit = model.push_to_hub(repo_id, revision="trial", tags=tags)
        assert online.files(repo_id, "trial")[""] == commit.oid
    assert online.files(repo_id) == before
    assert len(online.api.list_repo_commits(repo_id, revision="trial")) == 4


def test_a_branch_of_a_new_repository_is_made(online, model, repo_id):
    model.push_to_hub(repo_id, revision="trial")
    assert online.api.list_repo_files(repo_id) == [".gitattributes"]
    assert "config.json" in online.api.list_repo_files(repo_id, revision="trial")


@pytest.mark.parametrize("private", [True, False, None])
def test_a_new_repository_is_private_when_that_is_asked(online, model, repo_id, private):
    model.push_to_hub(repo_id, private=private)
    assert online.api.model_info(repo_id).private == bool(private)


def test_a_private_model_is_loaded_with_a_token_alone(online, model, repo_id, tmp_path):
    model.push_to_hub(repo_id, private=True)
    assert TAIAForCausalLM.from_pretrained(repo_id, token=online.hub.token, cache_dir=tmp_path / "one")
    with pytest.raises(RepositoryError, match="of that name on the Hub"):
        TAIAForCausalLM.from_pretrained(repo_id, token=False, cache_dir=tmp_path / "two")


def test_without_a_token_nothing_is_published(online, model, repo_id, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RepositoryError) as caught:
        model.push_to_hub(repo_id)
    assert "token" in caught.value.hint.lower() or "auth" in caught.value.hint.lower()
    assert not online.api.repo_exists(repo_id)
    with pytest.raises(RepositoryError, match="token"):
        model.push_to_hub("name-alone")


# Work that is done once


@pytest.mark.parametrize("way", ["model", "folder"])
def test_a_push_renders_one_card_and_builds_one_structure_at_most(online, model, repo_id, tmp_path, monkeypatch, way):
    model.save_pretrained(tmp_path / "taia")
    done = []
    for module, name in ((cards, "render_card"), (skeleton, "build"), (hub, "resolve_base")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, _name=name, _real=real, **k: done.append(_name) or _real(*a, **k))
    if way == "model":
        model.push_to_hub(repo_id)
        assert done == ["render_card"]
    else:
        push_folder(tmp_path / "taia", repo_id)
        assert sorted(done) == ["build", "render_card", "resolve_base"]


# The card and the tokenizer


def test_the_card_on_the_hub_is_ours(online, model, repo_id):
    model.push_to_hub(repo_id, tags=["medical", "taia"])
    card = ModelCard.load(repo_id)
    data = card.data.to_dict()
    assert data["base_model"] == online.base
    assert data["base_model_relation"] == "adapter"
    assert data["library_name"] == "taia-hub"
    assert data["pipeline_tag"] == "text-generation"
    assert data["tags"] == ["taia", "lora", "medical", f"base_model:adapter:{online.base}"]
    assert (data["license"], data["license_name"]) == ("other", "pico-1.0")
    assert data["license_link"] == "https://example.org/pico"
    assert f'from_pretrained("{repo_id}")' in card.text
    assert online.base_sha in card.text
    assert online.api.model_info(repo_id).card_data.base_model == online.base


def test_a_base_without_a_licence_gives_none(online, model, repo_id):
    base = f"{repo_id}-base"
    online.push_base(base)
    online.api.delete_file("README.md", base)
    TAIAForCausalLM.from_adapter(base, online.adapter).push_to_hub(repo_id)
    assert "license" not in ModelCard.load(repo_id).data.to_dict()


def test_our_card_is_renewed_and_a_persons_card_stays(online, model, repo_id):
    model.push_to_hub(repo_id)
    model.push_to_hub(repo_id, tags=["new"])
    assert "new" in ModelCard.load(repo_id).data.tags
    own = b"---\ntags: [mine]\n---\n# What I wrote\n"
    online.api.upload_file(path_or_fileobj=own, path_in_repo="README.md", repo_id=repo_id)
    model.push_to_hub(repo_id, tags=["newer"])
    assert ModelCard.load(repo_id).data.tags == ["mine"]
    assert Path(online.api.hf_hub_download(repo_id, "README.md")).read_bytes() == own


def test_an_edited_card_of_ours_stays_once_its_mark_is_removed(online, model, folder, repo_id):
    text = (folder / "README.md").read_text()
    lines = [line for line in text.splitlines() if "Written by taia-hub" not in line]
    assert len(lines) == len(text.splitlines()) - 1
    (folder / "README.md").write_text("\n".join([*lines, "Mine."]))
    model.save_pretrained(folder)
    assert (folder / "README.md").read_text().endswith("Mine.")
    push_folder(folder, repo_id)
    assert ModelCard.load(repo_id).text.endswith("Mine.")


def test_a_tokenizer_that_is_there_stays(online, model, repo_id):
    online.api.create_repo(repo_id)
    online.api.upload_file(path_or_fileobj=b"{}", path_in_repo="tokenizer_config.json", repo_id=repo_id)
    model.push_to_hub(repo_id)
    assert Path(online.api.hf_hub_download(repo_id, "tokenizer_config.json")).read_bytes() == b"{}"
    assert "tokenizer.json" not in online.api.list_repo_files(repo_id)


def test_a_base_without_a_tokenizer_is_said_so(online, pico, repo_id, caplog):
    base = f"{repo_id}-base"
    online.api.create_repo(base)
    online.api.upload_folder(repo_id=base, folder_path=pico.base("llama"))
    TAIAForCausalLM.from_adapter(base, online.adapter).push_to_hub(repo_id)
    assert f"'{base}' has no tokenizer to publish" in caplog.text
    assert not [name for name in online.api.list_repo_files(repo_id) if "token" in name]


# What is not published


def test_a_local_base_is_refused_with_the_way_out(online, pico, repo_id, tmp_path):
    model = TAIAForCausalLM.from_adapter(pico.base("llama"), pico.adapter("llama"))
    with pytest.raises(RepositoryError, match="is a folder on this machine") as caught:
        model.push_to_hub(repo_id)
    assert str(pico.base("llama")) in caught.value.message
    assert "Push the base first" in caught.value.hint
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(RepositoryError, match="is a folder on this machine"):
        push_folder(tmp_path / "saved", repo_id)
    assert not online.api.repo_exists(repo_id)
    assert online.commits() == []


def test_what_trainer_leaves_in_a_folder_is_not_published(online, folder, repo_id):
    kept = set(published_files(folder))
    left = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.json", "latest"]
    left += ["model.safetensors.index.json", "zero_to_fp32.py", "runs/one/events.out.tfevents.1", ".secret", ".git/x"]
    left += ["checkpoint-5/adapter/adapter_model.safetensors", "global_step5/x.json", "__pycache__/x.pyc"]
    left += ["pytorch_model_fsdp_0/__0_0.distcp"]
    for name in [*left, "LICENSE", "figures/one.png"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    assert set(published_files(folder)) == kept | {"LICENSE", "figures/one.png"}
    push_folder(folder, repo_id)
    there = set(online.api.list_repo_files(repo_id))
    assert there == kept | {"LICENSE", "figures/one.png", ".gitattributes", "tokenizer.json", "tokenizer_config.json"}


def test_a_trainable_model_is_published_without_the_index_for_trainer(online, repo_id, tmp_path):
    model = TAIAForCausalLM.from_adapter(online.base, online.adapter, is_trainable=True)
    model.save_pretrained(tmp_path / "saved")
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors.index.json").is_file()
    model.push_to_hub(repo_id)
    assert "model.safetensors.index.json" not in online.api.list_repo_files(repo_id)


@pytest.mark.parametrize("name", ["adapter_config.json", "model.safetensors"])
def test_a_repository_of_another_model_is_left_alone(online, model, repo_id, name):
    online.api.create_repo(repo_id)
    online.api.upload_file(path_or_fileobj=b"{}", path_in_repo=name, repo_id=repo_id)
    before = online.files(repo_id)
    with pytest.raises(RepositoryError, match=f"another model at its root.*{name}") as caught:
        model.push_to_hub(repo_id)
    assert "choose another name" in caught.value.hint
    assert online.files(repo_id) == before


def test_an_adapter_at_the_root_of_a_folder_is_never_published(online, model, folder, repo_id, tmp_path):
    shutil.copytree(snapshot_download(online.adapter), tmp_path / "adapter")
    before = contents(tmp_path / "adapter")
    with pytest.raises(RepositoryError, match=r"another model at its root.*adapter_config") as caught:
        model.save_pretrained(tmp_path / "adapter")
    assert "choose another name" in caught.value.hint
    assert contents(tmp_path / "adapter") == before
    for name in ("adapter_config.json", "model.safetensors"):
        (folder / name).write_bytes(b"{}")
        with pytest.raises(RepositoryError, match=name):
            push_folder(folder, repo_id)
        (folder / name).unlink()
    assert not online.api.repo_exists(repo_id)


def test_a_folder_is_checked_before_it_is_published(online, folder, repo_id):
    weights = folder / "adapter" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(RepositoryError, match="is damaged"):
        push_folder(folder, repo_id)
    (folder / "config.json").unlink()
    with pytest.raises(RepositoryError, match=r"has no config\.json"):
        push_folder(folder, repo_id)
    assert not online.api.repo_exists(repo_id)


@pytest.mark.parametrize("name", ["a/b/c", "org/na me", "-x", "org/", "../x", ""])
def test_a_malformed_repository_id_is_refused(online, model, name):
    with pytest.raises(RepositoryError, match=r"no Hub id|neither") as caught:
        model.push_to_hub(name)
    assert caught.value.hint
    assert online.commits() == []


# Saving


def test_saving_into_a_new_folder_leaves_nothing_beside_it(model, tmp_path):
    model.save_pretrained(tmp_path / "a" / "b")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == (tmp_path / "a").stat().st_mode & 0o777


def change(model):
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name).add_(1)
    model.taia_config.inference_modules = "all"


@pytest.mark.parametrize("step", ["config", "card", "manifest"])
def test_an_error_in_the_middle_of_saving_leaves_the_old_folder(model, folder, monkeypatch, step):
    before = contents(folder)
    change(model)

    def broken(*args, **kwargs):
        raise RuntimeError("broken on purpose")

    where = {"config": (TAIAConfig, "save_pretrained"), "card": ("taia_hub.cards.render_card",)}
    where["manifest"] = ("taia_hub.hub.write_manifest",)
    monkeypatch.setattr(*where[step], broken)
    with pytest.raises(RuntimeError, match="on purpose"):
        model.save_pretrained(folder)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("new", [False, True])
def test_an_error_while_files_are_moved_puts_the_old_ones_back(model, folder, monkeypatch, number, new):
    if new:
        shutil.rmtree(folder)
    before = contents(folder)
    change(model)
    original, moves = os.replace, []

    def replace(source, target):
        moves.append(target)
        if len(moves) == number + 1:
            raise PermissionError(errno.EACCES, "broken on purpose")
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(RepositoryError, match="permission was denied"):
        model.save_pretrained(folder)
    assert contents(folder) == before
    assert folder.exists() != new
    assert [path.name for path in folder.parent.iterdir()] == ([] if new else [folder.name])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_so_and_leaves_the_old_folder(model, folder, monkeypatch, number):
    before = contents(folder)
    change(model)

    def full(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RepositoryError, match="no space is left") as caught:
        model.save_pretrained(folder)
    assert "Free space, or choose another folder" in caught.value.hint
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_said_so(model, folder):
    folder.parent.chmod(0o555)
    try:
        with pytest.raises(RepositoryError, match="permission was denied"):
            model.save_pretrained(folder)
    finally:
        folder.parent.chmod(0o755)


def test_a_file_is_no_folder(model, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RepositoryError, match="is a file"):
        model.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x"


def test_only_the_main_process_saves(model, tmp_path):
    model.save_pretrained(tmp_path / "saved", is_main_process=False)
    assert not (tmp_path / "saved").exists()


def test_keywords_for_whole_checkpoints_are_accepted_and_others_are_not(model, tmp_path):
    model.save_pretrained(tmp_path / "one", max_shard_size="1GB", safe_serialization=True)
    with pytest.raises(TypeError, match="repo"):
        model.save_pretrained(tmp_path / "two", repo="org/x")
    assert not (tmp_path / "two").exists()


def test_a_persons_other_files_stay(model, folder):
    (folder / "NOTES.txt").write_text("mine")
    (folder / "adapter" / "NOTES.txt").write_text("mine too")
    model.save_pretrained(folder)
    assert (folder / "NOTES.txt").read_text() == "mine"
    assert (folder / "adapter" / "NOTES.txt").read_text() == "mine too"


def test_the_card_of_a_folder_with_a_local_base_names_no_base(pico, tmp_path):
    model = TAIAForCausalLM.from_adapter(pico.base("llama"), pico.adapter("llama"))
    model.save_pretrained(tmp_path / "saved")
    assert "base_model" not in ModelCard.load(tmp_path / "saved" / "README.md").data.to_dict()
    stored = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert stored["base_model_name_or_path"] == str(pico.base("llama"))
    assert TAIAForCausalLM.from_pretrained(tmp_path / "saved").taia_config.base_model_revision is None


def test_the_clients_own_error_is_the_cause(online, model, repo_id):
    online.hub.fail = lambda method, path: 403 if "/commit/" in path else None
    with pytest.raises(RepositoryError) as caught:
        model.push_to_hub(repo_id)
    assert isinstance(caught.value.__cause__, HfHubHTTPError)


def test_a_failed_push_does_not_delete_what_somebody_else_published_meanwhile(online, saved, repo_id, monkeypatch):
    real = HfApi.create_commit
    other = shutil.copytree(saved, saved.with_name("other"))
    (other / "README.md").write_text("theirs")

    def after_another(self, *arguments, **keywords):
        monkeypatch.setattr(HfApi, "create_commit", real)
        push_folder(other, repo_id)  # somebody else is quicker
        return real(self, *arguments, **keywords)

    monkeypatch.setattr(HfApi, "create_commit", after_another)
    (saved / "README.md").write_text("mine")
    with pytest.raises(RepositoryError, match="got another commit"):
        push_folder(saved, repo_id)
    assert online.api.repo_exists(repo_id)
    assert "config.json" in online.api.list_repo_files(repo_id)


def test_a_failed_push_deletes_what_it_made_itself(online, saved, repo_id):
    online.hub.fail = lambda method, path: 500 if method == "POST" and "/commit/" in path else None
    with pytest.raises(RepositoryError):
        push_folder(saved, repo_id)
    online.hub.fail = None
    assert not online.api.repo_exists(repo_id)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter/adapter_config.json", '{"foo": 1}', "adapter_config.json"),
        ("adapter/adapter_config.json", '{"peft_type": "NOPE"}', "NOPE"),
        ("generation_config.json", '{"eos_tok', "generation_config.json' is no JSON"),
        ("tokenizer.json", '{"version', "tokenizer.json' is no JSON"),
    ],
)
def test_what_cannot_be_loaded_is_not_pushed(online, saved, file, content, message):
    repo_id = "own/never-pushed"
    (saved / file).write_text(content)
    renew_manifest(saved)
    with pytest.raises(ConfigError, match=message):
        push_folder(saved, repo_id)
    assert not online.api.repo_exists(repo_id)


@pytest.mark.parametrize("name", ["notes.txt", "figures/plot.png", "generation_config.json"])
def test_a_link_out_of_the_folder_is_not_followed(online, saved, tmp_path, repo_id, name):
    (tmp_path / "secret").write_text("{}")
    (saved / name).parent.mkdir(exist_ok=True)
    (saved / name).unlink(missing_ok=True)
    (saved / name).symlink_to(tmp_path / "secret")
    with pytest.raises(RepositoryError, match=f"'{name}' .*is a link to .*secret'") as caught:
        push_folder(saved, repo_id)
    assert caught.value.hint
    assert not online.api.repo_exists(repo_id)


def test_links_inside_of_a_folder_and_those_of_the_cache_are_files(online, saved, repo_id):
    (saved / "NOTES.md").symlink_to("README.md")
    push_folder(saved, repo_id)
    assert "NOTES.md" in online.files(repo_id)
    push_folder(Path(snapshot_download(repo_id)), f"{repo_id}-again")
    assert online.files(f"{repo_id}-again").keys() == online.files(repo_id).keys()


def test_one_tag_that_is_no_list_is_refused(pico):
    with pytest.raises(ConfigError, match="tags='abc' is a text"):
        pico.taia("llama").push_to_hub("own/tags", tags="abc")


def test_a_commit_between_looking_and_publishing_is_a_race(online, repo_id, monkeypatch):
    model = TAIAForCausalLM.from_adapter(online.base, online.adapter)
    model.push_to_hub(repo_id)
    from taia_hub.repository import publishing

    publish = publishing.hub.publish

    def late(*args, **kwargs):
        card = [CommitOperationAdd("README.md", b"# mine\n")]
        online.api.create_commit(repo_id, card, commit_message="by hand")
        return publish(*args, **kwargs)

    monkeypatch.setattr(publishing.hub, "publish", late)
    with pytest.raises(RepositoryError, match="another commit"):
        model.push_to_hub(repo_id)
    with open(online.api.hf_hub_download(repo_id, "README.md")) as card:
        assert card.read() == "# mine\n"


def test_a_repository_that_somebody_makes_meanwhile_gets_no_commit(online, repo_id, monkeypatch):
    from taia_hub.repository import publishing

    publish = publishing.hub.publish

    def late(*args, **kwargs):
        online.api.create_repo(repo_id)
        online.api.upload_file(path_or_fileobj=b"# theirs\n", path_in_repo="README.md", repo_id=repo_id)
        return publish(*args, **kwargs)

    monkeypatch.setattr(publishing.hub, "publish", late)
    with pytest.raises(RepositoryError, match="409"):
        TAIAForCausalLM.from_adapter(online.base, online.adapter).push_to_hub(repo_id)
    assert set(online.files(repo_id)) - {"", ".gitattributes"} == {"README.md"}


def test_a_sharded_model_is_not_overwritten(pico, tmp_path):
    pico.plain("llama").save_pretrained(tmp_path / "model", max_shard_size="5KB")
    assert not (tmp_path / "model/model.safetensors").exists()
    before = (tmp_path / "model/config.json").read_bytes()
    with pytest.raises(RepositoryError, match="holds another model"):
        pico.taia("llama").save_pretrained(tmp_path / "model")
    assert (tmp_path / "model/config.json").read_bytes() == before


def test_a_pointer_is_pushed_without_the_copy_that_lay_there(online, repo_id, tmp_path):
    from taia_hub.repository.creating import create_repository
    from taia_hub.repository.publishing import push_folder

    create_repository(online.base, online.adapter, out=tmp_path / "made")
    create_repository(online.base, online.adapter, out=tmp_path / "made", link=True, overwrite=True)
    push_folder(tmp_path / "made", repo_id)
    assert not any(name.startswith("adapter/") for name in online.api.list_repo_files(repo_id))


def test_saving_into_the_working_directory_names_the_card(pico, tmp_path, monkeypatch):
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path / "my-model")
    pico.taia("llama").save_pretrained(".")
    assert "# my-model\n" in (tmp_path / "my-model/README.md").read_text()


def test_saving_through_a_link_to_a_folder(pico, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    pico.taia("llama").save_pretrained(tmp_path / "link")
    assert (tmp_path / "real/taia_manifest.json").is_file()


@pytest.mark.parametrize("rows", [None, 70])
def test_the_card_says_that_peft_alone_loads_it_only_where_it_does(online, pico, tmp_path, rows):
    """An update of another vocabulary loads here, and not as a plain adapter on the base as it is."""
    from taia_hub.repository.creating import create_repository

    base = AutoModelForCausalLM.from_pretrained(online.base)
    if rows:
        base.resize_token_embeddings(rows, mean_resizing=False)
    get_peft_model(base, pico.lora("llama")).save_pretrained(tmp_path / "lora", save_embedding_layers=bool(rows))
    create_repository(online.base, str(tmp_path / "lora"), out=tmp_path / "made")
    written = (tmp_path / "made/README.md").read_text()
    assert ("PeftModel.from_pretrained" in written) == (rows is None)
    access = HubAccess()
    again = describe_files(open_repository(tmp_path / "made", access), access, repo_id="o/m", license_fields={})
    assert engines(again).peft == (rows is None)
