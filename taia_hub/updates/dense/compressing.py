"""The difference of a full fine-tune as a low-rank adapter: truncated SVD by module, written as plain PEFT LoRA."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from taia_hub import hub
from taia_hub.common.progress import Progress
from taia_hub.common.text_tables import amount
from taia_hub.errors import ConfigError, RepositoryError, UpdateMismatchError, closest
from taia_hub.hub.layout import PEFT, PREFIX
from taia_hub.roles import ROLES
from taia_hub.roles.sublayers import find_sublayers
from taia_hub.updates.dense.difference import Difference, open_difference
from taia_hub.weights.checkpoint import Group

_EXACT_SIDE = 1024  # above it, an exact SVD takes many times as long as the leading components
_OVERSAMPLED, _ITERATIONS = 16, 6  # of the randomised SVD (Halko, Martinsson & Tropp 2011)


Compress = int | float | Mapping[str, int | float] | None
"""What a difference is compressed to: a rank, a share of its squared norm, either by role, or None for not at all."""


@dataclass(frozen=True)
class CompressedModule:
    """One weight's difference as a low-rank product; `relative_error` is what the product lacks.

    Norms are Frobenius norms; `shape` is (out, in), as the adapter sees the weight.
    """

    path: str
    role: str
    shape: tuple[int, int]
    rank: int
    norm: float
    relative_error: float


@dataclass(frozen=True)
class LeftOut:
    """A changed tensor that the adapter does not hold; without a norm where the shapes differ."""

    name: str
    role: str
    reason: str
    norm: float | None


@dataclass(frozen=True)
class CompressedRole:
    """What compression kept and lost of one role.

    `ranks` are the smallest and the largest; `left_out` is a number of tensors. `relative_error` is what is lost in the
    compressed modules by the Frobenius norm of their differences, `total_error` the same with the tensors left out.
    """

    modules: int
    ranks: tuple[int, int]
    parameters: int
    relative_error: float
    left_out: int
    total_error: float


@dataclass(frozen=True)
class CompressionReport:
    """What compressing a full fine-tune lost; modules are in the order of the model."""

    modules: tuple[CompressedModule, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...] = ()

    @property
    def roles(self) -> dict[str, CompressedRole]:
        """Role to what was kept and lost of it; roles without changes are left out."""
        found = {}
        for role in ROLES:
            modules = [one for one in self.modules if one.role == role]
            others = [one for one in self.left_out if one.role == role]
            if not modules and not others:
                continue
            ranks = [one.rank for one in modules]
            lost = [one.norm * one.relative_error for one in modules]
            whole, rest = [one.norm for one in modules], [one.norm or 0.0 for one in others]
            found[role] = CompressedRole(
                modules=len(modules),
                ranks=(min(ranks, default=0), max(ranks, default=0)),
                parameters=sum(one.rank * sum(one.shape) for one in modules),
                relative_error=_ratio(lost, whole),
                left_out=len(others),
                total_error=_ratio(lost + rest, whole + rest),
            )
        return found

    def worst(self, count: int = 5) -> tuple[CompressedModule, ...]:
        """Returns the modules that lost most, relative to their differences."""
        return tuple(sorted(self.modules, key=lambda one: -one.relative_error)[:count])

    def to_text(self) -> str:
        """Says in some lines what was kept and lost."""
        lines = ["Compressed to a LoRA; lost of the difference (relative Frobenius norm):"]
        for role, one in self.roles.items():
            ranks = f"rank {one.ranks[0]}" if one.ranks[0] == one.ranks[1] else f"ranks {one.ranks[0]}-{one.ranks[1]}"
            kept = (
                f"{amount(one.modules, 'module')}, {ranks}, lost {one.relative_error:.3f}"
                if one.modules
                else "no modules"
            )
            rest = (
                f"; {amount(one.left_out, 'tensor')} left out, lost with them {one.total_error:.3f}"
                if one.left_out
                else ""
            )
            lines.append(f"  {role}: {kept}{rest}")
        worst = [f"{one.path} {one.relative_error:.3f} (rank {one.rank})" for one in self.worst(3)]
        lines.append(f"  most lost: {', '.join(worst)}")
        reasons: dict[str, int] = {}
        for other in self.left_out:
            reasons[other.reason] = reasons.get(other.reason, 0) + 1
        lines += [f"  left out: {amount(count, 'tensor')}, {reason}" for reason, count in reasons.items()]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def compress(
    base_folder: Path | str,
    tuned_folder: Path | str,
    out: Path | str,
    *,
    rank: int | Mapping[str, int] | None = None,
    energy: float | Mapping[str, float] | None = None,
    base_name: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> CompressionReport:
    """Writes a full fine-tune as a LoRA: the truncated SVD of each linear layer's difference, in float32.

    By Eckart and Young no product of this rank is nearer in the Frobenius norm. (Above 1,024 rows and columns the
    leading components come from a randomised SVD, which is near the optimum.) The result is plain PEFT.

    `tuned_folder` may also be what `write_dense` wrote. `energy` is the share in (0, 1] of each difference's squared
    norm to keep; with `rank` as well, the rank is the upper bound. Either may go by role; roles that are not named are
    left out.
    """
    limits = _limits(rank, energy)
    out = Path(out).absolute()
    if (out / PEFT.config).is_file():
        raise RepositoryError(f"'{out}' holds an adapter already.", "Give a new folder.")
    difference = open_difference(base_folder, tuned_folder, trust_remote_code=trust_remote_code, progress=progress)
    placed = find_sublayers(difference.base.model).roles
    modules = dict(difference.base.model.named_modules())
    plan: list[tuple[str, str]] = []
    left_out: list[LeftOut] = []
    for name in difference.base.groups:
        if name in difference.changed:
            role = placed.get(name.rpartition(".")[0], "other")
            if reason := _obstacle(name, role, modules, difference, limits):
                norm = None if name in difference.resized else float(_delta(name, difference).norm())
                left_out.append(LeftOut(name, role, reason, norm))
            else:
                plan.append((name, role))
    if not plan:
        raise UpdateMismatchError(
            f"No changed tensor could be compressed; the first of {len(left_out)} is left out because it is "
            f"{left_out[0].reason}.",
            "Name a role that has changed linear layers, or keep the tuned tensors whole.",
        )
    tensors: dict[str, Tensor] = {}
    done: list[CompressedModule] = []
    for name, role in plan:
        path = name.rpartition(".")[0]
        delta = _delta(name, difference)
        if isinstance(modules[path], Conv1D):
            delta = delta.T  # Conv1D holds (in, out)
        b, a = truncate(delta, *limits[role])
        norm, lost = float(delta.norm()), float((delta - b @ a).norm())
        done.append(CompressedModule(path, role, (len(b), a.shape[1]), len(a), norm, lost / norm if norm else 0.0))
        tensors[f"{PREFIX}{path}.lora_A.weight"] = a.contiguous()
        tensors[f"{PREFIX}{path}.lora_B.weight"] = b.contiguous()
        if progress is not None:
            progress("compressing", len(done), len(plan))
    with hub.written_whole(out) as scratch:
        _config(done, modules, base_name).save_pretrained(str(scratch))
        save_file(tensors, scratch / PEFT.weights, metadata={"format": "pt"})
    return CompressionReport(tuple(done), tuple(left_out), difference.notes)


def compression_limits(compress: Any) -> dict[str, Any]:
    """Sorts a rank (an integer), a share of the squared norm (a float), or a mapping of roles to either, into keywords.

    Example:
        >>> compression_limits({"attention": 32, "ffn": 0.9})
        {'rank': {'attention': 32}, 'energy': {'ffn': 0.9}}
    """
    by_role = compress if isinstance(compress, Mapping) else {"": compress}
    if not by_role or any(isinstance(one, bool) or not isinstance(one, int | float) for one in by_role.values()):
        raise ConfigError(
            f"compress={compress!r} is neither a rank, a share nor a mapping of roles to either.",
            'Give 16, 0.9 or {"attention": 32, "ffn": 0.9}.',
        )
    ranks = {role: one for role, one in by_role.items() if isinstance(one, int)}
    shares = {role: one for role, one in by_role.items() if isinstance(one, float)}
    if not isinstance(compress, Mapping):
        return {"rank": ranks.get(""), "energy": shares.get("")}
    return {"rank": ranks or None, "energy": shares or None}


def truncate(delta: Tensor, rank: int | None, energy: float | None) -> tuple[Tensor, Tensor]:
    """Finds the best product of a low rank for a matrix (M, N): factors (M, R) and (R, N) of equal norm, all float32.

    With an energy, R is as low as keeps that share of the squared Frobenius norm, and `rank` its upper bound.
    """
    side = min(delta.shape)
    bound = min(rank or side, side)
    total = float(delta.double().square().sum())
    count = bound if energy is None else min(bound, 64)
    while True:
        u, s, vh = _leading(delta, count)
        if energy is None:
            kept = bound
            break
        share = s[:bound].double().square().cumsum(0) / (total or 1.0)
        # Rounding must not ask for components beyond those that carry anything.
        enough = (share >= energy * (1 - 1e-6)).nonzero()
        if len(enough) or len(share) == bound:
            kept = int(enough[0]) + 1 if len(enough) else bound
            break
        count = min(2 * count, bound)
    root = s[:kept].sqrt()
    return u[:, :kept] * root, root[:, None] * vh[:kept]


def _leading(delta: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns at least the `count` leading singular triplets: (M, K), (K,) and (K, N)."""
    side = min(delta.shape)
    sampled = count + _OVERSAMPLED
    if side <= _EXACT_SIDE or 4 * sampled > side:
        return torch.linalg.svd(delta, full_matrices=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same adapter each time
        u, s, v = torch.svd_lowrank(delta, q=sampled, niter=_ITERATIONS)
    return u[:, :count], s[:count], v.T[:count]


def _limits(rank: Any, energy: Any) -> dict[str, tuple[int | None, float | None]]:
    """Returns role to rank and energy; roles that were not named are left out."""
    if rank is None and energy is None:
        raise ConfigError(
            "Neither a rank nor an energy share came to compress to.", "Give rank=16, or energy=0.9, or both."
        )
    ranks, energies = _by_role(rank, "rank"), _by_role(energy, "energy")
    for role, value in ranks.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"The rank for {role} is {value!r}.", "Give a whole number from 1 on.")
    for role, value in energies.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= 1:
            raise ConfigError(f"The energy share for {role} is {value!r}.", "Give a number above 0 and up to 1.")
    return {role: (ranks.get(role), energies.get(role)) for role in ROLES if role in ranks or role in energies}


