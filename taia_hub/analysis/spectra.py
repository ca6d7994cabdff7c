"""Norms and ranks of updates and weights, from factors where there are any: no product of their full size is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EXACT_SIZE = 512
_STEPS, _TOLERANCE = 60, 1e-5


@dataclass(frozen=True)
class Spectrum:
    """What the singular values of an update say.

    An update of E matrices, such as that of a mixture's experts, counts as one: its Frobenius norm is that of all of
    them, its spectral norm the largest, its ranks the means. The effective rank is exp of the entropy of the singular
    values divided by their sum (Roy & Vetterli 2007), the stable rank the squared ratio of Frobenius and spectral norm;
    both are 0 for an update of zeros.
    """

    frobenius: float
    spectral: float
    effective_rank: float
    stable_rank: float


def spectrum_of_product(left: Tensor, right: Tensor, scale: float = 1.0) -> Spectrum:
    """Gives the spectrum of `scale * left @ right` from (M, r) and (r, N), or E of both; the product is never made.

    The squared singular values of L R are the eigenvalues of (L^T L)(R R^T), whose size is that of the rank. In float64
    their roots are off by about 1e-8 of the largest one, and this is quicker than two QR decompositions.

    Example:
        >>> spectrum_of_product(torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0, 0.0]]), scale=2.0)
        Spectrum(frobenius=10.0, spectral=10.0, effective_rank=1.0, stable_rank=1.0)
    """
    left, right = left.double(), right.double()
    values, vectors = torch.linalg.eigh(left.mT @ left)
    root = vectors * values.clamp_min(0).sqrt().unsqueeze(-2)  # root @ root.T is the Gram matrix of `left`
    squares = torch.linalg.eigvalsh(root.mT @ (right @ right.mT) @ root)
    return spectrum(squares.clamp_min(0).sqrt() * abs(scale))


def spectrum_of_matrix(matrix: Tensor) -> Spectrum:
    """Gives the spectrum of a matrix (M, N) or (E, M, N) whose factors are not known."""
    return spectrum(torch.linalg.svdvals(matrix.float()).double())


def spectrum(values: Tensor) -> Spectrum:
    """Gives norms and ranks of singular values, (r,) or (E, r).

    Example:
        >>> spectrum(torch.tensor([2.0, 2.0])).effective_rank
        2.0
    """
    values = values.double().reshape(-1, values.shape[-1])  # (E, r)
    squares = values.square().sum(-1)
    largest = values.amax(-1)
    shares = values / values.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    entropy = -torch.special.xlogy(shares, shares).sum(-1)
    there = largest > 0
    effective = torch.where(there, entropy.exp(), 0.0)
    stable = torch.where(there, squares / largest.square().clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    return Spectrum(
        frobenius=squares.sum().sqrt().item(),
        spectral=largest.max().item(),
        effective_rank=effective.mean().item(),
        stable_rank=stable.mean().item(),
    )


def norms(matrix: Tensor) -> tuple[float, float]:
    """Gives the Frobenius and the spectral norm of a base model's weight, (M, N) or (E, M, N): the largest of E.

    The spectral norm is exact where M or N is at most 512; else it comes from at most 60 steps of the Lanczos method
    (Golub & Kahan 1965), which end when it grows by less than 1e-5 of itself, so that it may be too small by a little
    more than that.
    """
    pieces = matrix.reshape(-1, *matrix.shape[-2:])
    squares = sum(float(torch.linalg.vector_norm(piece, dtype=torch.float32).double() ** 2) for piece in pieces)
    return squares**0.5, max(_largest(piece.float()) for piece in pieces)


def _largest(matrix: Tensor) -> float:
    """Gives the largest singular value of a float32 matrix."""
    if min(matrix.shape) <= EXACT_SIZE:
        short = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().mT
        return float(torch.linalg.eigvalsh(short @ short.mT)[-1].clamp_min(0).sqrt())
    vector = torch.randn(matrix.shape[1], generator=torch.Generator().manual_seed(0)).to(matrix)
    basis = matrix.new_empty(matrix.shape[1], 0)
    images = matrix.new_empty(matrix.shape[0], 0)
    found = 0.0
    for _ in range(_STEPS):
        for _ in range(2):  # once leaves rounding errors that grow
            vector = vector - basis @ (basis.mT @ vector)
        if not (length := float(vector.norm())):
            return found
        basis = torch.cat([basis, (vector / length)[:, None]], 1)
        images = torch.cat([images, (matrix @ basis[:, -1])[:, None]], 1)
        largest = float(torch.linalg.eigvalsh((images.mT @ images).double())[-1].clamp_min(0).sqrt())
        if largest - found <= _TOLERANCE * largest:
            return max(largest, found)
        found, vector = largest, matrix.mT @ images[:, -1]
    return found
