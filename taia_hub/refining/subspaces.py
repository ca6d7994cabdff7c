"""Singular vectors of products, and the leading ones of weights that are too large to be taken apart whole."""

from __future__ import annotations

import torch
from torch import Tensor

_EXACT_SIDE = 1024  # above it, an exact decomposition takes minutes
_OVERSAMPLED = 16
_SETTLED = 1e-7  # what a subspace may still turn, as a share of its dimensions
_BLOCKS = 16  # at most; most weights need six
_ROWS = 4096  # that are widened to float64 at a time


def product_svd(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Takes a product apart by its factors; neither it nor anything of its size is made.

    The QR decompositions of both factors leave a matrix as small as their rank, whose singular value decomposition is
    exact in float64.

    Args:
        b: (M, r) left factor.
        a: (r, N) right factor.

    Returns:
        (M, R) left singular vectors, (R,) singular values in descending order and (N, R) right singular vectors,
        float64; R is the least of M, N and r.

    Example:
        >>> u, s, v = product_svd(torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0, 0.0]]))
        >>> s.item()
        5.0
    """
    left, inner = torch.linalg.qr(b.double())
    right, outer = torch.linalg.qr(a.double().T)
    u, s, vh = torch.linalg.svd(inner @ outer.T, full_matrices=False)
    return left @ u, s, right @ vh.T


def gram(matrix: Tensor) -> Tensor:
    """Multiplies a matrix (M, N) with its own transpose, in float64, some columns at a time: (M, M)."""
    total = torch.zeros(len(matrix), len(matrix), dtype=torch.float64)
    for columns in matrix.split(_ROWS, dim=1):
        total.addmm_(columns.double(), columns.double().T)
    return total


def leading_left(weight: Tensor, count: int) -> Tensor:
    """Finds the leading left singular vectors of a weight.

    Up to 1,024 rows or columns they are those of the whole decomposition. Above they come from a randomised block
    Krylov iteration (Musco & Musco, NeurIPS 2015) with a fixed seed, which needs a few passes over the weight and ends
    when the subspace does not turn any more.

    Args:
        weight: (M, N), any floating dtype; it is not changed.
        count: How many are asked for.

    Returns:
        (M, R) orthonormal float64 columns, where R is the least of `count`, M and N.

    Example:
        >>> leading_left(torch.diag(torch.tensor([1.0, 3.0])), 1).abs().tolist()
        [[0.0], [1.0]]
    """
    side = min(weight.shape)
    count = min(count, side)
    if side <= _EXACT_SIDE or 4 * (count + _OVERSAMPLED) > side:
        return _exactly(weight, count)
    return _by_iteration(weight.float(), count)


def _exactly(weight: Tensor, count: int) -> Tensor:
    if len(weight) <= weight.shape[1]:
        vectors = torch.linalg.eigh(gram(weight))[1]  # ascending
        return vectors[:, -count:].flip(1)
    right = torch.linalg.eigh(gram(weight.T))[1][:, -count:].flip(1)
    # R of the QR is diagonal up to rounding, so that Q has the same columns up to their signs.
    return torch.linalg.qr(weight.double() @ right)[0]


def _by_iteration(weight: Tensor, count: int) -> Tensor:
    """Collects the blocks W G, (W W^T) W G, ... in an orthonormal basis and takes the leading directions in it."""
    width = count + _OVERSAMPLED
    start = torch.randn(weight.shape[1], width, generator=torch.Generator().manual_seed(0))
    block = torch.linalg.qr(weight @ start)[0]
    basis, images = block, block.T @ weight  # (M, d) and (d, N)
    found = _leading(basis, images, count)
    for _ in range(min(_BLOCKS, min(weight.shape) // width) - 1):  # a full basis is exact
        block = weight @ images[-width:].T
        for _ in range(2):  # once leaves rounding errors that grow
            block = block - basis @ (basis.T @ block)
        block = torch.linalg.qr(block)[0]
        basis, images = torch.cat([basis, block], 1), torch.cat([images, block.T @ weight])
        before, found = found, _leading(basis, images, count)
        if 1 - float((before.T @ found).square().sum()) / count <= _SETTLED:
            break
    return found


def _leading(basis: Tensor, images: Tensor, count: int) -> Tensor:
    vectors = torch.linalg.eigh(gram(images))[1][:, -count:].flip(1)
    return torch.linalg.qr(basis.double() @ vectors)[0]
