"""Every task under every mode, on one loaded model; what is done is written at once."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from taia_hub.common.fingerprints import model_inputs, prompt_inputs
from taia_hub.common.progress import Progress
from taia_hub.common.resuming import changed_inputs, differences
from taia_hub.errors import ConfigError
from taia_hub.evaluation.catalogue import check_keys, load_tasks
from taia_hub.evaluation.environment import describe, identify, identify_files, renewed
from taia_hub.evaluation.harness import Advance, HarnessSettings, Measured, Processes, Session, make_lm
from taia_hub.evaluation.options import DEFAULT_MODES, EvaluationOptions
from taia_hub.evaluation.retention import Asked, names_file, read_retention, retention_task
from taia_hub.results import ModelIdentity, ModeScores, Results, TaskResults
from taia_hub.switch.settings import InferenceModules, Setting

_INPUTS = "inputs"
_CHANGED = {
    "dataset": "its data set changed",
    "items": "its items changed",
    "prompts_sha256": "its prompts, examples, or answers' greatest length changed, or the number of processes that "
    "draw examples",
}


class Unit(Protocol):
    """A task that can be run under a mode."""

    @property
    def blank(self) -> TaskResults:
        """Its results without any mode."""

    def run(self, session: Session, advance: Advance) -> Measured | None:
        """Measures the model under its present setting; None in processes other than the first.

        `advance` is called with the share of the unit that is done, in [0, 1].
        """


@runtime_checkable
class Together(Protocol):
    """A task that measures all modes together."""

    @property
    def blank(self) -> TaskResults:
        """Its results without any mode."""

    def run_together(
        self, session: Session, settings: Mapping[str, Any], advance: Advance
    ) -> Mapping[str, Measured] | None:
        """Measures the model under settings, by their labels, as `Unit.run` under one."""


def evaluate(
    model: Any,
    tasks: str | Path | Sequence[str | Path] = (),
    modes: Sequence[InferenceModules] = DEFAULT_MODES,
    *,
    tokenizer: Any = None,
    units: Sequence[Unit] = (),
    retention: Asked = False,
    num_fewshot: int | Sequence[int] | None = None,
    fewshot_path: str | Path | None = None,
    include_path: str | Path | Sequence[str | Path] = (),
    limit: int | None = None,
    batch_size: int | str = 8,
    chat_template: bool | None = None,
    system_instruction: str | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    seed: int = 1234,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    on_load: Callable[[Any], object] | None = None,
    **loading: Any,
) -> Results:
    """Evaluates a TAIA model under several modes with lm-evaluation-harness; the base is loaded once.

    Every task is run as lm-eval runs it, on one model that is switched between the modes. Under `none` the scores are
    those of lm-eval on the bare base model. With several processes of `accelerate launch` the items are shared out.

    Args:
        model: A loaded TAIA model, or the Hub id or folder of one.
        tasks: Names of lm-eval's tasks and groups (with `*` for several), `taia_paper` and its parts, paths of YAML
            task files, or of JSONL files of items with `question`, `answer` and `answer_type`.
        modes: Settings: mode names, or mappings of selectors to weights.
        tokenizer: The tokenizer; by default the repository's, or the base model's.
        units: More tasks, such as `taia_hub.evaluation.safety_task(path)`.
        retention: Whether is measured what each mode keeps of the base, as `taia_hub.retention` does: True on the
            shipped texts, or a file, the name of a task or group of lm-eval, or a list of texts. It is the task
            `retention` of the results, and needs no other task.
        num_fewshot: Number of examples in the prompts, or several numbers; by default each task's own.
        fewshot_path: JSONL file that the examples of JSONL tasks are taken from; by default other items of the task.
        include_path: Folders with more lm-eval task files.
        limit: Most items a task.
        batch_size: Rows a forward pass, or `"auto"`.
        chat_template: Whether prompts go through the chat template; by default where the tokenizer has one.
        system_instruction: System message.
        gen_kwargs: Keywords of generation that override those of the tasks, such as `{"max_gen_toks": 64}`.
        seed: Seed of the examples and of sampling; 1234 is lm-eval's own.
        out: Results file, written after every mode of every task. Where it is there already, only what it lacks is
            run.
        overwrite: Whether an earlier file `out` is thrown away.
        progress: Called with `("evaluation", done, total)`, in items over all tasks and modes.
        on_load: Called with the model, once one that is given by name is loaded.
        **loading: For a model that is given by name: `revision`, `dtype`, `device_map`, `token` and so on.

    Returns:
        The results, with those that `out` held before.

    Raises:
        MissingDependencyError: If lm-eval is not installed.
        ConfigError: If a task does not exist, a line of a JSONL file is wrong, or `out` holds results of another
            model or of other settings. Nothing was evaluated then.
        SettingError: If a mode cannot be understood or cannot act on this model.
        RepositoryError: If a model, data set or file cannot be read or written.

    Example:
        ```python
        results = taia_hub.evaluate("org/model-taia", ["commonsense_qa", "my_items.jsonl"], limit=100)
        print(taia_hub.results.to_text(taia_hub.results.summarise(results)))
        ```
    """
    given: dict[str, Any] = {  # a single one may stand for a list
        "tasks": tasks,
        "modes": modes,
        "num_fewshot": num_fewshot,
        "fewshot_path": fewshot_path,
        "include_path": include_path,
        "limit": limit,
        "batch_size": batch_size,
        "chat_template": chat_template,
        "system_instruction": system_instruction,
        "gen_kwargs": gen_kwargs,
        "seed": seed,
    }
    options = EvaluationOptions(**given)
    found, groups = load_tasks(options)
    work: list[Unit | Together] = [*found, *units]
    check_keys(work)
    general = read_retention(retention, options)
    if not work and general is None:
        raise ConfigError("No task was given.", "Name one of lm-eval, such as 'commonsense_qa', or a JSONL file.")
    path = Path(out) if out is not None else None
    before = Results.load(path) if path is not None and path.exists() and not overwrite else None
    is_named = isinstance(model, (str, Path))
    if before and is_named:  # what the files tell is told before the weights are loaded
        source = {key: loading[key] for key in ("dtype", "revision", "token") if key in loading}
        _check_model(path, before, identify_files(str(model), **source))
    from taia_hub.modeling_taia import load_given

    model = load_given(model, loading)
    if on_load and is_named:
        on_load(model)
    resolved = [model._taia_switch.resolve(one).settings[0] for one in options.settings.values()]
    wanted = {one.label: one for one in resolved}
    if tokenizer is None:
        from taia_hub.repository.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(model)
    training = model.training  # lm-eval ends it
    try:
        session = _session(model, tokenizer, options, with_lm=bool(work))
        if general:
            work.append(retention_task(general, model, tokenizer, chat=session.settings.chat_template))
            check_keys(work)
        inputs = {**prompt_inputs(tokenizer, chat=session.settings.chat_template), **model_inputs(model)}
        settings = {**dataclasses.asdict(session.settings), _INPUTS: inputs}
        results = Results(identify(model), describe(model, session.lm.world_size), settings)
        if before:
            results = _earlier(path, before, results, work, wanted)
        results = dataclasses.replace(results, groups={**results.groups, **groups})
        return _Run(session, wanted, path, progress).run(results, work)
    finally:
        model.train(training)


class _Run:
    def __init__(
        self, session: Session, settings: Mapping[str, Setting], path: Path | None, progress: Progress | None
    ) -> None:
        self.session, self.settings, self.path, self.progress = session, settings, path, progress

    def run(self, results: Results, work: Sequence[Unit | Together]) -> Results:
        """Runs what `results` lacks; the other processes wait until the first has written."""
        lm = self.session.lm
        lm.barrier()  # every process has read the earlier results before the first writes new ones
        missing = _steps(_missing(results, work, self.settings))
        done, total = 0, sum(len(unit.blank.items) * len(labels) for unit, labels in missing)
        for unit, labels in missing:
            size = len(unit.blank.items) * len(labels)
            scores = self.measure(unit, labels, functools.partial(self.show, done, size, total))
            done += size
            self.show(done, 0, total, 1.0)
            if scores is not None:
                before = results.tasks.get(unit.blank.key, unit.blank)
                modes, weights = scores
                task = dataclasses.replace(before, modes={**before.modes, **modes}, weights=weights)
                results = results.with_task(task)
                if self.path is not None:
                    results.save(self.path)
        if lm.world_size > 1:
            import torch

            shared = [results]
            torch.distributed.broadcast_object_list(shared, src=0)
            (results,) = shared
        return results

    def measure(
        self, unit: Unit | Together, labels: Sequence[str], advance: Advance
    ) -> tuple[dict[str, ModeScores], tuple[int, ...] | None] | None:
        """Returns the scores by label, and the tokens of the items where scores are means a token."""
        settings = {label: self.settings[label].value for label in labels}
        start = time.perf_counter()
        found: Mapping[str, Measured] | None
        if isinstance(unit, Together):
            found = unit.run_together(self.session, settings, advance)
        else:
            (label,) = labels
            with self.session.model.using(settings[label]):
                one = unit.run(self.session, advance)
            found = None if one is None else {label: one}
        if found is None:
            return None
        seconds = round((time.perf_counter() - start) / len(labels), 3)
        modes = {label: ModeScores(settings[label], one.scores, one.values, seconds) for label, one in found.items()}
        return modes, next(iter(found.values())).weights

    def show(self, done: int, size: int, total: int, share: float) -> None:
        """Tells that `done` items and a share of the next `size` are done."""
        if self.progress and self.session.lm.rank == 0:
            self.progress("evaluation", done + int(share * size), total)


def _steps(missing: Sequence[tuple[Unit | Together, str]]) -> list[tuple[Unit | Together, list[str]]]:
    """Puts the modes of a task that measures them together into one step."""
    steps: list[tuple[Unit | Together, list[str]]] = []
    for unit, label in missing:
        if steps and steps[-1][0] is unit and isinstance(unit, Together):
            steps[-1][1].append(label)
        else:
            steps.append((unit, [label]))
    return steps


def _session(model: Any, tokenizer: Any, options: EvaluationOptions, *, with_lm: bool) -> Session:
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if options.chat_template and not has_template:
        raise ConfigError(
            "The tokenizer has no chat template.", "Leave chat_template out, or set one on the tokenizer."
        )
    chat = has_template if options.chat_template is None else options.chat_template
    settings = HarnessSettings(options.limit, options.seed, chat, options.system_instruction, options.gen_kwargs)
    own = copy.deepcopy(tokenizer)  # lm-eval sets a padding token
    lm = make_lm(model, own, batch_size=options.batch_size, chat=chat) if with_lm else Processes()
    return Session(model, tokenizer, lm, settings, options.batch_size)


def _check_model(path: Path | None, before: Results, now: ModelIdentity | None) -> None:
    if now and (difference := before.model.difference(now)):
        was = before.model.dtype
        if dataclasses.replace(before.model, dtype=now.dtype).difference(now) is None:
            raise ConfigError(
                f"'{path}' holds results of '{before.model.name}' in {was}; now it runs in {now.dtype}.",
                f"Load it as before: --dtype {was} (dtype={was!r}), or choose another file with --out.",
            )
        raise ConfigError(
            f"'{path}' holds results of '{before.model.name}', another model than '{now.name}': {difference}.",
            "Choose another file with --out, or throw the earlier results away with --overwrite.",
        )


def _earlier(
    path: Path | None, before: Results, now: Results, work: Sequence[Unit | Together], labels: Iterable[str]
) -> Results:
    """Adds what was evaluated before, and refuses what may not stand beside the new results."""
    hint = (
        "Give the same options as before, choose another file with --out, or throw the earlier results away with "
        "--overwrite."
    )
    _check_model(path, before, now.model)
    if inputs := changed_inputs(before.settings.get(_INPUTS, {}), now.settings.get(_INPUTS, {})):
        raise ConfigError(
            f"'{path}' holds results from before: {inputs} now.",
            "Choose another file with --out, or throw the earlier results away with --overwrite.",
        )
    if not before.settings:
        before = _report_taken_up(before, now, work)
    settings = [{key: value for key, value in one.settings.items() if key != _INPUTS} for one in (before, now)]
    for name, (was, given) in sorted(differences(*settings).items()):
        raise ConfigError(f"'{path}' holds results with {name}={was!r}; now it is {given!r}.", hint)
    for unit in work:
        for name in _changed(before, unit.blank):
            what = _CHANGED.get(name, f"its {name} changed")
            if name == "dataset" and names_file(unit.blank.dataset.path):
                hint = f"Another file of the same name? Rename one: results go by the name. Otherwise: {hint}"
            raise ConfigError(f"The task '{unit.blank.key}' is not the one in '{path}': {what}.", hint)
    adds = bool(_missing(before, work, labels))
    environment = renewed(before.environment, now.environment) if adds else before.environment
    return dataclasses.replace(before, model=_latest(before.model, now.model), environment=environment)


def _report_taken_up(before: Results, now: Results, work: Sequence[Unit | Together]) -> Results:
    """Takes the report of a training, which has no settings of an evaluation, for the beginning of one.

    It took the items for which there was time: a task that is asked for with more of them is measured anew.
    """
    anew = {unit.blank.key for unit in work if _changed(before, unit.blank)}
    tasks = {key: task for key, task in before.tasks.items() if key not in anew}
    return dataclasses.replace(before, settings=now.settings, tasks=tasks)


def _changed(before: Results, new: TaskResults) -> Mapping[str, Any]:
    """Returns in what a task differs from the one of its key in earlier results, where there is one."""
    old = before.tasks.get(new.key)
    bare = [vars(dataclasses.replace(one, modes={}, weights=None)) for one in (old, new) if one]
    return differences(*bare) if old else {}


def _missing(
    results: Results, work: Sequence[Unit | Together], labels: Iterable[str]
) -> list[tuple[Unit | Together, str]]:
    """Returns the tasks and modes that are not in the results yet."""
    done = {key: task.modes for key, task in results.tasks.items()}
    return [
        (unit, label) for unit, label in itertools.product(work, labels) if label not in done.get(unit.blank.key, ())
    ]


def _latest(before: ModelIdentity, now: ModelIdentity) -> ModelIdentity:
    """Keeps the Hub id where one run named it and another used a folder."""
    return now if now.revision or not before.revision else before
