"""Values that show themselves."""

from __future__ import annotations

from functools import singledispatch
from html import escape
from typing import Any


@singledispatch
def text_of(value: Any) -> str:
    """Returns the text of a value, by a function that its class is registered with where that text is made."""
    raise NotImplementedError(type(value).__name__)


class Shown:
    """Shows itself as text: printed, at IPython's prompt, and in a notebook, where nothing in it is markup.

    Its `repr`, which logs and debuggers ask for, computes nothing. A dataclass that is one says `repr=False`.

    Example:
        >>> class Sum(Shown):
        ...     def to_text(self) -> str:
        ...         return "1 < 2"
        >>> print(Sum())
        1 < 2
        >>> Sum()
        <Sum: print it to see it>
        >>> Sum()._repr_html_()
        '<pre>1 &lt; 2</pre>'
    """

    def to_text(self) -> str:
        """Returns what a person reads: what `text_of` was told of this class, where it is not told here."""
        return text_of(self)

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: print it to see it>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Shows the text at IPython's prompt."""
        printer.text(repr(self) if cycle else self.to_text())

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.to_text())}</pre>"
