"""One prompt, an answer by each mode, in one batch: all at once or token by token."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import traceback
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from taia_hub.common.chat import Messages
from taia_hub.common.devices import free_memory
from taia_hub.compare.comparison import ComparedAnswer, Comparison
from taia_hub.compare.decoding import NARROWING, decode
from taia_hub.compare.measuring import measure
from taia_hub.compare.prompting import (
    Prompt,
    context_length,
    encode_prompt,
    read_generation,
    read_messages,
    with_history,
)
from taia_hub.errors import ConfigError, OutOfMemoryError, SettingError
from taia_hub.switch.settings import InferenceModules, Setting

DEFAULT_MODES = ("none", "attention", "all")


def compare(
    model: Any,
    tokenizer: Any,
    prompt: str | Messages,
    modes: Sequence[InferenceModules] = DEFAULT_MODES,
    *,
    system: str | None = None,
    histories: Sequence[Messages] = (),
    chat: bool = True,
    seed: int = 0,
    measures: bool = True,
    **generation: Any,
) -> Comparison:
    """Answers one prompt under several settings, in one batch where the architecture allows it.

    Arguments, errors and result are those of `stream_compare`, of which this is the last state.

    Returns:
        The finished comparison.

    Example:
        ```python
        comparison = compare(model, tokenizer, "Why is the sky blue?", ["none", "attention", "all"])
        print(comparison.to_markdown(against="none"))
        ```
    """
    given: dict[str, Any] = {"system": system, "histories": histories, "chat": chat, "seed": seed, "measures": measures}
    # closed here: an interrupt must not leave a thread that generates
    with contextlib.closing(stream_compare(model, tokenizer, prompt, modes, **given, **generation)) as states:
        (comparison,) = deque(states, maxlen=1)
    return comparison


def stream_compare(
    model: Any,
    tokenizer: Any,
    prompt: str | Messages,
    modes: Sequence[InferenceModules] = DEFAULT_MODES,
    *,
    system: str | None = None,
    histories: Sequence[Messages] = (),
    chat: bool = True,
    seed: int = 0,
    measures: bool = True,
    **generation: Any,
) -> Generator[Comparison, None, None]:
    """Answers one prompt under several settings and yields all answers so far after every token.

    Greedy answers have the tokens of their single runs. Sampled ones have a random generator each, all with the same
    seed, so that an answer does not depend on which modes stand beside it. No setting is in force where the states are
    consumed. Closing the iterator ends generation and frees its memory before `close()` returns.

    Args:
        model: A TAIA language model.
        tokenizer: Its tokenizer.
        prompt: A text, or the messages of a conversation, the last one the user's.
        modes: M different settings, one an answer.
        system: Text of a system message.
        histories: M conversations that go before the prompt, one a mode, where each mode goes on with its own answers.
        chat: Whether the chat template is applied, where the tokenizer has one.
        seed: Seed of the sampling.
        measures: Whether the last state has entropies and log-likelihoods, for which every answer is read once more by
            all modes.
        **generation: Keywords of `generate`, such as `max_new_tokens` (256 by default), `do_sample`, `temperature`.

    Returns:
        An iterator over states; the last one is the finished comparison.

    Raises:
        SettingError: If a setting is not understood, cannot act on this model, or was given twice.
        ConfigError: If the prompt is empty or too long, or a keyword is not known. Both are raised by the call, before
            anything is generated.
        OutOfMemoryError: From the iterator, if the memory does not suffice; it was freed.

    Example:
        ```python
        for state in stream_compare(model, tokenizer, "Why is the sky blue?"):
            print({answer.mode: answer.text for answer in state.answers})
        ```
    """
    settings = _read_modes(model, modes)
    messages = read_messages(prompt, system)
    if histories and len(histories) != len(settings):
        raise ConfigError(f"{len(histories)} histories came for {len(settings)} modes.", "Give one a mode, or none.")
    prompts = [
        encode_prompt(model, tokenizer, with_history(messages, history), chat=chat) for history in histories or [()]
    ]
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ConfigError(f"seed={seed!r} is no whole number from 0 to 2^63 - 1.", "0 is the default.")
    config = read_generation(model, tokenizer, prompts, generation)
    notes = (*prompts[0].notes, *_shortened(model, generation, config))
    prompts = prompts if histories else prompts * len(settings)
    return _Run(model, tokenizer, messages, prompts, settings, config, seed, measures, notes).states()


def _shortened(model: Any, asked: Mapping[str, Any], config: GenerationConfig) -> Iterator[str]:
    """Says where the answers must be shorter than was asked for."""
    most, length = asked.get("max_new_tokens"), config.max_new_tokens
    if most is not None and length is not None and length < most:
        yield (
            f"The answers end after {length:,} tokens, not {most:,}: the model takes {context_length(model):,} with "
            "the prompt."
        )


def _read_modes(model: Any, modes: Sequence[InferenceModules]) -> list[Setting]:
    if isinstance(modes, str) or not isinstance(modes, Sequence) or not modes:
        raise SettingError(f"The modes are {modes!r}.", 'Give a list of settings, such as ["none", "attention"].')
    settings = [model._taia_switch.resolve(mode).settings[0] for mode in modes]
    labels = [setting.label for setting in settings]
    repeated = [label for label in labels if labels.count(label) > 1]
    if repeated:
        raise SettingError(f"The mode '{repeated[0]}' was given twice.", "Give each mode once.")
    return settings


class _Run:
    """One comparison that is being made."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        messages: tuple[Mapping[str, str], ...],
        prompts: Sequence[Prompt],
        settings: Sequence[Setting],
        config: GenerationConfig,
        seed: int,
        measures: bool,
        notes: tuple[str, ...],
    ) -> None:
        self.model, self.messages, self.settings, self.config = model, messages, settings, config
        self.seed, self.measures, self.notes = seed, measures, notes
        ends = _ends(config)
        self.rows = [_Row(setting, prompt, tokenizer, ends) for setting, prompt in zip(settings, prompts, strict=True)]
        self.start = time.perf_counter()
        self.first: float | None = None

    def states(self) -> Generator[Comparison, None, None]:
        full = False
        try:
            for rows in self.batches():
                yield from self.decoded(rows)
        except (torch.OutOfMemoryError, MemoryError) as error:
            traceback.clear_frames(error.__traceback__)  # they hold what was allocated
            full = True
        if full:
            free_memory()
            raise OutOfMemoryError(
                f"The memory does not suffice for {len(self.rows)} answers at once; what was allocated is free again.",
                "Compare fewer modes, or give a smaller max_new_tokens or a shorter prompt.",
            )
        if not self.measures:
            return
        try:
            yield self.measured()
        except (torch.OutOfMemoryError, MemoryError) as error:
            traceback.clear_frames(error.__traceback__)
            full = True
        if full:  # the answers are complete all the same
            free_memory()
            state = self.state()
            yield dataclasses.replace(state, notes=(*state.notes, "The memory did not suffice for the measures."))

    def batches(self) -> list[list[_Row]]:
        """Returns the rows that can be decoded together: all of them, or each by itself."""
        try:
            self.model._taia_switch.resolve_rows([setting.value for setting in self.settings])
        except SettingError:  # the modules of this architecture must treat all rows alike
            return [[row] for row in self.rows]
        return [self.rows]

    def decoded(self, rows: Sequence[_Row]) -> Iterator[Comparison]:
        settings = [row.setting.value for row in rows]
        prompts = [row.prompt.input_ids for row in rows]
        steps = decode(self.model, prompts, settings, self.config, seed=self.seed)
        try:
            for step in steps:
                now = time.perf_counter()
                self.first = self.first or now
                for row, token in zip(rows, step, strict=True):
                    row.append(token, now)
                yield self.state()
        finally:
            steps.close()
        for row in rows:
            row.finish()
        yield self.state()

    def state(self) -> Comparison:
        config = self.model.taia_config
        sampling = NARROWING if self.config.do_sample else ()
        generation = {
            "max_new_tokens": self.config.max_new_tokens,
            "do_sample": bool(self.config.do_sample),
            **{name: value for name in sampling if (value := getattr(self.config, name)) is not None},
            "seed": self.seed,
        }
        return Comparison(
            messages=self.messages,
            answers=tuple(row.answer() for row in self.rows),
            generation=generation,
            model=config._name_or_path or config.base_model_name_or_path,
            revision=getattr(config, "_commit_hash", None),
            notes=self.notes,
            seconds_to_first_token=self.first and self.first - self.start,
        )

    def measured(self) -> Comparison:
        done = self.state()
        answers = [answer.tokens for answer in done.answers]
        prompts = [row.prompt.input_ids for row in self.rows]
        found = measure(self.model, prompts, answers, [setting.value for setting in self.settings])
        return dataclasses.replace(
            done,
            answers=tuple(
                dataclasses.replace(
                    answer,
                    entropy=one.entropy,
                    log_likelihoods=dict(zip(done.modes, one.log_likelihoods, strict=True)),
                )
                for answer, one in zip(done.answers, found, strict=True)
            ),
        )


