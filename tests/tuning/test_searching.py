"""The descent and the plan of a search, by themselves."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from taia_hub.common.labels import Encoded
from taia_hub.errors import ConfigError
from taia_hub.tuning.descent import Descent, roughness
from taia_hub.tuning.gradients import Slope
from taia_hub.tuning.searching import Plan, Point, Search, State, affordable


def _descend(descent: Descent, begin: int, end: int) -> None:
    for step in range(begin, end):
        descent.step(2 * (descent.weights - [0.5, -1, 3, 0.2]), step / 20)


def test_a_descent_arrives_within_its_bounds() -> None:
    descent = Descent(np.ones(4), (0.0, 1.0))
    _descend(descent, 0, 20)
    np.testing.assert_allclose(descent.weights, [0.5, 0.0, 1.0, 0.2], atol=0.05)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-2.0, 2.0)])
def test_a_weight_without_effect_stays_where_it_was(bounds: tuple[float, float]) -> None:
    """Its gradient is rounding, whose sign the kernel may keep."""
    descent = Descent(np.array([1.0, 0.5, 0.5]), bounds)
    for step in range(17):
        descent.step(np.array([2 * (descent.weights[0] - 0.2), 1e-7, 1e-3]), step / 17)
    np.testing.assert_allclose(descent.weights[:2], [0.2, 0.5], atol=0.06)
    assert descent.weights[2] == bounds[0] or descent.weights[2] < 0, "a small slope that is one is gone down"


def test_a_descent_that_was_written_down_goes_on_bit_for_bit() -> None:
    whole, first = Descent(np.ones(4), (0.0, 1.0)), Descent(np.ones(4), (0.0, 1.0))
    _descend(whole, 0, 20)
    _descend(first, 0, 7)
    state = State(first, [Point(0.1, (1 / 3,), 2.5)], [0.1, 0.2], 7, True)
    again = State.from_json(json.loads(json.dumps(state.to_json())), (0.0, 1.0))
    assert (again.found, again.lost, again.tokens, again.again) == (state.found, state.lost, 7, True)
    _descend(again.descent, 7, 20)
    assert (again.descent.weights == whole.weights).all()


def test_roughness_has_the_gradient_of_finite_differences() -> None:
    weights, pairs = np.array([0.1, 0.9, 0.4]), np.array([[0, 1], [1, 2]])
    _, gradient = roughness(weights, pairs)
    for group in range(3):
        step = 1e-6 * np.eye(3)[group]
        numeric = (roughness(weights + step, pairs)[0] - roughness(weights - step, pairs)[0]) / 2e-6
        assert gradient[group] == pytest.approx(numeric, abs=1e-6)


def test_levels_are_equal_ratios_apart() -> None:
    plan = Plan(5, 7, (1.0,), 0.5)
    parts = [plan.part(point) for point in range(1, 5)]
    assert (parts[0], round(parts[-1], 9)) == (0.5, 0.05)
    assert np.allclose(np.diff(np.log(parts)), np.log(0.1) / 3)
    assert plan.total == 10 + 4 * 7


@pytest.mark.parametrize(
    ("seconds", "points", "steps"), [(1000, 5, 7), (30, 5, 5), (22, 5, 4), (15, 3, 4), (6, 1, 4), (2, 1, 1), (1, 1, 1)]
)
def test_a_plan_is_cut_to_the_time_there_is(seconds: float, points: int, steps: int) -> None:
    plan = affordable(Plan(5, 7, (1.0,), 0.5), seconds, 1.0)
    assert (plan.points, plan.steps) == (points, steps)
    assert plan.total <= seconds or (points, steps) == (1, 1)


class _Bowl:
    """Losses whose lowest point is known, in place of a model's."""

    grouping = SimpleNamespace(neighbours=(), whole=(False, False))
    computed = 0

    def loss(self, rows: Any, weights: np.ndarray) -> Slope:
        return Slope(float(((weights - 0.5) ** 2).sum()), 2 * (weights - 0.5), 1)

    def retention(self, rows: Any, weights: np.ndarray, objective: str) -> Slope:
        return Slope(float((weights**2).sum()), 2 * weights, 1)


@pytest.mark.parametrize(
    ("steps", "ended"), [(100, True), (10, False), (17, False), (20, False), (24, False), (28, False)]
)
def test_a_search_that_is_cut_short_did_not_come_to_its_end(
    monkeypatch: pytest.MonkeyPatch, steps: int, ended: bool
) -> None:
    """Its first point has 12 steps, the second 8 more, the first one again 12, and the budget cuts any of them."""
    row = Encoded([1, 2], [-100, 2])
    search = Search(_Bowl(), [row], [row], "kl", 0)  # type: ignore[arg-type]
    monkeypatch.setattr(search, "better", lambda state, gain: None if state.again else state.found[-1])
    state, plan = State.fresh((1.0, 0.0), (0.0, 1.0)), Plan(2, 8, (1.0, 0.0), 0.5)
    assert search.run(state, plan, step_done=lambda done: done < steps) is ended
    if not ended:  # with more time it does
        state.reopen()
        assert search.run(state, plan)
    assert state.again
    assert [one.short for one in state.found] == [False, False]


def test_no_time_for_a_step_is_told_in_minutes() -> None:
    with pytest.raises(ConfigError, match=r"0\.5 minutes are left, and one step of the search takes 31 s"):
        affordable(Plan(5, 7, (1.0,), 0.5), 30, 31)
