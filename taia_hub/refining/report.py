"""What refining an update kept and left alone, as values, as a file beside a model, and in words."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from taia_hub import hub
from taia_hub.common.atomic import write_atomically
from taia_hub.common.text_tables import amount
from taia_hub.errors import ConfigError, TAIAError, closest, short
from taia_hub.roles import ROLES

REFINEMENT_FILE = "taia_refinement.json"
"""The file beside a model that holds a `Refinement` of its update."""

VERSION = 1


class Method(str, Enum):
    """How an update is refined; `parse` reads it from what a person wrote."""

    NORM = "norm"
    DG_HARD = "dg-hard"

    @property
    def label(self) -> str:
        """Its name in words."""
        return _LABELS[self][0]

    @property
    def source(self) -> str:
        """Where it was published."""
        return _LABELS[self][1]

    @classmethod
    def parse(cls, value: Any) -> Method:
        """Reads a method.

        Raises:
            ConfigError: If there is none of that name.

        Example:
            >>> Method.parse("norm").label
            'NoRM'
        """
        known = [one.value for one in cls]
        if isinstance(value, str) and value in known:
            return cls(value)
        raise ConfigError(
            f"There is no way {value!r} to refine an update.{closest(str(value), known)}",
            "Choose norm, for LoRA adapters, or dg-hard, for full fine-tunes (--dense).",
        )


_LABELS = {
    Method.NORM: ("NoRM", "Jiang et al., ICLR 2025, openreview.net/forum?id=ZV7CLf0RHK"),
    Method.DG_HARD: ("DG-Hard", "Abro and Tahir, arXiv 2605.20296"),
}
_KEPT_BY = {
    Method.NORM: "the leading singular components whose output directions lie nearest to the base weight's own",
    Method.DG_HARD: "the singular components above the threshold of Gavish and Donoho (2014) for noise",
}


@dataclass(frozen=True)
class RefinedMatrix:
    """What was kept of the update of one matrix. Norms are Frobenius norms.

    Attributes:
        name: Path of the adapted module, or name of the tensor in the fine-tune's files.
        role: Its role.
        shape: (out, in), or as the tensor lies in the file.
        rank: Number of singular components before; of a stack of matrices all together.
        kept: Number of them that were kept.
        norm: Norm of the update before.
        kept_norm: Norm of the update afterwards.
        phi: Overlap with the base weight's leading output directions, in [0, 1], of what was kept (NoRM).
        phi_before: The same of the whole update.
        threshold: Singular values above it were kept (DG-Hard); of a stack the largest.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    rank: int
    kept: int
    norm: float
    kept_norm: float
    phi: float | None = None
    phi_before: float | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class LeftAlone:
    """A tensor of the update that was kept as it is, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class RefinedRole:
    """What was kept of one role: numbers of matrices and of singular components, and the share of the norm."""

    matrices: int
    rank: int
    kept: int
    share: float
    phi: float | None = None


@dataclass(frozen=True)
class Refinement:
    """What refining an update did, by matrix.

    Attributes:
        method: How it was refined.
        matrices: What was refined; a matrix of which all was kept is among them.
        left_alone: What was not.
        update_sha256: Hash of the file that names the update that came of it; empty before it is written.
        original_sha256: The same of the update before; None where it was a difference of two models.
    """

    method: Method
    matrices: tuple[RefinedMatrix, ...]
    left_alone: tuple[LeftAlone, ...] = ()
    update_sha256: str = ""
    original_sha256: str | None = None

    @property
    def roles(self) -> dict[str, RefinedRole]:
        """Role to what was kept of it, in the order that roles have; only those of which some is there."""
        found = {role: [one for one in self.matrices if one.role == role] for role in ROLES}
        return {role: _summed(matrices) for role, matrices in found.items() if matrices}

    @property
    def whole(self) -> RefinedRole:
        """What was kept of all roles together."""
        return _summed(self.matrices)

    def to_text(self) -> str:
        """Says in some lines what was kept."""
        lines = [f"Refined by {self.method.label} ({self.method.source}); kept:"]
        for role, one in self.roles.items():
            phi = "" if one.phi is None else f", overlap with the base {one.phi:.3f}"
            lines.append(
                f"  {role}: {one.kept:,} of {one.rank:,} singular components of {_matrices(one.matrices)}, "
                f"{one.share:.1%} of the norm{phi}"
            )
        for reason, names in _by_reason(self.left_alone).items():
            lines.append(f"  as it was: {amount(len(names), 'tensor')}, {reason}")
        return "\n".join(lines)

    def sentences(self) -> tuple[str, ...]:
        """Says on a card what was done, in one or two sentences."""
        one, how = self.whole, _KEPT_BY[self.method]
        said = (
            f"Refined by {self.method.label} ({self.method.source}): of each matrix of the update {how} were kept, "
            f"{one.kept:,} of {one.rank:,} in {_matrices(one.matrices)}, with {one.share:.1%} of its Frobenius norm."
        )
        if not self.left_alone:
            return (said,)
        count = len(self.left_alone)
        return (said, f"{amount(count, 'tensor')} of the update {'is' if count == 1 else 'are'} as trained.")

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        values = asdict(self)
        return {"version": VERSION, **values, "method": self.method.value, "source": self.method.source}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Refinement:
        """Reads what `to_json` gave.

        Raises:
            ValueError: If it is malformed, or of a later version.
        """
        if not isinstance(values.get("version"), int) or values["version"] > VERSION:
            raise ValueError(f"its version is {values.get('version')!r}; {VERSION} is known here")
        try:
            matrices = tuple(
                RefinedMatrix(**{**one, "shape": tuple(map(int, one["shape"]))}) for one in values["matrices"]
            )
            for one in matrices:
                _check(one)
            left = tuple(LeftAlone(str(one["name"]), str(one["reason"])) for one in values["left_alone"])
            hashes = str(values["update_sha256"]), values.get("original_sha256")
            return cls(Method(values["method"]), matrices, left, *hashes)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"it is malformed ({error})") from error

    def save(self, path: Path) -> None:
        """Writes it into a file, whole or not at all."""
        write_atomically(path, json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Refinement:
        """Reads a file that `save` wrote.

        Raises:
            ConfigError: If it is malformed, or of a later version.
            RepositoryError: If it is missing, or cannot be read.
        """
        try:
            return cls.from_json(hub.read_json(path))
        except ValueError as error:
            if isinstance(error, TAIAError):
                raise
            raise ConfigError(
                f"'{path}' cannot be read as the refinement of an update: {error}.",
                "Make the repository again, with --refine, or delete the file.",
            ) from error


def _check(one: RefinedMatrix) -> None:
    """Refuses what no refinement can say of a matrix; the file may be anybody's."""
    if not isinstance(one.name, str) or one.role not in ROLES:
        raise ValueError(f"a matrix has the name {short(one.name)} and the role {short(one.role)}")
    counts, norms = (one.rank, one.kept), (one.norm, one.kept_norm)
    if not all(type(count) is int for count in counts) or not 0 <= one.kept <= one.rank:
        raise ValueError(f"the ranks of '{one.name}' are {short(counts)}")
    numbers = [*norms, *(value for value in (one.phi, one.phi_before, one.threshold) if value is not None)]
    if not all(type(number) in (int, float) and math.isfinite(number) and number >= 0 for number in numbers):
        raise ValueError(f"the numbers of '{one.name}' are {short(numbers)}")


def _summed(matrices: Iterable[RefinedMatrix]) -> RefinedRole:
    matrices = tuple(matrices)
    before, after = (math.hypot(*norms) for norms in zip(*((one.norm, one.kept_norm) for one in matrices), strict=True))
    phis = [one.phi for one in matrices if one.phi is not None]
    return RefinedRole(
        matrices=len(matrices),
        rank=sum(one.rank for one in matrices),
        kept=sum(one.kept for one in matrices),
        share=after / before if before else 1.0,
        phi=sum(phis) / len(phis) if phis else None,
    )


def _matrices(count: int) -> str:
    return f"{count} {'matrix' if count == 1 else 'matrices'}"


def _by_reason(left_alone: Iterable[LeftAlone]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in left_alone:
        found.setdefault(one.reason, []).append(one.name)
    return found
