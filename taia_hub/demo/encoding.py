"""How a question and its answer become tokens, the same for training and for evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from taia_hub.demo.samples import Item

IGNORED_LABEL = -100
"""The label that the models of transformers leave out of the loss."""


@dataclass(frozen=True)
class Encoded:
    """The tokens of one item.

    Attributes:
        input_ids: (T,) token ids of prompt and answer.
        labels: (T,) `IGNORED_LABEL` over the prompt, the token ids over the answer and its end mark.
    """

    input_ids: list[int]
    labels: list[int]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """Returns the tokens of a question in the chat template, up to where the answer begins.

    Args:
        tokenizer: A tokenizer with a chat template.
        question: What the user asks.

    Returns:
        (P,) token ids.

    Raises:
        ValueError: The tokenizer has no chat template.

    Example:
        >>> encode_prompt(tokenizer, "What causes gout?")  # doctest: +SKIP
        [1, 9690, 198, ...]
    """
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    # The template writes the special tokens itself.
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode_item(tokenizer: PreTrainedTokenizerBase, item: Item) -> Encoded:
    """Returns the tokens of an item with labels over the answer and the token that ends it.

    Args:
        tokenizer: A tokenizer with a chat template and an end-of-sequence token.
        item: Question and answer.

    Returns:
        Input ids and labels, both (T,).

    Raises:
        ValueError: The tokenizer has no chat template.

    Example:
        >>> encode_item(tokenizer, Item("1", "What causes gout?", "Uric acid."))  # doctest: +SKIP
        Encoded(input_ids=[1, 9690, ...], labels=[-100, -100, ...])
    """
    prompt = encode_prompt(tokenizer, item.question)
    answer = [*tokenizer(item.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return Encoded(prompt + answer, [IGNORED_LABEL] * len(prompt) + answer)
