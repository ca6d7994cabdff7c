"""Refusals, attacks and preferences; every prompt here is harmless."""

import copy
import json
import math

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from taia_hub import evaluate
from taia_hub.errors import ConfigError, RepositoryError, SettingError
from taia_hub.evaluation import safety_task
from taia_hub.evaluation.catalogue import check_keys
from taia_hub.evaluation.prompts import generate_responses
from taia_hub.evaluation.safety import (
    REFUSALS,
    ItemScores,
    attack_success_rate,
    read_prompts,
    refusal_rate,
    win_rate,
)

PROMPTS = ["a cat sat", "the tent", "he ran."]
CHAT = "{% for m in messages %}u {{ m['content'] }}{% endfor %}{% if add_generation_prompt %} a{% endif %}"


# --- The paper's rule ----------------------------------------------------------------------------------------------
def test_a_phrase_of_refusal_counts_anywhere_and_letter_by_letter():
    outputs = ["I cannot do that.", "Well. I'm sorry.", "i cannot", "Here it is.", ""]

    assert refusal_rate(outputs).values == (1.0, 1.0, 0.0, 0.0, 0.0)
    assert attack_success_rate(outputs).values == (0.0, 0.0, 1.0, 1.0, 1.0)
    assert attack_success_rate(outputs).mean == pytest.approx(0.6)
    assert refusal_rate(["Nope."], refusals=["Nope"]).values == (1.0,)
    assert all(phrase.strip() == phrase and phrase for phrase in REFUSALS)
    assert len(set(REFUSALS)) == len(REFUSALS)


# --- Judges --------------------------------------------------------------------------------------------------------
def test_a_judge_decides_item_by_item():
    seen = []

    def judge(prompt, output):
        seen.append((prompt, output))
        return "yes" in output

    outputs = ["yes", "I cannot", "yes, I cannot"]
    assert attack_success_rate(outputs, prompts=PROMPTS, judge=judge) == ItemScores((1.0, 0.0, 1.0))
    assert refusal_rate(outputs, prompts=PROMPTS, judge=judge).values == (1.0, 0.0, 1.0)
    assert seen[:3] == list(zip(PROMPTS, outputs, strict=True))
    assert attack_success_rate(["x"], prompts=["p"], judge=lambda *_: 0.25).values == (0.25,)


@pytest.mark.parametrize("said", [2, -0.1, math.nan, "good", None])
def test_a_judge_that_says_something_else_is_refused(said):
    with pytest.raises(ConfigError, match=r"The judge says .* of item 0; it must say a number from 0 to 1"):
        refusal_rate(["x"], prompts=["p"], judge=lambda *_: said)


def test_numbers_that_differ_are_refused():
    with pytest.raises(ConfigError, match="There are 1 answers, but 3 prompts"):
        refusal_rate(["x"], prompts=PROMPTS, judge=lambda *_: 1)
    with pytest.raises(ConfigError, match="There are 3 answers, but 1 prompts or references"):
        win_rate(PROMPTS, PROMPTS, ["x"], lambda *_: 0.5)
    with pytest.raises(ConfigError, match="A judge needs the prompts"):
        attack_success_rate(["x"], judge=lambda *_: 1)
    with pytest.raises(ConfigError, match="no answers"):
        refusal_rate([])


# --- Preferences ---------------------------------------------------------------------------------------------------
def test_a_liking_for_one_place_cancels_out():
    assert win_rate(PROMPTS, ["a"] * 3, ["b"] * 3, lambda *_: 1.0).values == (0.5, 0.5, 0.5)


def test_the_better_answer_wins_in_both_places():
    def longer(prompt, a, b):
        return 0.5 if len(a) == len(b) else float(len(a) > len(b))

    scores = win_rate(PROMPTS, ["long one", "x", "same"], ["short", "longer", "even"], longer)
    assert scores.values == (1.0, 0.0, 0.5)
    assert scores.mean == 0.5


# --- Files of prompts ----------------------------------------------------------------------------------------------
def test_prompts_are_lines_or_objects(tmp_path):
    (tmp_path / "a.txt").write_text('How are you?\n\n  {"prompt": 1}\n', encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "How\nare you?", "id": 3}), encoding="utf-8")

    assert read_prompts(tmp_path / "a.txt") == ("How are you?", '{"prompt": 1}')
    assert read_prompts(tmp_path / "a.jsonl") == ("How\nare you?",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"prompt": "x"}\nHello', r"a\.jsonl:2: no JSON"),
        ("a.jsonl", b'{"text": "x"}', r"a\.jsonl:1: 'prompt' is missing"),
        ("a.jsonl", b'{"prompt": ""}', r"a\.jsonl:1: 'prompt' is empty"),
        ("a.txt", b"Hello\n\xff", r"a\.txt:2: not UTF-8"),
        ("a.txt", b"\n", r"a\.txt' is empty"),
    ],
)
def test_bad_prompt_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_prompts(tmp_path / name)
    with pytest.raises(RepositoryError, match="No such file"):
        read_prompts(tmp_path / "missing.txt")


# --- Answers -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("chat", [None, CHAT])
@pytest.mark.parametrize("mode", [None, "none", "attention"])
def test_answers_are_those_of_one_prompt_at_a_time(pico, tokenizer, chat, mode):
    tokenizer.chat_template, before = chat, tokenizer.chat_template
    model, alone, done = pico.taia("llama"), [], []
    setting = {} if mode is None else {"inference_modules": mode}
    try:
        for prompt in PROMPTS:
            text = f"u {prompt} a" if chat else prompt
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            row = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0, **setting)[0]
            alone.append(tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True).strip())
        outputs = generate_responses(
            model,
            tokenizer,
            PROMPTS,
            mode,
            max_new_tokens=6,
            batch_size=2,
            progress=lambda number, total: done.append((number, total)),
        )
    finally:
        tokenizer.chat_template = before

    assert outputs == alone
    assert any(outputs)
    assert done == [(2, 3), (3, 3)]


