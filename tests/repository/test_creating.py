"""MoLoRA and full fine-tunes as repositories: made, published, loaded, described and checked like adapters."""

import dataclasses
import functools
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import taia_hub.cli
from taia_hub import TAIAForCausalLM, cards, hub
from taia_hub.errors import ConfigError, RepositoryError, SettingError, TAIAError, UnsupportedUpdateError
from taia_hub.evaluation.environment import identify
from taia_hub.repository.creating import create_from_finetuned, create_repository
from taia_hub.repository.info import repository_info
from taia_hub.updates.molora.config import MoLoraSettings
from taia_hub.updates.molora.update import add_molora, save_molora

MODES = ("none", "attention", "ffn", "all")


def random_change(model: Any, names: tuple[str, ...] = ("",), seed: int = 1) -> Any:
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and any(part in name for part in names):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def tuned(online: Any, tmp_path: Path) -> Path:
    """A full fine-tune of the online base, with a tokenizer of its own."""
    folder = tmp_path / "tuned"
    random_change(AutoModelForCausalLM.from_pretrained(online.base)).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(online.base)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def mixture(online: Any, tmp_path: Path) -> Path:
    """A MoLoRA on the online base."""
    base = AutoModelForCausalLM.from_pretrained(online.base)
    folder = tmp_path / "mixture"
    save_molora(random_change(add_molora(base, MoLoraSettings(rank=4, alpha=6))), folder)
    return folder


@pytest.fixture(params=["molora", "dense"])
def made(request: pytest.FixtureRequest, online: Any, tmp_path: Path) -> tuple[str, Path]:
    """A repository of each kind in a folder, made from the online base."""
    out = tmp_path / "made"
    if request.param == "dense":
        create_from_finetuned(online.base, str(request.getfixturevalue("tuned")), out=out)
    else:
        create_repository(online.base, str(request.getfixturevalue("mixture")), out=out)
    return request.param, out


def taia(*words: str) -> None:
    """Runs a command that must succeed."""
    with pytest.raises(SystemExit) as ended:
        taia_hub.cli.main(list(words))
    assert not ended.value.code


def logits(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return {mode: model(ids, inference_modules=mode).logits for mode in MODES}


def test_published_and_loaded_by_id(online: Any, made: Any, repo_id: str, pico: Any) -> None:
    _, folder = made
    ids = pico.ids()
    here = logits(TAIAForCausalLM.from_pretrained(folder).eval(), ids)
    online.hub.requests.clear()
    taia("push", str(folder), repo_id)
    assert online.commits() == [f"/api/models/{repo_id}/commit/main"]
    there = AutoModelForCausalLM.from_pretrained(repo_id).eval()
    assert all(torch.equal(one, here[mode]) for mode, one in logits(there, ids).items())
    assert torch.equal(here["none"], AutoModelForCausalLM.from_pretrained(online.base).eval()(ids).logits)
    assert len({tuple(one.flatten().tolist()) for one in here.values()}) == 4


def test_a_loaded_model_is_in_evaluation_mode(made: Any) -> None:
    _, folder = made
    model = TAIAForCausalLM.from_pretrained(folder)
    assert not [name for name, module in model.named_modules() if module.training]


def test_saving_again_keeps_the_bytes(made: Any, tmp_path: Path) -> None:
    kind, folder = made
    TAIAForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "again")
    for path in (folder / kind).iterdir():
        assert (tmp_path / "again" / kind / path.name).read_bytes() == path.read_bytes()
    assert json.loads((folder / "config.json").read_text())["update"] == {"kind": kind, "path": kind}


def test_info_counts_what_is_there(made: Any, online: Any) -> None:
    kind, folder = made
    info = repository_info(str(folder))
    model = TAIAForCausalLM.from_pretrained(folder)
    assert info.method == kind.upper() == model._taia_update.method
    assert {role: part.parameters for role, part in info.roles.items()} == {
        role: part.parameters for role, part in model.status().roles.items()
    }


def test_info_of_a_published_one_downloads_no_weights(made: Any, online: Any, repo_id: str) -> None:
    kind, folder = made
    taia("push", str(folder), repo_id)
    online.hub.requests.clear()
    info = repository_info(repo_id)
    assert dataclasses.replace(repository_info(str(folder)), name=repo_id, revision=info.revision) == info
    whole = [path for method, path in online.hub.requests if method == "GET" and path.endswith(".safetensors")]
    assert len(whole) <= 1 + (kind == "dense")  # headers by range requests


