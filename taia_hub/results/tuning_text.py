"""A tuning as text for a terminal of 80 columns: the candidates, the front drawn, which to use and its weights."""

from __future__ import annotations

import itertools
import string
import textwrap
from collections.abc import Sequence

from taia_hub.common.shown import text_of
from taia_hub.common.text_plots import bars, scatter
from taia_hub.common.text_tables import aligned, amount
from taia_hub.results.statistics import FEWEST, Interval
from taia_hub.results.text import format_difference, format_value
from taia_hub.results.tuning import Candidate, Tuned
from taia_hub.roles import ROLES
from taia_hub.switch.modes import mode_title

LOST = {"kl": "KL to the base", "loss": "loss grown by"}
"""Objective to the name of its retention in tables."""

CHOSEN = "★"
_LETTERS = string.ascii_lowercase + "γδθλξπσφψωбджилцчшщэюя"  # their capitals look like none of the others
_MORE = ("-", "+")  # behind the last letter: beside the front and on it
_WIDTH = 79
_LONGEST = 20
_ORDER = {"mode": 0, "common": 1, "tuned": 2}
_ALL_ROLES = "all roles"


@text_of.register
def tuning_text(tuned: Tuned) -> str:
    """Lays a tuning out for a terminal: the candidates with what they gain and lose, the front, and which to use."""
    marks = _marks(tuned)
    head = ["", "candidate", "gain on the target", LOST[tuned.objective], "kept"]
    base = {one.label: one for one in tuned.candidates}.get("none")
    measured = (
        f"{CHOSEN} the one to use; capitals{_more(tuned)} are on the front: no other candidate is as good in both and "
        f"better in one. Nats a token, with 95 % intervals, on {amount(tuned.target.report, 'target item')} and "
        f"{amount(tuned.retain.report, 'retained text')} that the search did not see. The gain is over none"
        + (f", whose loss on the target is {format_value(base.target.value)}" if base else "")
        + "; kept is the share of the retained tokens whose most likely next one is the base's."
    )
    told = [measured, tuned.choice.reason]
    if min(tuned.target.report, tuned.retain.report) < FEWEST:
        told.append(f"Fewer than {FEWEST} items tell nothing about a difference.")
    if not tuned.complete:
        told.append(
            "The budget ended the search before its last point: with a larger one, or none, the same command goes on."
        )
    told += tuned.notes
    table = aligned([head, *(_row(one, mark, tuned) for mark, one in marks)], left=(0, 1))
    measured, reason, *notes = (textwrap.fill(one, _WIDTH) for one in told)
    parts = [table, measured, draw_front(tuned), "\n".join([reason, *notes])]
    if drawn := draw_weights(tuned):
        parts.append(f"Weights of {tuned.choice.label} by layer:\n{drawn}")
    return "\n\n".join(parts)


def draw_front(tuned: Tuned) -> str:
    """Draws gain against loss of retention; the marks are those of the table, and a line joins the front."""
    marks = _marks(tuned)
    chosen_first = sorted(marks, key=lambda one: (one[0] != CHOSEN, not one[1].on_front))
    points = [(mark, one.retention.value, gain_of(one, tuned).value) for mark, one in chosen_first]
    line = [(one.retention.value, gain_of(one, tuned).value) for one in tuned.front]
    lost = "KL to the base on the retained texts" if tuned.objective == "kl" else "loss grown on the retained texts"
    return scatter(points, x=f"{lost}, nats a token", y="gain on the target, nats a token", line=line, width=_WIDTH)


def draw_weights(tuned: Tuned) -> str:
    """Draws the weights of the chosen candidate, a row a role and a column a layer; empty where nothing is by layer."""
    rows, others = weights_by_layer(tuned, tuned.recommended.weights)
    lines = [bars(rows)] if rows else []
    if others:
        width = max(map(len, others)) + 2
        lines += [f"{label:<{width}}{weight:g}" for label, weight in others.items()]
    return "\n".join(lines)


def weights_by_layer(
    tuned: Tuned, weights: Sequence[float]
) -> tuple[dict[str, tuple[float | None, ...]], dict[str, float]]:
    """Places the (G,) weights of a candidate: role to its weight in each of the L layers, and those of no layer.

    Modules of several roles stand under `"all roles"`; a layer without an adapted module has None.
    """
    last = max((group.layers[1] for group in tuned.groups if group.layers), default=-1)
    rows: dict[str, list[float | None]] = {}
    others = {}
    for group, weight in zip(tuned.groups, weights, strict=True):
        if group.layers is None:
            others[group.label] = weight
            continue
        row = rows.setdefault(group.role or _ALL_ROLES, [None] * (last + 1))
        for layer in range(group.layers[0], group.layers[1] + 1):
            row[layer] = weight
    ordered = [role for role in (*ROLES, _ALL_ROLES) if role in rows]
    return {role: tuple(rows[role]) for role in ordered}, others


def gain_of(one: Candidate, tuned: Tuned) -> Interval:
    """Returns what a candidate gains on the target over the base model, paired where that was measured."""
    if (gain := one.gain.get("none")) is not None:
        return gain
    base = max(other.target.value for other in tuned.candidates)
    return Interval(base - one.target.value, base - one.target.high, base - one.target.low)


def retention_text(one: Candidate, objective: str) -> str:
    """Writes what a candidate loses of the rest, with its interval.

    Example:
        >>> from taia_hub.results.tuning import Candidate
        >>> nothing = Interval(0, 0, 0)
        >>> retention_text(Candidate("none", "mode", "none", (), nothing, nothing, {}, {}), "kl")
        '0.0000 [0.0000, 0.0000]'
    """
    if objective != "kl":
        return format_difference(one.retention)
    value, low, high = (f"{number:.4f}" for number in (one.retention.value, one.retention.low, one.retention.high))
    return f"{value} [{low}, {high}]"


def _marks(tuned: Tuned) -> list[tuple[str, Candidate]]:
    """Gives each candidate the character that it is drawn as, in the order of the table."""
    ordered = sorted(tuned.candidates, key=lambda one: _ORDER[one.kind])
    marks = list[tuple[str, Candidate]]()
    for one, letter in itertools.zip_longest(ordered, _LETTERS[: len(ordered)]):
        beside, on = (letter, letter.upper()) if letter else _MORE
        marks.append((CHOSEN if one.label == tuned.choice.label else on if one.on_front else beside, one))
    return marks


def _more(tuned: Tuned) -> str:
    return f" and {_MORE[True]}" if len(tuned.candidates) > len(_LETTERS) else ""


def _row(one: Candidate, mark: str, tuned: Tuned) -> list[str]:
    title = mode_title(one.label)
    return [
        mark,
        title if len(title) <= _LONGEST else f"{title[: _LONGEST - 1]}…",
        format_difference(gain_of(one, tuned)),
        retention_text(one, tuned.objective),
        "" if one.kept is None else f"{one.kept.value:.1%}",
    ]
