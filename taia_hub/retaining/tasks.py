"""What was measured as a task of a results file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from taia_hub.errors import ConfigError
from taia_hub.results import DatasetSource, ModeScores, TaskResults
from taia_hub.results.retained import KEPT, KL, LOSS
from taia_hub.retaining.losses import Losses
from taia_hub.switch.settings import InferenceModules, parse_setting


def task_results(
    settings: Sequence[InferenceModules],
    losses: Sequence[Losses],
    items: Sequence[Any],
    *,
    name: str,
    title: str,
    metric: str,
    dataset: DatasetSource,
    version: str = "1",
    prompts_sha256: str = "",
    seconds: float = 0.0,
) -> TaskResults:
    """Makes a task of what `measure` gave: its metrics are means a token, weighted by the tokens of each item.

    Args:
        settings: M settings.
        losses: What was measured of each.
        items: The N items as JSON values, of which the file keeps hashes.
        name: Name of the task: `results.retained.RETENTION`, `HOLDOUT`, or another.
        title: The name that tables show.
        metric: The metric that tables show: `"kl"` or `"loss"`; lower is better.
        dataset: Where the items come from.
        version: Another one makes the results before it incomparable.
        prompts_sha256: Hash of what else the tokens depend on.
        seconds: How long all settings took together.

    Returns:
        The results, with the metrics `loss`, and `kl` and `kept` where the divergence was measured.

    Raises:
        ConfigError: If there is no token that is measured.

    Example:
        >>> losses = [Losses((1, 3), (2.0, 6.0))]
        >>> origin = DatasetSource("items.jsonl")
        >>> task = task_results(["all"], losses, ["a", "b"], name="t", title="T", metric="loss", dataset=origin)
        >>> task.modes["all"].scores, task.weights
        ({'loss': 2.0}, (1, 3))
    """
    modes = {}
    for setting, one in zip(map(parse_setting, settings), losses, strict=True):
        scores, values = scores_of(one)
        modes[setting.label] = ModeScores(setting.value, scores, values, round(seconds / len(losses), 3))
    blank = blank_task(
        items,
        name=name,
        title=title,
        metric=metric,
        dataset=dataset,
        version=version,
        prompts_sha256=prompts_sha256,
    )
    return dataclasses.replace(blank, modes=modes, weights=losses[0].tokens)


def blank_task(
    items: Sequence[Any],
    *,
    name: str,
    title: str,
    metric: str,
    dataset: DatasetSource,
    version: str = "1",
    prompts_sha256: str = "",
) -> TaskResults:
    """Makes such a task without any mode; arguments as of `task_results`."""
    return TaskResults(
        name=name,
        title=title,
        num_fewshot=0,
        fewshot_asked=None,
        metric=metric,
        higher_is_better=metric == KEPT,
        dataset=dataset,
        version=version,
        prompts_sha256=prompts_sha256,
        items=tuple(map(item_hash, items)),
    )


def scores_of(losses: Losses) -> tuple[Mapping[str, float], Mapping[str, tuple[float, ...]]]:
    """Returns a mean a token by metric, and by metric a sum an item, of what was measured.

    Raises:
        ConfigError: If there is no token that is measured.
    """
    if not any(losses.tokens):
        raise ConfigError("There is no token to measure.", "Give texts of two tokens or more.")
    scores, values = {LOSS: losses.loss}, {LOSS: losses.nats}
    if losses.kl:
        scores |= {KL: losses.divergence, KEPT: losses.kept}
        values |= {
            KL: losses.kl,
            KEPT: tuple(float(all_ - some) for all_, some in zip(losses.tokens, losses.changed, strict=True)),
        }
    return scores, values


def item_hash(item: Any) -> str:
    """Hashes an item, a JSON value, to 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(item, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
