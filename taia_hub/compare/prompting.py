"""From what a user writes to the tokens of a prompt and a checked way to generate."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from taia_hub.common.chat import Messages, chat_tokens, check_ids, embedding_rows, padding_id
from taia_hub.compare.decoding import NARROWING, UNKNOWN_SAMPLING, warpers
from taia_hub.errors import ConfigError, closest

_ROLES = ("system", "user", "assistant")
_REFUSED = {
    *("prompt_lookup_num_tokens", "stop_strings", "penalty_alpha", "dola_layers", "force_words_ids", "constraints"),
    *("watermarking_config", "max_time", "num_return_sequences", "num_beam_groups", "return_dict_in_generate"),
    *("output_scores", "output_logits", "output_attentions", "output_hidden_states", "assistant_early_exit"),
}
"""Keywords that `generate` takes and that make no sense, or no stream, of rows side by side."""
MAX_NEW_TOKENS = 256
LEAST_TEMPERATURE = 1e-4
"""Below it the probabilities overflow, and the answer is the greedy one."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it: (1, T) int64 tokens, with notes such as that there is no chat template."""

    input_ids: torch.Tensor
    notes: tuple[str, ...] = ()


def read_messages(prompt: str | Messages, system: str | None = None) -> tuple[Mapping[str, str], ...]:
    """Reads a prompt: a text, or the messages of a conversation that ends with the user's.

    A system message goes before them where one is given.

    Example:
        >>> read_messages("Hello")
        ({'role': 'user', 'content': 'Hello'},)
    """
    if not isinstance(prompt, (str, list, tuple)):
        raise ConfigError(f"The prompt is {type(prompt).__name__}.", "Give a text, or a list of messages.")
    if system is not None and not isinstance(system, str):
        raise ConfigError(f"The system message is {system!r}.", "Give a text.")
    messages = _checked([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise ConfigError("The prompt is empty.", "Write a text; of several messages the last one is the user's.")
    if system and messages[0]["role"] == "system":
        raise ConfigError("There are two system messages.", "Give it by `system`, or as the first message.")
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return tuple(messages)


def with_history(messages: tuple[Mapping[str, str], ...], history: Messages) -> tuple[Mapping[str, str], ...]:
    """Puts an earlier conversation of users and assistants before a prompt, after its system message."""
    first = 1 if messages[0]["role"] == "system" else 0
    return (*messages[:first], *_checked(history), *messages[first:])


def _checked(messages: Messages) -> list[Mapping[str, str]]:
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise ConfigError(
                f"Message {number} is {message!r}.", 'Each message is {"role": "user", "content": "a text"}.'
            )
        if message.get("role") not in _ROLES:
            raise ConfigError(
                f"Message {number} has the role {message.get('role')!r}.", f"Choose one of {', '.join(_ROLES)}."
            )
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def encode_prompt(model: Any, tokenizer: Any, messages: tuple[Mapping[str, str], ...], *, chat: bool = True) -> Prompt:
    """Turns messages into tokens, by the chat template where there is one and `chat` is true.

    Messages that leave no room for an answer are a `ConfigError`.
    """
    lacking = chat and not tokenizer.chat_template
    notes = ("The model has no chat template: the text was taken as it is.",) if lacking else ()
    tokens = chat_tokens(tokenizer, messages, chat=chat)
    check_ids(tokenizer, tokens, embedding_rows(model))
    length, most = len(tokens), context_length(model)
    if not length:
        raise ConfigError("The prompt has no tokens.", "Write a text.")
    if most is not None and length >= most:
        raise ConfigError(
            f"The prompt has {length:,} tokens; the model takes {most:,} with the answer: it is "
            f"{length - most + 1:,} too long.",
            "Shorten it, or clear the conversation.",
        )
    return Prompt(torch.tensor([tokens], device=model.device), notes)


def context_length(model: Any) -> int | None:
    """Returns the longest input and answer together in tokens, or None where the configuration does not say."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(most) if most and most > 0 else None


def read_generation(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], generation: Mapping[str, Any]
) -> GenerationConfig:
    """Checks keywords of `generate` and completes them from the model's own configuration.

    The answers are cut to the room that the longest prompt leaves. Keywords that no comparison can use are a
    `ConfigError`.
    """
    config: GenerationConfig = copy.deepcopy(model.generation_config)
    for message, hint in _wrong_names(generation, set(config.to_dict()) | set(GenerationConfig().to_dict())):
        raise ConfigError(message, hint)
    try:
        config.update(**generation)
        if config.do_sample:
            warpers(config)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"`generate` refuses a keyword: {error}.", "Leave it out, or give an allowed value."
        ) from error
    for message, hint in _wrong_values(config, generation):
        raise ConfigError(message, hint)
    if config.max_new_tokens is None:
        config.max_new_tokens = MAX_NEW_TOKENS
    most = context_length(model)
    if most is not None:
        config.max_new_tokens = min(config.max_new_tokens, most - max(prompt.input_ids.shape[1] for prompt in prompts))
    config.max_length = None
    config.pad_token_id = padding_id(
        tokenizer, embedding_rows(model), config.pad_token_id, tokenizer.pad_token_id, config.eos_token_id
    )
    return config


def _wrong_names(generation: Mapping[str, Any], known: set[str]) -> Iterator[tuple[str, str]]:
    for name, value in generation.items():
        if name not in known:
            yield (
                f"'{name}' is no keyword of `generate` for a comparison.{closest(name, known)}",
                "Use max_new_tokens, do_sample, temperature, top_k, top_p and so on.",
            )
        elif name in _REFUSED:
            yield f"'{name}' cannot be used in a comparison.", "Leave it out."
        elif name == "max_length":
            yield "max_length counts the prompt too.", "Give max_new_tokens instead."
        elif name == "max_new_tokens" and (not isinstance(value, int) or isinstance(value, bool)):
            yield f"max_new_tokens={value!r} is no whole number.", "Give 1 or more."


def _wrong_values(config: GenerationConfig, generation: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if not config.do_sample:
        for name in NARROWING:
            if generation.get(name) is not None:
                yield f"{name} has no meaning without sampling.", "Add do_sample=True."
    else:
        if config.temperature is not None and 0 < config.temperature < LEAST_TEMPERATURE:
            yield f"temperature={config.temperature:g} is too small to sample with.", "Give do_sample=False."
        for name in UNKNOWN_SAMPLING:
            if getattr(config, name, None):
                yield f"A comparison does not sample with {name}.", "Use temperature, top_k, top_p or min_p."
    if (config.num_beams or 1) > 1:
        yield f"num_beams={config.num_beams} cannot be streamed.", "Leave it out."
