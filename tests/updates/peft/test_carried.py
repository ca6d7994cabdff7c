"""What PEFT's files hold of embeddings and head: added tokens, other vocabularies, copies; through every door."""

import copy
import json
import pickle
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from taia_hub import TAIAForCausalLM
from taia_hub.errors import RepositoryError, SettingError, TAIAError, UnsupportedUpdateError, UpdateMismatchError
from taia_hub.exporting import export_adapter
from taia_hub.merging import merge
from taia_hub.repository.creating import create_repository
from taia_hub.repository.info import repository_info
from taia_hub.updates.options import AttachOptions
from taia_hub.updates.peft import update

BASE = 64
EMBEDDINGS = {"llama": ("embed_tokens", "lm_head"), "gpt2": ("wte", "lm_head"), "gpt_neox": ("embed_in", "embed_out")}
PLAIN = {"llama": "q_proj", "gpt2": "c_attn", "gpt_neox": "query_key_value"}
load = AutoModelForCausalLM.from_pretrained


class Case:
    """An adapter that was trained on a base with another vocabulary, and the base that it came from."""

    def __init__(self, pico, folder, name="llama", tied=False, rows=67, dtype=None, modules=(), **options):
        self.base, self.adapter, self.rows = folder / "base", folder / "adapter", rows or BASE
        config = AutoConfig.from_pretrained(pico.base(name), tie_word_embeddings=tied)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(self.base)
        model = self.resized(5, dtype)
        targets = [PLAIN[name], *modules]
        config = LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False, **options)
        trained = get_peft_model(model, config, autocast_adapter_dtype=False)
        with torch.no_grad():
            for parameter in trained.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        trained.save_pretrained(self.adapter, save_embedding_layers="auto" if rows or modules else True)
        self.ids, self.old = torch.tensor([[3, 40, self.rows - 1, 17]]), torch.tensor([[3, 40, 17]])

    def resized(self, seed, dtype=None):
        model = load(self.base, dtype=dtype or "auto").eval()
        torch.manual_seed(seed)
        if self.rows != BASE:
            model.resize_token_embeddings(self.rows, mean_resizing=False)
        return model.requires_grad_(False)

    def resized_base(self):
        """A base whose new rows are others than those of the training: the file must bring them."""
        folder = self.base.with_name("resized")
        self.resized(9).save_pretrained(folder)
        return folder

    def peft(self):
        return PeftModel.from_pretrained(self.resized(9), str(self.adapter)).eval()

    def plain(self, base=None):
        return load(base or self.base).eval().requires_grad_(False)


@torch.no_grad()
def logits(model, ids, **options):
    return model(ids, **options).logits


def assert_equal(one, other):
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", EMBEDDINGS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("whole", [True, False], ids=["saved", "along"])
def test_another_vocabulary_loads_where_the_file_has_all_its_rows(pico, tmp_path, name, tied, whole):
    options = {"modules_to_save": list(EMBEDDINGS[name])} if whole else {}
    case = Case(pico, tmp_path, name, tied, **options)
    expected = logits(case.peft(), case.ids)
    for base in (case.base, case.resized_base()):
        model = TAIAForCausalLM.from_adapter(base, case.adapter, inference_modules="all").eval()
        assert torch.equal(logits(model, case.ids), expected)
        assert torch.equal(logits(model, case.old, inference_modules="none"), logits(case.plain(base), case.old))


