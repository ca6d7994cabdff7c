"""The bootstrap draws of a task's items."""

from __future__ import annotations

from collections.abc import Sequence

from taia_hub.results.format import TaskResults
from taia_hub.results.statistics import RESAMPLES, Resampled, resample


def draw(
    task: TaskResults,
    labels: Sequence[str],
    metric: str | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Resampled | None:
    """Draws the items of a task, the same ones for every mode; scores that are means a token stay so.

    Args:
        task: Results with the modes of `labels`.
        labels: Labels of M settings.
        metric: The metric, by default the one that tables show.
        resamples: Number of draws.
        seed: Of the draws.

    Returns:
        The draws, or None where a mode has no value an item.
    """
    values = [task.modes[label].values.get(metric or task.metric) for label in labels]
    known = [row for row in values if row is not None]
    if not known or len(known) < len(values):
        return None
    return resample(known, weights=task.weights, resamples=resamples, seed=seed, stream=task.key)