def test_the_card_is_true_and_says_what_it_is(made: Any, capsys: pytest.CaptureFixture[str], online: Any) -> None:
    kind, folder = made
    taia("card", str(folder), "--check")
    card = (folder / "README.md").read_text()
    assert ("A full fine-tune of" if kind == "dense" else "A MoLoRA fine-tune of") in card
    assert f"base_model_relation: {'finetune' if kind == 'dense' else 'adapter'}" in card
    assert "PeftModel" not in card  # plain PEFT reads neither


def test_a_changed_byte_is_found(made: Any) -> None:
    kind, folder = made
    weights = next((folder / kind).glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RepositoryError, match="damaged"):
        TAIAForCausalLM.from_pretrained(folder)


def test_results_know_the_update_again(made: Any, tmp_path: Path) -> None:
    _, folder = made
    first = identify(TAIAForCausalLM.from_pretrained(folder))
    shutil.copytree(folder, tmp_path / "copy")
    assert identify(TAIAForCausalLM.from_pretrained(tmp_path / "copy")).adapter_sha256 == first.adapter_sha256


def test_a_fine_tune_brings_its_tokenizer(online: Any, tuned: Path, repo_id: str) -> None:
    created = create_from_finetuned(online.base, str(tuned), push=repo_id)
    assert created.commit is not None
    assert len(online.commits()) == 1
    assert AutoTokenizer.from_pretrained(repo_id).chat_template == "{{ messages[0]['content'] }}"
    model = AutoModelForCausalLM.from_pretrained(repo_id)
    assert model.inference_modules == "attention+other"


@pytest.mark.parametrize("compress", [None, 4])
def test_making_one_of_a_fine_tune_says_how_far_it_is(online: Any, tuned: Path, tmp_path: Path, compress: Any) -> None:
    told: list[tuple[str, int, int]] = []
    create_from_finetuned(
        online.base, str(tuned), out=tmp_path / "out", compress=compress, progress=lambda *step: told.append(step)
    )
    stages = {stage: (done, total) for stage, done, total in told}
    assert list(stages) == ["comparing", "compressing" if compress else "writing, in MB"]
    assert all(done == total for done, total in stages.values())
    assert told == sorted(told, key=lambda step: (list(stages).index(step[0]), step[1]))


