"""What a mode does to the hidden states: how near they stay to the base model's, and how much their tokens differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taia_hub.analysis.density import density
from taia_hub.analysis.measures import cosine_similarity, relative_residual
from taia_hub.common.progress import Progress
from taia_hub.errors import ConfigError, UnsupportedUpdateError
from taia_hub.results.analysis import Curve, HiddenStates
from taia_hub.switch.modes import MODES
from taia_hub.switch.settings import InferenceModules

ALL_MODES = tuple(MODES)
_BASE = "none"
_GRID = 256


def examine_texts(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    modes: Sequence[InferenceModules] = ALL_MODES,
    *,
    batch_size: int = 8,
    max_tokens: int = 512,
    progress: Progress | None = None,
) -> HiddenStates:
    """Measures the hidden states of texts, and keeps what tables and figures show: means by layer, and densities.

    Arguments and errors as of `measure_states`.
    """
    similarity, ranks = measure_states(
        model, tokenizer, texts, modes, batch_size=batch_size, max_tokens=max_tokens, progress=progress
    )
    # the lowest percent is left out of the picture: one stray token would press everything else into a line
    lowest = min(float(np.quantile(values[1:], 0.01)) for values in similarity.values())
    grid = np.linspace(max(-1.0, lowest - 0.05 * (1 - lowest)) if lowest < 1 else 0.99, 1, _GRID)
    return HiddenStates(
        texts=len(texts),
        tokens=next(iter(similarity.values())).shape[1],
        max_tokens=max_tokens,
        texts_sha256=hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest(),
        similarity={label: _curve(values) for label, values in similarity.items()},
        residual_rank={label: _curve(values) for label, values in ranks.items()},
        grid=tuple(grid.tolist()),
        last_density={label: _rounded(density(values[-1], grid)) for label, values in similarity.items()},
        pooled_density={label: _rounded(density(values[1:].ravel(), grid)) for label, values in similarity.items()},
    )


@torch.no_grad()
def measure_states(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    modes: Sequence[InferenceModules] = ALL_MODES,
    *,
    batch_size: int = 8,
    max_tokens: int = 512,
    progress: Progress | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Measures what each mode does to the hidden states, in one forward pass of each.

    The similarity is the cosine of a token's state to the base model's at the same layer (the paper's density of
    hidden-state similarities, arXiv 2405.20192); that of mode `none` is exactly 1. The residual rank says how far the
    tokens of a text are from all being alike, ||res(X)||_{1,inf} / ||X||_{1,inf}: near 0 all have the same state (rank
    collapse: Dong et al. 2021, arXiv 2103.03404; by layer and mode in arXiv 2405.20192).

    Args:
        model: A TAIA language model.
        tokenizer: Its tokenizer.
        texts: T texts.
        modes: Settings to measure.
        batch_size: Texts in a forward pass; they are padded on the right, and padding is left out of the result.
        max_tokens: Tokens of a text that are kept.
        progress: Called with how far it is.

    Returns:
        Label of a mode to its (L + 1, N) float64 similarities, one column a token of all texts one after the other,
        and to its (L + 1, T) float64 residual ranks. Row 0 is of the embeddings, row k of the k-th layer's output.

    Raises:
        ConfigError: If there is no text, one has no tokens, the model is no TAIA model, or its states are no numbers.
        SettingError: If a mode cannot act on this model; no forward pass was run.

    Example:
        ```python
        similarity, ranks = measure_states(model, tokenizer, ["The sky is blue."], ["attention", "all"])
        similarity["attention"][-1].mean()
        ```
    """
    if not hasattr(model, "using"):
        raise ConfigError(
            f"A {type(model).__name__} has no modes to compare.", "Load it with `TAIAForCausalLM.from_pretrained`."
        )
    settings = {one.label: one for one in (model._taia_switch.resolve(mode).settings[0] for mode in modes)}
    if not settings:
        raise ConfigError("There is no mode to measure.", f"Give some of {', '.join(MODES)}.")
    for mode in settings.values():
        with model.using(mode):  # what cannot act is refused before the first forward pass
            pass
    encoded = _encoded(tokenizer, texts, max_tokens)
    runs = dict.fromkeys([_BASE, *settings])
    similarity: dict[str, list[Tensor]] = {label: [] for label in settings}
    ranks: dict[str, list[Tensor]] = {label: [] for label in settings}
    batches = [encoded[start : start + batch_size] for start in range(0, len(encoded), batch_size)]
    was_training = model.training
    model.eval()
    try:
        for number, batch in enumerate(batches):
            base: tuple[Tensor, ...] = ()
            for step, label in enumerate(runs):
                if progress:
                    progress("hidden states", number * len(runs) + step, len(batches) * len(runs))
                states = _states(model, batch, settings.get(label, _BASE))
                base = base or states
                if label in settings:
                    for row, ids in enumerate(batch):  # layer by layer: all at once in float64 may take gigabytes
                        own = [
                            (state[row, : len(ids)], of[row, : len(ids)])
                            for state, of in zip(states, base, strict=True)
                        ]
                        # a model on several GPUs has its layers' states on each of them
                        similarity[label].append(torch.stack([cosine_similarity(*pair).cpu() for pair in own]))
                        ranks[label].append(torch.stack([relative_residual(state).cpu() for state, _ in own])[:, None])
    finally:
        model.train(was_training)
    if progress:
        progress("hidden states", len(batches) * len(runs), len(batches) * len(runs))
    return _joined(similarity), _joined(ranks)


def _states(model: Any, batch: Sequence[list[int]], mode: Any) -> tuple[Tensor, ...]:
    """Runs a forward pass; returns L + 1 states of shape (texts, tokens, H), padded on the right."""
    length = max(len(ids) for ids in batch)
    padded = torch.tensor([ids + ids[-1:] * (length - len(ids)) for ids in batch], device=model.device)
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids in batch], device=model.device)
    with model.using(mode):
        found = model(input_ids=padded, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
    if not found:
        raise UnsupportedUpdateError(
            f"{type(model).__name__} gives no hidden states.", "Leave these measures out for this architecture."
        )
    return tuple(found)


def _encoded(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    if isinstance(texts, str):
        raise ConfigError("One string came as `texts`.", "Give a list of texts.")
    if not texts:
        raise ConfigError("There are no texts to examine.", "Give at least one; some dozens make the densities smooth.")
    encoded = [list(tokenizer(text)["input_ids"])[:max_tokens] for text in texts]
    empty = [
        number for number, (text, ids) in enumerate(zip(texts, encoded, strict=True), 1) if not ids or not text.strip()
    ]
    if empty:
        raise ConfigError(f"Text {empty[0]} of {len(texts)} is empty.", "Leave empty texts out.")
    return encoded


def _joined(parts: Mapping[str, list[Tensor]]) -> dict[str, np.ndarray]:
    return {label: torch.cat(found, dim=1).numpy() for label, found in parts.items()}


def _curve(values: np.ndarray) -> Curve:
    count = values.shape[1]
    error = values.std(1, ddof=1) / count**0.5 if count > 1 else np.zeros(len(values))
    return Curve(_rounded(values.mean(1)), _rounded(error))


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)
