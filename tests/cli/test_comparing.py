"""`taia compare`: columns in a terminal, text in a pipe, files of prompts that go on where they ended."""

import io
import json
import os
import pty
import re
import resource
import select
import shutil
import signal
import socket
import sys
import termios
import threading
from pathlib import Path

import pytest
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import taia_hub
from taia_hub import cli
from taia_hub.cli.comparing import split_words
from taia_hub.cli.shared import say_device
from taia_hub.compare import Comparison, compare, stream_compare
from taia_hub.compare.comparison import ComparedAnswer
from taia_hub.compare.models import find_candidates
from taia_hub.compare.terminal import LiveColumns, LiveText, make_console, plain_answers, safe_text
from taia_hub.errors import ConfigError, RepositoryError

MODES = ["none", "attention", "all"]
EVIL = "[bold red]x[/] :smile: \x1b[31mred\x1b]0;title\x07 \x1b[2J\x9b5m\x08\u202e <script>alert(1)</script>\nend"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def taia(capsys):
    """Runs `taia compare` in this process; returns (exit status, standard output, standard error)."""

    def run(*words):
        capsys.readouterr()
        try:
            cli.main(["compare", *map(str, words)])
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def terminal(taia, monkeypatch):
    """Runs `taia compare` on a terminal of a width; returns (exit status, everything that was sent to it)."""
    monkeypatch.setattr("taia_hub.compare.terminal._SECONDS_A_FRAME", 0)

    def run(*words, columns=120, **environment):
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
            monkeypatch.delenv(name, raising=False)
        variables = {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "40", **environment}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        screen = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", screen)
            status, *_ = taia(*words)
        return status, screen.getvalue()

    return run


@pytest.fixture
def generated(monkeypatch):
    """Counts the batches that are generated."""
    calls = []
    whole = transformers.GenerationMixin._sample

    def counted(self, *positional, **keywords):
        calls.append(1)
        return whole(self, *positional, **keywords)

    monkeypatch.setattr(transformers.GenerationMixin, "_sample", counted)
    return calls


@pytest.fixture(scope="module")
def reference(_published):
    return AutoModelForCausalLM.from_pretrained(_published.taia), AutoTokenizer.from_pretrained(_published.taia)