@pytest.mark.parametrize(
    ("rows", "tied", "modules"),
    [
        (None, False, ["embed_tokens", "lm_head"]),
        (None, True, ["embed_tokens"]),
        (67, False, ["embed_tokens", "lm_head"]),
        (67, True, ["embed_tokens"]),
        (50, False, ["embed_tokens", "lm_head"]),  # to the length of the tokenizer: fewer than before
        (128, True, ["embed_tokens", "lm_head"]),  # to a multiple of 64
    ],
)
def test_adapted_embeddings_with_rounded_or_other_rows(pico, tmp_path, rows, tied, modules):
    case = Case(pico, tmp_path, "llama", tied, rows, torch.bfloat16, modules)
    model = TAIAForCausalLM.from_adapter(case.base, case.adapter, inference_modules="all").eval()
    assert torch.equal(logits(model, case.ids), logits(case.peft(), case.ids))
    assert torch.equal(logits(model, case.old, inference_modules="none"), logits(case.plain(), case.old))
    created = create_repository(str(case.base), str(case.adapter), out=tmp_path / "repo")
    again, info = load(tmp_path / "repo", inference_modules="all"), repository_info(str(tmp_path / "repo"))
    assert torch.equal(logits(again, case.ids), logits(model, case.ids))
    counts = {role: (part.adapted, part.parameters) for role, part in again.status().roles.items()}
    assert counts == {role: (part.adapted, part.parameters) for role, part in created.status.roles.items()}
    assert counts == {role: (part.modules, part.parameters) for role, part in info.roles.items()}
    assert info.vocabulary == rows


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}, {"modules": ["lm_head"]}])
def test_copies_of_the_base_are_passed_by(pico, tmp_path, options):
    case = Case(pico, tmp_path, rows=None, **options)
    stored = load_file(case.adapter / "adapter_model.safetensors")
    model = TAIAForCausalLM.from_adapter(case.base, case.adapter, inference_modules="all").eval()
    assert torch.equal(logits(model, case.ids), logits(case.peft(), case.ids))
    created = create_repository(str(case.base), str(case.adapter), out=tmp_path / "repo")
    copied = load_file(tmp_path / "repo/adapter/adapter_model.safetensors")
    assert copied.keys() == stored.keys()
    other = repository_info(str(tmp_path / "repo")).roles["other"]
    assert other.parameters == created.status.roles["other"].parameters == model.status().roles["other"].parameters
    assert other.modules == len(options.get("modules_to_save", options.get("modules", [])))


@pytest.mark.parametrize("tied", [False, True])
def test_trained_tokens_beyond_the_base(pico, tmp_path, tied):
    case = Case(pico, tmp_path, tied=tied, trainable_token_indices=[5, 64, 66])
    model = TAIAForCausalLM.from_adapter(case.base, case.adapter, inference_modules="all").eval()
    assert torch.equal(logits(model, case.ids), logits(case.peft(), case.ids))
    weights = case.adapter / "adapter_model.safetensors"
    kept = {key: one for key, one in load_file(weights).items() if "lora_" in key or "delta" in key}
    save_file(kept, weights)
    with pytest.raises(UpdateMismatchError, match=r"vocabulary 67 rows, base 64.*embed_tokens") as error:
        TAIAForCausalLM.from_adapter(case.base, case.adapter)
    assert "resize_token_embeddings(67)" in error.value.hint


@pytest.mark.parametrize(
    ("tied", "options", "lacks"),
    [
        (False, {"modules_to_save": ["embed_tokens"]}, "lm_head"),
        (False, {"modules_to_save": ["lm_head"]}, "embed_tokens"),
        (False, {"modules": ["embed_tokens"]}, "embed_tokens' and 'lm_head"),
        (False, {"modules": ["lm_head"]}, "embed_tokens' and 'lm_head"),
        (True, {"modules": ["embed_tokens"]}, "embed_tokens' and 'lm_head"),
    ],
)
def test_missing_rows_are_named_at_every_door(pico, tmp_path, tied, options, lacks):
    case = Case(pico, tmp_path, tied=tied, **options)
    weights = case.adapter / "adapter_model.safetensors"
    own = options.get("modules_to_save", [""])[0]
    save_file(
        {key: one for key, one in load_file(weights).items() if "lora_" in key or key.endswith(f"{own}.weight")}
        if own
        else {key: one for key, one in load_file(weights).items() if "lora_" in key},
        weights,
    )
    doors = {
        "from_adapter": lambda: TAIAForCausalLM.from_adapter(case.base, case.adapter),
        "from_pretrained": lambda: TAIAForCausalLM.from_pretrained(case.adapter),
        "create": lambda: create_repository(str(case.base), str(case.adapter), out=tmp_path / "repo"),
        "info": lambda: repository_info(str(case.adapter)),
        "export": lambda: export_adapter(case.adapter, tmp_path / "out"),
        "merge": lambda: merge(case.adapter, tmp_path / "merged", "all"),
    }
    for door in doors.values():
        with pytest.raises(UpdateMismatchError, match=rf"vocabulary 67 rows, base 64\).*{lacks}"):
            door()
    assert not (tmp_path / "repo").exists()


def test_a_new_token_is_refused_where_the_rows_of_the_base_act(pico, tmp_path, caplog):
    case = Case(pico, tmp_path, modules_to_save=["embed_tokens", "lm_head"])
    model = TAIAForCausalLM.from_adapter(case.base, case.adapter).eval()
    assert "vocabulary of 67 rows and its base 64" in caplog.text
    with pytest.raises(SettingError, match=r"token 66 came.*64 rows") as error:
        model(case.ids)
    assert "attention+other" in error.value.hint
    with pytest.raises(SettingError, match="another vocabulary"):
        model(case.old.expand(2, -1), inference_modules=["all", "none"])
    assert model(case.ids, inference_modules="attention+other", labels=case.ids).loss.isfinite()


