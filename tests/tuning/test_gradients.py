"""The gradients of both losses by weight, against finite differences and what `measure` says."""

from typing import Any

import numpy as np
import pytest

from taia_hub.retaining import measure
from taia_hub.tuning.gradients import Gradients
from taia_hub.tuning.grouping import Grouping
from taia_hub.tuning.processes import Processes
from tests.tuning.conftest import general, rows

WEIGHTS = np.array([0.7, 0.1, 0.3, 0.9])


@pytest.fixture(scope="module")
def gradients(update: Any) -> Gradients:
    return Gradients(update, Grouping(update._taia_switch.sites), Processes())


@pytest.mark.parametrize("what", ["target", "kl", "loss"])
def test_gradients_are_those_of_finite_differences(gradients: Gradients, what: Any) -> None:
    items = rows(6, 1, 2) if what == "target" else general(6, 2)

    def slope(weights: np.ndarray) -> Any:
        return gradients.loss(items, weights) if what == "target" else gradients.retention(items, weights, what)

    found, step = slope(WEIGHTS).gradient, 1e-2
    for group in range(4):
        moved = [slope(WEIGHTS + sign * step * np.eye(4)[group]).value for sign in (1, -1)]
        assert found[group] == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=0.02, abs=2e-3)


def test_values_are_those_that_are_measured(gradients: Gradients, update: Any) -> None:
    setting = gradients.grouping.setting(WEIGHTS.tolist())
    target, retain = rows(7, 1, 2), general(8, 2)
    (one,) = measure(update, target, [setting], divergence=False)
    base, other = measure(update, retain, ["none", setting])
    assert gradients.loss(target, WEIGHTS).value == pytest.approx(one.loss, rel=1e-5)
    assert gradients.retention(retain, WEIGHTS, "kl").value == pytest.approx(other.divergence, rel=1e-4)
    assert gradients.retention(retain, WEIGHTS, "loss").value == pytest.approx(other.loss - base.loss, rel=1e-4)


@pytest.mark.filterwarnings("error:Converting a tensor")
def test_tokens_of_the_base_are_counted_too(gradients: Gradients) -> None:
    items, before = rows(3, 1, 2), gradients.computed
    gradients.loss(items, WEIGHTS)
    assert gradients.computed - before == 3 * 12
    gradients.retention(items, WEIGHTS, "kl")
    assert gradients.computed - before == 3 * 3 * 12


def test_padding_and_order_change_nothing(gradients: Gradients) -> None:
    items = [*rows(3, 1, 2), *(type(one)(one.input_ids[:5], one.labels[:5]) for one in rows(3, 9, 2))]
    together = gradients.loss(items, WEIGHTS)
    apart = [gradients.loss([one], WEIGHTS) for one in reversed(items)]
    tokens = sum(one.tokens for one in apart)
    assert together.tokens == tokens == 3 * 11 + 3 * 4
    assert together.value == pytest.approx(sum(one.value * one.tokens for one in apart) / tokens, rel=1e-5)
    np.testing.assert_allclose(
        together.gradient, sum(one.gradient * one.tokens for one in apart) / tokens, rtol=1e-3, atol=1e-6
    )
