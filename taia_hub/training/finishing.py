"""The last step of a training: the repository, written beside the checkpoints and moved into place, or published."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from taia_hub import hub
from taia_hub.common.progress import Progress
from taia_hub.hub.layout import UpdatePlace
from taia_hub.repository import creating, publishing
from taia_hub.repository.card import manifest_sha256
from taia_hub.repository.side_files import FIGURES, SIDE_FILES
from taia_hub.results import RESULTS_FILE, Results
from taia_hub.roles.sublayers import find_sublayers
from taia_hub.training import modelling, record
from taia_hub.training.composition import plot_composition
from taia_hub.training.ending import publish_end
from taia_hub.training.job import Fitted
from taia_hub.training.report_plan import ReportRows
from taia_hub.training.reporting import make_report
from taia_hub.training.workspace import Workspace


@dataclass(frozen=True)
class Made:
    """What came of a training: its record, the results of its report, and the commit that it was published in."""

    record: dict[str, Any]
    results: Results | None
    commit: CommitInfo | None


def make_repository(
    fitted: Fitted,
    rows: ReportRows,
    work: Workspace,
    progress: Progress | None,
    push: str | None,
    private: bool | None,
) -> Made:
    """Makes a repository of a trained model, with the report of `rows`, and publishes it where `push` is given.

    Where it cannot be made, the folder is as it was and the checkpoints stay; if the Hub refuses, the folder holds it.
    """
    job, recipe = fitted.job, fitted.job.recipe
    if progress:
        progress("writing", 0, 1)
    placed = find_sublayers(job.skeleton)  # before the update is put on it
    update, repository = work.folder / "update", work.folder / "repository" / work.out.name
    for folder in (update, repository):
        shutil.rmtree(folder, ignore_errors=True)
    modelling.save_update(fitted, update)
    written, found = dict[str, Any](), list[Results]()

    def beside(folder: Path) -> None:
        job.tokenizer.save_pretrained(folder)
        publish_end(folder, job)
        kind = modelling.UPDATE_KINDS[recipe.method]
        results, note = make_report(fitted, rows, folder, placed, work.folder, progress)
        if results is not None:
            found.append(dataclasses.replace(results, model=dataclasses.replace(results.model, name=work.out.name)))
            found[-1].save(folder / RESULTS_FILE)
        noted = fitted.noted(note) if note else fitted
        written.update(noted.record(manifest_sha256(folder, UpdatePlace(kind, kind.folder).weights)))
        record.write_record(folder, written, recipe, fitted.losses)
        composition = job.data.composition
        if len(composition.groups) > 1 and importlib.util.find_spec("matplotlib"):
            plot_composition(composition, folder / FIGURES / "composition")
        if (runs := work.folder / "runs").is_dir():  # of TensorBoard
            shutil.copytree(runs, folder / "runs", dirs_exist_ok=True)

    make = creating.create_from_finetuned if recipe.method == "full" else creating.create_repository
    made = make(
        job.base,
        str(update),
        out=None if push else repository,
        push=push,
        keep=work.out if push else None,
        inference_modules=recipe.published,
        commit=hub.Commit(job.commit_message, private=private, token=job.token),
        trust_remote_code=recipe.trust_remote_code,
        skeleton=job.skeleton,
        extra_files=beside,
    )
    if not push:
        _move(repository, work.out)
    if progress:
        progress("writing", 1, 1)
    return Made(written, next(iter(found), None), made.commit)


def _move(repository: Path, out: Path) -> None:
    new = {path.relative_to(repository) for path in repository.rglob("*") if path.is_file()}
    with publishing.written_over(out) as scratch:
        shutil.copytree(repository, scratch, dirs_exist_ok=True, copy_function=shutil.move)  # no room for two
    for path in [path for pattern in SIDE_FILES for path in out.glob(pattern) if path.is_file()]:
        if path.relative_to(out) not in new:  # of another training, which this one replaces
            path.unlink()
