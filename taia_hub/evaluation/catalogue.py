"""Finding tasks: names of lm-eval and of this package, YAML files, and JSONL files."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from taia_hub.common.imports import import_or_raise
from taia_hub.errors import ConfigError, RepositoryError, closest
from taia_hub.evaluation.harness import FEATURE, HarnessTask, quiet
from taia_hub.evaluation.jsonl import JsonlTask, read_jsonl_tasks
from taia_hub.evaluation.options import EvaluationOptions
from taia_hub.evaluation.tasks import TITLES, tasks_dir
from taia_hub.results import DatasetSource, Group, TaskResults


def load_tasks(options: EvaluationOptions) -> tuple[list[HarnessTask], dict[str, Group]]:
    """Finds the tasks of `options`, and the groups that they are members of.

    Names of tasks, groups and tags of lm-eval and of this package may hold `*`; paths are of YAML and JSONL files.
    """
    if not options.tasks:
        return [], {}
    names, limit, seed = options.tasks, options.limit, options.seed
    found: dict[str, HarnessTask] = {}
    groups: dict[str, Group] = {}
    with quiet():
        manager = _manager(tuple(map(str, options.include_path)), named=not all(map(_is_jsonl, names)))
        files = _files([Path(name) for name in names if _is_jsonl(name)], options.fewshot_path)
        named = [spec for name in names if not _is_jsonl(name) for spec in _specs(manager, str(name))]
        specs: list[Any] = [*dict.fromkeys(named), *(dict(task.config) for task in files.values())]
        for asked in options.shots:
            for file in files.values():
                file.check_fewshot(asked or 0)
            # One by one: lm-eval refuses a group beside one of its members.
            for spec in specs:
                loaded = _load(manager, spec)
                source = files[spec["task"]] if isinstance(spec, dict) else None
                for name, task in loaded["tasks"].items():
                    _set_shots(task, name, asked, seed)
                    blank = _blank(task, name, source, asked, limit)
                    _check_shared(blank)
                    _add(found, HarnessTask(task, blank))
                groups |= _groups(loaded["groups"], asked)
    return list(found.values()), groups


def check_names(names: Sequence[str]) -> None:
    """Checks that lm-eval or this package has tasks of these names, or that they are YAML files; loads none."""
    with quiet():
        manager = _manager((), named=True)
        for name in names:
            _specs(manager, name)


def check_keys(units: Iterable[Any]) -> None:
    """Refuses units whose results would overwrite each other's."""
    seen: dict[str, Any] = {}
    for unit in units:
        if unit.blank.key in seen:
            one, other = (getattr(each, "path", each.blank.dataset.path) for each in (seen[unit.blank.key], unit))
            raise ConfigError(
                f"'{one}' and '{other}' would both be the task '{unit.blank.key}'; one would overwrite the other.",
                "Name each task once, and give files different names.",
            )
        seen[unit.blank.key] = unit


def _files(paths: Sequence[Path], fewshot_path: Path | None) -> dict[str, JsonlTask]:
    """Reads JSONL files; two of one name would overwrite each other's results."""
    files: dict[str, JsonlTask] = {}
    for task in (task for path in dict.fromkeys(paths) for task in read_jsonl_tasks(path, fewshot_path=fewshot_path)):
        if task.name in files:
            raise ConfigError(
                f"'{files[task.name].path}' and '{task.path}' would both be the task '{task.name}'.",
                "Rename one of the files.",
            )
        files[task.name] = task
    return files


def _add(found: dict[str, HarnessTask], task: HarnessTask) -> None:
    """Adds a task once, be it asked for alone, by a pattern or as a member of groups."""
    before = found.setdefault(task.blank.key, task)
    if dataclasses.replace(before.blank, title=task.blank.title) != task.blank:
        raise ConfigError(
            f"Two different tasks are called '{task.blank.key}': a group may change its members, and a file may have "
            "the name of another task.",
            "Evaluate one of them, or both in two runs with an --out of their own.",
        )


def _check_shared(blank: TaskResults) -> None:
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # as `accelerate launch` sets it
    if len(blank.items) < processes:
        raise ConfigError(
            f"The task '{blank.key}' has {len(blank.items)} items, too few for {processes} processes.",
            "Start at most as many processes as there are items, or raise the limit.",
        )


@functools.cache
def _manager(include_path: tuple[str, ...], named: bool) -> Any:
    """Makes lm-eval's index of tasks; its own 14,000 files take seconds, so they are read once and where needed."""
    for path in include_path:
        if not Path(path).is_dir():
            raise RepositoryError(f"There is no folder '{path}' of task files.", "Check --include-path.")
    module = import_or_raise("lm_eval.tasks", "eval", FEATURE)
    return module.TaskManager(include_path=[str(tasks_dir()), *include_path], include_defaults=named)


def _specs(manager: Any, name: str) -> list[str]:
    """Resolves a name with `*`, or refuses one that does not exist."""
    if Path(name).suffix in (".yaml", ".yml"):
        if not Path(name).is_file():
            raise RepositoryError(f"There is no task file '{name}'.", "Check the path.")
        return [name]
    if "*" in name:
        matches: list[str] = manager.match_tasks([name])
        if not matches:
            raise ConfigError(f"No task matches '{name}'.", "`lm_eval ls tasks` lists lm-eval's; ours is taia_paper.")
        return matches
    if name not in manager.task_index:
        raise ConfigError(
            f"There is no task '{name}'.{closest(name, manager.all_tasks)}",
            "Give a task or group of lm-eval, taia_paper, a YAML file, a JSONL file, or --include-path for your own.",
        )
    return [name]


