"""Differences between two answers, word by word."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_WORD = re.compile(r"(\s*)(\w+|[^\w\s]|\Z)")  # what stands before a word, and the word or sign; the last one is empty
_PIECE = re.compile(r"\s+|\w+|[^\w\s]")


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
    """Compares two texts word by word; white space and punctuation are no part of a word.

    Args:
        text: The text that is shown.
        against: The text that it is compared with.

    Returns:
        Pieces in order; those that are not `"left out"` make up `text`, those that are not `"added"` make up `against`,
        each with its white space.

    Example:
        >>> [(part.kind, part.text) for part in word_diff("a big sea", "a sea")]
        [('same', 'a'), ('added', ' big'), ('same', ' sea')]
    """
    ours, theirs = _WORD.findall(text), _WORD.findall(against)
    pieces: list[tuple[str, str]] = []
    words = [word for _, word in theirs], [word for _, word in ours]
    for step, i, j, k, m in difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        if step != "equal":
            pieces += [("left out", "".join(map("".join, theirs[i:j]))), ("added", "".join(map("".join, ours[k:m])))]
            continue
        for (gap, word), (our_gap, _) in zip(theirs[i:j], ours[k:m], strict=True):
            if gap == our_gap:
                pieces.append(("same", gap + word))
            else:
                pieces += [("left out", gap), ("added", our_gap), ("same", word)]
    parts: list[Part] = []
    for kind, piece in pieces:
        if parts and parts[-1].kind == kind:
            parts[-1] = Part(kind, parts[-1].text + piece)
        elif piece:
            parts.append(Part(kind, piece))
    return tuple(parts)


def readable(parts: Iterable[Part]) -> Iterator[Part]:
    """Yields the pieces of a word diff as they are shown in one line of text.

    What is left out and nothing but white space is passed over, and a blank keeps apart two words that stand beside
    each other in neither text.

    Example:
        >>> "".join(part.text for part in readable(word_diff("Blue light", "Red light")))
        'Red Blue light'
    """
    before = ""
    for part in parts:
        if part.kind == "left out" and not part.text.strip():
            continue
        if before and re.fullmatch(r"\w\w", before[-1] + part.text[0]):
            yield Part("same", " ")
        yield part
        before = part.text


def common_prefix(first: str, second: str) -> int:
    """Returns how many characters of a text another shares from its start, up to the last whole word.

    Example:
        >>> common_prefix("the sea", "the season")
        4
    """
    length = 0
    for a, b in zip(_PIECE.findall(first), _PIECE.findall(second), strict=False):
        if a != b:
            break
        length += len(a)
    return length