def prompts(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- One prompt ----------------------------------------------------------------------------------------------------
def test_a_pipe_gets_the_answers_one_after_the_other(taia, online, reference):
    status, out, err = taia(online.taia, "--prompt", "the sea", "--max-new-tokens", 6)
    assert status == 0, err
    expected = compare(*reference, "the sea", MODES, max_new_tokens=6, do_sample=False)
    names = {"none": "none (base)", "attention": "attention (TAIA)", "all": "all (vanilla)"}
    texts = [f"[{names[answer.mode]}]\n{answer.text.strip()}\n\n" for answer in expected.answers]
    assert out.startswith("".join(texts))
    assert not CONTROL.search(out)
    figures, likelihoods = (table.splitlines() for table in re.split(r"\n\s*\n", out.rstrip())[-2:])
    rows = [re.split(r"\s{2,}", line.strip()) for line in figures[1:]]
    assert [row[:2] for row in rows] == [[names[answer.mode], str(len(answer.tokens))] for answer in expected.answers]
    assert f"after {expected.parting('all', 'none').token}" in figures[-1]
    assert likelihoods[0].split() == ["log-likelihood", "per", "token", "by", *MODES]
    last = expected.answer("all")
    assert likelihoods[3].split()[-2:] == [
        f"{last.log_likelihoods[mode] / len(last.tokens):.2f}" for mode in ("attention", "all")
    ]
    assert "no chat template" in err


def test_without_measures_nothing_is_measured(taia, online):
    _, out, _ = taia(online.taia, "--prompt", "the", "--max-new-tokens", 3, "--no-measures", "--json")
    assert not any(answer["entropy"] or answer["log_likelihoods"] for answer in json.loads(out)["answers"])


def test_options_reach_the_comparison(taia, online, reference, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("the sea"))
    words = ["--mode", "all", "--mode", '{"attention": 1, "ffn": 0.5}', "--system", "a b", "--raw"]
    words += ["--temperature", 0.8, "--top-p", 0.9, "--top-k", 20, "--seed", 4, "--max-new-tokens", 9, "--json"]
    status, out, _ = taia(online.taia, "--prompt", "-", *words)
    assert status == 0
    modes, sampling = ["all", {"attention": 1, "ffn": 0.5}], {"temperature": 0.8, "top_p": 0.9, "top_k": 20}
    options = {"system": "a b", "chat": False, "seed": 4, "max_new_tokens": 9, "do_sample": True, **sampling}
    expected = compare(*reference, "the sea", modes, **options).to_json()
    found = json.loads(out)
    assert [answer["tokens"] for answer in found["answers"]] == [answer["tokens"] for answer in expected["answers"]]
    assert found["messages"] == expected["messages"]
    assert found["generation"] == expected["generation"]
    assert found["model"] == online.taia
    assert found["revision"] == online.api.model_info(online.taia).sha


@pytest.mark.parametrize(
    ("name", "words", "start"),
    [
        ("a.json", [], '{\n  "messages"'),
        ("a.md", [], "**User**"),
        ("a.html", [], "<!doctype html>"),
        ("a.txt", [], "[none (base)]\n"),
        ("a.txt", ["--format", "markdown"], "**User**"),
    ],
)
def test_a_result_goes_to_a_file_in_the_format_of_its_name(taia, online, tmp_path, name, words, start):
    out = tmp_path / name
    status, shown, err = taia(online.taia, "--prompt", "the", "--max-new-tokens", 3, "--out", out, *words)
    assert (status, shown) == (0, "")
    assert f"Written to '{out}'." in err
    assert out.read_text().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_diff_is_marked_where_there_is_no_colour(taia, online, reference):
    _, out, _ = taia(online.taia, "--prompt", "the", "--max-new-tokens", 8, "--against", "none")
    expected = compare(*reference, "the", MODES, max_new_tokens=8, do_sample=False)
    assert out.startswith(plain_answers(expected, "none"))
    assert "{+" in out
    assert "[-" in out


def test_marks_keep_the_space_outside_them():
    made = Comparison((), (ComparedAnswer("none", "none", "a small sea"), ComparedAnswer("all", "all", "a big sea")))
    assert plain_answers(made, "none") == "[none (base)]\na small sea\n\n[all (vanilla)]\na [-small-] {+big+} sea\n"
    assert plain_answers(made, "BASE") == plain_answers(made, "none")


# --- In a terminal -------------------------------------------------------------------------------------------------
def frames(screen):
    """Splits what was sent into frames: each begins where the cursor returned over the one before."""
    found = re.split(r"\r\x1b\[2K(?:\x1b\[1A\x1b\[2K)+", screen)
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", frame) for frame in found]


def test_columns_grow_token_by_token(terminal, online, reference):
    status, screen = terminal(online.taia, "--prompt", "the sea", "--max-new-tokens", 6)
    assert status == 0
    seen = frames(screen)
    expected = compare(*reference, "the sea", MODES, max_new_tokens=6, do_sample=False)
    longest = max(len(answer.tokens) for answer in expected.answers)
    for tokens in range(1, longest + 1):
        assert any(f"{tokens} tokens" in frame for frame in seen), tokens
    assert "1 tokens" in seen[0]
    titles = next(line for line in seen[-1].splitlines() if "attention" in line)
    assert titles.index("none") < titles.index("attention") < titles.index("all")
    assert len(titles) <= 120
    for answer in expected.answers:
        assert all(word in seen[-1] for word in answer.text.split())


def test_narrow_columns_are_stacked(terminal, online):
    _, screen = terminal(online.taia, "--prompt", "the", "--max-new-tokens", 3, columns=80)
    (titles,) = [line for line in frames(screen)[-1].splitlines() if "attention (TAIA) ─" in line]
    assert "none (base) ─" not in titles
    _, screen = terminal(online.taia, "--prompt", "the", "--max-new-tokens", 3, columns=84)
    (titles,) = [line for line in frames(screen)[-1].splitlines() if "attention (TAIA) ─" in line]
    assert "none (base) ─" in titles


@pytest.mark.parametrize("columns", [80, 110])
def test_four_columns_that_do_not_fit_stand_two_by_two_and_no_figure_is_cut(terminal, online, columns):
    words = [word for mode in ("none", "attention", "ffn", "all") for word in ("--mode", mode)]
    _, screen = terminal(online.taia, "the", "--max-new-tokens", 3, *words, columns=columns)
    last = frames(screen)[-1]
    rows = [line for line in last.splitlines() if "─" in line and "(" in line]
    assert [[name for name in ("base", "TAIA", "TAIF", "vanilla") if f"({name}) ─" in row] for row in rows] == [
        ["base", "TAIA"],
        ["TAIF", "vanilla"],
    ]
    assert max(map(len, last.splitlines())) <= columns
    assert "…" not in last
    assert "log-likelihood per token by" in last


def test_a_long_answer_shows_its_end_while_it_grows_and_all_of_it_when_done(terminal, online, monkeypatch):
    text = "\n".join(f"line{n}." for n in range(60))
    monkeypatch.setattr("taia_hub.compare.streaming.GrowingText._decode", lambda self, tokens: text * bool(tokens))
    _, screen = terminal(online.taia, "--prompt", "the", "--max-new-tokens", 3, LINES="20")
    first, last = frames(screen)[0], frames(screen)[-1]
    assert "line59." in first
    assert "line0." not in first
    assert len(first.splitlines()) <= 20
    assert "line0." in last
    assert "line59." in last


def test_the_diff_is_coloured_in_a_terminal_and_marked_without_colour(terminal, online):
    words = [online.taia, "--prompt", "the", "--max-new-tokens", 8, "--against", "none"]
    _, screen = terminal(*words)
    assert "\x1b[4;36m" in screen
    assert "\x1b[9;31m" in screen
    assert "{+" not in screen
    _, screen = terminal(*words, NO_COLOR="1")
    assert "{+" in frames(screen)[-1]


def test_a_dumb_terminal_gets_text(terminal, online):
    status, screen = terminal(online.taia, "--prompt", "the", "--max-new-tokens", 3, TERM="dumb")
    assert status == 0
    assert screen.startswith("[none (base)]\n")
    assert not CONTROL.search(screen)


@pytest.mark.parametrize(
    "words", [[], ["--against", "none"], ["--format", "markdown"], ["--format", "html"], ["--json"]]
)
def test_an_answer_cannot_act(taia, terminal, online, monkeypatch, words):
    monkeypatch.setattr("taia_hub.compare.streaming.GrowingText._decode", lambda self, tokens: EVIL * bool(tokens))
    words = [online.taia, "--prompt", "the", "--max-new-tokens", 2, *words]
    _, out, _ = taia(*words)
    assert not CONTROL.search(out)
    assert "smile" in out
    _, screen = terminal(*words)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", frames(screen)[-1])
    assert not CONTROL.search(shown)
    assert "\x1b]" not in screen
    assert "\x1b[2J" not in screen
    if "--format" not in words and "--json" not in words:
        assert out.count("[bold red]x[/] :smile: red") == 3
        assert "[bold red]x[/]" in shown
        assert ":smile:" in shown
    if "html" in words:
        assert "<script" not in out


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a\x1b[1;31mb\x1b[0m", "ab"),
        ("a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "alink"),
        ("a\x1b]0;never ended\nb", "a0;never ended\nb"),
        ("a\r\nb\rc\td", "a\nb\nc\td"),
        ("a\x9b31mb\x00\x07", "ab"),
        ("a\x1b", "a"),
        ("né 漢字 👍 \u200d", "né 漢字 👍 \u200d"),
    ],
)
def test_safe_text(text, safe):
    assert safe_text(text) == safe


@pytest.mark.parametrize(
    ("texts", "written"),
    [
        (["", " ", " a", " a b ", " a b \n\n", " a b \n\nc", " a b \n\nc "], "a b \n\nc\n"),
        (["a\x1b", "a\x1b[3", "a\x1b[31", "a\x1b[31m", "a\x1b[31mb"], "ab\n"),
        (["a\x1b]0;t", "a\x1b]0;title\x07", "a\x1b]0;title\x07b" + "c" * 80], "ab" + "c" * 80 + "\n"),
        (["one", "other"], "one\nother\n"),
        ([""], "\n"),
    ],
)
def test_a_text_is_written_as_it_grows(texts, written):
    screen = io.StringIO()
    growing = LiveText(screen)
    for text in texts:
        growing.show(text)
    growing.finish(texts[-1])
    assert screen.getvalue() == written


def test_an_interrupt_ends_it_and_writes_no_file(taia, online, tmp_path, monkeypatch):
    class Interrupted:
        def __init__(self, **_):
            raise KeyboardInterrupt

    monkeypatch.setattr("taia_hub.compare.streaming.ComparedAnswer", Interrupted)
    status, out, err = taia(online.taia, "--prompt", "the", "--out", tmp_path / "a.json")
    assert (status, out) == (130, "")
    assert "Stopped" in err
    assert not list(tmp_path.iterdir())


def test_an_interrupt_in_a_pipe_leaves_what_there_is(taia, online, monkeypatch):
    interrupt_after(monkeypatch, 2)
    status, out, err = taia(online.taia, "the sea", "--max-new-tokens", 9, "--json")
    assert status == 130
    assert [len(answer["tokens"]) for answer in json.loads(out)["answers"]] == [2, 2, 2]
    assert "Stopped" in err


def interrupt_after(monkeypatch, states):
    """Lets a comparison be interrupted as its consumer has seen a number of its states."""
    whole = stream_compare

    def interrupted(*positional, **keywords):
        for at, state in enumerate(whole(*positional, **keywords), 1):
            yield state
            if at == states:
                raise KeyboardInterrupt

    for place in ("taia_hub.compare.stream_compare", "taia_hub.compare.models.stream_compare"):
        monkeypatch.setattr(place, interrupted)


def test_the_keys_that_are_typed_do_not_move_the_frame(monkeypatch):
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb+", buffering=0) as screen, os.fdopen(theirs, "r") as keyboard:
        before = termios.tcgetattr(keyboard)
        monkeypatch.setattr(sys, "stdin", keyboard)
        with LiveColumns(make_console(Terminal())):
            screen.write(b"\x03")
            assert not select.select([screen], [], [], 0.2)[0]  # no ^C came back
        assert termios.tcgetattr(keyboard) == before
        screen.write(b"x")
        assert select.select([screen], [], [], 5)[0]


def test_a_shorter_answer_than_was_asked_for_is_said(taia, online):
    _, _, err = taia(online.taia, "the sea", "--max-new-tokens", 5000, "--mode", "none", "--no-measures")
    assert re.search(r"The answers end after 12\d tokens, not 5,000: the model takes 128 with the prompt.", err)
    _, _, err = taia(online.taia, "the sea", "--max-new-tokens", 5, "--mode", "none", "--no-measures")
    assert "end after" not in err


def test_the_papers_names_are_modes(taia, online):
    words = ["--mode", "TAIA", "--mode", "base", "--mode", "vanilla", "--against", "Base", "--max-new-tokens", 2]
    status, out, err = taia(online.taia, "the", *words, "--json")
    assert status == 0, err
    assert [answer["mode"] for answer in json.loads(out)["answers"]] == ["attention", "none", "all"]


# --- Several models ------------------------------------------------------------------------------------------------
def test_several_models_stand_side_by_side(taia, online, reference):
    options = ["--max-new-tokens", 6]
    status, out, err = taia(online.taia, online.adapter, online.base, "the sea", *options, "--json")
    assert status == 0, err
    found = json.loads(out)
    labels = ["model-taia: attention", "adapter: attention", "base"]
    assert [answer["mode"] for answer in found["answers"]] == labels
    assert [answer["model"] for answer in found["answers"]] == [online.taia, online.adapter, online.base]
    expected = compare(*reference, "the sea", ["attention", "none"], max_new_tokens=6, do_sample=False)
    for answer, mode in zip(found["answers"], ("attention", "attention", "none"), strict=True):
        assert answer["tokens"] == list(expected.answer(mode).tokens)
        assert answer["entropy"] == pytest.approx(expected.answer(mode).entropy)
        assert answer["log_likelihoods"] == {}
    assert any("one model is in memory at a time" in note for note in found["notes"])


def test_each_model_answers_in_each_mode_that_is_asked_for(taia, online):
    words = [online.taia, online.adapter, online.base, "--prompt", "the", "--max-new-tokens", 3, "--mode", "none"]
    status, out, err = taia(*words, "--mode", "all", "--against", "base")
    assert status == 0, err
    heads = re.findall(r"^\[(.*)\]$", out, re.MULTILINE)
    pairs = [f"{name}: {mode}" for name in ("model-taia", "adapter") for mode in ("none (base)", "all (vanilla)")]
    assert heads == [*pairs, "base"]
    assert "parts from base" in out
    assert re.search(r"adapter: none \(base\) .*never", out)
    assert re.search(r"adapter: all \(vanilla\) .*after \d+ characters", out)
    assert "log-likelihood" not in out


def test_models_grow_one_after_the_other_in_a_terminal(terminal, online):
    _, screen = terminal(online.taia, online.base, "the", "--max-new-tokens", 3)
    first, last = frames(screen)[0], frames(screen)[-1]
    assert "model-taia: attention (TAIA) ─" in first
    assert first.count("0 tokens") == 1
    assert "0 tokens" not in last


def test_models_of_one_name_are_told_apart(pico, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a/lora", "b/lora", "c/other"):
        shutil.copytree(pico.adapter("llama"), folder)
    found = find_candidates(["a/lora", "b/lora/", "c/other", str(pico.base("llama"))])
    titles = [one.title for one in found]
    assert titles == ["a/lora", "b/lora/", "other", "llama"]
    assert found[3].labels == ("llama",)
    with pytest.raises(ConfigError, match="was given twice"):
        find_candidates(["a/lora", "./a/lora"])


@pytest.mark.parametrize(
    ("words", "models", "prompt"),
    [
        (["a/b"], ["a/b"], None),
        (["a/b", "c/d"], ["a/b", "c/d"], None),
        (["a/b", "here", "Why?"], ["a/b", "here"], "Why?"),
        (["a/b", "one/two three"], ["a/b"], "one/two three"),
        (["a/b", "-"], ["a/b"], "-"),
        (["a/b", ""], ["a/b"], ""),
        (["a/b", "x" * 5000], ["a/b"], "x" * 5000),
        (["what it is", "c/d", "Hello"], ["what it is", "c/d"], "Hello"),
    ],
)
def test_words_are_models_and_a_prompt(tmp_path, monkeypatch, words, models, prompt):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert split_words(words) == (models, prompt)


# --- A file of prompts ---------------------------------------------------------------------------------------------
LINES = [
    {"prompt": "the sea"},
    {"id": "chat", "messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b c"}]},
    {"prompt": "a b c d", "id": 7},
    {"prompt": "the sea"},
]


def test_a_file_gives_a_line_a_prompt_and_a_table(taia, online, reference, tmp_path):
    path = prompts(tmp_path / "prompts.jsonl", *LINES)
    status, out, err = taia(online.taia, "--file", path, "--max-new-tokens", 6)
    assert status == 0, err
    kept = records(tmp_path / "prompts.compared.jsonl")
    assert [record["id"] for record in kept] == [None, "chat", "7", None]
    table, summary, likelihoods = out.split("\n\n")[0], *out.rstrip().split("\n\n")[-2:]
    rows = table.splitlines()
    assert rows[0].split() + rows[1].split() == ["parts", "from", "mode", "tokens", "none", "(base)", "answer"]
    changed, per_token = 0, []
    for at, (record, line) in enumerate(zip(kept, LINES, strict=True)):
        expected = compare(*reference, line.get("prompt", line.get("messages")), MODES, max_new_tokens=6)
        answers = record["comparison"]["answers"]
        assert [answer["tokens"] for answer in answers] == [list(answer.tokens) for answer in expected.answers]
        assert answers[1]["log_likelihoods"]["all"] == pytest.approx(expected.answers[1].log_likelihoods["all"])
        name, *shown = rows[2 + 4 * at : 6 + 4 * at]
        assert name == ("chat", "7")[at - 1] if line.get("id") else name == "the sea"
        last = expected.answer("all")
        assert shown[2].split()[:5] == [
            "all",
            "(vanilla)",
            str(len(last.tokens)),
            "after",
            str(expected.parting("all", "none").token),
        ]
        assert " ".join(last.text.split()) in shown[2]
        changed += last.text != expected.answer("none").text
        per_token.append((last.log_likelihoods["none"], len(last.tokens)))
    assert "The modes answer 4 of 4 prompts differently." in out
    assert summary.splitlines()[-1].split()[:5] == ["all", "(vanilla)", str(changed), "of", "4"]
    mean = sum(one for one, _ in per_token) / sum(tokens for _, tokens in per_token)
    assert likelihoods.splitlines()[-1].split()[:3] == ["all", "(vanilla)", f"{mean:.2f}"]


def test_a_second_run_generates_only_what_is_missing(taia, online, tmp_path, generated):
    path = prompts(tmp_path / "prompts.jsonl", *LINES)
    words = [online.taia, "--file", path, "--max-new-tokens", 4, "--mode", "none", "--mode", '{"ffn@0": 0.5}']
    assert taia(*words)[0] == 0
    assert len(generated) == 4
    out = tmp_path / "prompts.compared.jsonl"
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)

    generated.clear()
    out.write_bytes(b"".join(lines[:2]) + lines[2][:-40])  # as a kill in the middle of a line leaves it
    assert taia(*words)[0] == 0
    assert len(generated) == 2
    assert out.read_bytes().startswith(b"".join(lines[:2]))
    assert [record["key"] for record in records(out)] == [json.loads(line)["key"] for line in lines]

    generated.clear()
    before = out.read_bytes()
    status, shown, _ = taia(*words, "--json")
    assert (status, generated, out.read_bytes()) == (0, [], before)
    found = json.loads(shown)
    assert [one["line"] for one in found["prompts"]] == [1, 2, 3, 4]
    assert found["against"] == "none"

    prompts(path, *LINES, {"prompt": "what ?"})
    assert taia(*words)[0] == 0
    assert len(generated) == 1
    assert len(records(out)) == 5


