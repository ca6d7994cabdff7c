"""Items of both sides: what is left out, and how they are split."""

from typing import Any

import pytest

from taia_hub.common.labels import IGNORED_LABEL, Encoded
from taia_hub.errors import ConfigError
from taia_hub.tuning.items import Items, make_sides


def items(first: int, count: int, length: int = 6) -> Items:
    encoded = tuple(
        Encoded([at, *range(1, length)], [IGNORED_LABEL, *range(1, length)]) for at in range(first, first + count)
    )
    return Items("x", encoded, tuple(str(at) for at in range(first, first + count)))


def sides(target: Items, retain: Items, **options: Any) -> Any:
    return make_sides(
        target, retain, **{"tokenizer": None, "vocabulary": None, "max_length": 16, "limit": 1000, "seed": 0, **options}
    )


def test_no_item_is_searched_and_reported() -> None:
    target, retain, notes = sides(items(0, 41), items(100, 20))
    assert (len(target.search), len(target.report), len(retain.search), len(retain.report)) == (20, 21, 10, 10)
    seen = [row.input_ids[0] for row in (*target.search, *target.report)]
    assert sorted(seen) == list(range(41))
    assert notes == ()


def test_the_split_is_by_seed_and_content_and_not_by_order() -> None:
    one, other = items(0, 30), items(0, 30)
    turned = Items("y", other.rows[::-1], other.keys[::-1])
    assert sides(one, items(100, 20))[0].report == sides(turned, items(100, 20))[0].report
    assert sides(one, items(100, 20))[0].sha256 == sides(turned, items(100, 20))[0].sha256
    assert sides(one, items(100, 20), seed=1)[0].sha256 != sides(one, items(100, 20))[0].sha256


def test_what_comes_twice_counts_once_and_what_stands_on_both_sides_is_learned() -> None:
    twice = Items("x", items(0, 25).rows + items(0, 5).rows, items(0, 25).keys + items(0, 5).keys)
    target, retain, notes = sides(twice, items(20, 30))
    assert (target.left_out, retain.left_out) == (5, 5)
    assert notes[0].startswith("5 of the retained items stand in the target too")


def test_what_is_the_same_once_it_is_cut_counts_once() -> None:
    target, other = items(0, 25), items(0, 25, length=40)
    longer = Items("x", other.rows, tuple(f"other {key}" for key in other.keys))
    short, retain = sides(
        items(0, 25, length=16), Items("y", longer.rows + items(50, 20).rows, longer.keys + items(50, 20).keys)
    )[:2]
    assert len(short.search) + len(short.report) == 25
    assert retain.left_out == 25, "of each the first 16 tokens are those of a target item"
    twice = Items("x", target.rows + target.rows[:5], target.keys + tuple(f"other {at}" for at in range(5)))
    assert sides(twice, items(100, 20))[0].left_out == 5


def asked(questions: int, answers: int) -> Items:
    """Items of some questions with several answers each."""
    encoded = tuple(
        Encoded([question, 7, 7, 30 + answer], [IGNORED_LABEL] * 3 + [30 + answer])
        for question in range(questions)
        for answer in range(answers)
    )
    return Items("x", encoded, tuple(f"{at}" for at in range(len(encoded))))


@pytest.mark.parametrize("limit", [1000, 40])
def test_items_of_one_question_stay_together(limit: int) -> None:
    target, _, notes = sides(asked(20, 4), items(100, 20), limit=limit)
    parts = [{row.input_ids[0] for row in part} for part in (target.search, target.report)]
    assert not parts[0] & parts[1]
    assert len(target.search) == len(target.report) == min(limit, 80) // 2
    assert not any("questions" in note for note in notes)


def test_too_few_questions_are_told() -> None:
    target, _, notes = sides(asked(1, 30), items(100, 20))
    assert (len(target.search), len(target.report)) == (15, 15)
    assert "The target items have so few questions that some stand in both parts." in notes


def test_items_without_a_label_within_the_length_are_left_out() -> None:
    late = Encoded([1] * 20, [IGNORED_LABEL] * 18 + [1, 1])
    given = items(0, 20)
    target, _, _ = sides(Items("x", (*given.rows, late), (*given.keys, "late")), items(100, 20))
    assert target.left_out == 1
    assert sides(items(0, 20, length=20), items(100, 20))[0].report[0].input_ids[15:] == [15]


def test_more_items_than_wanted_are_drawn() -> None:
    target, _, notes = sides(items(0, 90), items(100, 20), limit=40)
    assert len(target.search) + len(target.report) == 40
    assert notes == ("Of 90 target items 40 are drawn.",)


def test_too_few_items_say_why() -> None:
    with pytest.raises(
        ConfigError, match=r"There are 30 retained items, of which 15 count \(15 in the target too\); 20"
    ):
        sides(items(0, 25), items(10, 30))
    late = tuple(Encoded(row.input_ids, [IGNORED_LABEL] * 5 + row.labels[5:]) for row in items(50, 7).rows)
    rows = (*items(0, 18).rows, *items(0, 3).rows, *late)
    mixed = Items("x", rows, (*map(str, range(18)), "a", "b", "c", *map(str, range(50, 57))))
    with pytest.raises(ConfigError) as refused:
        sides(mixed, items(100, 20), max_length=5)
    assert refused.value.message == (
        "There are 28 target items, of which 18 count (3 the same as another one within 5 tokens, 7 without an answer "
        "within 5 tokens); 20 are the fewest."
    )
    assert "Raise --max-length, to at most the tokens that the model takes" in refused.value.hint
    with pytest.raises(ConfigError, match="There are 3 target items; 20 are the fewest") as refused:
        sides(items(0, 3), items(100, 20))
    assert "--max-length" not in refused.value.hint


def test_an_id_without_an_embedding_is_refused() -> None:
    class Tokenizer:
        def convert_ids_to_tokens(self, one: int) -> str:
            return f"<{one}>"

    with pytest.raises(ConfigError, match=r"gives the id 11\d"):
        sides(items(0, 20), items(100, 20), vocabulary=110, tokenizer=Tokenizer())
