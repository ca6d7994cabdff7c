"""What each mode thinks of each answer: log-likelihoods and entropies from forward passes over the finished answers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from taia_hub.errors import SettingError


@dataclass(frozen=True)
class Measures:
    """Measures of one answer of n tokens, in nats.

    `log_likelihoods` are M floats, the sum over the answer's tokens that each mode gives to it; `entropy` is n floats,
    that of the mode that wrote the answer, before each of its tokens.
    """

    log_likelihoods: tuple[float, ...]
    entropy: tuple[float, ...]


@torch.inference_mode()
def measure(
    model: Any, prompts: Sequence[torch.Tensor], answers: Sequence[Sequence[int]], settings: Sequence[Any]
) -> tuple[Measures, ...]:
    """Measures M answers under the M settings that wrote them, each after its own prompt of (1, T) int64 tokens.

    An answer is read by all modes in one batch, where the architecture allows a setting a row. One without tokens has
    zeros and no entropies.
    """
    found = []
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        if not answer:
            found.append(Measures((0.0,) * len(settings), ()))
            continue
        likelihoods, entropy = [], ()
        for mode, logits in enumerate(_logits(model, prompt, answer, settings)):  # (n, V) each
            log_probabilities = logits.float().log_softmax(-1)
            taken = log_probabilities.gather(1, torch.tensor(answer, device=logits.device)[:, None])
            likelihoods.append(float(taken.double().sum()))
            if mode == row:
                entropy = tuple((-log_probabilities.exp() * log_probabilities.nan_to_num(neginf=0.0)).sum(-1).tolist())
        found.append(Measures(tuple(likelihoods), entropy))
    return tuple(found)


def _logits(model: Any, input_ids: torch.Tensor, answer: Sequence[int], settings: Sequence[Any]) -> list[torch.Tensor]:
    """Returns for each setting the (n, V) logits before each token of an answer."""
    n = len(answer)
    tail = torch.tensor([list(answer)], device=input_ids.device)
    row = torch.cat([input_ids, tail[:, :-1]], 1)  # (1, T + n - 1): the last token predicts nothing that is asked
    keywords: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(type(model).forward).parameters:
        keywords["logits_to_keep"] = n
    if len(settings) > 1:
        try:
            model._taia_switch.resolve_rows(list(settings))
        except SettingError:  # rows must be alike in this architecture: one mode after the other
            pass
        else:
            batch = row.expand(len(settings), -1).contiguous()
            logits = model(batch, inference_modules=list(settings), **keywords).logits
            return list(logits[:, -n:])
    return [model(row, inference_modules=setting, **keywords).logits[0, -n:] for setting in settings]