class GrowingText:
    """The text of tokens that come one by one.

    A token alone is no text: it may hold part of a character, and its leading space depends on the token before. So
    a short window of tokens is decoded with and without the new ones, and the difference is appended.

    Example:
        ```python
        text = GrowingText(tokenizer)
        for token in tokens:
            text.append(token)
        text.value  # is tokenizer.decode(tokens, skip_special_tokens=True)
        ```
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        self.value = ""
        self._start = 0  # of the window
        self._shown = 0  # tokens whose text is in `value`

    def append(self, token: int) -> None:
        """Adds a token; an unfinished character waits for its other bytes."""
        self.tokens.append(token)
        before = self._decode(self.tokens[self._start : self._shown])
        now = self._decode(self.tokens[self._start :])
        if len(now) > len(before) and not now.endswith("\ufffd"):
            self.value += now[len(before) :]
            self._start, self._shown = self._shown, len(self.tokens)

    def finish(self) -> str:
        """Returns the text of all tokens, decoded at once."""
        self.value = self._decode(self.tokens)
        return self.value

    def _decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


class _Row:
    """An answer that grows."""

    def __init__(self, setting: Setting, prompt: Prompt, tokenizer: Any, ends: frozenset[int]) -> None:
        self.setting, self.prompt, self.ends = setting, prompt, ends
        self.text = GrowingText(tokenizer)
        self.finished: str | None = None
        self.times: list[float] = []  # of the first and the latest token

    def append(self, token: int, now: float) -> None:
        """Adds a token, unless the answer has ended: what follows then is padding."""
        if self.finished:
            return
        self.text.append(token)
        self.times[1:] = [now]
        if token in self.ends:
            self.finished = "stop"

    def finish(self) -> None:
        """Ends the answer where decoding ended."""
        self.finished = self.finished or "length"
        self.text.finish()

    def answer(self) -> ComparedAnswer:
        tokens = self.text.tokens
        seconds = self.times[-1] - self.times[0] if self.times else 0.0
        return ComparedAnswer(
            mode=self.setting.label,
            setting=self.setting.value,
            text=self.text.value,
            tokens=tuple(tokens),
            finished=self.finished,
            tokens_per_second=(len(tokens) - 1) / seconds if seconds else None,
        )


def _ends(config: GenerationConfig) -> frozenset[int]:
    ends = config.eos_token_id
    return frozenset(ends if isinstance(ends, (list, tuple)) else () if ends is None else (ends,))
