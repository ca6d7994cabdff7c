"""The tuning file: which parts of an update were tried, what each kept and lost, and which to use."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from taia_hub.common.shown import Shown
from taia_hub.common.typed import check_types
from taia_hub.results.files import FORMAT, SideFile
from taia_hub.results.identity import ModelIdentity
from taia_hub.results.statistics import Interval
from taia_hub.roles import ROLES
from taia_hub.switch.settings import Setting, parse_published

TUNING_FILE = "taia_tuning.json"
"""Name of the tuning file at the root of a TAIA repository, and in the folder of a tuning."""

Kind = Literal["mode", "common", "tuned"]
"""What a candidate is: a plain mode, `all` at one common weight (WiSE-FT, arXiv 2109.01903), or found by the search."""

Objective = Literal["kl", "loss"]
"""What counts as lost: the divergence from the base, or how much the loss grew, on the retained texts."""

_FILE = SideFile("tuning", "taia tune")
_MOST_LAYERS = 10_000


@dataclass(frozen=True)
class WeightGroup:
    """Adapted modules that share one weight.

    Attributes:
        label: What tables call it, as in `"attention@3"`.
        selector: What a setting calls it.
        role: The role of all its modules, or None where they have several.
        layers: First and last layer of its modules, or None where one is outside the layers.
        modules: Number of its modules.
        parameters: Number of their updates' parameters.
    """

    label: str
    selector: str
    role: str | None
    layers: tuple[int, int] | None
    modules: int
    parameters: int


@dataclass(frozen=True)
class Candidate:
    """A setting with what it gains on the target and loses of the rest, both on the items that no search has seen.

    All values are nats a token with paired 95 % intervals, and lower is better of both.

    Attributes:
        label: What tables and figures call it; its own within a `Tuned`.
        kind: What it is.
        setting: The setting in the form that config.json stores.
        weights: The weight of each of `Tuned.groups`.
        target: Loss on the target.
        retention: Divergence from the base on the retained texts or, by `Tuned.objective`, how much the loss grew.
        gain: Label of a plain mode to its target loss less this one's: above 0 this is better.
        saved: The same of the retention: above 0 this keeps more.
        kept: Share of the retained texts' tokens whose most likely next token is the base's.
        trade_off: Nats of target loss that the search gave for a nat of retention; None of what it did not find.
        on_front: Whether no other candidate is as good in both and better in one.
    """

    label: str
    kind: Kind
    setting: str | list[list[Any]]
    weights: tuple[float, ...]
    target: Interval
    retention: Interval
    gain: Mapping[str, Interval]
    saved: Mapping[str, Interval]
    kept: Interval | None = None
    trade_off: float | None = None
    on_front: bool = False

    @property
    def parsed(self) -> Setting:
        """The setting as `model.using`, exports and merges take it."""
        return parse_published(self.setting)


@dataclass(frozen=True)
class Choice:
    """Which candidate to use, and why.

    Its intervals hold for all tuned candidates at once, because it was picked among them on the same items.

    Attributes:
        label: The candidate's.
        reason: A sentence or two.
        plain: Label of the best plain mode, which it was compared with; its own where it is that.
        beats_plain: Whether it is better than `plain` beyond noise.
        gain: Target loss of `plain` less that of the chosen one.
        saved: Retention of `plain` less that of the chosen one.
    """

    label: str
    reason: str
    plain: str
    beats_plain: bool
    gain: Interval
    saved: Interval


@dataclass(frozen=True)
class TuningData:
    """The items of one side.

    Attributes:
        name: Where they come from: a file's name, `"shipped"`, or None for rows that were handed over.
        sha256: Hash of all items that were used.
        search: Number of items that the search saw.
        report: Number of items that the candidates were measured on.
        report_tokens: Number of their measured tokens.
        left_out: Number of items that were left out: they stand in the target too, or their answers are cut off.
    """

    name: str | None
    sha256: str
    search: int
    report: int
    report_tokens: int
    left_out: int = 0


@dataclass(frozen=True, repr=False)
class Tuned(Shown):
    """What a search over the weights of an update found.

    Attributes:
        model: Which model.
        objective: What counts as lost.
        by: How modules were put together.
        groups: The groups, in the order of the weights.
        candidates: Plain modes first, then `all` at common weights, then what was found, from the most gain down.
        choice: Which one to use.
        target: The target's items.
        retain: The retained texts.
        seed: Of the split, the batches and the bootstrap.
        steps: Steps of the search.
        tokens: Tokens that the search computed, those of the base too, rows of one batch each counted.
        seconds: How long all of it took, over all parts of an interrupted run.
        versions: Package to version.
        date: The day that it was finished, as in `"2026-11-21"`.
        complete: False where the budget ended the search before its last point.
        allow_extrapolation: Whether weights outside [0, 1] were searched.
        notes: What the user should know, a sentence each.
    """

    model: ModelIdentity
    objective: Objective
    by: str
    groups: tuple[WeightGroup, ...]
    candidates: tuple[Candidate, ...]
    choice: Choice
    target: TuningData
    retain: TuningData
    seed: int
    steps: int
    tokens: int
    seconds: float
    versions: Mapping[str, str | None]
    date: str
    complete: bool = True
    allow_extrapolation: bool = False
    notes: tuple[str, ...] = ()

    @property
    def recommended(self) -> Candidate:
        """The candidate to use."""
        return self.candidate(self.choice.label)

    @property
    def front(self) -> tuple[Candidate, ...]:
        """The candidates that no other one beats in both, from the lowest target loss to the best retention."""
        found = [one for one in self.candidates if one.on_front]
        return tuple(sorted(found, key=lambda one: (one.target.value, -one.retention.value)))

    def candidate(self, label: str) -> Candidate:
        """Returns the candidate of a label; KeyError where there is none."""
        return {one.label: one for one in self.candidates}[label]

    def to_json(self) -> dict[str, Any]:
        """Returns the tuning as JSON values."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, value: Any, name: str = TUNING_FILE) -> Tuned:
        """Makes of JSON values the tuning that gave them by `to_json`; `name` is the file's, in error messages.

        Raises:
            ConfigError: If the values are not those of a tuning file, or those of a later format.
        """
        return _FILE.parse(value, name, _tuned)

    def save(self, path: Path) -> None:
        """Writes the tuning file, whole or not at all; a folder gets `taia_tuning.json`.

        Raises:
            RepositoryError: If it cannot be written.
        """
        _FILE.write(tuning_path(path), self.to_json())

    @classmethod
    def load(cls, path: Path) -> Tuned:
        """Reads a tuning file, or the one in a folder.

        Raises:
            RepositoryError: If there is no such file.
            ConfigError: If it is damaged.
        """
        path = tuning_path(path)
        return cls.from_json(_FILE.read(path), str(path))


