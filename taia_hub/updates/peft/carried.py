"""What an adapter's file holds of the base's embeddings and head besides what PEFT trains.

PEFT writes them along where they are adapted or the vocabulary was resized, and on loading puts them in place of the
base's own. Here the base keeps its own: copies of them are passed by, and tensors that differ, as those of another
vocabulary always do, are an update of their module, exchanged as those of a full fine-tune are.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from taia_hub.errors import UnsupportedUpdateError, UpdateMismatchError
from taia_hub.hub.layout import PREFIX
from taia_hub.updates.dense.layers import TunedFiles, TunedTensor, check_tokens, refusal
from taia_hub.updates.peft.strict import few
from taia_hub.weights.checkpoint import Group, StoredTensor

logger = logging.getLogger(__name__)

ReadBase = Callable[[str], Tensor | None]
"""Gives a weight of the base by its name, for a model that holds none; None where it is out of reach."""

ANOTHER_VOCABULARY = "the update has another vocabulary than the base"
_TRAINED_TOKENS = "token_adapter.trainable_tokens_delta"
_WRITTEN_TWICE = ("original_module.", "modules_to_save.")


@dataclass(frozen=True)
class Carried:
    """What a file holds of the base's embeddings and head.

    Attributes:
        modules: Path to module of the base, of those that the file's tensors belong to and what is tied to them.
        twice: Names of tensors that nothing reads: PEFT writes a module that it saves whole up to three times, and
            trained tokens of a tied head again.
        tensors: Name in the file to the base's parameter in whose place PEFT would put it.
        resized: Path of each module whose number of rows is not the base's to that number.
        saved: Paths of modules that PEFT holds whole, beside the base's own.
    """

    modules: Mapping[str, nn.Module]
    twice: frozenset[str]
    tensors: Mapping[str, str]
    resized: Mapping[str, int]
    saved: frozenset[str]

    @property
    def resized_parameters(self) -> dict[str, int]:
        """Name of each parameter with another number of rows than in the base, to that number."""
        return {
            f"{path}.{name}": rows
            for path, rows in self.resized.items()
            for name, one in self.modules[path].named_parameters()
            if len(one) == len(self.modules[path].get_parameter("weight"))
        }

    def exchanged_by(self, keys: Iterable[str]) -> set[str]:
        """Returns the paths of the modules that tensors of the file act on: their own, and what is tied to them."""
        acting = {id(_parameter(self, self.tensors[key])) for key in keys if key in self.tensors}
        others = ((path, one) for path, one in self.modules.items() if path not in self.saved)
        return {path for path, one in others if acting & {id(tensor) for tensor in one.parameters()}}

    def is_idle(self, key: str, stored: StoredTensor, read: ReadBase) -> bool:
        """Tells of a base without weights whether nothing reads a tensor in the file, or it is a copy of the base's."""
        if key in self.twice or (name := self.tensors.get(key)) is None:
            return key in self.twice
        base = read(name) if stored.shape == tuple(_parameter(self, name).shape) else None
        return base is not None and torch.equal(stored.read().to(base.dtype), base)


@dataclass(frozen=True)
class TunedModule:
    """A module of the base whose tensors are exchanged for those in the file.

    Attributes:
        tensors: Attribute name to the tensor.
        keys: Name in the file to each tensor that it holds under this module's name.
        resized: Whether they have another number of rows.
    """

    path: str
    module: nn.Module
    tensors: Mapping[str, TunedTensor]
    keys: Mapping[str, StoredTensor]
    resized: bool

    @property
    def parameters(self) -> int:
        """Number of the tensors' elements."""
        return sum(math.prod(one.shape) for one in self.keys.values())


def vocabulary_modules(model: nn.Module) -> dict[str, Any]:
    """Returns path to module of a model's embeddings and head, as far as their weight is a plain matrix."""
    found = (getattr(model, f"get_{name}_embeddings", lambda: None)() for name in ("input", "output"))
    kept = {id(one) for one in found if isinstance(getattr(one, "weight", None), Tensor)}
    modules = {path: one for path, one in model.named_modules(remove_duplicate=False) if id(one) in kept}
    return {path: one for path, one in modules.items() if one.weight.is_floating_point() and one.weight.dim() == 2}


