"""What a forward pass over texts takes, and what is read from its logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def padded(ids: Sequence[Sequence[int]], device: Any, *, times: int = 1) -> dict[str, Tensor]:
    """Makes the inputs of a forward pass over B items, padded behind, with a mask where one is shorter than another.

    Args:
        ids: Token ids of B items.
        device: Where the inputs go.
        times: How many times the batch stands in them, one after the other.

    Returns:
        `input_ids`, and `attention_mask` where there is padding: (times * B, L) int64, L being the longest item's.

    Example:
        >>> padded([[5, 6], [7]], "cpu")["attention_mask"].tolist()
        [[1, 1], [1, 0]]
    """
    length = max(map(len, ids))
    inputs = {"input_ids": torch.tensor([[*one, *[0] * (length - len(one))] for one in ids])}
    if any(len(one) < length for one in ids):
        inputs["attention_mask"] = torch.tensor([[1] * len(one) + [0] * (length - len(one)) for one in ids])
    return {name: value.repeat(times, 1).to(device) for name, value in inputs.items()}


def kl_divergence(base: Tensor, scores: Tensor) -> Tensor:
    """Returns KL(base || mode) at P places, (P,) nats, of (P, V) log-probabilities of both.

    What the base never says counts nothing.

    Example:
        >>> both = torch.tensor([[0.0, -torch.inf]])
        >>> kl_divergence(both, torch.tensor([[0.5, 0.5]]).log()).exp().tolist()
        [2.0]
    """
    return (base - scores).masked_fill(base == -torch.inf, 0.0).mul(base.exp()).sum(-1)
