"""Adding the chosen experts' updates to the base layer's output, computing the chosen experts only.

Tokens are grouped by what they chose, each group is multiplied by its own experts' factors, and the result is added
to the rows of its tokens. Where few sets of k experts are possible, tokens are grouped by the set, so that each token
is gathered once and its k experts run as one matrix of rank k * r; else by the expert, and each token is gathered k
times. Nothing is as large as experts x tokens but the router's logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_SETS = 32
# ^ up to here, groups of whole sets are large enough to be faster than groups of single experts


@dataclass(frozen=True)
class Grouping:
    """Tokens in the order of their groups.

    Attributes:
        groups: The experts of each group and its number of entries, in order.
        order: int64 tensor (T * slots,): entry of each place in the order; the entries of token t are t * slots on.
        slots: How often a token occurs: 1 where groups are sets of experts, k where they are single experts.
    """

    groups: tuple[tuple[tuple[int, ...], int], ...]
    order: Tensor
    slots: int

    @property
    def tokens(self) -> Tensor:
        """int64 tensor (T * slots,): token of each place in the order."""
        return self.order if self.slots == 1 else self.order // self.slots


def group_tokens(selected: Tensor, experts: int) -> Grouping:
    """Groups T tokens by the experts that they chose, int64 (T, k), ascending; each is in one group or in k."""
    _, k = selected.shape
    by_set = experts <= _SETS and math.comb(experts, k) <= _SETS
    keys = (torch.ones_like(selected) << selected).sum(1) if by_set else selected.reshape(-1)
    keys, order = keys.sort(stable=True)
    found, counts = keys.unique_consecutive(return_counts=True)
    groups = tuple(
        (tuple(i for i in range(experts) if key >> i & 1) if by_set else (key,), count)
        for key, count in torch.stack((found, counts), 1).tolist()
    )
    return Grouping(groups, order, 1 if by_set else k)


def add_experts(y: Tensor, x: Tensor, a: Tensor, b: Tensor, gates: Tensor, grouping: Grouping) -> Tensor:
    """Returns `y` plus the gated updates of each token's experts; gradients flow to all but the grouping.

    `y` is (T, D_out), `x` (T, D_in), `a` (E, r, D_in), `b` (E, D_out, r), and `gates` (T, k) the factor of each chosen
    expert, by ascending expert; all but `y` are of one dtype. The result is a new tensor in the dtype of `y`.
    """
    result: Tensor = _AddExperts.apply(y, x, a, b, gates, grouping)
    return result


def add_experts_in_place(y: Tensor, x: Tensor, a: Tensor, b: Tensor, gates: Tensor, grouping: Grouping) -> None:
    """Adds the same numbers to `y` itself, without gradients. Arguments as in `add_experts`."""
    for group in _groups(a, b, gates, grouping):
        hidden = x.index_select(0, group.tokens) @ group.first.T
        y.index_add_(0, group.tokens, (group.gated(hidden) @ group.second.T).to(y.dtype))


@dataclass(frozen=True)
class _Group:
    """One group of tokens, with the factors of its w experts stacked to a rank R = w * r."""

    experts: tuple[int, ...]
    places: slice  # in the order of entries
    entries: Tensor  # (n,)
    tokens: Tensor  # (n,)
    first: Tensor  # (R, D_in)
    second: Tensor  # (D_out, R)
    gate: Tensor  # (n, w)

    def gated(self, hidden: Tensor) -> Tensor:
        """Multiplies each expert's share of a (n, R) tensor by its gate."""
        return (hidden.view(*self.gate.shape, -1) * self.gate.unsqueeze(-1)).flatten(1)


def _groups(a: Tensor, b: Tensor, gates: Tensor, grouping: Grouping) -> Iterator[_Group]:
    width = gates.shape[1] // grouping.slots
    gates, all_tokens = gates.view(-1, width), grouping.tokens
    start = 0
    for experts, count in grouping.groups:
        places = slice(start, start + count)
        entries = grouping.order[places]
        first, second = torch.cat([a[i] for i in experts]), torch.cat([b[i] for i in experts], 1)
        yield _Group(experts, places, entries, all_tokens[places], first, second, gates.index_select(0, entries))
        start += count


class _AddExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, gates: Tensor, grouping: Grouping) -> Tensor:
        y = y.clone()
        hidden = x.new_empty(len(grouping.order), gates.shape[1] // grouping.slots * a.shape[1])
        for group in _groups(a, b, gates, grouping):
            part = hidden[group.places]
            torch.mm(x.index_select(0, group.tokens), group.first.T, out=part)
            y.index_add_(0, group.tokens, (group.gated(part) @ group.second.T).to(y.dtype))
        ctx.save_for_backward(x, a, b, gates, hidden, grouping.order)
        ctx.groups, ctx.slots = grouping.groups, grouping.slots
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, gates, hidden, order = ctx.saved_tensors
        _, wants_x, wants_a, wants_b, _, _ = ctx.needs_input_grad
        r = a.shape[1]
        # Experts that no token chose get zeros, not None: DistributedDataParallel waits for every gradient.
        grad_x, grad_a, grad_b = (
            torch.zeros_like(one) if wanted else None for one, wanted in ((x, wants_x), (a, wants_a), (b, wants_b))
        )
        grad_gates = torch.zeros_like(gates)
        # Who calls `backward` under autocast must not get other dtypes than the forward had.
        with torch.autocast(grad.device.type, enabled=False):
            for group in _groups(a, b, gates, Grouping(ctx.groups, order, ctx.slots)):
                part = hidden[group.places]
                grad_y = grad.index_select(0, group.tokens).to(x.dtype)
                back = grad_y @ group.second
                products = (back * part).view(*group.gate.shape, r).sum(2)
                grad_gates.view(-1, products.shape[1]).index_copy_(0, group.entries, products)
                back = group.gated(back)
                if grad_b is not None:
                    for i, piece in zip(group.experts, (grad_y.T @ group.gated(part)).split(r, 1), strict=True):
                        grad_b[i] += piece
                if grad_a is not None:
                    whole = back.T @ x.index_select(0, group.tokens)
                    for i, piece in zip(group.experts, whole.split(r), strict=True):
                        grad_a[i] += piece
                if grad_x is not None:
                    grad_x.index_add_(0, group.tokens, back @ group.first)
        return grad, grad_x, grad_a, grad_b, grad_gates, None
