"""Where the base's GGUF comes from: given, on the Hub, or written once."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import constants

from taia_hub import TAIAForCausalLM, hub, serving
from taia_hub.engines import find_engine
from taia_hub.errors import ConfigError, RepositoryError, UnsupportedUpdateError, UpdateMismatchError
from taia_hub.serving import check_gguf, plan_serving
from tests.engines.test_gguf_base import byte_level
from tests.engines.test_gguf_match import write_match

gguf = pytest.importorskip("gguf")
ACCESS = hub.HubAccess()


def base_gguf(*args, **keywords):
    return serving.base_gguf(*args, **keywords).path


@pytest.fixture(autouse=True)
def alike(monkeypatch):
    """Whether llama.cpp makes the same tokens is tested where they are written."""
    monkeypatch.setattr("taia_hub.engines.gguf_base.check_vocabulary", lambda *_: None)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "taia-serving" / "bases"


@pytest.fixture(scope="module")
def base(pico, tmp_path_factory):
    """A base in a folder, with a tokenizer."""
    folder = tmp_path_factory.mktemp("gguf") / "pico-base"
    shutil.copytree(pico.base("llama"), folder)
    byte_level().save_pretrained(folder)
    return hub.Source(str(folder), folder, None)


def test_a_base_is_written_once_for_each_type(base, cache):
    path, stages = base_gguf(base, access=ACCESS), []
    assert path.is_relative_to(cache)
    assert path.parent.name.startswith("pico-base-")
    made = path.stat().st_mtime_ns
    assert base_gguf(base, access=ACCESS, progress=lambda *stage: stages.append(stage)) == path
    assert (path.stat().st_mtime_ns, stages) == (made, [])
    short = base_gguf(base, "float16", access=ACCESS, progress=lambda *stage: stages.append(stage))
    assert short != path
    assert stages[-1] == ("writing the base as GGUF", 1, 1)
    path.write_bytes(path.read_bytes()[:-10])  # cut short since
    assert base_gguf(base, access=ACCESS).stat().st_mtime_ns != made
    check = {one.name: one.tensor_type.name for one in gguf.GGUFReader(short).tensors}
    assert check["token_embd.weight"] == "F16"
    assert sorted(path.name[:10] for path in cache.iterdir() if path.is_dir()) == ["pico-base-"] * 2


def test_repositories_of_a_base_share_it_and_a_changed_base_is_another(base, cache, pico, tmp_path):
    for name in ("one", "two"):
        TAIAForCausalLM.from_adapter(base.folder, pico.adapter("llama")).save_pretrained(tmp_path / name)
    plans = [plan_serving(tmp_path / name, "llama.cpp", out=tmp_path / "out" / name) for name in ("one", "two")]
    assert plans[0].order.gguf == plans[1].order.gguf == base_gguf(base, access=ACCESS)
    assert str(plans[0].order.gguf) in next(iter(plans[0].commands[-1].files.values()))
    copy = tmp_path / "pico-base"
    shutil.copytree(base.folder, copy)
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5]}))
    other = base_gguf(hub.Source(str(copy), copy, None), access=ACCESS)
    assert other != plans[0].order.gguf


def test_the_command_takes_a_type(base, cache, pico, tmp_path, taia):
    TAIAForCausalLM.from_adapter(base.folder, pico.adapter("llama")).save_pretrained(tmp_path / "one")
    words = ("serve", tmp_path / "one", "--engine", "llama.cpp", "--out", tmp_path / "out", "--print")
    status, out, err = taia(*words, "--gguf", "float16")
    assert status == 0, err
    (file,) = (tmp_path / "out").glob("llama_cpp_server-*.json")
    assert str(file) in out
    path = Path(json.loads(file.read_text())["base"])
    assert path == base_gguf(base, "float16", access=ACCESS)
    status, _, err = taia(*words, "--gguf", "float17")
    assert (status, "There is no GGUF file 'float17'" in err) == (1, True)


def test_two_servers_write_a_base_once(base, cache, monkeypatch):
    """They start at the same time: the second one waits, and finds what the first has written."""
    from taia_hub.serving import gguf as module

    written, write = [], module.write_gguf_base

    def counted(*words, **keywords):
        written.append(words)
        return write(*words, **keywords)

    monkeypatch.setattr(module, "write_gguf_base", counted)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: base_gguf(base, access=ACCESS), range(2))
    assert (one, len(written)) == (other, 1)


def test_a_full_disk_leaves_no_base_half(base, cache, monkeypatch):
    def write(self, tensor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", write)
    with pytest.raises(RepositoryError, match="no space is left"):
        base_gguf(base, access=ACCESS)
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []
    monkeypatch.undo()


def test_a_file_must_be_of_this_base(base, cache, pico, tmp_path):
    mine = write_match(tmp_path / "mine.gguf", base.folder)
    assert base_gguf(base, mine, access=ACCESS) == mine
    other = write_match(tmp_path / "other.gguf", base.folder, **{"token_embd.weight": 0.01})
    with pytest.raises(UpdateMismatchError, match=r"'other\.gguf' is not the base model"):
        base_gguf(base, other, access=ACCESS)
    assert not cache.exists()


def test_a_file_on_the_hub_is_fetched_by_its_address(online, base, tmp_path):
    name = "own/base-gguf"
    online.api.create_repo(name)
    write_match(tmp_path / "base-F16.gguf", base.folder)
    online.api.upload_file(repo_id=name, path_in_repo="sub/base-F16.gguf", path_or_fileobj=tmp_path / "base-F16.gguf")
    for address in (
        f"{name}/sub/base-F16.gguf",
        f"hf://{name}/sub/base-F16.gguf",
        f"hf://{name}@main/sub/base-F16.gguf",
    ):
        check_gguf(find_engine("llama.cpp"), address)
        path = base_gguf(base, address, access=ACCESS)
        assert path.read_bytes() == (tmp_path / "base-F16.gguf").read_bytes()
    with pytest.raises(RepositoryError, match=r"'own/base-gguf' has no file 'base\.gguf'") as caught:
        base_gguf(base, f"{name}/base.gguf", access=ACCESS)
    assert "It has sub/base-F16.gguf" in caught.value.hint
    with pytest.raises(RepositoryError, match="own/nowhere"):
        base_gguf(base, "own/nowhere/base.gguf", access=ACCESS)
    with pytest.raises(ConfigError, match=r"There is no GGUF file 'base\.gguf'"):
        check_gguf(find_engine("llama.cpp"), "base.gguf")


def test_where_a_base_cannot_be_written_files_on_the_hub_are_named(online, pico):
    """A GPT-2: nothing of it is fetched, and none of what is found is taken."""
    for name, folder in (("own/odd", pico.base("gpt2")), ("own/odd-GGUF", None), ("else/quantised", None)):
        online.api.create_repo(name)
        if folder:
            online.api.upload_folder(repo_id=name, folder_path=folder)
    card = b"---\nbase_model: own/odd\nbase_model_relation: quantized\n---\n"
    for path in ("odd-Q4_K_M.gguf", "odd-Q8_0.gguf", "odd-F16-00001-of-00002.gguf"):
        online.api.upload_file(repo_id="own/odd-GGUF", path_in_repo=path, path_or_fileobj=b"GGUF")
    online.api.upload_file(repo_id="else/quantised", path_in_repo="README.md", path_or_fileobj=card)
    online.api.upload_file(repo_id="else/quantised", path_in_repo="small.gguf", path_or_fileobj=b"GGUF")
    base = hub.fetch("own/odd", [hub.CONFIG])
    with pytest.raises(UnsupportedUpdateError, match="a gpt2, lies in a GGUF file is not known here") as caught:
        base_gguf(base, access=ACCESS)
    found = "--gguf own/odd-GGUF/odd-Q8_0.gguf, --gguf else/quantised/small.gguf"
    assert f"On the Hub are: {found}. Or serve merged models with --engine transformers." in caught.value.hint
    assert [path.name for path in base.folder.iterdir()] == ["config.json"]
    online.hub.fail = lambda *_: 503
    with pytest.raises(UnsupportedUpdateError) as caught:
        base_gguf(base, "q8_0", access=ACCESS)
    assert "On the Hub" not in caught.value.hint
    assert "convert_hf_to_gguf.py" in caught.value.hint


def test_a_base_on_the_hub_is_written_from_there(online, base, cache):
    """The tokenizer first: where it cannot be written, no weight is fetched."""
    online.api.create_repo("own/with-tokens")
    sha = online.api.upload_folder(repo_id="own/with-tokens", folder_path=base.folder).oid
    there = hub.fetch("own/with-tokens", [hub.CONFIG], revision=sha)
    path = base_gguf(there, access=ACCESS)
    assert path.parent.name.startswith("with-tokens-")
    assert (there.folder / "model.safetensors").is_file()
    online.hub.fail = lambda *_: 503
    assert base_gguf(there, access=ACCESS) == path  # without a network

    online.hub.fail = None
    online.api.create_repo("own/odd-tokens")
    sha = online.api.upload_folder(repo_id="own/odd-tokens", folder_path=online.pico.base("llama")).oid
    from tests.conftest import pico_tokenizer

    pico_tokenizer().save_pretrained(Path(cache.parent, "odd"))
    sha = online.api.upload_folder(repo_id="own/odd-tokens", folder_path=Path(cache.parent, "odd")).oid
    odd = hub.fetch("own/odd-tokens", [hub.CONFIG], revision=sha)
    with pytest.raises(UnsupportedUpdateError, match="The tokenizer of the base model 'own/odd-tokens'"):
        base_gguf(odd, access=ACCESS)
    assert not (odd.folder / "model.safetensors").exists()
