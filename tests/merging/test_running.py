"""Merging to disk: bit for bit what PEFT merges, whole or not at all, and what is refused."""

import errno
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
import typer
import yaml
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from taia_hub import TAIAForCausalLM, hub
from taia_hub.cli.merging import merge as merge_command
from taia_hub.common import resuming
from taia_hub.errors import (
    ConfigError,
    RepositoryError,
    SettingError,
    UnsupportedUpdateError,
    UpdateMismatchError,
)
from taia_hub.merging import merge, running, writing
from taia_hub.merging import module as by_module
from taia_hub.merging.publishing import check_repository, publish_merged
from taia_hub.merging.state import Scratch, locked
from taia_hub.updates.molora.config import MoLoraSettings
from taia_hub.updates.molora.update import add_molora, save_molora
from taia_hub.updates.peft.methods import MERGEABLE
from tests.conftest import FORKS
from tests.updates.dense.test_update import Dense
from tests.updates.peft.test_methods import WORKS, config_of


def state(folder_or_model):
    """Every tensor by the name that the loaded model has for it."""
    model = folder_or_model
    if not isinstance(model, torch.nn.Module):
        model = AutoModelForCausalLM.from_pretrained(model)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    differ = [name for name in one if one[name].dtype != other[name].dtype or not torch.equal(one[name], other[name])]
    assert not differ, differ


def pefts_merge(base, adapter):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    return state(model.merge_and_unload())


