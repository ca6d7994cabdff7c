"""What a card says of a tuned setting: which one to use and why, and the front as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from taia_hub.cards.data import CardData, Figure
from taia_hub.cards.escaping import code, text
from taia_hub.common.text_tables import amount, markdown_table
from taia_hub.results.statistics import FEWEST, Interval
from taia_hub.results.tuning import Candidate, Tuned
from taia_hub.results.tuning_text import gain_of
from taia_hub.switch.modes import PAPER_NAMES

FRONT_FIGURE = "figures/tuning_front.png"
WEIGHTS_FIGURE = "figures/tuning_weights.png"
"""Paths in the repository of the figures that belong to this section, and not to those of the update."""

_MOST_ROWS = 8
_LOST = {"kl": "KL to the base", "loss": "loss above the base's"}


@dataclass(frozen=True)
class TunedWords:
    """What the section shows; texts are Markdown already.

    Attributes:
        chosen: Label of the setting to use.
        reason: Why, a sentence or two.
        is_default: Whether the repository publishes it.
        measured: On what the numbers were measured.
        table: The front, and the plain modes beside it.
        figures: The figures of it that lie in the repository.
        notes: What to know of the numbers.
    """

    chosen: str
    reason: str
    is_default: bool
    measured: str
    table: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]


def tuned_words(card: CardData) -> TunedWords | None:
    """Says what a card shows of its tuning; None where there is none."""
    tuned = card.tuning
    if tuned is None:
        return None
    notes = list(tuned.notes)
    if min(tuned.target.report, tuned.retain.report) < FEWEST:
        notes.append(f"Fewer than {FEWEST} items tell nothing about a difference.")
    if not tuned.complete:
        notes.append("The time that was given ended the search before its last point.")
    wanted = (FRONT_FIGURE, WEIGHTS_FIGURE)
    return TunedWords(
        chosen=code(tuned.choice.label),
        reason=text(tuned.choice.reason),
        is_default=tuned.recommended.parsed.label == card.default,
        measured=_measured(tuned),
        table=_table(tuned),
        figures=tuple(one for name in wanted for one in card.figures if one.path == name),
        notes=tuple(map(text, notes)),
    )


def _measured(tuned: Tuned) -> str:
    target = "" if tuned.target.name is None else f" of {code(tuned.target.name)}"
    of_them = {None: "", "shipped": " that ship with taia-hub"}
    retained = of_them.get(tuned.retain.name, f" of {code(tuned.retain.name)}")
    items, texts = amount(tuned.target.report, "item"), amount(tuned.retain.report, "text")
    return f"{items}{target} (the target) and {texts}{retained} (what is to be kept)"


def _table(tuned: Tuned) -> str:
    head = ("setting", "gained on the target", _LOST[tuned.objective], "kept")
    return markdown_table(head, [_row(one, tuned) for one in _rows(tuned)])


def _rows(tuned: Tuned) -> Sequence[Candidate]:
    """Picks plain modes, the setting to use, and evenly of what else is on the front."""
    fixed = [one for one in tuned.candidates if one.kind == "mode" or one.label == tuned.choice.label]
    front = [one for one in tuned.front if one not in fixed]
    most = max(0, _MOST_ROWS - len(fixed))
    if len(front) > most:
        front = [front[round((at + 1) * (len(front) + 1) / (most + 1)) - 1] for at in range(most)]
    return [one for one in tuned.candidates if one in fixed or one in front]


def _row(one: Candidate, tuned: Tuned) -> tuple[str, ...]:
    name = f"{code(one.label)} ({PAPER_NAMES[one.label]})" if one.label in PAPER_NAMES else code(one.label)
    digits = "+.3f" if tuned.objective == "loss" else ".4f"
    return (
        f"**{name}**" if one.label == tuned.choice.label else name,
        _with_interval(gain_of(one, tuned), "+.3f"),
        _with_interval(one.retention, digits),
        "" if one.kept is None else f"{one.kept.value:.1%}".replace("%", " %"),
    )


def _with_interval(interval: Interval, form: str) -> str:
    value, low, high = (format(number, form) for number in (interval.value, interval.low, interval.high))
    return value if value == low == high else f"{value} ({low} to {high})"
