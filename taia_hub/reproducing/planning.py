"""From a recipe and what the user chose to the runs, and to what differs from the paper's setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taia_hub.errors import ConfigError, closest
from taia_hub.reproducing.recipe import Recipe
from taia_hub.training.recipe import TrainingRecipe
from taia_hub.training.sources import parse_name

_DATA = ("data", "in_domain", "ood")
_SILENT = ("name", "description", "reference", "report_to", "save_steps", "trust_remote_code", "base_revision")
"""Fields that change nothing that a table shows."""


def plan_runs(recipe: Recipe, changes: Mapping[str, Any], labels: Sequence[str] = ()) -> dict[str, TrainingRecipe]:
    """Makes the runs of a recipe, or those of some labels, in its order; nothing is read but the names of files.

    `changes` are fields of `TrainingRecipe` that the user chose otherwise. Data that the user must bring and did not is
    a `ConfigError`.

    Example:
        >>> from taia_hub.reproducing import load_recipe
        >>> runs = plan_runs(load_recipe("rank-sweep"), {"base": "org/base", "max_steps": 2}, ["ar4_fr64"])
        >>> runs["ar4_fr64"].rank, runs["ar4_fr64"].max_steps
        ({'attention': 4, 'ffn': 64}, 2)
    """
    for label in labels:
        if label not in recipe.labels:
            raise ConfigError(
                f"The recipe '{recipe.name}' has no run '{label}'.{closest(label, recipe.labels)}",
                f"Its runs are {', '.join(recipe.labels)}.",
            )
    swept = {field for run in recipe.sweep.values() for field in run}
    if fixed := sorted(swept & set(changes)):
        raise ConfigError(
            f"The runs of '{recipe.name}' differ in {fixed[0]}, so it cannot be one value for all of them.",
            f"Choose runs with --run ({', '.join(recipe.labels)}), or write a recipe file of your own.",
        )
    _check_forms(recipe, changes)
    missing = [name for name in recipe.bring if name in _DATA and not changes.get(name)]
    if missing:
        wanted = "; ".join(f"{name}: {recipe.bring[name]}" for name in missing)
        options = " ".join(f"--{name.replace('_', '-')} FILE" for name in missing)
        raise ConfigError(f"The recipe '{recipe.name}' needs data that you bring. {wanted}.", f"Add {options}.")
    runs = {
        label: TrainingRecipe.from_mapping({**recipe.run_fields(label), **changes})
        for label in recipe.labels
        if not labels or label in labels
    }
    for run in runs.values():
        run.check_complete()
        for name in _DATA:
            for source in getattr(run, name):
                parse_name(source)
    return runs


def _check_forms(recipe: Recipe, changes: Mapping[str, Any]) -> None:
    """Refuses data of the other form: mixed recipes take two sets, all others one."""
    is_mixed = bool({"in_domain", "ood"} & {*recipe.bring, *recipe.training})
    wrong = [name for name in _DATA if changes.get(name) and (name == "data") == is_mixed]
    if wrong:
        raise ConfigError(
            f"The recipe '{recipe.name}' has no use for {wrong[0]}.",
            "It mixes two sets: --in-domain and --ood." if is_mixed else "Give its training data with --data.",
        )


def list_differences(
    recipe: Recipe,
    runs: Mapping[str, TrainingRecipe],
    *,
    tasks: Sequence[str],
    modes: Sequence[str],
    limit: int | None,
    dtype: str | None = None,
) -> tuple[str, ...]:
    """Says what is not as in the paper, a line each, then the recipe's own remarks.

    Tasks and modes are those that were evaluated, `dtype` that of the model, where it is known.
    """
    lines = []
    first = next(iter(runs.values()))
    if first.base != recipe.training.get("base"):
        lines.append(f"base model: {_shown(first.base)} (paper: {recipe.training.get('base', 'not known')})")
    data = ", ".join(_shown(source) for name in _DATA for source in getattr(first, name))
    lines.append(f"training data: {data} (paper: {recipe.trained_on})")
    if first.max_steps is not None:
        lines.append(f"training ends after {_count(first.max_steps, 'optimizer step')} (paper: {_epochs(recipe)})")
    shown = {"base", "max_steps", *_DATA, *_SILENT, *(field for run in recipe.sweep.values() for field in run)}
    before = TrainingRecipe.from_mapping(recipe.run_fields(recipe.labels[0]))
    for field in dataclasses.fields(TrainingRecipe):
        was, now = getattr(before, field.name), getattr(first, field.name)
        if field.name not in shown and was != now:
            lines.append(f"{field.name}: {now} (recipe: {was})")
    if dtype is not None and dtype != "bfloat16":
        lines.append(f"the base model runs in {dtype} (paper: bfloat16)")
    if list(tasks) != list(recipe.tasks):
        lines.append(f"tasks: {', '.join(map(str, tasks)) or 'none'} (paper: {', '.join(recipe.tasks) or 'attacks'})")
    if limit is not None:
        lines.append(f"at most {_count(limit, 'item')} a task (paper: all)")
    if left := [label for label in recipe.labels if label not in runs]:
        lines.append(f"runs left out: {', '.join(left)}")
    if left := [mode for mode in recipe.modes if mode not in modes]:
        lines.append(f"modes left out: {', '.join(left)}")
    return (*lines, *recipe.remarks)


def _count(number: float, word: str) -> str:
    return f"{number:,g} {word}{'' if number == 1 else 's'}"


def _epochs(recipe: Recipe) -> str:
    return _count(float(recipe.training.get("epochs", 1)), "epoch")


def _shown(name: str) -> str:
    """Writes a file or folder without the folders above it: the table may go to others."""
    path = Path(name).expanduser()
    return path.name if path.exists() else name
