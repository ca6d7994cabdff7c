"""Answers of a model to prompts, a batch at a time, under one setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from taia_hub.common.chat import chat_tokens
from taia_hub.errors import ConfigError, closest

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # as lm-eval ranks them


def generate_responses(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    mode: Any = None,
    *,
    max_new_tokens: int = 512,
    batch_size: int = 8,
    chat_template: bool | None = None,
    system_instruction: str | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Answers prompts, greedily unless `gen_kwargs` say otherwise.

    Args:
        model: A language model; one of taia_hub where `mode` is given.
        tokenizer: Its tokenizer.
        prompts: N prompts.
        mode: The setting to answer with, or None for the model as it stands.
        max_new_tokens: Longest answer in tokens.
        batch_size: Prompts that are answered at once.
        chat_template: Whether prompts go through the chat template; by default where the tokenizer has one.
        system_instruction: System message; without a chat template it stands before the prompt.
        gen_kwargs: Keywords of generation as lm-eval takes them: `max_gen_toks`, `until`, and those of `generate`.
        progress: Called with the number of prompts done and N, after every batch.

    Returns:
        N answers, without the prompts.

    Raises:
        SettingError: If the setting is not understood.
        ConfigError: If there is no such keyword of generation, or the chat template refuses a prompt.
    """
    chat = chat_template is not False
    before = [{"role": "system", "content": system_instruction}] if system_instruction else []
    rows = [chat_tokens(tokenizer, [*before, {"role": "user", "content": prompt}], chat=chat) for prompt in prompts]
    keywords, stops = _keywords(gen_kwargs or {}, max_new_tokens)
    keywords |= {} if mode is None else {"inference_modules": mode}
    outputs: list[str] = []
    for start in range(0, len(prompts), batch_size):
        batch = rows[start : start + batch_size]
        outputs += [_until(text, stops) for text in _generate(model, tokenizer, batch, keywords)]
        if progress:
            progress(len(outputs), len(prompts))
    return outputs


def _keywords(gen_kwargs: Mapping[str, Any], max_new_tokens: int) -> tuple[dict[str, Any], list[str]]:
    """Returns keywords of `generate`, and the texts that end an answer."""
    given = dict(gen_kwargs)
    until = given.pop("until", None) or []
    length = [given.pop(name) for name in _LENGTHS if name in given]
    known = GenerationConfig().to_dict().keys()
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ConfigError(
            f"generate() has no keyword '{unknown[0]}'.{closest(unknown[0], known)}", "Leave it out of gen_kwargs."
        )
    # The sampling values of the model's own generation settings would draw a warning beside do_sample=False.
    sampling = bool(given.setdefault("do_sample", bool(given.get("temperature"))))
    values = {} if sampling else {"temperature": None, "top_p": None, "top_k": None}
    keywords = {"num_beams": 1, **given, **values, "max_new_tokens": length[0] if length else max_new_tokens}
    return keywords, [until] if isinstance(until, str) else list(until)


def _until(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.partition(stop)[0]
    return text.strip()


def _generate(model: Any, tokenizer: Any, ids: list[list[int]], keywords: Mapping[str, Any]) -> list[str]:
    pad = model.generation_config.pad_token_id
    pad = tokenizer.pad_token_id if pad is None else pad
    pad = tokenizer.eos_token_id if pad is None else pad
    length = max(map(len, ids))
    inputs = torch.tensor([[pad] * (length - len(row)) + list(row) for row in ids], device=model.device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in ids], device=model.device)
    tokens = model.generate(input_ids=inputs, attention_mask=mask, pad_token_id=pad, **keywords)
    return list(tokenizer.batch_decode(tokens[:, length:], skip_special_tokens=True))
