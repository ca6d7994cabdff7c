"""Training data: forms, what is refused and where, sources on this disk and on the Hub, noise, and the record."""

import json
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from taia_hub.common.forms import Form, find_form, to_messages
from taia_hub.common.jsonl import LineError
from taia_hub.common.rows import read_rows
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.training.composition import Composition, plot_composition
from taia_hub.training.data import prepare_data
from taia_hub.training.recipe import TrainingRecipe
from taia_hub.training.sources import HubName, parse_name


def alpaca(number, answer=None):
    return {"id": number, "instruction": f"Question {number}?", "input": "", "output": answer or f"Answer {number}."}


def sharegpt(number):
    turns = [("human", f"Question {number}?"), ("gpt", f"Answer {number}.")]
    return {"conversations": [{"from": who, "value": text} for who, text in turns]}


def chat(number, *roles):
    return {"messages": [{"role": role, "content": f"{role} {number}"} for role in roles or ("user", "assistant")]}


def write(path, items, end="\n"):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items)[:-1] + end, encoding="utf-8")
    return str(path)


def prepare(*data, **fields):
    return prepare_data(TrainingRecipe(base="org/base", data=data, **fields))


def question(row):
    return row["messages"][-2]["content"]


def answer(row):
    return row["messages"][-1]["content"]


# --- Forms ---------------------------------------------------------------------------------------------------------
SAID = [{"role": "user", "content": "Add.\n\n1 and 1"}, {"role": "assistant", "content": "2"}]
TERSE = {"role": "system", "content": "Be terse."}
EQUAL = [
    ({"instruction": "Add.", "input": "1 and 1", "output": "2"}, Form.ALPACA),
    ({"instruction": "Add.\n\n1 and 1", "output": "2"}, Form.ALPACA),
    ({"instruction": "", "input": "Add.\n\n1 and 1", "output": "2", "system": " "}, Form.ALPACA),
    ({"prompt": "Add.\n\n1 and 1", "completion": "2", "messages": None}, Form.COMPLETION),
    ({"prompt": SAID[:1], "completion": SAID[1:]}, Form.COMPLETION),
    ({"prompt": "passed over", "messages": SAID}, Form.MESSAGES),
    (
        {
            "conversations": [
                {"from": "system", "value": ""},
                {"from": "human", "value": SAID[0]["content"]},
                {"from": "gpt", "value": "2"},
            ]
        },
        Form.SHAREGPT,
    ),
    ({"conversations": SAID}, Form.SHAREGPT),
]


@pytest.mark.parametrize(("item", "form"), EQUAL)
def test_every_form_becomes_the_same_messages(item, form):
    assert find_form(item) is form
    assert to_messages(item, form) == SAID
    if not item.get("system") and item.get("conversations", [{}])[0].get("from") != "system":
        assert to_messages({**item, "system": "Be terse."}, form) == [TERSE, *SAID]


def test_the_history_of_an_alpaca_item_comes_first():
    item = {"instruction": "Third?", "output": "3", "history": [["First?", "1"], ["Second?", "2"]]}
    assert [turn["content"] for turn in to_messages(item, Form.ALPACA)] == [
        "First?",
        "1",
        "Second?",
        "2",
        "Third?",
        "3",
    ]


BAD = [
    ({"instruction": "Hello"}, "'output' is missing"),
    ({"prompt": None, "completion": "x"}, "'prompt' is missing"),
    ({"question": "?", "answer": "!"}, "of no known form: 'answer', 'question'"),
    ({**alpaca(1), "messages": SAID}, "more than one form (messages and Alpaca)"),
    ({"instruction": "Hello", "output": " \n"}, "'output' is empty"),
    ({"instruction": "Hello", "output": 3}, "'output' is 3, not text"),
    ({"instruction": " ", "input": "", "output": "Yes"}, "the text of turn 1 (user) is empty"),
    ({"instruction": "Go", "output": "Yes", "history": [["only one"]]}, "entry 1 of 'history'"),
    ({"messages": "Hello"}, "no list of turns"),
    ({"messages": []}, "no turn of the assistant"),
    (chat(1, "user"), "no turn of the assistant"),
    (chat(1, "system", "user", "assistant", "user"), "ends with a turn of the user"),
    (chat(1, "assistant", "user", "assistant"), "turn 1 is of the assistant where one of the user is due"),
    (chat(1, "user", "assistant", "assistant"), "turn 3 is of the assistant"),
    (chat(1, "user", "system", "assistant"), "turn 2 is of the system"),
    (chat(1, "user", "tool", "assistant"), "turn 2 is of 'tool', which is none of user, assistant, system"),
    ({"messages": [{"role": "user"}, SAID[1]]}, "turn 1 has no 'content'"),
    ({"messages": [SAID[0], {**SAID[1], "tool_calls": [1]}]}, "turn 2 calls a tool"),
    ({"messages": [SAID[0], {"role": "assistant", "content": [{"type": "image"}]}]}, "which is no text"),
    ({"messages": [SAID[0], {"role": "assistant", "content": "\ud800"}]}, "is no Unicode"),
    ({"messages": [TERSE, *SAID], "system": "Be nice."}, "and another in its turns"),
    ({"conversations": [["human", "Hello"]]}, "turn 1 is ['human', 'Hello'], and no object"),
    (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": ""}]},
        "turn 2 (assistant) is empty",
    ),
    ({"conversations": [{"from": "observation", "value": "x"}]}, "none of human, gpt, system"),
]