def find_carried(model: nn.Module, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> Carried:
    """Finds by names and shapes what a file holds of embeddings and head; `model` is the base without the adapter.

    Raises:
        UpdateMismatchError: If the adapter is of another vocabulary, and the file lacks rows of it.
    """
    modules = vocabulary_modules(model)
    saved = tuple(one for one in getattr(config, "modules_to_save", None) or () if isinstance(one, str))
    twice, concerned, tensors = set[str](), set[str](), dict[str, str]()
    rows, wanted = dict[str, int](), dict[str, int]()
    tied = {path: [one for one, it in modules.items() if it.weight is modules[path].weight] for path in modules}
    for path, module in modules.items():
        own, start = dict(module.named_parameters()), f"{PREFIX}{path}."
        for key, shape in shapes.items():
            if not key.startswith(start):
                continue
            rest, is_saved = key.removeprefix(start), path.endswith(saved)
            name = rest if is_saved else rest.removeprefix("token_adapter.").removeprefix("base_layer.")
            is_follower = rest == _TRAINED_TOKENS and not isinstance(module, nn.Embedding) and len(tied[path]) > 1
            if is_follower or (is_saved and rest.startswith(_WRITTEN_TWICE)):
                twice.add(key)
                concerned.add(path)
            elif name in own and shape[1:] == own[name].shape[1:]:
                rows |= {path: shape[0]} if name == "weight" else {}
                tensors |= {} if is_saved else {key: f"{path}.{name}"}
            elif rest.startswith("lora_embedding_A") and len(shape) == 2:
                wanted[path] = shape[1]
            elif rest.startswith("lora_B.") and shape and not isinstance(module, nn.Embedding):
                wanted[path] = shape[0]
    resized = {path: count for path, count in rows.items() if count != len(modules[path].weight)}
    for path in {name.rpartition(".")[0] for name in tensors.values()}:  # what is tied to it is exchanged with it
        concerned.update(tied[path])
        if path in resized:
            resized |= {one: resized[path] for one in tied[path] if not one.endswith(saved)}
    _check_rows(model, modules, {**wanted, **_trained_tokens(config, modules), **resized}, resized)
    concerned.update(resized)
    whole = frozenset(path for path in concerned if path.endswith(saved))
    return Carried(
        {path: modules[path] for path in modules if path in concerned}, frozenset(twice), tensors, resized, whole
    )


def _trained_tokens(config: Any, modules: Mapping[str, Any]) -> dict[str, int]:
    """Returns path of each embedding to the rows that single trained tokens need, where the base has fewer."""
    indices = getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None) or ()
    groups = indices.values() if isinstance(indices, Mapping) else [indices]
    needed = 1 + max((one for group in groups for one in group if type(one) is int), default=-1)
    embeddings = (path for path, one in modules.items() if isinstance(one, nn.Embedding))
    return {path: needed for path in embeddings if needed > len(modules[path].weight)}


def _check_rows(
    model: nn.Module, modules: Mapping[str, Any], wanted: Mapping[str, int], resized: Mapping[str, int]
) -> None:
    """Refuses an adapter of another vocabulary whose file does not bring all rows of embeddings and head."""
    if not (other := [count for path, count in wanted.items() if count != len(modules[path].weight)]):
        return
    count = max(other)
    if missing := [path for path in modules if resized.get(path) != count]:
        name = getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__
        raise UpdateMismatchError(
            f"The adapter is of another vocabulary than the base '{name}' (vocabulary {count} rows, base "
            f"{len(modules[missing[0]].weight)}), and its file lacks the rows of {' and '.join(map(repr, missing))}.",
            f"Put it on the base as it was resized for the training: `model.resize_token_embeddings({count})`, save it "
            "with its tokenizer, and name that folder; or save the adapter again with `save_embedding_layers=True`.",
        )


@contextlib.contextmanager
def stood_in(model: nn.Module, carried: Carried) -> Iterator[Mapping[str, nn.Module]]:
    """Gives the modules that PEFT may put the file's embeddings and head into, by path; they stand in for the base's.

    They have the file's numbers of rows. After the block the base's own modules are where they were, inside of
    whatever PEFT has put around them.
    """
    devices = getattr(model, "hf_device_map", None) or {}
    if carried.modules and {"cpu", "disk"} & {str(device) for device in devices.values()}:
        raise UnsupportedUpdateError(
            f"The adapter's file carries {few([*carried.tensors, *carried.twice])} of the base, which cannot be told "
            "from the base's own while the device map leaves parts of it off its device.",
            "Use a device_map of GPUs alone or of the CPU alone, or save the adapter again with "
            "`save_embedding_layers=False`.",
        )
    if carried.resized:
        logger.warning(
            "The update has a vocabulary of %s rows and its base %s: where its 'other' part is masked, as in mode "
            "'none' or 'attention', the base's own rows act, and a token beyond them is an error.",
            max(carried.resized.values()),
            max(len(carried.modules[path].get_parameter("weight")) for path in carried.resized),
        )
    made: dict[int, nn.Parameter] = {}
    stand_ins: dict[int, nn.Module] = {}
    for path, module in carried.modules.items():
        if path in carried.resized and isinstance(module, nn.Embedding):
            module.register_forward_pre_hook(check_tokens)
        if id(module) not in stand_ins:
            stand_ins[id(module)] = _stand_in(module, carried.resized.get(path), made)
    own = {id(stand_ins[id(module)]): module for module in carried.modules.values()}
    _exchange(model, stand_ins)
    try:
        yield {path: stand_ins[id(module)] for path, module in carried.modules.items()}
    finally:
        _exchange(model, own)
    for module in own.values():
        module.requires_grad_(False)  # as PEFT does with all of a base


