"""Decoding a batch of rows, a setting a row, token by token; a generator that can be closed at any time."""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

_WARPERS: dict[str, Callable[[Any], LogitsProcessor]] = {  # in the order of `generate`
    "temperature": lambda value: TemperatureLogitsWarper(float(value)),
    "top_k": lambda value: TopKLogitsWarper(int(value)),
    "top_p": lambda value: TopPLogitsWarper(float(value)),
    "min_p": lambda value: MinPLogitsWarper(float(value)),
}
NARROWING = tuple(_WARPERS)
_NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
UNKNOWN_SAMPLING = ("typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")
"""Options of sampling that `generate` knows and a row's own random generator does not."""


def decode(
    model: Any,
    prompts: Sequence[torch.Tensor],
    settings: Sequence[Any],
    generation: GenerationConfig,
    *,
    seed: int,
) -> Generator[list[int], None, None]:
    """Generates an answer for every row by `model.generate` and yields the tokens of each step.

    `generate` runs in a thread of its own, and the settings go in as its keyword: no setting is in force where the
    generator is consumed. Closing the generator ends generation after the step at hand and frees its memory before
    `close()` returns.

    Each of the M `prompts` is (1, T) int64 tokens with its own T, padded on the left, and each has one of the M
    `settings`. A step yields M tokens; rows that ended give padding. What `generate` raises comes through.
    """
    rows = len(settings)
    inputs, mask = _batch(prompts, generation.pad_token_id or 0)  # (M, T)
    greedy, processors = _split_sampling(generation, rows, seed, inputs.device)
    steps: queue.SimpleQueue[list[int] | BaseException | None] = queue.SimpleQueue()
    stop = _Stop()

    def run() -> None:
        try:
            model.generate(
                inputs,
                attention_mask=mask,
                inference_modules=list(settings) if rows > 1 else settings[0],
                generation_config=greedy,
                logits_processor=processors,
                stopping_criteria=StoppingCriteriaList([stop]),
                streamer=_Steps(steps),
            )
        except BaseException as error:  # noqa: BLE001 - raised again where the generator is consumed
            steps.put(error)
        else:
            steps.put(None)

    worker = threading.Thread(target=run, name="taia-decode")
    try:
        worker.start()
        while (step := steps.get()) is not None:
            if isinstance(step, BaseException):
                try:
                    raise step
                finally:
                    del step  # its traceback holds this frame and, through it, the memory of `generate`
            yield step
    finally:
        stop.asked = True
        if worker.ident is not None:  # an interrupt may come while it is started
            worker.join()


def warpers(generation: GenerationConfig) -> list[LogitsProcessor]:
    """Makes what narrows a distribution before a token is drawn, in the order of `generate`.

    Raises:
        ValueError: If a value is out of range.
    """
    values = {name: getattr(generation, name, None) for name in _WARPERS}
    return [make(values[name]) for name, make in _WARPERS.items() if values[name] not in (None, _NEUTRAL[name])]


class _Stop(StoppingCriteria):
    """Ends all rows once it was asked to."""

    asked = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.asked, dtype=torch.bool, device=input_ids.device)


class _Steps(BaseStreamer):
    """Puts the tokens of each step into a queue; `generate` hands over the prompt first."""

    def __init__(self, steps: queue.SimpleQueue[Any]) -> None:
        self.steps, self.prompt_seen = steps, False

    def put(self, value: torch.Tensor) -> None:
        if self.prompt_seen:
            self.steps.put(value.tolist())
        self.prompt_seen = True

    def end(self) -> None:
        """The thread tells that `generate` returned."""


class _RowSampler(LogitsProcessor):
    """Samples with a random generator a row, all of one seed, so that a row does not depend on those beside it.

    `generate` draws for all rows from one generator. This processor comes last, draws itself, and leaves only what it
    drew for the greedy choice that follows.
    """

    def __init__(self, seed: int, rows: int, device: torch.device) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for _ in range(rows)]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        probabilities = scores.float().softmax(-1)  # (M, V)
        drawn = [
            torch.multinomial(row, 1, generator=generator)
            for row, generator in zip(probabilities, self.generators, strict=True)
        ]
        return torch.full_like(scores, -torch.inf).scatter_(1, torch.stack(drawn), 0.0)


def _batch(prompts: Sequence[torch.Tensor], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the (M, T) tokens of M prompts, padded on the left to the longest, and their mask."""
    longest = max(prompt.shape[1] for prompt in prompts)
    inputs = torch.cat([F.pad(prompt, (longest - prompt.shape[1], 0), value=pad) for prompt in prompts])
    mask = torch.cat([F.pad(torch.ones_like(prompt), (longest - prompt.shape[1], 0)) for prompt in prompts])
    return inputs, mask


def _split_sampling(
    generation: GenerationConfig, rows: int, seed: int, device: torch.device
) -> tuple[GenerationConfig, LogitsProcessorList]:
    """Turns sampling into a greedy choice after processors that sample row by row."""
    greedy = copy.deepcopy(generation)
    processors = LogitsProcessorList()
    if generation.do_sample:
        processors += warpers(generation)
        processors.append(_RowSampler(seed, rows, device))
    greedy.do_sample = False
    for name in (*_WARPERS, *UNKNOWN_SAMPLING):
        setattr(greedy, name, None)
    return greedy, processors
