"""Losses on held-out answers, against transformers' own loss of one item."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from taia_hub.common.labels import IGNORED_LABEL, Encoded
from taia_hub.demo.evaluation import domain_losses, mode_table
from taia_hub.demo.losses import mean_loss
from taia_hub.demo.samples import DOMAINS, load_items
from taia_hub.training.encoding import Encoder
from tests.demo.conftest import ITEMS


def _encoded(tokenizer, item):
    return Encoder(tokenizer).encode(item.messages)


def _count(encoded):
    return sum(label != IGNORED_LABEL for label in encoded.labels)


def _plain_nats(model, item) -> float:
    """The item alone, all its logits, the loss by transformers."""
    with torch.no_grad():
        found = model(input_ids=torch.tensor([item.input_ids]), labels=torch.tensor([item.labels]))
    return found.loss.item() * _count(item)


def test_the_answer_and_the_end_mark_are_measured(chat_tokenizer):
    encoded = _encoded(chat_tokenizer, ITEMS[0])
    answer = [label for label in encoded.labels if label != IGNORED_LABEL]
    assert answer[-1] == chat_tokenizer.eos_token_id
    assert chat_tokenizer.decode(encoded.input_ids[: -len(answer)]) == "what is gout? "


def test_losses_keep_the_order_of_the_items(pico, chat_tokenizer):
    model, done = pico.plain("llama"), []
    domains = {"one": ITEMS[:2], "two": ITEMS[2:]}
    found = domain_losses(model, chat_tokenizer, domains, progress=lambda *counts: done.append(counts))
    losses = [*found["one"], *found["two"]]
    encoded = [_encoded(chat_tokenizer, item) for item in ITEMS]
    assert [loss.tokens for loss in losses] == list(map(_count, encoded))
    assert [loss.nats for loss in losses] == pytest.approx([_plain_nats(model, item) for item in encoded], rel=1e-5)
    assert done == [("evaluation", 1, 3), ("evaluation", 2, 3), ("evaluation", 3, 3)]


def test_table_measures_each_mode_and_restores_the_setting(pico, chat_tokenizer):
    model, done = pico.taia("llama"), []
    domains = {"one": ITEMS[:2], "two": ITEMS[2:]}
    table = mode_table(model, chat_tokenizer, domains, progress=lambda *counts: done.append(counts))
    references = {
        "none": pico.plain("llama"),
        "all": pico.peft("llama", pico.adapter("llama")),
        "attention": pico.peft("llama", pico.narrowed("llama", "attention")),
    }
    encoded = [_encoded(chat_tokenizer, item) for item in ITEMS[:2]]
    tokens = sum(map(_count, encoded))
    for mode, reference in references.items():
        expected = sum(_plain_nats(reference, item) for item in encoded) / tokens
        assert table[0].losses[mode].value == pytest.approx(expected, rel=1e-5), mode
    assert [(one.domain, one.items) for one in table] == [("one", 2), ("two", 1)]
    assert done[-1] == ("evaluation", 12, 12)
    assert model.inference_modules == "attention"
    # The base model, measured before, is the mode none bit for bit: nothing is measured twice.
    before, done[:] = domain_losses(pico.plain("llama"), chat_tokenizer, domains), []
    assert mode_table(model, chat_tokenizer, domains, base=before, progress=lambda *c: done.append(c)) == table
    assert done[-1] == ("evaluation", 9, 9)


def test_long_items_are_cut_off_as_a_training_does(pico, chat_tokenizer):
    model, whole = pico.plain("llama"), _encoded(chat_tokenizer, ITEMS[1])
    short = len(whole.input_ids) - 2
    (loss,) = domain_losses(model, chat_tokenizer, {"one": ITEMS[1:2]}, max_length=short)["one"]
    cut = Encoded(whole.input_ids[:short], whole.labels[:short])
    assert (loss.nats, loss.tokens) == (pytest.approx(_plain_nats(model, cut), rel=1e-5), _count(cut))
    (nothing,) = domain_losses(model, chat_tokenizer, {"one": ITEMS[1:2]}, max_length=2)["one"]
    assert (nothing.nats, nothing.tokens) == (0.0, 0)


@pytest.mark.slow
def test_smollm2_has_the_losses_that_are_known(smollm2):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(smollm2), AutoTokenizer.from_pretrained(smollm2)
    found = domain_losses(model, tokenizer, {"medical": load_items(DOMAINS["medical"])[:4]})["medical"]
    assert mean_loss(found) == pytest.approx(2.4, abs=0.8)
