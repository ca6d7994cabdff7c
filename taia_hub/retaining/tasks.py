"""What was measured as a task of a results file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from taia_hub.common.resuming import digest
from taia_hub.errors import ConfigError
from taia_hub.results import DatasetSource, ModeScores, TaskResults
from taia_hub.results.retained import KEPT, KL, LOSS
from taia_hub.retaining.encoding import MAX_TOKENS
from taia_hub.retaining.losses import Losses
from taia_hub.retaining.texts import Item, Texts
from taia_hub.switch.settings import InferenceModules, parse_setting


def blank_task(
    items: Sequence[Any], *, name: str, title: str, metric: str, dataset: DatasetSource, prompts_sha256: str = ""
) -> TaskResults:
    """Makes a task without any mode.

    Args:
        items: The N items as JSON values, of which the file keeps hashes.
        name: Name of the task: `results.retained.RETENTION`, `HOLDOUT`, or another.
        title: The name that tables show.
        metric: The metric that tables show: `"kl"` or `"loss"`; lower is better.
        dataset: Where the items come from.
        prompts_sha256: Hash of what else the tokens depend on.
    """
    return TaskResults(
        name=name,
        title=title,
        num_fewshot=0,
        fewshot_asked=None,
        metric=metric,
        higher_is_better=metric == KEPT,
        dataset=dataset,
        version="1",
        prompts_sha256=prompts_sha256,
        items=tuple(digest(item)[:16] for item in items),
    )


def blank_retention(texts: Texts, items: Sequence[Item], *, max_tokens: int = MAX_TOKENS) -> TaskResults:
    """Makes the task of what is kept on those `items` of some texts that have a token to measure, without any mode."""
    told = digest({"max_tokens": max_tokens})
    return blank_task(items, name=texts.name, title=texts.title, metric=KL, dataset=texts.dataset, prompts_sha256=told)


def task_results(
    blank: TaskResults, settings: Sequence[InferenceModules], losses: Sequence[Losses], *, seconds: float = 0.0
) -> TaskResults:
    """Makes a task of what `measure` gave: its metrics are means a token, weighted by the tokens of each item.

    Args:
        blank: The task without any mode.
        settings: M settings.
        losses: What was measured of each.
        seconds: How long all settings took together.

    Returns:
        The results, with the metrics `loss`, and `kl` and `kept` where the divergence was measured.

    Raises:
        ConfigError: If there is no token that is measured.

    Example:
        >>> blank = blank_task(["a", "b"], name="t", title="T", metric="loss", dataset=DatasetSource("items.jsonl"))
        >>> task = task_results(blank, ["all"], [Losses((1, 3), (2.0, 6.0))])
        >>> task.modes["all"].scores, task.weights
        ({'loss': 2.0}, (1, 3))
    """
    modes = {}
    for setting, one in zip(map(parse_setting, settings), losses, strict=True):
        scores, values = scores_of(one)
        modes[setting.label] = ModeScores(setting.value, scores, values, round(seconds / len(losses), 3))
    return dataclasses.replace(blank, modes=modes, weights=losses[0].tokens)


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
