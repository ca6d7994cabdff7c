"""What is read from the Hub: the cache first, nothing at all without a network, and nothing late."""

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import HfApi, snapshot_download

import taia_hub
from taia_hub import TrainingRecipe, hub, train
from taia_hub.hub import HubAccess
from taia_hub.merging import merge
from taia_hub.repository.creating import create_repository
from taia_hub.repository.tokenizer import load_tokenizer
from taia_hub.repository.update_files import open_repository
from taia_hub.training.sources import read_sources

PACKAGE = Path(taia_hub.__file__).parent
READERS = {"api", "HfApi", "HfFileSystem", *(name for name in vars(HfApi) if name in vars(huggingface_hub))}
WRITERS = {"create_repo", "create_commit", "upload_file", "upload_folder"}


def calls_of_the_client(path):
    """Yields the names of the Hub's client that a module takes from huggingface_hub, or from our own room."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "huggingface_hub":
            yield from (alias.name for alias in node.names if alias.name in READERS - WRITERS)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("taia_hub.hub"):
            yield from (alias.name for alias in node.names if alias.name == "api")
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("hub.api", "hub.access.api"):
            yield ast.unparse(node)


def test_one_room_talks_to_the_hub():
    others = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in ("hub", "local_hub")]
    found = {path.relative_to(PACKAGE).as_posix(): sorted(calls_of_the_client(path)) for path in others}
    assert {name: calls for name, calls in found.items() if calls} == {}
    assert len(others) > 200


@pytest.fixture
def offline(monkeypatch):
    """What `HF_HUB_OFFLINE=1` does, from the moment that it is called."""

    def cut():
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    return cut


@pytest.fixture
def cached(online, monkeypatch, tmp_path):
    """A cache of this test's own, with nothing in it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return online


