"""The strict load: every tensor is used, every module gets its own, and the manifest holds."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import CommitOperationAdd, snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save, save_file
from transformers import AutoModelForCausalLM

from taia_hub import TAIAForCausalLM, TAIAModel
from taia_hub.errors import ConfigError, RepositoryError, SettingError, UpdateMismatchError
from tests.conftest import made_once, renew_manifest

WEIGHTS = "adapter/adapter_model.safetensors"
LORA_A = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"


@pytest.fixture
def folder(saved_copy):
    return saved_copy


def rewrite(folder, change, manifest=True):
    """Changes the tensors of the update, and makes the manifest agree."""
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors) or tensors, folder / WEIGHTS, metadata={"format": "pt"})
    if manifest:
        renew_manifest(folder, WEIGHTS)


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    for folder in (path.parent, path.parent.parent):
        renew_manifest(folder)


def refused(folder, kind, match, **keywords):
    """Loads and expects an error of ours with a hint; the folder is as it was."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for auto in (TAIAForCausalLM, TAIAModel, AutoModelForCausalLM):
        with pytest.raises(kind, match=match) as caught:
            auto.from_pretrained(folder, **keywords)
        assert caught.value.hint
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    return caught.value


# The weights file


def test_the_undamaged_folder_loads(folder):
    assert TAIAForCausalLM.from_pretrained(folder).inference_modules == "attention"


def test_a_missing_file_of_weights(folder):
    (folder / WEIGHTS).unlink()
    refused(folder, RepositoryError, r"has no adapter_model\.safetensors")


def test_a_missing_adapter_configuration(folder):
    (folder / "adapter" / "adapter_config.json").unlink()
    refused(folder, RepositoryError, r"has no adapter_config\.json")


@pytest.mark.parametrize("size", [0, 7, 100, -1])
@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_file_of_weights(folder, size, verify):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:size])
    refused(folder, RepositoryError, "truncated or no safetensors file", verify=verify)


@pytest.mark.parametrize("position", [-1, 0.5, 0.9])
def test_a_flipped_bit(folder, position):
    data = bytearray((folder / WEIGHTS).read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    place = header + int((len(data) - header) * position) if position > 0 else position
    data[place] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    error = refused(folder, RepositoryError, f"'{WEIGHTS}' is damaged: its sha256 is")
    assert "verify=False" in error.hint
    assert TAIAForCausalLM.from_pretrained(folder, verify=False)


def test_a_flipped_bit_in_the_header(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[20] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    refused(folder, RepositoryError, "damaged|truncated")


# The manifest


def test_a_missing_manifest(folder):
    (folder / "taia_manifest.json").unlink()
    error = refused(folder, RepositoryError, r"has no taia_manifest\.json, so its files cannot be checked")
    assert "verify=False" in error.hint
    assert TAIAForCausalLM.from_pretrained(folder, verify=False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        "{}",
        '{"files": {}}',
        '{"files": []}',
        '{"files": {"adapter/adapter_model.safetensors": 3}}',
        '{"files": {"adapter/adapter_model.safetensors": {"size": 3}}}',
        '{"files": {"adapter/adapter_model.safetensors": {"size": "many", "sha256": "x"}}}',
        '{"files": {"adapter/adapter_model.safetensors": {"size": null, "sha256": "x"}}}',
    ],
)
def test_a_malformed_manifest(folder, text):
    (folder / "taia_manifest.json").write_text(text)
    refused(folder, ConfigError, r"taia_manifest\.json")
    assert TAIAForCausalLM.from_pretrained(folder, verify=False)


def test_a_manifest_that_is_no_text(folder):
    (folder / "taia_manifest.json").write_bytes(b"\xff\xfe\x00")
    refused(folder, ConfigError, r"taia_manifest\.json")


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [("size", 3, "has [0-9]+ bytes; .* says 3"), ("sha256", "0" * 64, "is damaged: its sha256 is")],
)
def test_a_manifest_that_does_not_hold(folder, key, value, match):
    path = folder / "taia_manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][WEIGHTS][key] = value
    path.write_text(json.dumps(manifest))
    refused(folder, RepositoryError, match)
    assert TAIAForCausalLM.from_pretrained(folder, verify=False)


def test_another_file_of_the_same_size_does_not_pass(folder):
    rewrite(folder, lambda tensors: {name: tensor + 1 for name, tensor in tensors.items()}, manifest=False)
    refused(folder, RepositoryError, "is damaged")


# The tensors


def test_a_missing_tensor_is_named(folder):
    rewrite(folder, lambda tensors: {name: tensors[name] for name in tensors if name != LORA_A})
    refused(folder, UpdateMismatchError, f"1 tensor is missing: '{LORA_A}'")


def test_a_missing_module_is_named(folder):
    rewrite(folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if "layers.1.mlp" not in name})
    error = refused(folder, UpdateMismatchError, "6 tensors are missing")
    assert error.message.count("base_model.model") == 3
    assert "and 3 more" in error.message


