"""Subclasses made at run time that still pickle, copy and travel to other processes."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def subclass(mixin: type, base: type) -> type:
    """Makes the class `TAIA<Base>(mixin, base)`, once for each pair.

    Args:
        mixin: A subclass of `Rebuildable`; its methods come first.
        base: The class whose instances are to behave as `mixin` says.

    Returns:
        The same class object for the same pair.
    """
    body = mixin._class_body(base) if issubclass(mixin, Rebuildable) else {}
    body |= {"_taia_parts": (mixin, base), "__module__": mixin.__module__, "__doc__": base.__doc__}
    return type(f"TAIA{base.__name__}", (mixin, base), body)


class Rebuildable:
    """Pickles and copies by the two classes it was made of, so that the generated name need not be importable."""

    _taia_parts: tuple[type, type]

    @classmethod
    def _class_body(cls, base: type) -> dict[str, Any]:
        """Returns the attributes that the generated subclass of `base` gets beyond the mixin's."""
        return {}

    def __reduce_ex__(self, protocol: int) -> tuple[Any, ...]:  # type: ignore[override]
        _, _, *state = super().__reduce_ex__(protocol)  # type: ignore[misc]
        return (_rebuild, self._taia_parts, *state)


def _rebuild(mixin: type, base: type) -> Any:
    cls = subclass(mixin, base)
    return cls.__new__(cls)
