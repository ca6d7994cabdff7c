"""Dataclasses that were made of a stranger's file: whether their fields hold what their annotations say."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from taia_hub.errors import short


def check_types(value: Any) -> None:
    """Checks every field of a dataclass, and what is in it, against its annotation; a float is finite.

    What is understood: texts, numbers, None, literals, unions, mappings, lists, tuples, and dataclasses of these. A
    whole number may stand for a float, and `bool` for no number.

    Raises:
        TypeError: If a field holds something else, by its name.

    Example:
        >>> @dataclasses.dataclass
        ... class Point:
        ...     at: tuple[float, ...]
        >>> check_types(Point((1, 2.5)))
        >>> check_types(Point((1, float("nan"))))
        Traceback (most recent call last):
            ...
        TypeError: Point.at holds nan
    """
    for name, annotation in _annotations(value.__class__).items():
        _check(f"{type(value).__name__}.{name}", getattr(value, name), annotation)


@functools.cache
def _annotations(made: type) -> dict[str, Any]:
    hints = get_type_hints(made)
    return {one.name: hints[one.name] for one in dataclasses.fields(made)}


def _check(where: str, value: Any, annotation: Any) -> None:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        one = next((kind for kind in inner if _is(value, kind)), None)
        if one is not None:
            return _check(where, value, one)
    elif _is(value, annotation):
        return _check_inside(where, value, origin, inner)
    raise TypeError(f"{where} holds {short(value)}")


def _check_inside(where: str, value: Any, origin: Any, inner: tuple[Any, ...]) -> None:
    if dataclasses.is_dataclass(value):
        check_types(value)
    elif origin is tuple and inner[-1] is not ...:
        if len(value) != len(inner):
            raise TypeError(f"{where} holds {short(value)}")
        for one, kind in zip(value, inner, strict=True):
            _check(where, one, kind)
    elif origin in (tuple, list):
        for one in value:
            _check(where, one, inner[0])
    elif origin is Mapping:
        for key, one in value.items():
            _check(where, key, inner[0])
            _check(where, one, inner[1])


def _is(value: Any, annotation: Any) -> bool:
    """Tells whether a value is of a kind, whatever is in it."""
    if annotation is Any:
        return True
    origin = get_origin(annotation)
    if origin is Literal:
        return value in get_args(annotation)
    if annotation in (int, float):
        kinds = (int,) if annotation is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, NoneType if annotation is None else origin or annotation)
