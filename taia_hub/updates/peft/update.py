"""Updates in PEFT's own format: a strict load, attaching the switch, and a save that keeps bytes."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Container, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import peft
import torch
from peft import (
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from taia_hub import hub
from taia_hub.common.devices import is_out_of_memory
from taia_hub.errors import ConfigError, TAIAError, UnsupportedUpdateError, UpdateMismatchError
from taia_hub.hub.layout import PEFT, PREFIX, UpdateKind
from taia_hub.roles.sublayers import layer_of
from taia_hub.switch.switch import Site, Switch
from taia_hub.updates.dense.layers import same_rows as tuned_rows
from taia_hub.updates.dense.layers import show_tuned
from taia_hub.updates.options import AttachOptions
from taia_hub.updates.peft.carried import (
    ANOTHER_VOCABULARY,
    TunedModule,
    find_carried,
    passed_by,
    resized_since,
    stood_in,
    tuned_modules,
    vocabulary_modules,
)
from taia_hub.updates.peft.fitting import Fitted, fitted
from taia_hub.updates.peft.layers import describe, refusal, same_rows, switched_class, whole_only
from taia_hub.updates.peft.strict import (
    ADAPTER,
    CONFIG_NAME,
    WEIGHTS_NAME,
    WRAPPERS,
    check_base_untouched,
    check_names,
    check_tensors,
    mismatch,
    read_config,
)
from taia_hub.weights.checkpoint import read_header
from taia_hub.weights.skeleton import give_zeros

__all__ = ["PeftUpdate", "attach_switch", "attach_update", "read_config"]


ROWS_REGROUPED = {"xlnet": "its layers hold the sequence first, so that a row is no slice of dimension 0"}
# ^ by model type; a layer's input has the rows first, or rows and tokens flattened, in every other architecture
_BY_VALUES = {PeftType.ADALORA, PeftType.ADAMSS, PeftType.FROD, PeftType.SHIRA}
# ^ methods that PEFT puts on a model by values, which the meta device has none of


@dataclass
class PeftUpdate:
    """A PEFT adapter that is attached to a loaded model; attributes as of `Update`.

    `fit` says by which names its file was read; None where it has the base's.
    """

    kind: ClassVar[UpdateKind] = PEFT

    peft_model: PeftModel
    source: Path
    prefix: str = ""
    fit: Fitted | None = None
    tuned: tuple[TunedModule, ...] = ()
    # ^ embeddings and head of the base that the file replaces
    resized: Mapping[str, int] = field(default_factory=dict)
    # ^ name of each of the base's parameters that gets another number of rows, to that number
    rows: Mapping[str, int] = field(default_factory=dict)
    # ^ path of each embedding and head to its rows in the base, where the update leaves them all alone

    @property
    def method(self) -> str:
        """PEFT's name of the method, as in `"LORA"`."""
        return str(getattr(self.config.peft_type, "value", "PEFT"))

    @property
    def settings(self) -> dict[str, Any]:
        """Contents of the update's configuration file."""
        return dict(self.config.to_dict())

    @property
    def config(self) -> PeftConfig:
        """The adapter's configuration."""
        return self.peft_model.peft_config[ADAPTER]

    @property
    def head_model(self) -> nn.Module:
        """The base model with its head, inside PEFT's wrapper."""
        model: Any = self.peft_model.base_model.model
        return cast(nn.Module, model)

    def parameters(self) -> dict[str, torch.Tensor]:
        """Returns the update's tensors by the names that they have in PEFT's file."""
        found = get_peft_model_state_dict(self.peft_model, adapter_name=ADAPTER, save_embedding_layers=False)
        return {**found, **self._carried()}

    def _carried(self) -> dict[str, torch.Tensor]:
        """Returns the tensors that replace some of the base's: those of the file, and what was resized since."""
        found = {
            key: torch.empty(stored.shape, device="meta") if next(tuned.module.parameters()).is_meta else stored.read()
            for tuned in self.tuned
            for key, stored in tuned.keys.items()
        }
        for path, module in resized_since(self.head_model, self.rows).items():
            found |= {f"{PREFIX}{path}.{name}": one.detach() for name, one in module.named_parameters()}
        return found

    def save(self, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """Writes the two files of the update; an unchanged update keeps the bytes of its files, if by the base's names.

        `state_dict` is that of the held model, as Trainer passes it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if state_dict is None and self.is_unchanged():
            if self.fit is not None:
                self.fit.write(self.source, folder)
                return
            for name in (self.kind.config, self.kind.weights):
                shutil.copyfile(self.source / name, folder / name)
            return
        self._write(
            folder,
            None if state_dict is None else {PREFIX + self.prefix + key: value for key, value in state_dict.items()},
        )

    def _write(self, folder: Path, named: Mapping[str, torch.Tensor] | None) -> None:
        """Writes changed tensors, those of the model or `named` by the names in PEFT's wrapper."""
        self.config.peft_version = peft.__version__  # whose layout is written, whatever was read
        self.peft_model.save_pretrained(
            str(folder), selected_adapters=[ADAPTER], save_embedding_layers=False, state_dict=named
        )
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's card would say that every part acts
        if carried := self._carried():
            tensors = {**load_file(folder / WEIGHTS_NAME), **{key: one.cpu().clone() for key, one in carried.items()}}
            save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
        written = {key: one.shape for key, one in read_header(folder / WEIGHTS_NAME).items()}
        expected = {key: tuple(tensor.shape) for key, tensor in self.parameters().items()}
        if written != expected:
            same = len(written.items() & expected.items())
            raise UpdateMismatchError(
                f"The state dict holds {same} of the update's {len(expected)} tensors in their shapes.",
                "Pass the whole state dict of the model, or none.",
            )

    def load(self, state_dict: Mapping[str, torch.Tensor]) -> Any:
        """Puts tensors with the names of PEFT's file into the attached update.

        Returns what `nn.Module.load_state_dict` does, the base's own keys left out of the missing ones.
        """
        result: Any = set_peft_model_state_dict(self.peft_model, dict(state_dict), adapter_name=ADAPTER)
        result.missing_keys[:] = [key for key in result.missing_keys if f".{ADAPTER}" in key]
        return result

    def is_unchanged(self) -> bool:
        """Tells whether the tensors are still those of the file that they were read from."""
        if not all((self.source / name).is_file() for name in (self.kind.config, self.kind.weights)):
            return False
        now = self.parameters()
        if resized_since(self.head_model, self.rows):
            return False
        if any(tensor.is_meta for tensor in now.values()):
            return True  # a skeleton never had the weights, so it cannot have changed them
        fit = self.fit
        if fit is not None and fit.turned:
            there = fit.tensors(self.source)
            return now.keys() <= there.keys() and all(
                torch.equal(there[key].to(tensor.dtype), tensor.cpu()) for key, tensor in now.items()
            )
        with safe_open(self.source / self.kind.weights, framework="pt") as file:
            names = {key: key if fit is None else fit.names.get(key, key) for key in file.keys()}  # noqa: SIM118
            held = {new: key for key, new in names.items()}
            return now.keys() <= held.keys() and all(
                torch.equal(file.get_tensor(held[key]).to(tensor.dtype), tensor.cpu()) for key, tensor in now.items()
            )


def attach_update(
    base: nn.Module,
    folder: Path,
    options: AttachOptions,
) -> tuple[PeftUpdate, Switch]:
    """Injects an adapter into a base model, changed in place, and makes its layers obey a new switch.

    Raises:
        UpdateMismatchError: If the adapter does not fit the base: modules, tensors or shapes.
        UnsupportedUpdateError: If the update changes the base's own parameters.
    """
    shapes = {key: stored.shape for key, stored in read_header(folder / WEIGHTS_NAME).items()}
    config = read_config(folder)
    check_names(shapes)
    try:
        fit = fitted(config, shapes, base, options.is_trainable)
    except (TypeError, AttributeError, re.error) as error:
        raise _unusable(folder, error) from error
    with fit.folder(folder) as source:
        return _attach(base, folder, source, fit, options)


def _attach(
    base: nn.Module, folder: Path, source: Path, fit: Fitted, options: AttachOptions
) -> tuple[PeftUpdate, Switch]:
    """Does what `attach_update` says, with the file of `folder` by the base's names in `source`."""
    config = fit.config
    if config.peft_type in _BY_VALUES:
        give_zeros(base)
    placement, vocabulary = _placement(base), vocabulary_modules(base)
    stored = {fit.names[key]: one for key, one in read_header(folder / WEIGHTS_NAME).items()}
    carried = find_carried(base, config, {key: one.shape for key, one in stored.items()})
    before = {
        name: (parameter, parameter.data_ptr(), parameter._version) for name, parameter in base.named_parameters()
    }
    in_file = {WRAPPERS.sub("", key.removeprefix(PREFIX)) for key in stored}
    in_file -= {f"{path}.{name}" for path, one in carried.modules.items() for name, _ in one.named_parameters()}
    named = dict(base.named_parameters(remove_duplicate=False))
    originals = {name: parameter.detach().clone() for name, parameter in named.items() if name in in_file}
    is_quick = (
        not originals
        and not carried.modules
        and all(one.kind.startswith(("F", "BF")) for one in stored.values())  # else it keeps the file's integers
        and _may_skip_initialisation(config, base, options.autocast_adapter_dtype)
    )
    try:
        with stood_in(base, carried) as stand_ins, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # an error of ours, below
            # A skeleton has no weights to copy; and PEFT itself asks for what transformers deprecates.
            warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")
            # what it adds for experts that it fuses, which are parameters and no modules
            warnings.filterwarnings("ignore", message=r".*_pattern keys did not match", category=RuntimeWarning)
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            peft_model = PeftModel.from_pretrained(
                base,
                str(source),
                config=config,
                is_trainable=options.is_trainable,
                autocast_adapter_dtype=options.autocast_adapter_dtype,
                low_cpu_mem_usage=is_quick,
                **placement,
            )
    except TAIAError:
        raise
    except Exception as error:  # PEFT checks no value before it uses it
        if is_out_of_memory(error):
            raise
        if isinstance(error, (ValueError, RuntimeError, LookupError)):
            raise mismatch(error, config, base) from error
        raise _unusable(folder, error) from error
    update = PeftUpdate(peft_model, folder, fit=fit)
    update.resized = carried.resized_parameters
    update.tuned = tuned_modules(update.head_model, carried, stand_ins, stored, options.read_base)
    if not update.tuned and all(update.head_model.get_submodule(path) is one for path, one in vocabulary.items()):
        update.rows = {path: len(one.weight) for path, one in vocabulary.items()}
    copied: set[str] = set()
    if not (is_quick and _is_whole(update, before, stored)):
        keys = stored.keys() - passed_by(update.head_model, carried, update.tuned)
        copied = check_tensors(update, source, stored, keys, originals, options.read_base)
    copies = {id(named[name]) for name in copied}  # one tensor, tied names
    check_base_untouched(update.head_model, {name: was for name, was in before.items() if id(was[0]) not in copies})
    where = options.roles, options.inference_modules, options.unplaced
    return update, attach_switch(update.head_model, *where, update.tuned, carried.resized)


def _unusable(folder: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"{CONFIG_NAME} in '{folder}' holds a value that PEFT cannot use: {hub.reason_of(error).rstrip('.')}.",
        "Save the adapter again with `model.save_pretrained(...)`, or correct the value.",
    )


def attach_switch(
    model: nn.Module,
    roles: Mapping[str, str],
    inference_modules: Any,
    unplaced: Sequence[str] = (),
    exchanged: Sequence[TunedModule] = (),
    resized: Container[str] = (),
) -> Switch:
    """Makes the adapted layers inside PEFT's wrapper obey a new switch; an error changes no class.

    `exchanged` are modules of the base that obey it too; `resized` are the paths of those that have other rows than
    the base's, whatever changes them.
    """
    layers: list[tuple[str, Any]] = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
    ]
    for name, layer in layers:
        if reason := refusal(layer):
            raise UnsupportedUpdateError(
                f"The update of '{name}' cannot be switched: {reason}.", "Adapt other modules, or use PEFT alone."
            )
    counted: set[int] = set()
    regrouped = ROWS_REGROUPED.get(getattr(getattr(model, "config", None), "model_type", ""))
    sites = [_site(name, layer, roles, counted, regrouped, resized) for name, layer in layers]
    for tuned in exchanged:
        odd = ANOTHER_VOCABULARY if tuned.resized else None
        alike = regrouped or odd or tuned_rows(tuned.module, tuned.path)
        role, method = roles.get(tuned.path, "other"), type(tuned.module).__name__
        sites.append(Site(tuned.path, role, layer_of(tuned.path), method, tuned.parameters, odd, alike))
    switch = Switch(sites, inference_modules, unplaced)
    for index, (_, layer) in enumerate(layers):
        layer.__class__ = switched_class(layer, ADAPTER)
        layer._taia_switch, layer._taia_site, layer._taia_adapter = switch, index, ADAPTER
    for index, tuned in enumerate(exchanged, len(layers)):
        show_tuned(tuned.module, switch, index, tuned.tensors)
    return switch


