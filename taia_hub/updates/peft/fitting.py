"""An adapter's file and configuration as the base model at hand names its modules.

A model has several classes: of text alone, with an image tower, without a head. They name the same layers
`model.layers`, `model.language_model.layers` or `layers`, and an adapter that was trained on one fits the others once
its names say so. PEFT reads a translation of the file, tensors bit for bit, which is also what is published.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from packaging.version import Version
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import nn

from taia_hub.errors import UnsupportedUpdateError
from taia_hub.hub import read_json
from taia_hub.hub.layout import PREFIX
from taia_hub.updates.peft.strict import CONFIG_NAME, WEIGHTS_NAME, check_expressions, few, written_by

_SHELLS = ("model", "language_model", "text_model", "_orig_mod", "module")
# ^ what the classes of a model, and what compiles or distributes it, put around the layers of its text part
_WRAPPINGS = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"))
# ^ what compiling, distributing or checkpointing puts into the paths of a model
_ADAPTER_NAME = re.compile(r"\.lora_(?:A|B|E|embedding_A|embedding_B|magnitude_vector)\.(.+?)(?:\.weight|\.bias)?$")
_EXPERT = re.compile(r"\.experts\.\d+\.")
_TURNED_UNTIL = Version("0.19.1")
# ^ up to here PEFT took the two sides of a stack of experts the other way round


@dataclass(frozen=True)
class Fitted:
    """How PEFT is to read an adapter on one base model.

    Attributes:
        config: The configuration by the base's names.
        names: Name of every tensor in the file to its name on this base.
        turned: Names on this base up to `lora_A` and `lora_B`, of experts' factors that lie the other way round; with
            the number of experts.
        changes: What the configuration says otherwise than the file's, as JSON values.
    """

    config: Any
    names: Mapping[str, str]
    turned: Mapping[str, int] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_its_names(self) -> bool:
        """Whether the tensors in the file have their places and names on this base."""
        return not self.turned and all(name == new for name, new in self.names.items())

    @contextlib.contextmanager
    def folder(self, original: Path) -> Iterator[Path]:
        """Gives a folder with the file by these names: the original where it has them."""
        if self.has_its_names:
            yield original
            return
        with tempfile.TemporaryDirectory(prefix="taia-names-") as scratch:
            self._write_weights(original, Path(scratch))
            yield Path(scratch)

    def write(self, original: Path, folder: Path) -> None:
        """Writes the adapter as PEFT alone reads it on this base; what says the same there keeps its bytes."""
        if self.has_its_names:
            shutil.copyfile(original / WEIGHTS_NAME, folder / WEIGHTS_NAME)
        else:
            self._write_weights(original, folder)
        if not self.changes:
            shutil.copyfile(original / CONFIG_NAME, folder / CONFIG_NAME)
            return
        values = {**read_json(original / CONFIG_NAME), **self.changes}
        (folder / CONFIG_NAME).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    def _write_weights(self, original: Path, folder: Path) -> None:
        save_file(self.tensors(original), folder / WEIGHTS_NAME, metadata={"format": "pt"})

    def tensors(self, folder: Path) -> dict[str, torch.Tensor]:
        """Reads the file's tensors by their names on this base."""
        tensors = {self.names[name]: tensor for name, tensor in load_file(folder / WEIGHTS_NAME).items()}
        for stem, experts in self.turned.items():
            a, b = tensors[f"{stem}lora_A.weight"], tensors[f"{stem}lora_B.weight"]
            # a is (experts * rank, D), b (D', rank * experts); their roles change, and with them the order inside
            tensors[f"{stem}lora_A.weight"] = b.view(len(b), -1, experts).permute(2, 1, 0).flatten(0, 1).contiguous()
            tensors[f"{stem}lora_B.weight"] = a.view(experts, -1, a.shape[1]).permute(2, 1, 0).flatten(1).contiguous()
        return tensors


def fitted(config: Any, shapes: Mapping[str, tuple[int, ...]], base: nn.Module, is_trainable: bool = False) -> Fitted:
    """Says how an adapter is to be read on a base model, of the names and shapes in its file.

    What does not fit stays as it is, so that the strict load says so.

    Raises:
        ConfigError: If the configuration's expressions would not end on the names of the base's modules.
        UnsupportedUpdateError: If PEFT would read something else than the version that wrote the file.
    """
    check_expressions(config, base)
    modules = dict(base.named_modules())
    method = PEFT_TYPE_TO_PREFIX_MAPPING.get(config.peft_type, "lora_")
    bare = _unwrapped(shapes, modules, method)
    moved = _named(bare.values(), modules, _shells(base))
    names = {key: moved[name] for key, name in bare.items()}
    original, config = config, copy.copy(config)
    changed = {old: new for old, new in moved.items() if old != new}
    adapted = {
        _module(old, method): _module(new, method) for old, new in moved.items() if f".{method}" in old
    }  # path in the file to path in the base
    if changed:
        _rename(config, _shells(base), modules)
    targets = tuple(getattr(config, "target_parameters", None) or ())
    stacks = {path: _stacked(targets, path, module) for path, module in modules.items()} if targets else {}
    plain = {old: new for old, new in adapted.items() if not stacks.get(new.partition(".base_layer")[0])}
    if (
        plain
        and set(plain.values()) <= modules.keys()
        and (changed or _hits_a_tower(config, plain, modules, _shells(base)))
    ):
        _narrow(config, plain)
    if config.peft_type != PeftType.LORA:
        return Fitted(config, names, changes=_changes(original, config))
    by_expert = [old for old, new in adapted.items() if new not in modules and _EXPERT.search(new)]
    _check_experts(config, by_expert)
    if by_expert or any(stacks.values()):
        _leave_dropout_out(config, is_trainable)
    renamed = {new: shapes[old] for old, new in names.items()}
    turned = _turned(config, renamed, modules, stacks)
    written = {"peft_version": peft.__version__} if turned else {}  # whose layout is published
    return Fitted(config, names, turned, {**_changes(original, config), **written})


