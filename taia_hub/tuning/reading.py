"""Target and retained texts, from files, data sets or values to tokens with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from taia_hub.common.chat import Messages
from taia_hub.common.labels import Encoded
from taia_hub.common.resuming import digest
from taia_hub.errors import ConfigError
from taia_hub.retaining.encoding import encode_texts
from taia_hub.retaining.texts import read_texts
from taia_hub.training.encoding import Encoder
from taia_hub.training.sources import read_sources
from taia_hub.tuning.items import Items

Target = str | Path | Sequence[Messages] | Sequence[Encoded]
"""A file or data set of items that `taia train` takes, or conversations as lists of messages, or encoded items."""

Retain = str | Path | Sequence[str | Messages] | Sequence[Encoded] | None
"""A file of texts or items, or such values, or None for the shipped texts."""


def read_target(target: Target, tokenizer: Any, *, most: int, seed: int = 0, token: str | bool | None = None) -> Items:
    """Reads what an update shall fit: the loss sees the answers, as in a training.

    Of more than `most` items so many are drawn before any becomes tokens, which takes the longest.

    Raises:
        ConfigError: If an item is wrong, or the chat template refuses it.
        RepositoryError: If a file or data set cannot be found or read.
    """
    if isinstance(target, (str, Path)):
        (source,) = read_sources([str(target)], token=token)
        name: str | None = source.label
        conversations: list[Any] = [_plain(row["messages"]) for row in source.dataset]
    elif encoded := _encoded(target):
        return encoded
    else:
        texts = read_texts(cast(Sequence[Messages], target))
        name, conversations = None, [list(item) for item in texts.items if not isinstance(item, str)]
        if len(conversations) < len(target):
            raise ConfigError(
                "A target item is a text: which of it is the answer cannot be told.",
                "Give conversations, as lists of messages that end with the assistant's.",
            )
    encoder = Encoder(tokenizer)
    notes = encoder.notes
    if len(conversations) > most:
        notes += (f"Of {len(conversations):,} target items {most:,} are looked at.",)
        conversations = [conversations[at] for at in np.random.default_rng(seed).permutation(len(conversations))[:most]]
    rows = tuple(encoder.encode(one) for one in conversations)
    return Items(name, rows, tuple(map(_key, conversations)), notes)


def read_retain(retain: Retain, model: Any, tokenizer: Any, *, max_length: int) -> Items:
    """Reads what shall not change: every token of a text counts, and of a conversation those of its last answer.

    Raises:
        ConfigError: If an item is wrong.
        RepositoryError: If a file cannot be found or read.
    """
    if retain is not None and not isinstance(retain, (str, Path)) and (encoded := _encoded(retain)):
        return encoded
    texts = read_texts(retain)  # type: ignore[arg-type] # no encoded items any more
    rows, notes = encode_texts(model, tokenizer, texts.items, max_tokens=max_length)
    name = "shipped" if retain is None else Path(retain).name if isinstance(retain, (str, Path)) else None
    return Items(name, tuple(rows), tuple(map(_key, texts.items)), notes if name != "shipped" else ())


def _encoded(items: Sequence[Any]) -> Items | None:
    """Takes items as they are, where all of them are encoded."""
    if not items or not all(isinstance(one, Encoded) for one in items):
        return None
    return Items(None, tuple(items), tuple(digest(one.input_ids) for one in items))


def _plain(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Leaves out what a stored message does not have."""
    return [{key: value for key, value in turn.items() if value is not None} for turn in messages]


def _key(item: str | Sequence[Mapping[str, Any]]) -> str:
    """Names what an item says: a text, or who says what."""
    if isinstance(item, str):
        return digest(" ".join(item.split()))
    return digest([[turn["role"], " ".join(str(turn["content"]).split())] for turn in item])
