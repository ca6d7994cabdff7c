"""Round trips over HTTP: what is published is what is loaded."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import CommitOperationAdd, snapshot_download
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, pipeline

from taia_hub import TAIAConfig, TAIAForCausalLM, TAIAModel
from taia_hub.common.installing import install_command
from taia_hub.errors import RepositoryError
from taia_hub.hub import sha256
from taia_hub.switch.modes import MODES

WEIGHTS = "adapter/adapter_model.safetensors"
PROBE = "the other theory, is it there? yes! the END"


def logits_of(model, ids, mode=None):
    model.eval()
    with torch.no_grad():
        return model(ids).logits if mode is None else model(ids, inference_modules=mode).logits


def modes_of(model, ids):
    return {mode: logits_of(model, ids, mode) for mode in MODES}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 35, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def expected(_published, ids):
    """Logits of each mode of the model that was published, none and all as the base and PEFT give them."""
    assembled = modes_of(TAIAForCausalLM.from_adapter(_published.base, _published.adapter), ids)
    base = AutoModelForCausalLM.from_pretrained(_published.base)
    assert torch.equal(assembled["none"], logits_of(base, ids))
    assert torch.equal(assembled["all"], logits_of(PeftModel.from_pretrained(base, _published.adapter), ids))
    assert not any(torch.equal(assembled["attention"], assembled[mode]) for mode in ("none", "ffn", "all"))
    return assembled


# The Auto classes


@pytest.mark.parametrize("where", ["id", "folder"])
def test_auto_classes_load_what_was_pushed(online, ids, expected, where):
    name = online.taia if where == "id" else snapshot_download(online.taia)
    config = AutoConfig.from_pretrained(name)
    assert type(config) is TAIAConfig
    assert (config.base_model_name_or_path, config.base_model_revision) == (online.base, online.base_sha)
    assert config.inference_modules == "attention"
    model = AutoModelForCausalLM.from_pretrained(name)
    assert isinstance(model, TAIAForCausalLM)
    assert type(model).__name__ == "TAIALlamaForCausalLM"
    assert not model.training
    assert equal(modes_of(model, ids), expected)
    assert torch.equal(logits_of(model, ids), expected["attention"])


def test_the_backbone_gives_the_hidden_states_of_the_whole_model(online, ids):
    backbone, whole = AutoModel.from_pretrained(online.taia), AutoModelForCausalLM.from_pretrained(online.taia)
    assert isinstance(backbone, TAIAModel)
    assert not hasattr(backbone, "lm_head")
    for mode in MODES:
        with torch.no_grad(), whole.using(mode), backbone.using(mode):
            hidden = whole(ids, output_hidden_states=True).hidden_states[-1]
            assert torch.equal(backbone(ids).last_hidden_state, hidden)


def test_the_backbone_can_be_saved_and_loaded_as_the_whole_model(online, ids, expected, tmp_path):
    AutoModel.from_pretrained(online.taia).save_pretrained(tmp_path)
    assert equal(modes_of(AutoModelForCausalLM.from_pretrained(tmp_path), ids), expected)


def test_a_saved_folder_loads_as_it_was(online, ids, expected, tmp_path):
    AutoModelForCausalLM.from_pretrained(online.taia).save_pretrained(tmp_path / "one")
    AutoModelForCausalLM.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*")}
    assert files == {path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*")}
    assert equal(modes_of(AutoModelForCausalLM.from_pretrained(tmp_path / "two"), ids), expected)


def test_passing_the_configuration_makes_no_difference(online, ids, expected):
    config = AutoConfig.from_pretrained(online.taia)
    assert equal(modes_of(AutoModelForCausalLM.from_pretrained(online.taia, config=config), ids), expected)


@pytest.mark.parametrize("setting", ["all", "attention+other", {"attention": 1, "ffn@0": 0.5}])
def test_a_setting_at_load_leaves_what_is_published(online, tmp_path, setting):
    model = AutoModelForCausalLM.from_pretrained(online.taia, inference_modules=setting)
    assert model.inference_modules == setting
    assert model.taia_config.inference_modules == "attention"
    model.inference_modules = "none"
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["inference_modules"] == "attention"


@pytest.mark.parametrize(
    "setting",
    [
        {"ffn": 0.5, "attention": 1, "ffn@0": 0},
        {"*@0-1": [0.25, 1.0], "attention@0": -1.0, "allow_extrapolation": True},
    ],
)
def test_what_is_published_can_be_chosen(online, ids, setting, repo_id):
    model = TAIAForCausalLM.from_adapter(online.base, online.adapter, inference_modules=setting)
    model.push_to_hub(repo_id)
    loaded = AutoModelForCausalLM.from_pretrained(repo_id)
    assert loaded.inference_modules == setting
    assert list(loaded.inference_modules) == list(setting)
    assert torch.equal(logits_of(loaded, ids), logits_of(model, ids))


def test_loading_keywords_reach_the_base(online):
    model = AutoModelForCausalLM.from_pretrained(online.taia, dtype=torch.bfloat16, attn_implementation="eager")
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"


def test_generation_settings_of_the_repository_win(online, repo_id):
    model = online.model()
    model.generation_config = GenerationConfig(max_new_tokens=7, eos_token_id=2, pad_token_id=0)
    model.push_to_hub(repo_id)
    assert AutoModelForCausalLM.from_pretrained(repo_id).generation_config.max_new_tokens == 7


def test_a_pipeline_runs_by_id(online):
    run = pipeline("text-generation", model=online.taia)
    assert isinstance(run.model, TAIAForCausalLM)
    texts = {}
    for mode in MODES:
        with run.model.using(mode):
            texts[mode] = run("the ", max_new_tokens=6, do_sample=False)[0]["generated_text"]
    assert all(text.startswith("the ") for text in texts.values())
    assert (
        texts["none"]
        == pipeline("text-generation", model=online.base)("the ", max_new_tokens=6, do_sample=False)[0][
            "generated_text"
        ]
    )


def test_the_tokenizer_gives_the_ids_of_the_base(online):
    base, taia = (AutoTokenizer.from_pretrained(name) for name in (online.base, online.taia))
    assert taia(PROBE).input_ids == base(PROBE).input_ids
    assert len(base(PROBE).input_ids) < len(PROBE)
    assert (taia.pad_token_id, taia.bos_token_id, taia.eos_token_id) == (0, 1, 2)
    assert taia.decode(taia(PROBE).input_ids) == base.decode(base(PROBE).input_ids)


@pytest.mark.slow
def test_a_real_tokenizer_gives_the_ids_and_chats_of_the_base(online, pico, smollm2, tmp_path):
    text = "Données 数据 1234\n\n  def f(x): return x**2 🙂 <|im_start|>user"
    chat = [{"role": "user", "content": "What is TAIA?"}]
    base = AutoTokenizer.from_pretrained(smollm2)
    shutil.copytree(snapshot_download(online.taia), tmp_path / "taia")
    for path in (tmp_path / "taia").glob("*token*"):
        path.unlink()
    base.save_pretrained(tmp_path / "taia")
    taia = AutoTokenizer.from_pretrained(tmp_path / "taia")
    assert type(taia) is type(base)
    assert taia(text).input_ids == base(text).input_ids
    assert taia.apply_chat_template(chat, tokenize=False) == base.apply_chat_template(chat, tokenize=False)


# Clean processes

CLEAN = """
import sys, torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "taia_hub":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
for trust in (False, True):
    try:
        AutoModelForCausalLM.from_pretrained({repo!r}, trust_remote_code=trust)
    except (ImportError, ValueError) as error:
        print(type(error).__name__, " ".join(str(error).split()))