def test_a_complete_file_needs_no_model(taia, online, tmp_path, monkeypatch):
    path = prompts(tmp_path / "prompts.jsonl", *LINES)
    words = ["--file", path, "--max-new-tokens", 4]
    loaded = []
    whole = cli.comparing.load_model

    def counted(*positional, **keywords):
        loaded.append(positional)
        return whole(*positional, **keywords)

    monkeypatch.setattr("taia_hub.cli.comparing.load_model", counted)
    for model in (online.taia, online.adapter):
        out = ["--out", tmp_path / f"{Path(model).name}.jsonl"]
        status, first, err = taia(model, *words, *out)
        assert (status, len(loaded)) == (0, 1), err
        assert taia(model, *words, *out)[:2] == (0, first)
        assert len(loaded) == 1
        prompts(path, *LINES, {"prompt": f"what of {model} ?"})
        assert taia(model, *words, *out)[0] == 0
        assert taia(model, *words, *out, "--seed", 1)[0] == 1
        assert taia(model, *words, *out, "--dtype", "bfloat16")[0] == 1
        assert len(loaded) == 4
        loaded.clear()
        prompts(path, *LINES)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--seed", 1], "with seed=0, not 1"),
        (["--max-new-tokens", 3], "with max_new_tokens=4, not 3"),
        (["--mode", "all"], "with the modes none, attention, all, not all"),
        (["--raw"], "with chat=True, not False"),
    ],
)
def test_a_file_of_other_settings_is_refused(taia, online, tmp_path, generated, words, what):
    path = prompts(tmp_path / "prompts.jsonl", LINES[0])
    base = [online.taia, "--file", path, "--max-new-tokens", 4]
    assert taia(*base)[0] == 0
    out = tmp_path / "prompts.compared.jsonl"
    before = out.read_bytes()
    generated.clear()
    status, _, err = taia(*base, *words)
    assert (status, generated, out.read_bytes()) == (1, [], before)
    assert what in err
    assert "--overwrite" in err
    assert taia(*base, *words, "--overwrite")[0] == 0
    assert len(records(out)) == len(generated) == 1
    assert out.read_bytes() != before


