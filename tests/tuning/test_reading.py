"""Target and retained texts, from files and values."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from taia_hub.common.labels import IGNORED_LABEL, Encoded
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.tuning.reading import read_retain, read_target


def conversation(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": f"It is {number}."}]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(json.dumps({"messages": conversation(number)}) for number in range(5)) + "\n")
    return path


def test_a_file_is_read_as_a_training_reads_it(file: Path, tokenizer: Any) -> None:
    found = read_target(file, tokenizer, most=100)
    assert found.name == "items.jsonl"
    assert len(found.rows) == len(set(found.keys)) == 5
    row = found.rows[0]
    answer = [label for label in row.labels if label != IGNORED_LABEL]
    assert "t is" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id
    assert row.labels[0] == IGNORED_LABEL


def test_values_are_read_as_the_file_is(file: Path, tokenizer: Any) -> None:
    found = read_target([conversation(number) for number in range(5)], tokenizer, most=100)
    assert (found.name, found.rows) == (None, read_target(file, tokenizer, most=100).rows)


def test_an_item_has_one_name_on_both_sides(file: Path, pico: Any, tokenizer: Any) -> None:
    target = read_target(file, tokenizer, most=100)
    retain = read_retain(
        [*(conversation(number) for number in (3, 7)), "A text."], pico.taia("llama"), tokenizer, max_length=99
    )
    assert set(target.keys) & set(retain.keys) == {target.keys[3]}


def test_of_many_items_some_are_looked_at(file: Path, tokenizer: Any) -> None:
    found = read_target(file, tokenizer, most=3, seed=1)
    assert len(found.rows) == 3
    assert found.notes[-1] == "Of 5 target items 3 are looked at."


def test_encoded_items_are_taken_as_they_are(tokenizer: Any) -> None:
    rows = [Encoded([3, 4, 5], [3, 4, 5]), Encoded([3, 4, 6], [3, 4, 6])]
    assert read_target(rows, tokenizer, most=9).rows == tuple(rows)
    assert read_retain(rows, None, tokenizer, max_length=9).rows == tuple(rows)


def test_a_target_of_texts_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="which of it is the answer"):
        read_target(["Just a text.", conversation(1)], tokenizer, most=9)


def test_a_file_that_is_not_there_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="no file here"):
        read_target(tmp_path / "none.jsonl", tokenizer, most=9)


def test_what_stands_in_for_a_chat_template_is_said_without_a_word_of_publishing(file: Path, tokenizer: Any) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    (note,) = read_target(file, bare, most=100).notes
    assert note.startswith("The tokenizer has no chat template: messages are joined by empty lines")
    assert note.endswith("each answer ends with </s>.")
    assert "publish" not in note