def _placement(base: nn.Module) -> dict[str, Any]:
    """Returns keywords that make PEFT keep an offloaded base where it is, instead of placing it anew."""
    devices: Mapping[str, Any] = getattr(base, "hf_device_map", None) or {}
    names = {str(device) for device in devices.values()}
    if "disk" in names:
        raise UnsupportedUpdateError(
            "The device map leaves parts of the base model on the disk, where PEFT cannot attach an update.",
            "Use a device_map of GPUs and 'cpu' alone, or a smaller dtype.",
        )
    return (
        {"device_map": {f"{PREFIX}{key}".rstrip("."): device for key, device in devices.items()}}
        if "cpu" in names
        else {}
    )


def _may_skip_initialisation(config: PeftConfig, base: nn.Module, autocast_adapter_dtype: bool) -> bool:
    """Tells whether PEFT's quick way of loading gives the same numbers as its usual one."""
    if config.peft_type != PeftType.LORA or getattr(config, "modules_to_save", None):
        return False
    # The quick way rounds the file's float32 tensors to a 16-bit base's dtype before it makes them float32 again.
    return not autocast_adapter_dtype or all(
        parameter.is_meta or parameter.dtype not in (torch.float16, torch.bfloat16) for parameter in base.parameters()
    )


def _is_whole(update: PeftUpdate, before: Mapping[str, tuple[nn.Parameter, Any, Any]], keys: Sized) -> bool:
    """Tells that an adapter got every tensor of its file and lacks none, without PEFT's long way to their names.

    PEFT's quick way makes the adapter's parameters without memory and puts a tensor of the file into each: where as
    many tensors came as there are parameters, and none is without memory, they are one to one.
    """
    bases = {id(parameter) for parameter, _, _ in before.values()}
    new = [parameter for parameter in update.head_model.parameters() if id(parameter) not in bases]
    return len(new) == len(keys) and not any(parameter.is_meta for parameter in new)


def _site(
    name: str,
    layer: nn.Module,
    roles: Mapping[str, str],
    counted: set[int],
    regrouped: str | None = None,
    resized: Container[str] = (),
) -> Site:
    module_path = WRAPPERS.sub("", name)
    path = f"{module_path}.{layer.parameter_name}" if isinstance(layer, ParamWrapper) else module_path
    parameters = 0
    for key, parameter in layer.named_parameters():
        own = not key.startswith(("base_layer.", "original_module.", "token_adapter."))
        if own and id(parameter) not in counted:  # some methods share one tensor between layers
            counted.add(id(parameter))
            parameters += parameter.numel()
    return Site(
        path=path,
        role=_role(module_path, roles),
        layer=layer_of(path),
        method=describe(layer),
        parameters=parameters,
        whole_only=whole_only(layer, ADAPTER),
        same_rows=regrouped or (ANOTHER_VOCABULARY if module_path in resized else same_rows(layer, ADAPTER, path)),
    )


def _role(path: str, roles: Mapping[str, str]) -> str:
    if path in roles:
        return roles[path]
    inside = {role for name, role in roles.items() if name.startswith(f"{path}.")}
    return inside.pop() if len(inside) == 1 else "other"
