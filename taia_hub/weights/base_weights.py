"""Single weights of a base model, under the names that a loaded model has; on the Hub only their files are fetched."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import SafetensorsParsingError
from torch import Tensor
from transformers import PreTrainedModel

from taia_hub import hub
from taia_hub.errors import RepositoryError, TAIAError, UpdateMismatchError
from taia_hub.weights.checkpoint import (
    DTYPES,
    SINGLE,
    Group,
    StoredTensor,
    group_tensors,
    read_header,
    read_headers,
    tie,
)

logger = logging.getLogger(__name__)

_WITHOUT = "leave out what needs its weights (--relative, --refine)"


@dataclass(frozen=True)
class HubTensor(StoredTensor):
    """A tensor in a safetensors file of a repository on the Hub, of which no more is fetched than its own bytes.

    `start` counts from the end of the file's header.
    """

    repo: hub.Source
    access: hub.HubAccess

    def read(self) -> Tensor:
        """Reads the tensor: from the cache where the file is there, else its bytes from the Hub."""
        return self._here().read() if self._here().file.is_file() else self._piece(self.shape, 0)

    def read_rows(self, first: int, count: int) -> Tensor:
        """Reads some rows of a matrix, and fetches no others."""
        if self._here().file.is_file():
            return self._here().read_rows(first, count)
        shape = (count, *self.shape[1:])
        return self._piece(shape, first * math.prod(shape[1:]) * self.dtype.itemsize)

    def _here(self) -> StoredTensor:
        path = self.repo.folder / self.file
        return StoredTensor(self.name, path, self.kind, self.shape, self.start, self.size)

    def _piece(self, shape: tuple[int, ...], start: int) -> Tensor:
        file, size = self.file.as_posix(), math.prod(shape) * self.dtype.itemsize
        begin = 8 + int.from_bytes(hub.read_bytes(self.repo, file, 0, 8, self.access), "little") + self.start + start
        content = bytearray(hub.read_bytes(self.repo, file, begin, size, self.access))
        return torch.frombuffer(content, dtype=self.dtype).reshape(shape) if content else torch.empty(shape)


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
        """Checks that weights are there and of numbers that can be read, before any is downloaded."""
        names = tuple(names)
        if missing := [name for name in names if name not in self.groups]:
            raise UpdateMismatchError(
                f"The base model '{self.base.name}' lacks {len(missing)} of the weights that the update is for, first "
                f"'{missing[0]}'.",
                f"Check the base model and its revision, or {_WITHOUT}.",
            )
        for stored in (stored for name in names for stored, _ in self.groups[name].sources):
            self._check_kind(stored)

    def read(self, name: str) -> Tensor:
        """Reads one weight by its name in the loaded model, in the dtype of its file."""
        group = self.groups[name]
        made = group.convert(self.model, [self._tensor(stored) for stored, _ in group.sources])
        return made[name] if name in made else next(iter(made.values()))  # a tied weight is in the file once

    def _check_kind(self, stored: StoredTensor) -> None:
        if stored.kind not in DTYPES:
            raise RepositoryError(
                f"The base model '{self.base.name}' holds '{stored.name}' as {stored.kind}: its weights are quantised.",
                f"Name the unquantised model that it was made from, or {_WITHOUT}.",
            )

    def _tensor(self, stored: StoredTensor) -> Tensor:
        self._check_kind(stored)
        if self.base.revision is None:  # a folder's files are named with it
            return stored.read()
        path = hub.bring(self.base, stored.file.as_posix(), self.access, what="base model")
        return dataclasses.replace(stored, file=path.absolute()).read()


def base_reader(
    base: hub.Source, access: hub.HubAccess, make: Callable[[], PreTrainedModel]
) -> Callable[[str], Tensor | None]:
    """Gives what reads single weights of a base by their names, in the dtype of its files; None where it cannot.

    `make` builds the base on the meta device, with no update in it. Nothing is read, or built, before it is asked for.
    """

    @functools.cache
    def opened() -> BaseWeights:
        return open_base(base, make(), access)

    def read(name: str) -> Tensor | None:
        try:
            group = opened().groups[name]
            made = group.convert(opened().model, [stored.read() for stored, _ in group.sources])
        except (TAIAError, KeyError) as error:
            logger.warning("'%s' of the base model '%s' cannot be read: %s", name, base.name, error)
            return None
        return made[name] if name in made else next(iter(made.values()))  # a tied weight is in the file once

    return read


def open_base(base: hub.Source, model: PreTrainedModel, access: hub.HubAccess) -> BaseWeights:
    """Reads the headers of a base model's weights; `model` is the base on the meta device."""
    groups, _ = group_tensors(model, headers_of(base, access))
    found = {name: group for group in groups for name in group.shapes}
    tie(model, found)
    return BaseWeights(base, access, model, found)


def headers_of(base: hub.Source, access: hub.HubAccess) -> dict[str, StoredTensor]:
    """Returns name to place of each tensor that a base model's files hold; on the Hub they are not fetched."""
    if base.revision is None:
        return read_headers(base.folder, "base model")
    names = hub.names_at(base, access, what="base model")
    if SINGLE in names:
        return header_at(base, SINGLE, access, what="base model")
    if hub.MODEL_INDEX not in names:
        raise RepositoryError(
            f"The base model '{base.name}' has no safetensors at its root.",
            f"Only safetensors are read: name a converted base, or {_WITHOUT}.",
        )
    index = hub.bring(base, hub.MODEL_INDEX, access, what="base model")
    held = hub.read_json(index).get("weight_map") or {}
    headers = {file: header_at(base, file, access, what="base model") for file in hub.index_shards(index)}
    return {key: headers[file][key] for key, file in held.items() if key in headers[file]}


def header_at(source: hub.Source, file: str, access: hub.HubAccess, *, what: str) -> dict[str, StoredTensor]:
    """Returns name to place of each tensor in a file of the Hub, which is not brought here for it.

    Raises:
        RepositoryError: If it is not there, out of reach or no safetensors file.
    """
    if (source.folder / file).is_file():
        here = read_header(source.folder / file)
        values = ((one.kind, one.shape, one.start, one.size, source, access) for one in here.values())
        return {name: HubTensor(name, Path(file), *one) for name, one in zip(here, values, strict=True)}
    try:
        found = hub.safetensors_header(source, file, access, what=what)
    except SafetensorsParsingError as error:
        raise RepositoryError(
            f"'{file}' of '{source.name}' is no whole safetensors file: {error}", "Publish it again."
        ) from error
    return {
        name: HubTensor(name, Path(file), one.dtype, tuple(one.shape), begin, end - begin, source, access)
        for name, one in found.tensors.items()
        for begin, end in (one.data_offsets,)
    }
