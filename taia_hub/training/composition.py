"""What was trained on: how many items of each source, when, and how many of them with a wrong answer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taia_hub.analysis._style import BLACK, TEXT, Figure, canvas, legend, looks, write
from taia_hub.errors import ConfigError
from taia_hub.training.noise import Noise

STRETCHES = 20
"""Most stretches that a training is divided into."""


@dataclass(frozen=True)
class NoiseRecord:
    """The wrong answers that were put in.

    `equal` of them are the same text as the right one, for want of another; `sha256` is over the source and index of
    each item and of the item whose answer it has.
    """

    ratio: float
    items: int
    by_source: Mapping[str, int]
    equal: int
    sha256: str


@dataclass(frozen=True)
class HeldOut:
    """The items that were held out; `sha256` is over the source and index of each."""

    items: int
    by_source: Mapping[str, int]
    sha256: str


@dataclass(frozen=True)
class Composition:
    """What was trained on, in the order of training, over all epochs, and what was held out.

    Of the items `distinct` are different; `stretches` and `noisy` count those of each source and those with a wrong
    answer in up to 20 equal parts of the training. `groups` says `"data"`, `"in_domain"` or `"ood"` of a source;
    `duplicates` counts the items of an epoch whose question an item before already has.
    """

    items: int
    distinct: int
    groups: Mapping[str, str]
    stretches: Mapping[str, tuple[int, ...]]
    noisy: tuple[int, ...]
    duplicates: int = 0
    noise: NoiseRecord | None = None
    held_out: HeldOut | None = None

    @property
    def ood_share(self) -> float:
        """Share of the items that are from out of the domain, 0 to 1."""
        return sum(sum(self.stretches[one]) for one, group in self.groups.items() if group == "ood") / self.items

    def to_json(self) -> dict[str, Any]:
        """Returns the composition as JSON values."""
        value: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return value

    @classmethod
    def from_json(cls, value: Any) -> Composition:
        """Reads what `to_json` gave; a ConfigError says so where it is none."""
        try:
            held_out = value.get("held_out")  # versions without a hold-out wrote none
            known = {field.name: value[field.name] for field in dataclasses.fields(cls) if field.name != "held_out"}
            known["stretches"] = {name: tuple(map(int, counts)) for name, counts in value["stretches"].items()}
            known["noisy"] = tuple(map(int, value["noisy"]))
            known["noise"] = None if value["noise"] is None else NoiseRecord(**value["noise"])
            known["held_out"] = None if held_out is None else HeldOut(**held_out)
            if any(len(counts) != len(known["noisy"]) for counts in known["stretches"].values()):
                raise ValueError("the sources have not the same number of stretches")
            return cls(**known)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(f"This is no composition of training data: {reason}.", "Train again.") from error


def compose(
    order: np.ndarray, sources: np.ndarray, labels: Sequence[str], groups: Sequence[str], noisy: np.ndarray
) -> Composition:
    """Counts what (L,) indices `order` hold of N items, whose `sources` are numbers into `labels` and `groups`."""
    count = min(STRETCHES, len(order))
    pieces = np.array_split(order, count)
    table = np.stack([np.bincount(sources[piece], minlength=len(labels)) for piece in pieces], axis=1)
    return Composition(
        items=len(order),
        distinct=len(np.unique(order)),
        groups=dict(zip(labels, groups, strict=True)),
        stretches={label: tuple(map(int, row)) for label, row in zip(labels, table, strict=True)},
        noisy=tuple(int(noisy[piece].sum()) for piece in pieces),
    )


def record_noise(
    noise: Noise, ratio: float, sources: np.ndarray, labels: Sequence[str], starts: np.ndarray
) -> NoiseRecord:
    """Says which wrong answers were put in where `ratio` was asked for; the S sources begin at the indices `starts`."""
    by_source, sha256 = _named(noise.items, sources, labels, starts, noise.donors)
    return NoiseRecord(ratio, len(noise.items), by_source, noise.equal, sha256)


def record_held_out(held: np.ndarray, sources: np.ndarray, labels: Sequence[str], starts: np.ndarray) -> HeldOut | None:
    """Says which items were held out, whatever their order; None where none was. Arguments as of `record_noise`."""
    return HeldOut(len(held), *_named(np.sort(held), sources, labels, starts)) if len(held) else None


def _named(
    items: np.ndarray, sources: np.ndarray, labels: Sequence[str], starts: np.ndarray, *more: np.ndarray
) -> tuple[dict[str, int], str]:
    """Counts items by source, and hashes the source of each with its index there, and those of `more` items."""
    numbers = sources[items]
    places = [(one - starts[numbers]).tolist() for one in (items, *more)]
    rows = list(zip((labels[number] for number in numbers), *places, strict=True))
    counts = np.bincount(numbers, minlength=len(labels)).tolist()
    return dict(zip(labels, counts, strict=True)), hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def plot_composition(composition: Composition, path: str | Path) -> Figure:
    """Draws the share of each source over the training, as a PNG and an SVG: the ending of `path` does not count."""
    path = Path(path)
    sizes = np.sum(list(composition.stretches.values()), axis=0)
    edges = np.linspace(0, 100, len(sizes) + 1)
    wrong = "wrong answers"
    labels = {name: f"{name} (OOD)" if group == "ood" else name for name, group in composition.groups.items()}
    shown = [*labels.values(), *([wrong] if any(composition.noisy) else [])]
    hatches = ("", "///", "...", "\\\\\\", "xxx")
    with canvas([3.2], shown) as (figure, axes):
        axis, bottom = axes[0][0], np.zeros(len(sizes))
        for number, (name, look) in enumerate(zip(labels, looks(list(labels.values())).values(), strict=True)):
            share = np.array(composition.stretches[name]) / sizes
            axis.bar(
                edges[:-1],
                share,
                np.diff(edges),
                bottom,
                align="edge",
                color=look.color,
                alpha=0.75,
                edgecolor="white",
                linewidth=0.6,
                hatch=hatches[number % len(hatches)],
                label=labels[name],
            )
            bottom += share
        if any(composition.noisy):
            middles = (edges[:-1] + edges[1:]) / 2
            axis.plot(middles, np.array(composition.noisy) / sizes, color=BLACK, marker="D", markersize=4, label=wrong)
        axis.set_xlim(0, 100)
        axis.set_ylim(0, 1)
        axis.set_xlabel("training (% of the items)")
        axis.set_ylabel("share of the items")
        axis.set_title("What was trained on, and when", loc="left", color=TEXT, fontsize=11)
        legend(figure, axis)
        says = "; ".join(
            f"{labels[name]} {sum(counts)} items, {counts[0] / sizes[0]:.0%} of the first stretch and "
            f"{counts[-1] / sizes[-1]:.0%} of the last"
            for name, counts in composition.stretches.items()
        )
        noise = f" {sum(composition.noisy)} of all items have a wrong answer." if any(composition.noisy) else ""
        alt = f"Stacked bars of the share of each source in {len(sizes)} stretches of the training: {says}.{noise}"
        return write(figure, path.parent, path.name.removesuffix(".png").removesuffix(".svg"), alt)