def test_an_unexpected_tensor_is_named(folder):
    rewrite(folder, lambda tensors: tensors.update({LORA_A.replace("up_proj", "side_proj"): torch.zeros(4, 16)}))
    refused(folder, UpdateMismatchError, "1 tensor is of no adapted module: .*side_proj")


def test_tensors_that_a_narrower_configuration_would_drop_in_silence(folder):
    edit(folder / "adapter" / "adapter_config.json", target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    refused(folder, UpdateMismatchError, "12 tensors are of no adapted module")


def test_missing_and_unexpected_tensors_are_both_named(folder):
    def rename(tensors):
        return {name.replace("layers.1.", "layers.7."): tensor for name, tensor in tensors.items()}

    rewrite(folder, rename)
    refused(folder, UpdateMismatchError, "missing: .*layers.1.*no adapted module: .*layers.7")


def test_an_empty_file_of_weights(folder):
    (folder / WEIGHTS).write_bytes(save({}))
    renew_manifest(folder, WEIGHTS)
    refused(folder, UpdateMismatchError, "28 tensors are missing")


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(folder):
    rewrite(folder, lambda tensors: tensors.update({LORA_A: torch.zeros(4, 99)}))
    refused(folder, UpdateMismatchError, r"1 tensor is of another shape .*up_proj.*\[4, 99\].*\[4, 16\]")


def test_another_rank_than_the_configuration_says(folder):
    edit(folder / "adapter" / "adapter_config.json", r=8)
    refused(folder, UpdateMismatchError, "28 tensors are of another shape.*have rank 4")


@pytest.mark.parametrize(
    ("values", "said", "next_step"),
    [
        ({"trainable_token_indices": [3, -1]}, "below 0", "correct the value"),
        ({"trainable_token_indices": {"lm_head": [-2]}}, "below 0", "correct the value"),
        ({"peft_type": "BONE"}, "does not know 'BONE'", "PEFT that wrote it"),
        ({"peft_type": "OFT", "r": 4, "peft_version": "0.13.0"}, "OFT has been updated", "PEFT that wrote it"),
    ],
)
def test_values_of_another_peft_or_of_none_are_said_with_the_way_out(folder, values, said, next_step):
    edit(folder / "adapter" / "adapter_config.json", **values)
    renew_manifest(folder)
    with pytest.raises(ConfigError, match=said) as caught:
        TAIAForCausalLM.from_pretrained(folder)
    assert next_step in caught.value.hint


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"r": 0}, "positive"),
        ({"bias": "some"}, "bias"),
        ({"target_modules": ["linear_qkv", "linear_proj"]}, "not found in the base model"),
        ({"target_modules": "q_proj"}, "not found in the base model"),
        ({"rank_pattern": {"up_proj": 3}}, "have rank 4"),
    ],
)
def test_what_a_configuration_says_wrongly_is_not_put_on_the_base(folder, values, said):
    edit(folder / "adapter" / "adapter_config.json", **values)
    renew_manifest(folder)
    with pytest.raises(UpdateMismatchError, match=said) as caught:
        TAIAForCausalLM.from_pretrained(folder)
    assert "Check" in caught.value.hint
    assert "revision" not in caught.value.hint


def test_a_tensor_of_the_base_model_in_the_file_is_refused(folder):
    rewrite(folder, lambda tensors: tensors.update({"base_model.model.model.norm.weight": torch.zeros(16)}))
    with pytest.raises(ValueError, match=r"1 of the base model's own tensors.*norm\.weight"):
        TAIAForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_tensors_of_another_dtype_are_fine(folder, dtype):
    rewrite(folder, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    assert TAIAForCausalLM.from_pretrained(folder)


# Adapters for another base


def base_with(pico, name, **values):
    """A random base like `llama` with other sizes."""

    def make(folder):
        config = pico.plain("llama").config
        for key, value in values.items():
            setattr(config, key, value)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)

    return made_once(pico.folder / name, make)


def test_an_adapter_for_a_base_of_another_size(pico):
    base = base_with(pico, "wide", hidden_size=32, head_dim=16)
    with pytest.raises(UpdateMismatchError, match="of another shape than the base") as caught:
        TAIAForCausalLM.from_adapter(base, pico.adapter("llama"))
    assert str(base) in caught.value.hint
    assert str(pico.base("llama")) in caught.value.hint


def test_an_adapter_for_a_base_with_more_layers(pico):
    with pytest.raises(UpdateMismatchError, match="no adapted module"):
        TAIAForCausalLM.from_adapter(base_with(pico, "flat", num_hidden_layers=1), pico.adapter("llama"))


def test_an_adapter_for_a_base_with_fewer_layers(pico):
    with pytest.raises(UpdateMismatchError, match="are missing"):
        TAIAForCausalLM.from_adapter(base_with(pico, "deep", num_hidden_layers=3), pico.adapter("llama"))


def test_an_adapter_for_another_architecture(pico):
    folder = pico.adapter("gpt2")
    with pytest.raises(UpdateMismatchError, match="does not fit the base model") as caught:
        TAIAForCausalLM.from_adapter(pico.base("llama"), folder)
    assert "attn" in caught.value.message
    assert str(pico.base("gpt2")) in caught.value.hint


