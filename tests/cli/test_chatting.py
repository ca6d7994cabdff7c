"""`taia chat`: a talk by the lines of standard input, in process, on a pico model."""

import copy
import io
import json
import re
import sys

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from taia_hub import cli
from taia_hub.cli import chatting
from taia_hub.compare import compare
from taia_hub.compare.chatting import Conversation, Turn
from taia_hub.switch.settings import parse_setting

GREEDY = {"max_new_tokens": 6, "do_sample": False, "measures": False}
TEMPLATE = "{% for m in messages %}<s>{{ m.role[0] }} {{ m.content }}</s>{% endfor %}<s>a "


@pytest.fixture
def talk(online, capsys, monkeypatch, tmp_path):
    """Holds a talk of some lines; returns (exit status, the answers' lines, what else was said)."""
    monkeypatch.chdir(tmp_path)

    def run(*lines, words=(), repo=online.taia):
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        try:
            cli.main(["chat", repo, "--max-new-tokens", "6", *map(str, words)])
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        out, err = capsys.readouterr()
        return status, out.splitlines(), err

    return run


@pytest.fixture(scope="module")
def reference(_published):
    return AutoModelForCausalLM.from_pretrained(_published.taia), AutoTokenizer.from_pretrained(_published.taia)


def answers(reference, turns, mode="attention", system=None, **options):
    """Returns the answer to the last of some texts, those before it with their answers."""
    *before, last = turns
    said = [{"role": role, "content": text} for pair in before for role, text in zip(("user", "assistant"), pair)]  # noqa: B905
    messages = [*said, {"role": "user", "content": last}]
    (found,) = compare(*reference, messages, [mode], system=system, **{**GREEDY, **options}).answers
    return found.text


def test_a_talk_goes_on_with_what_was_said(talk, reference):
    status, out, err = talk("the sea", "a b c")
    assert status == 0
    first = answers(reference, ["the sea"])
    second = answers(reference, [("the sea", first), "a b c"])
    assert out == [first.strip(), second.strip()]
    assert second != answers(reference, ["a b c"])
    assert "in mode attention (TAIA)" in err
    assert "on cpu, float32" in err
    assert err.count("no chat template") == 1
    assert "cut after 6 tokens" in err


def test_the_mode_changes_in_mid_talk(talk, reference):
    setting = {"attention": 1, "ffn": 0.5}
    lines = ["the sea", "/mode VANILLA", "a b c", f"/mode {json.dumps(setting)}", "d", "/mode"]
    _, out, err = talk(*lines, words=["--mode", "base"])
    first = answers(reference, ["the sea"], "none")
    second = answers(reference, [("the sea", first), "a b c"], "all")
    third = answers(reference, [("the sea", first), ("a b c", second), "d"], setting)
    assert out == [first.strip(), second.strip(), third.strip()]
    assert "Now in mode all (vanilla)." in err
    assert "In mode attention=1, ffn=0.5; there are attention (TAIA), ffn (TAIF), all (vanilla), none (base)." in err


def test_the_modes_are_compared_in_mid_talk(talk, reference):
    _, out, _ = talk("the sea", "a b", "/compare", "/compare what ?", "d")
    first = answers(reference, ["the sea"])
    second = answers(reference, [("the sea", first), "a b"])
    said = [("the sea", first), ("a b", second)]
    text = "\n".join(out)
    heads = ["none (base)", "attention (TAIA)", "ffn (TAIF)", "all (vanilla)"]
    assert re.findall(r"^\[(.*)\]$", text, re.MULTILINE) == heads * 2
    for turns in ([said[0], "a b"], [*said, "what ?"]):
        for mode, head in zip(("none", "attention", "ffn", "all"), heads, strict=True):
            assert f"[{head}]\n{answers(reference, turns, mode).strip()}" in text
    assert out[-1] == answers(reference, [*said, "d"]).strip()  # comparing left the talk as it was


def test_a_turn_is_taken_back_or_tried_again(talk, reference):
    sampled = ["--temperature", 0.9, "--top-k", 20, "--seed", 5]
    _, out, err = talk("the sea", "/retry", "/undo", "a b", "/undo", "/undo", words=sampled)
    how = {"do_sample": True, "temperature": 0.9, "top_k": 20}
    expected = [answers(reference, ["the sea"], seed=seed, **how) for seed in (5, 6)]
    assert out == [*(text.strip() for text in expected), answers(reference, ["a b"], seed=7, **how).strip()]
    assert out[0] != out[1]
    assert "Forgot: the sea" in err
    assert "Nothing was said yet." in err


def test_a_talk_begins_anew_with_its_system_message(talk, reference):
    lines = ["/system a b c", "the sea", "/clear", "the sea", "/system -", "/clear", "the sea", "/system"]
    _, out, err = talk(*lines)
    with_system = answers(reference, ["the sea"], system="a b c").strip()
    assert out == [with_system, with_system, answers(reference, ["the sea"]).strip()]
    assert "System message: a b c" in err
    assert err.rstrip().endswith("There is no system message.")


