"""An update on its base's structure: what acts under a setting, and the base's own weights when they are needed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from taia_hub import hub
from taia_hub.errors import UnsupportedUpdateError
from taia_hub.hub.config import Fields
from taia_hub.hub.layout import PREFIX, UpdateKind
from taia_hub.repository.update_files import Repository, open_repository
from taia_hub.switch.switch import Switch
from taia_hub.updates.attaching import Update
from taia_hub.updates.peft.plain_lora import LeanLora
from taia_hub.updates.peft.strict import ADAPTER
from taia_hub.updates.weightless import Attached, Entry, attach_weightless
from taia_hub.weights.base_model import quantised
from taia_hub.weights.base_weights import base_reader
from taia_hub.weights.checkpoint import Checkpoint, open_checkpoint
from taia_hub.weights.skeleton import skeleton


@dataclass(frozen=True)
class OpenedUpdate:
    """An update on the structure of its base model, without the base's weights."""

    files: Repository
    attached: Attached

    @property
    def config(self) -> Fields:
        """Configuration of the TAIA repository."""
        return self.files.config

    @property
    def folder(self) -> Path:
        """Folder with the update's files."""
        return self.files.folder

    @property
    def kind(self) -> UpdateKind:
        """The kind of update."""
        return self.files.kind

    @property
    def base(self) -> hub.Source:
        """The base model; only its configuration is on this disk."""
        return self.files.base

    @property
    def update(self) -> Update | LeanLora:
        """The attached update."""
        return self.attached.update

    @property
    def model(self) -> Any:
        """The base model on the meta device, with PEFT's layers unless the update was opened lean."""
        return self.attached.update.head_model

    @property
    def switch(self) -> Switch:
        """What says which weights a setting gives to `switch.sites`."""
        return self.attached.switch

    @property
    def layers(self) -> tuple[Entry, ...]:
        """Name in the injected model, site and layer of each adapted module; as of `Attached`."""
        return self.attached.layers

    @property
    def streamed(self) -> bool:
        """Whether the tensors stay in the file and are read one layer at a time, by `holding`."""
        return self.attached.streamed

    @property
    def resized(self) -> dict[str, int]:
        """Name of each of the base's parameters that the update gives another number of rows, to that number."""
        prefix = f"{self.model.base_model_prefix}." if self.files.features_only else ""
        return {prefix + name: rows for name, rows in getattr(self.update, "resized", {}).items()}

    @cached_property
    def print(self) -> dict[str, Any]:
        """What tells update and base from others, as JSON values; the base's weights need not be here."""
        files = [hub.sha256(self.folder / name) for name in (self.kind.config, self.kind.weights)]
        return {"base": hub.base_print(self.base), "update": files}

    def weights(self, setting: Any) -> tuple[tuple[Entry, float], ...]:
        """Says how strongly each of `layers` acts under a setting, which is one for all rows.

        Raises:
            SettingError: If the setting is not understood or cannot act on this update.
        """
        weights = dict(zip(map(id, self.switch.sites), self.switch.resolve(setting).weights, strict=True))
        return tuple((entry, float(weights[id(entry[1])])) for entry in self.layers)  # type: ignore[arg-type]

    @cached_property
    def keys(self) -> dict[int, str]:
        """`id` of each parameter of a streamed update to the name of its tensor in the file."""
        held = set(hub.tensor_shapes(self.folder / self.kind.weights))
        found: dict[int, str] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            key = PREFIX + name.replace(".modules_to_save.", ".").replace(f".{ADAPTER}", "")
            for candidate in (key, key.removesuffix(".weight")):  # DoRA's magnitudes lose their last part
                if candidate in held and f".{ADAPTER}" in name:
                    found.setdefault(id(parameter), candidate)
                    break
        return found


def open_update(
    source: str | os.PathLike[str] | Repository,
    *,
    revision: str | None = None,
    access: hub.HubAccess,
    trust_remote_code: bool = False,
    lean: bool = False,
) -> OpenedUpdate:
    """Opens the update of a TAIA repository, or a plain one, without the base model's weights.

    Where `lean`, a LoRA of linear layers alone is read without PEFT's layers: enough to export, not to merge.

    Example:
        ```python
        update = open_update("org/model-taia", access=hub.HubAccess())
        [(site.path, weight) for (_, site, _), weight in update.weights("attention")]
        ```
    """
    if isinstance(source, Repository):
        files = source
    else:
        files = open_repository(source, access, revision=revision).with_weights(access)

    def make() -> PreTrainedModel:
        return skeleton(files.base, access, trust_remote_code, features_only=files.features_only)

    read_base = base_reader(files.base, access, make)
    attached = attach_weightless(make, files.folder, files.kind, files.settings, read_base=read_base, lean=lean)
    attached.switch.published = files.config
    return OpenedUpdate(files, attached)


def base_checkpoint(update: OpenedUpdate, access: hub.HubAccess, *, trust_remote_code: bool = False) -> Checkpoint:
    """Fetches the base model's weights and reads their headers; pickled and quantised ones are refused."""
    check_not_quantised(update.base)
    source = hub.fetch_model(
        update.base.name,
        ("*.py", *hub.TOKENIZER_FILES),
        revision=update.base.revision,
        access=access,
        what="base model",
        local=update.base.revision is None,
    )
    return open_checkpoint(source.folder, what="base model", trust_remote_code=trust_remote_code)


def check_not_quantised(base: hub.Source) -> None:
    """Refuses a base model whose weights are quantised, before they are downloaded."""
    if method := quantised(hub.read_json(base.folder / hub.CONFIG)):
        raise UnsupportedUpdateError(
            f"The weights of the base model '{base.name}' are quantised ({method}), so that an update cannot be added "
            "to them exactly.",
            "Merge into the unquantised model that it was made from: name that one with --base. Where there is none, "
            "load the base with `dequantize=True` in its quantisation config, `save_pretrained` it, and name that "
            "folder; quantise the merged model afterwards.",
        )
