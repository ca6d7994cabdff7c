"""What the merged checkpoint holds: a shard for each shard of the base, and in it what is copied or computed."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from taia_hub.errors import ConfigError, SettingError, UnsupportedUpdateError
from taia_hub.merging.jobs import Change, Job, find_changes, gather
from taia_hub.merging.module import check_mergeable
from taia_hub.repository.opening import OpenedUpdate
from taia_hub.roles import ROLES
from taia_hub.updates.molora.layers import MoLoraLinear
from taia_hub.weights.checkpoint import DTYPES, Checkpoint, StoredTensor, read_headers
from taia_hub.weights.skeleton import build


@dataclass(frozen=True)
class Piece:
    """A tensor of the merged checkpoint, with its name, dtype and shape there.

    Attributes:
        source: The base's tensor in whose place it stands, or beside which it is written.
        job: What computes it; None where the base's is copied.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    source: StoredTensor
    job: Job | None = None

    @property
    def size(self) -> int:
        """Number of its bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class MergePlan:
    """What is to be written.

    Attributes:
        shards: Name of each file to its tensors, in the order that they are written.
        modules: Role to the number of modules whose update is merged.
        untied: Whether embeddings and head are tied in the base and no longer here.
        vocabulary: The new number of rows of embeddings and head, where it is another one.
        dtype: The dtype of most of the weights.
    """

    setting: str
    shards: Mapping[str, tuple[Piece, ...]]
    modules: Mapping[str, int]
    untied: bool
    vocabulary: int | None
    dtype: torch.dtype
    notes: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return sum(piece.size for pieces in self.shards.values() for piece in pieces)


def parse_dtype(value: str | torch.dtype | None) -> torch.dtype | None:
    """Reads the dtype of a merged checkpoint, from its name or itself; None is that of the base."""
    if value is None or value == "auto":
        return None
    named = {str(one).removeprefix("torch."): one for one in DTYPES.values()}
    dtype = named.get(value) if isinstance(value, str) else value
    if dtype not in named.values():
        raise ConfigError(f"The dtype {value!r} is no dtype of weights.", f"Choose {', '.join(named)}.")
    return dtype


def check_setting(update: OpenedUpdate, setting: Any) -> str:
    """Refuses a setting that cannot be merged or merges nothing, before any weight is fetched; returns its label."""
    if isinstance(setting, (list, tuple)) and setting and not isinstance(setting[0], (list, tuple)):
        raise SettingError("A list means one setting a row of a batch.", "Merge one mode at a time.")
    label = update.switch.resolve(setting).settings[0].label
    check_mergeable(update)
    acting = [entry for entry, weight in update.weights(setting) if weight]
    if not acting:
        raise SettingError(
            f"Nothing acts under '{label}': the merged model would be the base model '{update.base.name}' itself.",
            "Use the base model, or choose another mode.",
        )
    if experts := [site for _, site, layer in acting if isinstance(layer, MoLoraLinear)]:
        raise UnsupportedUpdateError(
            f"The experts of {len(experts)} modules act under '{label}', first '{experts[0].path}': a router chooses "
            "them for each token, so that no single weight stands for them.",
            "Merge mode 'attention', or serve the mixture with this package.",
        )
    return label


def plan_merge(
    update: OpenedUpdate,
    checkpoint: Checkpoint,
    setting: Any,
    dtype: torch.dtype | None = None,
    *,
    trust_remote_code: bool = False,
) -> MergePlan:
    """Plans the merged checkpoint; no weight is read, unless two tied tensors both change.

    Floating-point weights become `dtype`, or stay each as it is where it is None.
    """
    label = check_setting(update, setting)
    changes = find_changes(update, checkpoint, setting)
    jobs = gather(changes, checkpoint)
    untied = _untie(update, checkpoint, changes, jobs, trust_remote_code)
    shapes, vocabulary = _resized(update, checkpoint, changes)
    pieces = _pieces(checkpoint, jobs, shapes, dtype)
    shards: dict[str, list[Piece]] = {}
    for piece in pieces:
        shards.setdefault(piece.source.file.name, []).append(piece)
    modules = Counter(change.entry[1].role for change in changes)
    held: Counter[torch.dtype] = Counter()
    for piece in pieces:
        if piece.dtype.is_floating_point:
            held[piece.dtype] += piece.size
    notes = []
    if untied:
        notes.append(
            f"{' and '.join(untied)} share one tensor in the base model and differ now: they are written as two, and "
            "config.json says `tie_word_embeddings: false`."
        )
    if vocabulary:
        notes.append(f"The vocabulary has {vocabulary} rows, as in the update.")
    if checkpoint.unused:
        notes.append(
            f"{len(checkpoint.unused)} tensors of the base model, first '{checkpoint.unused[0]}', belong to no "
            "parameter and are copied as they are."
        )
    return MergePlan(
        setting=label,
        shards={name: _ordered(found) for name, found in sorted(shards.items())},
        modules={role: modules[role] for role in ROLES if modules[role]},
        untied=bool(untied),
        vocabulary=vocabulary,
        dtype=max(held, key=lambda one: held[one], default=torch.float32),
        notes=tuple(notes),
    )


def _pieces(
    checkpoint: Checkpoint, jobs: Sequence[Job], shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype | None
) -> list[Piece]:
    by_stored = {stored.name: job for job in jobs for group in job.groups for stored, _ in group.sources}
    names = {stored.name: name for name, group in checkpoint.groups.items() for stored, _ in group.sources}
    kept = [key.replace("*", ".*") for key in checkpoint.model._get_dtype_plan(dtype)] if dtype else []

    def target(stored: StoredTensor) -> torch.dtype:
        exact = any(re.search(key, names.get(stored.name, stored.name)) for key in kept)
        floating = stored.kind in DTYPES
        return dtype if dtype is not None and floating and not exact else stored.dtype

    pieces = []
    for stored in read_headers(checkpoint.folder, "base model").values():
        job = by_stored.get(stored.name)
        shape = shapes.get(names.get(stored.name, ""), stored.shape) if job else stored.shape
        pieces.append(Piece(stored.name, target(stored), shape, stored, job))
    for job in jobs:
        for name, parameter in job.untied.items():
            beside = checkpoint.groups[parameter].sources[0][0]
            pieces.append(Piece(name, target(beside), shapes.get(parameter, beside.shape), beside, job))
    return pieces


def _ordered(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Puts the widest dtypes first, as the file wants it, and what is computed together side by side."""
    first: dict[int, int] = {}
    for piece in pieces:
        if piece.job is not None:
            first[id(piece.job)] = min(piece.source.start, first.get(id(piece.job), piece.source.start))
    return tuple(
        sorted(
            pieces,
            key=lambda one: (
                -one.dtype.itemsize,
                one.source.start if one.job is None else first[id(one.job)],
                one.source.start,
                one.name,
            ),
        )
    )