def test_options_change_in_mid_talk(talk, reference):
    lines = ["/set temperature 0.9", "/set top_k=20", "/set max-new-tokens 3", "/set seed 8", "the sea", "/set"]
    _, out, err = talk(*lines)
    how = {"do_sample": True, "temperature": 0.9, "top_k": 20, "max_new_tokens": 3, "seed": 8}
    assert out == [answers(reference, ["the sea"], **how).strip()]
    assert err.rstrip().endswith("temperature 0.9, top-p off, top-k 20, max-new-tokens 3, seed 8")
    assert "It acts with a temperature above 0." not in err


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("/mdoe all", "'/mdoe' is not known. Did you mean '/mode'?", "begins with two"),
        ("/etc/passwd is what", "'/etc/passwd' is not known", "begins with two"),
        ("/mode atention", "Did you mean 'attention'?", "Choose one of"),
        ("/mode {ffn: 1}", "is no JSON", '{"attention": 1'),
        ('/mode {"ffn@9": 1}', "'ffn@9' matches none", "Write"),
        ("/set temprature 1", "Did you mean 'temperature'?", "Choose temperature, top-p"),
        ("/set temperature hot", "temperature cannot be 'hot'", "0 (greedy) or more"),
        ("/set temperature nan", "temperature cannot be 'nan'", "0 (greedy) or more"),
        ("/set temperature -1", "temperature cannot be '-1'", "0 (greedy) or more"),
        ("/set top-p 2", "top-p cannot be '2'", "at most 1"),
        ("/set top-k 0", "top-k cannot be '0'", "from 1 up"),
        ("/set max-new-tokens off", "max-new-tokens cannot be 'off'", "from 1 up"),
        ("/set seed", "seed cannot be ''", "from 0 up"),
        ("/retry", "Nothing was said yet.", "Write a text"),
        ("/compare", "Nothing was said yet.", "Write a text"),
        ("/undo now", "/undo takes nothing behind it.", "Leave it out."),
        ("/save", "no file to save to", "/save talk.md"),
        ("/save no/such/talk.md", "There is no folder 'no/such'", "Make it"),
        ("/save mine.md", "'mine.md' is there already.", "another name"),
        ("a b " * 40, "too long", "Shorten it"),
    ],
)
def test_what_is_wrong_is_said_and_the_talk_goes_on(talk, reference, tmp_path, line, message, hint):
    (tmp_path / "mine.md").write_text("mine")
    status, out, err = talk(line, "the sea")
    assert (status, out) == (0, [answers(reference, ["the sea"]).strip()])
    assert message in err
    assert hint in err.partition("Hint: ")[2]
    assert (tmp_path / "mine.md").read_text() == "mine"


def test_lines_are_joined_and_a_slash_may_begin_a_text(talk, reference):
    _, out, _ = talk("the\\", "sea", "/clear", "//a b", "", "/clear", "the sea\\")
    texts = ["the\nsea", "/a b", "the sea\n"]
    assert out == [answers(reference, [text.strip()]).strip() for text in texts]


