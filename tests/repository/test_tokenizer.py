"""The tokenizer of a repository: its own, its base's, or an error; never another in silence."""

import copy
import logging
import shutil

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file
from transformers import AutoTokenizer

from taia_hub import TAIAForCausalLM
from taia_hub.compare import compare
from taia_hub.errors import RepositoryError
from taia_hub.evaluation.environment import identify
from taia_hub.merging import merge
from taia_hub.repository.creating import create_from_finetuned, create_repository
from taia_hub.repository.info import repository_info
from taia_hub.repository.publishing import push_folder
from taia_hub.repository.tokenizer import load_tokenizer


def test_a_damaged_tokenizer_is_not_replaced_by_the_bases_in_silence(saved):
    model = TAIAForCausalLM.from_pretrained(saved)
    assert load_tokenizer(model)("the sea")["input_ids"]
    (saved / "tokenizer.json").write_text('{"version')
    with pytest.raises(RepositoryError, match=r"The tokenizer of .*saved' cannot be read"):
        load_tokenizer(model)
    for path in saved.glob("*token*"):
        path.unlink()
    assert load_tokenizer(model)("the sea")["input_ids"]  # without one, it is the base's


def test_a_missing_tokenizer_is_said(pico, caplog):
    caplog.set_level(logging.ERROR)
    with pytest.raises(RepositoryError, match="There is no tokenizer in"):
        load_tokenizer(pico.taia("llama"))


def test_a_push_with_another_base_brings_that_bases_tokenizer(online, repo_id, tokenizer):
    online.push_base(f"{repo_id}-base2")
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["theother"])
    other.push_to_hub(f"{repo_id}-base2")
    online.model().push_to_hub(repo_id)
    TAIAForCausalLM.from_adapter(f"{repo_id}-base2", online.adapter).push_to_hub(repo_id)
    assert "theother" in AutoTokenizer.from_pretrained(repo_id).get_vocab()


def test_a_tokenizer_that_a_person_pushed_for_the_same_base_stays(online, repo_id, tokenizer):
    model = online.model()
    model.push_to_hub(repo_id)
    mine = copy.deepcopy(tokenizer)
    mine.add_tokens(["mine"])
    mine.push_to_hub(repo_id)
    model.push_to_hub(repo_id)
    assert "mine" in AutoTokenizer.from_pretrained(repo_id).get_vocab()


def test_a_plain_adapters_own_tokenizer_comes_first_and_results_and_comparisons_name_it(online, repo_id, tokenizer):
    online.push_adapter(repo_id)
    mine = copy.deepcopy(tokenizer)
    mine.chat_template = "{{ messages[0]['content'] }} mine"
    sha = mine.push_to_hub(repo_id).oid
    model = TAIAForCausalLM.from_pretrained(repo_id)
    assert load_tokenizer(model).chat_template == mine.chat_template
    identity = identify(model)
    assert (identity.name, identity.revision, identity.base_model) == (repo_id, sha, online.base)
    shown = compare(model, load_tokenizer(model), "the sea", ["none"], max_new_tokens=1)
    assert (shown.model, shown.revision) == (repo_id, sha)


def test_what_is_published_of_a_plain_adapter_does_not_name_where_it_came_from(online, tmp_path):
    TAIAForCausalLM.from_pretrained(online.adapter).save_pretrained(tmp_path / "saved")
    TAIAForCausalLM.from_adapter(online.base, online.adapter).save_pretrained(tmp_path / "adapted")
    saved, adapted = ((tmp_path / name / "config.json").read_text() for name in ("saved", "adapted"))
    assert saved == adapted
    assert online.adapter not in saved


def _with_own(tokenizer, words=("mine",), template="{{ messages[0]['content'] }} mine"):
    own = copy.deepcopy(tokenizer)
    own.add_tokens(list(words))
    own.chat_template = template
    return own


def _is_own(tokenizer):
    return "mine" in tokenizer.get_vocab() and tokenizer.chat_template.endswith("mine")