def test_a_file_of_another_model_is_refused(taia, online, tmp_path, repo_id):
    path = prompts(tmp_path / "prompts.jsonl", LINES[0])
    words = ["--file", path, "--max-new-tokens", 2, "--no-measures"]
    assert taia(online.taia, *words)[0] == 0
    adapter = f"{repo_id}-adapter"
    online.push_adapter(adapter, r=2)
    taia_hub.TAIAForCausalLM.from_adapter(online.base, adapter).push_to_hub(repo_id)
    status, _, err = taia(repo_id, *words)
    assert status == 1
    assert "of another model: its adapter" in err
    assert "--overwrite" in err


@pytest.mark.parametrize("content", [b"notes of mine\n", b"notes of mine", b'{"prompt": "the"}\n', b"[]\n", b"\xff\n"])
def test_a_file_that_is_no_comparison_is_left_alone(taia, online, tmp_path, generated, content):
    path, out = prompts(tmp_path / "prompts.jsonl", LINES[0]), tmp_path / "out.jsonl"
    out.write_bytes(content)
    status, _, err = taia(online.taia, "--file", path, "--max-new-tokens", 2, "--out", out)
    assert (status, generated, out.read_bytes()) == (1, [], content)
    assert f"{out}:1: this is no comparison" in err


def test_the_prompts_are_never_overwritten(taia, online, tmp_path):
    path = prompts(tmp_path / "prompts.jsonl", LINES[0])
    status, _, err = taia(online.taia, "--file", path, "--out", path, "--overwrite")
    assert status == 1
    assert "is the file of the prompts" in err
    assert records(path) == [LINES[0]]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "no JSON"),
        ("[]", "a JSON list instead of an object"),
        ({}, "'prompt' is missing"),
        ({"prompt": " "}, "'prompt' is empty"),
        ({"prompt": 3}, "'prompt' is 3, not text"),
        ({"prompt": "a", "messages": []}, "both 'prompt' and 'messages'"),
        ({"messages": "a"}, "'messages' is 'a', not a list"),
        ({"messages": []}, "The prompt is empty"),
        ({"messages": [{"role": "user"}]}, "Message 1 is {'role': 'user'}"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "Message 1 has the role 'bot'"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "The prompt is empty",
        ),
        ({"prompt": "a", "id": ["x"]}, "'id' is ['x'], neither text nor a whole number"),
        ({"prompt": "a", "id": "first"}, "the id 'first' is that of line 1"),
        ({"prompt": "\ud800"}, "is no Unicode"),
        ({"prompt": "a b " * 40}, "too long"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_run(taia, online, tmp_path, generated, line, reason):
    line = line if isinstance(line, str) else json.dumps(line)
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"prompt": "a", "id": "first"}) + "\n\n" + line + "\n")
    status, _, err = taia(online.taia, "--file", path, "--max-new-tokens", 2)
    assert status == 1
    assert f"{path}:3: " in err
    assert reason in err
    assert "nothing was run" in err
    assert not generated
    assert [found.name for found in tmp_path.iterdir()] == ["bad.jsonl"]


