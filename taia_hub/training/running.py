"""From a recipe to a TAIA repository: check, train, write down, publish; a killed run goes on where it was."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from accelerate.utils.memory import clear_device_cache
from huggingface_hub import CommitInfo, constants
from transformers.utils import logging as transformers_logging

from taia_hub import hub
from taia_hub.common.chat import embedding_rows, give_padding
from taia_hub.common.progress import Progress
from taia_hub.errors import ConfigError, OutOfMemoryError, RepositoryError
from taia_hub.repository import publishing
from taia_hub.repository.reading import read_repository_config
from taia_hub.switch.settings import parse_setting
from taia_hub.training import modelling, record
from taia_hub.training.encoding import EncodedItems, encode_items
from taia_hub.training.ending import ending_note
from taia_hub.training.finishing import make_repository
from taia_hub.training.job import Fitted, Job, prepare_job
from taia_hub.training.planning import Plan, process_count, process_rank, smaller
from taia_hub.training.recipe import TrainingRecipe
from taia_hub.training.report_plan import plan_report
from taia_hub.training.trained import Trained, results_in, trained_by
from taia_hub.training.trainer import Watch, check_packing, make_trainer, ran_out_of_memory, trainer_arguments
from taia_hub.training.workspace import TOKENS, Workspace, check_out, sole_run

logger = logging.getLogger(__name__)


def train(
    recipe: TrainingRecipe,
    *,
    out: Path | None = None,
    push: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    resume: bool = True,
    report: bool | None = None,
    progress: Progress | None = None,
    on_plan: Callable[[Plan], None] | None = None,
) -> Trained:
    """Trains what a recipe says and makes a TAIA repository of it.

    It ends with a report, in the repository's results and on its card: by mode, the loss on items that were held out of
    the training, and what is kept of the base on general texts.

    Checkpoints lie in `OUT/.training` until the repository is written. The same recipe, base and data go on from the
    last whole one; on a CPU the weights are then, bit for bit, those of a run that was never stopped. A folder that
    holds the finished training already is left as it is.

    Args:
        recipe: The recipe.
        out: Folder of the repository.
        push: Hub id to publish it to; with or without a folder.
        private: Whether a new repository on the Hub is private.
        token: Access token.
        resume: Whether checkpoints are used; False begins anew, also where the folder holds another TAIA repository.
        report: Whether there is a report: by default of as many items and texts as take at most a twentieth of the
            training's time, with True of all of them.
        progress: Called with stage, steps done and steps in all.
        on_plan: Called with the plan before the training begins, or goes on.

    Returns:
        What was trained.

    Raises:
        TAIAError: If base, data, folder or a value is wrong: before anything is trained. If memory or disk do not
            suffice, or the loss is no number: then the checkpoints stay.

    Example:
        ```python
        train(TrainingRecipe(base="org/base", data=("items.jsonl",)), out=Path("model-taia"))
        ```
    """
    check_target(recipe, out, push)
    job = prepare_job(recipe, token, progress, push)
    if push:
        push = hub.look(push, token=token).repo_id  # a Hub that is out of reach is known now, and not after hours
    folder = out.resolve() if out else _hidden(job.fingerprint, str(push))
    work = Workspace(folder, job.fingerprint, job.inputs)
    with sole_run(work.out) if process_rank() == 0 else contextlib.nullcontext():
        return _train(job, work, out, push, private, resume, report, progress, on_plan)


def _train(
    job: Job,
    work: Workspace,
    out: Path | None,
    push: str | None,
    private: bool | None,
    resume: bool,
    report: bool | None,
    progress: Progress | None,
    on_plan: Callable[[Plan], None] | None,
) -> Trained:
    recipe, is_main = job.recipe, process_rank() == 0
    if resume and (done := work.finished()):
        _check_published(work.out, recipe)
        commit = _push(work.out, push, private, job) if push and is_main else None
        results = results_in(work.out)
        work.clear()
        if not out and process_count() == 1:  # else another process may be looking whether it is finished
            shutil.rmtree(work.out.parent, ignore_errors=True)
        return trained_by(done, work.out if out else None, commit, results, is_new=False)
    if resume:
        work.refuse_another(recipe)
    elif is_main:
        work.forget()
    if resume and work.state().get("processes", process_count()) != process_count():
        raise ConfigError(
            f"The run in '{work.out}' was begun with {work.state()['processes']} processes, not {process_count()}.",
            "Launch as many, or give --restart.",
        )
    if process_count() == 1:  # else another process may be writing its own
        shutil.rmtree(work.folder / TOKENS, ignore_errors=True)
    with _disk_errors(work), _quiet():
        items = _encoded(job, work.folder / TOKENS, progress if is_main else None)
        micro = work.micro_batch_size(recipe) if resume else None
        plan = job.plan(items.lengths, len(items.lengths), sum(items.lengths), items.notes, micro)
        plan, rows = plan_report(job, plan, report)
        if resume and (begun := work.state().get("dtype", plan.dtype)) != plan.dtype:
            raise ConfigError(
                f"The run in '{work.out}' was begun in {begun}, and would go on in {plan.dtype} on this machine.",
                "Go on where it was begun, or give --restart.",
            )
        record.check_readable(Fitted(job, plan, None, None, [], 0.0).record(None))
        if on_plan and is_main:
            on_plan(plan)
        if is_main and work.latest() is None:
            hub.check_space(work.out, _needed(plan, recipe), "The training, with two checkpoints,")
        fitted = _fit(job, plan, items, work, progress if is_main else None)
        if not is_main:  # the first process writes and publishes
            return trained_by(fitted.record(None), work.out if out else None, None)
        if note := ending_note(fitted):
            fitted = fitted.noted(note)
        made = make_repository(fitted, rows, work, progress, None if out else push, private)
    commit = made.commit
    if out and push:
        commit = _push(work.out, push, private, job)
    work.clear()
    if not out:
        shutil.rmtree(work.out.parent, ignore_errors=True)
    return trained_by(made.record, work.out if out else None, commit, made.results)


def plan_training(
    recipe: TrainingRecipe,
    *,
    out: Path | None = None,
    push: str | None = None,
    token: str | bool | None = None,
    report: bool | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Says what `train` would do, without loading weights; every item is made tokens of, as `train` does.

    Args:
        recipe: The recipe.
        out: Folder that `train` would write to, to check it.
        push: Hub id that it would publish to, to check it.
        token: Access token.
        report: As of `train`.
        progress: Called with stage, steps done and steps in all.

    Returns:
        The plan.

    Raises:
        TAIAError: As `train` does before it trains.
    """
    recipe.check_complete()
    if out:
        check_out(out)
    if push:
        push = hub.full_repo_id(push, token)
    job = prepare_job(recipe, token, progress, push)
    with tempfile.TemporaryDirectory(prefix="taia-tokens-") as scratch, hub.disk_errors(Path(scratch)):
        items = _encoded(job, Path(scratch), progress)
        plan = job.plan(items.lengths, len(items.lengths), sum(items.lengths), items.notes, None)
        plan, _ = plan_report(job, plan, report)
    if out:
        hub.check_space(out, _needed(plan, recipe), "The training, with two checkpoints,")
    return plan


