"""The tokenizer of a repository: its own, its base's, or an error; never another in silence."""

import copy
import logging

import pytest
from transformers import AutoTokenizer

from taia_hub import TAIAForCausalLM
from taia_hub.compare import compare
from taia_hub.errors import RepositoryError
from taia_hub.evaluation.environment import identify
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
    TAIAForCausalLM.from_adapter(online.base, online.adapter).push_to_hub(repo_id)
    TAIAForCausalLM.from_adapter(f"{repo_id}-base2", online.adapter).push_to_hub(repo_id)
    assert "theother" in AutoTokenizer.from_pretrained(repo_id).get_vocab()


def test_a_tokenizer_that_a_person_pushed_for_the_same_base_stays(online, repo_id, tokenizer):
    model = TAIAForCausalLM.from_adapter(online.base, online.adapter)
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
