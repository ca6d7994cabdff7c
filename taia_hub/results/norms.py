"""What was measured of an update: norms and ranks by module, and put together by layer and role."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModuleUpdate:
    """The update of one adapted module; its `path` is as in the head model.

    Attributes:
        layer: Index of its layer, or None outside the layers.
        method: Class of PEFT's layer, as in `"Linear"`.
        shape: Shape of the updated weight as the method sees it: (out, in), or (experts, out, in).
        rank: Rank of the factors, or None where there are none.
        frobenius: Frobenius norm of the update, or None where it adds no matrix to the weight (a saved copy).
        effective_rank: exp of the entropy of the normalised singular values (Roy & Vetterli 2007).
        stable_rank: Squared ratio of Frobenius and spectral norm.
        base_frobenius: Frobenius norm of the base's weight, where it was read.
    """

    path: str
    role: str
    layer: int | None
    method: str
    parameters: int
    shape: tuple[int, ...] | None = None
    rank: int | None = None
    frobenius: float | None = None
    spectral: float | None = None
    effective_rank: float | None = None
    stable_rank: float | None = None
    base_frobenius: float | None = None
    base_spectral: float | None = None


@dataclass(frozen=True)
class UpdatePart:
    """The updates of several modules, such as those of a role in a layer.

    Attributes:
        measured: Number of the modules that have norms; the measures below are of these alone.
        frobenius: Root of the sum of the squared Frobenius norms.
        spectral: Largest spectral norm.
        effective_rank: Mean effective rank of the modules.
        relative_frobenius: Frobenius norm of the updates by that of the weights they are for; None where the base was
            not read.
        relative_spectral: The largest ratio of a module's spectral norm and its weight's; None as above.
    """

    modules: int
    parameters: int
    measured: int = 0
    frobenius: float | None = None
    spectral: float | None = None
    effective_rank: float | None = None
    stable_rank: float | None = None
    relative_frobenius: float | None = None
    relative_spectral: float | None = None


@dataclass(frozen=True)
class UpdateAnalysis:
    """The norms and ranks of an update, by module in the order of the model.

    `method` is PEFT's name, as in `"LORA"`; `notes` are what to know of the numbers.
    """

    method: str
    modules: tuple[ModuleUpdate, ...]
    notes: tuple[str, ...] = ()

    @property
    def is_relative(self) -> bool:
        """Whether the base's weights were read too."""
        return any(module.base_frobenius is not None for module in self.modules)

    @property
    def total(self) -> UpdatePart:
        """All modules together."""
        return _summarise_modules(self.modules)

    @property
    def by_role(self) -> dict[str, UpdatePart]:
        """Role to its modules together; roles without modules are left out."""
        return _grouped(self.modules, lambda module: module.role)

    @property
    def by_layer(self) -> dict[tuple[int, str], UpdatePart]:
        """`(layer, role)` to their modules together, in the order of the layers; modules outside them are left out."""
        inside = sorted((module for module in self.modules if module.layer is not None), key=lambda one: one.layer or 0)
        return _grouped(inside, lambda module: (module.layer, module.role))


def _summarise_modules(modules: Sequence[ModuleUpdate]) -> UpdatePart:
    """Puts the updates of several modules together; those without norms count by number and parameters only."""
    counted = len(modules), sum(module.parameters for module in modules)
    known = [module for module in modules if module.frobenius is not None]
    if not known:
        return UpdatePart(*counted)
    based = [module for module in known if module.base_frobenius is not None]
    ratios = [_ratio(module.spectral, module.base_spectral) for module in based]
    return UpdatePart(
        *counted,
        measured=len(known),
        frobenius=_root(module.frobenius for module in known),
        spectral=max(module.spectral or 0.0 for module in known),
        effective_rank=sum(module.effective_rank or 0.0 for module in known) / len(known),
        stable_rank=sum(module.stable_rank or 0.0 for module in known) / len(known),
        relative_frobenius=_ratio(
            _root(module.frobenius for module in based), _root(module.base_frobenius for module in based)
        ),
        relative_spectral=max((ratio for ratio in ratios if ratio is not None), default=None),
    )


def _grouped(modules: Sequence[ModuleUpdate], key: Callable[[ModuleUpdate], Any]) -> dict[Any, UpdatePart]:
    groups: dict[Any, list[ModuleUpdate]] = {}
    for module in modules:
        groups.setdefault(key(module), []).append(module)
    return {name: _summarise_modules(found) for name, found in groups.items()}


def _root(norms: Iterable[float | None]) -> float:
    return math.hypot(*(norm or 0.0 for norm in norms))


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole
