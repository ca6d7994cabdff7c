"""Losses as values: paired differences with intervals."""

import math

import pytest
import torch

from taia_hub.demo.losses import MODES, summarise
from taia_hub.retaining import Losses


def _alike(nats, tokens) -> dict[str, Losses]:
    return dict.fromkeys(MODES, Losses(tuple(tokens), tuple(nats)))


def _losses(shift: dict[str, float]) -> dict[str, Losses]:
    hard = torch.rand(40, generator=torch.Generator().manual_seed(3)).mul(20).tolist()
    return {mode: Losses((10,) * 40, tuple(nats + 10 * shift.get(mode, 0.0) for nats in hard)) for mode in MODES}


def test_differences_are_paired():
    table = summarise("x", _losses({"all": 0.5}))
    assert table.losses["all"].value - table.losses["none"].value == pytest.approx(0.5)
    assert table.losses["all"].high - table.losses["all"].low > 0.2
    change = table.differences["all", "none"]
    assert (change.value, change.low, change.high) == pytest.approx((0.5, 0.5, 0.5))
    assert table.differences["attention", "all"].value == pytest.approx(-0.5)


def test_interval_is_that_of_the_mean_over_items():
    nats = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 5
    table = summarise("x", _alike(nats.tolist(), [1] * 400))
    half = 1.96 * nats.std().item() / math.sqrt(400)
    found = table.losses["none"]
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.02)
    assert summarise("x", _alike(nats.tolist(), [1] * 400)) == table


def test_loss_is_a_token_so_that_long_answers_count_more():
    losses = _alike([2.0, 6.0], [1, 6])
    assert summarise("x", losses).losses["all"].value == pytest.approx(8 / 7)


def test_domain_without_items_is_refused():
    with pytest.raises(ValueError, match="'x' has no items"):
        summarise("x", _alike([], []))
