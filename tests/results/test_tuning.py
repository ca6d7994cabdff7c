"""The tuning file: kept whole, refused when damaged, readable."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.results import Candidate, Choice, Interval, ModelIdentity, Tuned, TuningData, WeightGroup
from taia_hub.results.tuning_text import draw_front, draw_weights, weights_by_layer
from taia_hub.switch.modes import mode_title
from tests.tuning_samples import tuned as many_tuned


def candidate(label: str, target: float, retention: float, **more: Any) -> Candidate:
    values: dict[str, Any] = {"kind": "mode", "setting": label, "weights": (0.0, 0.0), **more}
    gain = {"none": Interval(3 - target, 2.9 - target, 3.1 - target)}
    saved = {"all": Interval(0.5 - retention, 0.4 - retention, 0.6 - retention)}
    bounds = (Interval(value, value - 0.1, value + 0.1) for value in (target, retention))
    return Candidate(label=label, target=next(bounds), retention=next(bounds), gain=gain, saved=saved, **values)


@pytest.fixture(scope="module")
def tuned() -> Tuned:
    found = candidate(
        "tuned 1",
        1.9,
        0.1,
        kind="tuned",
        setting=[["attention@0", 0.8], ["ffn@1", 0.25]],
        weights=(0.8, 0.25),
        trade_off=2.5,
        kept=Interval(0.98, 0.97, 0.99),
        on_front=True,
    )
    plain = [candidate("none", 3, 0, on_front=True), candidate("all", 2, 0.5, weights=(1.0, 1.0))]
    return Tuned(
        model=ModelIdentity("m", None, "b", None, "ab12", "float32"),
        objective="kl",
        by="role x layer",
        groups=(
            WeightGroup("attention@0", "attention@0", "attention", (0, 0), 4, 100),
            WeightGroup("ffn@1", "ffn@1", "ffn", (1, 1), 3, 200),
        ),
        candidates=(found, *plain),
        choice=Choice("tuned 1", "Use it: it gains.", "all", True, Interval(0.1, 0.05, 0.2), Interval(0.4, 0.3, 0.5)),
        target=TuningData("items.jsonl", "0a", 40, 40, 1234),
        retain=TuningData("shipped", "0b", 32, 32, 4321, 2),
        seed=3,
        steps=60,
        tokens=12345,
        seconds=67.5,
        versions={"torch": "2"},
        date="2026-11-21",
        complete=False,
        notes=("2 texts stand in the target too.",),
    )


def test_a_tuning_is_read_as_it_was_written(tuned: Tuned, tmp_path: Path) -> None:
    tuned.save(tmp_path)
    found = Tuned.load(tmp_path / "taia_tuning.json")
    assert found == tuned
    assert found.recommended.parsed.value == {"attention@0": 0.8, "ffn@1": 0.25}
    assert [one.label for one in found.front] == ["tuned 1", "none"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "its format is 2"),
        ({"objective": "speed"}, "Tuned.objective holds 'speed'"),
        ({"groups": []}, "another number of weights"),
        ({"seeds": 1}, "seeds"),
        ({"steps": ...}, "steps"),
        ({"date": ...}, "date"),
        ({"versions": ...}, "versions"),
        ({"date": "yesterday"}, "yesterday"),
        ({"steps": "60"}, r"Tuned.steps holds '60'"),
        ({"seconds": float("inf")}, "Tuned.seconds holds inf"),
        ({"notes": [1]}, "Tuned.notes holds 1"),
        ({"model": dataclasses.asdict(ModelIdentity(1, None, None, None, None, "x"))}, "ModelIdentity.name holds 1"),
        ({"target": {"name": None, "sha256": "", "search": 1.5, "report": 1, "report_tokens": 1}}, "TuningData.search"),
        ({"candidates": []}, "none of the candidates"),
    ],
)
def test_a_damaged_tuning_is_refused(tuned: Tuned, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    values = json.loads(json.dumps(tuned.to_json()))
    values = {key: one for key, one in {**values, **changes}.items() if one is not ...}
    (tmp_path / "taia_tuning.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=said):
        Tuned.load(tmp_path)


NAN = Interval(float("nan"), 0, 1)


@pytest.mark.parametrize(
    ("part", "broken", "said"),
    [
        ("candidates", {"setting": [["atention@0", 1]]}, "atention"),
        ("candidates", {"setting": "tuned"}, "'tuned' names the setting"),
        ("candidates", {"target": NAN}, "Interval.value holds nan"),
        ("candidates", {"target": Interval(5, 1, 2)}, "target of 'tuned 1' is 5"),
        ("candidates", {"saved": {"all": Interval(0, 1, 2)}}, "saved over all of 'tuned 1' is 0"),
        ("choice", {"gain": Interval(-1, 0, 1)}, "the gain of the choice is -1"),
        ("candidates", {"kept": NAN}, "Interval.value holds nan"),
        ("candidates", {"gain": {"none": Interval(0, 0, "1")}}, "Interval.high holds '1'"),
        ("candidates", {"weights": (0.8, float("nan"))}, "Candidate.weights holds nan"),
        ("candidates", {"weights": (0.8, "1")}, "Candidate.weights holds '1'"),
        ("candidates", {"weights": (10**400, 1)}, "Candidate.weights holds 1000"),
        ("candidates", {"kind": "magic"}, "Candidate.kind holds 'magic'"),
        ("candidates", {"trade_off": "much"}, "Candidate.trade_off holds 'much'"),
        ("choice", {"gain": NAN}, "Interval.value holds nan"),
        ("choice", {"saved": NAN}, "Interval.value holds nan"),
        ("choice", {"beats_plain": "no"}, "Choice.beats_plain holds 'no'"),
        ("groups", {"layers": (0, 10**9)}, "has the layers"),
        ("groups", {"layers": (3, 2)}, "has the layers"),
        ("groups", {"layers": (-1, 2)}, "has the layers"),
        ("groups", {"layers": (1,)}, "WeightGroup.layers holds"),
        ("groups", {"layers": ("0", "1")}, "WeightGroup.layers holds '0'"),
        ("groups", {"role": "attentoin"}, "unknown role"),
        ("groups", {"modules": True}, "WeightGroup.modules holds True"),
    ],
)
def test_a_part_that_cannot_be_is_refused(tuned: Tuned, part: str, broken: dict[str, Any], said: str) -> None:
    values = json.loads(json.dumps(tuned.to_json()))
    changed = values[part] if part == "choice" else values[part][0]
    changed |= json.loads(json.dumps({key: _plain(one) for key, one in broken.items()}))
    with pytest.raises(ConfigError, match=f"damaged: .*{re.escape(said)}"):
        Tuned.from_json(values)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return dataclasses.asdict(value) if isinstance(value, Interval) else value


def test_a_tuning_that_is_not_there_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="taia tune"):
        Tuned.load(tmp_path)


def test_the_text_shows_what_is_gained_and_kept_and_what_to_use(tuned: Tuned) -> None:
    lines = str(tuned).splitlines()
    rows = [line.split() for line in lines[:4]]
    assert rows[0][:2] == ["candidate", "gain"]
    assert [row[0] for row in rows[1:]] == ["A", "b", "★"], "plain modes come first; capitals are on the front"
    assert rows[3] == ["★", "tuned", "1", "+1.100", "[+1.000,", "+1.200]", "0.1000", "[0.0000,", "0.2000]", "98.0%"]
    assert "Use it: it gains." in lines
    assert "The budget ended the search" in str(tuned)
    assert "2 texts stand in the target too." in lines
    assert max(map(len, lines)) < 80


@pytest.mark.parametrize("found", [30, 60])
def test_the_marks_of_many_candidates_tell_which_are_on_the_front(found: int) -> None:
    many = many_tuned(found=found)
    some = [dataclasses.replace(one, on_front=at % 2 == 0) for at, one in enumerate(many.candidates)]
    many = dataclasses.replace(many, candidates=tuple(some))
    lines = str(many).splitlines()
    on = {mode_title(one.label): one.on_front for one in many.candidates}
    rows = [re.split(r"  +", line) for line in lines[1 : len(some) + 1]]
    rows = [row for row in rows if row[0] != "★"]
    assert len(rows) == len(some) - 1
    front = {"+": True, "-": False}
    assert [front.get(mark, mark.isupper()) for mark, *_ in rows] == [on[label] for _, label, *_ in rows]
    letters = [mark for mark, *_ in rows if mark not in front]
    assert len({mark.lower() for mark in letters}) == len(letters)
    assert (" capitals and + are on" in " ".join(lines)) == (found == 60) == (len(letters) < len(rows))


def test_the_front_is_drawn_with_the_marks_of_the_table(tuned: Tuned) -> None:
    lines = draw_front(tuned).splitlines()[1:-3]
    rows = {mark: next(at for at, line in enumerate(lines) if mark in line) for mark in "A★b"}
    columns = {mark: lines[row].index(mark) for mark, row in rows.items()}
    assert rows["★"] < rows["b"] < rows["A"], "more gain is higher"
    assert columns["A"] < columns["★"] < columns["b"], "what is lost grows to the right"


def test_the_weights_are_drawn_by_layer_and_what_is_in_none_is_named(tuned: Tuned) -> None:
    assert draw_weights(tuned).splitlines() == ["attention  ▇", "ffn         ▂", "           0"]
    outside = WeightGroup("*.down_proj", "*.down_proj", "ffn", None, 2, 10)
    more = dataclasses.replace(tuned, groups=(tuned.groups[0], outside))
    assert draw_weights(more).splitlines()[-1] == "*.down_proj  0.25"
    both = WeightGroup("*@1-2", "*@1-2", None, (1, 2), 2, 10)
    assert weights_by_layer(dataclasses.replace(tuned, groups=(both,)), (0.5,)) == (
        {"all roles": (None, 0.5, 0.5)},
        {},
    )
