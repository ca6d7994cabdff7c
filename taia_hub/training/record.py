"""What is written down of a training, into the repository that came of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taia_hub import cards
from taia_hub.common.atomic import write_atomically
from taia_hub.common.environment import hardware, installed_versions
from taia_hub.common.text_tables import amount
from taia_hub.repository.side_files import RECIPE_FILE, TRAINING_FILE
from taia_hub.training.planning import Plan
from taia_hub.training.recipe import TrainingRecipe

LOSSES_FILE = "taia_losses.jsonl"

_FIGURES = ("loss", "learning_rate", "grad_norm", "mean_token_accuracy", "entropy")


def loss_log(history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Picks the losses out of the trainer's `log_history`: `step`, `loss` and more for each time that was logged.

    The loss is the mean since the last time, in nats a token.
    """
    return [
        {"step": entry["step"], **{name: entry[name] for name in _FIGURES if _is_number(entry.get(name))}}
        for entry in history
        if _is_number(entry.get("loss"))
    ]


def training_record(
    recipe: TrainingRecipe,
    plan: Plan,
    *,
    fingerprint: str,
    datasets: Sequence[Mapping[str, Any]],
    composition: Mapping[str, Any],
    losses: Sequence[Mapping[str, float]],
    seconds: float,
    adapter_sha256: str | None,
) -> dict[str, Any]:
    """Makes the contents of `taia_training.json`; its first fields are those of `cards.Training`.

    `datasets` have the fields of `cards.DatasetFacts`, `losses` are as of `loss_log`; `seconds` is the time in the
    training loop, over all parts of the run.
    """
    return {
        "datasets": [dict(one) for one in datasets],
        "hyperparameters": {**_hyperparameters(recipe, plan), **_held_out(composition)},
        "hardware": hardware(plan.device, plan.processes),
        "versions": installed_versions("trl", "accelerate", "datasets"),
        "seconds": round(seconds, 3),
        "adapter_sha256": adapter_sha256,
        "fingerprint": fingerprint,
        "steps": plan.steps,
        "items": plan.items,
        "tokens": plan.tokens,
        "trained_parameters": dict(plan.trained),
        "first_loss": losses[0]["loss"] if losses else None,
        "last_loss": losses[-1]["loss"] if losses else None,
        "composition": dict(composition),
        "notes": list(plan.notes),
    }


def write_record(
    folder: Path, record: Mapping[str, Any], recipe: TrainingRecipe, losses: Sequence[Mapping[str, float]]
) -> None:
    """Writes `taia_training.json`, the recipe and the losses (as of `loss_log`) into the folder of a repository."""
    write_atomically(folder / TRAINING_FILE, json.dumps(record, indent=2) + "\n")
    write_atomically(folder / RECIPE_FILE, recipe.to_yaml())
    write_atomically(folder / LOSSES_FILE, "".join(json.dumps(one) + "\n" for one in losses))


def _hyperparameters(recipe: TrainingRecipe, plan: Plan) -> dict[str, Any]:
    """Lists what a card shows, with what was chosen here instead of what was left to choose."""
    left_out = {
        *("base", "base_revision", "data", "in_domain", "ood", "name", "description", "reference", "report_to"),
        *("save_steps", "inference_modules", "trust_remote_code", "holdout"),
        *(() if recipe.method == "molora" else ("experts", "top_k", "balance_loss")),
        *(("rank", "alpha", "dropout") if recipe.method == "full" else ()),
        *(() if recipe.ood else ("ood_ratio", "schedule", "mixing")),
    }
    values = {name: value for name, value in recipe.to_mapping().items() if name not in left_out and value is not None}
    values |= {
        "micro_batch_size": plan.micro_batch_size,
        "dtype": plan.dtype,
        "gradient_checkpointing": plan.gradient_checkpointing,
        "optimizer": "AdamW",
        "steps": plan.steps,
    }
    for name in ("rank", "alpha"):
        if isinstance(value := values.get(name), dict):
            values[name] = ", ".join(f"{role} {one}" for role, one in value.items())
    return values


def _held_out(composition: Mapping[str, Any]) -> dict[str, str]:
    """Says beside what a run was trained with how many items it was not trained on."""
    found = composition.get("held_out")
    return {"held out": amount(found["items"], "item")} if found else {}


def check_readable(record: Mapping[str, Any]) -> None:
    """Raises ValueError where a card cannot be made of the record: before hours of training and not after."""
    cards.training_from_json(record)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
