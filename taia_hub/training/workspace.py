"""`OUT/.training`: checkpoints that survive a kill, and what tells whether they are of this very run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from taia_hub import hub
from taia_hub.common.resuming import Mark, changed_inputs, differences, digest, sole
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.hub.config import config_values, is_taia
from taia_hub.repository.side_files import TRAINING_FILE
from taia_hub.training.recipe import TrainingRecipe

WORK = ".training"
STATE = "run.json"
TOKENS = "tokens"
MARK = "taia_checkpoint.json"
"""Written into a checkpoint last, so that half of one is never taken for a whole."""

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_FREE = (
    *("report_to", "save_steps", "micro_batch_size", "gradient_checkpointing"),
    *("name", "description", "reference", "inference_modules"),
)
"""Fields that may change between two parts of a run: the weights do not depend on them, but for rounding."""


def training_inputs(
    base: hub.Source, datasets: tuple[Mapping[str, Any], ...], held_out: str | None = None
) -> dict[str, Any]:
    """Names what the trained weights depend on beside the recipe, as JSON values: the parts of the base, and the data.

    A base in a folder counts by the content of its files, the data by their own hashes, and without the items that are
    held out, which `held_out` is a hash of, if any are.
    """
    parts = {f"base model's {part}": hashed for part, hashed in hub.folder_print(base.folder).items()}
    return {
        **({"commit of the base model": base.revision} if base.revision else parts),
        # data sets of the Hub have no hash: a commit, which fixes them
        "data": [[one.get("sha256") or [one["name"], one.get("revision")], one.get("items")] for one in datasets],
        **({"held-out items": held_out} if held_out else {}),
    }


def fingerprint(recipe: TrainingRecipe, inputs: Mapping[str, Any]) -> str:
    """Returns a hash of everything that the trained weights depend on, as 64 hex digits; `inputs` are those beside."""
    fields = {name: value for name, value in recipe.to_mapping().items() if name not in (*_FREE, "holdout")}
    recorded = {**fields, "data": None, "in_domain": len(recipe.in_domain), "ood": len(recipe.ood)}
    return digest({"version": 2, "recipe": recorded, "inputs": inputs})


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, with the optimizer steps and the training time until it."""

    folder: Path
    step: int
    seconds: float


@dataclass(frozen=True)
class Workspace:
    """Where the run of this fingerprint keeps what it needs to go on; `out` is the folder of the repository.

    `inputs`, of `training_inputs`, tell in what another run differs.
    """

    out: Path
    fingerprint: str
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder of checkpoints and half-made files."""
        return self.out / WORK

    def finished(self) -> dict[str, Any] | None:
        """Returns the record of this very run where it is finished, or None."""
        path = self.out / TRAINING_FILE
        if not path.is_file() or not (self.out / hub.MANIFEST).is_file():
            return None
        record = hub.read_json(path)
        files = hub.read_json(self.out / hub.MANIFEST).get("files") or {}
        weights = [one.get("sha256") for one in files.values()]  # others where a kill left two trainings mixed
        is_this = record.get("fingerprint") == self.fingerprint and record.get("adapter_sha256") in weights
        return record if is_this else None

    @property
    def _mark(self) -> Mark:
        return Mark(self.folder / STATE, {"fingerprint": self.fingerprint})

    def refuse_another(self, recipe: TrainingRecipe) -> None:
        """Refuses a folder in which another run was begun or finished, and says in what the recipes differ."""
        if state := self._mark.read():
            if self._mark.fits():
                return
            found = differences(state.get("recipe", {}), recipe.to_mapping()).items()
            what = ", ".join(f"{name} {was!r} instead of {now!r}" for name, (was, now) in found if name not in _FREE)
            changed = "" if what else changed_inputs(state.get("inputs", {}), self.inputs)
            how = f"before: {changed} now" if changed else f"with {what or 'other data or another base model'}"
            raise ConfigError(
                f"'{self.out}' holds a training that was begun {how}.",
                "Give that recipe to go on, --restart to begin anew, or another folder.",
            )
        if (self.out / hub.CONFIG).is_file():
            raise ConfigError(
                f"'{self.out}' holds a model of another training already.",
                "Choose another folder, or give --restart to replace it.",
            )

    def state(self) -> dict[str, Any]:
        """Returns what was written down when the run was begun; empty where it was not."""
        return self._mark.read()

    def begin(self, recipe: TrainingRecipe, **facts: Any) -> None:
        """Writes down what the run is, with more facts as JSON values."""
        self._mark.write(recipe=recipe.to_mapping(), inputs=dict(self.inputs), **facts)

    def latest(self) -> Checkpoint | None:
        """Returns the newest whole checkpoint, or None."""
        found = []
        for path in self.folder.glob("checkpoint-*"):
            match = _CHECKPOINT.fullmatch(path.name)
            if match and (whole := Mark(path / MARK, {}).read()):
                found.append(Checkpoint(path, int(match[1]), float(whole["seconds"])))
        return max(found, key=lambda one: one.step, default=None)

    def mark(self, step: int, seconds: float) -> None:
        """Says that the checkpoint of an optimizer step is whole, after so much training time."""
        Mark(self.folder / f"checkpoint-{step}" / MARK, {}).write(seconds=seconds)

    def drop_halves(self) -> None:
        """Deletes checkpoints that a kill or a full disk left unfinished."""
        for path in self.folder.glob("checkpoint-*"):
            if not (path / MARK).is_file():
                shutil.rmtree(path)

    def micro_batch_size(self, recipe: TrainingRecipe) -> int | None:
        """Returns the items of a forward pass of an earlier part, if any, unless the recipe was given others since."""
        state = self.state()
        asked = state.get("recipe", {}).get("micro_batch_size")
        return recipe.micro_batch_size if recipe.micro_batch_size not in (None, asked) else state.get("micro")

    def forget(self) -> None:
        """Deletes what an earlier run left, but for tokens: another process of this run may be writing its own."""
        for path in self.folder.glob("*"):
            if path.is_file():
                path.unlink()
            elif path.name != TOKENS:
                shutil.rmtree(path)

    def clear(self) -> None:
        """Deletes everything that only a running training needs."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def sole_run(out: Path) -> Iterator[None]:
    """Keeps a second run out of a resolved folder as long as the block goes on; the lock ends with the process."""
    name = hashlib.sha256(os.fsencode(out)).hexdigest()[:32]
    busy = ConfigError(f"Another run is training into '{out}' now.", "Wait for it, or give another folder.")
    with sole(Path(constants.HF_HOME) / "taia-locks" / f"{name}.lock", busy):
        yield


def check_out(out: Path) -> None:
    """Refuses a folder that cannot be written or holds something else than a TAIA repository or a begun training."""
    if out.exists() and not out.is_dir():
        raise RepositoryError(f"'{out}' is a file.", "Give a folder.")
    parent = next(path for path in out.absolute().parents if path.exists())
    if not os.access(parent, os.W_OK):  # known now, and not after hours
        raise RepositoryError(f"Nothing can be written into '{parent}'.", "Allow it, or give a folder elsewhere.")
    if out.is_mount():
        raise RepositoryError(
            f"Nothing can be moved to '{out}' from beside it, as a whole repository is: it is a disk of its own.",
            "Give a folder inside it.",
        )
    names = {path.name for path in out.iterdir()} - {WORK} if out.is_dir() else set()
    if not names:
        return
    if not is_taia(config_values(out)):
        raise RepositoryError(
            f"'{out}' holds something else already ({', '.join(sorted(names)[:3])}).", "Give an empty or a new folder."
        )
