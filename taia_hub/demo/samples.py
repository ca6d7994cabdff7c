"""The shipped samples: one domain to train on, held-out items of it, and two domains the training never sees.

Where they come from and under which licences: `data/SOURCES.md`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

TRAINING_SAMPLE = "medical_train"
TRAINED_DOMAIN = "medical"
DOMAINS = {"medical": "medical_heldout", "maths": "maths_heldout", "instructions": "instructions_heldout"}
"""Name of a domain to the sample that measures it; the first one is the domain of the training sample."""


@dataclass(frozen=True)
class Item:
    """One question with its reference answer.

    Attributes:
        id: Name of the item in the data set it comes from.
        question: What the user asks.
        answer: The reference answer.
    """

    id: str
    question: str
    answer: str


def load_items(sample: str) -> list[Item]:
    """Reads one of the shipped samples.

    Args:
        sample: `TRAINING_SAMPLE` or one of the values of `DOMAINS`.

    Returns:
        The items in the order of the file.

    Raises:
        FileNotFoundError: No sample of that name is shipped.

    Example:
        >>> load_items("maths_heldout")[0].id.split("/")[0]
        'gsm8k'
    """
    lines = _file(sample).read_text(encoding="utf-8").splitlines()
    return [Item(**json.loads(line)) for line in lines]


def sample_digest(sample: str) -> str:
    """Returns the SHA-256 of a shipped sample, so that work done with it can be told from work with another.

    Args:
        sample: `TRAINING_SAMPLE` or one of the values of `DOMAINS`.

    Returns:
        64 hexadecimal digits.

    Raises:
        FileNotFoundError: No sample of that name is shipped.

    Example:
        >>> len(sample_digest("maths_heldout"))
        64
    """
    return hashlib.sha256(_file(sample).read_bytes()).hexdigest()


def _file(sample: str) -> Path:
    return Path(__file__).with_name("data") / f"{sample}.jsonl"
