"""DG-Hard: of each matrix that full fine-tuning changed, the singular components that stand out from its noise.

Abro and Tahir, "Spectral Unforgetting", arXiv 2605.20296, and the code published with it
(github.com/BrickleRex/dghard): the difference of fine-tune and base is taken for a matrix of low rank in independent
noise of an unknown size, and its singular values are cut at the threshold of Gavish and Donoho, "The Optimal Hard
Threshold for Singular Values is 4/sqrt(3)", IEEE Transactions on Information Theory 60(8), 2014. With beta the shorter
side by the longer one:

    tau = lambda(beta) / sqrt(mu(beta)) * median singular value
    lambda(beta) = sqrt(2 (beta + 1) + 8 beta / (beta + 1 + sqrt(beta^2 + 14 beta + 1)))

mu(beta) is the median of the Marchenko-Pastur law, which is computed and not approximated. How it is read here:

- The tensors of the files are taken one by one, as the published code does; of a stack of experts each matrix.
- Tensors of one dimension, convolutions and matrices of fewer than 1,024 numbers stay as the fine-tune has them, as
  there. So do embeddings, and a head that is tied to them, which that code cuts: only the rows of tokens that came up
  were trained, so that the median of such a difference says nothing of its noise.
- A matrix with nothing above the threshold is the base's again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from taia_hub.common.progress import Progress
from taia_hub.errors import UnsupportedUpdateError
from taia_hub.refining.report import LeftAlone, Method, RefinedMatrix, Refinement
from taia_hub.refining.subspaces import gram
from taia_hub.roles.sublayers import find_sublayers
from taia_hub.updates.dense.difference import Difference
from taia_hub.weights.checkpoint import Group, StoredTensor, read_header

_FEWEST = 1024  # numbers of a matrix
_CELLS = 1 << 16  # of the integral of the Marchenko-Pastur density


@dataclass(frozen=True)
class Denoised:
    """A difference without the components below the threshold.

    Attributes:
        delta: (M, N), float64.
        values: (R,) singular values of the difference as it was, descending.
        kept: Number of them above the threshold.
        threshold: The threshold.
    """

    delta: Tensor
    values: Tensor
    kept: int
    threshold: float


def refine_difference(
    difference: Difference, scratch: Path, progress: Progress | None = None
) -> tuple[Difference, Refinement]:
    """Cuts the noise off every matrix that a full fine-tune changed, one at a time.

    Args:
        difference: What differs between a base and its fine-tune.
        scratch: Folder for the tensors that come of it, in the dtypes of the fine-tune's files.
        progress: Called with how far it is.

    Returns:
        The difference with these tensors, without what is the base's again; and what was kept.

    Raises:
        UnsupportedUpdateError: If no changed tensor can be cut, or nothing stands out anywhere.
    """
    roles = find_sublayers(difference.base.model).roles
    groups = {id(group): (name, group) for name, group in reversed(list(difference.changed.items()))}
    reasons = {key: _obstacle(name, group, difference) for key, (name, group) in groups.items()}
    count = sum(len(group.sources) for key, (_, group) in groups.items() if reasons[key] is None)
    if not count:
        raise UnsupportedUpdateError(
            f"DG-Hard cuts matrices, and none of the {len(groups)} changed tensors is one: the first is "
            f"{next(iter(reasons.values()))}.",
            "Leave --refine out (refine=None).",
        )
    matrices: list[RefinedMatrix] = []
    left: list[LeftAlone] = []
    made: dict[int, Group | None] = {}
    for key, (name, group) in reversed(list(groups.items())):
        if (reason := reasons[key]) is not None:
            left += [LeftAlone(stored.name, reason) for stored in _sources(group)]
            made[key] = group
            continue
        role = roles.get(name.rpartition(".")[0], "other")
        sources = []
        pairs = zip(_sources(difference.base.groups[name]), group.sources, strict=True)
        for was, (now, pattern) in pairs:
            if progress:
                progress("refining", len(matrices), count)
            new, told = _refined(was, now, role, scratch / f"refined-{len(matrices):06d}.safetensors")
            matrices.append(told)
            sources.append((new, pattern))
        made[key] = (
            replace(group, sources=tuple(sources)) if any(one.kept for one in matrices[-len(sources) :]) else None
        )
    if progress:
        progress("refining", count, count)
    refinement = Refinement(Method.DG_HARD, tuple(matrices), tuple(left))
    return _with(difference, made), refinement


def denoise(delta: Tensor) -> Denoised:
    """Cuts a matrix at the optimal hard threshold for noise of an unknown size.

    The squared singular values are the eigenvalues of the product with its own transpose on the shorter side; in
    float64 their roots are off by about 1e-8 of the largest one.

    Args:
        delta: (M, N), any floating dtype.

    Returns:
        What stands out, the singular values, their number and the threshold.

    Example:
        >>> noise = torch.randn(60, 80, generator=torch.Generator().manual_seed(0))
        >>> denoise(noise + torch.ones(60, 80)).kept
        1
    """
    is_wide = delta.shape[0] <= delta.shape[1]
    short = delta if is_wide else delta.T
    squares, vectors = torch.linalg.eigh(gram(short))
    values = squares.clamp_min(0).sqrt().flip(0)
    threshold = optimal_threshold(values, min(delta.shape) / max(delta.shape))
    kept = int((values > threshold).sum())
    directions = vectors.flip(1)[:, :kept]
    what = directions @ (directions.T @ short.double())
    return Denoised(what if is_wide else what.T, values, kept, threshold)


def optimal_threshold(values: Tensor, beta: float) -> float:
    """Returns Gavish and Donoho's threshold for singular values in noise of an unknown size.

    Args:
        values: (R,) all singular values of the matrix.
        beta: Its shorter side by its longer one, in (0, 1].

    Returns:
        The threshold.

    Example:
        >>> round(optimal_threshold(torch.tensor([9.0, 1.0, 1.0]), 1.0), 2)
        2.86
    """
    return threshold_ratio(beta) * float(values.double().quantile(0.5))


@functools.lru_cache(maxsize=256)
def threshold_ratio(beta: float) -> float:
    """Returns the threshold by the median singular value, omega(beta) of Gavish and Donoho (2014, eq. 5).

    Args:
        beta: The shorter side by the longer one, in (0, 1].

    Returns:
        lambda(beta) divided by the root of the median of the Marchenko-Pastur law.

    Example:
        >>> round(threshold_ratio(0.5), 3)  # 2.1711 in their supplement
        2.171
    """
    known = math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta**2 + 14 * beta + 1)))
    # The density is sqrt((high - x) (x - low)) / (2 pi beta x) from low to high. With x = middle + half cos(angle) its
    # root becomes half sin(angle), and no end of the integral is steep.
    middle, half = 1 + beta, 2 * math.sqrt(beta)
    angles = (torch.arange(_CELLS, dtype=torch.float64) + 0.5) * (math.pi / _CELLS)
    x = middle + half * angles.cos()
    mass = (angles.sin().square() / x).cumsum(0)  # from the upper end down
    at = int(torch.searchsorted(mass, mass[-1] / 2))
    return known / math.sqrt(float(x[at]))


def _refined(was: StoredTensor, now: StoredTensor, role: str, file: Path) -> tuple[StoredTensor, RefinedMatrix]:
    """Cuts a tensor of the fine-tune's files, a matrix or a stack of them; one that loses nothing stays where it is."""
    base, tuned = was.read(), now.read()
    new = torch.empty(tuned.shape, dtype=tuned.dtype)
    rank = kept = 0
    norms, thresholds = [0.0, 0.0], [0.0]
    for target, one, other in zip(*(_matrices(tensor) for tensor in (new, base, tuned)), strict=True):
        found = denoise(other.double() - one.double())
        target.copy_(one.double() + found.delta)
        rank, kept = rank + len(found.values), kept + found.kept
        norms = [
            math.hypot(total, float(part.norm()))
            for total, part in zip(norms, (found.values, found.values[: found.kept]), strict=True)
        ]
        thresholds.append(found.threshold)
    before, after = norms
    told = RefinedMatrix(now.name, role, tuple(now.shape), rank, kept, before, after, threshold=max(thresholds))
    if kept == rank:
        return now, told
    save_file({now.name: new}, file)
    return read_header(file)[now.name], told


