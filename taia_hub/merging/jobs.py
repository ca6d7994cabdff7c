"""What is computed together: tensors of the base's files that become parameters, and the updates merged into them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor

from taia_hub.errors import UnsupportedUpdateError
from taia_hub.merging.module import merged_weights
from taia_hub.repository.opening import OpenedUpdate
from taia_hub.updates.dense.layers import SwitchedTensors
from taia_hub.updates.peft.strict import WRAPPERS
from taia_hub.updates.weightless import Entry
from taia_hub.weights.checkpoint import Checkpoint, Group, StoredTensor, by_number
from taia_hub.weights.shards import read_whole

_INNER = ".token_adapter"
_WAY_OUT = "Choose a mode in which it does not act, or use the update unmerged."


@dataclass(frozen=True)
class Change:
    """The update of one module that acts, with a weight other than 0.

    `entry` is as in `OpenedUpdate.layers`; `parameters` are names of tensors within the module to those in the whole
    model.
    """

    entry: Entry
    weight: float
    parameters: Mapping[str, str]

    @property
    def is_exchange(self) -> bool:
        """Whether tensors of the update replace the base's, before anything else changes them."""
        return isinstance(self.entry[2], SwitchedTensors)


@dataclass(eq=False)
class Job:
    """Tensors that are read, changed and written together.

    Attributes:
        groups: What is read, and which parameters it becomes.
        untied: Name in the new file of each parameter that had no tensor of its own, to the parameter.
    """

    groups: list[Group] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    untied: dict[str, str] = field(default_factory=dict)

    def parameters(self, update: OpenedUpdate, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """Computes the parameters after merging, by name; tied parameters each get one of their own.

        Raises:
            RepositoryError: If a file is gone or damaged.
            UnsupportedUpdateError: If PEFT cannot merge the update.
        """
        made: dict[str, Tensor] = {}
        for group in self.groups:
            made |= group.convert(checkpoint.model, [read_whole(stored) for stored, _ in group.sources])
        own = dict(made)
        names = {name for change in self.changes for name in change.parameters.values()}
        for alias in (names | set(self.untied.values())) - set(made):
            made[alias] = own[next(iter(checkpoint.groups[alias].shapes))].clone()
        del own
        for change in sorted(self.changes, key=lambda one: not one.is_exchange):  # what is exchanged is adapted then
            base = {within: made[name] for within, name in change.parameters.items()}
            merged = merged_weights(update, change.entry, base, change.weight, in_place=True)
            made |= {change.parameters[within]: tensor for within, tensor in merged.items()}
        return made

    def tensors(self, update: OpenedUpdate, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """Computes the tensors to write, by name, in the layout of the base's files; errors as of `parameters`."""
        made = self.parameters(update, checkpoint)
        found = {name: made[parameter] for name, parameter in self.untied.items()}
        for group in self.groups:
            found |= _stored_form(group, {name: made[name] for name in group.shapes}, checkpoint)
        return found


def find_changes(update: OpenedUpdate, checkpoint: Checkpoint, setting: Any) -> tuple[Change, ...]:
    """Finds which parameters of the base, with its head, an update changes under a setting.

    Two updates of one parameter are refused.
    """
    prefix = f"{checkpoint.model.base_model_prefix}." if update.files.features_only else ""
    changes, taken = [], dict[str, str]()
    names = {entry[0] for entry in update.layers}
    for entry, weight in update.weights(setting):
        if not weight or (entry[0].endswith(_INNER) and entry[0].removesuffix(_INNER) in names):
            continue  # what a wrapper holds is merged with it
        _, site, layer = entry
        path = prefix + WRAPPERS.sub("", entry[0])
        found = {name: f"{path}.{name}" for name in _own_names(layer, path, checkpoint)}
        change = Change(entry, weight, found)
        for name in () if change.is_exchange else found.values():
            if name in taken:
                raise UnsupportedUpdateError(
                    f"Two updates act on '{name}', by {taken[name]} and {site.method}, which cannot be merged in one "
                    "order.",
                    _WAY_OUT,
                )
            taken[name] = site.method
        changes.append(change)
    return tuple(changes)


def gather(changes: Sequence[Change], checkpoint: Checkpoint) -> tuple[Job, ...]:
    """Puts changes together whose parameters are made of the same tensors; the jobs come in their order."""
    by_group: dict[int, Job] = {}
    for change in changes:
        groups = {id(group): group for group in (checkpoint.groups[name] for name in change.parameters.values())}
        found = list({id(by_group[key]): by_group[key] for key in groups if key in by_group}.values())
        job = found[0] if found else Job()
        for other in found[1:]:
            job.groups += other.groups
            job.changes += other.changes
        job.groups += [group for key, group in groups.items() if key not in by_group]
        job.changes.append(change)
        by_group.update((id(group), job) for group in job.groups)
    return tuple({id(job): job for job in by_group.values()}.values())


def _own_names(layer: Any, path: str, checkpoint: Checkpoint) -> list[str]:
    """Returns the names within a module of the base's tensors that its update may change."""
    if isinstance(layer, ParamWrapper):
        return [layer.parameter_name]
    if isinstance(layer, SwitchedTensors):
        return list(layer._taia_tuned)
    inside = [name.removeprefix(f"{path}.") for name in checkpoint.groups if name.startswith(f"{path}.")]
    return inside if isinstance(layer, ModulesToSaveWrapper) else [name for name in inside if "." not in name]


def _stored_form(group: Group, made: Mapping[str, Tensor], checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Turns parameters back into the tensors of the files: experts that transformers joins are taken apart again."""
    if group.converter is None:
        return {group.sources[0][0].name: next(iter(made.values()))}
    first = next(iter(group.shapes))
    try:
        reverse: Any = group.converter.reverse_transform()
        for name, tensor in made.items():
            pattern = next(one for one in reverse.source_patterns if _matches(one, name))
            reverse.collected_tensors.setdefault(pattern, []).append(tensor)
        apart = reverse.convert(_wild(first, reverse), model=checkpoint.model, config=checkpoint.config)
        found = _paired(group, apart)
        again = group.convert(checkpoint.model, [found[stored.name] for stored, _ in group.sources])
    except (ValueError, RuntimeError, NotImplementedError, AttributeError, StopIteration, KeyError) as error:
        raise _not_reversible(first, error) from error
    if not all(torch.equal(again[name].view(torch.uint8), made[name].view(torch.uint8)) for name in made):
        raise _not_reversible(first, "what comes out is not what went in")
    return found


def _paired(group: Group, apart: Mapping[str, Any]) -> dict[str, Tensor]:
    """Gives each stored tensor of a group its new value: the order of the experts is that of their numbers."""
    found: dict[str, Tensor] = {}
    for pattern in dict.fromkeys(pattern for _, pattern in group.sources):
        stored = [one for one, by in group.sources if by == pattern]
        values = [
            tensor
            for name, value in sorted(apart.items(), key=lambda item: by_number(item[0]))
            if _matches(pattern, name)
            for tensor in (value if isinstance(value, (list, tuple)) else [value])
        ]
        for one, tensor in zip(stored, values, strict=True):
            _check_shape(one, tensor)
            found[one.name] = tensor
    return found


def _check_shape(stored: StoredTensor, tensor: Tensor) -> None:
    if tuple(tensor.shape) != stored.shape:
        raise ValueError(f"'{stored.name}' would get the shape {tuple(tensor.shape)} instead of {stored.shape}")


def _matches(pattern: str, name: str) -> bool:
    return re.search(rf"{pattern.replace('*.', r'.*[.]')}(?!\w)", name) is not None


def _wild(name: str, reverse: Any) -> str:
    """Names the first of the tensors that a parameter is taken apart into, which the converter expands."""
    renamed: str = reverse.rename_source_key(name)[0]
    return renamed


def _not_reversible(name: str, why: object) -> UnsupportedUpdateError:
    return UnsupportedUpdateError(
        f"'{name}' is stored in a layout that transformers changes on loading and that cannot be had back: {why}.",
        "Load the base model and save it again with `save_pretrained`, and name that folder as the base; or choose a "
        "mode in which its update does not act.",
    )
