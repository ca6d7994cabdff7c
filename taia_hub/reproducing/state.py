"""What is done in the folder of a run, so that a reproduction that was stopped does only the rest."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taia_hub import hub
from taia_hub.common.atomic import write_atomically
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.results import RESULTS_FILE
from taia_hub.training.recipe import TrainingRecipe
from taia_hub.training.workspace import base_files

STATE = "run.json"
MODEL = "model"
_FORMAT = 1
_IDLE = ("name", "description", "reference", "report_to", "save_steps", "micro_batch_size")
"""Fields of a training recipe that may change between two parts of a run."""
_DATA = ("data", "in_domain", "ood")
_BASE_FILES = "base_files"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run: its state, and under `model` the TAIA repository with its results.

    Attributes:
        path: The folder.
        identity: What the weights depend on: fields of the training recipe, with hashes in place of files of data, and
            size and time of each file of a base model in a folder.
    """

    path: Path
    identity: Mapping[str, Any]

    @classmethod
    def of(cls, path: Path, recipe: TrainingRecipe) -> RunFolder:
        """Describes the run of a recipe; files of data are read and hashed.

        Args:
            path: Its folder, which need not be there.
            recipe: What is trained.

        Returns:
            The run.
        """
        fields = {name: value for name, value in recipe.to_mapping().items() if name not in _IDLE}
        fields |= {name: [_content(source) for source in getattr(recipe, name)] for name in _DATA}
        return cls(path, {**fields, _BASE_FILES: base_files(Path(recipe.base))})

    @property
    def model(self) -> Path:
        """The folder of the TAIA repository."""
        return self.path / MODEL

    @property
    def results(self) -> Path:
        """The results file."""
        return self.model / RESULTS_FILE

    def check(self) -> None:
        """Checks that the folder holds nothing, or this very run.

        Raises:
            ConfigError: If it holds a run of other settings or data.
            RepositoryError: If it holds something else.
        """
        if not self.path.exists():
            return
        if not (self.path / STATE).is_file():
            if self.path.is_dir() and not any(self.path.iterdir()):
                return
            raise RepositoryError(
                f"'{self.path}' is there already, and no run of a reproduction.", "Choose another folder with --out."
            )
        before = _json(self.path / STATE).get("identity")
        if not isinstance(before, Mapping):
            raise ConfigError(f"'{self.path / STATE}' is damaged.", "Delete the folder, or choose another with --out.")
        now = json.loads(json.dumps(self.identity))
        for name in [*now, *before]:
            was: Any = before.get(name)
            given = now.get(name)
            if was == given:
                continue
            what = f"another {name}: {was!r}, not {given!r}"
            if name == _BASE_FILES:
                changed = sorted(key for key in {*(was or {}), *given} if (was or {}).get(key) != given.get(key))
                what = f"other files of the base model: {', '.join(changed)}"
            raise ConfigError(
                f"'{self.path}' holds a run with {what}.",
                "Give the same options as before, or choose another folder with --out.",
            )

    def begin(self) -> None:
        """Writes down which run the folder is for, before anything else is written there."""
        if not (self.path / STATE).is_file():
            self._write({})

    @property
    def is_trained(self) -> bool:
        """Whether the training was finished, and its repository is still the one that it wrote."""
        manifest = self.model / hub.MANIFEST
        trained = self._state().get("trained")
        if trained is None:
            return False
        if not manifest.is_file() or hub.sha256(manifest) != trained:
            raise RepositoryError(
                f"'{self.model}' is not as the training left it.", f"Delete '{self.path}' to train again."
            )
        return True

    @property
    def has_results(self) -> bool:
        """Whether an evaluation of the trained model was finished, be it of this kind or another."""
        return bool(self._state().get("evaluated")) and self.is_trained and self.results.is_file()

    def mark_trained(self) -> None:
        """Writes down that the training is finished."""
        self._write({"trained": hub.sha256(self.model / hub.MANIFEST)})

    def is_evaluated(self, evaluation: Mapping[str, Any]) -> bool:
        """Tells whether this very evaluation is finished, and its results are still those that it wrote.

        Args:
            evaluation: What it depends on, as JSON values.

        Returns:
            The answer.
        """
        done = self._state().get("evaluated") or {}
        return bool(
            done.get("evaluation") == _hash(evaluation)
            and self.results.is_file()
            and hub.sha256(self.results) == done.get("results")
        )

    def mark_evaluated(self, evaluation: Mapping[str, Any]) -> None:
        """Writes down that an evaluation is finished.

        Args:
            evaluation: What it depends on, as JSON values.
        """
        self._write({"evaluated": {"evaluation": _hash(evaluation), "results": hub.sha256(self.results)}})

    def _state(self) -> dict[str, Any]:
        path = self.path / STATE
        return _json(path) if path.is_file() else {}

    def _write(self, more: Mapping[str, Any]) -> None:
        state = {"format": _FORMAT, "identity": self.identity, **self._state(), **more}
        with hub.disk_errors(self.path):
            write_atomically(self.path / STATE, json.dumps(state, indent=2, ensure_ascii=False) + "\n")


def _json(path: Path) -> dict[str, Any]:
    value = hub.read_json(path)
    if value.get("format") != _FORMAT:
        raise ConfigError(f"'{path}' is of another version of taia-hub.", "Choose another folder with --out.")
    return value


def _content(source: str) -> str:
    """Names data by its content where it is a file: it may lie elsewhere the next time."""
    path = Path(source).expanduser()
    if not path.is_file():
        return source
    stat = path.stat()
    return f"sha256:{_sha256(path.resolve(), stat.st_size, stat.st_mtime_ns)}"


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Hashes a file once for all runs of a sweep; size and time tell whether it is still the same."""
    return hub.sha256(path)


def _hash(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