def test_an_adapters_tokenizer_goes_wherever_its_update_goes(online, repo_id, tokenizer, tmp_path):
    online.push_adapter(repo_id)
    _with_own(tokenizer).push_to_hub(repo_id)
    create_repository(online.base, repo_id, out=tmp_path / "created")
    create_repository(online.base, repo_id, push=f"{repo_id}-pushed")
    create_repository(online.base, repo_id, push=f"{repo_id}-linked", link=True)
    model = TAIAForCausalLM.from_adapter(online.base, repo_id)
    model.save_pretrained(tmp_path / "saved")
    model.push_to_hub(f"{repo_id}-loaded")
    model.merge(tmp_path / "merged-loaded")
    merge(repo_id, tmp_path / "merged")
    push_folder(tmp_path / "saved", f"{repo_id}-folder")
    folders = [tmp_path / name for name in ("created", "saved", "merged-loaded", "merged")]
    pushed = [f"{repo_id}-{name}" for name in ("pushed", "linked", "loaded", "folder")]
    for place in [*folders, *pushed]:
        assert _is_own(AutoTokenizer.from_pretrained(place)), place
    assert _is_own(load_tokenizer(model))
    assert repository_info(str(tmp_path / "created")).tokenizer == repository_info(repo_id).tokenizer == "its own"
    assert repository_info(online.adapter).tokenizer == "the base model's"


def test_a_link_uses_its_adapters_tokenizer_until_it_has_one(online, repo_id, tokenizer, tmp_path):
    online.push_adapter(repo_id)
    _with_own(tokenizer).push_to_hub(repo_id)
    create_repository(online.base, repo_id, push=f"{repo_id}-linked", link=True)
    for name in HfApi().list_repo_files(f"{repo_id}-linked"):
        if "token" in name or name.startswith("chat_template"):
            online.api.delete_file(name, f"{repo_id}-linked")
    assert repository_info(f"{repo_id}-linked").tokenizer == "its adapter's"
    assert _is_own(load_tokenizer(TAIAForCausalLM.from_pretrained(f"{repo_id}-linked")))


def test_a_fork_and_a_copy_keep_the_repositorys_own_tokenizer(online, repo_id, tokenizer, tmp_path):
    online.model().push_to_hub(repo_id)
    _with_own(tokenizer).push_to_hub(repo_id)
    model = TAIAForCausalLM.from_pretrained(repo_id)
    model.push_to_hub(f"{repo_id}-fork")
    model.save_pretrained(tmp_path / "copy")
    push_folder(tmp_path / "copy", f"{repo_id}-copy")
    for place in (f"{repo_id}-fork", tmp_path / "copy", f"{repo_id}-copy"):
        assert _is_own(AutoTokenizer.from_pretrained(place)), place


def test_a_fine_tunes_tokenizer_goes_with_its_difference(online, repo_id, pico, tokenizer, tmp_path):
    tuned = pico.plain("llama")
    tuned.lm_head.weight.data += 0.1
    tuned.save_pretrained(tmp_path / "tuned")
    _with_own(tokenizer).save_pretrained(tmp_path / "tuned")
    model = TAIAForCausalLM.from_finetuned(online.base, tmp_path / "tuned")
    model.push_to_hub(repo_id)
    create_from_finetuned(online.base, str(tmp_path / "tuned"), out=tmp_path / "created")
    for place in (repo_id, tmp_path / "created"):
        assert _is_own(AutoTokenizer.from_pretrained(place)), place


def test_a_pickled_adapters_tokenizer_goes_with_it(online, pico, tokenizer, tmp_path):
    shutil.copytree(pico.adapter("llama"), tmp_path / "lora")
    weights = tmp_path / "lora" / "adapter_model.safetensors"
    torch.save(load_file(weights), tmp_path / "lora" / "adapter_model.bin")
    weights.unlink()
    _with_own(tokenizer).save_pretrained(tmp_path / "lora")
    create_repository(online.base, str(tmp_path / "lora"), out=tmp_path / "created", convert_pickle=True)
    assert _is_own(AutoTokenizer.from_pretrained(tmp_path / "created"))


def test_a_damaged_tokenizer_of_an_adapter_is_refused_before_anything_is_written(online, pico, tokenizer, tmp_path):
    shutil.copytree(pico.adapter("llama"), tmp_path / "lora")
    tokenizer.save_pretrained(tmp_path / "lora")
    (tmp_path / "lora" / "tokenizer.json").write_text("{")
    with pytest.raises(RepositoryError, match=r"tokenizer of .*lora' cannot be read"):
        create_repository(online.base, str(tmp_path / "lora"), out=tmp_path / "created")
    assert not (tmp_path / "created").exists()
