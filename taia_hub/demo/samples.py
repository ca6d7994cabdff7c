"""The shipped samples: one domain to train on, held-out items of it, and two domains the training never sees.

Where they come from and under which licences: `data/SOURCES.md`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TRAINING_SAMPLE = "medical_train"
TRAINED_DOMAIN = "medical"
OUTSIDE = {"maths": "maths_heldout", "instructions": "instructions_heldout"}
"""Name of a domain that nothing is trained on to the sample that measures it."""
DOMAINS = {TRAINED_DOMAIN: "medical_heldout", **OUTSIDE}


@dataclass(frozen=True)
class Item:
    """A conversation that ends with a reference answer; `id` is its name where it comes from."""

    id: str
    messages: tuple[dict[str, str], ...]

    @classmethod
    def single(cls, id: str, question: str, answer: str) -> Item:
        """Makes the item of one question."""
        return cls(id, ({"role": "user", "content": question}, {"role": "assistant", "content": answer}))

    @property
    def prompt(self) -> tuple[dict[str, str], ...]:
        """The turns before the answer."""
        return self.messages[:-1]

    @property
    def question(self) -> str:
        """The last question."""
        return self.messages[-2]["content"]

    @property
    def answer(self) -> str:
        """The reference answer."""
        return self.messages[-1]["content"]


def load_items(sample: str) -> list[Item]:
    """Reads one of the shipped samples, in the order of its file: by length.

    Example:
        >>> load_items("maths_heldout")[0].id.split("/")[0]
        'gsm8k'
    """
    rows = map(json.loads, sample_path(sample).read_text(encoding="utf-8").splitlines())
    return [Item.single(row["id"], row["prompt"], row["completion"]) for row in rows]


def sample_path(sample: str) -> Path:
    """Returns the JSONL file of a sample, `TRAINING_SAMPLE` or one of `DOMAINS`; `taia train --data` takes it."""
    return Path(__file__).with_name("data") / f"{sample}.jsonl"


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Writes items as JSON lines of messages, which `taia train --data` and `read_items` take."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"id": item.id, "messages": item.messages}, ensure_ascii=False) for item in items]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_items(path: Path) -> list[Item]:
    """Reads what `write_items` wrote."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [Item(row["id"], tuple(row["messages"])) for row in rows]