@pytest.fixture
def files(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"instruction": "the", "output": "a"}\n' * 8)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "the"}\n')
    items = [
        {"id": str(n), "question": f"the {n}?", "answer": "A", "answer_type": "choice", "choices": ["a", "b"]}
        for n in range(4)
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    return tmp_path


COMMANDS = {
    "info": ["info", "org/model-taia"],
    "info of an adapter": ["info", "org/adapter"],
    "create": ["create", "org/base", "org/adapter", "--out", "made"],
    "merge": ["merge", "org/model-taia", "--out", "merged"],
    "export": ["export", "org/model-taia", "--out", "exported"],
    "train": ["train", "--base", "org/base", "--data", "train.jsonl", "--out", "trained", "--max-steps", "1"],
    "eval": ["eval", "org/model-taia", "--task", "items.jsonl", "--mode", "none"],
    "compare": ["compare", "org/model-taia", "the", "--max-new-tokens", "2"],
    "compare --file": ["compare", "org/model-taia", "--file", "prompts.jsonl", "--max-new-tokens", "2"],
    "card": ["card", "org/model-taia"],
    "card --check": ["card", "org/model-taia", "--check"],
    "generate": ["generate", "org/model-taia", "the", "--max-new-tokens", "2"],
    "analyze": ["analyze", "org/model-taia"],
    "analyze --relative": ["analyze", "org/model-taia", "--relative"],
    "serve --print": ["serve", "org/model-taia", "--engine", "transformers", "--print"],
    "check": ["check", "org/adapter"],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_everything_works_from_the_cache_alone(cached, offline, files, taia, monkeypatch, words):
    for name in (cached.base, cached.adapter, cached.taia):
        snapshot_download(name)
    cached.hub.requests.clear()
    offline()
    monkeypatch.chdir(files)
    status, _, said = taia(*words)
    assert status == 0, said
    assert not cached.hub.requests


def test_a_licence_that_is_not_in_the_cache_is_left_out_with_a_note(cached, offline, tmp_path, caplog):
    for name in (cached.base, cached.adapter):
        snapshot_download(name, ignore_patterns=["README.md"])
    offline()
    create_repository(cached.base, cached.adapter, out=tmp_path / "made")
    assert f"The licence of '{cached.base}' is left out: its card is not in the cache" in caplog.text
    assert "license" not in (tmp_path / "made" / "README.md").read_text().partition("\n# ")[0]


def test_a_licence_that_is_in_the_cache_is_on_the_card(cached, offline, tmp_path):
    hub.resolve_base(cached.base, None, HubAccess())
    for name in (cached.base, cached.adapter):
        snapshot_download(name, ignore_patterns=["README.md"])
    offline()
    create_repository(cached.base, cached.adapter, out=tmp_path / "made")
    assert "license_name: pico-1.0" in (tmp_path / "made" / "README.md").read_text()


@pytest.mark.parametrize("lacking", ["tokenizer.json", "generation_config.json", "model.safetensors"])
def test_a_cache_that_lacks_a_file_is_told_before_the_work(cached, offline, files, lacking):
    """The base's weights, its tokenizer and its settings of generation are all needed at the end or before it."""
    for name in (cached.base, cached.adapter, cached.taia):
        snapshot_download(name, ignore_patterns=[lacking] if name == cached.base else None)
    offline()
    said = []
    with pytest.raises(hub.OutOfReachError, match=f"is in the cache without '{lacking}'") as caught:
        merge(cached.taia, files / "merged", progress=lambda *step: said.append(step))
    assert f"hf download {cached.base} {lacking} --revision {cached.base_sha}" in caught.value.hint
    assert not said
    assert not (files / "merged").exists()


def test_a_cache_without_a_list_of_files_does_not_take_the_bases_tokenizer_for_the_repositorys(cached, offline):
    """As transformers leaves a cache that it filled itself, file by file."""
    snapshot_download(cached.base)
    for name in ("config.json", "taia_manifest.json", "adapter/adapter_config.json", "generation_config.json"):
        huggingface_hub.hf_hub_download(cached.taia, name)
    offline()
    found = open_repository(cached.taia, HubAccess())
    with pytest.raises(hub.OutOfReachError, match=f"own tokenizer of '{cached.taia}', if it has one, is not in the c"):
        load_tokenizer(SimpleNamespace(taia_config=found.config), places=found.places)
    with pytest.raises(hub.OutOfReachError, match=r"adapter_model.safetensors' of .* is not in the cache"):
        found.with_weights(HubAccess())


def test_of_a_main_branch_that_is_not_known_the_only_commit_is_taken(cached, offline, tmp_path, caplog):
    """As after loading a repository, which names its base by a commit."""
    snapshot_download(cached.base, revision=cached.base_sha)
    snapshot_download(cached.adapter)
    offline()
    create_repository(cached.base, cached.adapter, out=tmp_path / "made")
    assert f"{cached.base_sha[:12]}, the only one in the cache, is taken" in caplog.text
    assert json.loads((tmp_path / "made" / "config.json").read_text())["base_model_revision"] == cached.base_sha


def test_commits_in_the_cache_are_named_where_there_are_several(cached, offline, repo_id):
    first = cached.push_base(repo_id)
    second = cached.api.upload_file(path_or_fileobj=b"x", path_in_repo="notes.txt", repo_id=repo_id).oid
    for commit in (first, second):
        snapshot_download(repo_id, revision=commit)
    offline()
    with pytest.raises(hub.OutOfReachError, match="the cache does not hold the revision 'main'") as caught:
        hub.resolve_base(repo_id, None, HubAccess())
    assert first in caught.value.hint
    assert second in caught.value.hint
    assert "Did you mean" not in caught.value.message
    with pytest.raises(hub.OutOfReachError, match="the cache does not hold the revision 'v1'"):
        hub.fetch(repo_id, ["*"], revision="v1")
    assert hub.resolve_base(repo_id, second, HubAccess()).revision == second


def test_a_network_that_goes_down_after_the_start_is_not_noticed(cached, files, taia, monkeypatch):
    """All that a training writes at its end is at a commit, and here."""
    snapshot_download(cached.base)
    monkeypatch.chdir(files)
    cached.hub.requests.clear()

    def down(*_):
        cached.hub.fail = lambda method, path: 403  # what is asked again and again costs half a minute
        cached.hub.requests.clear()

    recipe = TrainingRecipe(base=cached.base, data=("train.jsonl",), max_steps=1, dtype="float32", batch_size=4)
    train(recipe, out=Path("trained"), on_plan=down)
    late = [path for _, path in cached.hub.requests if "adapter_config.json" not in path]
    assert not late  # that file transformers asks for, of every base, when it loads the weights
    assert "license_name: pico-1.0" in Path("trained", "README.md").read_text()


def test_a_gated_base_that_was_fetched_before_is_used(cached, tmp_path):
    for name in (cached.base, cached.adapter):
        snapshot_download(name)
    cached.hub.fail = lambda method, path: 403 if f"{cached.base}" in path else None
    sha = create_repository(cached.base, cached.adapter, base_revision=cached.base_sha, out=tmp_path / "made")
    assert sha.is_new
    assert "license_name: pico-1.0" in (tmp_path / "made" / "README.md").read_text()


def test_a_data_set_is_read_from_the_cache(cached, offline, repo_id, monkeypatch):
    rows = b'{"instruction": "the", "output": "a"}\n' * 4
    card = b"---\nlicense: mit\n---\n"
    cached.api.create_repo(repo_id, repo_type="dataset")
    for name, content in (("train.jsonl", rows), ("README.md", card)):
        cached.api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=repo_id, repo_type="dataset")
    (first,) = read_sources([repo_id])
    assert first.facts.license == "mit"
    offline()
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    (again,) = read_sources([repo_id])
    assert (again.facts.revision, again.facts.license) == (first.facts.revision, "mit")


def test_spare_files_and_those_of_other_folders_may_be_missing(cached, offline, repo_id):
    """As the files of other loaders lie beside a model, which fit our patterns by chance."""
    cached.push_base(repo_id)
    for name in ("tokenizer.model", "original/tokenizer.model", "pytorch_model.bin.index.json"):
        cached.api.upload_file(path_or_fileobj=b"{}", path_in_repo=name, repo_id=repo_id)
    snapshot_download(repo_id, allow_patterns=["*.json", "model.safetensors"], ignore_patterns=["pytorch*"])
    offline()
    found = hub.fetch_model(repo_id, hub.TOKENIZER_FILES)
    assert not (found.folder / "tokenizer.model").exists()
    assert (found.folder / "model.safetensors").is_file()
