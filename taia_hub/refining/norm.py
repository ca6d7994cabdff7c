"""NoRM: of each matrix of a LoRA, the leading components whose output directions lie nearest to the base weight's.

Jiang et al., "Fine-tuning with Reserved Majority for Noise Reduction", ICLR 2025, and the code published with it
(github.com/pixas/NoRM, evaluation/auto_select.py, method `lora`), by the authors of TAIA. Per adapted matrix the update
B A is cut to its k leading singular components, for k in a tenth, two tenths, ..., all of its rank r, and the k is kept
at which the update's left subspace is most similar to that of the base weight W (Sim-Search):

    phi(k) = || U_r(B A cut to k)^T U_r(W) ||_F^2 / r,   with U_r the r leading left singular vectors.

Where that is open, this is how it is read here:

- Of the r left vectors of an update that was cut to k < r components, only k are determined. The published code takes
  what its decomposition returns for singular values of zero, which rounding decides; here the other r - k count by
  their expectation over all directions, so that the choice is the same on every machine. A component then raises phi
  where it overlaps with the base's subspace by more than chance does.
- Left subspaces: the output side, whatever way the weight is stored (Conv1D holds it transposed).
- The search begins at a tenth of the rank, in steps of a tenth, rounded down, at least one: the published defaults.
- Of equal values the largest k is taken, which removes least.
- The scale of the update stays: (alpha / r) B A is cut, and B and A keep their shapes, `r` and `lora_alpha`. The
  published code loads what it cut with alpha / r = 1. Nothing else is rescaled.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora.layer import Linear, LoraLayer, ParamWrapper
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from taia_hub import hub
from taia_hub.common.progress import Progress
from taia_hub.common.rebuildable import Rebuildable
from taia_hub.errors import UnsupportedUpdateError
from taia_hub.hub.layout import PEFT, PREFIX
from taia_hub.refining.report import LeftAlone, Method, RefinedMatrix, Refinement
from taia_hub.refining.subspaces import leading_left, product_svd
from taia_hub.switch.switch import Site, Switch
from taia_hub.updates.attaching import Update
from taia_hub.updates.peft.strict import ADAPTER
from taia_hub.updates.weightless import listed
from taia_hub.weights.base_weights import BaseWeights
from taia_hub.weights.checkpoint import check_numbers, read_header
from taia_hub.weights.shards import outgoing, write_file

_TENTHS = range(1, 11)
_NOTHING = 1e-12  # singular values below it, relative to the largest, are rounding
_WHOLE = "a module or rows that are saved whole"
_EQUAL = 1e-9  # values of phi that differ by less are the same


@dataclass(frozen=True)
class CutPair:
    """The factors of one update after the search.

    Attributes:
        a: (r, D_in), its rows the directions of the input in the order of the components.
        b: (D_out, r), zeros from column `kept` on.
        rank: Number of components that the update had.
        kept: Number of them that it has now.
        norms: Frobenius norm of the product before and afterwards.
        phi: Overlap with the base weight of what was kept, and of all.
    """

    a: Tensor
    b: Tensor
    rank: int
    kept: int
    norms: tuple[float, float]
    phi: tuple[float, float]


def refine_lora(
    update: Update, switch: Switch, base: BaseWeights, out: Path, progress: Progress | None = None
) -> Refinement:
    """Writes a LoRA adapter whose matrices were cut by NoRM, with the configuration that it had.

    Every module keeps its shapes, rank and scale; the columns of B beyond what was kept are zeros, as those of a new
    LoRA are, so that every engine reads it and training can go on. A matrix of which all is kept keeps its bytes, and
    so do tensors that are no factors of a linear layer: modules that are saved whole, embeddings, experts as
    parameters. One weight of the base is in memory at a time.

    Args:
        update: The adapter on its base; it may be on the meta device.
        switch: What says which role each of its modules has.
        base: The weights of the base model.
        out: Folder to write to, which is made.
        progress: Called with how far it is.

    Returns:
        What was kept, by matrix.

    Raises:
        UnsupportedUpdateError: If no module has an update that can be cut.
        UpdateMismatchError: If the base lacks weights.
        RepositoryError: If the base is quantised, the update holds NaN, or there is no space.
    """
    layers = listed(update.head_model, switch.sites)
    reasons = {name: _obstacle(layer) for name, _, layer in layers}
    plan = [(name, site, layer) for name, site, layer in layers if reasons[name] is None]
    if update.kind is not PEFT or not plan:
        raise _refused(update, reasons)
    base.require(f"{site.path}.weight" for _, site, _ in plan)
    hub.check_space(out, 3 * (update.source / PEFT.weights).stat().st_size, "The refined adapter")
    with hub.disk_errors(out), tempfile.TemporaryDirectory(dir=_made(out)) as scratch:
        before = Path(scratch) / "before"
        update.save(before)  # by the names of its base
        check_numbers([before / PEFT.weights], PEFT.noun)
        stored = read_header(before / PEFT.weights)
        cut, matrices = dict(stored), []
        for done, (name, site, layer) in enumerate(plan):
            if progress:
                progress("refining", done, len(plan))
            keys = _keys(name)
            a, b = (stored[key].read() for key in keys)
            weight = base.read(f"{site.path}.weight")
            found = cut_pair(b, a, weight.T if isinstance(layer.get_base_layer(), Conv1D) else weight)
            matrices.append(_told(site, layer.scaling[ADAPTER], found))
            if found.kept < found.rank:
                file = Path(scratch) / f"{done}.safetensors"
                save_file(dict(zip(keys, (found.a.to(a.dtype), found.b.to(b.dtype)), strict=True)), file)
                cut |= read_header(file)
        # The widest dtypes first, so that every tensor lies at a multiple of its element's size.
        ordered = sorted(cut.values(), key=lambda one: -one.dtype.itemsize)
        digest = write_file(out / PEFT.weights, [outgoing(one) for one in ordered])
        shutil.copyfile(before / PEFT.config, out / PEFT.config)
        original = hub.sha256(before / PEFT.weights)
    if progress:
        progress("refining", len(plan), len(plan))
    factors = {key for name, _, _ in plan for key in _keys(name)}
    left = tuple(LeftAlone(key, _why_left(key, reasons)) for key in stored if key not in factors)
    return Refinement(Method.NORM, tuple(matrices), left, digest, original)


def cut_pair(b: Tensor, a: Tensor, weight: Tensor) -> CutPair:
    """Cuts an update to the leading components that are most similar to the base weight.

    Args:
        b: (D_out, r) factor.
        a: (r, D_in) factor.
        weight: (D_out, D_in) weight of the base.

    Returns:
        Factors of the shapes of `a` and `b`, in float64, and what was kept.

    Example:
        >>> weight = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
        >>> b = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0]])  # along the base's first direction, and
        >>> cut_pair(b, b.T.clone(), weight).kept  # along its last one
        1
    """
    outputs, rank = b.shape
    u, s, v = product_svd(b, a)
    there = int((s > _NOTHING * s[0]).sum()) if len(s) else 0
    overlaps = (leading_left(weight, rank).T @ u[:, :there]).square().sum(0)  # (R,) of each component with the base's
    phis = similarities(overlaps, outputs, min(rank, *weight.shape))
    kept = search(phis)
    root = s.sqrt()
    new_a, new_b = torch.zeros(a.shape, dtype=torch.float64), torch.zeros(b.shape, dtype=torch.float64)
    new_a[:there] = (v * root).T[:there]
    new_b[:, :kept] = (u * root)[:, :kept]
    norms = float(s[:there].norm()), float(s[:kept].norm())
    phi = (float(phis[kept - 1]), float(phis[-1])) if there else (0.0, 0.0)
    return CutPair(new_a, new_b, there, kept, norms, phi)


def similarities(overlaps: Tensor, outputs: int, rank: int) -> Tensor:
    """Says how similar an update is to the base weight when it is cut to 1, 2, ... of its components: phi above.

    Of an update that was cut to k components, r - k of the r directions that are compared can be any that are
    orthogonal to the k. Of the base's r directions r - S_k is left in that space of D_out - k dimensions, S_k being the
    overlap of the k, so that each such direction overlaps by (r - S_k) / (D_out - k) in the mean.

    Args:
        overlaps: (R,) squared length of each component's left vector in the base's leading subspace, in [0, 1].
        outputs: D_out.
        rank: r, the number of directions that are compared.

    Returns:
        (R,) phi in [0, 1] after each component.

    Example:
        >>> similarities(torch.tensor([1.0, 0.0]), outputs=4, rank=2).tolist()
        [0.6666666666666666, 0.5]
    """
    total = overlaps.double().cumsum(0)  # S_k
    count = torch.arange(1, len(overlaps) + 1, dtype=torch.float64)
    free = (rank - count).clamp_min(0)
    return (total + free * (rank - total) / (outputs - count).clamp_min(1)) / rank


def search(phis: Tensor) -> int:
    """Chooses how many components are kept of an update: Sim-Search over tenths of its rank.

    Args:
        phis: (R,) of `similarities`.

    Returns:
        How many, from 1 to R; 0 where there are none.

    Example:
        >>> search(torch.tensor([0.2, 0.5, 0.5, 0.4]))
        3
    """
    counts = sorted({max(1, len(phis) * tenths // 10) for tenths in _TENTHS}) if len(phis) else []
    best = max((float(phis[count - 1]) for count in counts), default=0.0)
    return max((count for count in counts if float(phis[count - 1]) >= best - _EQUAL), default=0)


def _refused(update: Update, reasons: Mapping[str, str | None]) -> UnsupportedUpdateError:
    said = f"the first that it adapts is {next(filter(None, reasons.values()), 'none')}"
    if update.kind is not PEFT:
        said = f"this is a {update.kind.noun}"
    elif update.method != "LORA":
        said = f"this is a {update.method} adapter"
    return UnsupportedUpdateError(
        f"NoRM cuts the updates of linear layers by their LoRA factors, and {said}.",
        "Leave --refine out (refine=None). Full fine-tunes have --dense --refine dg-hard.",
    )


def _obstacle(layer: Any) -> str | None:
    """Says of which kind a module's update is that is no product to be cut; None where it is one."""
    if not isinstance(layer, LoraLayer):
        return _WHOLE
    if layer.lora_variant.get(ADAPTER) is not None:
        kind = type(layer.lora_variant[ADAPTER]).__name__.removesuffix("Variant").removesuffix("Linear")
        return f"a {kind}, whose other parameters were trained with the whole product"
    inner = layer.get_base_layer()
    if isinstance(layer, Linear) and isinstance(inner, nn.Linear | Conv1D):
        return None
    if isinstance(layer, ParamWrapper):
        return "of experts as parameters"
    own = next(one for one in type(inner).__mro__ if not issubclass(one, Rebuildable))
    return f"of a layer of class {own.__name__}"


def _why_left(key: str, reasons: Mapping[str, str | None]) -> str:
    """Says why a tensor of the file was kept as it is."""
    path = key.removeprefix(PREFIX)
    owner = max((name for name in reasons if path.startswith(f"{name}.")), key=len, default="")
    return reasons.get(owner) or ("a bias" if owner else _WHOLE)


def _keys(name: str) -> tuple[str, str]:
    return f"{PREFIX}{name}.lora_A.weight", f"{PREFIX}{name}.lora_B.weight"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _told(site: Site, scaling: float, found: CutPair) -> RefinedMatrix:
    before, after = (abs(scaling) * norm for norm in found.norms)
    shape = int(found.b.shape[0]), int(found.a.shape[1])
    return RefinedMatrix(site.path, site.role, shape, found.rank, found.kept, before, after, *found.phi)
