"""What is done in the folder of a run, so that a reproduction that was stopped does only the rest."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taia_hub import hub
from taia_hub.common.resuming import Mark, differences, digest
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.results import RESULTS_FILE
from taia_hub.training.recipe import TrainingRecipe

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

    `identity` is what the weights depend on: fields of the training recipe, with hashes in place of files of data, and
    the content of a base model in a folder.
    """

    path: Path
    identity: Mapping[str, Any]

    @classmethod
    def of(cls, path: Path, recipe: TrainingRecipe) -> RunFolder:
        """Describes the run of a recipe in a folder, which need not be there; files of data are read and hashed."""
        fields = {name: value for name, value in recipe.to_mapping().items() if name not in _IDLE}
        if not fields["holdout"]:  # earlier versions wrote nothing of it, and held nothing out
            del fields["holdout"]
        fields |= {name: [_content(source) for source in getattr(recipe, name)] for name in _DATA}
        return cls(path, {**fields, _BASE_FILES: hub.folder_print(Path(recipe.base))})

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
        before = self._state()["identity"]
        for name, (was, given) in differences(before, json.loads(json.dumps(self.identity))).items():
            what = f"another {name}: {was!r}, not {given!r}"
            if name == _BASE_FILES:
                what = f"other files of the base model: {', '.join(sorted(differences(was or {}, given or {})))}"
            raise ConfigError(
                f"'{self.path}' holds a run with {what}.",
                "Give the same options as before, or choose another folder with --out.",
            )

    def begin(self) -> None:
        """Writes down which run the folder is for, before anything else is written there."""
        self._write()

    @property
    def is_trained(self) -> bool:
        """Whether the training was finished, and its repository is still the one that it wrote."""
        manifest = self.model / hub.MANIFEST
        trained = self._state().get("trained")
        if trained is None:
            return False
        if not manifest.is_file() or hub.sha256(manifest) != trained:
            raise RepositoryError(
                f"'{self.model}' is not as the training left it.", f"Move '{self.path}' elsewhere to train again."
            )
        return True

    @property
    def has_results(self) -> bool:
        """Whether an evaluation of the trained model was finished, be it of this kind or another."""
        return bool(self._state().get("evaluated")) and self.is_trained and self.results.is_file()

    def mark_trained(self) -> None:
        """Writes down that the training is finished."""
        self._write(trained=hub.sha256(self.model / hub.MANIFEST))

    def is_evaluated(self, evaluation: Mapping[str, Any]) -> bool:
        """Tells whether an evaluation that depends on this is finished, and its results are as it left them."""
        done = self._state().get("evaluated") or {}
        return bool(
            done.get("evaluation") == digest(evaluation)
            and self.results.is_file()
            and hub.sha256(self.results) == done.get("results")
        )

    def mark_evaluated(self, evaluation: Mapping[str, Any]) -> None:
        """Writes down that the evaluation that depends on these values is finished."""
        self._write(evaluated={"evaluation": digest(evaluation), "results": hub.sha256(self.results)})

    @property
    def _mark(self) -> Mark:
        return Mark(self.path / STATE, {"format": _FORMAT, "identity": self.identity})

    def _state(self) -> dict[str, Any]:
        """Returns what is written down; nothing where the run was not begun."""
        found = self._mark.read()
        if not self._mark.path.is_file():
            return found
        if found.get("format") != _FORMAT:
            raise ConfigError(
                f"'{self._mark.path}' is of another version of taia-hub.", "Choose another folder with --out."
            )
        if not isinstance(found.get("identity"), Mapping):
            raise ConfigError(
                f"'{self._mark.path}' is damaged.", "Move the folder elsewhere, or choose another with --out."
            )
        return found

    def _write(self, **facts: Any) -> None:
        with hub.disk_errors(self.path):
            self._mark.write(**facts)


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
