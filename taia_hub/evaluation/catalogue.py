"""Finding tasks: names of lm-eval and of this package, YAML files, and JSONL files."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taia_hub._imports import import_or_raise
from taia_hub.errors import ConfigError, RepositoryError, closest
from taia_hub.evaluation.fingerprint import item_hash, prompts_sha256
from taia_hub.evaluation.harness import FEATURE, HarnessTask, quiet
from taia_hub.evaluation.jsonl import JsonlTask, read_jsonl_tasks
from taia_hub.evaluation.tasks import TITLES, tasks_dir
from taia_hub.results import DatasetSource, Group, TaskResults


def load_tasks(
    names: Sequence[str | Path],
    *,
    include_path: Sequence[str | Path] = (),
    num_fewshot: Sequence[int | None] = (None,),
    fewshot_path: Path | None = None,
    limit: int | None = None,
    seed: int = 1234,
) -> tuple[list[HarnessTask], dict[str, Group]]:
    """Finds tasks: names of lm-eval and of this package, YAML files, and JSONL files.

    Args:
        names: Names of tasks, groups and tags, which may hold `*`; paths of YAML and JSONL files.
        include_path: Folders with more task files.
        num_fewshot: Numbers of examples in the prompt; None for the task's own.
        fewshot_path: JSONL file that the examples of JSONL tasks come from.
        limit: Most items a task.
        seed: Seed of the examples.

    Returns:
        The tasks, and the groups that they are members of.

    Raises:
        MissingDependencyError: If lm-eval is not installed.
        ConfigError: If a task does not exist, is broken, or does not take that number of examples.
        RepositoryError: If a data set or file cannot be read.
    """
    found: list[HarnessTask] = []
    groups: dict[str, Group] = {}
    with quiet():
        paths = tuple(str(path) for path in include_path)
        manager = _manager(paths, named=not all(map(_is_jsonl, names)))
        local = [
            task
            for name in names
            if _is_jsonl(name)
            for task in read_jsonl_tasks(Path(name), fewshot_path=fewshot_path)
        ]
        specs = [spec for name in names if not _is_jsonl(name) for spec in _specs(manager, str(name))]
        for asked in num_fewshot:
            for task in local:
                task.check_fewshot(asked or 0)
            loaded = _load(manager, [*specs, *(dict(task.config) for task in local)])
            files = {task.name: task for task in local}
            for name, task in loaded["tasks"].items():
                _set_shots(task, name, asked, seed)
                blank = _blank(task, name, files.get(name), asked, limit)
                found.append(HarnessTask(task, blank))
            groups |= _groups(loaded["groups"], asked)
    repeated = [key for key, count in Counter(task.blank.key for task in found).items() if count > 1]
    if repeated:
        raise ConfigError(f"The task '{repeated[0]}' was asked for twice.", "Name each task once.")
    return found, groups


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


def _load(manager: Any, specs: list[Any]) -> Any:
    """Loads tasks, and says in one line what is wrong with a file or data set."""
    try:
        return manager.load(specs)
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
    task.set_config(key="num_fewshot", value=asked if asked is not None else fixed or 0)
    task.set_fewshot_seed(seed=seed)


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
        items=tuple(map(item_hash, docs)),
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


def _is_jsonl(name: str | Path) -> bool:
    return Path(name).suffix == ".jsonl"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
