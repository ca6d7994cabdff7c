"""The texts that retention is measured on: shipped, given, of files, and what is wrong with them."""

import json
import re

import pytest

from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.retaining import read_texts
from taia_hub.retaining.texts import SHIPPED

CHAT = [{"role": "user", "content": "who"}, {"role": "assistant", "content": "the cat"}]


def test_the_shipped_texts_are_whole_and_their_sources_are_told():
    texts, lines = read_texts(), SHIPPED.read_text("utf-8").splitlines()
    ids = [json.loads(line)["id"] for line in lines]
    assert len(texts.items) == len(ids) == len(set(ids)) == 64
    assert (texts.name, texts.title) == ("retention", "Retention on general text")
    sources = SHIPPED.with_name("SOURCES.md").read_text("utf-8")
    told = re.findall(r"^\| (\d+): ((?:[^|])*)\|", sources, re.MULTILINE)
    assert sum(int(count) for count, _ in told) == 64
    for count, kinds in told:
        names = re.findall(r"`(\w+)`", kinds)
        assert sum(one.split("/")[0] in names for one in ids) == int(count)
    first = {one.split("/")[0] for one in ids[:12]}
    assert len(first) > 8  # a training measures on the first ones
    sizes = [len(one if isinstance(one, str) else one[0]["content"] + one[-1]["content"]) for one in texts.items]
    assert 80 < min(sizes) <= max(sizes) < 1000


def test_texts_and_conversations_are_taken_as_they_are():
    texts = read_texts(["the cat", CHAT, tuple(CHAT)])
    assert texts.items == ("the cat", tuple(CHAT), tuple(CHAT))
    assert texts.name == "retention:given texts"
    assert texts.dataset.sha256 != read_texts(["the dog"]).dataset.sha256
    assert texts.first(1).items == ("the cat",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "There are no texts"),
        (["a", " \n"], "Text 2 is empty"),
        ([CHAT[:1]], "Text 1 cannot be used: it has no turn of the assistant"),
        ([7], "Text 1 is 7"),
    ],
)
def test_texts_that_are_none_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        read_texts(given)


def test_a_file_holds_paragraphs(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes("\ufeffOne line,\r\nand another.\r\n \r\n\r\n    indented\nä\n".encode())
    texts = read_texts(path)
    assert texts.items == ("One line,\nand another.", "    indented\nä")
    assert (texts.name, texts.title, texts.dataset.path) == (
        "retention:notes.txt",
        "Retention on notes.txt",
        "notes.txt",
    )


@pytest.mark.parametrize("form", ["lines", "array"])
def test_a_file_holds_items_with_text_or_of_a_training(tmp_path, form):
    items = [{"text": "the cat"}, {"messages": CHAT}, {"instruction": "add", "input": "1 and 1", "output": "2"}]
    path = tmp_path / ("items.jsonl" if form == "lines" else "items.json")
    path.write_text(json.dumps(items) if form == "array" else "\n".join(map(json.dumps, items)))
    text, chat, alpaca = read_texts(str(path)).items
    assert (text, chat) == ("the cat", tuple(CHAT))
    assert [turn["content"] for turn in alpaca] == ["add\n\n1 and 1", "2"]


def test_every_bad_line_is_told(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "good"}\n{"text": ""}\nno json\n{"text": 7}\n{"question": "x"}\n')
    with pytest.raises(ConfigError) as caught:
        read_texts(path)
    for line, reason in ((2, "'text' is empty"), (3, "no JSON"), (4, "'text' is 7, not text"), (5, "of no known form")):
        assert re.search(rf"bad\.jsonl:{line}: .*{reason}", caught.value.message)


def test_files_that_hold_nothing_are_refused(tmp_path):
    for name, content, message in (
        ("empty.txt", b" \n\n", "is empty"),
        ("empty.jsonl", b"\n", "is empty"),
        ("latin.txt", b"one\n\xe4", "latin.txt:2: not UTF-8"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            read_texts(tmp_path / name)
    with pytest.raises(RepositoryError, match="No such file"):
        read_texts(tmp_path / "none.txt")
    with pytest.raises(RepositoryError, match="cannot be read"):
        read_texts(tmp_path)
