"""Every item of every source is checked before anything is trained, and all faults are told at once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from taia_hub.common.forms import FORMS, find_form, to_messages
from taia_hub.common.jsonl import LineError
from taia_hub.common.rows import Row
from taia_hub.errors import ConfigError

_SHOWN = 5


@dataclass
class Problems:
    """Faults of the data: how many there are, and the first few, each as `file:line: reason`."""

    count: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, where: str, reason: object) -> None:
        """Notes one."""
        self.count += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(f"{where}: {reason}")

    def refuse(self) -> None:
        """Raises one ConfigError for all of them, if there are any."""
        if self.count:
            more = f"\nand {self.count - len(self.shown)} more" if self.count > len(self.shown) else ""
            items = "1 item of the data is" if self.count == 1 else f"{self.count} items of the data are"
            lines = "\n".join(self.shown)
            raise ConfigError(f"{items} wrong; nothing was run.\n{lines}{more}", f"An item is one of {FORMS}")


def check_rows(rows: Iterable[Row], name: str, problems: Problems) -> Iterator[dict[str, Any]]:
    """Makes `messages` of the items of a source, with int64 hashes of its `question` (what comes before) and `answer`.

    All items of a source have one form, that of the first item which has one: a file of two is taken for a mistake,
    though each of its items could be converted. Faults go to `problems`, each with its place in the source `name`;
    what comes behind one is checked and no longer yielded.
    """
    form, before = None, problems.count
    for row in rows:
        try:
            if isinstance(row.item, LineError):
                raise row.item
            own = find_form(row.item)
            form = form or own
            if own is not form:
                raise LineError(f"it is of the form {own.value}; the items before it are of the form {form.value}")
            messages = to_messages(row.item, form)
        except LineError as e:
            problems.add(f"{name}{row.place}", e)
        else:
            if problems.count == before:
                question = "\0".join(text for turn in messages[:-1] for text in (turn["role"], turn["content"]))
                yield {"messages": messages, "question": _hash(question), "answer": _hash(messages[-1]["content"])}


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little", signed=True)
