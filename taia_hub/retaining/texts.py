"""The texts that retention is measured on: the shipped ones, the user's, or those of a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taia_hub.common.chat import Messages
from taia_hub.common.forms import FORMS, find_form, to_messages
from taia_hub.common.jsonl import LineError, get_text, refuse
from taia_hub.common.rows import Row, read_rows
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.results import DatasetSource
from taia_hub.results.retained import RETENTION

SHIPPED = Path(__file__).with_name("data") / "general_texts.jsonl"
"""The shipped texts; where they come from and under which licences: `SOURCES.md` beside them."""

Item = str | tuple[Mapping[str, Any], ...]
"""A text, or the messages of a conversation that ends with an answer."""

_ROWS = (".jsonl", ".json", ".ndjson", ".parquet", ".csv")
FILES = (*_ROWS, ".txt", ".md")
"""Endings of the names of files of texts."""

_FORM = f'{{"text": "The sky is blue."}}, or what `taia train` takes: {FORMS}'


@dataclass(frozen=True)
class Texts:
    """N texts and what their results are called.

    Attributes:
        items: The texts.
        name: Name of the task in a results file.
        title: The name that tables show, as in `"Retention on general text"`.
        dataset: Where they come from.
    """

    items: tuple[Item, ...]
    name: str
    title: str
    dataset: DatasetSource

    def distinct(self) -> Texts:
        """Returns the texts, each of them once: twice it would count as two that agree by chance."""
        once = {json.dumps(item, ensure_ascii=False, sort_keys=True): item for item in self.items}
        return Texts(tuple(once.values()), self.name, self.title, self.dataset)

    def first(self, count: int | None) -> Texts:
        """Returns the first texts, or all of them for None."""
        return Texts(self.items[:count], self.name, self.title, self.dataset)


def read_texts(texts: Sequence[str | Messages] | str | Path | None = None) -> Texts:
    """Reads and checks texts, before any model is there.

    Args:
        texts: Texts, or conversations as lists of messages; or a file: paragraphs with empty lines between them, or
            JSON Lines, a JSON array, Parquet or CSV of items with `text` or of those that `taia train` takes. None
            takes the shipped ones.

    Returns:
        The texts.

    Raises:
        ConfigError: If there is none, one is empty, or items of a file are wrong: each with its line.
        RepositoryError: If there is no such file, or it cannot be read.

    Example:
        >>> len(read_texts().items)
        64
        >>> read_texts(["The sky is blue."]).items
        ('The sky is blue.',)
    """
    if texts is None:
        shipped = _of_file(SHIPPED)
        return Texts(shipped.items, RETENTION, "Retention on general text", shipped.dataset)
    if isinstance(texts, (str, Path)):
        return _of_file(Path(texts).expanduser())
    items = tuple(_checked(number, text) for number, text in enumerate(texts, 1))
    if not items:
        raise ConfigError("There are no texts.", "Give at least ten, or None for the shipped ones.")
    content = json.dumps(items, ensure_ascii=False, sort_keys=True)
    return named("given texts", items, DatasetSource("given texts", sha256=_sha256(content.encode())))


def named(name: str, items: Sequence[Item], dataset: DatasetSource) -> Texts:
    """Makes texts whose results stand beside those of the shipped ones, under a name of their own."""
    return Texts(tuple(items), f"{RETENTION}:{name}", f"Retention on {name}", dataset)


def _checked(number: int, text: Any) -> Item:
    """Checks one of the texts that were given."""
    if isinstance(text, str):
        if not text.strip():
            raise ConfigError(f"Text {number} is empty.", "Leave empty texts out.")
        return text
    try:
        if isinstance(text, (list, tuple)) and all(isinstance(turn, Mapping) for turn in text):
            return tuple(_messages({"messages": [dict(turn) for turn in text]}))
    except LineError as error:
        raise ConfigError(f"Text {number} cannot be used: {error}.", f"An item is one of {FORMS}") from error
    raise ConfigError(f"Text {number} is {text!r:.60}.", "Give a text, or a list of messages.")


def _of_file(path: Path) -> Texts:
    try:
        content = path.read_bytes()
        items = _rows(path) if path.suffix.lower() in _ROWS else _paragraphs(path, content)
    except OSError as error:
        hint = "Texts themselves come as a list." if " " in str(path) and not path.suffix else "Check the path."
        raise RepositoryError(f"The texts '{path}' cannot be read: {error.strerror or error}.", hint) from error
    if not items:
        raise ConfigError(f"'{path}' is empty.", f"Paragraphs, or one item a line: {_FORM}")
    return named(path.name, items, DatasetSource(path.name, sha256=_sha256(content)))


def _paragraphs(path: Path, content: bytes) -> list[Item]:
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = 1 + content[: error.start].count(b"\n")
        raise ConfigError(f"{path}:{line}: not UTF-8; nothing was run.", "Save the file as UTF-8.") from error
    joined = "\n".join("" if not line.strip() else line.rstrip() for line in lines)
    return [one.strip("\n") for one in joined.split("\n\n") if one.strip()]


def _rows(path: Path) -> list[Item]:
    items, problems = list[Item](), list[str]()
    for row in read_rows(path):
        try:
            items.append(_item(row))
        except LineError as error:
            problems.append(f"{path}{row.place}: {error}")
    refuse(problems, _FORM)
    return items


def _item(row: Row) -> Item:
    if isinstance(row.item, LineError):
        raise row.item
    if row.item.get("text") is not None and "messages" not in row.item:
        return get_text(row.item, "text")
    return tuple(_messages(row.item))


def _messages(item: Mapping[str, Any]) -> list[dict[str, Any]]:
    return to_messages(item, find_form(item))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
