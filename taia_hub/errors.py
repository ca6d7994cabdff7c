"""Errors of taia_hub: what came, what is allowed, what to do next."""

from __future__ import annotations

import difflib
import functools
import re
import reprlib
from collections.abc import Iterable
from typing import Any

_CACHED = re.compile(
    r"(?:(?<=')(?:[/~.]|[A-Za-z]:)[^'\n]*?|(?<![^\s'\"])[^\s'\"]*)"  # once a word, which keeps long texts fast
    r"[\\/](?:models|datasets|spaces)--([\w.-]+)[\\/](?:snapshots[\\/][0-9a-f]+|blobs)"
)


_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours, movements
    r"|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)"  # titles, links, clipboard
    r"|\x1b[ -/]*[0-~]|\x9b[0-?]*[ -/]*[@-~]"
)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlist = _SHORT.maxdict = _SHORT.maxtuple = 10


class TAIAError(Exception):
    """Base class of every error that taia_hub raises on purpose.

    Args:
        message: What came and what is allowed.
        hint: What to do next; printed on a line of its own.

    Attributes:
        message: The message without the hint.
        hint: The hint, or None.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        message, hint = safe_text(by_name(message)), None if hint is None else safe_text(by_name(hint))
        super().__init__(message if hint is None else f"{message}\n{hint}")
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[TAIAError], tuple[str, str | None]]:
        return type(self), (self.message, self.hint)  # what a GPU worker says reaches the page whole


class SettingError(TAIAError, ValueError):
    """Raised when a setting of the inference modules cannot be understood or cannot act on this model."""


class ConfigError(TAIAError, ValueError):
    """Raised when a `config.json`, a manifest or an argument holds a value of the wrong type or range."""


class RepositoryError(TAIAError, OSError):
    """Raised when a repository or folder is missing, unreachable, incomplete or damaged."""


class UpdateMismatchError(TAIAError, ValueError):
    """Raised when the tensors of an update do not fit the base model."""


class UnsupportedUpdateError(TAIAError, ValueError):
    """Raised when an update cannot be switched off at run time, so that the modes would be wrong."""


class MissingDependencyError(TAIAError, ImportError):
    """Raised when an optional dependency that a feature needs is not installed."""


class OutOfMemoryError(TAIAError, MemoryError):
    """Raised when the memory does not suffice; what was allocated is free again."""


def by_name(text: str) -> str:
    """Writes paths in the Hub's cache as the names of the repositories that they belong to.

    Example:
        >>> by_name("'/cache/hub/models--org--lora/snapshots/0a1b/adapter_config.json' is damaged.")
        "'org/lora/adapter_config.json' is damaged."
    """
    return _CACHED.sub(lambda found: found[1].replace("--", "/"), text)


def short(value: Any) -> str:
    """Writes a value that may be anybody's for a message: however long or deep it is, its beginning.

    Example:
        >>> short("ffn"), short("f" * 1000)[-4:], short([[[[[[[[1]]]]]]]])
        ("'ffn'", "fff'", '[[[[[[...]]]]]]')
    """
    return _SHORT.repr(value)


def safe_text(text: str) -> str:
    r"""Takes out of anybody's text what would act in a terminal; line breaks and tabs stay.

    Those are sequences of control characters, and marks of direction.

    Example:
        >>> safe_text("\x1b[31mred\x1b[0m\n")
        'red\n'
    """
    return _CONTROL.sub("", _SEQUENCE.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))


@functools.lru_cache(maxsize=1024)
def misspelt(name: str, known: tuple[str, ...]) -> str | None:
    """Returns the known name that a name is almost, or None: for names that others may set too.

    Example:
        >>> misspelt("inference_module", ("inference_modules",)), misspelt("inputs", ("inference_modules",))
        ('inference_modules', None)
    """
    return None if name in known else next(iter(difflib.get_close_matches(name, known, 1, 0.85)), None)


def closest(name: str, known: Iterable[str]) -> str:
    """Returns `" Did you mean 'x'?"` for the known name nearest to `name`, or an empty string.

    Args:
        name: What the user wrote.
        known: The names that are allowed.

    Returns:
        A sentence with a leading space, or `""` when nothing is near.

    Example:
        >>> closest("atention", ["attention", "ffn"])
        " Did you mean 'attention'?"
    """
    match = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{match[0]}'?" if match else ""
