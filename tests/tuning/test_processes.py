"""Two processes share the items of a tuning, and find what one does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import taia_hub
from taia_hub.results import Tuned
from taia_hub.tuning.gradients import Gradients, Slope
from taia_hub.tuning.grouping import Grouping
from taia_hub.tuning.processes import Processes
from tests.evaluation.conftest import in_two_processes
from tests.tuning.conftest import general, rows

OPTIONS: dict[str, Any] = {"by": "role", "points": 2, "tokenizer": object()}


def _tune(model: Any, out: Path) -> None:
    assert Processes.here().count == 2
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


def _slopes(model: Any, expected: list[tuple[float, list[float]]]) -> None:
    gradients = Gradients(model, Grouping(model._taia_switch.sites), Processes.here())
    assert gradients.processes.count == 2
    for (value, gradient), found in zip(expected, _both(gradients), strict=True):
        np.testing.assert_allclose(found.value, value, rtol=1e-5)
        np.testing.assert_allclose(found.gradient, gradient, rtol=1e-3, atol=1e-6)


def _both(gradients: Gradients) -> list[Slope]:
    weights = np.full(4, 0.5)
    return [gradients.loss(rows(5, 1, 2), weights), gradients.retention(general(4, 2), weights, "kl")]


def test_two_processes_add_up_the_gradients_of_one(update: Any) -> None:
    alone = _both(Gradients(update, Grouping(update._taia_switch.sites), Processes()))
    expected = [(one.value, one.gradient.tolist()) for one in alone]
    assert in_two_processes(_slopes, update, expected) == [None, None]


def test_shares_come_back_in_order() -> None:
    items = list("abcdefg")
    parts = [Processes(rank, 3).share(items) for rank in range(3)]
    assert parts == [["a", "d", "g"], ["b", "e"], ["c", "f"]]
    assert Processes(0, 3).merge(parts) == items
