"""Full fine-tunes: the tensors that differ from the base's, stored exactly and exchanged by reference."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from taia_hub import hub
from taia_hub.errors import RepositoryError, UnsupportedUpdateError, UpdateMismatchError
from taia_hub.hub.layout import DENSE, UpdateKind
from taia_hub.roles.sublayers import layer_of
from taia_hub.switch.switch import Site, Switch
from taia_hub.updates.dense.config import dense_groups, read_dense_config
from taia_hub.updates.dense.layers import TunedFiles, TunedTensor, check_tokens, refusal, same_rows, show_tuned
from taia_hub.updates.options import AttachOptions
from taia_hub.updates.peft.update import ROWS_REGROUPED
from taia_hub.weights.checkpoint import read_shards

DEFAULT_SETTING = "attention+other"
"""What a repository with a full fine-tune publishes: norms, embeddings and head stay tuned, as in the authors' code."""

_TRAIN = "Train a whole model with `taia train --method full`, and make a repository of what comes out."


@dataclass
class DenseUpdate:
    """A full fine-tune that is attached to a loaded base model; its tensors stay in `source` until they are used.

    `prefix` precedes the held model's parameter names in those of the head model.
    """

    head_model: nn.Module
    source: Path
    config: Mapping[str, Any]
    files: TunedFiles
    prefix: str = ""
    kind: UpdateKind = DENSE

    @property
    def method(self) -> str:
        """Name of the method."""
        return DENSE.name.upper()

    @property
    def settings(self) -> Mapping[str, Any]:
        """Contents of `dense_config.json`."""
        return self.config

    @property
    def resized(self) -> dict[str, int]:
        """Name of each parameter with another number of rows than the base's, to that number."""
        return {name: int(after) for name, (_, after) in self.config["resized"].items()}

    def parameters(self) -> dict[str, Tensor]:
        """Returns the update's tensors by the names that they have in its files, memory-mapped, on the CPU."""
        return {name: stored.read() for name, stored in read_shards(self.source, DENSE.weights).items()}

    def save(self, folder: Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Copies the update's files; `state_dict` is not asked, because the tuned tensors cannot have changed."""
        names = (DENSE.config, DENSE.weights, *hub.index_shards(self.source / DENSE.weights))
        if missing := [name for name in names if not (self.source / name).is_file()]:
            raise RepositoryError(
                f"'{self.source / missing[0]}' is gone, so that the update cannot be saved.", "Load the model again."
            )
        with hub.disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if folder.resolve() == self.source.resolve():
                return
            for name in names:
                shutil.copyfile(self.source / name, folder / name)

    def load(self, state_dict: Mapping[str, Tensor]) -> Any:
        """Refuses to take other tensors."""
        raise UnsupportedUpdateError(
            "The tensors of a full fine-tune are read from its files and cannot be replaced in a loaded model.", _TRAIN
        )

    def is_unchanged(self) -> bool:
        """Tells whether the tensors are still those of the files: always, because nothing here can change them."""
        return True


def attach_dense(
    base: nn.Module,
    folder: Path,
    options: AttachOptions,
) -> tuple[DenseUpdate, Switch]:
    """Puts a full fine-tune beside a base model and makes its modules obey a new switch.

    The base's parameters stay what they are and get no gradients any more. The tuned tensors stay on the disk until a
    setting first asks for them; then they are where the base's are, in the same dtype, so that `autocast_adapter_dtype`
    is not asked; `is_trainable` is refused. Else as `attach_update`.
    """
    if options.is_trainable:
        raise UnsupportedUpdateError("A full fine-tune beside its base model cannot be trained on.", _TRAIN)
    config = read_dense_config(folder)
    _check_base(base)
    groups = dense_groups(base, folder, config)
    files = TunedFiles(groups, base)
    regrouped = ROWS_REGROUPED.get(str(config.get("model_type")))
    owners = _owners(base, groups)
    sites, tensors, counted = [], [], set()
    shared: dict[tuple[str, int], TunedTensor] = {}
    for path, (module, names) in owners.items():
        if reason := refusal(module, names):
            raise UnsupportedUpdateError(
                f"'{path}' cannot show tuned tensors: {reason}.", "Merge base and fine-tune, or compress it to a LoRA."
            )
        tuned, count, whole = {}, 0, None
        resized = any(name in config["resized"] for name, _ in names.values())
        for attribute, (name, current) in names.items():
            key = next(iter(groups[name].shapes)) if name in config["aliases"] else name
            tuned[attribute] = shared.setdefault((key, id(current)), TunedTensor(files, key))
            if key not in counted:
                counted.add(key)
                count += current.numel()
            if name in config["resized"]:
                whole = "the fine-tune has another vocabulary"
                if isinstance(module, nn.Embedding):
                    module.register_forward_pre_hook(check_tokens)
            elif not current.is_floating_point():
                whole = "it holds whole numbers"
        alike = regrouped or (whole if resized else same_rows(module, path))
        method = type(module).__name__
        sites.append(Site(path, options.roles.get(path, "other"), layer_of(path), method, count, whole, alike))
        tensors.append(tuned)
    switch = Switch(sites, options.inference_modules, options.unplaced)
    for index, ((module, _), tuned) in enumerate(zip(owners.values(), tensors, strict=True)):
        show_tuned(module, switch, index, tuned)
    base.requires_grad_(False)
    return DenseUpdate(base, folder, config, files), switch


def _check_base(base: nn.Module) -> None:
    if getattr(base, "is_quantized", False) or getattr(base, "hf_quantizer", None) is not None:
        raise UnsupportedUpdateError(
            "The base model is quantised, so that tuned tensors cannot take the place of its own.",
            "Load it without quantisation, or compress the fine-tune to a LoRA with `--compress`.",
        )
    devices = {str(device) for device in (getattr(base, "hf_device_map", None) or {}).values()}
    hooks = [getattr(module, "_hf_hook", None) for module in base.modules()]
    if (
        "disk" in devices
        or ("cpu" in devices and any(parameter.is_meta for parameter in base.parameters()))
        or any(getattr(hook, "offload", False) for hook in hooks)
    ):
        raise UnsupportedUpdateError(
            "The device map leaves parts of the base model off its device, where they come and go with every call and "
            "tuned tensors cannot take their place.",
            "Use a device_map of GPUs alone or of the CPU alone, or a smaller dtype.",
        )


def _owners(base: nn.Module, groups: Iterable[str]) -> dict[str, tuple[nn.Module, dict[str, tuple[str, Tensor]]]]:
    """Returns path to each module with tuned tensors, and their attribute names, names and the base's tensors."""
    wanted, owners = set(groups), {}
    for path, module in base.named_modules():
        names = {}
        for own in (module._parameters, module._buffers):
            for attribute, current in own.items():
                name = f"{path}.{attribute}".lstrip(".")
                if name in wanted and current is not None:
                    names[attribute] = name, current
        if names:
            owners[path] = module, names
    if missing := wanted - {name for _, names in owners.values() for name, _ in names.values()}:
        raise UpdateMismatchError(
            f"The base model has no module that owns '{min(missing)}'.",
            "Name the base that the fine-tune was made from.",
        )
    return owners
