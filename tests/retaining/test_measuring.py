"""Losses and divergences of a batch against each item alone in float64."""

import math

import pytest
import torch

from taia_hub.common.labels import IGNORED_LABEL, Encoded
from taia_hub.errors import ConfigError, OutOfMemoryError, SettingError
from taia_hub.retaining import Losses, measure, measuring
from tests.conftest import logits

SETTINGS = ("attention", "none", "all", {"attention": 0.5})


def _rows(pico) -> list[Encoded]:
    """Items of several lengths, with labels on all tokens, on the last ones, on some in between, and on none."""
    ids = [pico.ids(1, length, seed=length)[0].tolist() for length in (9, 4, 12, 7, 12, 3)]
    rows = [Encoded(one, list(one)) for one in ids]
    rows[1].labels[:2] = [IGNORED_LABEL] * 2
    rows[2].labels[:7] = [IGNORED_LABEL] * 7
    rows[3].labels[2:5] = [IGNORED_LABEL] * 3
    rows[5].labels[1:] = [IGNORED_LABEL] * 2
    return rows


def _alone(model, rows, setting) -> Losses:
    """Every item alone, all its logits, in the numbers that they are given in."""
    tokens, nats, kl, changed = [], [], [], []
    for row in rows:
        places = [at - 1 for at in range(1, len(row.labels)) if row.labels[at] != IGNORED_LABEL]
        ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels[at + 1] for at in places])
        one, base = (
            logits(model, ids, inference_modules=mode)[0, places].double().log_softmax(-1) for mode in (setting, "none")
        )
        tokens.append(len(places))
        nats.append(-one[range(len(places)), labels].sum().item() if places else 0.0)
        kl.append((base.exp() * (base - one)).sum().item())
        changed.append(int((base.argmax(-1) != one.argmax(-1)).sum()))
    return Losses(tuple(tokens), tuple(nats), tuple(kl), tuple(changed))


def _check(model, rows, settings=SETTINGS, tolerance=1e-5) -> tuple[Losses, ...]:
    found = measure(model, rows, settings)
    for one, setting in zip(found, settings, strict=True):
        expected = _alone(model, rows, setting)
        assert one.tokens == expected.tokens
        assert one.nats == pytest.approx(expected.nats, rel=tolerance, abs=tolerance)
        assert one.kl == pytest.approx(expected.kl, rel=10 * tolerance, abs=tolerance)
        assert one.changed == expected.changed
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_settings_as_rows_have_the_losses_of_items_alone(pico, name):
    attention, none, whole, half = _check(pico.taia(name), _rows(pico))
    assert none.kl == (0.0,) * 6
    assert none.changed == (0,) * 6
    assert (none.divergence, none.kept) == (0.0, 1.0)
    assert 0 < half.divergence < attention.divergence
    assert whole.kept < 1


def test_an_update_that_refuses_rows_takes_its_settings_one_after_the_other(pico, monkeypatch):
    model, seen = pico.taia("mixtral"), []
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, *a, **k: (seen.append(k), forward(self, *a, **k))[1])
    with pytest.raises(SettingError, match="must treat all rows alike"):
        model._taia_switch.resolve_rows(["none", "ffn"])
    found = measure(model, _rows(pico), ("ffn", "none", "all"))
    assert [k["inference_modules"] for k in seen] == ["none", "ffn", "all"]
    monkeypatch.undo()
    for one, setting in zip(found, ("ffn", "none", "all"), strict=True):
        expected = _alone(model, _rows(pico), setting)
        assert one.nats == pytest.approx(expected.nats, rel=1e-5)
        assert one.kl == pytest.approx(expected.kl, rel=1e-4, abs=1e-6)
    assert found[1].kl == (0.0,) * 6


def test_bfloat16_is_compared_within_one_batch(pico):
    model, rows = pico.taia("llama", dtype=torch.bfloat16), _rows(pico)
    found = measure(model, rows, SETTINGS)
    assert found[1].kl == (0.0,) * 6
    assert found[1].kept == 1.0
    for one, setting in zip(found, SETTINGS, strict=True):
        expected = _alone(model, rows, setting)
        assert one.nats == pytest.approx(expected.nats, rel=0.02, abs=0.02)
        assert one.kl == pytest.approx(expected.kl, rel=0.1, abs=0.05)