def _changes(original: Any, config: Any) -> dict[str, Any]:
    """Returns the fields in which a configuration differs from what was read, as its file would hold them."""
    before, after = original.to_dict(), config.to_dict()
    return {
        name: sorted(value) if isinstance(value, set) else copy.deepcopy(value)
        for name, value in after.items()
        if value != before[name] and not (isinstance(value, (list, set)) and set(value) == set(before[name] or ()))
    }


def _shells(base: nn.Module) -> tuple[str, ...]:
    return (*_SHELLS, prefix) if (prefix := getattr(base, "base_model_prefix", "")) else _SHELLS


def _split(path: str, shells: Collection[str]) -> tuple[str, str]:
    """Parts a path into the shells around it and the rest, which is never empty."""
    parts = path.split(".")
    count = next((number for number, part in enumerate(parts[:-1]) if part not in shells), len(parts) - 1)
    return ".".join(parts[:count]), ".".join(parts[count:])


def _homes(paths: Collection[str], shells: Collection[str]) -> dict[str, set[str]]:
    """Returns the first part of each path within the shells, and in which shells it lies."""
    homes: dict[str, set[str]] = {}
    for path in paths:
        shell, rest = _split(path, shells)
        if path and rest not in shells:
            homes.setdefault(rest.partition(".")[0], set()).add(shell)
    return homes


def _moved(path: str, homes: Mapping[str, set[str]], shells: Collection[str]) -> str:
    """Returns a path in the one place where its first part lies in the base; the path where that cannot be told."""
    shell, rest = _split(path, shells)
    places = homes.get(rest.partition(".")[0], set())
    return path if shell in places or len(places) != 1 else f"{next(iter(places))}.{rest}".lstrip(".")


def _named(keys: Collection[str], modules: Mapping[str, Any], shells: Collection[str]) -> dict[str, str]:
    """Returns name in the file to name in the base; one to one, or as in the file."""
    homes = _homes(modules, shells)
    names = {
        key: PREFIX + _moved(key.removeprefix(PREFIX), homes, shells) if key.startswith(PREFIX) else key for key in keys
    }
    return names if len(set(names.values())) == len(names) else {key: key for key in keys}


def _unwrapped(keys: Collection[str], modules: Mapping[str, Any], method: str) -> dict[str, str]:
    """Returns name in the file to PEFT's name of the same, of files that nobody freed from what wrapped the model.

    Names without PEFT's own prefix get it where the base has the module, and those of a raw state dict lose the
    adapter's name. One to one, or as in the file.
    """
    wrappings = _WRAPPINGS.difference(part for path in modules for part in path.split("."))
    adapters = {found[1] for key in keys if (found := _ADAPTER_NAME.search(key))}
    adapter = re.escape(adapters.pop()) if len(adapters) == 1 and not adapters & {"weight", "bias"} else ""
    names = {}
    for key in keys:
        name = ".".join(part for part in key.split(".") if part not in wrappings)
        if adapter:
            name = re.sub(rf"(\.lora_\w+|\.trainable_tokens_delta)\.{adapter}(?=\.|$)", r"\1", name)
            name = re.sub(rf"\.modules_to_save\.{adapter}(?=\.)", "", name)
        is_bare = not name.startswith(PREFIX) and f".{method}" in name and _module(name, method) in modules
        names[key] = PREFIX + name if is_bare else name
    return names if len(set(names.values())) == len(names) else {key: key for key in keys}


def _module(key: str, method: str) -> str:
    """Returns the path of the module that a tensor of a method belongs to."""
    return key.removeprefix(PREFIX).rpartition(f".{method}")[0]


def _rename(config: Any, shells: Collection[str], modules: Mapping[str, Any]) -> None:
    """Moves the paths in a configuration's lists; patterns are `_narrow`'s."""
    homes = _homes(modules, shells)
    for name in ("target_modules", "modules_to_save", "target_parameters"):
        paths = getattr(config, name, None)
        if isinstance(paths, (list, set, tuple)):
            setattr(config, name, [_moved(path, homes, shells) if "." in path else path for path in sorted(paths)])