def _by_role(value: Any, what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return dict.fromkeys(ROLES, value)
    if unknown := [role for role in value if role not in ROLES]:
        raise ConfigError(
            f"A {what} came for the unknown role {unknown[0]!r}.{closest(str(unknown[0]), ROLES)}",
            f"Choose among {', '.join(ROLES)}.",
        )
    return dict(value)


def _obstacle(
    name: str, role: str, modules: Mapping[str, nn.Module], difference: Difference, limits: Mapping[str, Any]
) -> str | None:
    """Says why a changed tensor cannot be in the adapter; None when it can."""
    path, _, attribute = name.rpartition(".")
    module = modules[path]
    base, tuned = difference.base.groups[name], difference.changed[name]
    if name in difference.resized:
        return "of another vocabulary than the base model's"
    if not isinstance(module, (nn.Linear, Conv1D)):
        kind = "experts" if any(len(shape) == 3 for shape in base.shapes.values()) else type(module).__name__
        return f"of {kind}, which LoRA on linear layers does not reach"
    if attribute != "weight":
        return f"a {attribute}, which LoRA does not reach"
    names = [one for one, group in difference.base.groups.items() if group is base]
    if name not in base.shapes or name not in tuned.shapes or len(names) > 1:
        return "tied to another tensor"
    if role not in limits:
        return f"of role {role}, for which no rank or energy was given"
    return None


def _delta(name: str, difference: Difference) -> Tensor:
    before = _values(name, difference.base.groups[name], difference)
    return (_values(name, difference.changed[name], difference) - before).float()


def _values(name: str, group: Group, difference: Difference) -> Tensor:
    made = group.convert(difference.base.model, [stored.read() for stored, _ in group.sources])
    values = made[name] if name in made else next(iter(made.values()))
    return values.double() if values.dtype == torch.float64 else values.float()


def _ratio(parts: Iterable[float], whole: Iterable[float]) -> float:
    total = math.hypot(*whole)
    return math.hypot(*parts) / total if total else 0.0


def _config(done: list[CompressedModule], modules: Mapping[str, nn.Module], base_name: str | None) -> LoraConfig:
    largest = max(one.rank for one in done)
    ranks = {one.path: one.rank for one in done if one.rank != largest}
    paths = {one.path for one in done}
    names = sorted({path.rpartition(".")[2] for path in paths})
    meant = {path for path in modules if path.rpartition(".")[2] in names}
    return LoraConfig(
        r=largest,
        lora_alpha=largest,  # times B and A is then the difference itself
        rank_pattern=ranks,
        alpha_pattern=dict(ranks),
        target_modules=names if meant == paths else sorted(paths),
        fan_in_fan_out=all(isinstance(modules[path], Conv1D) for path in paths),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=base_name,
    )