@pytest.mark.parametrize(("item", "reason"), BAD)
def test_what_cannot_be_trained_on_is_refused_with_its_place_and_reason(tmp_path, item, reason):
    path = write(tmp_path / "data.jsonl", [item])
    with pytest.raises(ConfigError) as caught:
        prepare(path)
    assert caught.value.message.startswith("1 item of the data is wrong; nothing was run.\n")
    assert f"{path}:1: " in caught.value.message
    assert reason in caught.value.message
    assert '"conversations"' in caught.value.hint
    if "\ud800" not in str(item):
        with pytest.raises(LineError):
            to_messages(item, find_form(item))


# --- Files ---------------------------------------------------------------------------------------------------------
def test_a_bad_line_at_the_very_end_stops_everything(tmp_path):
    good = write(tmp_path / "good.jsonl", map(alpaca, range(5)))
    cut = write(tmp_path / "cut.jsonl", map(alpaca, range(5)), end="\n" + json.dumps(alpaca(5))[:-9])
    with pytest.raises(ConfigError, match=r"1 item of the data is wrong(?s:.*)cut\.jsonl:6: no JSON"):
        prepare(good, cut)


def test_the_first_five_faults_of_all_files_are_named_and_all_are_counted(tmp_path):
    one = write(tmp_path / "one.jsonl", [alpaca(0), *[{"instruction": "x"}] * 4])
    two = tmp_path / "two.jsonl"
    two.write_bytes(b"\n".join([json.dumps(chat(0)).encode(), b"\xff", b"[1]", b"", json.dumps(sharegpt(0)).encode()]))
    with pytest.raises(ConfigError) as caught:
        prepare(one, str(two))
    lines = caught.value.message.splitlines()
    assert lines[0] == "7 items of the data are wrong; nothing was run."
    assert [line.split(": ")[0] for line in lines[1:]] == [
        *[f"{one}:{n}" for n in (2, 3, 4, 5)],
        f"{two}:2",
        "and 2 more",
    ]
    assert "not UTF-8" in lines[5]
    with pytest.raises(ConfigError, match=r"two.jsonl:5: it is of the form ShareGPT; .* of the form messages"):
        prepare(str(two))