def test_a_bad_mode_does_not_throw_earlier_results_away(taia, online, tmp_path):
    path = prompts(tmp_path / "prompts.jsonl", LINES[0])
    words = [online.taia, "--file", path, "--max-new-tokens", 2]
    assert taia(*words)[0] == 0
    before = (tmp_path / "prompts.compared.jsonl").read_bytes()
    status, _, err = taia(*words, "--mode", '{"ffn@99": 1}', "--overwrite")
    assert status == 1
    assert "ffn@99" in err
    assert (tmp_path / "prompts.compared.jsonl").read_bytes() == before


def test_an_interrupted_run_says_how_to_go_on_and_does(taia, online, tmp_path, generated):
    """Interrupted by the signal itself, wherever the run stands; it needs no process of its own for that."""
    path = prompts(tmp_path / "prompts.jsonl", *({"prompt": "the sea", "id": n} for n in range(400)))
    out = tmp_path / "prompts.compared.jsonl"
    words = [online.taia, "--file", str(path), "--max-new-tokens", "20", "--mode", "none", "--no-measures"]
    ended = threading.Event()

    def interrupt():
        while not ended.wait(0.01):
            if out.exists() and out.stat().st_size > 1000:
                return signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a runner in the background may ignore it
    watching, others = threading.Thread(target=interrupt), set(threading.enumerate())
    watching.start()
    try:
        status, _, err = taia(*words)
    finally:
        ended.set()
        watching.join()
        signal.signal(signal.SIGINT, before)
    assert status == 130, err
    kept = records(out)  # every line is whole
    assert 0 < len(kept) < 400
    assert f"Stopped: {len(kept)} of 400 prompts are in '{out}'. The same command goes on from there." in err
    assert "Traceback" not in err
    prompts(path, *({"prompt": "the sea", "id": n} for n in range(len(kept) + 2)))
    for thread in set(threading.enumerate()) - others:  # what was interrupted may be about to begin an answer
        thread.join(60)
    generated.clear()
    assert taia(*words)[0] == 0
    assert len(generated) == 2
    assert [record["id"] for record in records(out)] == [str(n) for n in range(len(kept) + 2)]


# --- The page ------------------------------------------------------------------------------------------------------
def test_ui_opens_the_page(taia, monkeypatch):
    calls = []
    monkeypatch.setattr("taia_hub.page.launch_page", lambda *args, **keywords: calls.append((args, keywords)))
    words = ["--revision", "v1", "--mode", "none", "--mode", "ffn", "--port", 7861, "--share", "--token", "secret"]
    monkeypatch.setenv("TAIA_VOTES", "/srv/own/votes.jsonl")
    status, _, err = taia("org/model", "--ui", *words)
    assert status == 0
    assert "Votes are kept in /srv/own/votes.jsonl" in err
    assert str(calls[0][1].pop("settings").votes) == "/srv/own/votes.jsonl"
    assert calls[0][1].pop("on_load") is say_device
    options = {
        "port": 7861,
        "share": True,
        "device": None,
        "revision": "v1",
        "token": "secret",
        "trust_remote_code": False,
    }
    assert calls == [(("org/model",), {"modes": ["none", "ffn"], **options})]


def test_a_busy_port_is_told_before_the_model_loads(taia):
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        status, _, err = taia("no/such-model", "--ui", "--port", port)
    assert status == 1
    assert f"Port {port} on 127.0.0.1 is in use" in err
    assert "such-model" not in err


