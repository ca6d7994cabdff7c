"""Retention by mode on a loaded model or a repository."""

import os

import pytest

import taia_hub
from taia_hub.errors import ConfigError, SettingError
from taia_hub.results.retained import sentences
from taia_hub.retaining import encode_texts, measure

TEXTS = [f"the {word} is {other}" for word in ("cat", "dog", "sun", "sea") for other in ("here", "there", "at home")]


def test_retention_is_what_was_measured(pico, tokenizer):
    model, done = pico.taia("llama"), []
    found = taia_hub.retention(
        model, ["TAIA", {"ffn": 0.5}], texts=TEXTS, tokenizer=tokenizer, progress=lambda *told: done.append(told)
    )
    rows, _ = encode_texts(model, tokenizer, TEXTS)
    for label, one in zip(
        ("none", "attention", "ffn=0.5"), measure(model, rows, ["none", "attention", {"ffn": 0.5}]), strict=True
    ):
        assert found[label].kept.value == pytest.approx(one.kept)
        assert found[label].divergence.value == pytest.approx(one.divergence)
        assert found[label].loss.value == pytest.approx(one.loss)
    assert found[{"ffn": 0.5}] == found["ffn=0.5"]
    assert found["base"].divergence.high == 0.0
    assert [one.mode for one in found.modes] == ["none", "attention", "ffn=0.5"]
    assert done[-1] == ("retention", 12, 12)
    assert model.inference_modules == "attention"


def test_it_is_shown_as_a_table_and_in_words(pico, tokenizer):
    found = taia_hub.retention(pico.taia("llama"), "all", texts=[*TEXTS, "a"], tokenizer=tokenizer)
    text = str(found)
    assert text.startswith("Retention on given texts: 12 texts, ")
    assert [line.split()[0] for line in text.splitlines()[3:5]] == ["none", "all"]
    assert sentences(found.task)[0] in text
    assert "1 text left out" in text


def test_a_repository_is_loaded_with_its_tokenizer(saved_copy, tokenizer):
    tokenizer.save_pretrained(saved_copy)
    found = taia_hub.retention(saved_copy, ["all"], texts=TEXTS[:3], max_tokens=6)
    assert len(found.task.items) == 3
    assert found.notes == ("3 texts are longer than 6 tokens: what stands behind is not measured.",)
    assert "too few" in str(found)


def test_what_is_wrong_is_told_before_anything_is_loaded(tmp_path):
    missing = os.fspath(tmp_path / "no-such-repository")
    (tmp_path / "bad.jsonl").write_text("{}\n")
    for modes, texts, error, message in (
        ("atention", None, SettingError, "attention"),
        ([], None, SettingError, "No mode was given"),
        ("all", tmp_path / "bad.jsonl", ConfigError, r"bad\.jsonl:1"),
    ):
        with pytest.raises(error, match=message):
            taia_hub.retention(missing, modes, texts=texts)


def test_what_has_no_modes_is_refused(pico, tokenizer):
    with pytest.raises(ConfigError, match="has no modes to compare"):
        taia_hub.retention(pico.plain("llama"), tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="'revision' has no use"):
        taia_hub.retention(pico.taia("llama"), tokenizer=tokenizer, revision="x")
    with pytest.raises(SettingError, match="was not measured"):
        taia_hub.retention(pico.taia("llama"), "all", texts=TEXTS, tokenizer=tokenizer)["ffn"]


def test_tuned_is_measured_as_what_is_published_and_once(saved_copy, tokenizer):
    found = taia_hub.retention(saved_copy, ["tuned", "attention", "tuned"], texts=TEXTS[:2], tokenizer=tokenizer)
    assert list(found.task.modes) == ["none", "attention"]
    assert found.task.modes["attention"].setting == "attention"
