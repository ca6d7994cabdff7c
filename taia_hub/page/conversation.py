"""A user's conversation: turns that grow, as values that come in and go out."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator, Sequence

from taia_hub.errors import ConfigError
from taia_hub.page.answering import Answer
from taia_hub.page.board import Turn
from taia_hub.page.questions import Question

Turns = tuple[Turn, ...]


def histories_of(turns: Turns, modes: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """Returns what each mode's conversation was so far: label to messages of user and assistant.

    A mode that had no column in an earlier turn goes on with the answer of that turn's first column.
    """
    found: dict[str, list[dict[str, str]]] = {mode: [] for mode in modes}
    for turn in turns:
        texts = {answer.mode: answer.text for answer in turn.comparison.answers}
        prompt = turn.comparison.messages[-1]["content"]
        for mode, messages in found.items():
            answer = texts.get(mode, turn.comparison.answers[0].text)
            messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return found


def ask(
    answer: Answer, name: str, revision: str | None, turns: Turns, question: Question, *, blind: bool = False
) -> Iterator[Turns]:
    """Answers a question and yields the conversation, with one more turn, as it grows.

    Where it is `blind`, the columns are shuffled and their names hidden until the vote. In the last state the answers
    come no more.
    """
    turns = tuple(dataclasses.replace(turn, passed=True) for turn in turns)
    order = list(range(len(question.modes)))
    if blind:  # the question itself is shuffled: where modes run one after the other, the first would tell
        random.SystemRandom().shuffle(order)
        question = dataclasses.replace(
            question,
            modes=tuple(question.modes[index] for index in order),
            histories=tuple(question.histories[index] for index in order) if question.histories else (),
        )
    columns = tuple(range(len(order)))
    turn = None
    states = answer(name, revision, question)
    try:
        with contextlib.closing(states):
            for comparison in states:
                turn = Turn(comparison, columns, blind=blind, running=True)
                yield (*turns, turn)
    except Exception:
        if turn is not None:
            yield (*turns, dataclasses.replace(turn, running=False))
        raise
    if turn is not None:
        yield (*turns, dataclasses.replace(turn, running=False))


def stop(turns: Turns) -> Turns:
    """Ends the latest turn where it stands."""
    return (*turns[:-1], dataclasses.replace(turns[-1], running=False)) if turns else turns


def vote(turns: Turns, choice: int | None) -> Turns:
    """Votes for a column of the latest turn, -1 for all alike, which shows its names; a second vote is refused."""
    if not turns or turns[-1].running:
        raise ConfigError("There are no answers to vote for yet.", "Wait until they are complete.")
    if turns[-1].vote is not None:
        raise ConfigError("You have voted for these answers.", "Ask something else to vote again.")
    if choice is None or not -1 <= choice < len(turns[-1].order):
        raise ConfigError("No answer was chosen.", "Choose the better one, or that they are alike.")
    return (*turns[:-1], dataclasses.replace(turns[-1], vote=choice))