# --- Bad input -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ([], "There is no prompt.", "give --prompt TEXT, --file prompts.jsonl, or --ui"),
        (["--prompt", "a", "--file", "x"], "--prompt and --file do not go together", "or --ui"),
        (["--prompt", "a", "--ui"], "--prompt and --ui do not go together", "or --ui"),
        (["--prompt", " "], "The prompt is empty.", "--prompt"),
        ([" "], "The prompt is empty.", "--prompt"),
        (["a", "--prompt", "b"], "The prompt came twice", "Leave one out."),
        (["why", "so", "blue"], "There are 3 prompts: 'why', 'so', 'blue'.", '"why so blue"'),
        (["and/or"], "There is no prompt.", "'and/or' was taken for a model"),
        (["./lora", "a"], "'./lora' is no folder here", "--prompt"),
        (["runs/a/lora", "a"], "'runs/a/lora' is no folder here", "--prompt"),
        (["other/model", "--ui"], "--ui takes one model, and 2 came.", "Name one."),
        (["other/model", "--file", "good.jsonl"], "--file takes one model, and 2 came.", "Name one."),
        (["other/model", "a", "--revision", "v1"], "--revision takes one model, and 2 came.", "Name one."),
        (["org/model", "a"], "The model 'org/model' was given twice.", "Give each once"),
        (["a", "--ui"], "--prompt and --ui do not go together", "or --ui"),
        (["--prompt", "\udcff"], "not UTF-8", "iconv"),
        (["--prompt", "a", "--mode", "atention"], "Did you mean 'attention'?", "Choose one of"),
        (["--prompt", "a", "--mode", "{"], "is no JSON", "Quote it"),
        (["--prompt", "a", "--against", "ffn"], "--against 'ffn' is none of the modes", "Choose none, attention, all."),
        (["--prompt", "a", "--format", "htm"], "Did you mean 'html'?", "Choose text, json, markdown, html."),
        (["--prompt", "a", "--format", "html", "--json"], "do not go together", "Leave one out"),
        (["--prompt", "a", "--top-k", "4"], "--top-k has no meaning without sampling", "--temperature"),
        (["--prompt", "a", "--dtype", "float3"], "Did you mean 'float32'?", "Choose"),
        (["--prompt", "a", "--overwrite"], "--overwrite has no meaning with --prompt", "Leave it out."),
        (["--prompt", "a", "--out", "no/such/a.json"], "There is no folder 'no/such'", "Make it"),
        (["--prompt", "a", "--out", "/dev/null"], "'/dev/null' is no regular file", "Name a file"),
        (["--prompt", "a", "--out", "."], "'.' is a folder", "Name a file"),
        (["--file", "none.jsonl"], "'none.jsonl' cannot be read", "Check the path"),
        (["--file", "empty.jsonl"], "'empty.jsonl' is empty", "One item a line"),
        (["--file", "good.jsonl", "--format", "html"], "--format html has no meaning with --file", "Leave it out."),
        (["--file", "good.jsonl", "--out", "/dev/full/a"], "There is no folder", "Make it"),
        (["--ui", "--max-new-tokens", "4"], "--max-new-tokens has no meaning with --ui", "Leave it out."),
        (["--ui", "--json"], "--json has no meaning with --ui", "Leave it out."),
        (["--ui", "--mode", '{"ffn": 0.5}'], "The page cannot begin with the mode 'ffn=0.5'", "Choose"),
    ],
)
def test_bad_input_is_told_before_a_model_is_loaded(taia, tmp_path, monkeypatch, words, message, hint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    prompts(tmp_path / "good.jsonl", LINES[0])
    monkeypatch.setattr("taia_hub.cli.comparing.load_model", lambda *_, **__: pytest.fail("A model was loaded."))
    status, out, err = taia("org/model", *words)
    assert (status, out) == (1, "")
    assert message in err
    assert hint in err.partition("Hint: ")[2]
    assert "Traceback" not in err


def test_what_is_no_model_is_told_before_one_is_loaded(taia, online, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr("taia_hub.cli.comparing.load_model", lambda *_, **__: pytest.fail("A model was loaded."))
    for word, message in (("org/no-such", "org/no-such"), ("docs", "'docs' holds neither a config.json")):
        status, _, err = taia(online.taia, word, "a prompt")
        assert status == 1
        assert message in err
        assert "give such a prompt with --prompt" in err
    status, _, err = taia(online.taia, online.adapter, "a prompt", "--against", "adaptr: attention")
    assert status == 1
    assert "is none of the columns. Did you mean 'adapter: attention'?" in err
    status, _, err = taia(online.taia, online.adapter, "a prompt", "--mode", "atention")
    assert status == 1
    assert "Did you mean 'attention'?" in err


def test_bad_input_that_only_the_model_tells(taia, online):
    status, _, err = taia(online.taia, "--prompt", "a b " * 40)
    assert status == 1
    assert "too long" in err
    assert "Shorten it" in err
    status, _, err = taia(online.taia, "--prompt", "a", "--mode", "all", "--mode", "all")
    assert status == 1
    assert "The mode 'all' was given twice." in err
    status, _, err = taia(online.base, "--prompt", "a")
    assert status == 1
    assert "is no TAIA repository" in err
    assert "taia create" in err


def test_a_full_disk_is_told_and_the_run_goes_on_afterwards(taia, online, tmp_path, monkeypatch):
    path, out = prompts(tmp_path / "prompts.jsonl", *LINES), tmp_path / "out.jsonl"
    words = [online.taia, "--file", path, "--max-new-tokens", 2, "--no-measures", "--out", out]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(*positional, **keywords):
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
        return stream_compare(*positional, **keywords)

    try:
        with monkeypatch.context() as patch:
            patch.setattr("taia_hub.compare.files.stream_compare", limited)
            status, _, err = taia(*words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1
    assert f"'{out}' cannot be written: File too large" in err
    assert out.stat().st_size == 3000  # with half a line at its end
    assert taia(*words)[0] == 0
    assert len(records(out)) == 4


def test_help(taia):
    status, out, _ = taia("--help")
    assert status == 0
    assert "--against" in out


def test_two_runs_do_not_write_to_one_file(tmp_path):
    from taia_hub.compare.keeping import Comparisons, Run
    from taia_hub.results import ModelIdentity

    run = Run(ModelIdentity("m", None, "b", None, None, "float32"), ("none",), {})
    with Comparisons(tmp_path / "out.jsonl", run), pytest.raises(RepositoryError, match="Another run writes to"):
        Comparisons(tmp_path / "out.jsonl", run).__enter__()
    with Comparisons(tmp_path / "out.jsonl", run):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