def _untie(
    update: OpenedUpdate,
    checkpoint: Checkpoint,
    changes: Sequence[Change],
    jobs: Sequence[Job],
    trust_remote_code: bool,
) -> tuple[str, ...]:
    """Finds tied parameters that merging makes differ, and has each written; returns their names."""
    changed = {name: change for change in changes for name in change.parameters.values()}
    job_of = {name: job for job in jobs for change in job.changes for name in change.parameters.values()}
    tied: Mapping[str, str] = getattr(checkpoint.model, "all_tied_weights_keys", None) or {}
    found = []
    for target, source in tied.items():
        acting = [name for name in (target, source) if name in changed]
        if not acting or target not in checkpoint.groups or source not in checkpoint.groups:
            continue
        if len(acting) == 2 and _equal(update, checkpoint, job_of, target, source):
            continue
        found += [name for name in (source, target) if name not in found]
        for name in (target, source):
            if name not in checkpoint.groups[name].shapes:
                job_of[acting[0]].untied[name] = name
    if found:
        _check_untied(checkpoint, found, trust_remote_code)
    return tuple(found)


def _equal(update: OpenedUpdate, checkpoint: Checkpoint, job_of: Mapping[str, Job], target: str, source: str) -> bool:
    made = job_of[source].parameters(update, checkpoint)
    if job_of[target] is not job_of[source]:
        made |= job_of[target].parameters(update, checkpoint)
    return torch.equal(made[target], made[source])


def _check_untied(checkpoint: Checkpoint, names: Sequence[str], trust_remote_code: bool) -> None:
    config = copy.deepcopy(checkpoint.config)
    for one in {id(one): one for one in (config, config.get_text_config())}.values():
        one.tie_word_embeddings = False
    model = build(config, trust_remote_code)
    still = set(names) & set(getattr(model, "all_tied_weights_keys", None) or {})
    if still:
        raise UnsupportedUpdateError(
            f"The update changes only one of the tied tensors {' and '.join(names)}, and {type(model).__name__} always "
            "ties them, so that no checkpoint of it can hold both.",
            "Choose a mode in which it does not act, or use the update unmerged.",
        )


def _resized(
    update: OpenedUpdate, checkpoint: Checkpoint, changes: Sequence[Change]
) -> tuple[dict[str, tuple[int, ...]], int | None]:
    """Returns the shapes of tensors that merging gives another number of rows, and that number."""
    acting = {name for change in changes for name in change.parameters.values()}
    resized = update.resized
    if not acting & resized.keys():
        return {}, None
    if missing := resized.keys() - acting:
        raise UnsupportedUpdateError(
            f"The update has another vocabulary, and {min(resized.keys() & acting)} acts without {min(missing)}: the "
            "merged model would have two sizes of vocabulary.",
            "Let embeddings and head act together (role 'other'), or neither.",
        )
    before = {name: next(iter(checkpoint.groups[name].shapes.values())) for name in resized}
    return {name: (rows, *before[name][1:]) for name, rows in resized.items()}, next(iter(resized.values()))
