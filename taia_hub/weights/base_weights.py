"""Single weights of a base model, under the names that a loaded model has; on the Hub only their files are fetched."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError
from huggingface_hub.utils import SafetensorsFileMetadata
from torch import Tensor
from transformers import PreTrainedModel

from taia_hub import hub
from taia_hub.errors import RepositoryError, UpdateMismatchError
from taia_hub.weights.checkpoint import DTYPES, Group, StoredTensor, group_tensors, read_headers, tie


@dataclass(frozen=True)
class BaseWeights:
    """Reads single weights of a base model, by its parameters' and buffers' names; none is read before it is asked for.

    `model` is the base model on the meta device.
    """

    base: hub.Source
    access: hub.HubAccess
    model: PreTrainedModel
    groups: Mapping[str, Group]

    def require(self, names: Iterable[str]) -> None:
        """Checks that weights are there, before any is downloaded."""
        if missing := [name for name in names if name not in self.groups]:
            raise UpdateMismatchError(
                f"The base model '{self.base.name}' lacks {len(missing)} of the weights that the update is for, first "
                f"'{missing[0]}'.",
                "Check the base model and its revision, or leave out --relative.",
            )

    def read(self, name: str) -> Tensor:
        """Reads one weight by its name in the loaded model, in the dtype of its file."""
        group = self.groups[name]
        made = group.convert(self.model, [self._tensor(stored) for stored, _ in group.sources])
        return made[name] if name in made else next(iter(made.values()))  # a tied weight is in the file once

    def _tensor(self, stored: StoredTensor) -> Tensor:
        if stored.kind not in DTYPES:
            raise RepositoryError(
                f"The base model '{self.base.name}' holds '{stored.name}' as {stored.kind}: its weights are quantised.",
                "Norms relative to the base need an unquantised one: leave out --relative, or name it with --base.",
            )
        if self.base.revision is None:
            return stored.read()
        with hub.hub_errors(self.base.name, what="base model", revision=self.base.revision):
            path = hub.api(self.access.token).hf_hub_download(
                self.base.name, stored.file.as_posix(), revision=self.base.revision, cache_dir=self.access.cache_dir
            )
        return dataclasses.replace(stored, file=Path(path)).read()


def open_base(base: hub.Source, model: PreTrainedModel, access: hub.HubAccess) -> BaseWeights:
    """Reads the headers of a base model's weights; `model` is the base on the meta device."""
    groups, _ = group_tensors(model, headers_of(base, access))
    found = {name: group for group in groups for name in group.shapes}
    tie(model, found)
    return BaseWeights(base, access, model, found)


def headers_of(base: hub.Source, access: hub.HubAccess) -> dict[str, StoredTensor]:
    """Returns name to place of each tensor that a base model's files hold; on the Hub they are not fetched."""
    return read_headers(base.folder, "base model") if base.revision is None else _headers_on_hub(base, access)


def header_on_hub(file: str, metadata: SafetensorsFileMetadata) -> dict[str, StoredTensor]:
    """Returns name to place of each tensor in a file of the Hub that is not on this disk."""
    return {
        name: StoredTensor(name, Path(file), one.dtype, tuple(one.shape), begin, end - begin)
        for name, one in metadata.tensors.items()
        for begin, end in (one.data_offsets,)
    }


def _headers_on_hub(base: hub.Source, access: hub.HubAccess) -> dict[str, StoredTensor]:
    try:
        with hub.hub_errors(base.name, what="base model", revision=base.revision):
            found = hub.api(access.token).get_safetensors_metadata(base.name, revision=base.revision)
    except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
        raise RepositoryError(
            f"The base model '{base.name}' has no safetensors at its root.",
            "Only safetensors are read: leave out --relative, or name a converted base with --base.",
        ) from error
    headers = {name: header_on_hub(name, metadata) for name, metadata in found.files_metadata.items()}
    return {key: headers[file][key] for key, file in found.weight_map.items() if key in headers[file]}
