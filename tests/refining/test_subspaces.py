"""Decompositions by factors and by iteration, against plain ones in float64."""

import pytest
import torch

from taia_hub.refining import subspaces
from taia_hub.refining.subspaces import leading_left, product_svd


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def far(one, other):
    """Returns how far apart two subspaces are, as a share of their dimensions."""
    return 1 - float((one.T @ other).square().sum()) / one.shape[1]


@pytest.mark.parametrize(("outputs", "rank", "inputs"), [(30, 4, 50), (50, 4, 30), (3, 4, 30), (30, 4, 3)])
def test_a_product_is_taken_apart_by_its_factors(outputs, rank, inputs):
    b, a = random(outputs, rank), random(rank, inputs, seed=1)
    u, s, v = product_svd(b, a)
    assert torch.allclose((u * s) @ v.T, b @ a, atol=1e-12)
    assert torch.allclose(s, torch.linalg.svdvals(b @ a)[: len(s)], atol=1e-12)
    assert torch.allclose(u.T @ u, torch.eye(len(s), dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("shape", [(40, 70), (70, 40), (40, 40)])
@pytest.mark.parametrize("exact_side", [1024, 16])
def test_leading_directions_are_those_of_the_whole_decomposition(shape, exact_side, monkeypatch):
    monkeypatch.setattr(subspaces, "_EXACT_SIDE", exact_side)
    monkeypatch.setattr(subspaces, "_OVERSAMPLED", 5)
    weight = random(*shape).bfloat16()
    found = leading_left(weight, 3)
    assert far(found, torch.linalg.svd(weight.double())[0][:, :3]) < 1e-6
    assert torch.allclose(found.T @ found, torch.eye(3, dtype=torch.float64), atol=1e-9)


def test_a_large_weight_is_not_taken_apart_whole(monkeypatch):
    weight = random(1100, 1200).float() * torch.arange(1, 1201) ** -0.5
    monkeypatch.setattr(subspaces, "_exactly", None)
    assert torch.equal(leading_left(weight, 8), leading_left(weight.clone(), 8))
    found, image = leading_left(weight, 8).float(), weight @ weight.T
    best = torch.linalg.eigvalsh(image.double())[-8:].sum()
    assert float((found.T @ image @ found).trace()) == pytest.approx(float(best), rel=1e-5)


def test_no_more_directions_than_there_are():
    assert leading_left(random(3, 9), 5).shape == (3, 3)
    assert leading_left(random(9, 3), 5).shape == (9, 3)
