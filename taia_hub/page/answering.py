"""From a question to answers that stream, on whatever device there is, within the page's limits."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Iterator

from taia_hub.compare import Comparison, stream_compare
from taia_hub.errors import TAIAError
from taia_hub.page.devices import on_gpu
from taia_hub.page.models import Models
from taia_hub.page.questions import Question
from taia_hub.page.settings import PageSettings
from taia_hub.space.rendering import zero_size

_PAUSE = 0.05  # seconds between states: a page shows no more, and each one is sent whole

Answer = Callable[[str, "str | None", Question], Generator[Comparison, None, None]]
"""Takes a repository, a revision and a question, and yields the answers so far."""


def make_answer(models: Models, settings: PageSettings) -> Answer:
    """Makes the generator function that needs the GPU; everything that it uses comes as an argument.

    Closing the generator ends generation and frees its memory.
    """

    def duration(name: str, revision: str | None, question: Question) -> float:
        return min(settings.max_seconds, expected_seconds(question))

    @on_gpu(duration, zero_size(models.bytes))
    def lent(name: str, revision: str | None, question: Question) -> Generator[Comparison | TAIAError, None, None]:
        end = time.monotonic() + settings.max_seconds
        try:
            loaded = models.get(name, revision)
            states = stream_compare(
                loaded.model,
                loaded.tokenizer,
                question.prompt,
                question.modes,
                system=question.system or None,
                histories=question.histories,
                **question.generation,
            )
            with contextlib.closing(states):
                yield from _paced(states, end, settings.max_seconds)
        except TAIAError as error:  # of an exception ZeroGPU passes on the name alone; a value comes whole
            yield error

    def answer(name: str, revision: str | None, question: Question) -> Generator[Comparison, None, None]:
        with contextlib.closing(lent(name, revision, question)) as states:
            for state in states:
                if isinstance(state, TAIAError):
                    raise state
                yield state

    return answer


def expected_seconds(question: Question) -> float:
    """Returns for how long a GPU is asked for: loading, reading, and the longest answers in as many columns.

    A short time gets a better place in ZeroGPU's queue.

    Example:
        >>> expected_seconds(Question("a", ("none", "all"), max_new_tokens=100))
        15.0
    """
    return 10.0 + question.max_new_tokens * (0.03 + 0.01 * len(question.modes))


def _paced(states: Iterator[Comparison], end: float, most: float) -> Iterator[Comparison]:
    """Passes states on at the pace of a page, the first and finished ones always, and ends when the time is up."""
    shown = time.monotonic()
    waiting: Comparison | None = None
    for state in states:
        now = time.monotonic()
        waiting = state
        if state.finished:
            yield state
            waiting = None
            if now > end:
                return  # without the measures
            continue
        if now > end:
            note = f"Cut after {most:g} seconds, which is the limit here."
            yield dataclasses.replace(state, notes=(*state.notes, note))
            return
        if now - shown >= _PAUSE or max(len(answer.tokens) for answer in state.answers) <= 1:
            yield state
            shown, waiting = now, None
    if waiting is not None:
        yield waiting
