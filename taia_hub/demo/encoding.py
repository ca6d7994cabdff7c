"""How questions and answers become tokens, the same for training and for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from taia_hub.demo.samples import Item

IGNORED_LABEL = -100
"""The label that the models of transformers leave out of the loss."""


@dataclass(frozen=True)
class Encoded:
    """The tokens of one item.

    Attributes:
        prompt: (P,) token ids of the question in the chat template, up to where the answer begins.
        answer: (A,) token ids of the answer and of the token that ends it.
    """

    prompt: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def encode_item(tokenizer: Any, item: Item) -> Encoded:
    """Returns the tokens of an item.

    Args:
        tokenizer: A tokenizer with a chat template and an end-of-sequence token.
        item: Question and answer.

    Returns:
        The prompt's and the answer's token ids.

    Raises:
        ValueError: The tokenizer has no chat template.

    Example:
        >>> encode_item(tokenizer, Item("1", "What causes gout?", "Uric acid."))  # doctest: +SKIP
        Encoded(prompt=[1, 9690, ...], answer=[69, 1107, ..., 2])
    """
    messages = [{"role": "user", "content": item.question}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    # The template writes the special tokens itself.
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    answer = tokenizer(item.answer, add_special_tokens=False)["input_ids"]
    return Encoded(prompt, [*answer, tokenizer.eos_token_id])


def answer_batch(encoded: Sequence[Encoded], pad_token_id: int) -> dict[str, Any]:
    """Makes a batch in which every answer ends at the right edge, so that the head runs on the answers alone.

    With a vocabulary of 49,152 the logits are the largest tensor of a small model; the prompts need none.

    Args:
        encoded: B items; T is the length of the longest and K that of the longest answer, plus one.
        pad_token_id: Fills the rows on the left; it is masked.

    Returns:
        Keywords of a causal language model: `input_ids`, `attention_mask` and `position_ids`, (B, T), `labels`,
        (B, K), and `logits_to_keep`, K.

    Example:
        >>> batch = answer_batch([Encoded([5, 6], [7]), Encoded([5], [8, 9, 2])], pad_token_id=0)
        >>> batch["input_ids"].tolist(), batch["labels"].tolist(), batch["logits_to_keep"]
        ([[0, 5, 6, 7], [5, 8, 9, 2]], [[-100, -100, -100, 7], [-100, 8, 9, 2]], 4)
    """
    length = max(len(item) for item in encoded)
    kept = max(len(item.answer) for item in encoded) + 1
    ids = [[pad_token_id] * (length - len(item)) + item.prompt + item.answer for item in encoded]
    mask = torch.tensor([[0] * (length - len(item)) + [1] * len(item) for item in encoded])
    labels = [[IGNORED_LABEL] * (kept - len(item.answer)) + item.answer for item in encoded]
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        "labels": torch.tensor(labels),
        "logits_to_keep": kept,
    }
