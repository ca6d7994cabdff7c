"""What cards call the modes, after the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class ModeWords(NamedTuple):
    """What a mode is called.

    Attributes:
        name: In the head of a table.
        acting: The updates that act.
        meaning: What the model is then.
    """

    name: str
    acting: str
    meaning: str


MODE_WORDS: Mapping[str, ModeWords] = {
    "attention": ModeWords("TAIA", "attention", "TAIA"),
    "ffn": ModeWords("TAIF", "feed-forward", "TAIF"),
    "all": ModeWords("vanilla", "all", "the vanilla fine-tune"),
    "none": ModeWords("base", "none", "the base model"),
}
"""Mode to its words, in the order of tables."""
