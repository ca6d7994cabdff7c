"""Every item of every source is checked before anything is trained, and all faults are told at once."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from taia_hub.common.jsonl import LineError
from taia_hub.errors import ConfigError
from taia_hub.training.forms import FORMS, Form, Messages, find_form, to_messages
from taia_hub.training.rows import Row

_SHOWN = 5
_EVERY = 512  # items between two reports of progress


@dataclass
class Problems:
    """Faults of the data: how many there are, and the first few.

    Attributes:
        count: How many.
        shown: The first few, each as `file:line: reason`.
    """

    count: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, where: str, reason: object) -> None:
        """Notes one."""
        self.count += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(f"{where}: {reason}")

    def refuse(self) -> None:
        """Raises one error for all of them, if there are any.

        Raises:
            ConfigError: If there are.
        """
        if self.count:
            more = f"\nand {self.count - len(self.shown)} more" if self.count > len(self.shown) else ""
            items = "1 item of the data is" if self.count == 1 else f"{self.count} items of the data are"
            lines = "\n".join(self.shown)
            raise ConfigError(f"{items} wrong; nothing was trained.\n{lines}{more}", f"An item is one of {FORMS}")


@dataclass(frozen=True)
class Checked:
    """What is known of a source whose items can all be trained on.

    Attributes:
        form: The form of its items, or None where there are no items.
        questions: (N,) uint64 hashes of all turns but the answer.
        answers: (N,) uint64 hashes of the answer, the last turn.
    """

    form: Form | None
    questions: np.ndarray
    answers: np.ndarray

    def __len__(self) -> int:
        return len(self.answers)


def check_rows(
    rows: Iterable[Row],
    where: Callable[[int], str],
    problems: Problems,
    progress: Callable[[float], None] = lambda share: None,
) -> Checked:
    """Goes through a source; memory is 16 bytes an item.

    All items of a source have one form, that of the first item which has one: a file of two is taken for a mistake,
    though each of its items could be converted.

    Args:
        rows: Its items.
        where: Gives the place of the item with that number, for the faults.
        problems: Gets the faults.
        progress: Called with the share that was checked, 0 to 1.

    Returns:
        What is known of it; only of use where no fault was found.
    """
    form: Form | None = None
    questions, answers = array("Q"), array("Q")
    for count, (number, item, done) in enumerate(rows):
        if count % _EVERY == 0:
            progress(done)
        try:
            if isinstance(item, LineError):
                raise item
            own = find_form(item)
            form = form or own
            if own is not form:
                raise LineError(f"it is of the form {own.value}; the items before it are of the form {form.value}")
            question, answer = _hashes(to_messages(item, form))
        except LineError as e:
            problems.add(where(number), e)
        else:
            questions.append(question)
            answers.append(answer)
    progress(1.0)
    return Checked(form, np.frombuffer(questions, np.uint64), np.frombuffer(answers, np.uint64))


def _hashes(messages: Messages) -> tuple[int, int]:
    question = "\0".join(text for message in messages[:-1] for text in (message["role"], message["content"]))
    return _hash(question), _hash(messages[-1]["content"])


def _hash(text: Any) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")
