"""The base model's weights, one at a time, from a folder or the Hub, under the names that a loaded model has."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from taia_hub import hub
from taia_hub.errors import RepositoryError, UpdateMismatchError
from taia_hub.updates.peft.plain_lora import tensor_shapes

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class BaseWeights:
    """Reads single weights of a base model; nothing but headers is read or downloaded before the first one.

    Names and shapes are those of the loaded model: transformers renames what older checkpoints hold, and joins experts
    that they hold one by one. Of a model on the Hub, only the files that hold a wanted weight are downloaded.

    Args:
        base: The base model.
        model: The same on the meta device.
        access: How to reach the Hub.

    Raises:
        RepositoryError: If it has no safetensors, or they cannot be read.
    """

    def __init__(self, base: hub.Source, model: PreTrainedModel, access: hub.HubAccess) -> None:
        self._base, self._model, self._access = base, model, access
        self._files = self._headers()
        self._sources = self._plan()

    def require(self, names: Iterable[str]) -> None:
        """Checks that weights are there before any is downloaded.

        Args:
            names: Their names in the loaded model.

        Raises:
            UpdateMismatchError: If one is not.
        """
        missing = [name for name in names if name not in self._sources]
        if missing:
            raise UpdateMismatchError(
                f"The base model '{self._base.name}' lacks {len(missing)} of the weights that the update is for, first "
                f"'{missing[0]}'.",
                "Check the base model and its revision, or leave out --relative.",
            )

    def read(self, name: str) -> Tensor:
        """Reads one weight.

        Args:
            name: Its name in the loaded model.

        Returns:
            The weight, in the dtype of the file.

        Raises:
            RepositoryError: If its file cannot be downloaded or read, or holds it in a quantised form.
        """
        converter, sources = self._sources[name]
        pieces: dict[str, list[Tensor]] = {}
        for key, pattern in sources:
            pieces.setdefault(pattern, []).append(self._tensor(key))
        if converter is None:
            return next(iter(pieces.values()))[0]
        joined: Any = copy.deepcopy(converter)
        for pattern, tensors in pieces.items():
            joined.collected_tensors[pattern] = tensors
        found: dict[str, Any] = joined.convert(name, model=self._model, config=self._model.config)
        weight = found[name]
        return weight[0] if isinstance(weight, list) else weight

    def _headers(self) -> dict[str, str]:
        """Returns the name of every tensor, and the file that it is in."""
        if self._base.revision is None:
            return self._local_headers()
        try:
            with hub.hub_errors(self._base.name, what="base model", revision=self._base.revision):
                found = hub.api(self._access.token).get_safetensors_metadata(
                    self._base.name, revision=self._base.revision
                )
        except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
            raise self._no_safetensors() from error
        return dict(found.weight_map)

    def _local_headers(self) -> dict[str, str]:
        folder = self._base.folder
        if (folder / _INDEX).is_file():
            index = hub.read_json(folder / _INDEX).get("weight_map")
            if isinstance(index, dict):
                return {str(key): str(file) for key, file in index.items()}
        if not (folder / _SINGLE).is_file():
            raise self._no_safetensors()
        try:
            return dict.fromkeys(tensor_shapes(folder / _SINGLE), _SINGLE)
        except SafetensorError as error:
            raise self._damaged(folder / _SINGLE, error) from error

    def _plan(self) -> dict[str, tuple[WeightConverter | None, list[tuple[str, str]]]]:
        """Finds for every weight of the model the tensors that it is made of, as transformers does when it loads."""
        transforms = get_model_conversion_mapping(self._model)
        renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
        converters = [one for one in transforms if isinstance(one, WeightConverter)]
        by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
        parameters = self._model.state_dict()
        prefix = self._model.base_model_prefix
        plan: dict[str, tuple[WeightConverter | None, list[tuple[str, str]]]] = {}
        for key in sorted(self._files):  # experts in one order in all their parts
            name, pattern = rename_source_key(key, renamings, converters, prefix, parameters)
            if name not in parameters and key in parameters:
                name, pattern = key, None
            if name in parameters:
                converter = by_pattern[pattern] if pattern is not None else None
                plan.setdefault(name, (converter, []))[1].append((key, pattern or key))
        shared: dict[int, str] = {}
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            if name in plan:
                shared.setdefault(id(parameter), name)
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            if id(parameter) in shared:  # a tied head is in the file once
                plan.setdefault(name, plan[shared[id(parameter)]])
        return plan

    def _tensor(self, key: str) -> Tensor:
        path = self._path(self._files[key])
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise self._damaged(path, error) from error
        if tensor.dtype not in _PLAIN:
            raise RepositoryError(
                f"The base model '{self._base.name}' holds '{key}' as {str(tensor.dtype).removeprefix('torch.')}: its "
                "weights are quantised.",
                "Norms relative to the base need an unquantised one: leave out --relative, or name it with --base.",
            )
        return tensor

    def _path(self, name: str) -> Path:
        if self._base.revision is None:
            return self._base.folder / name
        with hub.hub_errors(self._base.name, what="base model", revision=self._base.revision):
            return Path(
                hf_hub_download(
                    self._base.name,
                    name,
                    revision=self._base.revision,
                    token=self._access.token,
                    library_name="taia-hub",
                )
            )

    def _no_safetensors(self) -> RepositoryError:
        return RepositoryError(
            f"The base model '{self._base.name}' has no safetensors at its root.",
            "Only safetensors are read: leave out --relative, or name a converted base with --base.",
        )

    @staticmethod
    def _damaged(path: Path, error: Exception) -> RepositoryError:
        return RepositoryError(f"'{path}' is missing, truncated or no safetensors file: {error}.", "Download it again.")
