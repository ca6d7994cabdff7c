"""The conversation as HTML: a row a turn, a column a mode; whatever people and models write stays text."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from taia_hub.compare import ComparedAnswer, Comparison
from taia_hub.compare.showing import diff_html
from taia_hub.page.questions import column_name

_LETTERS = "ABCD"


@dataclass(frozen=True)
class Turn:
    """One prompt with its answers, as a user sees them.

    Attributes:
        order: Position of each column's answer in `comparison.answers`.
        blind: Whether the columns' names are hidden until the vote.
        vote: Column that was voted for, -1 for all alike, or None.
        passed: Whether the conversation went on, so that it can no longer be voted on.
    """

    comparison: Comparison
    order: tuple[int, ...]
    blind: bool = False
    vote: int | None = None
    running: bool = False
    passed: bool = False

    @property
    def hidden(self) -> bool:
        """Whether the columns' names are hidden now."""
        return self.blind and self.vote is None and not self.passed

    @property
    def columns(self) -> tuple[ComparedAnswer, ...]:
        """The answers in the order of the columns."""
        return tuple(self.comparison.answers[index] for index in self.order)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names: letters while they are hidden."""
        if self.hidden:
            return tuple(f"Answer {letter}" for letter in _LETTERS[: len(self.order)])
        return tuple(column_name(answer.mode) for answer in self.columns)


def board_html(turns: Sequence[Turn], against: str | None = None) -> str:
    """Writes a conversation as HTML, compared word by word with the mode `against`, if any; a hint if there is none."""
    if not turns:
        return '<div class="taia-empty">The answers appear here, a column each.</div>'
    return f'<div class="taia-board">{"".join(_turn(turn, against) for turn in turns)}</div>'


def status_text(turns: Sequence[Turn]) -> str:
    """Says in a line of plain text how things stand, for everybody and for screen readers."""
    if not turns:
        return "Ready."
    turn = turns[-1]
    tokens = sum(len(answer.tokens) for answer in turn.comparison.answers)
    notes = " ".join([*(["Thank you for your vote."] if turn.vote is not None else []), *turn.comparison.notes])
    if turn.running:
        return f"Answering: {tokens} tokens so far. {notes}".strip()
    if not turn.comparison.finished:
        return f"Stopped after {tokens} tokens. {notes}".strip()
    columns = "1 column" if len(turn.order) == 1 else f"{len(turn.order)} columns"
    return f"Done: {tokens} tokens in {columns}. {notes}".strip()


def _turn(turn: Turn, against: str | None) -> str:
    prompt = html.escape(turn.comparison.messages[-1]["content"])
    known = None if turn.hidden or against not in turn.comparison.modes else against
    columns = "".join(_column(turn, index, name, known) for index, name in enumerate(turn.names))
    measures = "" if turn.hidden or turn.running else _measures(turn.comparison)
    return (
        f'<article class="taia-turn"><p class="taia-prompt" dir="auto">{prompt}</p>'
        f'<div class="taia-columns" style="--columns:{len(turn.order)}">{columns}</div>{measures}</article>'
    )


def _column(turn: Turn, index: int, name: str, against: str | None) -> str:
    answer = turn.columns[index]
    if against is not None and answer.mode != against and not turn.running:
        body = diff_html(turn.comparison.diff(answer.mode, against))
    else:
        body = html.escape(answer.text)
    chosen = " taia-chosen" if turn.vote == index else ""
    busy = "true" if turn.running and not answer.finished else "false"
    return (
        f'<section class="taia-column{chosen}" data-column="{index}" aria-busy="{busy}" '
        f'aria-label="{html.escape(name)}"><h3>{html.escape(name)}</h3>'
        f'<div class="taia-answer" dir="auto">{body}</div>'
        f'<p class="taia-figures">{_figures(turn, answer)}</p></section>'
    )


def _figures(turn: Turn, answer: ComparedAnswer) -> str:
    found = [f"{len(answer.tokens)} tokens"]
    if turn.hidden:
        return found[0]
    if answer.tokens_per_second:
        found.append(f"{answer.tokens_per_second:.1f} tokens/s")
    if answer.entropy:
        found.append(f"entropy {sum(answer.entropy) / len(answer.entropy):.2f} nats")
    reference = turn.comparison.modes[0]
    if not turn.running and answer.mode != reference:
        parting = turn.comparison.parting(answer.mode, reference)
        other = html.escape(column_name(reference))
        found.append(f"the same as {other}" if parting.same else f"parts from {other} at token {parting.token + 1}")
    if answer.finished == "length":
        found.append("cut at the greatest length")
    return " · ".join(found)


def _measures(comparison: Comparison) -> str:
    if not all(answer.log_likelihoods for answer in comparison.answers):
        return ""
    names = [html.escape(column_name(mode)) for mode in comparison.modes]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(f"<td>{answer.log_likelihoods[mode]:.1f}</td>" for mode in comparison.modes)
        + "</tr>"
        for name, answer in zip(names, comparison.answers, strict=True)
    )
    return (
        "<details><summary>How likely each mode finds each answer</summary><div class='taia-scroll'><table>"
        "<caption>Log-likelihood in nats of the answer of a row under the mode of a column</caption>"
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )
