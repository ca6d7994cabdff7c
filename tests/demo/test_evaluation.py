"""Losses on held-out answers, against transformers' own loss of one item."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from taia_hub.common.labels import IGNORED_LABEL, Encoded
from taia_hub.demo.evaluation import domain_losses, mode_table
from taia_hub.demo.losses import MODES
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
    (found,) = domain_losses(model, chat_tokenizer, domains, progress=lambda *counts: done.append(counts))
    encoded = [_encoded(chat_tokenizer, item) for item in ITEMS]
    assert [*found["one"].tokens, *found["two"].tokens] == list(map(_count, encoded))
    nats = [*found["one"].nats, *found["two"].nats]
    assert nats == pytest.approx([_plain_nats(model, item) for item in encoded], rel=1e-5)
    assert done[-1] == ("evaluation", 3, 3)


def test_table_measures_each_mode_and_restores_the_setting(pico, chat_tokenizer, monkeypatch):
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
    assert done[-1] == ("evaluation", 3, 3)
    assert model.inference_modules == "attention"
    # The base model, measured before, is the mode none: nothing is measured twice.
    (before,) = domain_losses(pico.plain("llama"), chat_tokenizer, domains)
    seen, forward = set(), type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda self, **k: (seen.update(k["inference_modules"]), forward(self, **k))[1]
    )
    again = mode_table(model, chat_tokenizer, domains, base=before)
    assert seen == {"attention", "ffn", "all"}
    for one, other in zip(again, table, strict=True):
        for mode in MODES:
            found, expected = one.losses[mode], other.losses[mode]
            assert (found.value, found.low, found.high) == pytest.approx(
                (expected.value, expected.low, expected.high), rel=1e-5
            )


def test_long_items_are_cut_off_as_a_training_does(pico, chat_tokenizer):
    model, whole = pico.plain("llama"), _encoded(chat_tokenizer, ITEMS[1])
    short = len(whole.input_ids) - 2
    (found,) = domain_losses(model, chat_tokenizer, {"one": ITEMS[1:2]}, max_length=short)
    cut = Encoded(whole.input_ids[:short], whole.labels[:short])
    assert found["one"].nats == pytest.approx([_plain_nats(model, cut)], rel=1e-5)
    assert found["one"].tokens == (_count(cut),)
    (nothing,) = domain_losses(model, chat_tokenizer, {"one": ITEMS[1:2]}, max_length=2)
    assert (nothing["one"].nats, nothing["one"].tokens) == ((0.0,), (0,))


@pytest.mark.slow
def test_smollm2_has_the_losses_that_are_known(smollm2):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(smollm2), AutoTokenizer.from_pretrained(smollm2)
    (found,) = domain_losses(model, tokenizer, {"medical": load_items(DOMAINS["medical"])[:4]})
    assert found["medical"].loss == pytest.approx(2.4, abs=0.8)
