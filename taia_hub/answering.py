"""One prompt, an answer by each mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from taia_hub.errors import SettingError
from taia_hub.policy import parse_setting


@dataclass(frozen=True)
class Answer:
    """What a model says under one setting.

    Attributes:
        mode: Label of the setting.
        text: The answer, without the prompt.
    """

    mode: str
    text: str


def answers(
    model: Any,
    tokenizer: Any,
    prompt: str,
    modes: Sequence[Any],
    *,
    system: str | None = None,
    chat: bool = True,
    **generation: Any,
) -> list[Answer]:
    """Generates an answer to one prompt under each setting, in one batch where the architecture allows it.

    Args:
        model: A TAIA language model.
        tokenizer: Its tokenizer.
        prompt: The user's text.
        modes: One setting an answer.
        system: Text of a system message; needs a chat template.
        chat: Whether the chat template is applied, where the tokenizer has one.
        **generation: Keywords of `generate`, such as `max_new_tokens`.

    Returns:
        The answers in the order of `modes`.

    Raises:
        SettingError: If a setting is not understood.
    """
    labels = [parse_setting(mode).label for mode in modes]
    if chat and tokenizer.chat_template:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        inputs = tokenizer(prompt, return_tensors="pt")
    inputs = {key: value.to(model.device) for key, value in inputs.items()}
    generation.setdefault("pad_token_id", _pad_token(model, tokenizer))
    try:
        model._taia_switch.resolve_rows(list(modes))
    except SettingError:  # rows must be alike in this architecture: one mode after the other
        tokens = [model.generate(**inputs, inference_modules=mode, **generation)[0] for mode in modes]
    else:
        batch = {key: value.expand(len(modes), -1) for key, value in inputs.items()}
        tokens = list(model.generate(**batch, inference_modules=list(modes), **generation))
    start = inputs["input_ids"].shape[1]
    return [
        Answer(label, tokenizer.decode(row[start:], skip_special_tokens=True).strip())
        for label, row in zip(labels, tokens, strict=True)
    ]


def _pad_token(model: Any, tokenizer: Any) -> int | None:
    for value in (model.generation_config.pad_token_id, tokenizer.pad_token_id, model.generation_config.eos_token_id):
        if value is not None:
            return int(value[0] if isinstance(value, (list, tuple, torch.Tensor)) else value)
    return None
