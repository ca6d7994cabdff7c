"""Train, evaluate, and set the paper's table beside ours; a run that was stopped goes on where it stopped."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taia_hub import hub
from taia_hub.common.atomic import write_atomically
from taia_hub.common.devices import choose_device, place
from taia_hub.common.imports import import_or_raise
from taia_hub.common.progress import Progress
from taia_hub.common.resuming import Mark, differences
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.evaluation import evaluate, safety_task
from taia_hub.evaluation.catalogue import load_tasks
from taia_hub.evaluation.options import EvaluationOptions, check_batch_size
from taia_hub.reproducing.measured import BASE, measure, with_base
from taia_hub.reproducing.planning import list_differences, plan_runs
from taia_hub.reproducing.recipe import Recipe, load_recipe
from taia_hub.reproducing.state import RunFolder
from taia_hub.reproducing.table import ReproductionTable, make_table
from taia_hub.results import Results
from taia_hub.switch.settings import parse_setting
from taia_hub.training.planning import Plan, process_count
from taia_hub.training.recipe import TrainingRecipe

TABLE = "table.md"
TABLE_JSON = "table.json"
_MARK = "reproduction.json"


@dataclass(frozen=True)
class Reproduction:
    """A row of the paper, trained and evaluated here.

    Attributes:
        recipe: The recipe.
        out: Its folder: `table.md`, `table.json` and, a run each, a folder with `model`, a TAIA repository.
        runs: Label of a run to what was trained.
        results: Label of a run to its results.
        table: The paper's numbers beside ours.
    """

    recipe: Recipe
    out: Path
    runs: Mapping[str, TrainingRecipe]
    results: Mapping[str, Results]
    table: ReproductionTable


@dataclass(frozen=True)
class _Evaluation:
    """What is evaluated, the same for every run."""

    tasks: tuple[str, ...]
    modes: tuple[Any, ...]
    prompts: Path | None
    limit: int | None
    batch_size: int | str

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the modes."""
        return tuple(map(_label, self.modes))

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What the results depend on; the number of rows a forward pass is no part of it."""
        files = [Path(task) for task in self.tasks if Path(task).is_file()]
        files += [self.prompts] if self.prompts else []
        hashes = {str(file): hub.sha256(file) for file in files}
        return {"tasks": self.tasks, "modes": self.labels, "limit": self.limit, "files": hashes}

    def units(self) -> list[Any]:
        return [safety_task(self.prompts, limit=self.limit)] if self.prompts else []

    def load(self) -> list[Any]:
        """Loads the tasks, so that one that does not exist is found before anything is trained."""
        import_or_raise("lm_eval", "eval", "`taia reproduce`")
        return [*self.units(), *load_tasks(EvaluationOptions(self.tasks, limit=self.limit))[0]]


@dataclass(frozen=True)
class _Run:
    """One run: what is trained, and in its folder what of it is done; a step that is done is not run again."""

    label: str
    recipe: TrainingRecipe
    state: RunFolder

    def train(self, token: str | None, progress: Progress | None) -> None:
        from taia_hub.training import train  # needs TRL

        if not self.state.is_trained:
            self.state.begin()
            # no report: what is evaluated here is compared with the paper, and stands in the results alone
            train(self.recipe, out=self.state.model, token=token, report=False, progress=progress)
            self.state.mark_trained()

    def evaluate(
        self, evaluation: _Evaluation, first: Results | None, token: str | None, progress: Progress | None
    ) -> None:
        """Measures the base model, which is the same in every run of a sweep, in the first alone."""
        if self.state.is_evaluated(evaluation.identity):
            return
        keywords: dict[str, Any] = {
            "units": evaluation.units(),
            "limit": evaluation.limit,
            "batch_size": evaluation.batch_size,
            "out": self.state.results,
            "progress": progress,
            "token": token,
            "trust_remote_code": self.recipe.trust_remote_code,
            "device_map": "auto" if choose_device() == "cuda" else place(),
        }
        modes = evaluation.modes
        rest = [mode for mode in modes if _label(mode) != BASE]
        if first is not None and rest and BASE in evaluation.labels:
            found = with_base(evaluate(str(self.state.model), evaluation.tasks, rest, **keywords), first)
            found.save(self.state.results)
            if all(BASE in task.modes for task in found.tasks.values()):
                modes = ()
        if modes:
            evaluate(str(self.state.model), evaluation.tasks, modes, **keywords)
        self.state.mark_evaluated(evaluation.identity)


def reproduce(
    recipe: str | Path | Recipe,
    *,
    out: str | Path,
    base: str | Path | None = None,
    data: str | Sequence[str] = (),
    in_domain: str | Sequence[str] = (),
    ood: str | Sequence[str] = (),
    steps: int | None = None,
    changes: Mapping[str, Any] | None = None,
    runs: Sequence[str] = (),
    tasks: Sequence[str | Path] = (),
    modes: Sequence[Any] = (),
    prompts: str | Path | None = None,
    limit: int | None = None,
    batch_size: int | str = 8,
    token: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
    on_plan: Callable[[Mapping[str, Plan | None]], None] | None = None,
) -> Reproduction:
    """Trains a recipe of the paper, evaluates every mode, and writes the paper's table beside ours.

    Everything that can be wrong is looked for before anything is trained. The same call goes on where an earlier one
    was stopped: a training goes on at its last checkpoint, an evaluation at the first mode of a task that is missing,
    and what is finished is not repeated.

    Args:
        recipe: Name of a shipped recipe, a YAML file of the same form, or a loaded recipe.
        out: Folder for everything that is written.
        base: Another base model than the paper's.
        data: Other training data: files, or data sets on the Hub.
        in_domain: The same for data in the domain, where the recipe mixes two sets.
        ood: The same for data out of the domain.
        steps: Most optimizer steps a run.
        changes: Other fields of `TrainingRecipe` with their values.
        runs: Labels of runs, where the recipe has several; all by default. Others that are finished in `out` stay in
            the table.
        tasks: What is evaluated, as in `taia_hub.evaluate`; the recipe's tasks by default.
        modes: Settings that are evaluated; the recipe's by default.
        prompts: File of prompts whose successful attacks are counted.
        limit: Most items a task.
        batch_size: Rows a forward pass of the evaluation, or `"auto"`.
        token: Access token of the Hub.
        trust_remote_code: Whether the base model's own code may run.
        progress: Called with the name of a stage, how many of its steps are done, and how many there are.
        on_plan: Called with the plan of each run, None where it is trained already, before anything is written; what
            it raises ends the reproduction.

    Returns:
        Runs, results and the table, which is in `out` as Markdown and JSON too.

    Raises:
        ConfigError: If a recipe, run, task or value does not exist, data is missing that the user must bring, or
            `out` holds another reproduction. Nothing was trained then.
        RepositoryError: If a model, data set or file cannot be read or written.
        MissingDependencyError: If TRL, datasets or lm-eval is not installed.

    Example:
        ```python
        found = reproduce("lora", out="lora-135m", base="HuggingFaceTB/SmolLM2-135M-Instruct", steps=20, limit=50)
        print(found.table.to_markdown())
        ```
    """
    if process_count() > 1:
        raise ConfigError(
            f"A reproduction runs in one process, not in {process_count()}.",
            "Start it without `accelerate launch`, which is for `accelerate launch -m taia_hub.training`.",
        )
    found = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    fields = {
        **(changes or {}),
        **({"base": str(base)} if base else {}),
        **{name: value for name, value in (("data", data), ("in_domain", in_domain), ("ood", ood)) if value},
        **({"max_steps": steps} if steps is not None else {}),
        **({"trust_remote_code": True} if trust_remote_code else {}),
    }
    every = plan_runs(found, fields)
    labels = tuple(plan_runs(found, fields, tuple(runs)))
    evaluation = _evaluation(found, tasks, modes, prompts, limit, batch_size)
    folder = Path(out)
    mark = Mark(folder / _MARK, {"recipe": found.name, "limit": evaluation.limit})
    _check_out(folder, mark)
    every_run = {label: _Run(label, run, RunFolder.of(folder / label, run)) for label, run in every.items()}
    plan = [every_run[label] for label in labels]
    results = _check(every_run, plan, evaluation, token, progress)
    if on_plan:
        on_plan({run.label: _plan(run, token, progress) for run in plan})
    with hub.disk_errors(folder):
        mark.write()
    shown = {label: run for label, run in every.items() if label in labels or label in results}
    for run in plan:
        told = _named(progress, run.label, labels)
        run.train(token, told)
        run.evaluate(evaluation, next(iter(results.values()), None), token, told)
        results[run.label] = Results.load(run.state.results)
        table = _table(found, shown, evaluation, results)
        with hub.disk_errors(folder):
            write_atomically(folder / TABLE, table.to_markdown())
            write_atomically(folder / TABLE_JSON, json.dumps(table.to_json(), indent=2, ensure_ascii=False) + "\n")
    return Reproduction(found, folder, shown, results, table)


def _plan(run: _Run, token: str | None, progress: Progress | None) -> Plan | None:
    from taia_hub.training.running import plan_training  # needs TRL

    return None if run.state.is_trained else plan_training(run.recipe, token=token, report=False, progress=progress)


def _evaluation(
    recipe: Recipe,
    tasks: Sequence[str | Path],
    modes: Sequence[Any],
    prompts: str | Path | None,
    limit: int | None,
    batch_size: int | str,
) -> _Evaluation:
    names = [tasks] if isinstance(tasks, (str, Path)) else tasks
    chosen = tuple(map(str, names or (recipe.tasks if prompts is None or "prompts" in recipe.bring else ())))
    if not chosen and prompts is None:
        wanted = recipe.bring.get("prompts", "")
        raise ConfigError(
            f"The recipe '{recipe.name}' needs prompts that you bring: {wanted}."
            if wanted
            else f"The recipe '{recipe.name}' names no task.",
            "Add --prompts FILE, or name a task with --task.",
        )
    if prompts is not None and not Path(prompts).is_file():
        raise RepositoryError(f"There is no file of prompts '{prompts}'.", "Check the path.")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ConfigError(f"limit={limit!r} is no number of items from 1 up.", "Leave it out to take all.")
    check_batch_size(batch_size)
    evaluation = _Evaluation(
        chosen, tuple(modes or recipe.modes), Path(prompts) if prompts is not None else None, limit, batch_size
    )
    _ = evaluation.labels  # a mode that cannot be understood is refused here
    return evaluation


def _check_out(folder: Path, mark: Mark) -> None:
    """Refuses a folder that holds something else, or numbers that may not stand beside the new ones."""
    if folder.exists() and not folder.is_dir():
        raise RepositoryError(f"'{folder}' is a file.", "Choose a folder with --out.")
    if not mark.path.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise RepositoryError(
                f"'{folder}' is there already, and no reproduction.", "Choose another folder with --out."
            )
        return
    for name, (before, now) in differences(mark.read(), mark.asked).items():
        raise ConfigError(
            f"'{folder}' holds a reproduction with {name} {before!r}, not {now!r}.",
            "Give the same options as before, or choose another folder with --out.",
        )


def _check(
    every: Mapping[str, _Run],
    plan: Sequence[_Run],
    evaluation: _Evaluation,
    token: str | None,
    progress: Progress | None,
) -> dict[str, Results]:
    """Looks for all that can be wrong before anything is trained; returns results of finished runs beside the plan."""
    for run in every.values():
        run.state.check()
    untrained = [run for run in plan if not run.state.is_trained]
    earlier = {label: Results.load(run.state.results) for label, run in every.items() if run.state.has_results}
    wanted = evaluation.identity
    if untrained or not all(run.state.is_evaluated(wanted) for run in plan):
        _check_tasks(evaluation.load(), earlier, every)
    if len(untrained) > 1:  # the last of them must not fail after hours of the first
        from taia_hub.training.running import plan_training

        for run in untrained:
            plan_training(run.recipe, token=token, report=False, progress=progress)
    planned = {run.label for run in plan}
    return {label: found for label, found in earlier.items() if label not in planned}


def _check_tasks(tasks: Sequence[Any], results: Mapping[str, Results], runs: Mapping[str, _Run]) -> None:
    """Refuses tasks that changed since a run was evaluated: its numbers may not stand beside new ones."""
    for label, found in results.items():
        for task in tasks:
            now, before = task.blank, found.tasks.get(task.blank.key)
            if before is not None and dataclasses.replace(before, modes={}) != dataclasses.replace(now, modes={}):
                raise ConfigError(
                    f"The run '{label}' was evaluated on another '{now.key}' than the one that is given now.",
                    f"Give the same task as before, or move '{runs[label].state.results}' elsewhere to "
                    "evaluate that run again.",
                )


def _table(
    recipe: Recipe, plan: Mapping[str, TrainingRecipe], evaluation: _Evaluation, results: Mapping[str, Results]
) -> ReproductionTable:
    run, one = next(iter(plan.values())), next(iter(results.values()))
    tasks = [Path(task).name if Path(task).is_file() else task for task in evaluation.tasks]
    tasks += [f"attacks of {evaluation.prompts.name}"] if evaluation.prompts and not recipe.bring.get("prompts") else []
    steps = "" if run.max_steps is None else f", {run.max_steps:,} steps"
    return make_table(
        recipe,
        {label: measure(found) for label, found in results.items()},
        labels=tuple(plan),
        modes=tuple(dict.fromkeys([*map(_label, recipe.modes), *evaluation.labels, *_evaluated(results)])),
        setting=f"{Path(run.base).name} {run.method}{steps}",
        differences=list_differences(
            recipe,
            plan,
            tasks=tasks,
            modes=evaluation.labels,
            limit=evaluation.limit,
            dtype=one.model.dtype,
        ),
    )


def _label(mode: Any) -> str:
    return parse_setting(mode).resolved().label  # of runs that are still to be made, none publishes anything


def _evaluated(results: Mapping[str, Results]) -> list[str]:
    return [mode for found in results.values() for mode in found.modes]


def _named(progress: Progress | None, label: str, plan: Sequence[str]) -> Progress | None:
    """Puts the label of the run before the name of a stage, where there are several runs."""
    if progress is None or len(plan) == 1:
        return progress
    return lambda stage, done, total: progress(f"{label}: {stage}", done, total)
