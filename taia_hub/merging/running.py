"""A mode of a TAIA repository, or of a plain adapter, merged into a plain checkpoint of the base architecture."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from taia_hub import hub
from taia_hub.common.progress import Progress, counted
from taia_hub.common.resuming import MADE, Made, digest
from taia_hub.common.shown import Shown
from taia_hub.common.text_tables import amount, byte_size
from taia_hub.merging.planning import MergePlan, check_setting, parse_dtype, plan_merge
from taia_hub.merging.state import Scratch, check_target, locked
from taia_hub.merging.texts import write_texts
from taia_hub.merging.writing import write_plan
from taia_hub.repository.opening import OpenedUpdate, base_checkpoint, check_not_quantised, open_update
from taia_hub.repository.side_files import keep_edits
from taia_hub.repository.update_files import Repository
from taia_hub.switch.settings import InferenceModules, Setting
from taia_hub.weights.checkpoint import open_checkpoint

logger = logging.getLogger(__name__)

_VERSION = 1  # of what is written; another one makes unfinished merges begin anew


@dataclass(frozen=True, repr=False)
class MergeReport(Shown):
    """What was merged and written.

    Attributes:
        folder: Folder of the merged model.
        source: Hub id or folder of what was merged.
        base: Hub id or folder of the base model.
        setting: Label of the setting.
        modules: Role to the number of modules whose update was merged.
        written: Names of the shards that were written now.
        reused: Names of the shards that an interrupted run had finished.
        bytes: Size of all tensors.
        dtype: The dtype of most of the weights, as in `"bfloat16"`.
        sha256: Name of each shard to its sha256, as 64 hex digits.
        notes: What to know of it.
        is_new: Whether it was written just now; False where this very result lay there already.
    """

    folder: Path
    source: str
    base: str
    setting: str
    modules: Mapping[str, int]
    written: tuple[str, ...]
    reused: tuple[str, ...]
    bytes: int
    dtype: str
    sha256: Mapping[str, str]
    notes: tuple[str, ...] = ()
    is_new: bool = True

    def to_text(self) -> str:
        """Says in some lines what was done."""
        merged = ", ".join(f"{count} {role}" for role, count in self.modules.items())
        already = "" if self.is_new else "It is there already, made from the same. "
        lines = [
            f"{already}Merged under '{self.setting}': {merged} modules.",
            f"{amount(len(self.written) + len(self.reused), 'shard')}, {byte_size(self.bytes)} in {self.dtype}.",
        ]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def merge(
    source: str | os.PathLike[str] | Repository,
    out: str | os.PathLike[str],
    inference_modules: InferenceModules = "attention",
    *,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    repo_id: str | None = None,
    overwrite: bool = False,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> MergeReport:
    """Writes a plain checkpoint of the base architecture into which the acting updates are merged.

    No model is loaded: tensors that no update changes pass through in pieces of 256 KiB, and the others are computed
    one module at a time as PEFT's `merge` does, bit for bit those of `merge_and_unload`. What is held of a plain LoRA
    is one weight and its update in float32, so that the largest adapted tensor counts, such as embeddings or head;
    PEFT's other methods hold a few copies of it. Every file of the base has one of the same name here, and tokenizer,
    generation configuration and a card come along; a LoRA on a tied head is written untied. The folder is written whole
    or not at all; what an interrupted run had finished lies in a hidden folder beside it, and the same call continues
    there.

    Args:
        source: Hub id or folder of a TAIA repository, or of a PEFT adapter; or `Repository`.
        out: A new or empty folder; where this very result lies there, nothing is done.
        inference_modules: What acts, as `TAIAForCausalLM`'s setting; weights scale the update.
        revision: Revision of the source.
        dtype: What floating-point weights are converted to after merging; by default each keeps its own. Those that
            transformers keeps in float32 stay as they are.
        repo_id: What the card calls the model; by default the folder's name.
        overwrite: Whether another result of this package in `out` is replaced, when the new one is whole.
        token: Access token.
        trust_remote_code: Whether the base model's own code may run, to learn its structure and to save its tokenizer.
        progress: Called with how many megabytes are written.

    Returns:
        What was merged and written.

    Raises:
        SettingError: If the setting is not understood, cannot act on this update, or nothing acts.
        RepositoryError: If files are missing, damaged or out of reach, `out` is not empty or a link, another merge into
            it is running, or the disk is full.
        UnsupportedUpdateError: If the base is quantised, or the update cannot be merged.
        ConfigError: If `dtype` cannot hold a weight.
        UpdateMismatchError: If the update does not fit the base.

    Example:
        ```python
        report = merge("org/model-taia", "./model-attention", "attention")
        AutoModelForCausalLM.from_pretrained(report.folder)
        ```
    """
    target, wanted, access = Path(out).absolute(), parse_dtype(dtype), hub.HubAccess(token=token)
    if not (target / MADE).is_file():
        check_target(Made(target, {}))
    update = open_update(source, revision=revision, access=access, trust_remote_code=trust_remote_code)
    update.files.check_outside(target)
    check_not_quantised(update.base)
    check_setting(update, inference_modules)
    setting = update.switch.resolve(inference_modules).settings[0]
    asked = {"command": "merge", "name": repo_id or target.name}
    made = Made(target, {**asked, "from": _made_of(update, setting, wanted)}, {hub.CARD}, keep_edits)
    if facts := made.facts():
        return _there_already(target, facts)
    check_target(made, overwrite=overwrite)
    checkpoint = base_checkpoint(update, access, trust_remote_code=trust_remote_code)
    plan = plan_merge(update, checkpoint, setting, wanted, trust_remote_code=trust_remote_code)
    with locked(target):
        check_target(made, overwrite=overwrite)  # another merge may have finished meanwhile
        scratch = Scratch(target, _shards_from(update, setting, wanted))
        notes = list(plan.notes)
        if scratch.reused:
            notes.insert(0, f"Continued: {len(scratch.reused)} of {len(plan.shards)} shards were finished before.")
            logger.info(notes[0])
        _check_space(plan, scratch)
        write_plan(plan, update, checkpoint, scratch, _counter(plan, scratch, progress))
        notes += write_texts(
            scratch.files,
            plan,
            update,
            checkpoint,
            scratch.finished,
            name=repo_id or target.name,
            access=access,
            trust_remote_code=trust_remote_code,
        )
        open_checkpoint(scratch.files, what="merged model", trust_remote_code=trust_remote_code)
        report = MergeReport(
            folder=target,
            source=update.files.name,
            base=update.base.name,
            setting=plan.setting,
            modules=plan.modules,
            written=tuple(name for name in plan.shards if name not in scratch.reused),
            reused=scratch.reused,
            bytes=plan.bytes,
            dtype=str(plan.dtype).removeprefix("torch."),
            sha256=dict(sorted(scratch.finished.items())),
            notes=tuple(notes),
        )
        facts = {name: value for name, value in vars(report).items() if name not in ("folder", "written", "reused")}
        scratch.finish(made, overwrite=overwrite, **facts)
    return report


def _there_already(target: Path, facts: Mapping[str, Any]) -> MergeReport:
    """Says of a merge that is finished what it said then."""
    values = {**facts, "notes": tuple(facts["notes"]), "is_new": False}
    return MergeReport(folder=target, written=(), reused=tuple(facts["sha256"]), **values)


def _made_of(update: OpenedUpdate, setting: Setting, dtype: torch.dtype | None) -> str:
    """Names all that a merge depends on, before the base's weights are fetched."""
    files = update.files
    beside = hub.folder_print(files.root, hub.ANSWER_PARTS) if files.revision is None else {}  # what comes along
    return digest([_shards_from(update, setting, dtype), setting.whole_label, beside])


def _shards_from(update: OpenedUpdate, setting: Any, dtype: torch.dtype | None) -> str:
    """Names all that the shards depend on."""
    return digest(
        {
            "version": _VERSION,
            **update.print,
            "weights": [(site.path, weight) for (_, site, _), weight in update.weights(setting)],
            "dtype": str(dtype),
        }
    )


def _check_space(plan: MergePlan, scratch: Scratch) -> None:
    needed = sum(piece.size for name, pieces in plan.shards.items() for piece in pieces if name not in scratch.finished)
    more = " Shards that are finished stay and are used again."
    hub.check_space(scratch.folder, needed, "The merged model", more)


def _counter(plan: MergePlan, scratch: Scratch, progress: Progress | None) -> Callable[[int], None] | None:
    done = sum(piece.size for name in scratch.finished for piece in plan.shards.get(name, ()))
    return counted(progress, "merging, in MB", plan.bytes, done) if progress is not None else None