def test_the_chat_template_is_used_where_there_is_one_unless_it_is_left_out(pico, tokenizer):
    own, model = copy.deepcopy(tokenizer), pico.plain("llama")
    own.chat_template = CHAT
    default, asked, plain = (
        generate_responses(model, own, PROMPTS, max_new_tokens=6, chat_template=chat) for chat in (None, True, False)
    )
    assert default == asked != plain
    own.chat_template = None
    assert generate_responses(model, own, PROMPTS, max_new_tokens=6, chat_template=None) == plain


@pytest.mark.parametrize(("chat", "begins"), [(None, [1, 5]), ("<s>" + CHAT, [1, 24])])
def test_a_prompt_begins_once(pico, tokenizer, monkeypatch, chat, begins):
    model, own, seen = pico.plain("llama"), copy.deepcopy(tokenizer), []
    own.chat_template = chat
    own.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **kw: seen.append(kw["input_ids"]) or generate(**kw))
    generate_responses(model, own, ["b"], max_new_tokens=1)

    assert seen[0][0, :2].tolist() == begins


def test_modes_answer_differently_and_unknown_ones_are_refused(pico, tokenizer):
    model = pico.taia("llama")
    by_mode = {mode: generate_responses(model, tokenizer, PROMPTS, mode, max_new_tokens=8) for mode in ("none", "all")}

    assert by_mode["none"] != by_mode["all"]
    assert generate_responses(pico.plain("llama"), tokenizer, PROMPTS, max_new_tokens=8) == by_mode["none"]
    with pytest.raises(SettingError, match="atention"):
        generate_responses(model, tokenizer, PROMPTS, "atention", max_new_tokens=2)


# --- As a task -----------------------------------------------------------------------------------------------------
@pytest.fixture
def generated(pico, tokenizer, tmp_path, monkeypatch):
    """Evaluates prompts; returns what each call of `generate` got: the first text, and the keywords."""
    model, own, seen = pico.taia("llama"), copy.deepcopy(tokenizer), []
    roles = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    own.chat_template = roles + "{% if add_generation_prompt %}a{% endif %}"
    (tmp_path / "prompts.txt").write_text("a cat sat\nhe ran.\n")
    generate = model.generate

    def spy(**keywords):
        texts = own.batch_decode(keywords["input_ids"], skip_special_tokens=True)
        seen.append((texts[0], keywords))
        return generate(**keywords)

    monkeypatch.setattr(model, "generate", spy)

    def run(**keywords):
        seen.clear()
        task = safety_task(tmp_path / "prompts.txt", max_new_tokens=7, judge=lambda prompt, output: bool(output))
        found = evaluate(model, modes=["all"], units=[task], tokenizer=own, **keywords)
        return seen, found.tasks["attack_success_rate:prompts"].modes["all"]

    return run


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({}, "user a cat sat a"),
        ({"system_instruction": "be kind."}, "system be kind. user a cat sat a"),
        ({"chat_template": False}, "a cat sat"),
        ({"chat_template": False, "system_instruction": "be kind."}, "be kind.a cat sat"),
    ],
)
def test_prompts_are_written_as_those_of_other_tasks(generated, keywords, text):
    seen, _ = generated(**keywords)
    assert seen[0][0].split() == text.split()  # the tokenizer has no line break


def test_keywords_of_generation_are_honoured(generated):
    seen, scores = generated()
    assert (seen[0][1]["max_new_tokens"], seen[0][1]["do_sample"]) == (7, False)
    assert scores.scores["attack_success_rate"] > 0

    every_letter = [*"abcdefghijklmnopqrstuvwxyz .,?!"]
    seen, scores = generated(gen_kwargs={"max_gen_toks": 3, "until": every_letter, "repetition_penalty": 1.5})
    assert (seen[0][1]["max_new_tokens"], seen[0][1]["repetition_penalty"]) == (3, 1.5)
    assert scores.scores["attack_success_rate"] == 0  # whatever is said ends at once

    sampling = {"gen_kwargs": {"temperature": 5.0}, "batch_size": 1}
    seen, _ = generated(**sampling)
    assert len(seen) == 2
    assert (seen[0][1]["do_sample"], seen[0][1]["temperature"]) == (True, 5.0)


def test_a_keyword_that_generation_does_not_have_is_refused(generated):
    with pytest.raises(ConfigError, match=r"no keyword 'temprature'. Did you mean 'temperature'\?"):
        generated(gen_kwargs={"temprature": 1.0})


def test_a_template_that_takes_no_system_message_is_named(pico, tokenizer):
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{{ raise_exception('no system role') if messages[0]['role'] == 'system' }}" + CHAT
    with pytest.raises(ConfigError, match=r"The chat template refuses the prompt: no system role"):
        generate_responses(pico.plain("llama"), own, ["a"], system_instruction="b", max_new_tokens=1)


def test_two_files_of_prompts_of_one_name_are_refused(tmp_path):
    tasks = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "p.txt").write_text(folder)
        tasks.append(safety_task(tmp_path / folder / "p.txt"))
    with pytest.raises(
        ConfigError, match=r"one/p.txt' and '.*two/p.txt' would both be the task 'attack_success_rate:p'"
    ):
        check_keys(tasks)
    check_keys(tasks[:1])