def _encoded(job: Job, cache: Path, progress: Progress | None) -> EncodedItems:
    """Makes tokens of a job's items, and checks them."""
    return encode_items(
        job.data.train,
        job.encoder,
        max_length=job.max_length,
        packing=job.recipe.packing,
        cache=cache,
        vocabulary=embedding_rows(job.skeleton),
        progress=progress,
    )


def check_target(recipe: TrainingRecipe, out: Path | None, push: str | None) -> None:
    """Checks what needs no network: that target, base and data are named, and the folder holds nothing else."""
    if not isinstance(recipe, TrainingRecipe):
        raise ConfigError(
            f"{recipe!r} came as the recipe; a TrainingRecipe is expected.",
            "Make one of its fields, or read a file: `TrainingRecipe.from_yaml(path)`.",
        )
    recipe.check_complete()
    if not out and not push:
        raise ConfigError("Say where the trained model shall go.", "Use --out DIR or --push REPO, or both.")
    if out:
        check_out(out)


def _fit(job: Job, plan: Plan, items: EncodedItems, work: Workspace, progress: Progress | None) -> Fitted:
    """Trains; when memory runs out, with half the items of a forward pass and the same batch.

    Not by accelerate's `find_executable_batch_size`: it does not catch MemoryError, goes on in one of several processes
    alone, and ends in a plain RuntimeError, so that all that is said here would stand around it.
    """
    is_main = process_rank() == 0
    while True:
        arguments = trainer_arguments(job.recipe, plan, work.folder)
        with arguments.main_process_first(local=False):  # the others look when what is stale is gone
            if is_main:
                work.begin(job.recipe, micro=plan.micro_batch_size, processes=plan.processes, dtype=plan.dtype)
                work.drop_halves()
            checkpoint = work.latest()
        sharded = modelling.needs_uniform_dtype(arguments)
        modelling.check_sharding(job.recipe, sharded=sharded)
        watch = Watch(work, checkpoint.seconds if checkpoint else 0.0, progress, is_main)
        model = trainer = None
        try:
            model = modelling.build_model(job, plan, uniform_dtype=sharded)
            tokenizer = copy.deepcopy(job.tokenizer)  # the trainer may give it a padding token
            give_padding(tokenizer, embedding_rows(job.skeleton))
            trainer = make_trainer(model, arguments, items.dataset, tokenizer, job.recipe, watch)
            if job.recipe.packing and not sharded:
                check_packing(trainer)
            trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
            gathers = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
            return Fitted(
                job=job,
                plan=plan,
                model=trainer.accelerator.unwrap_model(trainer.model),
                # every process takes part in gathering what is sharded
                state_dict=trainer.accelerator.get_state_dict(trainer.model_wrapped) if gathers else None,
                losses=record.loss_log(trainer.state.log_history),
                seconds=watch.seconds,
            )
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            fewer = smaller(plan)
            if fewer is None or plan.processes > 1:
                raise OutOfMemoryError(
                    f"The memory does not suffice for {plan.micro_batch_size} items of up to {plan.longest} tokens.",
                    "Give a smaller --micro-batch-size or --max-length, or --gradient-checkpointing.",
                ) from error
        logger.warning("Out of memory with %d items a forward pass: on with %d.", plan.micro_batch_size, fewer)
        del trainer, model
        clear_device_cache(garbage_collection=True)
        smaller_plan = job.plan(items.lengths, len(items.lengths), sum(items.lengths), items.notes, fewer)
        plan = dataclasses.replace(smaller_plan, report=plan.report, notes=plan.notes)


