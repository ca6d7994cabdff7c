"""From two whole checkpoints to a dense update: what differs is stored as the fine-tune has it."""

from __future__ import annotations

import fnmatch
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from taia_hub import hub
from taia_hub.common.progress import Progress, counted
from taia_hub.errors import RepositoryError, UpdateMismatchError
from taia_hub.hub.layout import DENSE
from taia_hub.roles import ROLES
from taia_hub.roles.sublayers import find_sublayers
from taia_hub.updates.dense.config import VERSION, dense_groups, read_dense_config
from taia_hub.weights.checkpoint import Checkpoint, Group, StoredTensor, open_checkpoint
from taia_hub.weights.shards import SHARD_BYTES, Shard, same_values, write_shards

STEM = "dense"

# Fields of a configuration that change neither the names of the weights nor the numbers that inference gives.
_HARMLESS = (
    "_*", "architectures", "attn_implementation", "auto_map", "dtype", "torch_dtype", "transformers_version",
    "*_token_id", "*_token_ids", "vocab_size", "tie_word_embeddings", "use_cache", "*dropout*", "*_pdrop", "*drop_rate",
    "initializer_*", "init_std", "id2label", "label2id", "num_labels", "problem_type", "task_specific_params",
    "output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "router_aux_loss_coef",
    "router_z_loss_coef", "aux_loss_alpha", "pretraining_tp", "max_position_embeddings", "chunk_size_feed_forward",
    "is_decoder", "is_encoder_decoder", "name_or_path", "gradient_checkpointing",
)  # fmt: skip


@dataclass(frozen=True)
class DensePart:
    """Number of tensors of the fine-tune, of their elements, and of their bytes in its files."""

    tensors: int = 0
    parameters: int = 0
    bytes: int = 0

    def plus(self, stored: StoredTensor) -> DensePart:
        """Returns the part with one more tensor."""
        count = stored.size // stored.dtype.itemsize
        return DensePart(self.tensors + 1, self.parameters + count, self.bytes + stored.size)


@dataclass(frozen=True)
class DenseRole:
    """What full fine-tuning did to one role; tensors that can only be loaded with changed ones count as changed."""

    changed: DensePart = DensePart()
    unchanged: DensePart = DensePart()


@dataclass(frozen=True)
class DenseReport:
    """What full fine-tuning changed by role, and the shards that were written.

    Attributes:
        notes: What to know of the two checkpoints: other vocabularies, dtypes, names or tying.
        unplaced: Paths of modules whose role could not be told; they count as `other`.
    """

    roles: Mapping[str, DenseRole]
    shards: tuple[str, ...]
    notes: tuple[str, ...] = ()
    unplaced: tuple[str, ...] = ()

    @property
    def changed(self) -> DensePart:
        """All tensors that were written."""
        return _total(role.changed for role in self.roles.values())

    @property
    def unchanged(self) -> DensePart:
        """All tensors that are the base's."""
        return _total(role.unchanged for role in self.roles.values())

    def to_text(self) -> str:
        """Says in some lines what was changed."""
        lines = ["Changed by the fine-tune, and stored:"]
        for role, one in self.roles.items():
            total = one.changed.tensors + one.unchanged.tensors
            lines.append(
                f"  {role}: {one.changed.tensors} of {total} tensors, {one.changed.parameters:,} parameters, "
                f"{one.changed.bytes / 1e6:,.1f} MB"
            )
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class Difference:
    """What differs between a base model and its fine-tune, by the names of parameters.

    Attributes:
        aliases: Name of each changed parameter that has no tensor of its own to the one that it is tied to.
        resized: Name of each parameter with other rows to the numbers of rows before and after.
    """

    base: Checkpoint
    tuned: Checkpoint
    changed: Mapping[str, Group]
    aliases: Mapping[str, str]
    resized: Mapping[str, tuple[int, int]]
    notes: tuple[str, ...]


Refine = Callable[[Difference, Path], Difference]
"""Makes a difference of another one; tensors that it makes lie in the folder."""


