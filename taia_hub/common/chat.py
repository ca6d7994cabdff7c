"""Messages as the model reads them: by its tokenizer's chat template, or as plain text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jinja2 import TemplateError

from taia_hub.errors import ConfigError

Messages = Sequence[Mapping[str, str]]


def chat_text(tokenizer: Any, messages: Messages, *, chat: bool = True, ask: bool = True) -> str:
    """Writes messages by the chat template where there is one, else their texts with an empty line between two.

    With `ask` the template leaves off where an answer begins. Without `chat` the template is not looked at.

    Raises:
        ConfigError: If the chat template refuses the messages.
    """
    if not (chat and tokenizer.chat_template):
        return "\n\n".join(message["content"] for message in messages)
    with template_errors():
        return str(tokenizer.apply_chat_template(plain_messages(messages), add_generation_prompt=ask, tokenize=False))


def chat_tokens(tokenizer: Any, messages: Messages, *, chat: bool = True, ask: bool = True) -> list[int]:
    """Returns the token ids of what `chat_text` writes."""
    # A chat template writes the special tokens itself.
    special = not (chat and tokenizer.chat_template)
    return list(tokenizer(chat_text(tokenizer, messages, chat=chat, ask=ask), add_special_tokens=special)["input_ids"])


def plain_messages(messages: Messages) -> list[dict[str, str]]:
    """Returns messages as templates take them: dicts, with nothing but role and content."""
    return [{"role": message["role"], "content": message["content"]} for message in messages]


@contextmanager
def template_errors(what: str = "the prompt") -> Iterator[None]:
    """Says of a template's own error what it refuses."""
    try:
        yield
    except TemplateError as error:
        raise ConfigError(
            f"The chat template refuses {what}: {error}.",
            "Leave out what it does not know, such as a system message, mend it, or do without it.",
        ) from error