@pytest.mark.parametrize(("tokens", "size"), [(12, 1 << 28), (30, 1 << 28), (10**6, 4000), (10**6, 1)])
def test_little_memory_makes_more_passes_and_no_other_numbers(pico, monkeypatch, tokens, size):
    model, rows = pico.taia("llama"), _rows(pico)
    at_once, passes = measure(model, rows, SETTINGS), []
    monkeypatch.setattr(measuring, "_TOKENS", tokens)
    monkeypatch.setattr(measuring, "_LOGITS", size)
    monkeypatch.setattr(measuring, "_CHUNK", 1000)
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, *a, **k: (passes.append(k), forward(self, *a, **k))[1])
    for one, other in zip(measure(model, rows, SETTINGS), at_once, strict=True):
        assert one.nats == pytest.approx(other.nats, rel=1e-5)
        assert one.kl == pytest.approx(other.kl, rel=1e-4, abs=1e-6)
        assert one.changed == other.changed
    assert len(passes) > 4
    assert all(one["input_ids"].numel() <= max(tokens, 24) for one in passes)


def test_a_full_memory_makes_the_batches_smaller(pico, monkeypatch):
    model, rows, sizes = pico.taia("llama"), _rows(pico), []
    at_once, forward = measure(model, rows, SETTINGS), type(model).forward

    def small(self, **inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, **inputs)

    monkeypatch.setattr(type(model), "forward", small)
    for one, other in zip(measure(model, rows, SETTINGS), at_once, strict=True):
        assert one.nats == pytest.approx(other.nats, rel=1e-5)
        assert one.tokens == other.tokens
    assert sizes[0] > 4 >= sizes[-1]


def test_a_memory_too_small_for_one_item_is_told(pico, monkeypatch):
    model = pico.taia("llama")

    def full(self, **inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(model), "forward", full)
    with pytest.raises(OutOfMemoryError, match="one item of 11 tokens"):
        measure(model, _rows(pico), ["all"])


def test_where_rows_are_regrouped_on_the_way_settings_take_turns(pico, monkeypatch):
    model, rows = pico.taia("llama"), _rows(pico)
    expected, forward = measure(model, rows, SETTINGS), type(model).forward

    def regrouped(self, **inputs):
        if isinstance(inputs["inference_modules"], list):
            raise SettingError("A layer got 7 rows where the call has a setting for each of 24.", "")
        return forward(self, **inputs)

    monkeypatch.setattr(type(model), "forward", regrouped)
    for one, other in zip(measure(model, rows, SETTINGS), expected, strict=True):
        assert one.kl == pytest.approx(other.kl, rel=1e-4, abs=1e-6)


def test_a_plain_model_is_measured_as_it_stands_and_training_goes_on(pico):
    model, rows = pico.plain("llama").train(), _rows(pico)
    (found,) = measure(model, rows, [None], divergence=False)
    assert model.training
    (base,) = measure(pico.taia("llama"), rows, ["none"], divergence=False)
    assert found.nats == pytest.approx(base.nats, rel=1e-6)
    assert (found.kl, found.changed) == ((), ())
    assert math.isnan(found.divergence)
    with pytest.raises(SettingError, match="a model without an update"):
        measure(model, rows, ["all"])


def test_logits_that_are_no_numbers_are_refused_by_what_may_make_them(pico, monkeypatch):
    model, forward = pico.taia("llama"), type(pico.taia("llama")).forward

    def overflowing(self, **inputs):
        found = forward(self, **inputs)
        found.logits[:, :, 3] = torch.nan
        return found

    monkeypatch.setattr(type(model), "forward", overflowing)
    with pytest.raises(ConfigError, match="A loss is no number") as caught:
        measure(model, _rows(pico), ["all"])
    assert "dtype" not in caught.value.hint  # the model runs in float32
    assert "`taia create BASE UPDATE` names those of the update" in caught.value.hint
    with pytest.raises(ConfigError, match="A loss is no number") as caught:
        measure(model.to(torch.bfloat16), _rows(pico), ["all"])
    assert "overflows in bfloat16: load it with --dtype float32" in caught.value.hint
    assert "names those of the update" in caught.value.hint
