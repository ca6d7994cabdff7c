"""Subclasses made at run time that still pickle, copy and travel to other processes."""

from __future__ import annotations

from typing import Any

_MADE: dict[tuple[type, type], type] = {}


def subclass(mixin: type[Rebuildable], base: type) -> type:
    """Makes the class `TAIA<Base>(mixin, base)`, once for each pair; the methods of the mixin come first."""
    if (mixin, base) not in _MADE:
        body = mixin._class_body(base)
        body |= {"_taia_parts": (mixin, base), "__module__": mixin.__module__, "__doc__": base.__doc__}
        return _MADE.setdefault((mixin, base), type(f"TAIA{base.__name__}", (mixin, base), body))
    return _MADE[mixin, base]


class Rebuildable:
    """Pickles and copies by the two classes it was made of, so that the generated name need not be importable."""

    _taia_parts: tuple[type, type]

    @classmethod
    def _class_body(cls, base: type) -> dict[str, Any]:
        """Returns the attributes that the generated subclass of `base` gets beyond the mixin's."""
        return {}

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        reduced: Any = super().__reduce_ex__(protocol)
        return (_rebuild, self._taia_parts, *reduced[2:])


def _rebuild(mixin: type[Rebuildable], base: type) -> Any:
    return object.__new__(subclass(mixin, base))
