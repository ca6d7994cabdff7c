"""Updates in PEFT's own format: a strict load, attaching the switch, and a save that keeps bytes."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import (
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import safe_open
from torch import nn

from taia_hub.errors import ConfigError, UnsupportedUpdateError, UpdateMismatchError
from taia_hub.switch import Site, Switch
from taia_hub.updates.layers import describe, refusal, same_rows, switched_class, whole_only

ADAPTER = "default"
PREFIX = "base_model.model."
CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

_WRAPPERS = re.compile(r"\.(?:base_layer|original_module|token_adapter|modules_to_save\.default)(?=\.|$)")
_LAYER = re.compile(r"\.(\d+)(?:\.|$)")

_REFUSED_TYPES: dict[Any, str] = {
    PeftType.ADAPTION_PROMPT: "it replaces whole attention modules and has no layer that can be switched",
    PeftType.XLORA: "its gates run as hooks on the whole model, outside the layers",
    PeftType.POLY: "its layers need task ids in every call",
    PeftType.SHADOW: "its layers hand a second stream from one to the next, so that none can be masked alone",
}
_ROWS_REGROUPED = {"xlnet": "its layers hold the sequence first, so that a row is no slice of dimension 0"}
# ^ by model type; a layer's input has the rows first, or rows and tokens flattened, in every other architecture
_REFUSED_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")


@dataclass
class PeftUpdate:
    """A PEFT adapter that is attached to a loaded model.

    Attributes:
        peft_model: PEFT's wrapper, kept for saving; the model inside it is the one that users hold.
        source: Folder that the adapter was read from; its bytes are kept while the weights are unchanged.
        prefix: What precedes the held model's parameter names in those of the head model.
    """

    peft_model: PeftModel
    source: Path
    prefix: str = ""

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
        return dict(get_peft_model_state_dict(self.peft_model, adapter_name=ADAPTER, save_embedding_layers=False))

    def save(self, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """Writes the update in PEFT's format; an unchanged update keeps the bytes of its file.

        Args:
            folder: Where `adapter_config.json` and `adapter_model.safetensors` go; made if need be.
            state_dict: State dict of the held model to take the tensors from, as Trainer passes it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if state_dict is None and self.is_unchanged():
            for name in (CONFIG_NAME, WEIGHTS_NAME):
                shutil.copyfile(self.source / name, folder / name)
            return
        named = None if state_dict is None else {PREFIX + self.prefix + key: value for key, value in state_dict.items()}
        self.peft_model.save_pretrained(
            str(folder), selected_adapters=[ADAPTER], save_embedding_layers=False, state_dict=named
        )
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's card would say that every part acts
        written, expected = set(_tensor_names(folder / WEIGHTS_NAME)), set(self.parameters())
        if written != expected:
            raise UpdateMismatchError(
                f"The state dict holds {len(written & expected)} of the update's {len(expected)} tensors.",
                "Pass the whole state dict of the model, or none.",
            )

    def load(self, state_dict: Mapping[str, torch.Tensor]) -> Any:
        """Puts tensors with the names of PEFT's file into the attached update.

        Args:
            state_dict: Tensors by their names in `adapter_model.safetensors`.

        Returns:
            `(missing_keys, unexpected_keys)` as of `nn.Module.load_state_dict`, the base's own keys left out.
        """
        result: Any = set_peft_model_state_dict(self.peft_model, dict(state_dict), adapter_name=ADAPTER)
        result.missing_keys[:] = [key for key in result.missing_keys if f".{ADAPTER}" in key]
        return result

    def is_unchanged(self) -> bool:
        """Tells whether the tensors are still those of the file that they were read from."""
        if not all((self.source / name).is_file() for name in (CONFIG_NAME, WEIGHTS_NAME)):
            return False
        now = self.parameters()
        if any(tensor.is_meta for tensor in now.values()):
            return True  # a skeleton never had the weights, so it cannot have changed them
        with safe_open(self.source / WEIGHTS_NAME, framework="pt") as file:
            if not now.keys() <= set(file.keys()):
                return False
            return all(torch.equal(file.get_tensor(key).to(tensor.dtype), tensor.cpu()) for key, tensor in now.items())