def _exchange(model: nn.Module, others: Mapping[int, nn.Module]) -> None:
    """Puts other modules in place of those with the `id`s that are given, wherever they are in a model."""
    for module in list(model.modules()) if others else ():
        for name, child in module._modules.items():
            module._modules[name] = others.get(id(child), child)


def _stand_in(module: Any, rows: int | None, made: dict[int, nn.Parameter]) -> nn.Module:
    """Copies a module, with tensors of its own that have `rows` rows; `made` keeps tied ones tied."""
    twin: Any = copy.copy(module)
    for name in ("forward", "_old_forward", "_hf_hook"):  # accelerate's, which run the module that was copied
        twin.__dict__.pop(name, None)
    twin._parameters, before = dict(module._parameters), len(module.weight)
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        if id(parameter) not in made:
            shape = (rows, *parameter.shape[1:]) if rows and len(parameter) == before else parameter.shape
            values = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
            values[: len(parameter)] = parameter.detach()[: len(values)]
            made[id(parameter)] = nn.Parameter(values, requires_grad=parameter.requires_grad)
        twin._parameters[name] = made[id(parameter)]
    for name in ("num_embeddings", "out_features"):
        if hasattr(twin, name):
            setattr(twin, name, len(twin.weight))
    return twin


def tuned_modules(
    model: nn.Module,
    carried: Carried,
    stand_ins: Mapping[str, nn.Module],
    stored: Mapping[str, StoredTensor],
    read: ReadBase | None = None,
) -> tuple[TunedModule, ...]:
    """Finds the modules whose tensors in the file are no copies of the base's, after PEFT's load into `stand_ins`.

    Values are compared in the dtype of the base; those of a model without weights are read, by `read`.
    """
    files, live = TunedFiles({}, model), _read_by_peft(model, carried)
    # of two tied tensors the last is what PEFT leaves
    key_of = {id(_parameter(carried, carried.tensors[key])): key for key in carried.tensors if key in live}
    shared: dict[int, TunedTensor | None] = {}
    found = []
    for path, module in carried.modules.items():
        tensors = {}
        for attribute, own in module._parameters.items():
            if own is None or path in carried.saved or (key := key_of.get(id(own))) is None:
                continue
            if id(own) not in shared:
                name, loaded = carried.tensors[key], cast(Tensor, stand_ins[path]._parameters[attribute])
                shared[id(own)] = None
                if not (torch.equal(loaded, own) if read is None else carried.is_idle(key, stored[key], read)):
                    group = Group(((stored[key], ""),), {name: stored[key].shape})
                    files.add(name, group, loaded if read is None else None)
                    shared[id(own)] = TunedTensor(files, name)
            if (one := shared[id(own)]) is not None:
                tensors[attribute] = one
        if tensors:
            names = {f"{path}.{attribute}" for attribute in tensors}
            if reason := refusal(module, tensors):
                raise UnsupportedUpdateError(f"'{path}' cannot show the tensors in the adapter's file: {reason}.", None)
            keys = {key: stored[key] for key, name in carried.tensors.items() if name in names and key in live}
            found.append(TunedModule(path, module, tensors, keys, path in carried.resized))
    return tuple(found)


def resized_since(model: nn.Module, rows: Mapping[str, int]) -> dict[str, nn.Module]:
    """Returns embeddings and head that somebody resized after an update was attached that leaves them alone.

    `rows` are their rows then, by path; nothing where the update does not leave them alone.
    """
    modules = vocabulary_modules(model) if rows else {}
    found = {path: one for path, one in modules.items() if len(one.weight) != rows.get(path)}
    if found and (left := modules.keys() - found.keys()):
        raise UnsupportedUpdateError(
            f"The vocabulary was resized in {few(found)} alone, and {few(left)} has the rows that it had.",
            "Resize the whole model, `TAIAForCausalLM`, not its backbone.",
        )
    return found


def check_resizable(update: Any) -> None:
    """Refuses to resize the vocabulary of a model whose update could not keep the rows, or has rows of its own."""
    if not getattr(update, "rows", None):
        raise UnsupportedUpdateError(
            f"The vocabulary cannot be resized under this {update.method} update: it changes embeddings or head "
            "itself, or has no place for their rows.",
            "Resize the base without the update, save it with `save_pretrained`, and put the update on that folder.",
        )


def passed_by(model: nn.Module, carried: Carried, tuned: Iterable[TunedModule]) -> frozenset[str]:
    """Returns the names of the tensors in a file that nothing reads: what PEFT writes twice, and copies of the base's.

    `model` has PEFT's layers in it, `tuned` is as of `tuned_modules`.
    """
    return carried.twice | _read_by_peft(model, carried).difference(*(one.keys for one in tuned))


def _read_by_peft(model: nn.Module, carried: Carried) -> set[str]:
    """Returns which tensors in the file PEFT puts in the place of the base's, by names in the injected model."""
    return carried.tensors.keys() & {PREFIX + name for name, _ in model.named_parameters(remove_duplicate=False)}


def _parameter(carried: Carried, name: str) -> Any:
    path, _, attribute = name.rpartition(".")
    return carried.modules[path]._parameters[attribute]
