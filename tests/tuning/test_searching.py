"""The descent and the plan of a search, by themselves."""

import json

import numpy as np
import pytest

from taia_hub.errors import ConfigError
from taia_hub.tuning.descent import Descent, roughness
from taia_hub.tuning.searching import Plan, Point, State, affordable


def _descend(descent: Descent, begin: int, end: int) -> None:
    for step in range(begin, end):
        descent.step(2 * (descent.weights - [0.5, -1, 3, 0.2]), step / 20)


def test_a_descent_arrives_within_its_bounds() -> None:
    descent = Descent(np.ones(4), (0.0, 1.0))
    _descend(descent, 0, 20)
    np.testing.assert_allclose(descent.weights, [0.5, 0.0, 1.0, 0.2], atol=0.05)


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


def test_no_time_for_a_step_is_told_in_minutes() -> None:
    with pytest.raises(ConfigError, match=r"0\.5 minutes are left, and one step of the search takes 31 s"):
        affordable(Plan(5, 7, (1.0,), 0.5), 30, 31)