def test_a_talk_is_saved(talk, reference, tmp_path):
    lines = ["/system a", "the sea", "/mode all", "b", "/save talk.json", "/save talk.md", "c", "/save talk.md"]
    status, out, err = talk(*lines, "/exit", "d")
    assert status == 0
    assert len(out) == 3  # nothing is answered after /exit
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert [one["role"] for one in saved["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert [one["content"] for one in saved["messages"]][:2] == ["a", "the sea"]
    assert saved["modes"] == ["attention", "all"]
    text = (tmp_path / "talk.md").read_text()
    assert re.findall(r"^\*\*(.*)\*\*$", text, re.MULTILINE) == [
        *("System", "User", "attention (TAIA)", "User", "all (vanilla)", "User", "all (vanilla)")
    ]
    assert "Error" not in err


def test_the_oldest_turns_are_dropped_before_the_context_is_full(talk, reference):
    long = "a b c d e " * 4
    status, out, err = talk(long, long, long, long, "/undo", "/clear", "the sea")
    assert (status, len(out)) == (0, 5)
    assert "The context is full: the oldest turn is no longer read." in err
    assert "Error" not in err
    assert out[-1] == answers(reference, ["the sea"]).strip()


def test_what_becomes_no_turn_forgets_none(talk, monkeypatch):
    """A prompt that is too long is refused for its own length; a text to compare may leave out turns, for itself."""
    from taia_hub.compare.chatting import stream_compare as whole

    read = []

    def stream(model, tokenizer, messages, *more, **options):
        states = whole(model, tokenizer, messages, *more, **options)
        read.append([one["content"] for one in messages][::2])
        return states

    monkeypatch.setattr("taia_hub.compare.chatting.stream_compare", stream)
    long, too_long = "x " * 55, "x " * 500
    status, _, err = talk("the sea", "a b c", too_long, f"/compare {long}", f"/compare {too_long}", "d")
    assert status == 0
    assert "The context is full" not in err
    assert err.count("Error: The prompt has 999 tokens") == 2
    assert [len(texts) for texts in read] == [1, 2, 2, 3]
    assert read[-1] == ["the sea", "a b c", "d"]


def test_turns_that_are_dropped_are_no_longer_read(reference):
    model, tokenizer = reference
    conversation = Conversation(model, tokenizer, parse_setting("attention"), system="s")
    conversation.turns = [Turn("a b c d e " * 4, "one", "all"), Turn("x " * 20, "two", "all")]
    assert conversation.left_out("the sea", 500) == 1
    assert conversation.forgotten == 0
    conversation.forgotten = 1
    assert [one["content"] for one in conversation.messages("the sea")] == ["s", "x " * 20, "two", "the sea"]
    assert conversation.left_out("the sea", 500) == 1
    assert [one["content"] for one in conversation.to_json()["messages"]][1].startswith("a b c")


def test_a_chat_template_is_used(talk, reference, monkeypatch):
    model, tokenizer = reference[0], copy.deepcopy(reference[1])
    tokenizer.chat_template = TEMPLATE
    monkeypatch.setattr("taia_hub.repository.tokenizer.load_tokenizer", lambda *_, **__: tokenizer)
    _, out, err = talk("the sea", "a b")
    first = answers((model, tokenizer), ["the sea"])
    second = answers((model, tokenizer), [("the sea", first), "a b"])
    assert out == [first.strip(), second.strip()]
    assert "no chat template" not in err
    _, raw, _ = talk("the sea", words=["--raw"])
    assert raw == [answers((model, tokenizer), ["the sea"], chat=False).strip()]
    assert raw[0] != out[0]


def interrupt(monkeypatch, states):
    """Lets Ctrl-C come after a number of states of the first answer."""
    from taia_hub.compare.chatting import stream_compare as whole

    calls = []

    def interrupted(*positional, **keywords):
        calls.append(positional[2])
        for at, state in enumerate(whole(*positional, **keywords), 1):
            yield state
            if at == states and len(calls) == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr("taia_hub.compare.chatting.stream_compare", interrupted)
    return calls


def test_an_answer_that_is_stopped_stays_in_the_talk(talk, reference, monkeypatch):
    calls = interrupt(monkeypatch, 2)
    status, out, err = talk("the sea", "a b")
    partial = answers(reference, ["the sea"], max_new_tokens=2)
    assert (status, out[0]) == (0, partial.strip())
    assert "Stopped; Ctrl-C again leaves." in err
    assert [one["content"] for one in calls[1]] == ["the sea", partial, "a b"]
    assert out[1] == answers(reference, [("the sea", partial), "a b"]).strip()


def keys(monkeypatch, *typed):
    """Types at a terminal: texts, and errors as the keyboard raises them."""
    prompts, left = [], list(typed)

    def read(prompt):
        prompts.append(prompt)
        one = left.pop(0)
        if isinstance(one, str):
            return one
        raise one

    monkeypatch.setattr("builtins.input", read)
    at_keyboard = property(lambda self: True, lambda self, value: None)
    monkeypatch.setattr(chatting._Session, "at_keyboard", at_keyboard, raising=False)
    return prompts, left


@pytest.mark.parametrize(
    ("typed", "unread"),
    [
        ([KeyboardInterrupt, KeyboardInterrupt, "the"], 1),
        ([KeyboardInterrupt, "/mode all", KeyboardInterrupt, "/exit", "the"], 1),
        ([EOFError, "the"], 1),
        (["/quit", "the"], 1),
    ],
)
def test_two_interrupts_an_end_or_a_command_leave(talk, monkeypatch, typed, unread):
    _, left = keys(monkeypatch, *typed)
    status, out, _ = talk()
    assert (status, out, len(left)) == (0, [], unread)


def test_an_interrupt_after_one_that_stopped_an_answer_leaves(talk, monkeypatch):
    interrupt(monkeypatch, 2)
    _, left = keys(monkeypatch, "the sea", KeyboardInterrupt, "a b")
    status, out, _ = talk()
    assert (status, len(out), left) == (0, 1, ["a b"])


def test_the_prompt_shows_the_mode(talk, monkeypatch):
    prompts, _ = keys(monkeypatch, "/mode taif", "a\\", "b", '/mode {"ffn": 0.5}', EOFError)
    talk()
    assert prompts == ["attention> ", "ffn> ", "... ", "ffn> ", "ffn=0.5> "]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mode", "all", "--mode", "none"], "--mode came 2 times"),
        (["--mode", "atention"], "Did you mean 'attention'?"),
        (["--top-p", 0.5], "--top-p has no meaning without sampling"),
    ],
)
def test_bad_options_are_told_before_a_model_is_loaded(talk, monkeypatch, words, message):
    monkeypatch.setattr("taia_hub.cli.chatting.load_model", lambda *_, **__: pytest.fail("A model was loaded."))
    status, _, err = talk("the", words=words)
    assert status == 1
    assert message in err


def test_help_lists_every_command(talk):
    _, out, err = talk("/help")
    assert out == []
    for name, (more, text) in chatting._COMMANDS.items():
        assert re.search(rf"^{re.escape(f'{name} {more}'.strip())} +{re.escape(text)}$", err, re.MULTILINE), name
        assert hasattr(chatting._Session, f"do_{name[1:]}")