def test_an_adapter_with_names_for_another_architecture(pico, tmp_path):
    config = LoraConfig(r=2, target_modules=["c_attn", "c_fc"], task_type="CAUSAL_LM")
    get_peft_model(pico.plain("gpt2"), config).save_pretrained(tmp_path)
    with pytest.raises(UpdateMismatchError, match="does not fit the base model"):
        TAIAForCausalLM.from_adapter(pico.base("llama"), tmp_path)


def test_an_adapter_that_was_made_for_a_base_of_another_name_is_warned_of(pico, caplog, tmp_path):
    shutil.copytree(pico.base("llama"), tmp_path / "copy")
    TAIAForCausalLM.from_adapter(tmp_path / "copy", pico.adapter("llama"))
    assert "was made for" in caplog.text
    assert str(tmp_path / "copy") in caplog.text


def test_a_base_that_is_a_taia_repository_is_refused(online, pico):
    with pytest.raises(ValueError, match="is itself a TAIA repository") as caught:
        TAIAForCausalLM.from_adapter(online.taia, online.adapter)
    assert caught.value.hint


# Nothing is left behind by a failure


def test_a_failed_load_leaves_the_classes_as_they_were(folder, saved_taia, pico):
    before = pico.plain("llama")
    rewrite(folder, lambda tensors: {name: tensors[name] for name in tensors if name != LORA_A})
    for _ in range(2):
        with pytest.raises(UpdateMismatchError):
            TAIAForCausalLM.from_pretrained(folder)
    after, ids = pico.plain("llama"), pico.ids()
    assert type(after) is type(before)
    assert torch.equal(after(ids).logits, before(ids).logits)
    loaded = TAIAForCausalLM.from_pretrained(saved_taia)
    peft_model = PeftModel.from_pretrained(pico.plain("llama"), str(pico.adapter("llama")))
    assert torch.equal(loaded(ids, inference_modules="all").logits, peft_model(ids).logits)


def test_a_damaged_generation_config_is_named(saved):
    (saved / "generation_config.json").write_text('{"eos')
    with pytest.raises(ConfigError, match=r"generation_config.json' is no JSON"):
        TAIAForCausalLM.from_pretrained(saved)


def test_damaged_base_weights_are_named(pico, tmp_path):
    model = pico.plain("llama")
    model.save_pretrained(tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(RepositoryError, match=r"A weights file of the base model .*base' is damaged"):
        TAIAForCausalLM.from_adapter(tmp_path / "base", pico.adapter("llama"))


def test_a_published_setting_that_matches_nothing_is_refused_at_once(pico):
    with pytest.raises(SettingError, match="matches none"):
        TAIAForCausalLM.from_adapter(
            pico.base("llama"), pico.adapter("llama"), is_trainable=True, inference_modules={"nomatch.*": 1}
        )


def test_a_base_without_a_revision_is_fixed_when_it_is_loaded(online, tmp_path):
    TAIAForCausalLM.from_adapter(online.base, online.adapter).save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved/config.json").read_text())
    (tmp_path / "saved/config.json").write_text(json.dumps({**config, "base_model_revision": None}))
    renew_manifest(tmp_path / "saved")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").taia_config.base_model_revision == online.base_sha


def test_a_foreign_config_is_refused(pico, tmp_path):
    pico.taia("llama").save_pretrained(tmp_path / "saved")
    with pytest.raises(ConfigError, match="LlamaConfig came as `config`"):
        TAIAForCausalLM.from_pretrained(tmp_path / "saved", config=pico.plain("llama").config)


@pytest.mark.parametrize("value", ["atention", {"ffn": 2}, ["all", "none"]])
def test_a_bad_setting_at_load(online, value):
    with pytest.raises(SettingError) as caught:
        AutoModelForCausalLM.from_pretrained(online.taia, inference_modules=value)
    assert caught.value.hint


def test_a_setting_that_this_update_cannot_act_on_at_load(online):
    with pytest.raises(SettingError, match="layers 0-1"):
        AutoModelForCausalLM.from_pretrained(online.taia, inference_modules={"ffn@5": 1})


def test_an_adapter_that_was_published_by_hand_with_a_broken_manifest(online, repo_id):
    files = {path.name: path for path in Path(snapshot_download(online.taia)).iterdir() if path.is_file()}
    folder = Path(snapshot_download(online.taia)) / "adapter"
    operations = [CommitOperationAdd(name, path) for name, path in files.items() if name != "taia_manifest.json"]
    operations += [CommitOperationAdd(f"adapter/{path.name}", path) for path in folder.iterdir()]
    online.api.create_repo(repo_id)
    online.api.create_commit(repo_id, operations, commit_message="by hand")
    with pytest.raises(RepositoryError, match=r"has no taia_manifest\.json"):
        AutoModelForCausalLM.from_pretrained(repo_id)
    assert AutoModelForCausalLM.from_pretrained(repo_id, verify=False)
