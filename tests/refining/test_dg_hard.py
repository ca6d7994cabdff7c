"""The threshold of DG-Hard, and what it keeps of matrices whose truth is known."""

import pytest
import torch

from taia_hub.refining.dg_hard import denoise, optimal_threshold, threshold_ratio


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.05, 0.25, 0.5, 0.75, 1.0])
def test_the_threshold_is_near_its_published_approximation(beta):
    """Gavish and Donoho (2014): 0.56 beta^3 - 0.95 beta^2 + 1.82 beta + 1.43, off by at most 0.02."""
    assert threshold_ratio(beta) == pytest.approx(0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43, abs=0.02)


def test_the_threshold_of_a_square_matrix_is_that_of_the_paper():
    assert threshold_ratio(1.0) == pytest.approx(2.858, abs=1e-3)
    assert optimal_threshold(torch.tensor([5.0, 3.0, 1.0]), 1.0) == pytest.approx(3 * 2.858, abs=1e-2)


@pytest.mark.parametrize("shape", [(90, 90), (60, 120), (120, 60)])
def test_the_rank_under_noise_of_a_known_size_is_found(shape):
    rows, columns = shape
    sigma = 0.05
    left, right = (torch.linalg.qr(random(side, 3, seed=side))[0] for side in shape)
    edge = sigma * (rows**0.5 + columns**0.5)  # the largest singular value of noise alone
    signal = (left * torch.tensor([4.0, 3.0, 2.0]) * edge) @ right.T
    delta = signal + sigma * random(*shape, seed=7)
    found = denoise(delta)
    assert found.kept == 3
    if rows == columns:  # where sigma is known the threshold is 4/sqrt(3) sigma sqrt(n)
        assert found.threshold == pytest.approx(4 / 3**0.5 * sigma * rows**0.5, rel=0.06)
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    assert torch.allclose(found.values, s, atol=1e-6)
    assert torch.allclose(found.delta, (u[:, :3] * s[:3]) @ vh[:3], atol=1e-6)
    assert float((found.delta - signal).norm()) < 0.5 * float((delta - signal).norm())


def test_of_noise_alone_nothing_is_kept():
    found = denoise(random(64, 96))
    assert (found.kept, float(found.delta.abs().max())) == (0, 0.0)
    assert denoise(torch.zeros(8, 9)).kept == 0
