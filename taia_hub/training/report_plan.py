"""What the report at the end of a training measures: as much as fits into a twentieth of the training's work."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from taia_hub.common.chat import check_ids, embedding_rows
from taia_hub.common.labels import Encoded
from taia_hub.common.text_tables import amount
from taia_hub.errors import ConfigError
from taia_hub.results.statistics import FEWEST
from taia_hub.retaining import encode_texts, read_texts
from taia_hub.switch.modes import MODES
from taia_hub.switch.settings import InferenceModules, parse_setting
from taia_hub.training.job import Job
from taia_hub.training.planning import Plan, ReportPlan
from taia_hub.training.recipe import TrainingRecipe

SHARE = 0.05
"""Most of a training's work that its report takes unless all of it is asked for."""
PASSES = 2.5
"""Forward passes without gradients that a token of a training costs, at least."""
_SEED = 0
MOST = 1000
"""More held-out items than this are not measured: no interval would be narrower by what matters."""


@dataclass(frozen=True)
class ReportRows:
    """What a report measures under M `settings`: items and texts as JSON values, each with its tokens."""

    settings: tuple[InferenceModules, ...] = ()
    items: tuple[tuple[Any, Encoded], ...] = ()
    texts: tuple[tuple[Any, Encoded], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.items or self.texts)


def report_settings(recipe: TrainingRecipe) -> tuple[InferenceModules, ...]:
    """Returns the settings that a report measures: the base, the modes, and the published one if it is none of them.

    Example:
        >>> report_settings(TrainingRecipe(method="full"))
        ('none', 'attention', 'ffn', 'all', 'attention+other')
    """
    modes: list[InferenceModules] = ["none", *(mode for mode in MODES if mode != "none")]
    published = parse_setting(recipe.published)
    return tuple(modes if published.label in MODES else [*modes, published.value])


def plan_report(job: Job, plan: Plan, asked: bool | None) -> tuple[Plan, ReportRows]:
    """Chooses what the report of a training measures, and writes into its plan how much that is.

    Args:
        job: The training; what is held out is encoded here, so that an item that cannot be is refused before it.
        plan: Its plan.
        asked: Whether there is a report; True makes it of all items and texts, None of those that take at most a
            twentieth of the training's work, at least 10 of each or none.

    Returns:
        The plan with the report's, and with a note where a part of it is left out; and what is measured.

    Raises:
        ConfigError: If a held-out item cannot be encoded.
    """
    if asked is False:
        return plan, ReportRows()
    settings = report_settings(job.recipe)
    work = PASSES * plan.tokens / plan.processes / len(settings)  # tokens under one setting that cost as much
    room = None if asked else SHARE * work
    held, texts = _held_out(job, room), _texts(job)
    order = np.random.default_rng(_SEED).permutation(len(texts)).tolist()  # the first ones are a sample of all
    lengths = [[len(one.input_ids) for _, one in rows] for rows in (held, [texts[at] for at in order])]
    items, general = _fitting(lengths[0], lengths[1], room)
    tokens = sum(lengths[0][:items]) + sum(lengths[1][:general])
    report = ReportPlan(items, general, len(settings), tokens / work)
    left = [("held-out items", len(held), items), ("general texts", len(texts), general)]
    notes = [
        f"The report leaves out the {name}: {min(FEWEST, there)} of them take more than {100 * SHARE:.0f} % of the "
        f"time of so short a training. --report measures all of them."
        for name, there, taken in left
        if there and not taken
    ]
    if held and not items:
        notes.append(
            f"{amount(plan.held_out, 'item')} held out and none of them measured: --holdout 0 trains on them instead."
        )
    rows = ReportRows(settings, tuple(held[:items]), tuple(texts[at] for at in sorted(order[:general])))
    return dataclasses.replace(plan, report=report, notes=(*plan.notes, *notes)), rows


def report_words(plan: Plan) -> str:
    """Says in a line what a report measures, and what of the training's time it takes."""
    report = plan.report
    if report is None:
        return "none"
    parts = [(report.items, "held-out item"), (report.texts, "general text")]
    said = " and ".join(amount(count, noun) for count, noun in parts if count)
    if not said:
        return "none, because it would take too much of so short a training"
    return f"{said} under {report.settings} modes: about {100 * report.share:.1f} % of the training's time"


def _held_out(job: Job, room: float | None) -> list[tuple[Any, Encoded]]:
    """Encodes held-out items as they are trained on: at least as many as fit, and one more."""
    found, tokens = list[tuple[Any, Encoded]](), 0
    for messages, encoded in _encoded(job):
        found.append((messages, encoded))
        tokens += len(encoded.input_ids)
        if len(found) == MOST or (room is not None and len(found) >= FEWEST and tokens > room):
            break
    return found


def _encoded(job: Job) -> Iterator[tuple[Any, Encoded]]:
    rows, vocabulary = job.data.held_out, embedding_rows(job.skeleton)
    for index in range(len(rows)):
        row = rows[index]
        try:
            encoded = job.encoder.encode(row["messages"])
        except ConfigError as error:
            raise ConfigError(f"In the data '{row['source']}': {error.message}", error.hint) from error
        check_ids(job.tokenizer, encoded.input_ids, vocabulary)
        cut = encoded.first(job.max_length)
        if cut.measured:  # else the question alone is longer
            yield row["messages"], cut


def _texts(job: Job) -> list[tuple[Any, Encoded]]:
    """Encodes the general texts that ship."""
    items = read_texts().items
    rows, _ = encode_texts(job.skeleton, job.tokenizer, items)
    return [(item, row) for item, row in zip(items, rows, strict=True) if row.measured]


def _fitting(items: Sequence[int], texts: Sequence[int], room: float | None) -> tuple[int, int]:
    """Says how many of each, by their lengths in tokens, fit together: to each half of the room, and what is left."""
    if room is None:
        return len(items), len(texts)
    general = _first(texts, room / 2)
    own = _first(items, room - sum(texts[:general]))
    return own, _first(texts, room - sum(items[:own]))


def _first(lengths: Sequence[int], room: float) -> int:
    count = bisect.bisect_right(list(itertools.accumulate(lengths)), room)
    return count if count >= min(FEWEST, len(lengths)) else 0
