"""Updates that are no LoRA pair as one: the singular value decomposition of what they add to each weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from taia_hub.errors import UnsupportedUpdateError
from taia_hub.exporting.options import ExportOptions
from taia_hub.exporting.plan import ActingModule, Factors, base_layer
from taia_hub.hub.layout import PEFT
from taia_hub.merging.module import holding, merged_weights
from taia_hub.repository.opening import OpenedUpdate, base_checkpoint
from taia_hub.updates.dense.compressing import truncate
from taia_hub.updates.peft.methods import ADDITIVE
from taia_hub.updates.peft.strict import ADAPTER
from taia_hub.weights.checkpoint import Checkpoint, read_header

DEFAULT_RANK = 64
"""Rank of a product that cannot be exact, where none was asked for."""

EXACT = 1e-6
"""Relative Frobenius error up to which a product counts as exact: what float32 arithmetic loses anyway."""

_LARGEST_EXACT = 512  # vLLM serves no larger rank
_EXACT_SIDE = 1024  # above it, a whole decomposition takes minutes


def convert(
    update: OpenedUpdate, acting: Sequence[ActingModule], folder: Path, options: ExportOptions
) -> tuple[tuple[Factors, ...], dict[str, float]]:
    """Makes LoRA pairs of updates that are none, one module at a time; the others are passed by.

    The factors lie in files of `folder`; beside them comes the relative Frobenius error of each module by path. Other
    methods than additive ones need the base's weights. Refused is what changes more than the weight of a linear layer.
    """
    wanted = [one for one in acting if not one.is_plain]
    checkpoint = None
    if wanted and not _is_additive(update):
        checkpoint = base_checkpoint(update, **options.remote)
    parts, errors = [], {}
    advance = options.advance("converting")
    for number, (one, delta) in enumerate(_differences(update, wanted, checkpoint)):
        _, site, layer = one.entry
        if isinstance(base_layer(layer), Conv1D):
            delta = delta.T  # Conv1D holds (in, out)
        if not bool(delta.any()):
            continue
        b, a, errors[site.path] = product(delta, options.rank)
        file = folder / f"{number}.safetensors"
        save_file({"a": a.contiguous(), "b": b.contiguous()}, file)
        stored = read_header(file)
        parts.append(Factors(site.path, site.role, 1.0, stored["a"], stored["b"]))
        if advance is not None:
            advance(number + 1, len(wanted))
    return tuple(parts), errors


def product(delta: Tensor, rank: int | None) -> tuple[Tensor, Tensor, float]:
    """Finds the smallest product that equals a matrix up to float32 rounding, or the best one of a bounded rank.

    Of a (M, N) matrix that is not all zeros it makes (M, R) and (R, N) float32 factors, and says the Frobenius norm of
    what they lack by that of `delta`. Without a `rank` R is the smallest exact one up to half the shorter side and at
    most 512, else `DEFAULT_RANK`.

    Example:
        >>> b, a, error = product(torch.ones(6, 4), None)
        >>> tuple(b.shape), tuple(a.shape), error < EXACT
        ((6, 1), (1, 4), True)
    """
    side = min(delta.shape)
    bound = min(rank or max(min(side // 2, _LARGEST_EXACT), DEFAULT_RANK), side)
    b, a = _numerically(delta, bound) if side <= _EXACT_SIDE else _growing(delta, bound)
    error = _lacks(delta, b, a)
    if rank is None and error > EXACT and len(a) > DEFAULT_RANK:
        b, a = b[:, :DEFAULT_RANK].clone(), a[:DEFAULT_RANK].clone()
        error = _lacks(delta, b, a)
    return b, a, error


def _numerically(delta: Tensor, bound: int) -> tuple[Tensor, Tensor]:
    """Truncates in float64 where what is left is below float32's rounding."""
    u, s, vh = torch.linalg.svd(delta.double(), full_matrices=False)
    left = s.square().flip(0).cumsum(0).flip(0).sqrt() / s.square().sum().sqrt()  # what rank k lacks is left[k]
    kept = min(int((left > EXACT / 2).sum()), bound) or 1
    root = s[:kept].sqrt()
    return (u[:, :kept] * root).float(), (root[:, None] * vh[:kept]).float()


def _growing(delta: Tensor, bound: int) -> tuple[Tensor, Tensor]:
    """Looks for the matrix's range with more components each time, until a product in it is exact or the bound met."""
    count = min(bound, DEFAULT_RANK)
    while True:
        range_, _ = torch.linalg.qr(truncate(delta.float(), count, None)[0].double())
        b, a = _numerically(range_.T @ delta.double(), bound)  # the components' own errors do not count
        b = (range_ @ b.double()).float()
        if count == bound or _lacks(delta, b, a) <= EXACT:
            return b, a
        count = min(2 * count, bound)


def _lacks(delta: Tensor, b: Tensor, a: Tensor) -> float:
    wide = delta.dtype if delta.dtype == torch.float64 else torch.float32
    norm = float(delta.norm())
    return float((delta - b.to(wide) @ a.to(wide)).norm()) / norm if norm else 0.0


def _is_additive(update: OpenedUpdate) -> bool:
    """Tells whether the method adds a matrix that does not depend on the base's weight."""
    method = update.update.method
    return update.kind is PEFT and method in ADDITIVE and method != "LORA"  # no pair of LORA is DoRA or the like


def _differences(
    update: OpenedUpdate, wanted: Sequence[ActingModule], checkpoint: Checkpoint | None
) -> Iterator[tuple[ActingModule, Tensor]]:
    """Yields what each update adds to its weight, in the weight's own layout."""
    for one in wanted:
        _, site, layer = one.entry
        if checkpoint is None:
            with holding(update, one.entry) as held, torch.no_grad():
                delta = held.get_delta_weight(ADAPTER)
                yield one, (delta.to_dense() if delta.is_sparse else delta) * one.weight
            continue
        base = _base_tensors(checkpoint, site.path, layer, update.kind is PEFT)
        merged = merged_weights(update, one.entry, base, one.weight)
        for name, tensor in base.items():
            if name != "weight" and not torch.equal(merged[name], tensor):
                raise UnsupportedUpdateError(
                    f"The update changes '{site.path}.{name}', which LoRA does not reach.",
                    "Write the setting into a whole model, which every engine serves: `taia merge`.",
                )
        yield one, merged["weight"].double() - base["weight"].double()


def _base_tensors(checkpoint: Checkpoint, path: str, layer: Any, widen: bool) -> dict[str, Tensor]:
    """Reads a module's own tensors; for PEFT in float32, so that 16-bit rounding does not hide the update."""
    found = {}
    for name, _ in base_layer(layer).named_parameters(recurse=False):
        if (group := checkpoint.groups.get(f"{path}.{name}")) is not None:
            made = group.convert(checkpoint.model, [stored.read() for stored, _ in group.sources])
            tensor = made.get(f"{path}.{name}", next(iter(made.values())))
            found[name] = tensor.float() if widen and tensor.dtype != torch.float64 else tensor.clone()
    return found
