"""`taia compare`: columns in a terminal, text in a pipe, files of prompts that go on where they ended."""

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import taia_hub
from taia_hub import cli
from taia_hub.compare import Comparison, compare, stream_compare
from taia_hub.compare.comparison import ComparedAnswer
from taia_hub.compare.terminal import plain_answers, safe_text
from taia_hub.errors import RepositoryError

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
    texts = [f"[{answer.mode}]\n{answer.text.strip()}\n\n" for answer in expected.answers]
    assert out.startswith("".join(texts))
    assert not CONTROL.search(out)
    rows = [line.split() for line in out.splitlines()[-3:]]
    assert [row[:2] for row in rows] == [[answer.mode, str(len(answer.tokens))] for answer in expected.answers]
    assert f"after {expected.parting('all', 'none').token}" in out.splitlines()[-1]
    assert f"{expected.answer('all').log_likelihoods['attention']:.1f}" in rows[2]
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
        ("a.txt", [], "[none]\n"),
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
    assert plain_answers(made, "none") == "[none]\na small sea\n\n[all]\na [-small-] {+big+} sea\n"


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
    (titles,) = [line for line in frames(screen)[-1].splitlines() if "attention ─" in line]
    assert "none ─" not in titles
    _, screen = terminal(online.taia, "--prompt", "the", "--max-new-tokens", 3, columns=84)
    (titles,) = [line for line in frames(screen)[-1].splitlines() if "attention ─" in line]
    assert "none ─" in titles


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
    assert screen.startswith("[none]\n")
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


def test_an_interrupt_ends_it_and_writes_no_file(taia, online, tmp_path, monkeypatch):
    class Interrupted:
        def __init__(self, **_):
            raise KeyboardInterrupt

    monkeypatch.setattr("taia_hub.compare.streaming.ComparedAnswer", Interrupted)
    status, out, err = taia(online.taia, "--prompt", "the", "--out", tmp_path / "a.json")
    assert (status, out) == (130, "")
    assert "Stopped" in err
    assert not list(tmp_path.iterdir())


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
    table = out.splitlines()
    assert table[0].split() == ["prompt", *MODES]
    for record, line, row in zip(kept, LINES, table[1:5], strict=True):
        expected = compare(*reference, line.get("prompt", line.get("messages")), MODES, max_new_tokens=6)
        answers = record["comparison"]["answers"]
        assert [answer["tokens"] for answer in answers] == [list(answer.tokens) for answer in expected.answers]
        assert answers[1]["log_likelihoods"]["all"] == pytest.approx(expected.answers[1].log_likelihoods["all"])
        assert (
            f"{len(expected.answer('all').tokens)} tokens, parts after {expected.parting('all', 'none').token}" in row
        )
    assert table[1].startswith("the sea")
    assert table[2].startswith("chat")
    assert table[5].startswith("mean tokens/s")


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
        ({"prompt": "\ud800"}, "half of a character"),
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


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on_and_does(taia, online, tmp_path, generated):
    path = prompts(tmp_path / "prompts.jsonl", *({"prompt": "the sea", "id": n} for n in range(400)))
    out = tmp_path / "prompts.compared.jsonl"
    words = [online.taia, "--file", str(path), "--max-new-tokens", "20", "--mode", "none", "--no-measures"]
    environment = {**os.environ, "PYTHONPATH": str(Path(taia_hub.__file__).parents[1])}
    command = [sys.executable, "-m", "taia_hub.cli", "compare", *words]

    def interruptible():  # a runner in the background may ignore SIGINT, and children inherit that
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
    ) as process:
        try:
            until = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < until:
                if out.exists() and out.stat().st_size > 1000:
                    break
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, err
    kept = records(out)  # every line is whole
    assert 0 < len(kept) < 400
    assert f"Stopped: {len(kept)} of 400 prompts are in '{out}'. The same command goes on from there." in err
    assert "Traceback" not in err
    prompts(path, *({"prompt": "the sea", "id": n} for n in range(len(kept) + 2)))
    assert taia(*words)[0] == 0
    assert len(generated) == 2
    assert [record["id"] for record in records(out)] == [str(n) for n in range(len(kept) + 2)]


# --- The page ------------------------------------------------------------------------------------------------------
def test_ui_opens_the_page(taia, monkeypatch):
    calls = []
    monkeypatch.setattr("taia_hub.page.launch_page", lambda *args, **keywords: calls.append((args, keywords)))
    words = ["--revision", "v1", "--mode", "none", "--mode", "ffn", "--port", 7861, "--share", "--token", "secret"]
    assert taia("org/model", "--ui", *words)[0] == 0
    options = {
        "port": 7861,
        "share": True,
        "device": None,
        "revision": "v1",
        "token": "secret",
        "trust_remote_code": False,
    }
    assert calls == [(("org/model",), {"modes": ["none", "ffn"], **options})]


# --- Bad input -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ([], "There is no prompt.", "Give --prompt TEXT, --file prompts.jsonl, or --ui"),
        (["--prompt", "a", "--file", "x"], "--prompt and --file do not go together", "or --ui"),
        (["--prompt", "a", "--ui"], "--prompt and --ui do not go together", "or --ui"),
        (["--prompt", " "], "The prompt is empty.", "--prompt"),
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
