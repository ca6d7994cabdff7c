"""Two measures of hidden states: how near they are to others, and how much their tokens differ."""

from __future__ import annotations

import torch
from torch import Tensor

from taia_hub.errors import ConfigError


def cosine_similarity(one: Tensor, other: Tensor) -> Tensor:
    """Gives the cosine between vectors, (..., H) each, as float64 (...); exactly 1 for equal ones.

    It is 0 where a vector is zero and the other is not, 1 where both are.

    Raises:
        ConfigError: If a value is no number: the cosine of such a vector would seem to be 0.
    """
    _require_numbers(one, other)
    one, other = one.double(), other.double()
    lengths = (one.square().sum(-1) * other.square().sum(-1)).sqrt()  # of equal vectors: exactly their dot product
    cosine = (one * other).sum(-1) / lengths
    return torch.where(lengths > 0, cosine.clamp(-1, 1), (one == other).all(-1).double())


def relative_residual(states: Tensor) -> Tensor:
    """Gives ||res(X)||_{1,inf} / ||X||_{1,inf} of states (..., N, H), one row a token, as float64 (...); 0 for zeros.

    res(X) = X - 1 x^T for the x that leaves the least, and ||X||_{1,inf} = sqrt(||X||_1 ||X||_inf): the root of the
    largest sum of absolute values in a column times that in a row (Dong et al. 2021, section 2, who leave open in which
    norm x is best). Here x minimises ||res(X)||_1, exactly: it is the median over tokens. The mean, which minimises the
    Frobenius norm, is no choice: one token with very large states (an attention sink) draws it so far that the ratio
    exceeds that of x = 0, which is 1.

    Raises:
        ConfigError: If a value is no number: such states would seem to be all alike.

    Example:
        >>> round(relative_residual(torch.tensor([[1.0, 0.0], [3.0, 0.0]])).item(), 6)  # sqrt(2 * 1) / sqrt(4 * 3)
        0.408248
    """
    _require_numbers(states)
    states = states.double()
    count = states.shape[-2]
    ordered = states.sort(dim=-2).values
    middle = (ordered[..., (count - 1) // 2, :] + ordered[..., count // 2, :]) / 2
    whole = _composite_norm(states)
    rest = _composite_norm(states - middle.unsqueeze(-2))
    return torch.where(whole > 0, rest / whole.clamp_min(1e-300), 0)


def _require_numbers(*states: Tensor) -> None:
    if not all(bool(torch.isfinite(state).all()) for state in states):
        raise ConfigError(
            "The hidden states hold values that are no numbers (nan or infinity).",
            "Load the model in bfloat16 or float32 (--dtype); if they stay, its training diverged.",
        )


def _composite_norm(states: Tensor) -> Tensor:
    absolute = states.abs()
    return (absolute.sum(-2).amax(-1) * absolute.sum(-1).amax(-1)).sqrt()
