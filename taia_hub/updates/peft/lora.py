"""Adding a plain LoRA update under a weight: in eager code, in a compiled graph, with and without gradients.

The order of operations and the dtypes are those of PEFT's `lora.Linear.forward`, so that a weight of 1 gives PEFT's
output bit for bit. In compiled code the update is a custom operator that reads the setting when it runs: one graph
serves every mode and every row. Where gradients are off it adds in place; where they are on it is functional,
because an operator that mutates has no autograd.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from taia_hub.switch.switch import weight_at
from taia_hub.switch.weight import LearnedWeight, RowWeights, Weight


def add_update(
    y: Tensor, x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, scaling: float, weight: Weight, in_place: bool
) -> Tensor:
    """Adds `weight * scaling * b @ a @ x` to `y`; a masked row is not computed.

    `y` is (N, ..., D_out), `x` (N, ..., D_in) in the dtype of `a`, `a` (r, D_in), `b` (D_out, r) and `bias`, that of
    the second factor (`lora_bias`), (D_out,) or None. `weight` is not 0, weights by row, or learned. With `in_place`,
    for which gradients must be off, `y` may be overwritten and returned.
    """
    if type(weight) is float:
        update = F.linear(F.linear(x, a), b, bias)
        if in_place:
            return y.add_(update.mul_(scaling * weight))
        return (y + update * (scaling * weight)).to(y.dtype)
    if isinstance(weight, LearnedWeight):
        return _add_learned(y, x, a, b, bias, scaling, weight)
    rows, scale = cast(RowWeights, weight).select(y.shape[0], y.device)
    update = F.linear(F.linear(x[rows], a), b, bias)
    if isinstance(scale, Tensor):
        scale = scale.to(update.dtype).view(-1, *[1] * (update.dim() - 1))
    factor = scaling * scale
    update = (update.mul_(factor) if in_place else update * factor).to(y.dtype)
    if not in_place:
        y = y.clone()
    if isinstance(rows, slice):
        y[rows].add_(update)
    else:
        y.index_add_(0, rows, update)
    return y


def _add_learned(
    y: Tensor, x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, scaling: float, weight: LearnedWeight
) -> Tensor:
    """Weighs between the factors: what the weight's gradient needs is kept at rank r, not at D_out."""
    hidden = F.linear(x, a)
    update = F.linear((hidden * (weight.beside(hidden) * scaling)).to(hidden.dtype), b)
    if bias is not None:
        update = update + weight.beside(update) * scaling * bias
    return (y + update).to(y.dtype)


@torch.library.custom_op("taia_hub::add_update_", mutates_args=("y",), tags=(torch.Tag.cudagraph_unsafe,))
def add_update_in_graph(
    y: Tensor, x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, scaling: float, switch: int, site: int
) -> None:
    """Adds the update in place under the setting in force when the graph runs. Arguments as in `add_update`."""
    weight = weight_at(switch, site)
    if weight:
        add_update(y, x.to(a.dtype), a, b, bias, scaling, weight, in_place=True)


@add_update_in_graph.register_fake
def _(y: Tensor, x: Tensor, a: Tensor, b: Tensor, bias: Any, scaling: float, switch: int, site: int) -> None:
    return None


@torch.library.custom_op("taia_hub::with_update", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def with_update_in_graph(
    y: Tensor, x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, scaling: float, switch: int, site: int
) -> tuple[Tensor, Tensor]:
    """Returns `y` plus the update as of `add_update`, and `scaling * weight` of each row: float64 (N,) on the CPU."""
    weight = weight_at(switch, site)
    n = y.shape[0]
    weights = weight.per_row(n) if isinstance(weight, RowWeights) else (weight,) * n
    scales = torch.tensor(weights, dtype=torch.float64) * scaling
    if not any(weights):
        return y.clone(memory_format=torch.contiguous_format), scales
    return add_update(y, x.to(a.dtype), a, b, bias, scaling, weight, in_place=False).contiguous(), scales


@with_update_in_graph.register_fake
def _(
    y: Tensor, x: Tensor, a: Tensor, b: Tensor, bias: Any, scaling: float, switch: int, site: int
) -> tuple[Tensor, Tensor]:
    return y.new_empty(y.shape), torch.empty(y.shape[0], dtype=torch.float64, device="cpu")


@torch.library.custom_op("taia_hub::with_update_backward", mutates_args=())
def update_gradients(
    grad: Tensor, x: Tensor, a: Tensor, b: Tensor, scales: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of a LoRA update with respect to its input, its two factors and its bias.

    `grad` is that of the output, (N, ..., D_out), and `scales` what `with_update_in_graph` returned.
    """
    if not scales.any():  # every update was masked: nothing was computed, nothing flows back
        return x.new_zeros(x.shape), a.new_zeros(a.shape), b.new_zeros(b.shape), b.new_zeros(b.shape[0])
    scale = scales.to(grad.device, b.dtype).view(-1, *[1] * (grad.dim() - 1))
    grad_update = (grad.to(b.dtype) * scale).reshape(-1, b.shape[0])
    flat = x.to(a.dtype).reshape(-1, a.shape[1])
    grad_hidden = grad_update @ b
    return (
        (grad_hidden @ a).view(x.shape).to(x.dtype),
        grad_hidden.T @ flat,
        grad_update.T @ (flat @ a.T),
        grad_update.sum(0),
    )


@update_gradients.register_fake
def _(grad: Tensor, x: Tensor, a: Tensor, b: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), a.new_empty(a.shape), b.new_empty(b.shape), b.new_empty(b.shape[0])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, x, a, b, bias, _, _, _ = inputs
    ctx.save_for_backward(x, a, b, output[1])
    ctx.has_bias = bias is not None


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, a, b, scales = ctx.saved_tensors
    grad_x, grad_a, grad_b, grad_bias = update_gradients(grad, x, a, b, scales)
    return grad, grad_x, grad_a, grad_b, grad_bias if ctx.has_bias else None, None, None, None


with_update_in_graph.register_autograd(_backward, setup_context=_setup_context)
