"""Messages as the model reads them: by its tokenizer's chat template, or as plain text; one answer for every prompt."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jinja2 import TemplateError

from taia_hub.errors import ConfigError, TAIAError

Messages = Sequence[Mapping[str, Any]]

_PLAIN = (
    "{% for message in messages %}{% if not loop.first %}{{ '\\n\\n' }}{% endif %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\n' }}{% endif %}"
)
_ENDED = (
    "{% set ended = namespace(messages=[]) %}{% for message in messages %}"
    "{% if message['role'] == 'assistant' and message['content'] is string %}"
    "{% set message = dict(message, content=message['content'] + eos_token) %}{% endif %}"
    "{% set ended.messages = ended.messages + [message] %}{% endfor %}{% set messages = ended.messages %}"
)
"""What stands before a template that ends no answer, and ends each with the end-of-sequence token."""


def chat_text(tokenizer: Any, messages: Messages, *, chat: bool = True, ask: bool = True) -> str:
    """Writes messages by the chat template where there is one, else their texts with an empty line between two.

    With `ask` the template leaves off where an answer begins. Without `chat` the template is not looked at.

    Raises:
        ConfigError: If the chat template refuses the messages.
    """
    if not (chat and tokenizer.chat_template):
        return "\n\n".join(message["content"] for message in messages)
    with template_errors():
        return render(tokenizer, messages, ask=ask)


def chat_tokens(tokenizer: Any, messages: Messages, *, chat: bool = True, ask: bool = True) -> list[int]:
    """Returns the token ids of what `chat_text` writes; a plain text begins as this tokenizer begins every text."""
    # A chat template writes the special tokens itself; what a tokenizer puts behind a text would end the answer.
    begin = [] if chat and tokenizer.chat_template else beginning(tokenizer)
    text = chat_text(tokenizer, messages, chat=chat, ask=ask)
    return [*begin, *tokenizer(text, add_special_tokens=False)["input_ids"]]


def render(tokenizer: Any, messages: Messages, *, ask: bool = False) -> str:
    """Writes messages by the chat template; its own errors come as they are, for `template_errors`."""
    turns, tools = plain_messages(messages), tools_of(messages)
    return str(tokenizer.apply_chat_template(turns, tools=tools, add_generation_prompt=ask, tokenize=False))


def beginning(tokenizer: Any) -> list[int]:
    """Returns the id that a tokenizer puts before every text, or nothing."""
    begin = list(tokenizer("")["input_ids"][:1])
    return begin if begin == [tokenizer.bos_token_id] else []


def plain_messages(messages: Messages) -> list[dict[str, Any]]:
    """Returns messages as templates take them: dicts of role and content, with the reasoning by both of its names."""
    return [
        {"role": message["role"], "content": message["content"]}
        | ({"reasoning_content": said, "thinking": said} if (said := message.get("reasoning")) else {})
        for message in messages
    ]


def tools_of(messages: Messages) -> list[dict[str, Any]] | None:
    """Returns the tools of a conversation, which its first message carries as JSON; None where there are none."""
    tools = messages[0].get("tools") if messages else None
    return json.loads(tools) if tools else None


def ending_template(tokenizer: Any, *, plain: bool) -> Any:
    """Returns a copy of a tokenizer whose chat template ends every answer with the end-of-sequence token.

    It is the present template, or, where `plain`, one that joins messages by empty lines.

    Raises:
        ConfigError: If there is no such token.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"The tokenizer has no {'chat template' if plain else 'end of an answer in its chat template'} and no "
            "end-of-sequence token, so no answer would ever end.",
            "Give the base model one: tokenizer.eos_token = '</s>', and save it.",
        )
    ending, present = copy.copy(tokenizer), tokenizer.chat_template
    if plain:
        ending.chat_template = ("{{ bos_token }}" if beginning(tokenizer) else "") + _PLAIN
    elif isinstance(present, dict):
        ending.chat_template = {**present, "default": _ENDED + present["default"]}
    else:
        ending.chat_template = _ENDED + present
    return ending


def embedding_rows(model: Any) -> int | None:
    """Returns how many ids a model has embeddings for; None where its class does not say."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError, IndexError):
        return None


def check_ids(tokenizer: Any, ids: Sequence[int], rows: int | None) -> None:
    """Refuses token ids that a model has no embedding for, which would be an error of the device, or another's row."""
    if rows is not None and ids and (largest := max(ids)) >= rows:
        raise ConfigError(
            f"The tokenizer gives the id {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}); the model has "
            f"embeddings of {rows} tokens, 0 to {rows - 1}.",
            "Use the tokenizer that belongs to this base, or a base that was resized for this one: "
            "base.resize_token_embeddings(len(tokenizer)), saved with save_pretrained.",
        )


def end_ids(values: Mapping[str, Any]) -> list[int]:
    """Returns the ids that end an answer, of the values of a `config.json` or `generation_config.json`.

    Example:
        >>> end_ids({"eos_token_id": 2}), end_ids({"text_config": {"eos_token_id": [2, 5]}}), end_ids({})
        ([2], [2, 5], [])
    """
    found = values.get("eos_token_id", (values.get("text_config") or {}).get("eos_token_id"))
    return [found] if isinstance(found, int) else list(found or ())


def padding_id(tokenizer: Any, rows: int | None, *others: Any) -> int:
    """Returns an id to pad with that the model has an embedding for: the first of `others`, the tokenizer's own, 0."""
    for value in (*others, tokenizer.pad_token_id, tokenizer.eos_token_id):
        one = value[0] if isinstance(value, (list, tuple)) and value else value
        if isinstance(one, int) and one >= 0 and (rows is None or one < rows):
            return one
    return 0


def give_padding(tokenizer: Any, rows: int | None) -> None:
    """Lets a tokenizer pad with `padding_id`; it is changed in place."""
    padding = padding_id(tokenizer, rows)
    if padding != tokenizer.pad_token_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)


@contextmanager
def template_errors(what: str = "the prompt") -> Iterator[None]:
    """Says of a template's own error what it refuses."""
    try:
        yield
    except TAIAError:
        raise
    except (TemplateError, ValueError, TypeError, RecursionError) as error:  # also named templates without a default
        raise ConfigError(
            f"The chat template refuses {what}: {str(error).rstrip('.')}.",
            "Leave out what it does not know, such as a system message, mend it, or do without it.",
        ) from error
