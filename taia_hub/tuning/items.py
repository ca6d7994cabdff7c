"""The items of both sides: checked, counted once, and split into a part to search on and one to report on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from taia_hub.common.chat import check_ids
from taia_hub.common.labels import Encoded
from taia_hub.common.resuming import digest
from taia_hub.errors import ConfigError
from taia_hub.results.tuning import TuningData

FEWEST = 20
"""Fewer items than these leave less than ten to report on, which tell nothing about a difference."""


@dataclass(frozen=True)
class Items:
    """Items under a name, as of `TuningData`.

    `rows` are the N items as the model reads them, with labels where a loss looks; `keys` are N texts that name what
    they say, the same for one item on both sides, and `notes` are for the user.
    """

    name: str | None
    rows: tuple[Encoded, ...]
    keys: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Side:
    """The items of one side, split; no item stands in both parts."""

    what: str
    name: str | None
    search: tuple[Encoded, ...]
    report: tuple[Encoded, ...]
    left_out: int

    @property
    def sha256(self) -> str:
        """Hash of all items and of which part they are in."""
        return digest([[[row.input_ids, row.labels] for row in part] for part in (self.search, self.report)])

    @property
    def facts(self) -> TuningData:
        """What the tuning file says of these items."""
        tokens = sum(len(row.measured) for row in self.report)
        return TuningData(self.name, self.sha256, len(self.search), len(self.report), tokens, self.left_out)


def make_sides(
    target: Items, retain: Items, *, tokenizer: Any, vocabulary: int | None, max_length: int, limit: int, seed: int
) -> tuple[Side, Side, tuple[str, ...]]:
    """Checks both sides, leaves out what may not count, draws and splits the rest; with sentences for the user.

    Left out are items that come twice, items of `retain` that stand in `target` too, and those that have no label
    within `max_length` tokens, at which all are cut off. They are compared by key and by what is left of their tokens,
    whether they came as texts, conversations or tokens. At most `limit` items a side are drawn. Items of one question
    are searched on or reported on together, unless there are too few questions.

    Raises:
        ConfigError: If fewer than 20 items are left on a side, or an id is not below `vocabulary`.
    """
    sides, notes = [], list[str]()
    known = set[str]()
    for number, (what, items) in enumerate((("target", target), ("retained", retain))):
        notes += items.notes
        own, seen = dict[str, Encoded](), set[str]()
        cut = [row.first(max_length) for row in items.rows]
        names = [{key, digest(row.input_ids)} for key, row in zip(items.keys, cut, strict=True)]
        for at in sorted(range(len(cut)), key=lambda at: (items.keys[at], cut[at].input_ids)):
            if cut[at].measured:
                if not names[at] & seen:
                    own[items.keys[at]] = cut[at]
                seen |= names[at]
        for row in own.values():
            check_ids(tokenizer, row.input_ids, vocabulary)
        if both := {key for key, row in own.items() if {key, digest(row.input_ids)} & known}:
            notes.append(
                f"{len(both)} of the retained items stand in the target too: they are left out, because what is "
                "learned there cannot be lost."
            )
        kept = {key: row for key, row in own.items() if key not in both}
        if len(kept) < FEWEST:
            short = sum(not row.measured for row in cut)
            raise _too_few(what, len(kept), len(items.rows), len(both), short, max_length)
        known |= seen
        search, report, mixed = _split(kept, limit, [seed, number])
        if mixed:
            notes.append(f"The {what} items have so few questions that some stand in both parts.")
        if len(kept) > limit:
            notes.append(f"Of {len(kept):,} {what} items {limit:,} are drawn.")
        sides.append(Side(what, items.name, search, report, len(items.rows) - len(kept)))
    return sides[0], sides[1], tuple(notes)


def _split(
    rows: Mapping[str, Encoded], limit: int, seed: list[int]
) -> tuple[tuple[Encoded, ...], tuple[Encoded, ...], bool]:
    """Draws items and halves them; which ones depends on their content and the seed, not on the order of the file.

    Returns:
        Both parts, and whether there are too few questions to keep each of them in one part.
    """
    for mixed in (False, True):
        alike: dict[Any, list[Encoded]] = {}
        for key in sorted(rows):
            alike.setdefault(key if mixed else _question(rows[key]) or key, []).append(rows[key])
        groups = list(alike.values())
        drawn = [groups[at] for at in np.random.default_rng(seed).permutation(len(groups))]
        half = min(limit, len(rows)) // 2
        search, report = list[Encoded](), list[Encoded]()
        for group in drawn:
            part, room = (search, half) if len(search) + len(group) <= half else (report, limit - half)
            part += group[: room - len(part)]
        if min(len(search), len(report)) >= FEWEST // 2:
            break
    return tuple(search), tuple(report), mixed


def _question(row: Encoded) -> tuple[int, ...] | None:
    """Returns what stands before the first label, or None of a text, which has nothing there but its first token."""
    first = row.measured[0]
    return tuple(row.input_ids[:first]) if first > 1 else None


def _too_few(what: str, left: int, came: int, both: int, short: int, max_length: int) -> ConfigError:
    """Makes the error of a side of which too little is left, with how many went for each reason."""
    reasons = (
        (came - left - both - short, f"the same as another one within {max_length:,} tokens"),
        (both, "in the target too"),
        (short, f"without an answer within {max_length:,} tokens"),
    )
    gone = ", ".join(f"{count:,} {reason}" for count, reason in reasons if count)
    hints = [
        "One half is searched on, the other one tells whether it is more than noise.",
        "Give texts of your own to retain, which are not in the target." if both else "",
        "Raise --max-length, to at most the tokens that the model takes, or give shorter items." if short else "",
    ]
    return ConfigError(
        f"There are {came:,} {what} items{f', of which {left} count ({gone})' * bool(gone)}; {FEWEST} are the fewest.",
        " ".join(filter(None, hints)),
    )