def test_a_full_fine_tune_of_another_vocabulary_refuses_tokens_and_rows_alike(pico, tmp_path):
    tuned = pico.plain("llama")
    tuned.resize_token_embeddings(72, mean_resizing=False)
    tuned.save_pretrained(tmp_path / "tuned")
    model = TAIAForCausalLM.from_finetuned(pico.base("llama"), tmp_path / "tuned").eval()
    ids = torch.tensor([[3, 70]])
    assert torch.equal(logits(model, ids), logits(load(tmp_path / "tuned").eval(), ids))
    assert model(ids, labels=ids).loss.isfinite()
    with pytest.raises(SettingError, match="token 70 came"):
        model(ids, inference_modules="none")
    with pytest.raises(SettingError, match="another vocabulary"):
        model(ids.expand(2, -1) * 0, inference_modules=["all", "none"])


@pytest.mark.parametrize("options", [{"modules": ["embed_tokens", "lm_head"]}, {}])
def test_a_trained_model_is_saved_with_its_rows(pico, tmp_path, options):
    case = Case(pico, tmp_path, **options)
    model = TAIAForCausalLM.from_adapter(case.base, case.adapter, is_trainable=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved", inference_modules="all").eval()
    assert torch.equal(logits(again, case.ids), logits(model, case.ids))
    assert torch.equal(logits(again, case.old, inference_modules="none"), logits(case.plain(), case.old))


def test_copies_and_pickles_of_a_model_with_other_rows(pico, tmp_path):
    case = Case(pico, tmp_path)
    model = TAIAForCausalLM.from_adapter(case.base, case.adapter, inference_modules="all").eval()
    expected = logits(model, case.ids)
    assert torch.equal(logits(copy.deepcopy(model), case.ids), expected)
    assert torch.equal(logits(pickle.loads(pickle.dumps(model)), case.ids), expected)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("options", [{}, {"modules": ["embed_tokens", "lm_head"]}])
def test_merged_and_fused_with_the_rows_of_the_file(pico, tmp_path, tied, options):
    case = Case(pico, tmp_path, tied=tied, **options)
    # PEFT's own merge adds both updates of two tied modules to the one tensor
    reference = case.peft() if tied and options else case.peft().merge_and_unload()
    same = torch.testing.assert_close if tied and options else assert_equal
    merge(case.adapter, tmp_path / "merged", "all")
    merged = load(tmp_path / "merged").eval()
    assert merged.config.vocab_size == 67
    same(logits(merged, case.ids), logits(reference, case.ids))
    model = TAIAForCausalLM.from_adapter(case.base, case.adapter).eval()
    with model.fused("all"):
        same(logits(model, case.ids), logits(reference, case.ids))
    assert torch.equal(logits(model, case.old, inference_modules="none"), logits(case.plain(), case.old))
    with pytest.raises(UnsupportedUpdateError, match="file holds the whole module"):
        export_adapter(case.adapter, tmp_path / "all", "all")
    export_adapter(case.adapter, tmp_path / "attention", "attention")


def test_published_and_loaded_again(pico, online, tmp_path, repo_id):
    case = Case(pico, tmp_path, modules=["embed_tokens", "lm_head"])
    created = create_repository(online.base, str(case.adapter), out=tmp_path / "repo")
    online.api.create_repo(repo_id)
    from taia_hub.repository.publishing import push_folder

    push_folder(tmp_path / "repo", repo_id)
    model = load(repo_id, inference_modules="all").eval()
    assert torch.equal(logits(model, case.ids), logits(case.peft(), case.ids))
    other = repository_info(repo_id).roles["other"]
    assert other.parameters == created.status.roles["other"].parameters == model.status().roles["other"].parameters


def test_a_copy_on_the_hub_is_told_by_its_own_bytes(pico, online, tmp_path, repo_id, hub):
    case = Case(pico, tmp_path, rows=None)
    online.api.create_repo(repo_id)
    (case.adapter / "README.md").unlink()
    values = json.loads((case.adapter / "adapter_config.json").read_text())
    (case.adapter / "adapter_config.json").write_text(json.dumps({**values, "base_model_name_or_path": online.base}))
    online.api.upload_folder(repo_id=repo_id, folder_path=case.adapter)
    assert repository_info(repo_id).roles["other"].parameters == 0


@pytest.mark.parametrize("way", ["save", "push"])
def test_rows_that_were_added_to_a_loaded_model_are_kept(pico, tmp_path, way):
    model = TAIAForCausalLM.from_adapter(pico.base("llama"), pico.adapter("llama"), inference_modules="all").eval()
    model.resize_token_embeddings(70, mean_resizing=False)
    ids = torch.tensor([[3, 69]])
    expected = logits(model, ids)
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved", inference_modules="all").eval()
    assert torch.equal(logits(again, ids), expected)
    assert torch.equal(logits(again, ids % 60, inference_modules="none"), logits(pico.plain("llama"), ids % 60))


def test_resizing_under_an_update_of_the_vocabulary_is_refused(pico, tmp_path):
    case = Case(pico, tmp_path, modules_to_save=["embed_tokens", "lm_head"])
    model = TAIAForCausalLM.from_adapter(case.base, case.adapter)
    with pytest.raises(UnsupportedUpdateError, match="cannot be resized"):
        model.resize_token_embeddings(80)
    assert model.get_input_embeddings().weight.shape[0] in (BASE, 67)


def test_keys_with_the_adapters_name_are_taken_by_create_too(pico, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(pico.adapter("llama"), folder)
    weights = folder / "adapter_model.safetensors"
    save_file({key.replace(".weight", ".default.weight"): one for key, one in load_file(weights).items()}, weights)
    create_repository(str(pico.base("llama")), str(folder), out=tmp_path / "repo")
    ids, model = pico.ids(), load(tmp_path / "repo", inference_modules="all").eval()
    assert torch.equal(logits(model, ids), logits(pico.peft("llama", pico.adapter("llama")), ids))


def test_other_tensors_of_the_base_are_compared_when_a_repository_is_made(pico, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(pico.adapter("llama"), folder)
    weights, name = folder / "adapter_model.safetensors", "base_model.model.model.norm.weight"
    tensors, norm = load_file(weights), pico.plain("llama").model.norm.weight
    save_file({**tensors, name: norm.clone()}, weights)
    create_repository(str(pico.base("llama")), str(folder), out=tmp_path / "same")
    load(tmp_path / "same")
    save_file({**tensors, name: norm + 1}, weights)
    with pytest.raises(UnsupportedUpdateError, match="own tensors"):
        create_repository(str(pico.base("llama")), str(folder), out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_base_that_holds_an_adapter_too(pico, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(pico.base("llama"), base)
    shutil.copytree(pico.adapter("llama"), base, dirs_exist_ok=True)
    with pytest.raises(RepositoryError, match="holds an adapter too"):
        create_repository(str(base), str(pico.adapter("llama")), out=tmp_path / "repo")
    with pytest.raises(RepositoryError, match="holds an adapter too"):
        TAIAForCausalLM.from_adapter(base, pico.adapter("llama"))


def test_nothing_is_pushed_that_does_not_load(online, tmp_path, repo_id):
    from taia_hub.hub import write_manifest
    from taia_hub.repository.publishing import push_folder

    folder = create_repository(online.base, online.adapter, out=tmp_path / "repo").folder
    weights = folder / "adapter/adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({key: one for key, one in tensors.items() if "layers.1." not in key}, weights)
    files = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json")
    write_manifest(folder, {name: folder / name for name in files})
    with pytest.raises(TAIAError, match="missing"):
        push_folder(folder, repo_id)
    assert not online.api.repo_exists(repo_id)


def test_a_base_that_is_offloaded_in_part_is_named_as_the_reason(pico, tmp_path):
    case = Case(pico, tmp_path)
    base = case.plain()
    base.hf_device_map = {"model": 0, "lm_head": "cpu"}
    with pytest.raises(UnsupportedUpdateError, match="leaves parts of it off its device") as caught:
        update.attach_update(base, case.adapter, AttachOptions({}))
    assert "save_embedding_layers=False" in caught.value.hint


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_memory_that_does_not_suffice_is_no_fault_of_the_adapters(pico, monkeypatch, error):
    def full(*args, **kwargs):
        raise error("out of memory")

    monkeypatch.setattr(update.PeftModel, "from_pretrained", full)
    with pytest.raises(error):
        update.attach_update(pico.plain("llama"), pico.adapter("llama"), AttachOptions({}))