def write_dense(
    base_folder: Path | str,
    tuned_folder: Path | str,
    out: Path | str,
    *,
    trust_remote_code: bool = False,
    shard_bytes: int = SHARD_BYTES,
    refine: Refine | None = None,
    progress: Progress | None = None,
) -> DenseReport:
    """Writes the tensors that full fine-tuning changed, exactly as the fine-tune has them.

    No tensor is held in memory: all are compared and copied in pieces of 256 KiB. The folder is written whole or not at
    all; no shard passes `shard_bytes`, unless one tensor is larger. With `refine` other tensors are written, which it
    makes of these.

    Raises:
        UpdateMismatchError: If the models are not of one family, or nothing was changed.
        UnsupportedUpdateError: If weights are quantised.
    """
    out = Path(out).absolute()
    if out.is_dir() and any(next(out.glob(pattern), None) for pattern in DENSE.files):
        raise RepositoryError(f"'{out}' holds a full fine-tune already.", "Give a new folder.")
    difference = find_difference(base_folder, tuned_folder, trust_remote_code=trust_remote_code, progress=progress)
    placed = find_sublayers(difference.base.model)
    size = sum(one.size for one in _changed_tensors(difference))
    hub.check_space(out, size if refine is None else 2 * size, "What differs from the base")
    with hub.written_whole(out) as scratch, tempfile.TemporaryDirectory(dir=scratch) as refined:
        if refine is not None:
            difference = refine(difference, Path(refined))
        report = _report(difference, placed.roles, placed.unplaced)
        stored = _changed_tensors(difference)
        advance = counted(progress, "writing, in MB", sum(one.size for one in stored)) if progress else None
        shards = write_shards(scratch, stored, stem=STEM, shard_bytes=shard_bytes, advance=advance)
        _write_texts(scratch, difference, report, shards)
    return DenseReport(report.roles, tuple(shard.name for shard in shards), report.notes, report.unplaced)


def _changed_tensors(difference: Difference) -> list[StoredTensor]:
    """Lists the tensors in the files that differ, each once."""
    found = {one.name: one for group in difference.changed.values() for one, _ in group.sources}
    return list(found.values())


