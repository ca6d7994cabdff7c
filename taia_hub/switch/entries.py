"""One line of a setting: which adapted modules it selects, and the weight that it gives each of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Protocol

from taia_hub.errors import SettingError, closest
from taia_hub.roles import ROLES

ANY = "*"
"""What stands before `@` for modules of every role, as in `*@0-7`."""

Ramp = tuple[float, float]
"""The weights at the first and at the last of an entry's layers; those between lie on a line."""


class Adapted(Protocol):
    """What a setting needs to know of an adapted module."""

    @property
    def path(self) -> str:
        """Module path as in the head model."""

    @property
    def role(self) -> str:
        """One of `ROLES`."""

    @property
    def layer(self) -> int | None:
        """Index of the layer that the module is in, or None outside the layers."""


@dataclass(frozen=True)
class Entry:
    """One line of a setting: what it selects and with which weight, or with which ramp over its layers.

    A selector is a `role`, or `ANY`, with first and last of its `layers` (inclusive, None for every one), or a glob
    without a role. `ANY` always has layers, and a ramp at least two of them.
    """

    key: str
    weight: float | Ramp
    role: str | None
    layers: tuple[int, int] | None

    @property
    def value(self) -> float | list[float]:
        """The weight as users and files write it."""
        return list(self.weight) if isinstance(self.weight, tuple) else self.weight

    @property
    def ends(self) -> tuple[float, ...]:
        """The numbers that were given; every weight of the entry is one of them or lies between them."""
        return self.weight if isinstance(self.weight, tuple) else (self.weight,)

    def selects(self, module: Adapted) -> bool:
        """Tells whether this entry's weight applies to `module`."""
        if self.role is None:
            return fnmatchcase(module.path, self.key)
        if self.role not in (module.role, ANY):
            return False
        if self.layers is None:
            return True
        return module.layer is not None and self.layers[0] <= module.layer <= self.layers[1]

    def weight_of(self, module: Adapted) -> float:
        """Returns the weight of a module that is selected.

        On a ramp from a to b over the layers f to l that is a + (b - a) * (layer - f) / (l - f), rounded once: both
        ends are met exactly. Layers that the model lacks count, so that a ramp means the same on every model.
        """
        if not isinstance(self.weight, tuple):
            return self.weight
        assert self.layers is not None
        assert module.layer is not None
        (first, last), (start, end) = self.layers, map(Fraction, self.weight)
        return float(start + (end - start) * Fraction(module.layer - first, last - first))

    def no_match(self, modules: Iterable[Adapted]) -> SettingError:
        """Makes the error of an entry that selects none of a model's adapted modules."""
        modules = list(modules)
        if self.role is None:
            paths = [module.path for module in modules]
            example = f" The first adapted module is '{paths[0]}'." if paths else ""
            return SettingError(
                f"'{self.key}' matches none of the model's {len(paths)} adapted modules."
                f"{closest(self.key, [*ROLES, *paths])}",
                f"A selector is a role, a role at layers, or a glob on the module path.{example}",
            )
        role = "" if self.role == ANY else f"{self.role} "
        layers = sorted({one.layer for one in modules if one.layer is not None and self.role in (one.role, ANY)})
        has, hint = f"none of them is {role}in a layer", "Leave it out: where there is no update, nothing acts."
        if layers:
            has = f"its adapted {role}modules are in layers {_ranges(layers)}"
            hint = f"Write '{self.role}@{layers[0]}-{layers[-1]}', or '{self.role}' for every layer."
        return SettingError(f"'{self.key}' matches none of the model's {len(modules)} adapted modules; {has}.", hint)


def _ranges(layers: Sequence[int]) -> str:
    if layers[-1] - layers[0] == len(layers) - 1:
        return f"{layers[0]}-{layers[-1]}"
    return ", ".join(map(str, layers))
