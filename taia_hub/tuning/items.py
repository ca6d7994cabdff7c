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
    within `max_length` tokens, at which all are cut off. At most `limit` items a side are drawn.

    Raises:
        ConfigError: If fewer than 20 items are left on a side, or an id is not below `vocabulary`.
    """
    sides, notes = [], list[str]()
    known = set[str]()
    for number, (what, items) in enumerate((("target", target), ("retained", retain))):
        notes += items.notes
        cut = dict(zip(items.keys, (_cut(row, max_length) for row in items.rows), strict=True))
        own = {key: row for key, row in cut.items() if row.measured}
        for row in own.values():
            check_ids(tokenizer, row.input_ids, vocabulary)
        if both := own.keys() & known:
            notes.append(
                f"{len(both)} of the retained items stand in the target too: they are left out, because what is "
                "learned there cannot be lost."
            )
        kept = {key: row for key, row in own.items() if key not in known}
        if len(kept) < FEWEST:
            raise _too_few(what, len(kept), len(items.rows), len(both))
        known |= own.keys()
        search, report = _split(kept, limit, [seed, number])
        if len(kept) > limit:
            notes.append(f"Of {len(kept):,} {what} items {limit:,} are drawn.")
        sides.append(Side(what, items.name, search, report, len(items.rows) - len(kept)))
    return sides[0], sides[1], tuple(notes)


def _split(rows: Mapping[str, Encoded], limit: int, seed: list[int]) -> tuple[tuple[Encoded, ...], tuple[Encoded, ...]]:
    """Draws items and halves them; which ones depends on their content and the seed, not on the order of the file."""
    keys = sorted(rows)
    drawn = [rows[keys[at]] for at in np.random.default_rng(seed).permutation(len(keys))[:limit]]
    half = len(drawn) // 2
    return tuple(drawn[:half]), tuple(drawn[half:])


def _cut(row: Encoded, length: int) -> Encoded:
    return row if len(row.input_ids) <= length else Encoded(row.input_ids[:length], row.labels[:length])


def _too_few(what: str, left: int, came: int, both: int) -> ConfigError:
    less = f", of which {left} count" if left < came else ""
    why = ": others come twice, stand in the target too, or have no answer within the longest length" if less else ""
    return ConfigError(
        f"There are {came} {what} items{less}{why}; {FEWEST} are the fewest.",
        "One half is searched on, the other one tells whether it is more than noise."
        + (" Give texts of your own to retain, which are not in the target." if both else ""),
    )
