"""What is known of an adapter and its base, what an engine makes of them, and what a rule is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from taia_hub.hub.layout import PREFIX

TENSOR = re.compile(r"(?P<path>.+)\.(?:lora_(?P<factor>[AB])\.weight|lora_embedding_(?P<other>[AB]))")
"""Name of a LoRA factor in PEFT's file."""


@dataclass(frozen=True)
class BaseFacts:
    """What the rules ask of the base model.

    Attributes:
        modules: Paths of the modules that LoRA can adapt (linear layers and embeddings), in the head model; empty where
            they are not known.
        embeddings: Those of them that are embeddings, or the head.
        tied: Whether the head shares its weight with the embedding.
        remote: Whether the base is named by a Hub id, so that an engine can fetch it.
    """

    modules: frozenset[str] = frozenset()
    embeddings: frozenset[str] = frozenset()
    tied: bool = False
    remote: bool = True


@dataclass(frozen=True)
class Verdict:
    """What an engine makes of an adapter.

    Attributes:
        problems: Why the engine refuses it, or would answer wrongly; empty where it takes it.
        notes: What to know, such as a flag to set.
        sources: Where each of `problems` was read.
    """

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """All of it in words: the refusals first."""
        return (*(f"refused: {problem}" for problem in self.problems), *self.notes)


@dataclass(frozen=True)
class Rule:
    """A rule of an engine's loader, with the repository, file and version that it was read from.

    `find` yields what an adapter breaks, or what is to be known of it.
    """

    engine: str
    source: str
    find: Callable[[Adapter], Iterable[str]]
    is_note: bool = False


@dataclass(frozen=True)
class Adapter:
    """An adapter's two files, read as the rules need them: `adapter_config.json`, and the shape of each tensor."""

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    base: BaseFacts
    paths: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        matches = (TENSOR.fullmatch(name) for name in self.shapes)
        object.__setattr__(self, "paths", frozenset(match["path"].removeprefix(PREFIX) for match in matches if match))

    @property
    def is_lora(self) -> bool:
        """Whether its method is LoRA, of whatever variant."""
        return str(self.config.get("peft_type", "LORA")).upper() == "LORA"

    @property
    def rank(self) -> int:
        """The rank that its configuration says."""
        return int(self.config.get("r") or 0)

    @property
    def targets(self) -> tuple[str, ...]:
        """The target modules as a list; an expression is one entry."""
        value = self.config.get("target_modules") or ()
        return (value,) if isinstance(value, str) else tuple(value)


def largest_rank(config: Mapping[str, Any]) -> int | None:
    """Returns the largest rank that an `adapter_config.json` gives a module; None where it gives none.

    Example:
        >>> largest_rank({"r": 8, "rank_pattern": {"q_proj": 24}}), largest_rank({"peft_type": "IA3"})
        (24, None)
    """
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    return max((rank for rank in ranks if isinstance(rank, int)), default=None)


def saved_dtype(config: Mapping[str, Any]) -> str | None:
    """Returns what `config.json` says that a model's numbers are saved in, of a text model within it too.

    Example:
        >>> saved_dtype({"text_config": {"dtype": "bfloat16"}})
        'bfloat16'
    """
    inner = config.get("text_config") or {}
    found = (one.get(name) for one in (config, inner) for name in ("dtype", "torch_dtype"))
    return next(filter(None, found), None)
