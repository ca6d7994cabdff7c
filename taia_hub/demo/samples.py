"""The shipped samples: one domain to train on, held-out items of it, and two domains the training never sees.

Where they come from and under which licences: `data/SOURCES.md`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

TRAINING_SAMPLE = "medical_train"
TRAINED_DOMAIN = "medical"
DOMAINS = {"medical": "medical_heldout", "maths": "maths_heldout", "instructions": "instructions_heldout"}
"""Name of a domain to the sample that measures it; the first one is the domain of the training sample."""


@dataclass(frozen=True)
class Item:
    """One question with its reference answer; `id` is its name in the data set it comes from."""

    id: str
    question: str
    answer: str


def load_items(sample: str) -> list[Item]:
    """Reads one of the shipped samples, in the order of its file.

    Example:
        >>> load_items("maths_heldout")[0].id.split("/")[0]
        'gsm8k'
    """
    rows = map(json.loads, sample_path(sample).read_text(encoding="utf-8").splitlines())
    return [Item(row["id"], row["prompt"], row["completion"]) for row in rows]


def sample_path(sample: str) -> Path:
    """Returns the JSONL file of a sample, `TRAINING_SAMPLE` or one of `DOMAINS`; `taia train --data` takes it."""
    return Path(__file__).with_name("data") / f"{sample}.jsonl"
