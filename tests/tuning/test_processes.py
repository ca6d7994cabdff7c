"""Two processes share the items of a tuning, and find what one does."""

from pathlib import Path
from typing import Any

import pytest

import taia_hub
from taia_hub.results import Tuned
from taia_hub.tuning.processes import Processes
from tests.evaluation.conftest import in_two_processes
from tests.tuning.conftest import general, rows

OPTIONS: dict[str, Any] = {"by": "role", "points": 2, "tokenizer": object()}


def _tune(model: Any, out: Path) -> None:
    tuned = taia_hub.tune(model, rows(25, 1, 2), general(24, 2), out=out, **OPTIONS)
    again = taia_hub.tune(model, rows(25, 1, 2), general(24, 2), out=out, **OPTIONS)
    if again.candidates != tuned.candidates:
        raise AssertionError("what is finished was done again")


def test_two_processes_find_what_one_does(update: Any, tmp_path: Path) -> None:
    alone = taia_hub.tune(update, rows(25, 1, 2), general(24, 2), **OPTIONS)
    assert in_two_processes(_tune, update, tmp_path) == [None, None]
    shared = Tuned.load(tmp_path)
    assert [one.label for one in shared.candidates] == [one.label for one in alone.candidates]
    assert (shared.choice.label, shared.steps, shared.tokens) == (alone.choice.label, alone.steps, alone.tokens)
    for one, other in zip(shared.candidates, alone.candidates, strict=True):
        assert one.weights == pytest.approx(other.weights, abs=0.011)
        assert one.target.value == pytest.approx(other.target.value, abs=0.02)
        assert one.retention.value == pytest.approx(other.retention.value, abs=0.02)


def test_shares_come_back_in_order() -> None:
    items = list("abcdefg")
    parts = [Processes(rank, 3).share(items) for rank in range(3)]
    assert parts == [["a", "d", "g"], ["b", "e"], ["c", "f"]]
    assert Processes(0, 3).merge(parts) == items
