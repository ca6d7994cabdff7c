"""A tuning as text for a terminal."""

from __future__ import annotations

from taia_hub.common.shown import text_of
from taia_hub.common.text_tables import aligned, amount
from taia_hub.results.statistics import FEWEST, Interval
from taia_hub.results.text import format_difference, format_value
from taia_hub.results.tuning import Candidate, Tuned
from taia_hub.switch.settings import mode_title

LOST = {"kl": "KL to the base", "loss": "loss grown by"}
"""Objective to the name of its retention in tables."""


@text_of.register
def tuning_text(tuned: Tuned) -> str:
    """Lays a tuning out for a terminal: the candidates with what they gain and lose, then which to use and why."""
    head = ["candidate", "target loss", "gain over none", LOST[tuned.objective], "saved of all", "same next token"]
    order = {"mode": 0, "common": 1, "tuned": 2}
    rows = [_row(one) for one in sorted(tuned.candidates, key=lambda one: order[one.kind])]
    lines = [
        aligned([head, *rows]),
        "",
        "* on the front: no other candidate is as good in both and better in one. Losses and KL in nats a token, on "
        f"{amount(tuned.target.report, 'target item')} and {amount(tuned.retain.report, 'retained text')} that the "
        "search did not see; differences with paired 95 % intervals.",
        "",
        tuned.choice.reason,
    ]
    if min(tuned.target.report, tuned.retain.report) < FEWEST:
        lines.append(f"Fewer than {FEWEST} items tell nothing about a difference.")
    if not tuned.complete:
        lines.append("The budget ended the search before its last point: more time may find more.")
    return "\n".join([*lines, *tuned.notes])


def _row(one: Candidate) -> list[str]:
    kept = "" if one.kept is None else f"{one.kept.value:.1%}"
    return [
        f"{'*' if one.on_front else ' '} {mode_title(one.label)}",
        format_value(one.target.value),
        _difference(one.gain.get("none")),
        f"{one.retention.value:.4f}",
        _difference(one.saved.get("all")),
        kept,
    ]


def _difference(interval: Interval | None) -> str:
    return "" if interval is None else format_difference(interval)
