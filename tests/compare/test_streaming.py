"""One prompt, an answer by each mode: the same tokens as alone, token by token, and what is told beside the text."""

import dataclasses
import gc
import itertools
import json
import threading
import weakref

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from taia_hub.compare import Comparison, compare, stream_compare, word_diff
from taia_hub.compare.comparison import ComparedAnswer
from taia_hub.compare.streaming import GrowingText
from taia_hub.compare.terminal import plain_answers
from taia_hub.errors import ConfigError, OutOfMemoryError, SettingError

MODES = ["none", "attention", "ffn", "all"]
PROMPTS = ["the sea", "what is seen ?", "a b c d"]
SAMPLED = {"do_sample": True, "temperature": 0.9, "top_k": 40, "top_p": 0.95}


@pytest.fixture
def model(pico):
    model = pico.taia("llama").eval()
    model.generation_config.eos_token_id = None  # a random model would end anywhere
    return model


def alone(model, tokenizer, prompt, mode, **generation):
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    return tuple(model.generate(ids, inference_modules=mode, **generation)[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_answers_have_the_tokens_of_their_single_runs(model, tokenizer, prompt):
    modes = [*MODES, {"attention": 1, "ffn": 0.5}]
    found = compare(model, tokenizer, prompt, modes, max_new_tokens=20, do_sample=False)
    assert found.modes == (*MODES, "attention=1, ffn=0.5")
    for mode, answer in zip(modes, found.answers, strict=True):
        assert answer.tokens == alone(model, tokenizer, prompt, mode, max_new_tokens=20, do_sample=False)
        assert answer.text == tokenizer.decode(answer.tokens, skip_special_tokens=True)
        assert answer.finished == "length"
    assert len({answer.tokens for answer in found.answers}) > 1


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_sampled_answer_does_not_depend_on_those_beside_it(model, tokenizer, prompt):
    keywords = {"max_new_tokens": 20, "measures": False, **SAMPLED}
    together = compare(model, tokenizer, prompt, MODES, seed=3, **keywords)
    pair = compare(model, tokenizer, prompt, ["all", "attention"], seed=3, **keywords)
    single = compare(model, tokenizer, prompt, ["all"], seed=3, **keywords)
    assert together.answer("all").tokens == pair.answer("all").tokens == single.answer("all").tokens
    assert together.answer("attention").tokens == pair.answer("attention").tokens
    other = compare(model, tokenizer, prompt, MODES, seed=4, **keywords)
    assert other.answer("all").tokens != together.answer("all").tokens


def test_sampling_is_that_of_generate(model, tokenizer):
    """With one token possible, sampling is greedy; with a temperature near 0 too."""
    greedy = compare(model, tokenizer, "the", MODES, max_new_tokens=8, do_sample=False)
    for narrow in ({"top_k": 1}, {"temperature": 1e-4}, {"top_p": 1e-6}, {"min_p": 1.0}):
        found = compare(model, tokenizer, "the", MODES, max_new_tokens=8, do_sample=True, **narrow)
        assert [answer.tokens for answer in found.answers] == [answer.tokens for answer in greedy.answers], narrow


def test_sampling_follows_the_models_distribution(model, tokenizer):
    drawn = torch.zeros(64)
    for seed in range(400):
        found = compare(model, tokenizer, "the", ["none"], seed=seed, max_new_tokens=1, do_sample=True, measures=False)
        drawn[found.answers[0].tokens[0]] += 1 / 400
    ids = tokenizer("the", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = model(ids, inference_modules="none").logits[0, -1].softmax(-1)
    assert 0.5 * (drawn - expected).abs().sum() < 0.25  # total variation of 400 draws of 64 tokens
    assert 0.5 * (drawn - drawn.flip(0)).abs().sum() > 0.05  # not just uniform against uniform


def test_every_token_gives_a_state(model, tokenizer):
    states = list(stream_compare(model, tokenizer, "the", MODES, max_new_tokens=6, do_sample=False))
    lengths = [[len(answer.tokens) for answer in state.answers] for state in states]
    assert lengths[:6] == [[n] * 4 for n in range(1, 7)]
    assert [state.finished for state in states] == [False] * 6 + [True] * (len(states) - 6)
    assert states[-1].answers[0].entropy
    assert states[0].answers[0].tokens_per_second is None
    assert states[3].answers[0].tokens_per_second > 0
    for earlier, later in itertools.pairwise(states):
        for a, b in zip(earlier.answers, later.answers, strict=True):
            assert b.text.startswith(a.text)


def test_a_row_stops_at_its_own_end(model, tokenizer):
    free = compare(model, tokenizer, "the", MODES, max_new_tokens=12, do_sample=False)
    end = free.answer("none").tokens[3]
    model.generation_config.eos_token_id = end
    found = compare(model, tokenizer, "the", MODES, max_new_tokens=12, do_sample=False)
    for before, now in zip(free.answers, found.answers, strict=True):
        if end in before.tokens:
            assert now.tokens == before.tokens[: before.tokens.index(end) + 1]
            assert now.finished == "stop"
        else:
            assert now.tokens == before.tokens
            assert now.finished == "length"
    assert found.answer("none").finished == "stop"


def test_modes_that_cannot_share_a_batch_are_run_one_after_the_other(pico, tokenizer):
    model = pico.taia("mixtral").eval()
    model.generation_config.eos_token_id = None
    found = compare(model, tokenizer, "the", MODES, max_new_tokens=5, do_sample=False)
    for mode in MODES:
        assert found.answer(mode).tokens == alone(model, tokenizer, "the", mode, max_new_tokens=5, do_sample=False)
    assert all(set(answer.log_likelihoods) == set(MODES) for answer in found.answers)


def test_no_setting_is_in_force_where_the_states_are_consumed(model, tokenizer):
    model.inference_modules = "ffn"
    for _ in stream_compare(model, tokenizer, "the", ["none", "all"], max_new_tokens=3):
        assert model.status().inference_modules == "ffn"


def test_closing_ends_generation_and_frees_its_memory(model, tokenizer, monkeypatch):
    caches = []
    forward = type(model).forward

    def watched(self, *args, **keywords):
        out = forward(self, *args, **keywords)
        if keywords.get("past_key_values") is not None:
            caches.append(weakref.ref(keywords["past_key_values"]))
        return out

    monkeypatch.setattr(type(model), "forward", watched)
    states = stream_compare(model, tokenizer, "the", MODES, max_new_tokens=100, do_sample=False)
    for _ in range(3):
        next(states)
    states.close()
    steps = len(caches)
    assert steps < 100
    assert not [thread for thread in threading.enumerate() if thread.name == "taia-decode"]
    gc.collect()
    assert all(cache() is None for cache in caches)
    assert len(caches) == steps


def test_an_error_of_generate_comes_out_of_the_stream(model, tokenizer, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a broken layer")

    monkeypatch.setattr(type(model), "generate", broken)
    with pytest.raises(RuntimeError, match="a broken layer"):
        compare(model, tokenizer, "the")


def test_out_of_memory_says_what_to_do(model, tokenizer, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(model), "generate", full)
    with pytest.raises(OutOfMemoryError, match=r"4 answers at once(.|\n)*Compare fewer modes"):
        compare(model, tokenizer, "the", MODES)


def test_out_of_memory_in_the_middle_frees_what_was_allocated(model, tokenizer, monkeypatch):
    caches, forward = [], type(model).forward

    def bursting(self, *args, **keywords):
        if keywords.get("past_key_values") is not None:
            caches.append(weakref.ref(keywords["past_key_values"]))
        if len(caches) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, *args, **keywords)

    monkeypatch.setattr(type(model), "forward", bursting)
    gc.disable()
    try:
        with pytest.raises(OutOfMemoryError):
            compare(model, tokenizer, "the", MODES, max_new_tokens=20, do_sample=False)
        assert all(cache() is None for cache in caches)
    finally:
        gc.enable()


def test_answers_stay_when_the_measures_need_too_much(model, tokenizer, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("taia_hub.compare.streaming.measure", full)
    found = compare(model, tokenizer, "the", MODES, max_new_tokens=3, do_sample=False)
    assert found.finished
    assert found.notes[-1] == "The memory did not suffice for the measures."


def test_measures_are_those_of_a_forward_pass(model, tokenizer):
    found = compare(model, tokenizer, "the sea", MODES, max_new_tokens=6, do_sample=False)
    prompt = tokenizer("the sea", return_tensors="pt")["input_ids"]
    for answer in found.answers:
        ids = torch.cat([prompt, torch.tensor([answer.tokens])], 1)
        for mode in MODES:
            with torch.no_grad():
                logits = model(ids, inference_modules=mode).logits[0, prompt.shape[1] - 1 : -1].log_softmax(-1)
            expected = logits.gather(1, torch.tensor(answer.tokens)[:, None]).sum().item()
            assert answer.log_likelihoods[mode] == pytest.approx(expected, rel=1e-4)
            if mode == answer.mode:
                entropy = -(logits.exp() * logits).sum(-1)
                assert answer.entropy == pytest.approx(entropy.tolist(), rel=1e-4)


def test_a_conversation_goes_through_the_chat_template(model, tokenizer):
    chatty = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **tokenizer.special_tokens_map)
    chatty.chat_template = (
        "{% for m in messages %}{{ m.role[0] }} {{ m.content }} . {% endfor %}"
        "{% if add_generation_prompt %}a{% endif %}"
    )
    messages = [
        {"role": "user", "content": "the sea"},
        {"role": "assistant", "content": "is seen"},
        {"role": "user", "content": "and"},
    ]
    found = compare(model, chatty, messages, ["all"], system="be kind", max_new_tokens=5, do_sample=False)
    rendered = "s be kind . u the sea . a is seen . u and . a"
    assert found.answers[0].tokens == alone(model, tokenizer, rendered, "all", max_new_tokens=5, do_sample=False)
    assert found.messages == ({"role": "system", "content": "be kind"}, *messages)
    assert found.notes == ()
    plain = compare(model, tokenizer, "the sea", ["all"], max_new_tokens=5, do_sample=False)
    assert plain.notes == ("The model has no chat template: the text was taken as it is.",)


def test_each_mode_goes_on_with_its_own_conversation(model, tokenizer):
    first = compare(model, tokenizer, "the sea", MODES, max_new_tokens=4, do_sample=False)
    first = dataclasses.replace(first, answers=(dataclasses.replace(first.answers[0], text="a b"), *first.answers[1:]))
    histories = [
        [{"role": "user", "content": "the sea"}, {"role": "assistant", "content": answer.text}]
        for answer in first.answers
    ]
    second = compare(model, tokenizer, "and", MODES, histories=histories, max_new_tokens=8, do_sample=False)
    for answer, before in zip(second.answers, first.answers, strict=True):
        prompt = f"the sea\n\n{before.text}\n\nand"
        assert answer.tokens == alone(model, tokenizer, prompt, answer.mode, max_new_tokens=8, do_sample=False)
        single = compare(
            model, tokenizer, "and", [answer.mode], histories=[histories[MODES.index(answer.mode)]], max_new_tokens=8
        )
        assert single.answers[0].tokens == answer.tokens
    with pytest.raises(ConfigError, match="3 histories came for 4 modes"):
        compare(model, tokenizer, "and", MODES, histories=histories[:3])


@pytest.mark.parametrize(
    ("prompt", "modes", "keywords", "error", "message"),
    [
        ("", MODES, {}, ConfigError, "The prompt is empty"),
        ("  \n", MODES, {}, ConfigError, "The prompt is empty"),
        ([], MODES, {}, ConfigError, "The prompt is empty"),
        ([{"role": "user", "content": 3}], MODES, {}, ConfigError, "Message 1 is"),
        ([{"role": "usr", "content": "a"}], MODES, {}, ConfigError, "Message 1 has the role 'usr'"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], MODES, {}, ConfigError, "empty"),
        ("a " * 80, MODES, {}, ConfigError, r"has 160 tokens; the model takes 128 .* it is 33 too long"),
        ("the", ["atention"], {}, SettingError, "Did you mean 'attention'"),
        ("the", "none", {}, SettingError, "Give a list of settings"),
        ("the", [], {}, SettingError, "Give a list of settings"),
        ("the", ["all", "all"], {}, SettingError, "'all' was given twice"),
        ("the", MODES, {"max_new_token": 3}, ConfigError, "Did you mean 'max_new_tokens'"),
        (None, MODES, {}, ConfigError, "The prompt is NoneType"),
        (b"hi", MODES, {}, ConfigError, "The prompt is bytes"),
        ("the", MODES, {"system": 5}, ConfigError, "The system message is 5"),
        ("the", MODES, {"max_new_tokens": 2.5}, ConfigError, "max_new_tokens=2.5"),
        ("the", MODES, {"max_length": 50}, ConfigError, "Give max_new_tokens"),
        ("the", MODES, {"stop_strings": ["a"]}, ConfigError, "'stop_strings' cannot be used"),
        ("the", MODES, {"temperature": 0.5}, ConfigError, "temperature has no meaning without sampling"),
        ("the", MODES, {"do_sample": True, "temperature": 1e-40}, ConfigError, "too small to sample"),
        ("the", MODES, {"seed": -1}, ConfigError, "seed=-1"),
        ("the", MODES, {"max_new_tokens": 0}, ConfigError, "must be greater than 0"),
        ("the", MODES, {"do_sample": True, "temperature": -1.0}, ConfigError, "strictly positive float"),
        ("the", MODES, {"do_sample": True, "top_p": 2.0}, ConfigError, "top_p"),
        ("the", MODES, {"num_beams": 2}, ConfigError, "num_beams=2 cannot be streamed"),
        ("the", MODES, {"do_sample": True, "typical_p": 0.5}, ConfigError, "does not sample with typical_p"),
    ],
)
def test_bad_input_is_refused_by_the_call(model, tokenizer, prompt, modes, keywords, error, message):
    with pytest.raises(error, match=message):
        stream_compare(model, tokenizer, prompt, modes, **keywords)


def test_an_answer_ends_at_the_context(model, tokenizer):
    found = compare(model, tokenizer, "a" * 120, ["all"], max_new_tokens=100, do_sample=False)
    assert len(found.answers[0].tokens) == 8
    assert found.generation["max_new_tokens"] == 8


@pytest.mark.parametrize(
    "text", ["naïve 🙂 text", "日本語のテキスト", "a\n\n  indented", "e\u0301 accents", "tabs\tand\r\nlines"]
)
def test_growing_text_waits_for_whole_characters(text):
    class Bytes:
        """A token a byte, as byte-level tokenizers fall back to."""

        def decode(self, tokens, skip_special_tokens):
            return bytes(tokens).decode("utf-8", errors="replace")

    growing = GrowingText(Bytes())
    for byte in text.encode():
        growing.append(byte)
        assert text.startswith(growing.value)
    assert growing.value == text == growing.finish()


def side_by_side(**texts):
    answers = tuple(
        ComparedAnswer(mode, mode, text, tuple(map(ord, text)), "stop", 10.0, (1.0, 2.0), dict.fromkeys(texts, -3.0))
        for mode, text in texts.items()
    )
    return Comparison(({"role": "user", "content": "a prompt"},), answers, {"seed": 0}, "org/model", "a" * 40)


def test_where_answers_part():
    found = side_by_side(none="the big sea", attention="the big season", all="the big sea")
    parting = found.parting("attention", "none")
    assert (parting.token, parting.character, parting.same) == (11, 8, False)
    assert found.parting("all", "none").same
    with pytest.raises(SettingError, match="no answer of 'ffn'"):
        found.parting("ffn", "none")


@pytest.mark.parametrize(
    ("text", "against"),
    [
        *(("a big sea", "a sea"), ("", "all gone"), ("new", ""), ("one, two.\nthree", "one two three")),
        *(("same", "same"), ("a b.", "a b c d."), (" a\tb \n", "a b"), ("a\n\nb", "\na b\n "), ("a,b", "a , b")),
    ],
)
def test_a_diff_holds_both_texts_with_their_white_space(text, against):
    for one, other in ((text, against), (against, text)):
        parts = word_diff(one, other)
        assert "".join(part.text for part in parts if part.kind != "left out") == one
        assert "".join(part.text for part in parts if part.kind != "added") == other


@pytest.mark.parametrize(
    ("text", "against", "plain", "markdown", "page"),
    [
        ("a b.", "a b c d.", "a b [-c d-].", "a b ~~c d~~.", "a b<del> c d</del>."),
        ("a b c d.", "a b.", "a b {+c d+}.", "a b **c d**.", "a b<ins> c d</ins>."),
        (
            "Blue light, with",
            "Blue light has a, with",
            "Blue light [-has a-], with",
            "Blue light ~~has a~~, with",
            None,
        ),
        ("Blue sky", "Red sky", "[-Red-] {+Blue+} sky", "~~Red~~ **Blue** sky", "<del>Red</del> <ins>Blue</ins> sky"),
        ("Blue", "Red", "[-Red-] {+Blue+}", "~~Red~~ **Blue**", "<del>Red</del> <ins>Blue</ins>"),
        ("x/b", "x/a", "x/[-a-] {+b+}", "x/~~a~~ **b**", "x/<del>a</del> <ins>b</ins>"),
        ("more.", "more than red.", "more [-than red-].", "more ~~than red~~.", "more<del> than red</del>."),
        ("sea\nblue", "sea  blue", "sea\nblue", "sea  \n> blue", "sea<ins>\n</ins>blue"),
    ],
)
def test_a_diff_glues_no_words_in_any_rendering(text, against, plain, markdown, page):
    found = side_by_side(none=against, all=text)
    assert plain_answers(found, "none").endswith(f"\n{plain}\n")
    assert f"\n> {markdown}  \n" in found.to_markdown("none")
    assert page is None or page in found.to_html("none")


def test_json_is_json():
    found = side_by_side(none="a", all="b").to_json()
    assert json.loads(json.dumps(found)) == found
    assert found["answers"][1]["text"] == "b"
    assert found["messages"] == [{"role": "user", "content": "a prompt"}]


NASTY = "<script>alert(1)</script> **bold** [a](javascript:x) | cell\n# head\n```\ncode <b>"


def test_html_is_text():
    page = side_by_side(none="plain", all=NASTY).to_html(against="none")
    assert "<script" not in page
    assert "<b>" not in page.replace("<b>User</b>", "")
    assert "&lt;script&gt;" in page
    assert "<del>plain</del>" in page


def test_markdown_is_text():
    found = side_by_side(none="plain", all=NASTY)
    plain, marked = found.to_markdown(), found.to_markdown(against="none")
    assert f"````text\n{NASTY}\n````" in plain
    assert "<script" not in marked
    assert "\\[a\\]" in marked
    assert "~~plain~~" in marked
    assert "| none (base) | 5 | 10.0 | 1.50 | -0.60 | -0.60 |" in plain
    assert "log-likelihood per token by all" in plain
    assert found.to_markdown(against="BASE") == marked
    with pytest.raises(SettingError, match="no answer of 'ffn'"):
        found.to_markdown(against="ffn")