def _load(manager: Any, spec: Any) -> Any:
    """Loads a task or group, and says in one line what is wrong with a file or data set."""
    try:
        return manager.load([spec])
    except (OSError, ConnectionError) as error:  # datasets: no such data set, no network
        raise RepositoryError(
            f"A data set cannot be read: {_first_line(error)}",
            "Check the network and the data set's name; with HF_HUB_OFFLINE=1 it must lie in the cache.",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ConfigError(
            f"A task cannot be loaded: {type(error).__name__}: {_first_line(error)}",
            "Check its YAML file; `lm_eval validate --tasks NAME` says more.",
        ) from error


def _set_shots(task: Any, name: str, asked: int | None, seed: int) -> None:
    fixed = task.get_config("num_fewshot")
    if asked and fixed == 0:
        raise ConfigError(
            f"The task '{name}' is always run without examples; {asked} were asked for.",
            "Leave --num-fewshot out for it, or choose its few-shot variant.",
        )
    shots = asked if asked is not None else fixed or 0
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=seed)
    sampler = getattr(task, "sampler", None)
    if shots and sampler is not None:
        # From examples of the same split lm-eval leaves out the item itself.
        there = len(sampler.fewshot_docs()) - (task.fewshot_cfg.split == task.config.test_split)
        if shots > there:
            raise ConfigError(
                f"The task '{name}' has {there} items to take examples from, not {shots}.", "Ask for fewer examples."
            )


def _blank(task: Any, name: str, file: JsonlTask | None, asked: int | None, limit: int | None) -> TaskResults:
    config = task.config
    docs = itertools.islice(task.eval_docs, limit)
    metrics = [item["metric"] for item in config.metric_list or () if isinstance(item.get("metric"), str)]
    directions = task.higher_is_better()
    metric = metrics[0] if metrics else next(iter(directions), "acc")
    filters = [item["name"] for item in config.filter_list or ()] or ["none"]
    split = config.test_split or config.validation_split
    if file:
        source = DatasetSource(file.path.name, split=split, sha256=file.sha256)
    else:
        source = DatasetSource(str(config.dataset_path), config.dataset_name, split, _data_revision(config))
    return TaskResults(
        name=name,
        title=TITLES.get(name) or str(config.task_alias or name),
        num_fewshot=config.num_fewshot or 0,
        fewshot_asked=asked,
        metric=f"{metric},{filters[0]}",
        higher_is_better=bool(directions.get(metric, True)),
        dataset=source,
        version=str(task.VERSION),
        prompts_sha256=prompts_sha256(task),
        items=tuple(map(_item_hash, docs)),
    )


def _data_revision(config: Any) -> str | None:
    revision = (config.dataset_kwargs or {}).get("revision")
    return str(revision) if revision else None


def _groups(groups: Mapping[str, Any], asked: int | None) -> dict[str, Group]:
    def key(name: str) -> str:
        return name if asked is None else f"{name}@{asked}"

    return {
        key(name): Group(
            TITLES.get(name) or str(group.alias or name),
            tuple(key(child) for child in group.child_names),
            pooled=bool(group.aggregate_metric_list)
            and all(item.weight_by_size for item in group.aggregate_metric_list),
        )
        for name, group in groups.items()
    }


_ELSEWHERE = {
    *("task", "task_alias", "tag", "group", "metadata", "num_fewshot"),
    *("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "process_docs"),
    *("training_split", "validation_split", "test_split"),
    *("should_decontaminate", "doc_to_decontamination_query"),
}
"""Keys of a task's configuration that change no prompt and no score, or that the results hold beside the hash."""

_EXAMPLES = 1000  # of a training split of 200,000 the first ones tell that it changed


def _item_hash(item: Any) -> str:
    """Hashes one item to 16 hexadecimal digits; what is no JSON value counts by its source or `repr`."""
    return _sha256(item)[:16]


def prompts_sha256(task: Any) -> str:
    """Hashes what lm-eval makes the prompts and scores of a task of, beside its items.

    The examples in the prompts are drawn process by process, so with examples the number of processes counts too.
    """
    config = task.config.to_dict(keep_callable=True)
    parts: list[Any] = [{key: value for key, value in config.items() if key not in _ELSEWHERE}]
    if config.get("num_fewshot"):
        parts += [list(itertools.islice(task.fewshot_docs(), _EXAMPLES)), os.environ.get("WORLD_SIZE", "1")]
    return _sha256(parts)


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=_text).encode()).hexdigest()


def _text(value: Any) -> str:
    """Writes what is no JSON value; the source of a function rather than its address."""
    try:
        return inspect.getsource(value)
    except (TypeError, OSError):
        return str(getattr(value, "__qualname__", None) or repr(value))


def _is_jsonl(name: str | Path) -> bool:
    return Path(name).suffix == ".jsonl"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