def tuning_path(path: Path) -> Path:
    """Returns the tuning file in a folder, or the path itself where it is no folder."""
    return path / TUNING_FILE if path.is_dir() else path


def _tuned(value: Any) -> Tuned:
    values = {key: one for key, one in value.items() if key != "format"}
    found = Tuned(
        **{
            **values,
            "model": ModelIdentity(**value["model"]),
            "groups": tuple(
                WeightGroup(**{**one, "layers": None if one["layers"] is None else tuple(one["layers"])})
                for one in value["groups"]
            ),
            "candidates": tuple(map(_candidate, value["candidates"])),
            "choice": Choice(**{**value["choice"], **_intervals(value["choice"], "gain", "saved")}),
            "target": TuningData(**value["target"]),
            "retain": TuningData(**value["retain"]),
            "notes": tuple(value["notes"]),
        }
    )
    _check(found)
    return found


def _candidate(value: Mapping[str, Any]) -> Candidate:
    return Candidate(
        **{
            **value,
            "weights": tuple(value["weights"]),
            **_intervals(value, "target", "retention"),
            **{side: _intervals(value[side], *value[side]) for side in ("gain", "saved")},
            "kept": None if value["kept"] is None else Interval(**value["kept"]),
        }
    )


def _intervals(value: Mapping[str, Any], *names: str) -> dict[str, Interval]:
    return {name: Interval(**value[name]) for name in names}


def _check(tuned: Tuned) -> None:
    check_types(tuned)
    datetime.date.fromisoformat(tuned.date)
    labels = [one.label for one in tuned.candidates]
    if len(set(labels)) < len(labels):
        raise ValueError("a label comes twice")
    if not {tuned.choice.label, tuned.choice.plain} <= set(labels):
        raise ValueError("the choice is none of the candidates")
    for group in tuned.groups:
        if group.role not in (None, *ROLES):
            raise ValueError(f"group {group.label!r} has the unknown role {group.role!r}")
        if group.layers and not 0 <= group.layers[0] <= group.layers[1] < _MOST_LAYERS:
            raise ValueError(f"group {group.label!r} has the layers {group.layers}")
    for name, interval in _all_intervals(tuned):
        rounding = 1e-6 * max(1.0, abs(interval.value))
        if not interval.low - rounding <= interval.value <= interval.high + rounding:
            raise ValueError(f"{name} is {interval.value}, outside of its interval [{interval.low}, {interval.high}]")
    for one in tuned.candidates:
        if len(one.weights) != len(tuned.groups):
            raise ValueError(f"candidate {one.label!r} has another number of weights than there are groups")
        one.parsed.resolved()  # which refuses `tuned`: this file is what says what that is


def _all_intervals(tuned: Tuned) -> Iterator[tuple[str, Interval]]:
    """Yields every interval with what an error calls it."""
    yield "the gain of the choice", tuned.choice.gain
    yield "what the choice saves", tuned.choice.saved
    for one in tuned.candidates:
        intervals = {"target": one.target, "retention": one.retention, "kept": one.kept}
        intervals |= {f"gain over {label}": gain for label, gain in one.gain.items()}
        intervals |= {f"saved over {label}": saved for label, saved in one.saved.items()}
        for name, interval in intervals.items():
            if interval is not None:
                yield f"{name} of {one.label!r}", interval
