"""What a training gave."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from taia_hub.errors import TAIAError
from taia_hub.results import RESULTS_FILE, Results


@dataclass(frozen=True)
class Trained:
    """What a training gave.

    Attributes:
        folder: Folder of the repository, or None when it was published only.
        commit: The commit that it was published in, or None.
        steps: Optimizer steps.
        first_loss: Loss of the first step, in nats a trained token.
        last_loss: Mean loss of the last steps that were logged together.
        seconds: Time in the training loop, over all parts of the run.
        tokens: Tokens that were trained on, prompts included, padding not.
        tokens_per_second: Their ratio.
        composition: What was trained on, when, as JSON.
        trained_parameters: Role to number of trained parameters.
        notes: What the user should know, a sentence each.
        results: What each mode gains on held-out items and keeps of the base; None without a report.
        is_new: Whether anything was trained just now; False where the folder held this very training already.
    """

    folder: Path | None
    commit: CommitInfo | None
    steps: int
    first_loss: float | None
    last_loss: float | None
    seconds: float
    tokens: int
    tokens_per_second: float
    composition: Mapping[str, Any]
    trained_parameters: Mapping[str, int]
    notes: tuple[str, ...]
    results: Results | None = None
    is_new: bool = True


def trained_by(
    values: Mapping[str, Any],
    folder: Path | None,
    commit: CommitInfo | None,
    results: Results | None = None,
    *,
    is_new: bool = True,
) -> Trained:
    """Says what a training gave, by its record."""
    return Trained(
        folder=folder,
        commit=commit,
        steps=values["steps"],
        first_loss=values["first_loss"],
        last_loss=values["last_loss"],
        seconds=values["seconds"],
        tokens=values["tokens"],
        tokens_per_second=round(values["tokens"] / max(values["seconds"], 1e-3), 1),
        composition=values["composition"],
        trained_parameters=values["trained_parameters"],
        notes=tuple(values["notes"]),
        results=results,
        is_new=is_new,
    )


def results_in(folder: Path) -> Results | None:
    """Reads the results beside a finished training, which may have none, or damaged ones by now."""
    with contextlib.suppress(TAIAError):
        return Results.load(folder / RESULTS_FILE) if (folder / RESULTS_FILE).is_file() else None
    return None