def on(adapter, base, folder, dtype=None):
    """A copy of an adapter that names another base, with tensors of another dtype."""
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    if dtype is not None:
        tensors = load_file(folder / "adapter_model.safetensors")
        save_file({name: one.to(dtype) for name, one in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


CASES = [
    ("llama", "attention"),
    ("llama", "all"),
    ("gpt2", "all"),
    ("opt", "ffn"),
    ("gpt_neox", "attention"),
    ("mixtral", "ffn"),
    ("qwen3_moe", "all"),
    ("qwen2_moe", "ffn"),
    ("jamba", "attention"),
]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_equals_pefts_merge_bit_for_bit(pico, tmp_path, name, mode):
    report = merge(pico.adapter(name), tmp_path / "out", mode)
    narrowed = pico.adapter(name) if mode == "all" else pico.narrowed(name, mode)
    expected = pefts_merge(pico.base(name), narrowed)
    assert_same(state(tmp_path / "out"), expected)
    changed = state(pico.base(name))
    assert not all(torch.equal(changed[key], one) for key, one in expected.items())
    assert set(report.modules) == {mode} if mode != "all" else {"attention", "ffn"}
    assert (tmp_path / "out" / "model.safetensors").stat().st_size == (
        pico.base(name) / "model.safetensors"
    ).stat().st_size


@pytest.mark.parametrize(("dtype", "of_adapter"), [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
def test_16_bit_bases(pico, tmp_path, dtype, of_adapter):
    base = tmp_path / "base"
    pico.plain("llama", dtype=dtype).save_pretrained(base)
    adapter = on(pico.adapter("llama"), base, tmp_path / "adapter", of_adapter)
    merge(adapter, tmp_path / "out", "all")
    assert_same(state(tmp_path / "out"), pefts_merge(base, adapter))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up": 9}}]
)
def test_variants_of_lora(pico, tmp_path, options):
    label = "merge-" + "-".join(options)
    adapter = pico.adapter("llama", pico.lora("llama", **options), label=label)
    merge(adapter, tmp_path / "out", "all")
    assert_same(state(tmp_path / "out"), pefts_merge(pico.base("llama"), adapter))


@pytest.mark.parametrize(
    ("setting", "attention", "ffn"),
    [
        ({"attention": 1, "ffn@1": 0.25}, (1, 1), (0, 0.25)),
        ({"*@0-1": [0.25, 1]}, (0.25, 1), (0.25, 1)),
        ({"attention": 1.5, "ffn@0-1": [-1, 2], "allow_extrapolation": True}, (1.5, 1.5), (-1, 2)),
    ],
)
def test_weights_scale_the_update(pico, tmp_path, setting, attention, ffn):
    merge(pico.adapter("llama"), tmp_path / "out", setting)
    model = pico.peft("llama", pico.adapter("llama"))
    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer):
            layer.scaling["default"] *= (ffn if "mlp" in name else attention)[int(".1." in name)]
    assert_same(state(tmp_path / "out"), state(model.merge_and_unload()))


@pytest.mark.parametrize("method", sorted(WORKS))
def test_every_method_of_peft(pico, tmp_path, method):
    adapter = pico.adapter("llama", config_of(method), label=f"merge-{method}")
    if method not in MERGEABLE:
        with pytest.raises(UnsupportedUpdateError, match=f"A {method} update cannot be merged one module"):
            merge(adapter, tmp_path / "out", "all")
        assert not list(tmp_path.iterdir())
        return
    merge(adapter, tmp_path / "out", "all")
    expected = pico.peft("llama", adapter).merge_and_unload()
    if method == "LN_TUNING":  # PEFT leaves its wrapper of the last layer in place
        expected = {name.replace(".base_layer", ""): one for name, one in state(expected).items()}
        assert_same(state(tmp_path / "out"), {name: expected[name] for name in state(tmp_path / "out")})
        return
    assert_same(state(tmp_path / "out"), state(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_large_tensors_are_added_in_blocks(pico, tmp_path, monkeypatch, name, dtype):
    embeddings = {"llama": ["embed_tokens", "lm_head"], "gpt2": ["wte"]}[name]
    targets = [*embeddings, *{"llama": ["q_proj"], "gpt2": ["c_attn"]}[name]]
    config = pico.lora(name, target_modules=targets, target_parameters=None)
    base = tmp_path / "base"
    pico.plain(name, dtype=dtype).save_pretrained(base)
    adapter = on(pico.adapter(name, config, label="merged-in-blocks"), base, tmp_path / "adapter")
    monkeypatch.setattr(by_module, "_BLOCK", 100)
    blocks, real = [], by_module._add_plain
    monkeypatch.setattr(by_module, "_add_plain", lambda *one: blocks.append(one) or real(*one))
    merge(adapter, tmp_path / "out", "all")
    assert len(blocks) == len(embeddings) + 2
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, tie_word_embeddings=False), adapter)
    merged = state(model.merge_and_unload())
    made = load_file(tmp_path / "out" / "model.safetensors")
    found = [key for key in made if any(word in key for word in targets)]
    assert len(found) >= len(blocks)
    for key in found:
        known = merged.get(key, merged.get(f"transformer.{key}"))
        assert torch.equal(made[key], known), key


# --- Layouts ----------------------------------------------------------------------------------------------------------
def test_shards_keep_names_and_places(pico, tmp_path):
    base = tmp_path / "base"
    pico.plain("mixtral").save_pretrained(base, max_shard_size="9KB")
    adapter = on(pico.adapter("mixtral"), base, tmp_path / "adapter")
    told = []
    report = merge(adapter, tmp_path / "out", "all", progress=lambda *step: told.append(step))
    assert_same(state(tmp_path / "out"), pefts_merge(base, adapter))
    before, after = (json.loads((one / "model.safetensors.index.json").read_text()) for one in (base, tmp_path / "out"))
    assert after["weight_map"] == before["weight_map"]
    assert after["metadata"]["total_size"] == before["metadata"]["total_size"]
    assert len(report.written) > 5
    assert set(report.written) == set(before["weight_map"].values())
    assert told[-1][1] == told[-1][2]
    assert {path.name for path in (tmp_path / "out").iterdir()} >= set(report.sha256)
    for name, digest in report.sha256.items():
        assert hub.sha256(tmp_path / "out" / name) == digest


def test_dtype_is_converted_after_merging(pico, tmp_path):
    report = merge(pico.adapter("llama"), tmp_path / "out", "attention", dtype="bfloat16")
    expected = pefts_merge(pico.base("llama"), pico.narrowed("llama", "attention"))
    assert_same(state(tmp_path / "out"), {name: one.bfloat16() for name, one in expected.items()})
    assert report.dtype == "bfloat16"


BEYOND = {"attention": 1, "ffn": -1, "allow_extrapolation": True}


@pytest.mark.parametrize("name", ["llama", "opt", "mixtral"])
@pytest.mark.parametrize("setting", ["attention", "all", {"attention": 1, "ffn": 0.5}, BEYOND])
def test_full_fine_tunes(pico, tmp_path, name, setting):
    dense = Dense(pico, tmp_path)
    repository = _dense_repository(pico.base(name), dense.tuned(name), tmp_path / "taia")
    merge(repository, tmp_path / "out", setting)
    if isinstance(setting, dict):
        expected = dense.reference(name, ["attention"])
        dense.reference(name, ["ffn"], setting["ffn"], base=expected)
    else:
        expected = dense.reference(name, ["attention"] if setting == "attention" else ["attention", "ffn", "other"])
    assert_same(state(tmp_path / "out"), state(expected))


def test_a_fine_tune_with_another_vocabulary(pico, tokenizer, tmp_path):
    model = pico.plain("llama")
    model.resize_token_embeddings(70, mean_resizing=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")
    repository = _dense_repository(pico.base("llama"), tmp_path / "tuned", tmp_path / "taia")
    tokenizer.save_pretrained(repository)
    report = merge(repository, tmp_path / "all", "all")
    assert_same(state(tmp_path / "all"), state(model))
    assert json.loads((tmp_path / "all" / "config.json").read_text())["vocab_size"] == 70
    assert (tmp_path / "all" / "tokenizer.json").is_file()
    assert "70 rows" in " ".join(report.notes)
    merge(repository, tmp_path / "attention", "attention")
    assert json.loads((tmp_path / "attention" / "config.json").read_text())["vocab_size"] == 64
    assert not (tmp_path / "attention" / "tokenizer.json").exists()  # the base has none, and the fine-tune's is no fit
    with pytest.raises(UnsupportedUpdateError, match="two sizes of vocabulary"):
        merge(repository, tmp_path / "half", {"lm_head": 1})


def test_the_attention_of_a_mixture(pico, tmp_path):
    model = add_molora(pico.plain("llama"), MoLoraSettings(rank=4, alpha=6))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    save_molora(model, tmp_path / "molora")
    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer) and "self_attn" in name:
            layer.merge()
    merge(tmp_path / "molora", tmp_path / "out", "attention")
    own = {name.replace("base_model.model.", "").replace(".base_layer", ""): one for name, one in state(model).items()}
    made = state(tmp_path / "out")
    assert_same(made, {name: own[name] for name in made})
    with pytest.raises(UnsupportedUpdateError, match=r"experts of 6 modules act under 'all'.* router"):
        merge(tmp_path / "molora", tmp_path / "out2", "all")


# --- Embeddings, heads and what is tied -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("targets", "extra"),
    [
        (["c_attn", "lm_head"], {}),
        (["c_attn", "wte"], {}),
        (["c_attn"], {"modules_to_save": ["lm_head"]}),
        (["c_attn"], {"modules_to_save": ["wte"]}),
    ],
)
def test_a_tied_partner_is_left_alone(pico, tmp_path, targets, extra):
    label = "tied-" + "-".join([*targets, *(f"{key}-{names[0]}" for key, names in extra.items())])
    adapter = pico.adapter("gpt2", pico.lora("gpt2", target_modules=targets, target_parameters=None, **extra), label)
    report = merge(adapter, tmp_path / "out", "all")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert values["tie_word_embeddings"] is False
    assert "tie_word_embeddings: false" in " ".join(report.notes)
    base, which = state(pico.base("gpt2")), "lm_head" in str((targets, extra))
    kept, changed = ("transformer.wte.weight", "lm_head.weight")[:: 1 if which else -1]
    made = state(merged)
    assert torch.equal(made[kept], base[kept])
    assert not torch.equal(made[changed], base[changed])
    with torch.no_grad():
        torch.testing.assert_close(merged(pico.ids()).logits, pico.peft("gpt2", adapter)(pico.ids()).logits)
    masked = merge(adapter, tmp_path / "attention", "attention")
    assert (
        "tie_word_embeddings" not in (tmp_path / "attention" / "config.json").read_text()
        or json.loads((tmp_path / "attention" / "config.json").read_text())["tie_word_embeddings"]
    )
    assert not masked.notes


def test_tokens_trained_in_tied_embeddings_stay_tied(pico, tmp_path):
    config = LoraConfig(
        r=4, target_modules=["c_attn"], trainable_token_indices={"wte": [3, 5, 41]}, task_type="CAUSAL_LM"
    )
    adapter = pico.adapter("gpt2", config, label="tied-tokens")
    report = merge(adapter, tmp_path / "out", "all")
    made = state(tmp_path / "out")
    assert torch.equal(made["lm_head.weight"], made["transformer.wte.weight"])
    assert len(load_file(tmp_path / "out" / "model.safetensors")) == len(
        load_file(pico.base("gpt2") / "model.safetensors")
    )
    assert not report.notes
    base = state(pico.base("gpt2"))["lm_head.weight"]
    assert (made["lm_head.weight"] != base).any(1).nonzero().flatten().tolist() == [3, 5, 41]


# --- Files beside the weights -----------------------------------------------------------------------------------------
def test_from_the_hub_with_card_tokenizer_and_generation_config(online, tmp_path):
    report = merge(online.taia, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("the cat")["input_ids"] == AutoTokenizer.from_pretrained(online.base)("the cat")["input_ids"]
    assert (tmp_path / "out" / "generation_config.json").is_file()
    metadata = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---")[1])
    assert metadata["base_model"] == online.base
    assert metadata["base_model_relation"] == "finetune"
    assert metadata["license_name"] == "pico-1.0"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"`{online.base_sha}`" in card
    assert "- setting: `attention`" in card
    assert report.sha256["model.safetensors"] in card
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    ids = online.pico.ids()
    model = AutoModelForCausalLM.from_pretrained(online.taia).eval()
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()(ids).logits
        torch.testing.assert_close(merged, model(ids).logits)


def test_a_tokenizer_with_code_of_its_own(pico, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    base = tmp_path / "base"
    shutil.copytree(pico.base("llama"), base)
    tokenizer.save_pretrained(base)
    code = "from transformers import PreTrainedTokenizerFast\nprint('ran')\nclass Tok(PreTrainedTokenizerFast): ...\n"
    (base / "tokcode.py").write_text(code)
    values = json.loads((base / "tokenizer_config.json").read_text())
    values |= {"auto_map": {"AutoTokenizer": [None, "tokcode.Tok"]}, "tokenizer_class": "Tok"}
    (base / "tokenizer_config.json").write_text(json.dumps(values))
    adapter = on(pico.adapter("llama"), base, tmp_path / "adapter")
    report = merge(adapter, tmp_path / "out")
    assert "The tokenizer is left out" in report.notes[-1]
    assert "ran" not in capsys.readouterr().out
    report = merge(adapter, tmp_path / "out2", trust_remote_code=True)
    assert "ran" in capsys.readouterr().out
    assert not report.notes
    assert (tmp_path / "out2" / "tokenizer.json").is_file()
    assert (tmp_path / "out2" / "tokcode.py").read_text() == code


def test_a_loaded_model_keeps_its_repositorys_tokenizer(pico, tokenizer, tmp_path):
    TAIAForCausalLM.from_adapter(pico.base("llama"), pico.adapter("llama")).save_pretrained(tmp_path / "taia")
    tokenizer.chat_template = "OURS {{ messages }}"
    tokenizer.save_pretrained(tmp_path / "taia")
    tokenizer.chat_template = None
    model = TAIAForCausalLM.from_pretrained(tmp_path / "taia")
    model.generation_config.max_new_tokens = 3
    model.merge(tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == "OURS {{ messages }}"
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["max_new_tokens"] == 3


def test_a_trained_model_keeps_its_hub_repositorys_tokenizer(online, tokenizer, tmp_path, repo_id):
    TAIAForCausalLM.from_adapter(online.base, online.adapter).push_to_hub(repo_id)
    tokenizer.chat_template = "OURS {{ messages }}"
    tokenizer.push_to_hub(repo_id)
    tokenizer.chat_template = None
    model = TAIAForCausalLM.from_pretrained(repo_id)
    with torch.no_grad():
        next(one for name, one in model.named_parameters() if "lora_B" in name).add_(1)
    model.merge(tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == "OURS {{ messages }}"


def test_shards_of_any_name_are_fetched(online, pico, tmp_path):
    base = tmp_path / "base"
    pico.plain("llama").save_pretrained(base, max_shard_size="8KB")
    index = json.loads((base / "model.safetensors.index.json").read_text())
    for name in set(index["weight_map"].values()):
        (base / name).rename(base / name.replace("model-", "model.safetensors-"))
    odd = {key: name.replace("model-", "model.safetensors-") for key, name in index["weight_map"].items()}
    (base / "model.safetensors.index.json").write_text(json.dumps({**index, "weight_map": odd}))
    online.api.create_repo("org/odd-shards")
    online.api.upload_folder(repo_id="org/odd-shards", folder_path=base)
    adapter = on(pico.adapter("llama"), "org/odd-shards", tmp_path / "adapter")
    merge(adapter, tmp_path / "out", "all")
    assert_same(state(tmp_path / "out"), pefts_merge(base, adapter))


# --- Publishing -------------------------------------------------------------------------------------------------------
@pytest.fixture
def merged(online, tmp_path):
    return merge(online.taia, tmp_path / "merged")


@pytest.mark.parametrize("card", ["precious", None, "taia", "export"])
def test_another_model_is_not_overwritten(online, merged, repo_id, card):
    online.push_base(repo_id)
    if card is None:
        online.api.delete_file("README.md", repo_id)
    elif card in ("taia", "export"):  # a generated card alone, or the tags alone, do not make it ours
        text = _downloaded(online.taia, "README.md").read_bytes()
        text = text if card == "taia" else b"---\ntags: [taia, merged]\n---\n# Mine\n"
        online.api.upload_file(path_or_fileobj=text, path_in_repo="README.md", repo_id=repo_id)
    before = online.files(repo_id)
    for publish in (lambda: check_repository(repo_id), lambda: publish_merged(merged, repo_id)):
        with pytest.raises(RepositoryError, match="its card is not that of a merged model"):
            publish()
    assert online.files(repo_id) == before


def test_what_is_merged_is_not_its_own_target(online, merged):
    for name in (online.base, online.taia):
        with pytest.raises(RepositoryError, match="is what is merged"):
            publish_merged(merged, name)
    with pytest.raises(RepositoryError, match="is what is merged"):
        raise command(online.adapter, "--push", online.adapter).exception


def test_the_hub_is_not_asked_about_what_is_merged(merged, monkeypatch):
    monkeypatch.setattr(hub, "look", lambda *args, **keywords: pytest.fail("asked"))
    with pytest.raises(RepositoryError, match="is what is merged"):
        check_repository("org/Model", used=["org/model"])


def test_a_malformed_index_is_refused_before_anything_is_merged(online, merged, repo_id, tmp_path):
    publish_merged(merged, repo_id)
    (tmp_path / "index").write_text('{"weight_map": [1]}')
    hub.publish({hub.MODEL_INDEX: tmp_path / "index"}, hub.look(repo_id), hub.Commit("Break the index"))
    with pytest.raises(ConfigError, match="maps no tensors"):
        check_repository(repo_id)


def test_a_repository_that_somebody_filled_meanwhile(online, merged, repo_id):
    assert check_repository(repo_id) == repo_id
    TAIAForCausalLM.from_adapter(online.base, online.adapter).push_to_hub(repo_id)
    with pytest.raises(RepositoryError, match="is a TAIA repository"):
        publish_merged(merged, repo_id)


def test_a_commit_in_the_last_moment_refuses_ours(online, merged, repo_id, monkeypatch):
    online.api.create_repo(repo_id)
    real = hub.publish

    def late(*arguments, **keywords):
        online.api.upload_file(path_or_fileobj=b"theirs", path_in_repo="README.md", repo_id=repo_id)
        return real(*arguments, **keywords)

    monkeypatch.setattr(hub, "publish", late)
    with pytest.raises(RepositoryError, match="got another commit while this one was made"):
        publish_merged(merged, repo_id)
    assert _downloaded(repo_id, "README.md").read_text() == "theirs"


def test_a_second_push_deletes_old_shards_and_keeps_edits(online, merged, repo_id, tmp_path):
    names = ("model-00001-of-00002.safetensors", "odd.safetensors")
    folder = tmp_path / "before"
    shutil.copytree(merged.folder, folder)
    (folder / "model.safetensors").rename(folder / names[0])
    shutil.copyfile(folder / names[0], folder / names[1])
    index = {"metadata": {}, "weight_map": {"one": names[0], "other": names[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "notes.txt").write_text("mine")
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\n## Notes\n\nMY NOTES\n")
    online.api.create_repo(repo_id)
    online.api.upload_folder(repo_id=repo_id, folder_path=folder)
    publish_merged(merged, repo_id)
    there = set(online.files(repo_id))
    assert not there & {*names, "model.safetensors.index.json"}
    assert there >= {"model.safetensors", "notes.txt"}
    assert "MY NOTES" in _downloaded(repo_id, "README.md").read_text()


def command(*words):
    app = typer.Typer()
    app.command()(merge_command)
    return CliRunner().invoke(app, list(words))


def test_the_command_takes_one_mode(online, tmp_path):
    done = command(online.taia, "--out", str(tmp_path / "out"), "--mode", "attention", "--mode", "all")
    assert "--mode came 2 times" in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_and_publishes(online, tmp_path, repo_id):
    done = command(online.taia, "--out", str(tmp_path / "out"), "--mode", '{"attention": 1}', "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["modules"] == {"attention": 8}
    online.hub.requests.clear()
    done = command(online.taia, "--push", repo_id)
    assert done.exit_code == 0, done.output
    assert online.commits() == [f"/api/models/{repo_id}/commit/main"]
    assert_same(state(repo_id), state(tmp_path / "out"))
    assert f"# {repo_id}" in _downloaded(repo_id, "README.md").read_text()
    with pytest.raises(RepositoryError, match="is a TAIA repository, which a merged model would replace"):
        raise command(online.adapter, "--push", online.taia).exception
    with pytest.raises(ConfigError, match="--out, or a Hub id with --push"):
        raise command(online.taia).exception


# --- Interruptions ----------------------------------------------------------------------------------------------------
@pytest.fixture
def sharded(pico, tmp_path):
    base = tmp_path / "base"
    pico.plain("llama").save_pretrained(base, max_shard_size="3KB")
    return on(pico.adapter("llama"), base, tmp_path / "adapter")


def interrupt(monkeypatch, after, error):
    """Makes the writing of shards fail after so many."""
    done, real = [], writing.write_file

    def write_file(path, *rest):
        if len(done) == after:
            raise error
        done.append(path)
        return real(path, *rest)

    monkeypatch.setattr(writing, "_WORKERS", 1)
    monkeypatch.setattr(writing, "write_file", write_file)


def test_a_full_disk_leaves_nothing_under_the_final_name_and_the_next_run_continues(sharded, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        interrupt(patched, 3, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(RepositoryError, match="no space is left"):
            merge(sharded, tmp_path / "out", "all")
    assert not (tmp_path / "out").exists()
    hidden = tmp_path / ".out-merging"
    first = {path.name: path.stat().st_mtime_ns for path in (hidden / "files").iterdir()}
    assert len(first) == 3
    assert not list(hidden.glob("*.partial"))
    report = merge(sharded, tmp_path / "out", "all")
    assert set(report.reused) == set(first)
    assert not set(report.written) & set(first)
    assert f"Continued: 3 of {len(report.sha256)}" in report.notes[0]
    for name, when in first.items():
        assert (tmp_path / "out" / name).stat().st_mtime_ns == when
    assert_same(state(tmp_path / "out"), pefts_merge(tmp_path / "base", sharded))
    assert not hidden.exists()


@pytest.mark.parametrize("what", ["setting", "adapter", "base", "shard", "state"])
def test_another_input_begins_anew(sharded, tmp_path, monkeypatch, what):
    with monkeypatch.context() as patched:
        interrupt(patched, 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            merge(sharded, tmp_path / "out", "all")
    hidden = tmp_path / ".out-merging"
    expected = 0
    if what == "adapter":
        path = sharded / "adapter_model.safetensors"
        save_file({name: one + 1 for name, one in load_file(path).items()}, path)
    elif what == "base":
        path = next((tmp_path / "base").glob("*.safetensors"))
        stat = path.stat()
        save_file({name: one + 1 for name, one in load_file(path).items()}, path, {"format": "pt"})
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # of the same size, too
    elif what == "shard":  # a damaged one alone is written again
        path = next((hidden / "files").iterdir())
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        expected = 2
    elif what == "state":
        (hidden / "state.json").write_text("{")
    report = merge(sharded, tmp_path / "out", "attention" if what == "setting" else "all")
    assert len(report.reused) == expected
    if what != "setting":
        assert_same(state(tmp_path / "out"), pefts_merge(tmp_path / "base", sharded))


def _merge_slowly(adapter, out, told):
    """Merges, tells of each shard that is written, and stays at the third."""
    torch.set_num_threads(1)
    real = Scratch.enter

    def enter(self, *rest):
        real(self, *rest)
        told.send(len(self.finished))
        if len(self.finished) == 3:
            time.sleep(60)

    Scratch.enter = enter
    merge(adapter, out, "all")


def test_a_killed_run_is_continued(sharded, tmp_path):
    told, tells = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_merge_slowly, args=(sharded, tmp_path / "out", tells))
    process.start()
    tells.close()
    assert [told.recv() for _ in range(3)] == [1, 2, 3]
    process.kill()
    process.join()
    assert not (tmp_path / "out").exists()
    report = merge(sharded, tmp_path / "out", "all")
    assert len(report.reused) == 3
    assert_same(state(tmp_path / "out"), pefts_merge(tmp_path / "base", sharded))


def test_two_merges_into_one_folder(sharded, tmp_path):
    refused = []

    def again(*_):
        if not refused:
            with pytest.raises(RepositoryError, match=r"Another merge into .* is running") as error:
                merge(sharded, tmp_path / "out", "attention")
            refused.append(error)

    merge(sharded, tmp_path / "out", "all", progress=again)
    assert refused
    assert_same(state(tmp_path / "out"), pefts_merge(tmp_path / "base", sharded))
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter", "out"}


def test_a_merge_that_another_one_overtook(sharded, tmp_path, monkeypatch):
    def overtaken(*arguments, real=running.plan_merge, **keywords):
        monkeypatch.setattr(running, "plan_merge", real)
        merge(sharded, tmp_path / "out", "attention")
        return real(*arguments, **keywords)

    monkeypatch.setattr(running, "plan_merge", overtaken)
    with pytest.raises(RepositoryError, match="is not empty"):
        merge(sharded, tmp_path / "out", "all")
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"base", "adapter", "out"}


def test_the_lock_frees_itself(tmp_path):
    for error in (KeyError, KeyError):
        with pytest.raises(error), locked(tmp_path / "out"):
            raise error
    with locked(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_damaged_state_begins_anew(tmp_path):
    (tmp_path / ".out-merging").mkdir()
    (tmp_path / ".out-merging" / "state.json").write_text('{"fingerprint": "x", "shards": ["a"]}')
    assert Scratch(tmp_path / "out", "x").reused == ()


def test_another_dtype_begins_anew(sharded, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        interrupt(patched, 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            merge(sharded, tmp_path / "out", "all")
    assert not merge(sharded, tmp_path / "out", "all", dtype="bfloat16").reused
    assert {one.dtype for one in state(tmp_path / "out").values()} == {torch.bfloat16}


def test_what_was_written_is_looked_at_before_it_gets_its_name(pico, tmp_path, monkeypatch):
    real = writing.write_file
    monkeypatch.setattr(writing, "write_file", lambda path, tensors, *rest: real(path, tensors[1:], *rest))
    with pytest.raises(UpdateMismatchError, match=r"merged model .* lacks 1 of"):
        merge(pico.adapter("llama"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- Bad input --------------------------------------------------------------------------------------------------------
def test_targets_that_are_not_free(pico, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for name, said in (("full", "is not empty"), ("full/file", "is a file")):
        with pytest.raises(RepositoryError, match=said):
            merge(pico.adapter("llama"), tmp_path / name)
    (tmp_path / "empty").mkdir()
    merge(pico.adapter("llama"), tmp_path / "empty")
    assert (tmp_path / "full" / "file").read_text() == "mine"
    with pytest.raises(RepositoryError, match="is not empty"):  # somebody filled it meanwhile
        Scratch(tmp_path / "full", "x").finish()


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "generation_config.json"])
def test_what_comes_along_belongs_to_the_merge(pico, tmp_path, name):
    adapter = shutil.copytree(pico.adapter("llama"), tmp_path / "adapter")
    merge(adapter, tmp_path / "out")
    assert not merge(adapter, tmp_path / "out").is_new
    (adapter / name).write_text("{}")
    with pytest.raises(RepositoryError, match="holds another result"):
        merge(adapter, tmp_path / "out")


def test_the_same_merge_again_is_known_and_another_one_wants_overwrite(pico, tmp_path, monkeypatch):
    adapter, out = pico.adapter("llama"), tmp_path / "out"
    first = merge(adapter, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(running, "base_checkpoint", None)  # nothing is even fetched again
        again = merge(adapter, out)
    assert not again.is_new
    assert "there already, made from the same" in again.to_text()
    assert (again.sha256, again.modules, again.bytes) == (first.sha256, first.modules, first.bytes)
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(RepositoryError, match="holds another result") as caught:
        merge(adapter, out, "all")
    assert "--overwrite" in caught.value.hint
    done = merge(adapter, out, "all", overwrite=True)
    assert done.is_new
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RepositoryError, match=r"would lose it: notes\.txt"):
        merge(adapter, out, "attention", overwrite=True)
    assert not merge(adapter, out, "all").is_new  # what lies beside it changes nothing
    (out / "README.md").write_text("my words")
    assert not merge(adapter, out, "all").is_new
    (out / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(RepositoryError, match=r"a changed result .* did not make: model\.safetensors, notes\.txt"):
        merge(adapter, out, "all")
    (out / "notes.txt").unlink()
    (out / "model.safetensors").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(resuming, "sha256", refuse_weights)
        assert merge(adapter, out, "all", overwrite=True).is_new
    assert (out / "README.md").read_text() == "my words"
    os.utime(out / "model.safetensors", (0, 0))  # known by its hash, which the merge told
    assert not merge(adapter, out, "all").is_new


def refuse_weights(path):
    of_base = "pico" in path.parts
    assert of_base or path.suffix != ".safetensors", "a shard is hashed a second time"
    return hub.sha256(path)


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_refused_at_once(pico, tmp_path, exists):
    if exists:
        (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(RepositoryError, match="is a link"):
        merge("no/such-repository", tmp_path / "link")


@pytest.mark.parametrize("changed", ["up_proj", "q_proj", "norm"])
def test_a_dtype_that_cannot_hold_a_weight(pico, tmp_path, changed):
    base, model = tmp_path / "base", pico.plain("llama")
    with torch.no_grad():
        next(one for name, one in model.named_parameters() if changed in name).view(-1)[5] = 1e6
    model.save_pretrained(base)
    adapter = on(pico.adapter("llama"), base, tmp_path / "adapter")
    with pytest.raises(ConfigError, match=rf"{changed}.*' holds 1e\+06, which becomes infinite in torch.float16"):
        merge(adapter, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()
    merge(adapter, tmp_path / "out", dtype="bfloat16")
    path = base / "model.safetensors"  # what is infinite already stays so
    save_file({name: one.clamp(-10, 10) / (one.abs() < 1e6) for name, one in load_file(path).items()}, path)
    merge(adapter, tmp_path / "out2", dtype="float16")
    assert sum(int(one.isinf().sum()) for one in load_file(tmp_path / "out2" / "model.safetensors").values()) == 1


def test_a_target_inside_the_source_is_refused(pico, tmp_path):
    pico.taia("llama").save_pretrained(tmp_path / "model")
    with pytest.raises(RepositoryError, match="lies inside"):
        merge(tmp_path / "model", tmp_path / "model" / "merged")
    assert not (tmp_path / "model" / "merged").exists()


def test_a_disk_that_is_too_small_is_said_before(pico, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(RepositoryError, match=r"needs [\d.]+ KiB more .* where 10 bytes are free"):
        merge(pico.adapter("llama"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "error", "said"),
    [
        ("none", SettingError, "Nothing acts under 'none'"),
        ({"ffn": 0}, SettingError, "Nothing acts"),
        ("atention", SettingError, "Did you mean 'attention'"),
        (["attention", "all"], SettingError, "one mode at a time"),
    ],
)
def test_settings_that_cannot_be_merged(pico, tmp_path, setting, error, said):
    with pytest.raises(error, match=said):
        merge(pico.adapter("llama"), tmp_path / "out", setting)
    assert not list(tmp_path.iterdir())


def test_bases_that_cannot_be_merged_into(pico, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(pico.base("llama"), base)
    adapter = on(pico.adapter("llama"), base, tmp_path / "adapter")
    values = json.loads((base / "config.json").read_text())
    quantised = {**values, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (base / "config.json").write_text(json.dumps(quantised))
    with pytest.raises(UnsupportedUpdateError, match=r"quantised \(gptq\).*\n.*unquantised model"):
        merge(adapter, tmp_path / "out")
    (base / "config.json").write_text(json.dumps(values))
    (base / "model.safetensors").unlink()
    with pytest.raises(RepositoryError, match=r"no model\.safetensors"):
        merge(adapter, tmp_path / "out")
    shutil.rmtree(base)
    with pytest.raises(RepositoryError, match="is no folder here"):
        merge(adapter, tmp_path / "out")
    with pytest.raises(ConfigError, match="'int8' is no dtype of weights"):
        merge(adapter, tmp_path / "out", dtype="int8")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}


def _dense_repository(base, tuned, folder):
    from taia_hub.repository.creating import create_from_finetuned

    create_from_finetuned(str(base), str(tuned), out=folder)
    return folder


def _downloaded(repo_id, name):
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo_id, name))
