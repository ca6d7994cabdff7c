"""The search of NoRM on updates whose truth is known, and against a plain decomposition written here."""

import pytest
import torch

from taia_hub.refining.norm import cut_pair, search, similarities


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(*shape, seed=0):
    return torch.linalg.qr(random(*shape, seed=seed))[0]


@pytest.fixture
def weight():
    """A weight (60, 40) with a decaying spectrum."""
    return orthonormal(60, 40) * torch.logspace(1, -1, 40, dtype=torch.float64) @ orthonormal(40, 40, seed=1).T


def update(weight, inside, outside, spread=0.5, seed=3):
    """Makes a LoRA pair of strong components in the base's leading directions and weaker ones outside of them."""
    u = torch.linalg.svd(weight)[0]
    rank = inside + outside
    left = torch.cat([u[:, :rank] @ orthonormal(rank, inside, seed=seed), u[:, -outside:] if outside else u[:, :0]], 1)
    values = torch.linspace(4, 3, inside, dtype=torch.float64)
    values = torch.cat([values, torch.linspace(1, 0.5, outside, dtype=torch.float64)])
    mixed = random(rank, rank, seed=seed + 1)  # the factors of a training are no singular vectors
    right = orthonormal(weight.shape[1], rank, seed=seed + 2)
    return (left * values) @ mixed, torch.linalg.solve(mixed, right.T)


@pytest.mark.parametrize(("inside", "outside"), [(1, 9), (3, 7), (5, 5), (8, 2), (10, 0)])
def test_what_lies_in_the_bases_leading_directions_is_kept_and_no_more(weight, inside, outside):
    b, a = update(weight, inside, outside)
    found = cut_pair(b, a, weight)
    assert (found.rank, found.kept) == (inside + outside, inside)
    assert found.phi[0] >= found.phi[1]
    u, s, vh = torch.linalg.svd(b @ a)
    assert torch.allclose(found.b @ found.a, (u[:, :inside] * s[:inside]) @ vh[:inside], atol=1e-10)
    assert found.norms == pytest.approx((float((b @ a).norm()), float((found.b @ found.a).norm())))
    assert not found.b[:, inside:].any()
    assert found.a.shape == a.shape


def test_the_directions_of_the_output_decide(weight):
    """A component in the leading input directions alone has nothing to do with it."""
    u, _, vh = torch.linalg.svd(weight)
    values = torch.tensor([2.0, 1.0], dtype=torch.float64)
    left = torch.stack([u[:, 0], u[:, -1]], 1) * values
    assert cut_pair(left, vh[[-1, 0]], weight).kept == 1
    assert cut_pair((left.flip(1) / values.flip(0)) * values, vh[:2], weight).kept == 2


def test_directions_that_are_not_determined_count_by_their_mean():
    outputs, rank, kept = 12, 4, 2
    own, base = orthonormal(outputs, rank), orthonormal(outputs, rank, seed=1)
    found = float(similarities((base.T @ own).square().sum(0), outputs, rank)[kept - 1])
    seen = []
    for seed in range(1500):
        free = random(outputs, rank - kept, seed=10 + seed)
        free -= own[:, :kept] @ (own[:, :kept].T @ free)
        whole = torch.cat([own[:, :kept], torch.linalg.qr(free)[0]], 1)
        seen.append(float((whole.T @ base).square().sum()) / rank)
    error = float(torch.tensor(seen).std()) / len(seen) ** 0.5
    assert found == pytest.approx(sum(seen) / len(seen), abs=4 * error)
    assert error < 0.005


def test_only_tenths_of_the_rank_are_looked_at():
    phis = torch.zeros(64)
    phis[20] = 1.0  # 21 of 64 is no tenth, rounded down
    phis[31] = 0.5
    assert search(phis) == 32
    assert search(torch.tensor([0.5, 0.5])) == 2  # of equal ones the largest
    assert search(torch.tensor([])) == 0


def test_an_update_of_zeros_and_one_of_less_than_its_rank(weight):
    b, a = update(weight, 2, 2)
    nothing = cut_pair(torch.zeros_like(b), a, weight)
    assert (nothing.rank, nothing.kept, nothing.norms) == (0, 0, (0.0, 0.0))
    wide = torch.cat([b, torch.zeros(60, 3)], 1), torch.cat([a, torch.ones(3, 40)])
    found = cut_pair(*wide, weight)
    assert (found.rank, found.kept, found.b.shape) == (4, 2, (60, 7))
    assert torch.allclose(found.b @ found.a, (once := cut_pair(b, a, weight)).b @ once.a, atol=1e-10)


def test_an_update_of_full_rank_has_nothing_to_compare():
    b, a = random(4, 6), random(6, 9, seed=1)
    assert cut_pair(b, a, random(4, 9, seed=2)).kept == 4
