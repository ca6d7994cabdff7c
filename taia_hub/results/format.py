"""The results file: what was evaluated on what, with the score of every item under every mode."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taia_hub.common.shown import Shown
from taia_hub.results.files import FORMAT, SideFile
from taia_hub.results.identity import ModelIdentity
from taia_hub.switch.settings import parse_setting

RESULTS_FILE = "taia_results.json"
"""Name of the results file at the root of a TAIA repository."""

_FILE = SideFile("results file", "taia eval")


@dataclass(frozen=True)
class DatasetSource:
    """Where the items of a task come from.

    Attributes:
        path: Hub id of the data set, or name of a local file.
        name: Configuration of the data set, or None.
        split: The split that was evaluated.
        revision: Commit sha of the data set, or None.
        sha256: Hash of a local file, or None.
    """

    path: str
    name: str | None = None
    split: str | None = None
    revision: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class ModeScores:
    """What one mode did in one task.

    Attributes:
        setting: The setting in the form that users write: a name, or a mapping of selectors to weights.
        scores: Metric to the score of the whole task, as lm-eval aggregates it.
        values: Metric to one value an item, in the order of `TaskResults.items`; only metrics whose score is the mean
            of its items.
        seconds: How long the mode took.
    """

    setting: str | Mapping[str, Any]
    scores: Mapping[str, float]
    values: Mapping[str, tuple[float, ...]]
    seconds: float


@dataclass(frozen=True)
class TaskResults:
    """The results of one task at one number of shots.

    Attributes:
        name: Name of the task.
        title: The name that tables show.
        num_fewshot: Number of examples in the prompt.
        fewshot_asked: The number that the user asked for, or None for the task's own.
        metric: The metric that tables show.
        higher_is_better: Whether a higher score is better.
        dataset: Where the items come from.
        version: lm-eval's version of the task, as text.
        prompts_sha256: Hash of what the prompts are made of beside the items: the task's configuration, the examples
            and, with examples, the number of processes that share the items.
        items: A hash of each of the N items.
        modes: Label of a setting to its scores.
        weights: Number of tokens of each item where scores are means a token, and the `values` of the modes sums over
            an item's tokens; None where every item counts alike.
    """

    name: str
    title: str
    num_fewshot: int
    fewshot_asked: int | None
    metric: str
    higher_is_better: bool
    dataset: DatasetSource
    version: str
    prompts_sha256: str
    items: tuple[str, ...]
    modes: Mapping[str, ModeScores] = field(default_factory=dict)
    weights: tuple[int, ...] | None = None

    @property
    def key(self) -> str:
        """Key of the task in `Results.tasks`: `name`, or `name@3` where 3 shots were asked for."""
        return self.name if self.fewshot_asked is None else f"{self.name}@{self.fewshot_asked}"


@dataclass(frozen=True)
class Group:
    """Tasks that tables show as one row.

    Attributes:
        title: The name that tables show.
        tasks: Keys of its tasks and groups; those that were not evaluated yet are not in the results.
        pooled: Whether its score is the mean over all items; otherwise over its members, as the paper's Avg is.
    """

    title: str
    tasks: tuple[str, ...]
    pooled: bool


@dataclass(frozen=True, repr=False)
class Results(Shown):
    """Everything that was evaluated on one model.

    Attributes:
        model: Which model.
        environment: Versions and hardware of the latest run; under `earlier` those of runs before it that differed.
        settings: What holds for all tasks: seed, limit, chat template and so on.
        tasks: `TaskResults.key` to a task's results.
        groups: Key to a group.

    Example:
        >>> model = ModelIdentity("org/model-taia", None, "org/base", None, "ab12", "float32")
        >>> Results.from_json(Results(model).to_json()) == Results(model)
        True
    """

    model: ModelIdentity
    environment: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[str, TaskResults] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)

    @property
    def modes(self) -> tuple[str, ...]:
        """Labels of all settings that were evaluated, in the order of the first task that has them."""
        return tuple(dict.fromkeys(label for task in self.tasks.values() for label in task.modes))

    def with_task(self, task: TaskResults) -> Results:
        """Returns the same results with one task added or replaced."""
        return dataclasses.replace(self, tasks={**self.tasks, task.key: task})

    def to_json(self) -> dict[str, Any]:
        """Returns the results as JSON values."""
        value = {"format": FORMAT, **dataclasses.asdict(self)}
        for task in value["tasks"].values():
            if task["weights"] is None:  # earlier versions read a file without them
                del task["weights"]
        return value

    @classmethod
    def from_json(cls, value: Any, name: str = RESULTS_FILE) -> Results:
        """Makes of JSON values the results that gave them by `to_json`; `name` is the file's, in error messages.

        Raises:
            ConfigError: If the values are not those of a results file, or those of a later format.
        """
        return _FILE.parse(value, name, _results)

    def save(self, path: Path) -> None:
        """Writes the results file, whole or not at all.

        Raises:
            RepositoryError: If it cannot be written.
        """
        _FILE.write(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Results:
        """Reads a results file.

        Raises:
            RepositoryError: If there is no such file.
            ConfigError: If it is damaged.
        """
        return cls.from_json(_FILE.read(path), str(path))


def _results(value: Any) -> Results:
    results = Results(
        ModelIdentity(**value["model"]),
        _mapping(value["environment"]),
        _mapping(value["settings"]),
        {key: _task(task) for key, task in value["tasks"].items()},
        {key: Group(**{**group, "tasks": tuple(group["tasks"])}) for key, group in value["groups"].items()},
    )
    _check(results)
    return results


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{value!r} stands where a mapping belongs")
    return dict(value)


def _task(value: Mapping[str, Any]) -> TaskResults:
    modes = {}
    for label, mode in value["modes"].items():
        values = {name: tuple(items) for name, items in mode["values"].items()}
        modes[_label(label, mode["setting"])] = ModeScores(**{**mode, "values": values})
    weights = {"weights": tuple(value["weights"])} if value.get("weights") is not None else {}
    dataset, items = DatasetSource(**value["dataset"]), tuple(value["items"])
    return TaskResults(**{**value, "dataset": dataset, "items": items, "modes": modes, **weights})


def _label(label: str, setting: Any) -> str:
    """Returns the label of today for one of a file that was written before long labels were shortened."""
    parsed = parse_setting(setting)
    return parsed.label if label == parsed.whole_label else label


def _check(results: Results) -> None:
    for key, task in results.tasks.items():
        if key != task.key:
            raise ValueError(f"the task {task.key!r} stands under {key!r}")
        _check_weights(task)
        for label, mode in task.modes.items():
            if task.metric not in mode.scores:
                raise ValueError(f"mode {label!r} of {key!r} lacks its metric {task.metric!r}")
            if parse_setting(mode.setting).resolved().label != label:  # `tuned` says nothing in a file
                raise ValueError(f"mode {label!r} of {key!r} has the setting {mode.setting!r}")
            _check_numbers(f"mode {label!r} of {key!r}", mode, task)


def _check_weights(task: TaskResults) -> None:
    if task.weights is None:
        return
    if len(task.weights) != len(task.items):
        raise ValueError(f"{task.key!r} has another number of weights than of items")
    if not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in task.weights):
        raise ValueError(f"{task.key!r} has a weight that is no number of tokens")
    if not any(task.weights):
        raise ValueError(f"{task.key!r} has no item with tokens")


def _check_numbers(where: str, mode: ModeScores, task: TaskResults) -> None:
    if not all(_is_finite(score) for score in mode.scores.values()):
        raise ValueError(f"{where} has a score that is no number")
    for metric, values in mode.values.items():
        if len(values) != len(task.items):
            raise ValueError(f"{where} has another number of values than of items")
        if not all(map(_is_finite, values)):
            raise ValueError(f"{where} has a value that is no number")
        weight = len(task.items) if task.weights is None else sum(task.weights)
        mean = math.fsum(values) / weight if weight else 0.0
        if metric in mode.scores and not math.isclose(mean, mode.scores[metric], rel_tol=1e-6, abs_tol=1e-9):
            raise ValueError(f"{where} has the score {mode.scores[metric]!r}, but its values have the mean {mean:g}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