def read_config(folder: Path) -> PeftConfig:
    """Reads an adapter's configuration and refuses what cannot be switched.

    Args:
        folder: Folder with `adapter_config.json`.

    Returns:
        The configuration.

    Raises:
        ConfigError: If the file is no adapter configuration.
        UnsupportedUpdateError: If the method, or an option of it, cannot be switched off at run time.
    """
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        why = f"it does not know {error}" if isinstance(error, KeyError) else error
        raise ConfigError(
            f"{CONFIG_NAME} in '{folder}' is no adapter configuration that PEFT reads: {why}.",
            "Save the adapter again with `model.save_pretrained(...)` of a current PEFT, or upgrade PEFT.",
        ) from error
    if config.peft_type is None:
        raise ConfigError(
            f"{CONFIG_NAME} in '{folder}' names no method (peft_type).", "Save the adapter again with PEFT."
        )
    if reason := _refusal(config):
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise UnsupportedUpdateError(f"This {kind} adapter cannot be switched: {reason[0]}.", reason[1])
    return config


def attach_update(
    base: nn.Module,
    folder: Path,
    *,
    roles: Mapping[str, str],
    unplaced: Sequence[str] = (),
    inference_modules: Any = "attention",
    is_trainable: bool = False,
    autocast_adapter_dtype: bool = True,
) -> tuple[PeftUpdate, Switch]:
    """Injects an adapter into a base model and makes its layers obey a new switch.

    Args:
        base: The base model, changed in place.
        folder: Folder with `adapter_config.json` and `adapter_model.safetensors`.
        roles: Module path to role, of the base before the injection.
        unplaced: Paths whose role could not be told.
        inference_modules: The setting to begin with.
        is_trainable: Whether the update's parameters get gradients.
        autocast_adapter_dtype: Whether PEFT keeps 16-bit adapter weights in float32.

    Returns:
        The attached update, and its switch.

    Raises:
        UpdateMismatchError: If the adapter does not fit the base: modules, tensors or shapes.
        UnsupportedUpdateError: If the update changes the base's own parameters.
        SettingError: If the setting cannot act on this update.
    """
    config = read_config(folder)
    placement = _placement(base)
    keys = set(_tensor_names(folder / WEIGHTS_NAME))
    before = {
        name: (parameter, parameter.data_ptr(), parameter._version) for name, parameter in base.named_parameters()
    }
    in_file = {_WRAPPERS.sub("", key.removeprefix(PREFIX)) for key in keys}
    originals = {
        name: parameter.detach().clone()
        for name, parameter in base.named_parameters(remove_duplicate=False)
        if name in in_file
    }
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # an error of ours, below
            peft_model = PeftModel.from_pretrained(
                base,
                str(folder),
                config=config,
                is_trainable=is_trainable,
                autocast_adapter_dtype=autocast_adapter_dtype,
                low_cpu_mem_usage=not originals and _may_skip_initialisation(config, base, autocast_adapter_dtype),
                **placement,
            )
    except (TypeError, AttributeError, re.error) as error:
        raise ConfigError(
            f"{CONFIG_NAME} in '{folder}' holds a value that PEFT cannot use: {error}.",
            "Save the adapter again with `model.save_pretrained(...)`, or correct the value.",
        ) from error
    except (ValueError, RuntimeError, KeyError) as error:
        raise _mismatch(error, config, base) from error
    update = PeftUpdate(peft_model, folder)
    copies = _check_tensors(update, folder, keys, originals)
    _check_base_untouched(update.head_model, {name: was for name, was in before.items() if name not in copies})
    return update, attach_switch(update.head_model, roles, inference_modules, unplaced)