def _matrices(tensor: Tensor) -> Iterator[Tensor]:
    yield from (tensor,) if tensor.ndim == 2 else tensor


def _sources(group: Group) -> list[StoredTensor]:
    return [stored for stored, _ in group.sources]


def _obstacle(name: str, group: Group, difference: Difference) -> str | None:
    """Says why a changed tensor stays as the fine-tune has it; None where it is cut."""
    module = difference.base.model.get_submodule(name.rpartition(".")[0])
    was = difference.base.groups[name]
    if name in difference.resized:
        return "of another vocabulary than the base model's"
    if any(isinstance(one, nn.Embedding) for one in _owners(group, difference)):
        return "an embedding"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "a convolution"
    stored = _sources(group)
    if not all(one.dtype.is_floating_point and len(one.shape) in (2, 3) for one in stored):
        return "of one dimension"
    if min(math.prod(one.shape[-2:]) for one in stored) < _FEWEST:
        return f"of fewer than {_FEWEST:,} numbers"
    if was.patterns != group.patterns or [one.shape for one in _sources(was)] != [one.shape for one in stored]:
        return "in another layout than the base model's"
    return None


def _owners(group: Group, difference: Difference) -> Iterator[Any]:
    for name, one in difference.tuned.groups.items():
        if one is group:
            yield difference.base.model.get_submodule(name.rpartition(".")[0])


def _with(difference: Difference, made: Mapping[int, Group | None]) -> Difference:
    """Returns a difference with other tensors; those that are None are left out of it."""
    changed = {name: new for name, group in difference.changed.items() if (new := made[id(group)]) is not None}
    if not changed:
        raise UnsupportedUpdateError(
            "Nothing of this fine-tune stands out from its noise: with DG-Hard the base would be left.",
            "Leave --refine out (refine=None).",
        )
    tuned = replace(difference.tuned, groups={**difference.tuned.groups, **changed})
    aliases = {name: to for name, to in difference.aliases.items() if name in changed}
    resized = {name: rows for name, rows in difference.resized.items() if name in changed}
    return replace(difference, tuned=tuned, changed=changed, aliases=aliases, resized=resized)
