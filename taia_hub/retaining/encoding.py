"""From texts to tokens with labels: all tokens of a text are measured, of a conversation those of its last answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taia_hub.common.chat import beginning, chat_text, check_ids, embedding_rows
from taia_hub.common.labels import IGNORED_LABEL, Encoded
from taia_hub.common.text_tables import amount
from taia_hub.compare.prompting import context_length
from taia_hub.errors import ConfigError
from taia_hub.retaining.texts import Item

MAX_TOKENS = 512
"""Tokens of a text that are read, unless something else is asked for."""


def encode_texts(
    model: Any, tokenizer: Any, items: Sequence[Item], *, max_tokens: int = MAX_TOKENS, chat: bool = True
) -> tuple[list[Encoded], tuple[str, ...]]:
    """Makes tokens of N texts, each cut off at `max_tokens` and at the length that the model takes.

    Args:
        model: The model that will read them.
        tokenizer: Its tokenizer.
        items: N texts or conversations.
        max_tokens: Most tokens of a text.
        chat: Whether conversations go through the chat template, where there is one.

    Returns:
        N encoded texts, those without a token to measure among them, and notes for the user.

    Raises:
        ConfigError: If the chat template refuses a conversation, the tokenizer is not this model's, or no text has two
            tokens.

    Example:
        ```python
        rows, notes = encode_texts(model, tokenizer, ["The sky is blue."])
        ```
    """
    most, notes = min(max_tokens, context_length(model) or max_tokens), list[str]()
    rows, vocabulary = [_encoded(tokenizer, item, chat) for item in items], embedding_rows(model)
    for row in rows:
        check_ids(tokenizer, row.input_ids, vocabulary)
    if cut := sum(len(row.input_ids) > most for row in rows):
        whole = "1 text is" if cut == 1 else f"{cut:,} texts are"
        notes.append(f"{whole} longer than {most:,} tokens: what stands behind is not measured.")
    rows = [row.first(most) for row in rows]
    if nothing := sum(not row.measured for row in rows):
        if nothing == len(rows):
            raise ConfigError("No text has a token to measure.", "Give texts of two tokens or more.")
        notes.append(f"{amount(nothing, 'text')} left out: no token to measure (a text takes two, an answer one).")
    if chat and not tokenizer.chat_template and not all(isinstance(item, str) for item in items):
        notes.append("The tokenizer has no chat template: questions and answers are joined by an empty line.")
    return rows, tuple(notes)


def _encoded(tokenizer: Any, item: Item, chat: bool) -> Encoded:
    begin = [] if chat and tokenizer.chat_template and not isinstance(item, str) else beginning(tokenizer)
    if isinstance(item, str):
        return _whole([*begin, *_tokens(tokenizer, item)])
    whole = chat_text(tokenizer, item, chat=chat, ask=False)
    before = chat_text(tokenizer, item[:-1], chat=chat)
    if not whole.startswith(before):  # a template that writes a question in another way once it is answered
        return _whole([*begin, *_tokens(tokenizer, whole)])
    prompt = [*begin, *_tokens(tokenizer, before)]
    answer = _tokens(tokenizer, whole[len(before) :].rstrip())
    return Encoded(prompt + answer, [IGNORED_LABEL] * len(prompt) + answer)


def _whole(ids: list[int]) -> Encoded:
    return Encoded(ids, list(ids))


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
