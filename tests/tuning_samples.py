"""Tunings made by hand, for the tests of what is shown of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from taia_hub.results import Candidate, Choice, Interval, ModelIdentity, Tuned, TuningData, WeightGroup

BASE_SHA, SHA, ADAPTER_SHA = "0123456789abcdef0123456789abcdef01234567", "a" * 40, "c0ffee" + "0" * 58
BASE_LOSS = 2.741


def about(value: float, margin: float) -> Interval:
    """Makes an interval."""
    return Interval(value, value - margin, value + margin)


def candidate(
    label: str, gain: float, lost: float, setting: Any = None, weights: Sequence[float] = (), **more: Any
) -> Candidate:
    """Makes a candidate that gains so much over the base, and loses so much of it."""
    return Candidate(
        **{
            "label": label,
            "kind": "mode",
            "setting": label if setting is None else setting,
            "weights": tuple(weights),
            "target": about(BASE_LOSS - gain, 0.05),
            "retention": about(lost, lost / 20),
            "gain": {"none": about(gain, 0.012 if gain else 0.0), "all": about(gain - 0.482, 0.01)},
            "saved": {"none": about(-lost, 0.002), "all": about(0.1931 - lost, 0.004)},
            "kept": about(1 - 0.7 * lost, lost / 20),
            **more,
        }
    )


def tuned(layers: int = 2, found: int = 3, chosen: str = "tuned 2", **more: Any) -> Tuned:
    """Makes a tuning by role and layer: four modes, `all` at half, and `found` points of the front."""
    places = [(role, layer) for layer in range(layers) for role in ("attention", "ffn")]
    groups = tuple(
        WeightGroup(f"{role}@{layer}", f"{role}@{layer}", role, (layer, layer), 3, 96) for role, layer in places
    )

    def acting(*roles: str) -> list[float]:
        return [float(role in roles) for role, _ in places]

    modes = [
        candidate("none", 0.0, 0.0, weights=acting(), on_front=True),
        candidate("attention", 0.231, 0.0612, weights=acting("attention")),
        candidate("ffn", 0.412, 0.1312, weights=acting("ffn")),
        candidate("all", 0.482, 0.1931, weights=acting("attention", "ffn")),
    ]
    common = candidate("all at 0.5", 0.3, 0.06, [["*", 0.5]], [0.5] * len(places), kind="common")
    points = []
    for number in range(1, found + 1):
        share = 1 - number / (found + 1)
        weights = [round(share * (1.0 if role == "attention" else math.cos(layer) ** 2), 3) for role, layer in places]
        pairs = [[group.selector, weight] for group, weight in zip(groups, weights, strict=True)]
        points.append(
            candidate(
                f"tuned {number}",
                0.5 * share,
                0.15 * share**2,
                pairs,
                weights,
                kind="tuned",
                trade_off=round(10 * share, 2),
                on_front=True,
            )
        )
    given = Tuned(
        model=ModelIdentity("org/model-taia", SHA, "org/base", BASE_SHA, ADAPTER_SHA, "bfloat16"),
        objective="kl",
        by="role x layer",
        groups=groups,
        candidates=(*modes, common, *points),
        choice=Choice(
            chosen,
            f"{chosen} gains 0.250 nats a token over the base, and keeps more of it than attention, beyond noise.",
            "attention",
            chosen.startswith("tuned"),
            about(0.019, 0.01),
            about(0.0237, 0.004),
        ),
        target=TuningData("medical.jsonl", "0a" * 32, 160, 160, 12_345),
        retain=TuningData("shipped", "0b" * 32, 32, 32, 4_321, 2),
        seed=0,
        steps=180,
        tokens=1_234_567,
        seconds=231.5,
        notes=("2 texts stand in the target too, and were left out.",),
        versions={"taia-hub": "0.1.0", "torch": "2.13.0"},
        date="2026-11-21",
    )
    return dataclasses.replace(given, **more)
