"""The tokenizer of a repository: its own, its base's, or an error; never another in silence."""

import copy
import logging

import pytest
from transformers import AutoTokenizer

from taia_hub import TAIAForCausalLM
from taia_hub.errors import RepositoryError
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