del sys.meta_path[0]
assert "taia_hub" not in sys.modules
config = AutoConfig.from_pretrained({repo!r}, trust_remote_code=True)
backbone = AutoModel.from_pretrained({repo!r}, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained({repo!r}, trust_remote_code=True).eval()
assert type(config).__module__ == "taia_hub.configuration_taia", type(config)
assert type(backbone).__name__ == "TAIALlamaModel", type(backbone)
model.taia_config.save_pretrained("config")
model.save_pretrained("saved")
model.push_to_hub({again!r})
ids = torch.load("ids.pt")
with torch.no_grad():
    torch.save({{mode: model(ids, inference_modules=mode).logits for mode in {modes!r}}}, "logits.pt")
"""


@pytest.mark.slow
def test_a_clean_process_is_told_what_to_install_then_loads_through_the_stubs_and_saves_stubs(
    online, ids, expected, tmp_path, clean_process, repo_id
):
    torch.save(ids, tmp_path / "ids.pt")
    result = clean_process(CLEAN.format(repo=online.taia, again=repo_id, modes=list(MODES)))
    assert result.returncode == 0, result.stderr
    untrusted, trusted = result.stdout.splitlines()
    assert "trust_remote_code=True" in untrusted
    assert trusted.startswith("ImportError")
    assert install_command() in trusted.replace(" # ", "  # ")  # and not a package of an index
    assert equal(torch.load(tmp_path / "logits.pt"), expected)
    assert [path.name for path in (tmp_path / "config").iterdir()] == ["config.json"]
    for folder in (tmp_path / "saved", Path(snapshot_download(repo_id))):
        assert sorted(path.name for path in folder.glob("*.py")) == ["configuration_taia.py", "modeling_taia.py"]
        for path in folder.glob("*.py"):
            assert path.read_text() == Path(online.api.hf_hub_download(online.taia, path.name)).read_text()
            assert "from taia_hub import" in path.read_text()
            assert len(path.read_text().splitlines()) == 6
        assert json.loads((folder / "config.json").read_text())["auto_map"] == {
            "AutoConfig": "configuration_taia.TAIAConfig",
            "AutoModel": "modeling_taia.TAIAModel",
            "AutoModelForCausalLM": "modeling_taia.TAIAForCausalLM",
        }


# Revisions


@pytest.fixture
def history(online, repo_id):
    """A TAIA repository whose main moved on: tag v1 and branch old are the first commit."""
    model = online.model()
    first = model.push_to_hub(repo_id)
    online.api.create_tag(repo_id, tag="v1")
    online.api.create_branch(repo_id, branch="old")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.mul_(2)
    second = model.push_to_hub(repo_id)
    return repo_id, first.oid, second.oid


def test_a_branch_a_tag_and_a_commit_are_loaded(history, ids, expected):
    repo_id, first, second = history
    for revision in ("old", "v1", first):
        model = AutoModelForCausalLM.from_pretrained(repo_id, revision=revision)
        assert torch.equal(logits_of(model, ids, "all"), expected["all"])
    for revision in (None, "main", second):
        model = AutoModelForCausalLM.from_pretrained(repo_id, revision=revision)
        assert not torch.equal(logits_of(model, ids, "all"), expected["all"])
        assert torch.equal(logits_of(model, ids, "none"), expected["none"])


def test_the_base_stays_at_its_recorded_commit(online, pico, ids, repo_id):
    base_id = f"{repo_id}-base"
    sha = online.push_base(base_id)
    model = TAIAForCausalLM.from_adapter(base_id, online.adapter)
    assert model.taia_config.base_model_revision == sha
    model.push_to_hub(repo_id)
    tensors = load_file(pico.base("llama") / "model.safetensors")
    moved = pico.folder / "moved.safetensors"
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, moved, metadata={"format": "pt"})
    online.api.upload_file(path_or_fileobj=moved, path_in_repo="model.safetensors", repo_id=base_id)
    loaded = AutoModelForCausalLM.from_pretrained(repo_id)
    assert equal(modes_of(loaded, ids), modes_of(model, ids))
    assert loaded.taia_config.base_model_revision == sha
    assert not torch.equal(
        logits_of(AutoModelForCausalLM.from_pretrained(base_id), ids), logits_of(loaded, ids, "none")
    )


def test_from_adapter_records_the_commit_of_the_revision_that_was_asked_for(online, repo_id):
    base_id = f"{repo_id}-base"
    sha = online.push_base(base_id)
    online.api.create_tag(base_id, tag="v1")
    online.api.upload_file(path_or_fileobj=b"news", path_in_repo="NEWS", repo_id=base_id)
    for revision, recorded in [("v1", sha), (sha, sha), (None, online.api.model_info(base_id).sha)]:
        model = TAIAForCausalLM.from_adapter(base_id, online.adapter, base_revision=revision)
        assert model.taia_config.base_model_revision == recorded


def test_the_revision_that_an_adapter_names_is_one_of_the_base_that_it_names(online, repo_id, tmp_path):
    base_id = f"{repo_id}-base"
    old = online.push_base(base_id)
    online.api.create_branch(base_id, branch="4bit")
    new = online.api.upload_file(path_or_fileobj=b"news", path_in_repo="NEWS", repo_id=base_id).oid
    shutil.copytree(snapshot_download(online.adapter), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    cases = [(base_id, old, old), (base_id, "4bit", old), ("other/base-GPTQ", "4bit", new), ("other/base", "gone", new)]
    for named, revision, expected in cases:
        path.write_text(json.dumps({**config, "base_model_name_or_path": named, "revision": revision}))
        model = TAIAForCausalLM.from_adapter(base_id, tmp_path / "adapter")
        assert model.taia_config.base_model_revision == expected


def test_an_adapter_revision_is_loaded(online, ids, expected, repo_id):
    online.push_adapter(repo_id)
    online.api.create_tag(repo_id, tag="v1")
    file = Path(online.api.hf_hub_download(repo_id, "adapter_model.safetensors"))
    zeros = {name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}
    save_file(zeros, file.parent / "zeros.safetensors", metadata={"format": "pt"})
    online.api.upload_file(
        path_or_fileobj=file.parent / "zeros.safetensors", path_in_repo="adapter_model.safetensors", repo_id=repo_id
    )
    tagged = TAIAForCausalLM.from_adapter(online.base, repo_id, adapter_revision="v1")
    assert torch.equal(logits_of(tagged, ids, "all"), expected["all"])
    latest = TAIAForCausalLM.from_adapter(online.base, repo_id)
    assert torch.equal(logits_of(latest, ids, "all"), expected["none"])


# The files


def test_the_repository_holds_these_files_and_no_adapter_at_its_root(online):
    assert set(online.api.list_repo_files(online.taia)) == {
        ".gitattributes",
        "README.md",
        WEIGHTS,
        "adapter/adapter_config.json",
        "config.json",
        "configuration_taia.py",
        "generation_config.json",
        "modeling_taia.py",
        "taia_manifest.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_the_manifest_has_size_and_sha256_of_the_update_and_what_the_configuration_decides(online):
    folder = Path(snapshot_download(online.taia))
    files = {
        name: {"size": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in ("adapter/adapter_config.json", WEIGHTS)
    }
    config = {
        "base_model_name_or_path": online.base,
        "base_model_revision": online.base_sha,
        "inference_modules": "attention",
        "update": {"kind": "peft", "path": "adapter"},
    }
    manifest = json.loads((folder / "taia_manifest.json").read_text())
    assert manifest == {"version": 2, "config": config, "files": files}


def test_peft_loads_the_whole_update_without_this_package(online, ids, expected):
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(online.base), online.taia, subfolder="adapter"
    )
    assert torch.equal(logits_of(model, ids), expected["all"])


@pytest.fixture
def half_adapter(online, tmp_path):
    """A folder with an adapter in bfloat16, in an order and with metadata that PEFT would not write."""
    folder = tmp_path / "half"
    shutil.copytree(snapshot_download(online.adapter), folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    halves = {name: tensors[name].to(torch.bfloat16) for name in reversed(tensors)}
    save_file(halves, folder / "adapter_model.safetensors", metadata={"made by": "hand"})
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_that_was_not_changed_keeps_its_bytes(online, half_adapter, repo_id, tmp_path, dtype):
    original = {name: sha256(half_adapter / name) for name in ("adapter_config.json", "adapter_model.safetensors")}
    TAIAForCausalLM.from_adapter(online.base, half_adapter, dtype=dtype).save_pretrained(tmp_path / "one")
    AutoModelForCausalLM.from_pretrained(tmp_path / "one", dtype=dtype).push_to_hub(repo_id)
    for folder in (tmp_path / "one", Path(snapshot_download(repo_id))):
        assert {name: sha256(folder / "adapter" / name) for name in original} == original


def test_an_adapter_that_was_changed_is_written_anew(online, half_adapter, ids, tmp_path):
    model = TAIAForCausalLM.from_adapter(online.base, half_adapter)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name).add_(1)
    model.save_pretrained(tmp_path / "one")
    assert sha256(tmp_path / "one" / WEIGHTS) != sha256(half_adapter / "adapter_model.safetensors")
    assert equal(modes_of(TAIAForCausalLM.from_pretrained(tmp_path / "one"), ids), modes_of(model, ids))


def test_after_the_first_load_the_cache_is_enough(online, ids, expected):
    for auto in (AutoModelForCausalLM, AutoModel, AutoConfig):
        auto.from_pretrained(online.taia)
    online.hub.requests.clear()
    online.hub.fail = lambda method, path: 503
    model = AutoModelForCausalLM.from_pretrained(online.taia, local_files_only=True)
    assert equal(modes_of(model, ids), expected)
    assert isinstance(AutoModel.from_pretrained(online.taia, local_files_only=True), TAIAModel)
    assert online.hub.requests == []


def test_a_cache_folder_of_ones_own_holds_everything(online, tmp_path):
    AutoModelForCausalLM.from_pretrained(online.taia, cache_dir=tmp_path)
    assert {path.name for path in tmp_path.glob("models--*")} == {"models--org--base", "models--org--model-taia"}


# Repositories that point to an adapter, and plain adapters


@pytest.fixture
def pointer(online, repo_id):
    """A repository of config.json and a card alone."""
    sha = online.api.model_info(online.adapter).sha
    config = TAIAConfig(
        architectures=["TAIAForCausalLM"],
        base_model_name_or_path=online.base,
        base_model_revision=online.base_sha,
        update={"kind": "peft", "path": "", "repo": online.adapter, "revision": sha},
    )
    online.api.create_repo(repo_id)
    files = {"config.json": config.to_json_string().encode(), "README.md": b"# A pointer\n"}
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    online.api.create_commit(repo_id, operations, commit_message="point")
    return repo_id


def test_a_pointer_loads_the_adapter_that_it_points_to(pointer, ids, expected):
    assert equal(modes_of(AutoModelForCausalLM.from_pretrained(pointer), ids), expected)


def test_a_saved_pointer_stays_a_pointer(online, pointer, ids, expected, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(pointer)
    model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "adapter").exists()
    assert not list((tmp_path / "saved").rglob("*.safetensors"))
    assert equal(modes_of(AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), ids), expected)
    model.push_to_hub(f"{pointer}-again")
    assert not [name for name in online.api.list_repo_files(f"{pointer}-again") if "adapter" in name]
    assert equal(modes_of(AutoModelForCausalLM.from_pretrained(f"{pointer}-again"), ids), expected)


def test_a_pointer_whose_update_was_trained_on_is_saved_whole(pointer, ids, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(pointer)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name).add_(1)
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / WEIGHTS).is_file()
    assert equal(modes_of(AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), ids), modes_of(model, ids))


def test_a_pointer_stays_at_its_commit(online, ids, repo_id):
    online.push_adapter(f"{repo_id}-adapter")
    sha = online.api.model_info(f"{repo_id}-adapter").sha
    config = TAIAConfig(
        base_model_name_or_path=online.base,
        base_model_revision=online.base_sha,
        update={"kind": "peft", "path": "", "repo": f"{repo_id}-adapter", "revision": sha},
    )
    online.api.create_repo(repo_id)
    online.api.upload_file(
        path_or_fileobj=config.to_json_string().encode(), path_in_repo="config.json", repo_id=repo_id
    )
    before = modes_of(AutoModelForCausalLM.from_pretrained(repo_id), ids)
    online.api.delete_file("adapter_model.safetensors", f"{repo_id}-adapter")
    shutil.rmtree(Path(snapshot_download(repo_id)).parents[1])
    assert equal(modes_of(AutoModelForCausalLM.from_pretrained(repo_id), ids), before)


def test_a_folder_of_the_same_name_does_not_stand_in_for_the_adapter(pointer, ids, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "adapter").mkdir(parents=True)
    assert equal(modes_of(AutoModelForCausalLM.from_pretrained(pointer), ids), expected)


def test_a_folder_of_the_same_name_does_not_stand_in_for_the_base(online, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(snapshot_download(online.base), tmp_path / "org" / "base")
    with pytest.raises(RepositoryError, match="'org/base' is fixed at a commit on the Hub, but a folder") as caught:
        TAIAForCausalLM.from_pretrained(online.taia)
    assert "Rename the folder" in caught.value.hint


@pytest.mark.parametrize("where", ["id", "folder"])
def test_a_plain_adapter_is_put_on_its_base_and_says_so(online, ids, expected, where, caplog):
    name = online.adapter if where == "id" else snapshot_download(online.adapter)
    with caplog.at_level(logging.WARNING, logger="taia_hub"):
        model = TAIAForCausalLM.from_pretrained(name)
    assert "plain PEFT adapter" in caplog.text
    assert f"'{online.base}'" in caplog.text
    assert "'attention'" in caplog.text
    assert equal(modes_of(model, ids), expected)
    assert model.inference_modules == "attention"
    assert model.taia_config.base_model_revision == online.base_sha


def test_a_plain_adapter_can_be_published(online, ids, expected, repo_id):
    TAIAForCausalLM.from_pretrained(online.adapter).push_to_hub(repo_id)
    assert equal(modes_of(AutoModelForCausalLM.from_pretrained(repo_id), ids), expected)
