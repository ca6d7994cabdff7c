"""Which tokens of a text and of a conversation are measured."""

import copy

import pytest

from taia_hub.common.labels import IGNORED_LABEL
from taia_hub.errors import ConfigError
from taia_hub.retaining import encode_texts

CHAT = ({"role": "user", "content": "who"}, {"role": "assistant", "content": "the cat"})
TEMPLATE = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}?{% else %} {{ m.content }}{{ eos_token }}\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %} {% endif %}"
)


@pytest.fixture
def model(pico):
    return pico.plain("llama")


@pytest.fixture
def chatting(tokenizer):
    clone = copy.deepcopy(tokenizer)
    clone.chat_template = TEMPLATE
    return clone


def _measured(tokenizer, row):
    return tokenizer.decode([label for label in row.labels if label != IGNORED_LABEL])


def test_all_tokens_of_a_text_are_measured(model, tokenizer):
    (row,), notes = encode_texts(model, tokenizer, ["the cat."])
    assert (_measured(tokenizer, row), row.labels, notes) == ("the cat.", row.input_ids, ())


def test_the_last_answer_of_a_conversation_is_measured_to_its_end(model, chatting):
    longer = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}, *CHAT)
    rows, notes = encode_texts(model, chatting, [CHAT, longer])
    assert [_measured(chatting, row) for row in rows] == ["the cat</s>"] * 2
    assert chatting.decode(rows[0].input_ids) == "<s>who? the cat</s>"
    assert notes == ()


def test_a_template_that_rewrites_the_question_has_all_of_it_measured(model, chatting):
    chatting.chat_template = TEMPLATE.replace("{{ m.content }}?", "{{ m.content }}{{ '?' if loop.last }}")
    (row,), _ = encode_texts(model, chatting, [CHAT])
    assert row.labels == row.input_ids


def test_without_a_template_messages_are_joined_and_it_is_said(model, tokenizer, chatting):
    (row,), notes = encode_texts(model, tokenizer, [CHAT])
    assert _measured(tokenizer, row).endswith("the cat")
    assert len(_measured(tokenizer, row)) < len(tokenizer.decode(row.input_ids))
    assert "no chat template" in notes[0]
    (same,), notes = encode_texts(model, chatting, [CHAT], chat=False)
    assert (same, notes) == (row, ())


def test_what_is_too_long_is_cut_and_what_has_no_token_is_left_out_and_both_are_said(model, chatting):
    rows, notes = encode_texts(model, chatting, ["the cat and the dog", "a", CHAT], max_tokens=5)
    assert [len(row.input_ids) for row in rows] == [5, 1, 5]
    assert [bool(row.measured) for row in rows] == [True, False, False]
    assert notes == (
        "2 texts are longer than 5 tokens: what stands behind is not measured.",
        "2 texts left out: no token to measure (a text takes two, an answer one).",
    )
    with pytest.raises(ConfigError, match="No text has a token to measure"):
        encode_texts(model, chatting, ["a"])


def test_a_text_is_no_longer_than_what_the_model_takes(model, tokenizer, monkeypatch):
    monkeypatch.setattr(model.config, "max_position_embeddings", 4)
    (row,), notes = encode_texts(model, tokenizer, ["abcdefgh"])
    assert (len(row.input_ids), notes[0][:32]) == (4, "1 text is longer than 4 tokens: ")


def test_a_tokenizer_of_another_model_is_refused(model, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.add_tokens([f"<{number}>" for number in range(100)])
    with pytest.raises(ConfigError, match="embeddings of 64 tokens"):
        encode_texts(model, other, ["a<99>"])
