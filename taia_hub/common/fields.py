"""Dataclasses whose fields say what they are in their metadata: for the command line, and for their docstrings."""

from __future__ import annotations

import inspect
from dataclasses import field, fields
from typing import Any, TypeVar

Made = TypeVar("Made", bound=type)


def asked(default: Any, text: str, **shown: Any) -> Any:
    """Makes a field with its help text, and whatever else `taia_hub.cli.options.options_of` shows of it."""
    return field(default=default, metadata={"help": text, **shown})


def documented(made: Made) -> Made:
    """Lists a dataclass's fields in its docstring, by the `help` or `doc` in their metadata, for `help()` and editors.

    Example:
        >>> from dataclasses import dataclass, field
        >>> @documented
        ... @dataclass
        ... class Made:
        ...     '''What is made.'''
        ...     size: int = field(metadata={"help": "How large it is."})
        >>> print(Made.__doc__)
        What is made.
        <BLANKLINE>
        Attributes:
            size: How large it is.
    """
    said = {one.name: one.metadata.get("help") or one.metadata.get("doc") for one in fields(made)}
    lines = [f"    {name}: {text}" for name, text in said.items() if text]
    made.__doc__ = "\n".join([inspect.cleandoc(made.__doc__ or ""), "", "Attributes:", *lines])
    return made
