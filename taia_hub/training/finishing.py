"""The last step of a training: the repository is written beside the checkpoints, moved into place whole, published."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from taia_hub import hub
from taia_hub.common.progress import Progress
from taia_hub.hub.layout import KINDS, UpdatePlace
from taia_hub.repository import creating, publishing
from taia_hub.repository.card import manifest_sha256
from taia_hub.repository.card_updating import CardRequest, make_card, write_card
from taia_hub.repository.reading import read_taia_config
from taia_hub.repository.side_files import FIGURES, SIDE_FILES
from taia_hub.training import modelling, record
from taia_hub.training.composition import plot_composition
from taia_hub.training.job import Fitted
from taia_hub.training.recipe import TrainingRecipe
from taia_hub.training.workspace import Workspace


def write_repository(fitted: Fitted, work: Workspace, progress: Progress | None) -> dict[str, Any]:
    """Writes the repository beside the checkpoints, and moves it into place whole.

    Args:
        fitted: The trained model.
        work: Where it goes.
        progress: Called with stage, steps done and steps in all.

    Returns:
        The contents of `taia_training.json`.

    Raises:
        TAIAError: If it cannot be written; the folder is as it was, and the checkpoints stay.
    """
    job, recipe = fitted.job, fitted.job.recipe
    if progress:
        progress("writing", 0, 1)
    update, repository = work.folder / "update", work.folder / "repository" / work.out.name
    for folder in (update, repository):
        shutil.rmtree(folder, ignore_errors=True)
    modelling.save_update(fitted.model, recipe, job.base, update, fitted.state_dict, job.token)
    make = creating.create_from_finetuned if recipe.method == "full" else creating.create_repository
    make(
        recipe.base,
        str(update),
        out=repository,
        inference_modules=recipe.published,
        base_revision=job.base.revision,
        token=job.token,
        trust_remote_code=recipe.trust_remote_code,
    )
    config = read_taia_config(repository / hub.CONFIG, str(repository))
    written = fitted.record(manifest_sha256(repository, UpdatePlace.of(config.update).weights))
    record.write_record(repository, written, recipe, fitted.losses)
    composition = job.data.composition
    if len(composition.groups) > 1 and importlib.util.find_spec("matplotlib"):
        plot_composition(composition, repository / FIGURES / "composition")
    write_card(make_card(str(repository), CardRequest(), token=job.token, trust_remote_code=recipe.trust_remote_code))
    if (runs := work.folder / "runs").is_dir():  # of TensorBoard
        shutil.copytree(runs, repository / "runs", dirs_exist_ok=True)
    new = {path.relative_to(repository) for path in repository.rglob("*") if path.is_file()}
    with hub.written_whole(work.out) as scratch:
        shutil.copytree(repository, scratch, dirs_exist_ok=True, copy_function=shutil.move)  # no room for two
    for path in _old_files(work.out):
        if path.relative_to(work.out) not in new:  # of another training, which this one replaces
            path.unlink()
    if progress:
        progress("writing", 1, 1)
    return written


def _old_files(folder: Path) -> list[Path]:
    """Lists the files of a TAIA repository that belong to its update and go stale with it."""
    patterns = [*SIDE_FILES, *(f"{kind.folder}/*" for kind in KINDS.values())]
    return [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]


def push_repository(
    folder: Path, push: str, private: bool | None, token: str | bool | None, recipe: TrainingRecipe
) -> CommitInfo:
    """Publishes the written repository.

    Args:
        folder: The repository.
        push: Hub id.
        private: Whether a new repository is private.
        token: Access token.
        recipe: The recipe.

    Returns:
        The commit.

    Raises:
        RepositoryError: If the Hub refuses; the folder stays.
    """
    return publishing.push_folder(
        folder,
        push,
        commit_message=f"Train {recipe.name or recipe.method} on {recipe.base}",
        private=private,
        token=token,
        trust_remote_code=recipe.trust_remote_code,
    )