def _needed(plan: Plan, recipe: TrainingRecipe) -> int:
    """Returns the bytes that a training writes: two checkpoints, with AdamW's two moments, and the repository."""
    trained = sum(plan.trained.values())
    weights = 4 * (plan.base_parameters if recipe.method == "full" else trained)
    return 2 * (weights + 8 * trained) + weights


def _push(folder: Path, push: str, private: bool | None, job: Job) -> CommitInfo:
    """Publishes the written repository; if the Hub refuses, the folder stays."""
    return publishing.push_folder(
        folder,
        push,
        hub.Commit(job.commit_message, private=private, token=job.token),
        trust_remote_code=job.recipe.trust_remote_code,
    )


def _check_published(folder: Path, recipe: TrainingRecipe) -> None:
    """Refuses to take a finished training for one that publishes another setting."""
    setting = read_repository_config(folder / hub.CONFIG, str(folder)).setting
    if setting.entries != parse_setting(recipe.published).entries:
        raise ConfigError(
            f"'{folder}' holds this very training, but publishes {setting.value!r} and not {recipe.published!r}.",
            "Set model.taia_config.inference_modules of the loaded model and save it, or give --restart.",
        )


def _hidden(run: str, push: str) -> Path:
    """Returns where a training lies that is only published."""
    return Path(constants.HF_HOME) / "taia-training" / run[:16] / push.rpartition("/")[2]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides transformers' own bars (of loading and saving), which would come between ours."""
    if not transformers_logging.is_progress_bar_enabled():
        yield
        return
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def _disk_errors(work: Workspace) -> Iterator[None]:
    """Says of a full disk what is left and how to go on; torch's writer raises no OSError for it."""
    try:
        with hub.disk_errors(work.out):
            yield
    except RepositoryError as error:
        if work.latest() is None:
            raise
        raise RepositoryError(error.message, f"{error.hint} The checkpoints stay: the same call goes on.") from error
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error):
            raise
        raise RepositoryError(
            f"A checkpoint in '{work.folder}' was not written: {str(error).splitlines()[0]}.",
            "Free space; the same call goes on from the last whole checkpoint.",
        ) from error