@pytest.mark.parametrize("content", ["", "\n \n", "[]", "[ ]\n", "\ufeff"])
def test_an_empty_file_is_refused(tmp_path, content):
    (tmp_path / "data.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="is empty"):
        prepare(str(tmp_path / "data.json"))


def test_the_kind_of_a_file_is_found_by_its_content(tmp_path):
    import pyarrow
    from pyarrow import parquet

    items = [alpaca(number, f'"{number}", ä\n') for number in range(3)]
    lines = "\ufeff" + "\r\n".join(json.dumps(item, ensure_ascii=False) for item in items)
    (tmp_path / "lines.json").write_bytes(lines.encode())
    (tmp_path / "array.jsonl").write_text(json.dumps(items, indent=2))
    parquet.write_table(pyarrow.Table.from_pylist(items), tmp_path / "data")
    rows = "".join(f'"{item["instruction"]}","""{item["id"]}"", ä\n"\n' for item in items)
    (tmp_path / "data.csv").write_text("instruction,output\n" + rows, encoding="utf-8")
    wanted = [(f"Question {number}?", f'"{number}", ä\n') for number in range(3)]
    for name in ("lines.json", "array.jsonl", "data", "data.csv"):
        data = prepare(str(tmp_path / name))
        assert sorted((question(row), answer(row)) for row in data.train) == wanted, name
        assert set(data.train["source"]) == {name}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('[\n{"prompt": "a", "completion": "b"},\n{"prompt": "a" "completion"}, 1]', ":3: no JSON: Expecting ',' del"),
        (
            '[\n{"prompt": "a", "completion": "b"},\n{"prompt": "a", "completion": "b',
            ":3: no JSON: Unterminated string",
        ),
        ('[{"prompt": "a", "completion": "b"}\n', ":2: no JSON: ',' is expected, not the end of the file"),
        ('[{"prompt": "a", "completion": "b"}]\n{}', ":2: there is more behind the end of the array"),
        ('[{"prompt": "a", "completion": "b"},\n12]', ":2: a JSON int instead of an object"),
        ('[{"prompt": "a", "completion": "b"},\n{"prompt": "\\ud800", "completion": "b"}]', ":2: the text of turn 1"),
        ("[" * 100_000, ":1: no JSON"),
        (b'[{"prompt": "a",\n\n "completion": "\xff"}]', ":3: not UTF-8"),
        (b"PAR1 and then something else", ", row 1: no Parquet"),
    ],
)
def test_faults_of_an_array_or_table_name_their_place(tmp_path, content, place):
    path = tmp_path / "data.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        prepare(str(path))
    assert f"{path}{place}" in caught.value.message


def test_the_items_of_an_array_have_the_lines_that_they_begin_at(tmp_path):
    items = [{"prompt": f'{number} ä\n\\"' * 9, "completion": "x" * number} for number in range(1, 40)]
    (tmp_path / "data.json").write_text(json.dumps(items, indent=1, ensure_ascii=False), encoding="utf-8")
    found = list(read_rows(tmp_path / "data.json"))
    assert [row.item for row in found] == items
    assert [row.place for row in found] == [f":{2 + 4 * number}" for number in range(39)]
    assert [row.done for row in found] == sorted(row.done for row in found)


def test_a_line_too_long_for_one_item_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr("taia_hub.common.rows._LONGEST", 100)
    path = write(tmp_path / "data.jsonl", [alpaca(1), alpaca(2, "x" * 100)])
    with pytest.raises(ConfigError, match=r"data\.jsonl:2: longer than"):
        prepare(path)


def test_what_follows_a_line_too_long_is_checked_too(tmp_path, monkeypatch):
    monkeypatch.setattr("taia_hub.common.rows._LONGEST", 100)
    path = tmp_path / "data.jsonl"
    item = json.dumps({"prompt": "a", "completion": "b"})
    path.write_text(f"{item}\n\n\n{'x' * 350}\n{item}\nnonsense\n")
    with pytest.raises(ConfigError) as caught:
        prepare(str(path))
    assert "2 items of the data are wrong" in caught.value.message
    assert f"{path}:4: longer than" in caught.value.message
    assert f"{path}:6: no JSON" in caught.value.message