def test_what_is_resolved_and_built_already_is_taken(
    online: Any, mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training builds the structure once, and its files go on the one card that is rendered."""
    base = hub.resolve_base(online.base, None, hub.HubAccess())
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(online.base))
    rendered = []
    render = cards.render_card
    monkeypatch.setattr(cards, "render_card", lambda *a, **k: rendered.append(a) or render(*a, **k))
    monkeypatch.setattr(AutoModelForCausalLM, "from_config", lambda *a, **k: pytest.fail("built again"))

    def extra_files(folder: Path) -> None:
        manifest = json.loads((folder / "taia_manifest.json").read_text())
        sha256 = manifest["files"]["molora/molora_model.safetensors"]["sha256"]
        record = {"hardware": {"gpu": "one fine GPU"}, "adapter_sha256": sha256}
        (folder / "taia_training.json").write_text(json.dumps(record))

    made = create_repository(base, str(mixture), out=tmp_path / "out", skeleton=skeleton, extra_files=extra_files)
    assert made.folder == tmp_path / "out"
    assert "one fine GPU" in (tmp_path / "out/README.md").read_text()
    assert len(rendered) == 1


def test_from_finetuned(online: Any, tuned: Path, pico: Any) -> None:
    model = TAIAForCausalLM.from_finetuned(online.base, tuned).eval()
    ids = pico.ids()
    assert torch.equal(
        model(ids, inference_modules="all").logits, AutoModelForCausalLM.from_pretrained(tuned)(ids).logits
    )
    assert model.taia_config.base_model_revision == online.base_sha


def test_fewer_shards_than_before_leave_none_behind(online: Any, tuned: Path, repo_id: str, tmp_path: Path) -> None:
    out = tmp_path / "made"
    create_from_finetuned(online.base, str(tuned), out=out)
    stale = out / "dense" / "dense-00007-of-00009.safetensors"
    save_file({"x": torch.zeros(1)}, stale)
    online.api.create_repo(repo_id)
    online.api.upload_file(path_or_fileobj=stale, path_in_repo=f"dense/{stale.name}", repo_id=repo_id)
    taia("push", str(out), repo_id)
    assert not [name for name in online.files(repo_id) if name.endswith(stale.name)]
    TAIAForCausalLM.from_pretrained(out).save_pretrained(out)
    assert not stale.exists()


@pytest.fixture
def other_kinds(online: Any, mixture: Path, tuned: Path) -> dict[str, Any]:
    """Makes a repository of each kind on the online base, with the keywords of `create_repository`."""
    adapter = functools.partial(create_repository, online.base, online.adapter, overwrite=True)
    return {
        "adapter": adapter,
        "molora": functools.partial(create_repository, online.base, str(mixture), overwrite=True),
        "dense": functools.partial(create_from_finetuned, online.base, str(tuned), overwrite=True),
        "link": functools.partial(adapter, link=True),
    }


def in_folders(root: Path) -> set[str]:
    """Lists the folders of a repository and what is in them."""
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_dir() or path.parent != root}


CHANGES = [("adapter", "dense"), ("dense", "molora"), ("molora", "adapter"), ("adapter", "link")]


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_an_update_of_another_kind_leaves_nothing_of_the_earlier_one_in_a_folder(
    other_kinds: Any, before: str, after: str, tmp_path: Path
) -> None:
    out = tmp_path / "made"
    other_kinds[before](out=out)
    (out / before / "NOTES.txt").write_text("mine")
    (out / "dense-notes").mkdir()
    other_kinds[after](out=out)
    other_kinds[after](out=tmp_path / "fresh")
    mine = {"dense-notes", before, f"{before}/NOTES.txt"}
    assert in_folders(out) == in_folders(tmp_path / "fresh") | mine
    (out / before / "NOTES.txt").unlink()
    (out / before).rmdir()
    other_kinds[before](out=out)
    other_kinds[after](out=out)
    assert not (out / before).exists()


@pytest.mark.parametrize("way", ["create", "push"])
@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_an_update_of_another_kind_leaves_nothing_of_the_earlier_one_on_the_hub(
    online: Any, other_kinds: Any, before: str, after: str, way: str, repo_id: str, tmp_path: Path
) -> None:
    other_kinds[before](push=repo_id)
    online.api.upload_file(path_or_fileobj=b"mine", path_in_repo=f"{before}/NOTES.txt", repo_id=repo_id)
    online.hub.requests.clear()
    if way == "create":
        other_kinds[after](push=repo_id)
    else:
        other_kinds[after](out=tmp_path / "made")
        taia("push", str(tmp_path / "made"), repo_id)
    assert len(online.commits()) == 1
    assert [name for name in online.files(repo_id) if name.startswith(f"{before}/")] == [f"{before}/NOTES.txt"]
    assert TAIAForCausalLM.from_pretrained(repo_id).status().roles["attention"].adapted


def test_a_persons_update_beside_ours_stays(online: Any, other_kinds: Any, repo_id: str, tmp_path: Path) -> None:
    """Only the earlier config.json tells what was ours; one that is damaged tells nothing."""
    out = tmp_path / "made"
    other_kinds["molora"](out=out)
    other_kinds["molora"](push=repo_id)
    (out / "adapter").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (out / "adapter" / name).write_bytes(b"mine")
        online.api.upload_file(path_or_fileobj=b"mine", path_in_repo=f"adapter/{name}", repo_id=repo_id)
    other_kinds["dense"](out=out)
    other_kinds["dense"](push=repo_id)
    assert not (out / "molora").exists()
    assert (out / "adapter" / "adapter_model.safetensors").read_bytes() == b"mine"
    found = set(online.files(repo_id))
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= found
    assert not [name for name in found if name.startswith("molora/")]
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "update": {"kind": "other", "path": "dense"}}))
    other_kinds["molora"](out=out)
    assert (out / "dense" / "dense_config.json").is_file()


def test_compressed_to_a_plain_adapter(online: Any, tuned: Path, tmp_path: Path, capsys: Any, pico: Any) -> None:
    asked = ["--compress", '{"attention": 8, "ffn": 0.9}']
    taia("create", online.base, str(tuned), "--dense", *asked, "--out", str(tmp_path / "lora"), "--json")
    printed = json.loads(capsys.readouterr().out)
    assert printed["status"]["inference_modules"] == "attention"
    config = json.loads((tmp_path / "lora" / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["base_model_name_or_path"]) == ("LORA", online.base)
    kept = TAIAForCausalLM.from_pretrained(tmp_path / "lora").eval()
    again = TAIAForCausalLM.from_finetuned(online.base, tuned, compress={"attention": 8, "ffn": 0.9}).eval()
    ids = pico.ids()
    assert torch.equal(kept(ids).logits, again(ids).logits)
    tensors = load_file(tmp_path / "lora" / "adapter" / "adapter_model.safetensors")
    assert {len(one) for name, one in tensors.items() if "self_attn" in name and "lora_A" in name} == {8}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dense", "--link"], "--link is for adapters"),
        (["--compress", "4"], "--compress is for full fine-tunes"),
        (["--dense", "--compress", "many"], "no number and no JSON object"),
        (["--dense", "--compress", "0"], "rank"),
        (["--dense", "--compress", "[4]"], "neither a rank, a share"),
        (["--dense", "--compress", "1.5"], "energy"),
        (["--dense", "--mode", "atention"], "Did you mean"),
    ],
)
def test_bad_words(online: Any, tuned: Path, tmp_path: Path, capsys: Any, words: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match="1"):
        taia_hub.cli.main(["create", online.base, str(tuned), "--out", str(tmp_path / "out"), *words])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_adapter_alone_brings_its_base_and_its_revision(
    online: Any, pico: Any, tmp_path: Path, repo_id: str
) -> None:
    base = f"{repo_id}-base"
    online.push_base(base)
    sha = online.api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=base).oid
    online.api.upload_file(path_or_fileobj=b"y", path_in_repo="x.txt", repo_id=base)
    shutil.copytree(pico.adapter("llama"), tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": base, "revision": sha}))
    taia("create", str(tmp_path / "lora"), "--out", str(tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["base_model_name_or_path"], config["base_model_revision"]) == (base, sha)


@pytest.fixture
def names(online: Any, tuned: Path, pico: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a base model, its fine-tune, a LoRA, trainings that hold some, and our own folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pico.base("llama"), "base")
    for folder in ("lora", "nameless", "one/checkpoint-4", "two/checkpoint-4", "two/checkpoint-8"):
        shutil.copytree(pico.adapter("llama"), folder)
    path = Path("nameless/adapter_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": None}))
    create_repository("base", "lora", out=Path("ours"))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said", "next_step"),
    [
        (["lora", "base"], "'lora' is an adapter and 'base' a whole model", "`taia create base lora`"),
        (["org/adapter", "org/base"], "'org/adapter' is an adapter", "`taia create org/base org/adapter`"),
        (["ours", "base"], "'ours' is a TAIA repository", "Name a base"),
        (["base", "tuned"], "'tuned' is a whole model", "`taia create base tuned --dense`"),
        (["tuned"], "'tuned' is a whole model", "`taia create BASE tuned --dense`"),
        (["nameless"], "'nameless' names no base model", "`taia create BASE nameless`"),
        (["base", "ours"], "it is a TAIA repository already", "'ours/adapter'"),
        (["two"], "in 'checkpoint-4', 'checkpoint-8'", "'two/checkpoint-8'"),
        (["base", "lora", "ours"], "3 models came", "[BASE] ADAPTER"),
        (["lora", "--dense"], "1 model came: lora", "BASE FINETUNED --dense"),
    ],
)
def test_arguments_in_the_wrong_place(names: Path, capsys: Any, words: list[str], said: str, next_step: str) -> None:
    with pytest.raises(SystemExit, match="1"):
        taia_hub.cli.main(["create", *words, "--out", "out"])
    printed = capsys.readouterr().err
    assert said in printed
    assert next_step in printed.partition("Hint: ")[2]
    assert not Path("out").exists()


def test_the_same_repository_again_is_known_and_another_one_wants_overwrite(names: Path, monkeypatch: Any) -> None:
    (names / "ours" / "notes.txt").write_text("mine")
    (names / "ours" / "README.md").write_text("My own card.")
    before = {path: path.read_bytes() for path in (names / "ours").rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr("taia_hub.repository.publishing.save", None)
        assert not create_repository("base", "lora", out=Path("ours")).is_new
    with pytest.raises(RepositoryError, match="'ours' holds another TAIA repository") as caught:
        create_repository("base", "lora", out=Path("ours"), inference_modules="ffn")
    assert "--overwrite" in str(caught.value.hint)
    assert before == {path: path.read_bytes() for path in (names / "ours").rglob("*") if path.is_file()}
    assert create_repository("base", "lora", out=Path("ours"), inference_modules="ffn", overwrite=True).is_new
    assert json.loads((names / "ours" / "config.json").read_text())["inference_modules"] == "ffn"
    assert (names / "ours" / "notes.txt").read_text() == "mine"
    with pytest.raises(RepositoryError, match="another TAIA repository"):
        create_repository("base", "lora", out=Path("ours"))


@pytest.mark.parametrize("compress", [None, 4])
def test_the_same_fine_tune_again_is_not_compared_again(names: Path, monkeypatch: Any, compress: Any) -> None:
    hashed: list[Path] = []
    with monkeypatch.context() as patch:
        patch.setattr("taia_hub.common.resuming.sha256", lambda path: hashed.append(path) or hub.sha256(path))
        first = create_from_finetuned("base", "tuned", out=Path("out"), compress=compress)
    assert not [path for path in hashed if path.match("dense-*.safetensors")]  # the index knows them
    assert hashed
    for path in Path("out").rglob("*.safetensors"):
        os.utime(path, (0, 0))
    for name in ("write_dense", "compress_difference"):
        monkeypatch.setattr(f"taia_hub.repository.loading.{name}", None)
    again = create_from_finetuned("base", "tuned", out=Path("out"), compress=compress)
    assert (first.is_new, again.is_new) == (True, False)
    assert again.status == first.status
    with pytest.raises(RepositoryError, match="another TAIA repository"):
        create_from_finetuned("base", "tuned", out=Path("out"), compress=2)


def test_the_one_adapter_in_a_training_is_taken(names: Path, caplog: Any) -> None:
    taia("create", "base", "one", "--out", "out")
    assert "the one in 'one/checkpoint-4' is taken" in caplog.text
    weights = "adapter_model.safetensors"
    assert Path("out/adapter", weights).read_bytes() == Path("lora", weights).read_bytes()


def test_an_adapter_in_a_folder_of_a_repository_is_said(online: Any, pico: Any, repo_id: str, tmp_path: Path) -> None:
    online.api.create_repo(repo_id)
    online.api.upload_folder(
        repo_id=repo_id, folder_path=pico.adapter("llama"), path_in_repo="last", allow_patterns="a*"
    )
    with pytest.raises(RepositoryError, match="has some in 'last'") as caught:
        create_repository(None, repo_id, out=tmp_path / "out")
    assert f"'{repo_id}@last'" in caught.value.hint


def test_an_adapter_in_a_folder_of_a_repository_is_taken(online, pico, repo_id, taia, tmp_path, monkeypatch):
    online.api.create_repo(repo_id)
    folder = pico.adapter("llama")
    for inside in ("reward", "runs/checkpoint-5"):
        online.api.upload_folder(repo_id=repo_id, folder_path=folder, path_in_repo=inside, allow_patterns="a*")
    ids = pico.ids()
    expected = pico.taia("llama", inference_modules="all")(ids).logits
    for name, keywords in ((f"{repo_id}@reward", {}), (repo_id, {"subfolder": "runs/checkpoint-5"})):
        model = TAIAForCausalLM.from_adapter(online.base, name, inference_modules="all", **keywords)
        assert torch.equal(model(ids).logits, expected)
    monkeypatch.chdir(tmp_path)
    assert taia("create", online.base, repo_id, "--subfolder", "reward", "--out", "copied")[0] == 0
    assert taia("create", online.base, f"{repo_id}@runs/checkpoint-5", "--link", "--out", "linked")[0] == 0
    assert json.loads(Path("linked/config.json").read_text())["update"]["path"] == "runs/checkpoint-5"
    for made in ("copied", "linked"):
        model = TAIAForCausalLM.from_pretrained(made, inference_modules="all")
        assert torch.equal(model(ids).logits, expected)


def test_a_link_to_an_adapter_with_other_names_than_its_base_is_refused(online, pico, repo_id, tmp_path):
    shutil.copytree(pico.adapter("llama"), tmp_path / "lora")
    weights = tmp_path / "lora/adapter_model.safetensors"
    save_file({f"_orig_mod.{key}": tensor for key, tensor in load_file(weights).items()}, weights)
    online.api.create_repo(repo_id)
    online.api.upload_folder(repo_id=repo_id, folder_path=tmp_path / "lora", ignore_patterns=["README.md"])
    with pytest.raises(ConfigError, match="link"):
        create_repository(online.base, repo_id, out=tmp_path / "made", link=True)
    create_repository(online.base, repo_id, out=tmp_path / "made")


def test_an_adapter_in_a_folder_of_a_folder_goes_by_its_name_too(pico, tmp_path):
    shutil.copytree(pico.adapter("llama"), tmp_path / "run" / "default")
    shutil.copytree(pico.adapter("llama"), tmp_path / "run" / "other@home")
    for name in ("run@default", "run/default", "run@other@home"):
        if name == "run@other@home":
            with pytest.raises(TAIAError):
                TAIAForCausalLM.from_adapter(pico.base("llama"), tmp_path / name)
        else:
            TAIAForCausalLM.from_adapter(pico.base("llama"), tmp_path / name)
    TAIAForCausalLM.from_adapter(pico.base("llama"), tmp_path / "run" / "other@home")


@pytest.mark.parametrize("inside", ["..", "a/../../b", ".", "a//b", "a\\b", "*", "C:"])
def test_a_folder_that_leads_out_of_its_repository_is_refused(pico, inside, tmp_path):
    with pytest.raises(ConfigError, match="names no folder"):
        TAIAForCausalLM.from_adapter(pico.base("llama"), f"{pico.adapter('llama')}@{inside}")


def test_a_folder_that_is_not_there_is_said_with_those_that_are(pico, tmp_path):
    shutil.copytree(pico.adapter("llama"), tmp_path / "run" / "last")
    with pytest.raises(RepositoryError, match="has some in 'last'"):
        TAIAForCausalLM.from_adapter(pico.base("llama"), tmp_path / "run", subfolder="first")


def test_a_fine_tune_of_another_model(online: Any, pico: Any, tmp_path: Path) -> None:
    with pytest.raises(TAIAError, match=r"LlamaForCausalLM.*GPT2LMHeadModel"):
        create_from_finetuned(online.base, str(pico.base("gpt2")), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_measured_says_what_it_cannot(made: Any, capsys: Any) -> None:
    _, folder = made
    with pytest.raises(SystemExit, match="1"):
        taia_hub.cli.main(["analyze", str(folder)])
    assert "only PEFT adapters are measured" in capsys.readouterr().err


def test_a_fine_tune_is_not_trained_on(made: Any) -> None:
    kind, folder = made
    if kind == "molora":
        assert any(one.requires_grad for one in TAIAForCausalLM.from_pretrained(folder, is_trainable=True).parameters())
        return
    with pytest.raises(UnsupportedUpdateError, match="cannot be trained"):
        TAIAForCausalLM.from_pretrained(folder, is_trainable=True)


def test_a_folder_inside_a_file_is_refused(online, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RepositoryError, match=r"was not written: .* is a file"):
        create_repository(online.base, online.adapter, out=tmp_path / "file" / "folder")
    assert (tmp_path / "file").read_text() == "mine"


def test_loading_draws_no_warnings_that_nobody_can_act_on(pico, tmp_path):
    adapter = pico.adapter("llama", LoHaConfig(r=2, target_modules=["q_proj", "up_proj"]), "created-loha")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_repository(str(pico.base("llama")), str(adapter), out=tmp_path / "made")
        TAIAForCausalLM.from_pretrained(tmp_path / "made")


def test_a_wrong_mode_of_create_is_not_called_one_of_config_json(online, tmp_path):
    with pytest.raises(SettingError) as caught:
        create_repository(online.base, online.adapter, out=tmp_path / "out", inference_modules="atention")
    assert "config.json" not in caught.value.message
    assert "Did you mean 'attention'" in caught.value.message