def _hits_a_tower(
    config: Any, adapted: Mapping[str, str], modules: Mapping[str, nn.Module], shells: Collection[str]
) -> bool:
    """Tells whether a configuration means modules of a part of the base of which the file holds nothing at all."""
    inside = {path: _split(path, shells)[1] for path in {*modules, *adapted.values()}}
    held = {inside[path].partition(".")[0] for path in adapted.values()}
    return any(
        (config.target_modules == "all-linear" or check_target_module_exists(config, path))
        for path in modules
        if "." in inside[path] and inside[path].partition(".")[0] not in held
    )


def _narrow(config: Any, adapted: Mapping[str, str]) -> None:
    """Makes a configuration name the very modules that the file has tensors for, each with its own rank and alpha."""
    for name in ("rank_pattern", "alpha_pattern"):
        if isinstance(pattern := getattr(config, name, None), dict) and pattern:
            found = {new: get_pattern_key(list(pattern), old) for old, new in adapted.items()}
            exact = {re.escape(new): pattern[key] for new, key in found.items() if key in pattern}
            setattr(config, name, {**exact, **(pattern if getattr(config, "target_parameters", None) else {})})
    config.target_modules = sorted(set(adapted.values()))
    if named := getattr(config, "feedforward_modules", None):
        config.feedforward_modules = [
            new
            for old, new in adapted.items()
            if (re.fullmatch(named, old) if isinstance(named, str) else old.endswith(tuple(named)))
        ]
    for name in ("exclude_modules", "layers_to_transform", "layers_pattern"):
        if getattr(config, name, None) is not None:
            setattr(config, name, None)


def _stacked(targets: Collection[str], path: str, module: nn.Module) -> list[str]:
    """Returns the parameters of a module that a LoRA adapts, in the order in which PEFT wraps them."""
    return [
        name
        for name, _ in module.named_parameters(recurse=False)
        if any(f".{path}.{name}".endswith(f".{target}") for target in targets)
    ]


def _check_experts(config: Any, by_expert: Collection[str]) -> None:
    """Refuses factors by expert that PEFT would fuse with another scale than theirs."""
    if not by_expert:
        return
    reason = ""
    if config.use_rslora:
        reason = "use_rslora divides by the root of the rank, which PEFT doubles where it fuses two factors"
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = getattr(config, name, None) or {}
        if any(get_pattern_key(list(pattern), path) in pattern for path in by_expert):
            reason = f"{name} gives some of them numbers of their own, which PEFT loses where it fuses them"
    if reason:
        raise UnsupportedUpdateError(
            f"This LORA adapter updates each expert by itself, {few(sorted(by_expert), 1)}, as transformers 4 had "
            f"them, and {reason}.",
            "Merge it into its base with the versions of transformers and PEFT that wrote it, and make a repository of "
            "the two models with --dense.",
        )


def _leave_dropout_out(config: Any, is_trainable: bool) -> None:
    """Reads dropout as none, because it does nothing in inference and PEFT has none for experts' parameters."""
    if not config.lora_dropout:
        return
    if is_trainable:
        raise UnsupportedUpdateError(
            f"PEFT cannot train experts' parameters with dropout, and this adapter has lora_dropout="
            f"{config.lora_dropout:g}.",
            'Set "lora_dropout": 0.0 in adapter_config.json, or load it without is_trainable.',
        )
    config.lora_dropout = 0.0


def _turned(
    config: Any,
    shapes: Mapping[str, tuple[int, ...]],
    modules: Mapping[str, nn.Module],
    stacks: Mapping[str, list[str]],
) -> dict[str, int]:
    """Finds factors of stacked experts that lie the other way round, as older versions of PEFT wrote them."""
    turned: dict[str, int] = {}
    for path, held in stacks.items():
        for number, name in enumerate(held):
            stem = f"{PREFIX}{path}." + "base_layer." * (len(held) - 1 - number)
            a, b = shapes.get(f"{stem}lora_A.weight"), shapes.get(f"{stem}lora_B.weight")
            sides: tuple[int, ...] = getattr(modules[path], name).shape
            if len(sides) != 3 or not a or not b or len(a) != 2 or len(b) != 2:
                continue
            experts, first, second = sides
            is_transposed = bool(getattr(modules[path], "is_transposed", False))
            if first == second and _read_otherwise(config, is_transposed):
                raise UnsupportedUpdateError(
                    f"'{path}.{name}' is square, and PEFT {config.peft_version or 'before 0.18'}, which wrote this "
                    "adapter, took the sides of such a parameter the one way or the other, depending on transformers; "
                    "its file does not say which.",
                    "Merge it into its base with the versions that wrote it, and make a repository of the two models "
                    "with --dense.",
                )
            expected = (first, second) if is_transposed else (second, first)
            if (a[1], b[0]) == expected[::-1] != expected and a[0] == b[1] and a[0] % experts == 0:
                turned[stem] = experts
    return turned


def _read_otherwise(config: Any, is_transposed: bool) -> bool:
    """Tells whether the version that wrote a configuration took the sides of stacked experts the other way round."""
    version = written_by(config)
    return version < _TURNED_UNTIL and (not is_transposed or version >= Version("0.19.0.dev0"))
