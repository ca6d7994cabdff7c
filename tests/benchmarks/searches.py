"""The rival of `taia_hub.tune`, and what both are judged by: tokens that a model computes, and the front found."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from taia_hub.common.labels import Encoded
from taia_hub.retaining import measure
from taia_hub.switch.modes import MODES
from taia_hub.switch.settings import Setting, parse_setting
from taia_hub.tuning.grouping import Grouping


@dataclass
class Tokens:
    """Tokens that a model computed: in forward passes, and those of them that had gradients."""

    forward: int = 0
    backward: int = 0


@contextlib.contextmanager
def counted(model: Any) -> Iterator[Tokens]:
    """Counts what a model computes in a block, rows of a batch and padding included."""
    found = Tokens()

    def count(module: Any, args: tuple[torch.Tensor, ...]) -> None:
        found.forward += args[0].numel()
        found.backward += args[0].numel() * torch.is_grad_enabled()

    handle = model.get_input_embeddings().register_forward_pre_hook(count)
    try:
        yield found
    finally:
        handle.remove()


@dataclass(frozen=True)
class Point:
    """A setting with its target loss and its divergence from the base, in nats a token."""

    setting: Setting
    target: float
    retention: float


def measured(
    model: Any, settings: Sequence[Setting], target: Sequence[Encoded], retain: Sequence[Encoded]
) -> list[Point]:
    """Measures settings on items of both sides."""
    gains = measure(model, target, settings, divergence=False)
    keeps = measure(model, retain, settings)
    return [
        Point(setting, gain.loss, keep.divergence) for setting, gain, keep in zip(settings, gains, keeps, strict=True)
    ]


def by_tpe(
    model: Any, grouping: Grouping, target: Sequence[Encoded], retain: Sequence[Encoded], *, tokens: int, seed: int
) -> list[Setting]:
    """Searches the weights of groups by optuna's TPE with two objectives, for so many tokens; the front it finds.

    It begins with the plain modes. A trial counts the tokens of its items once; what the base takes, whose divergence
    is measured beside it, is not counted.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        directions=["minimize", "minimize"], sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True)
    )
    names = [group.label for group in grouping.groups]
    for mode in MODES:
        study.enqueue_trial(dict(zip(names, grouping.of_setting(parse_setting(mode)), strict=True)))

    def settings(trial: Any) -> Setting:
        return grouping.setting([trial.params[name] for name in names])

    def objective(trial: Any) -> tuple[float, float]:
        for name in names:
            trial.suggest_float(name, 0.0, 1.0)
        (found,) = measured(model, [settings(trial)], target, retain)
        return found.target, found.retention

    each = sum(len(row.input_ids) for row in (*target, *retain))
    study.optimize(objective, n_trials=max(tokens // each, len(MODES)))
    return [settings(trial) for trial in study.best_trials]


def hypervolume(points: Sequence[Point], none: Point, whole: Point) -> float:
    """Returns the area that points dominate, of the rectangle between `none` and `all`, the corner that is worst.

    One that fits and keeps as well as the better of both in each is worth 1, and one on the line between them at most a
    quarter.

    Example:
        >>> one = lambda target, retention: Point(parse_setting("all"), target, retention)
        >>> hypervolume([one(1.5, 0.0), one(1.0, 0.1)], one(2.0, 0.0), one(1.0, 0.2))
        0.75
    """
    area, reached = 0.0, 0.0
    for point in sorted(points, key=lambda one: one.retention):
        gained = (none.target - point.target) / (none.target - whole.target)
        kept = (whole.retention - point.retention) / whole.retention
        if gained > reached and kept > 0:
            area += (gained - reached) * kept
            reached = gained
    return area


def target_at(points: Sequence[Point], retention: float) -> float:
    """Returns the lowest target loss of the points that keep as much."""
    return min(point.target for point in points if point.retention <= retention)