def attach_switch(
    model: nn.Module, roles: Mapping[str, str], inference_modules: Any, unplaced: Sequence[str] = ()
) -> Switch:
    """Makes the adapted layers of a model obey a new switch.

    Args:
        model: The model inside PEFT's wrapper; its layers' classes are swapped for subclasses.
        roles: Module path to role, of the base before the injection.
        inference_modules: The setting to begin with.
        unplaced: Paths whose role could not be told.

    Returns:
        The switch.

    Raises:
        SettingError: If the setting cannot act on these layers; no layer was changed.
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
    regrouped = _ROWS_REGROUPED.get(getattr(getattr(model, "config", None), "model_type", ""))
    sites = [_site(name, layer, roles, counted, regrouped) for name, layer in layers]
    switch = Switch(sites, inference_modules, unplaced)
    for index, (_, layer) in enumerate(layers):
        layer._taia_switch, layer._taia_site, layer._taia_adapter = switch, index, ADAPTER
        layer.__class__ = switched_class(layer, ADAPTER)
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


def _site(
    name: str, layer: nn.Module, roles: Mapping[str, str], counted: set[int], regrouped: str | None = None
) -> Site:
    module_path = _WRAPPERS.sub("", name)
    path = f"{module_path}.{layer.parameter_name}" if isinstance(layer, ParamWrapper) else module_path
    parameters = 0
    for key, parameter in layer.named_parameters():
        own = not key.startswith(("base_layer.", "original_module.", "token_adapter."))
        if own and id(parameter) not in counted:  # some methods share one tensor between layers
            counted.add(id(parameter))
            parameters += parameter.numel()
    number = _LAYER.search(f".{path}")
    return Site(
        path=path,
        role=_role(module_path, roles),
        layer=int(number[1]) if number else None,
        method=describe(layer),
        parameters=parameters,
        whole_only=whole_only(layer, ADAPTER),
        same_rows=regrouped or same_rows(layer, ADAPTER, path),
    )


def _role(path: str, roles: Mapping[str, str]) -> str:
    if path in roles:
        return roles[path]
    inside = {role for name, role in roles.items() if name.startswith(f"{path}.")}
    return inside.pop() if len(inside) == 1 else "other"


def _refusal(config: PeftConfig) -> tuple[str, str] | None:
    """Returns why the adapter cannot be switched and the way out, or None when it can."""
    if config.is_prompt_learning:
        return (
            "prompt learning adds tokens to the input and updates no module, so there is no attention or FFN part",
            "Load it with `PeftModel.from_pretrained`; TAIA needs a method that updates modules, such as LoRA.",
        )
    way_out = "Load it with `PeftModel.from_pretrained`, or train a LoRA without this option."
    if config.peft_type in _REFUSED_TYPES:
        return _REFUSED_TYPES[config.peft_type], way_out
    if (bias := getattr(config, "bias", "none")) not in ("none", False, None):
        return f"bias={bias!r} overwrites the base model's biases, which PEFT cannot switch back", way_out
    init = getattr(config, "init_lora_weights", True)
    if isinstance(init, str) and init.startswith(_REFUSED_INITS):
        return (
            f"init_lora_weights={init!r} changes the base model's weights when it is loaded",
            "Convert it to a plain LoRA with PEFT's `save_pretrained(path_initial_model_for_weight_conversion=...)`.",
        )
    for option in ("layer_replication", "alora_invocation_tokens", "arrow_config"):
        if getattr(config, option, None):
            return f"{option} acts outside the adapted layers", way_out
    return None


def _check_tensors(update: PeftUpdate, folder: Path, keys: set[str], originals: Mapping[str, torch.Tensor]) -> set[str]:
    """Checks that every tensor of the file is used and every adapted module got its tensors.

    PEFT saves the base's embeddings along when they are adapted. A faithful copy does no harm; the names of those are
    returned. One that differs would replace the base's.
    """
    expected = set(update.parameters())
    if keys == expected:
        return set()
    own = {
        PREFIX + path: (_WRAPPERS.sub("", path), parameter)
        for path, parameter in update.head_model.named_parameters(remove_duplicate=False)
    }
    carried = sorted((keys - expected) & own.keys())
    if changed := [key for key in carried if not _equal(own[key][1], originals.get(own[key][0]))]:
        raise UnsupportedUpdateError(
            f"The adapter's file carries {len(changed)} of the base model's own tensors with other values, "
            f"{_few(changed)}, which would replace the base's and could not be switched off.",
            "Save it again with `save_embedding_layers=False`, or list these modules in `modules_to_save`.",
        )
    keys, copies = keys.difference(carried), {own[key][0] for key in carried}
    if keys == expected:
        return copies
    # PEFT converts old checkpoints while it loads (names, fused experts), so its own verdict decides.
    result = update.load(load_peft_weights(str(folder), device="cpu"))
    missing, unexpected = list(result.missing_keys), list(result.unexpected_keys)
    if not missing and not unexpected and keys - expected and expected - keys:
        return copies
    missing, unexpected = missing or sorted(expected - keys), unexpected or sorted(keys - expected)
    problems = []
    if missing:
        missing = [name.replace(f".{ADAPTER}", "") for name in missing]  # as the file would name them
        problems.append(f"{_count(missing)} missing: {_few(missing)}")
    if unexpected:
        problems.append(f"{_count(unexpected)} of no adapted module: {_few(unexpected)}")
    raise UpdateMismatchError(
        f"{WEIGHTS_NAME} does not fit its {CONFIG_NAME} and base model; {'; '.join(problems)}.",
        "Check the base model and `target_modules`; the file needs the configuration that it was saved with.",
    )


def _equal(parameter: torch.Tensor, original: torch.Tensor | None) -> bool:
    if original is None or parameter.shape != original.shape:
        return False
    return parameter.is_meta or torch.equal(parameter.to(original.device), original)


def _check_base_untouched(model: nn.Module, before: Mapping[str, tuple[nn.Parameter, int, int]]) -> None:
    if {"cpu", "disk"} & {str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()}:
        return  # PEFT dispatches an offloaded model anew, which moves the base's parameters without changing them
    here = {id(parameter) for parameter in model.parameters()}
    changed = [
        name
        for name, (parameter, pointer, version) in before.items()
        if id(parameter) not in here or parameter.data_ptr() != pointer or parameter._version != version
    ]
    if changed:
        raise UnsupportedUpdateError(
            f"Loading the adapter changes {len(changed)} of the base model's own parameters, {_few(changed)}, so the "
            "base model could not be had back at run time.",
            "Load it with `PeftModel.from_pretrained`; TAIA needs an update that stands beside the base's weights.",
        )


def _mismatch(error: Exception, config: PeftConfig, base: nn.Module) -> UpdateMismatchError:
    base_name = getattr(getattr(base, "config", None), "_name_or_path", "") or type(base).__name__
    made_for = config.base_model_name_or_path
    hint = f"The adapter was made for '{made_for}' and the base is '{base_name}'; check that they belong together."
    if made_for == base_name:
        hint = f"Adapter and base both are of '{base_name}', so one has changed: try the base's older revisions."
    if isinstance(error, KeyError):
        return UpdateMismatchError(f"{WEIGHTS_NAME} lacks the tensor {error}.", hint)
    lines = [line.strip() for line in str(error).splitlines() if "size mismatch for" in line]
    if lines:
        shown = " ".join(line.removeprefix("size mismatch for ") for line in lines[:3])
        return UpdateMismatchError(f"{_count(lines)} of another shape than the base: {shown}", hint)
    return UpdateMismatchError(f"The adapter does not fit the base model: {error}", hint)


def _tensor_names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _count(names: Sequence[str]) -> str:
    return "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"


def _few(names: Iterable[str], count: int = 3) -> str:
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(f"'{name}'" for name in names[:count]) + more
