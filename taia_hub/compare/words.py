"""Differences between two answers, word by word."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

_WORD = re.compile(r"\w+\s*|[^\w\s]\s*|\s+")


@dataclass(frozen=True)
class Part:
    """A piece of a text that is compared with another.

    Attributes:
        kind: `"same"`, `"added"` (not in the other text) or `"left out"` (only in the other text).
        text: The piece.
    """

    kind: str
    text: str


def word_diff(text: str, against: str) -> tuple[Part, ...]:
    """Compares two texts word by word.

    Args:
        text: The text that is shown.
        against: The text that it is compared with.

    Returns:
        Pieces in order; those that are not `"left out"` make up `text`, those that are not `"added"` make up `against`
        but for its white space.

    Example:
        >>> [(part.kind, part.text) for part in word_diff("a big sea", "a sea")]
        [('same', 'a '), ('added', 'big '), ('same', 'sea')]
    """
    ours, theirs = _WORD.findall(text), _WORD.findall(against)
    parts: list[Part] = []
    bare = [word.strip() for word in theirs], [word.strip() for word in ours]
    for kind, i, j, k, m in difflib.SequenceMatcher(None, bare[0], bare[1], autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(Part("same", "".join(ours[k:m])))
            continue
        if i < j:
            parts.append(Part("left out", "".join(theirs[i:j])))
        if k < m:
            parts.append(Part("added", "".join(ours[k:m])))
    return tuple(parts)


def common_prefix(first: str, second: str) -> int:
    """Returns how many characters of a text another shares from its start, up to the last whole word.

    Example:
        >>> common_prefix("the sea", "the season")
        4
    """
    length = 0
    ours, theirs = _WORD.findall(first), _WORD.findall(second)
    for a, b in zip(ours, theirs, strict=False):
        if a.strip() != b.strip():
            break
        length += len(a)
    return length