def find_difference(
    base_folder: Path | str,
    tuned_folder: Path | str,
    *,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Difference:
    """Finds which parameters full fine-tuning changed; tensors are read in pieces, and only until they differ.

    Errors as of `write_dense`.
    """
    base = open_checkpoint(Path(base_folder), what="base model", trust_remote_code=trust_remote_code)
    tuned = open_checkpoint(Path(tuned_folder), what="fine-tune", trust_remote_code=trust_remote_code)
    resized = _check_family(base, tuned)
    differ: dict[tuple[int, int], bool] = {}
    changed: dict[str, Group] = {}
    for done, (name, group) in enumerate(tuned.groups.items(), 1):
        was = base.groups[name]
        key = id(was), id(group)
        if key not in differ:
            differ[key] = _differ(was, group)
        if differ[key]:
            changed[name] = group
        if progress is not None:
            progress("comparing", done, len(tuned.groups))
    if not changed:
        raise UpdateMismatchError(
            f"'{tuned.folder}' has the same weights as the base model '{base.folder}': nothing was tuned.",
            "Check that the fine-tune's own checkpoint was named.",
        )
    aliases = {name: next(iter(group.shapes)) for name, group in changed.items() if name not in group.shapes}
    return Difference(base, tuned, changed, aliases, resized, tuple(_notes(base, tuned, changed, resized)))


def open_difference(
    base_folder: Path | str,
    tuned_folder: Path | str,
    *,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Difference:
    """As `find_difference`, where the second folder may also be one that `write_dense` wrote.

    Of such a one, only the changed tensors are in `Difference.tuned`.
    """
    folder = Path(tuned_folder)
    if not (folder / DENSE.config).is_file():
        return find_difference(base_folder, folder, trust_remote_code=trust_remote_code, progress=progress)
    base = open_checkpoint(Path(base_folder), what="base model", trust_remote_code=trust_remote_code)
    config = read_dense_config(folder)
    groups = dense_groups(base.model, folder, config)
    resized = {name: (int(before), int(after)) for name, (before, after) in config["resized"].items()}
    tuned = Checkpoint(folder, base.model, groups, ())
    return Difference(base, tuned, groups, config["aliases"], resized, tuple(config.get("notes", ())))


def _differ(was: Group, now: Group) -> bool:
    if was.shapes.keys() != now.shapes.keys() and len(was.sources) + len(now.sources) > 2:
        return True
    if was.patterns != now.patterns:
        return True  # joined in another way: compared only after a conversion, which takes memory
    return not all(same_values(one, other) for (one, _), (other, _) in zip(was.sources, now.sources, strict=True))


def _check_family(base: Checkpoint, tuned: Checkpoint) -> dict[str, tuple[int, int]]:
    """Refuses models of two families; returns the parameters with other rows, as `Difference.resized`."""
    hint = "Name the model that the fine-tune was made from."
    kinds = [f"{type(one.model).__name__} ({one.config.model_type})" for one in (base, tuned)]
    if kinds[0] != kinds[1]:
        raise UpdateMismatchError(f"The base model is a {kinds[0]} and the fine-tune a {kinds[1]}.", hint)
    shapes = [{name: tuple(tensor.shape) for name, tensor in one.model.state_dict().items()} for one in (base, tuned)]
    for first, second, who, other in ((*shapes, "base model", "fine-tune"), (*shapes[::-1], "fine-tune", "base model")):
        if extra := [name for name in first if name not in second]:
            raise UpdateMismatchError(
                f"The {who} has {len(extra)} tensors that the {other} lacks, first '{extra[0]}': they are not of one "
                "family.",
                hint,
            )
    rows = _vocabulary(base.model), _vocabulary(tuned.model)
    resized = {}
    for name, shape in shapes[0].items():
        other_shape = shapes[1][name]
        if shape == other_shape:
            continue
        if (shape[:1], other_shape[:1]) != ((rows[0],), (rows[1],)) or shape[1:] != other_shape[1:]:
            raise UpdateMismatchError(
                f"'{name}' has shape {shape} in the base model and {other_shape} in the fine-tune: they are not of one "
                "family.",
                hint,
            )
        resized[name] = rows
    if fields := _other_fields(base.config, tuned.config):
        raise UpdateMismatchError(
            f"The configurations say different things of the computation: {'; '.join(fields[:5])}. The base model with "
            "the fine-tune's weights would be neither of the two.",
            f"{hint} If these fields do not matter, make them equal in a copy of one config.json.",
        )
    return resized


def _vocabulary(model: PreTrainedModel) -> int:
    weight: Any = getattr(model.get_input_embeddings(), "weight", None)
    return -1 if weight is None else int(weight.shape[0])


def _other_fields(base: Any, tuned: Any) -> list[str]:
    """Says which fields that a configuration's class knows differ, those apart that do not change the numbers."""
    try:
        known = set(type(base)().to_dict())
    except (TypeError, ValueError, AttributeError):  # custom classes may not build without arguments
        known = {*base.to_dict(), *tuned.to_dict()}
    return _diff(base.to_dict(), tuned.to_dict(), known)


def _diff(one: Mapping[str, Any], other: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    found = []
    for name in sorted(known):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in _HARMLESS):
            continue
        a, b = one.get(name), other.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += [f"{name}.{inner}" for inner in _diff(a, b, {*map(str, a), *map(str, b)})]
        elif a != b:
            found.append(f"{name} is {a!r} and {b!r}")
    return found


def _notes(
    base: Checkpoint, tuned: Checkpoint, changed: Mapping[str, Group], resized: Mapping[str, tuple[int, int]]
) -> Iterator[str]:
    """Says what to know of the two checkpoints."""
    for before, after in list(resized.values())[:1]:
        yield (
            f"The vocabulary has {before} rows in the base model and {after} in the fine-tune: the logits' width "
            "depends on whether the head's update acts, and such tensors take no weight but 0 and 1."
        )
    kinds = [sorted({one.kind for group in it.groups.values() for one, _ in group.sources}) for it in (base, tuned)]
    if kinds[0] != kinds[1]:
        yield (
            f"The base model is in {', '.join(kinds[0])} and the fine-tune in {', '.join(kinds[1])}: tuned tensors are "
            "stored as they are, and take the dtype of the loaded base model when they are used."
        )
    tied = [{name for name, group in it.groups.items() if name not in group.shapes} for it in (base, tuned)]
    own = tuned.groups.keys() - tied[0] - tied[1]
    if renamed := [
        name for name in tuned.groups if name in own and tuned.groups[name].names != base.groups[name].names
    ]:
        yield (
            f"{len(renamed)} tensors have other names in the fine-tune's files than in the base model's, first "
            f"'{tuned.groups[renamed[0]].names[0]}'."
        )
    if only := sorted(tied[0] - tied[1]):
        yield f"'{only[0]}' is tied in the base model and a tensor of its own in the fine-tune."
    if only := sorted(tied[1] - tied[0]):
        yield f"'{only[0]}' is a tensor of its own in the base model and tied in the fine-tune."
    if joined := [name for name, group in changed.items() if group.patterns != base.groups[name].patterns]:
        yield (
            f"{len(joined)} parameters, first '{joined[0]}', are stored in another layout than the base model's and "
            "are kept without a comparison."
        )
    for one, who in ((base, "base model"), (tuned, "fine-tune")):
        if one.unused:
            yield (
                f"{len(one.unused)} tensors of the {who}, first '{one.unused[0]}', belong to no parameter of "
                f"{type(one.model).__name__} and are left out, as transformers does."
            )


def _report(difference: Difference, roles: Mapping[str, str], unplaced: tuple[str, ...]) -> DenseReport:
    parts = {role: [DensePart(), DensePart()] for role in ROLES}
    counted: set[int] = set()
    for name, group in difference.tuned.groups.items():
        if id(group) in counted:
            continue
        counted.add(id(group))
        role = roles.get(name.rpartition(".")[0], "other")
        kept = any(difference.changed.get(one) is group for one in (name, *difference.aliases))
        for stored, _ in group.sources:
            parts[role][not kept] = parts[role][not kept].plus(stored)
    return DenseReport({role: DenseRole(*both) for role, both in parts.items()}, (), difference.notes, unplaced)


def _write_texts(folder: Path, difference: Difference, report: DenseReport, shards: tuple[Shard, ...]) -> None:
    stored = [one for group in difference.changed.values() for one, _ in group.sources]
    config = {
        "version": VERSION,
        "method": "full",
        "model_type": difference.tuned.config.model_type,
        "architecture": type(difference.tuned.model).__name__,
        "vocabulary": _vocabulary(difference.tuned.model),
        "dtypes": sorted({one.kind for one in stored}),
        "aliases": dict(difference.aliases),
        "resized": {name: list(rows) for name, rows in difference.resized.items() if name in difference.changed},
        "roles": {role: asdict(part) for role, part in report.roles.items()},
        "notes": list(difference.notes),
    }
    weight_map = {name: shard.name for shard in shards for name in shard.tensors}
    index = {
        "metadata": {
            "total_size": sum({one.name: one.size for one in stored}.values()),
            "sha256": {shard.name: shard.sha256 for shard in shards},
        },
        "weight_map": dict(sorted(weight_map.items())),
    }
    for name, value in ((DENSE.config, config), (DENSE.weights, index)):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _total(parts: Iterable[DensePart]) -> DensePart:
    total = DensePart()
    for part in parts:
        total = DensePart(total.tensors + part.tensors, total.parameters + part.parameters, total.bytes + part.bytes)
    return total