def test_faults_of_csv_name_the_line_where_the_item_begins(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('prompt,completion\n"one\ntwo",three\nfour\nfive,\n')
    with pytest.raises(ConfigError) as caught:
        prepare(str(path))
    assert f"{path}:4: it has not the 2 fields" in caught.value.message
    assert f"{path}:5: 'completion' is empty" in caught.value.message
    path.write_text("prompt,completion,prompt\n1,2,3\n")
    with pytest.raises(ConfigError, match=r"data\.csv:1: no CSV: the header names a field twice"):
        prepare(str(path))


def anonymous_memory():
    """Returns the MiB of this process that no file backs: Arrow files that are mapped do not count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) >> 10


def test_each_item_is_read_and_checked_once(tmp_path, monkeypatch):
    from taia_hub.training import checking, sources

    path = write(tmp_path / "data.jsonl", map(alpaca, range(200, 207)))
    read, made = [], []
    rows, messages = sources.read_rows, checking.to_messages
    monkeypatch.setattr(sources, "read_rows", lambda path: (read.append(path), rows(path))[1])
    monkeypatch.setattr(checking, "to_messages", lambda *item: (made.append(item), messages(*item))[1])
    for _ in range(2):  # the second time nothing but the file's hash is looked at
        assert len(prepare(path).train) == 7
        assert (len(read), len(made)) == (1, 7)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
def test_memory_does_not_grow_with_the_file(tmp_path):
    line = json.dumps({"prompt": "Hello", "completion": "word " * 2000}) + "\n"
    paths = {}
    for name, count in (("small", 1200), ("large", 8000)):
        paths[name] = str(tmp_path / f"{name}.jsonl")
        with open(paths[name], "w") as file:
            file.writelines(line for _ in range(count))  # 12 and 80 MB
    prepare(paths["small"])
    done, seen = threading.Event(), [anonymous_memory()]

    def watch():
        while not done.wait(0.005):
            seen.append(anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert len(prepare(paths["large"]).train) == 8000
    finally:
        done.set()
        watcher.join()
    assert max(seen) - seen[0] < 40  # `datasets` writes a thousand items at a time


def test_what_was_converted_is_taken_from_the_cache_until_the_file_changes(tmp_path, monkeypatch):
    from taia_hub.training import checking, sources

    path = write(tmp_path / "data.jsonl", map(alpaca, range(4)))
    prepare(path)
    with monkeypatch.context() as patched:
        patched.setattr(checking, "to_messages", lambda *_: pytest.fail("converted again"))
        patched.setattr(sources, "read_rows", lambda *_: pytest.fail("read again"))
        assert len(prepare(path).train) == 4
    write(tmp_path / "data.jsonl", map(alpaca, range(4, 9)))
    assert sorted(map(question, prepare(path).train)) == [f"Question {number}?" for number in range(4, 9)]


@pytest.mark.parametrize("kept", [0, 0.5])
def test_a_damaged_cache_is_said(tmp_path, monkeypatch, kept):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = write(tmp_path / "data.jsonl", map(alpaca, range(20)))
    prepare(path)
    (arrow,) = (tmp_path / "cache").rglob("*.arrow")
    content = arrow.read_bytes()
    arrow.unlink()  # it is mapped
    arrow.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(RepositoryError, match="converted before cannot be read") as caught:
        prepare(path)
    shutil.rmtree(caught.value.hint.split("'")[1])
    assert len(prepare(path).train) == 20


def test_a_cache_that_lacks_items_is_said(tmp_path, monkeypatch):
    import datasets
    import pyarrow

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = write(tmp_path / "data.jsonl", map(alpaca, range(20)))
    prepare(path)
    (arrow,) = (tmp_path / "cache").rglob("*.arrow")
    with pyarrow.ipc.open_stream(arrow.read_bytes()) as stream:
        table = stream.read_all()
    arrow.unlink()  # it is mapped
    with pyarrow.OSFile(str(arrow), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table.slice(0, 13))
    with pytest.raises(RepositoryError, match="13 items instead of 20"):
        prepare(path)


def test_a_rewrite_of_the_same_size_and_time_is_noticed(tmp_path, monkeypatch):
    from taia_hub.training import checking

    path = tmp_path / "data.jsonl"
    write(path, map(alpaca, range(70, 74)))
    before, convert = path.stat(), checking.to_messages

    def change(*arguments):
        write(path, map(alpaca, range(80, 84)))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size
        return convert(*arguments)

    monkeypatch.setattr(checking, "to_messages", change)
    with pytest.raises(RepositoryError, match="changed while it was read"):
        prepare(str(path))


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    from taia_hub.training import checking

    path = write(tmp_path / "data.jsonl", map(alpaca, range(70, 74)))
    convert = checking.to_messages

    def change(*arguments):
        write(tmp_path / "data.jsonl", map(alpaca, range(70, 75)))
        return convert(*arguments)

    monkeypatch.setattr(checking, "to_messages", change)
    with pytest.raises(RepositoryError, match="changed while it was read"):
        prepare(path)
    monkeypatch.undo()
    assert len(prepare(path).train) == 5


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_name("org/name") == HubName("org/name", None, None, "train")
    assert parse_name("org/name@refs/pr/1:test") == HubName("org/name", "refs/pr/1", None, "test")
    write(tmp_path / "data.jsonl", [alpaca(1)])
    assert parse_name("data.jsonl").is_file()
    for name, error, match in [
        ("other.jsonl", RepositoryError, "no file here"),
        ("org/data.jsonl", RepositoryError, "no file here"),
        ("./org/name", RepositoryError, "no file here"),
        (str(tmp_path), RepositoryError, "is a folder"),
        ("name", ConfigError, "neither a file here nor a data set"),
        ("org/name:", ConfigError, "neither a file"),
        ("a/b/c", ConfigError, "neither a file"),
    ]:
        with pytest.raises(error, match=match):
            parse_name(name)
    with pytest.raises(ConfigError, match="named twice"):
        prepare("data.jsonl", str(tmp_path / "data.jsonl"))


def test_files_of_one_name_are_told_apart_by_their_folder(tmp_path):
    paths = [write(tmp_path / folder / "data.jsonl", map(alpaca, range(n))) for n, folder in ((2, "a"), (3, "b"))]
    data = prepare(*paths)
    assert data.composition.stretches.keys() == {"a/data.jsonl", "b/data.jsonl"}
    assert [(one["name"], one["items"]) for one in data.datasets] == [("a/data.jsonl", 2), ("b/data.jsonl", 3)]
    assert str(tmp_path) not in json.dumps([*data.datasets, data.composition.to_json()])


# --- Data sets on the Hub ------------------------------------------------------------------------------------------
CARD = """---
license: cc-by-4.0
configs:
- config_name: default
  data_files:
  - split: train
    path: train.jsonl
  - split: dev
    path: dev.jsonl
---
# Questions
"""


@pytest.fixture
def questions(online, repo_id, tmp_path):
    """A data set with two commits; the first one has two items, the second three."""
    api = HfApi()
    write(tmp_path / "set" / "train.jsonl", map(sharegpt, range(2)))
    write(tmp_path / "set" / "dev.jsonl", map(sharegpt, range(10, 14)))
    (tmp_path / "set" / "README.md").write_text(CARD)
    api.create_repo(repo_id, repo_type="dataset")
    upload = {"repo_id": repo_id, "repo_type": "dataset", "folder_path": tmp_path / "set"}
    first = api.upload_folder(**upload).oid
    write(tmp_path / "set" / "train.jsonl", map(sharegpt, range(20, 23)))
    return repo_id, first, api.upload_folder(**upload).oid


def test_a_data_set_of_the_hub_is_fixed_to_its_commit(questions):
    repo_id, first, second = questions
    data = prepare(repo_id)
    assert sorted(map(question, data.train)) == [f"Question {number}?" for number in (20, 21, 22)]
    (facts,) = data.datasets
    assert facts == {**facts, "name": repo_id, "id": repo_id, "revision": second, "license": "cc-by-4.0", "items": 3}
    assert facts["bytes"] > 0

    older = prepare(f"{repo_id}@{first}", f"{repo_id}:dev")
    assert set(map(question, older.train)) == {f"Question {number}?" for number in (0, 1, 10, 11, 12, 13)}
    assert [one["revision"] for one in older.datasets] == [first, second]
    assert [one["name"] for one in older.datasets] == [repo_id, f"{repo_id}:dev"]
    assert older.composition.stretches.keys() == {f"{repo_id}@{first}", f"{repo_id}:dev"}
    assert sorted(map(question, prepare(f"{repo_id}:default/dev").train))[0] == "Question 10?"


def test_what_the_hub_lacks_is_said(questions, online):
    repo_id, _, _ = questions
    for name, error, match in [
        (f"{repo_id}:test", ConfigError, r"Unknown split \"test\".*\['train', 'dev'\]"),
        (f"{repo_id}:other/train", ConfigError, "BuilderConfig 'other' not found"),
        (f"{repo_id}@{'0' * 40}", RepositoryError, "has no revision"),
        ("own/nothing", RepositoryError, "no file 'own/nothing' here and no data set of that name"),
    ]:
        with pytest.raises(error, match=match):
            prepare(name)


def test_bad_items_of_the_hub_are_named_by_row(online, repo_id, tmp_path):
    write(tmp_path / "train.jsonl", [alpaca(1), {**alpaca(2), "output": ""}])
    api = HfApi()
    api.create_repo(repo_id, repo_type="dataset")
    api.upload_file(
        path_or_fileobj=tmp_path / "train.jsonl", path_in_repo="train.jsonl", repo_id=repo_id, repo_type="dataset"
    )
    with pytest.raises(ConfigError, match=f"{repo_id}, row 2: 'output' is empty"):
        prepare(repo_id)


# --- Noise ---------------------------------------------------------------------------------------------------------
def test_noise_gives_exactly_that_share_another_answer_of_its_source(tmp_path):
    one = write(tmp_path / "one.jsonl", [alpaca(number, f"Answer {number % 7} of one") for number in range(60)])
    two = write(tmp_path / "two.jsonl", [alpaca(number, f"Answer {number} of two") for number in range(60, 100)])
    clean, data = prepare(one, two), prepare(one, two, noise_ratio=0.3, epochs=2)
    right = {question(row): answer(row) for row in clean.train}
    wrong = [row for row in data.train if answer(row) != right[question(row)]]
    assert len(data.train) == 200
    assert len(wrong) == 60
    assert len({question(row) for row in wrong}) == 30
    assert all(answer(row).endswith(f"of {row['source'][:3]}") for row in wrong)
    noise = data.composition.noise
    assert (noise.ratio, noise.items, noise.equal, sum(noise.by_source.values())) == (0.3, 30, 0, 30)
    assert sum(data.composition.noisy) == 60
    assert list(map(question, data.train))[:100] == list(map(question, clean.train))
    again, other = prepare(one, two, noise_ratio=0.3), prepare(one, two, noise_ratio=0.3, seed=1)
    assert again.train[:] == data.train.select(range(100))[:]
    assert again.composition.noise == noise
    assert other.composition.noise.sha256 != noise.sha256
    assert clean.composition.noise is None


def test_every_item_can_be_noisy_and_equal_texts_are_counted_where_there_is_no_other(tmp_path):
    same = write(tmp_path / "same.jsonl", [alpaca(number, "Yes.") for number in range(5)])
    most = write(
        tmp_path / "most.jsonl", [alpaca(number, "Yes." if number > 10 else "No.") for number in range(10, 15)]
    )
    data = prepare(same, most, noise_ratio=1.0)
    assert data.composition.noise.equal == 5
    assert all(
        answer(row) == "No." for row in data.train if row["source"] == "most.jsonl" and "10" not in question(row)
    )
    single = write(tmp_path / "single.jsonl", [alpaca(1)])
    with pytest.raises(ConfigError, match="noise_ratio 1 asks for 1 wrong answers; only 0"):
        prepare(single, noise_ratio=1.0)


# --- The record ----------------------------------------------------------------------------------------------------
def test_the_composition_goes_to_json_and_back_and_is_drawn(tmp_path):
    one = write(tmp_path / "one.jsonl", [*map(alpaca, range(30)), {**alpaca(99), "instruction": "Question 3?"}])
    data = prepare(one, noise_ratio=0.5, total=31)
    composition = data.composition
    assert composition.duplicates == 1
    assert composition.items == composition.distinct == 31
    assert len(composition.noisy) == 20
    assert sum(composition.stretches["one.jsonl"]) == 31
    assert Composition.from_json(json.loads(json.dumps(composition.to_json()))) == composition
    with pytest.raises(ConfigError, match="no composition"):
        Composition.from_json({**composition.to_json(), "noisy": [1]})
    figure = plot_composition(composition, tmp_path / "figures" / "composition.png")
    assert figure.png == tmp_path / "figures" / "composition.png"
    assert figure.png.stat().st_size > 1000
    assert "one.jsonl 31 items" in figure.alt
    assert "16 of all items have a wrong answer" in figure.alt


def test_the_facts_are_those_of_the_card(tmp_path):
    from taia_hub.cards.training import training_from_json
    from taia_hub.hub import sha256

    path = tmp_path / "one.jsonl"
    data = prepare(write(path, map(alpaca, range(30))), total=10)
    (facts,) = training_from_json({"datasets": list(data.datasets)}).datasets
    assert (facts.name, facts.items) == ("one.jsonl", 10)
    assert (facts.bytes, facts.sha256) == (path.stat().st_size, sha256(path))


def test_progress_is_told_to_the_end(tmp_path):
    told = []
    recipe = TrainingRecipe(base="x", data=(write(tmp_path / "fresh.jsonl", map(alpaca, range(1030))),))
    prepare_data(recipe, progress=lambda *words: told.append(words))
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages == ["reading fresh.jsonl, percent"]
    for stage in stages:
        steps = [done for name, done, total in told if name == stage]
        assert steps == sorted(steps)
        assert steps[-1] == {name: total for name, _, total in told}[stage]
