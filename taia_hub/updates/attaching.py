"""Attaching an update of any kind to its base model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from taia_hub.hub.layout import DENSE, MOLORA, PEFT, UpdateKind
from taia_hub.switch.switch import Switch
from taia_hub.updates.dense.config import read_dense_config
from taia_hub.updates.dense.update import attach_dense
from taia_hub.updates.molora.config import read_molora_config
from taia_hub.updates.molora.update import attach_molora
from taia_hub.updates.options import AttachOptions
from taia_hub.updates.peft.update import attach_update, read_config


class Update(Protocol):
    """An update that is attached to a loaded model.

    Attributes:
        source: Folder that it was read from; its bytes are kept while the weights are unchanged.
        prefix: What precedes the held model's parameter names in those of the head model.
    """

    source: Path
    prefix: str

    @property
    def kind(self) -> UpdateKind:
        """Which files an update of this kind has."""

    @property
    def method(self) -> str:
        """Name of the method, as in `"LORA"`."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Contents of the update's configuration file."""

    @property
    def head_model(self) -> nn.Module:
        """The base model with its head."""

    def parameters(self) -> dict[str, torch.Tensor]:
        """Returns the update's tensors by the names that they have in its files."""

    def save(self, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """Writes the update; an unchanged one keeps the bytes of its files."""

    def load(self, state_dict: Mapping[str, torch.Tensor]) -> Any:
        """Puts tensors with the names of the update's files into it."""

    def is_unchanged(self) -> bool:
        """Tells whether the tensors are still those of the files."""


_ATTACH: Mapping[UpdateKind, Callable[[Any, Path, AttachOptions], tuple[Any, Switch]]] = {
    PEFT: attach_update,
    MOLORA: attach_molora,
    DENSE: attach_dense,
}
_READ: Mapping[UpdateKind, Callable[[Path], Any]] = {
    PEFT: read_config,
    MOLORA: read_molora_config,
    DENSE: read_dense_config,
}


def attach(base: nn.Module, folder: Path, kind: UpdateKind, options: AttachOptions) -> tuple[Update, Switch]:
    """Puts an update on a base model, which is changed in place, and makes the model obey a new switch.

    Errors as of `taia_hub.updates.peft.update.attach_update`.
    """
    return _ATTACH[kind](base, folder, options)


def read_update_config(folder: Path, kind: UpdateKind) -> Any:
    """Reads and checks the configuration of an update, which is of a class that the kind has."""
    return _READ[kind](folder)


def base_of(config: Any) -> tuple[str | None, str | None]:
    """Returns name and revision of the base model that an update's configuration names; each may be None."""
    return getattr(config, "base_model_name_or_path", None), getattr(config, "revision", None)
