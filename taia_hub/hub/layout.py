"""The kinds of update that a repository can hold, and the files of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class UpdateKind:
    """How updates of one kind lie in a folder.

    Attributes:
        name: The kind, as in `config.json`.
        folder: The folder that such an update is written to.
        config: Name of its configuration.
        weights: The file whose sha256 names the update: its weights or, where they are sharded, the index that holds
            the shards' hashes.
        shards: Glob on the names of its shards; empty where there are none.
        noun: What messages call it.
    """

    name: str
    folder: str
    config: str
    weights: str
    shards: str = ""
    noun: str = "update"

    @property
    def files(self) -> tuple[str, ...]:
        """Names, or globs on them, of all its files."""
        return tuple(filter(None, (self.config, self.weights, self.shards)))


MODEL_INDEX = "model.safetensors.index.json"
"""What names the shards of a whole model."""

PREFIX = "base_model.model."
"""What the name of every tensor in PEFT's file begins with."""

PEFT = UpdateKind("peft", "adapter", "adapter_config.json", "adapter_model.safetensors", noun="adapter")
MOLORA = UpdateKind("molora", "molora", "molora_config.json", "molora_model.safetensors", noun="MoLoRA update")
DENSE = UpdateKind(
    "dense",
    "dense",
    "dense_config.json",
    "dense.safetensors.index.json",
    shards="dense-*-of-*.safetensors",
    noun="full fine-tune",
)

KINDS: Mapping[str, UpdateKind] = {kind.name: kind for kind in (PEFT, MOLORA, DENSE)}
"""The kinds of update that this version reads, by name."""


def find_kind(folder: Path) -> UpdateKind:
    """Tells the kind of the update in a folder by its configuration; that of PEFT where nothing says otherwise."""
    return next((kind for kind in (MOLORA, DENSE) if (folder / kind.config).is_file()), PEFT)


@dataclass(frozen=True)
class UpdatePlace:
    """Where a repository keeps its update.

    Attributes:
        kind: The kind of update.
        path: Folder of the update; empty for the root.
    """

    kind: UpdateKind
    path: str

    @classmethod
    def of(cls, update: Mapping[str, Any]) -> UpdatePlace:
        """Reads `update` of a checked `config.json`.

        Example:
            >>> UpdatePlace.of({"kind": "peft", "path": "adapter"}).weights
            'adapter/adapter_model.safetensors'
        """
        return cls(KINDS[update["kind"]], update.get("path", ""))

    @property
    def config(self) -> str:
        """Path of the update's configuration in the repository."""
        return self.named(self.kind.config)

    @property
    def weights(self) -> str:
        """Path of the file whose sha256 names the update."""
        return self.named(self.kind.weights)

    @property
    def files(self) -> tuple[str, ...]:
        """Paths, or globs on them, of all files of the update."""
        return tuple(self.named(name) for name in self.kind.files)

    def named(self, name: str) -> str:
        """Returns the path in the repository of a file of the update."""
        return f"{self.path}/{name}".lstrip("/")


_METHODS = {
    **{"LORA": "LoRA", "MOLORA": "MoLoRA", "DENSE": "full fine-tune", "LOHA": "LoHa", "LOKR": "LoKr"},
    **{"ADALORA": "AdaLoRA", "XLORA": "X-LoRA", "VERA": "VeRA", "RANDLORA": "RandLoRA", "FOURIERFT": "FourierFT"},
    **{"LN_TUNING": "LayerNorm tuning", "SHIRA": "SHiRA", "MISS": "MiSS", "FROD": "FRoD", "ADAMSS": "AdaMSS"},
}


def method_name(method: str) -> str:
    """Returns the name of an update's method as people write it.

    Example:
        >>> method_name("LORA"), method_name("DENSE"), method_name("OFT")
        ('LoRA', 'full fine-tune', 'OFT')
    """
    return _METHODS.get(method, method)
