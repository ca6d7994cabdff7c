"""Checkpoints of whole models on this disk, read by their headers alone, and how their tensors become parameters."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from taia_hub import hub
from taia_hub.errors import RepositoryError, UnsupportedUpdateError, UpdateMismatchError
from taia_hub.weights.skeleton import skeleton

SINGLE = "model.safetensors"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The dtypes of weights that are read, by safetensors' names; any other one is a quantised form."""

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_INTEGERS = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
_OTHERS = {**_INTEGERS, "BOOL": torch.bool}
_FINITE = {**DTYPES, "F8_E4M3": torch.float32, "F8_E5M2": torch.float32}
# ^ kinds that can hold NaN, to the dtype that torch finds it in
DTYPE_NAMES = {dtype: name for name, dtype in {**DTYPES, **_OTHERS}.items()}
"""Safetensors' name of each dtype that `StoredTensor.dtype` gives."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file.

    Attributes:
        kind: Its dtype, by safetensors' name.
        start: Where its bytes begin in the file.
        size: Number of its bytes.
    """

    name: str
    file: Path
    kind: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype; an `UnsupportedUpdateError` where only quantised weights have such a one."""
        if (dtype := DTYPES.get(self.kind) or _OTHERS.get(self.kind)) is None:
            raise UnsupportedUpdateError(
                f"'{self.file}' holds '{self.name}' as {self.kind}: its weights are quantised.",
                "Name a model in float32, bfloat16 or float16.",
            )
        return dtype

    def read(self) -> Tensor:
        """Reads the tensor, memory-mapped."""
        try:
            with safe_open(self.file, framework="pt") as file:
                tensor: Tensor = file.get_tensor(self.name)
        except (SafetensorError, OSError) as error:
            raise hub.damaged(self.file, error) from error
        return tensor

    def read_rows(self, first: int, count: int) -> Tensor:
        """Reads some rows of a matrix."""
        try:
            with safe_open(self.file, framework="pt") as file:
                rows: Tensor = file.get_slice(self.name)[first : first + count]
        except (SafetensorError, OSError) as error:
            raise hub.damaged(self.file, error) from error
        return rows


@dataclass(frozen=True)
class Group:
    """Tensors of a checkpoint that become parameters together: often one and one, but experts are joined.

    Attributes:
        sources: The tensors, each with the pattern of the converter that takes it.
        shapes: Name of each parameter of the model that they become, to its shape.
        converter: What joins or splits them; None where the tensor is the parameter.
    """

    sources: tuple[tuple[StoredTensor, str], ...]
    shapes: Mapping[str, tuple[int, ...]]
    converter: WeightConverter | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors in the files."""
        return tuple(stored.name for stored, _ in self.sources)

    @property
    def patterns(self) -> tuple[str, ...]:
        """Patterns of the converter, of each tensor."""
        return tuple(pattern for _, pattern in self.sources)

    def convert(self, model: Any, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Makes the parameters, by name; some conversions ask the model for sizes. `tensors` are those of `sources`."""
        if self.converter is None:
            return dict(zip(self.shapes, tensors, strict=True))
        return _convert(self.converter, next(iter(self.shapes)), self.sources, tensors, model)


@dataclass(frozen=True)
class Checkpoint:
    """A whole model on this disk, and on the meta device.

    Attributes:
        groups: Name of each parameter and persistent buffer to the tensors that it is made of. Tied parameters have
            the same group.
        unused: Names of the tensors that belong to no parameter; transformers ignores them too.
    """

    folder: Path
    model: PreTrainedModel
    groups: Mapping[str, Group]
    unused: tuple[str, ...]

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config


def open_checkpoint(folder: Path, *, what: str, trust_remote_code: bool = False) -> Checkpoint:
    """Reads the configuration of a whole model and the headers of its weights; no weight is read.

    Raises:
        RepositoryError: If files are missing, pickled, truncated or damaged; the message calls the model `what`.
        ConfigError: If the configuration is of no causal language model of transformers.
        UnsupportedUpdateError: If the weights are quantised.
        UpdateMismatchError: If weights are missing or have shapes that the configuration does not say.
    """
    if not (folder / hub.CONFIG).is_file():
        raise RepositoryError(f"The {what} '{folder}' has no {hub.CONFIG}.", "Give the folder of a whole model.")
    values = hub.read_json(folder / hub.CONFIG)
    if values.get("quantization_config"):
        raise UnsupportedUpdateError(
            f"The weights of the {what} '{folder}' are quantised, so that they cannot be compared or exchanged.",
            "Name a model in float32, bfloat16 or float16.",
        )
    tensors = read_headers(folder, what)
    model = skeleton(hub.Source(str(folder), folder, None), hub.HubAccess(), trust_remote_code, what=what)
    groups, unused = group_tensors(model, tensors)
    found = {name: group for group in groups for name in group.shapes}
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in own.items():
        if name in found and found[name].shapes[name] != shape:
            raise UpdateMismatchError(
                f"The {what} '{folder}' holds '{name}' with shape {found[name].shapes[name]}; its {hub.CONFIG} says "
                f"{shape}.",
                "Save the model again with transformers.",
            )
    tie(model, found)
    if missing := [name for name in own if name not in found]:
        raise UpdateMismatchError(
            f"The {what} '{folder}' lacks {len(missing)} of the model's {len(own)} tensors, first '{missing[0]}'.",
            f"It must be a whole {type(model).__name__}; download or save it again.",
        )
    return Checkpoint(folder, model, found, unused)


def read_headers(folder: Path, what: str) -> dict[str, StoredTensor]:
    """Returns name to place of each tensor that a whole model's files hold; messages call the model `what`."""
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if (folder / hub.MODEL_INDEX).is_file():
        return read_shards(folder, hub.MODEL_INDEX)
    if any((folder / name).is_file() for name in _PICKLES):
        raise RepositoryError(
            f"The {what} '{folder}' holds pickled weights, which can run code when they are loaded; only safetensors "
            "are read.",
            "Convert them: `AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)`.",
        )
    if (folder / hub.ADAPTER_CONFIG).is_file():
        raise RepositoryError(
            f"The {what} '{folder}' is an adapter, not a whole model.",
            "Use `taia create BASE ADAPTER` without --dense.",
        )
    raise RepositoryError(
        f"The {what} '{folder}' has no {SINGLE} and no {hub.MODEL_INDEX}.", "Download or save it again."
    )


def read_shards(folder: Path, index: str) -> dict[str, StoredTensor]:
    """Returns name to place of each tensor of all shards that an index names, all of which must be whole."""
    found: dict[str, StoredTensor] = {}
    for name in hub.index_shards(folder / index):
        if not (folder / name).is_file():
            raise RepositoryError(f"'{folder}' has no '{name}', which {index} names.", "Download or save it again.")
        found |= read_header(folder / name)
    for name, file in hub.read_json(folder / index)["weight_map"].items():
        if name not in found or found[name].file.name != file:
            raise RepositoryError(
                f"'{folder / file}' lacks the tensor '{name}', which {index} says is there.",
                "Download or save it again.",
            )
    return found


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Returns name to place of each tensor that a safetensors file holds, and checks that the file is whole."""
    try:
        with safe_open(path, framework="pt"):  # checks header and size
            pass
    except (SafetensorError, OSError) as error:
        raise hub.damaged(path, error) from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(
            name,
            path,
            entry["dtype"],
            tuple(entry["shape"]),
            8 + length + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }


def check_numbers(files: Iterable[Path], what: str) -> None:
    """Refuses weights with values that are no numbers or infinite: every answer would be of them, or empty.

    Raises:
        RepositoryError: If there are some; the message names the first tensor and calls what the files are `what`.
    """
    found = [
        one.name
        for path in files
        if path.suffix == ".safetensors"
        for one in read_header(path).values()
        if one.kind in _FINITE and not torch.isfinite(one.read().to(_FINITE[one.kind])).all()
    ]
    if found:
        raise RepositoryError(
            f"The {what} holds NaN or infinite values in {len(found)} of its tensors, first '{found[0]}'.",
            "Its training diverged: take an earlier checkpoint, or train again with a lower learning rate or in "
            "bfloat16 or float32.",
        )


def group_tensors(
    model: PreTrainedModel, tensors: Mapping[str, StoredTensor]
) -> tuple[tuple[Group, ...], tuple[str, ...]]:
    """Finds which parameters the tensors of a checkpoint become, as transformers does when it loads them.

    The model must still be of its own class, on any device: transformers goes by the class's name. Besides the groups,
    returns the names of the tensors that belong to no parameter.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    own, prefix = model.state_dict(), model.base_model_prefix
    collected: dict[str, list[tuple[StoredTensor, str]]] = {}
    unused = []
    for key in sorted(tensors, key=by_number):
        name, pattern = rename_source_key(key, renamings, converters, prefix, own)
        if name not in own and key in own:
            name, pattern = rename_source_key(key, [], [], prefix, own)
        if name in own:
            collected.setdefault(name, []).append((tensors[key], pattern or ""))
        else:
            unused.append(key)
    groups = []
    for name, sources in collected.items():
        if not sources[0][1]:
            groups.append(Group(tuple(sources[:1]), {name: sources[0][0].shape}))
            unused += [stored.name for stored, _ in sources[1:]]
            continue
        converter = copy.deepcopy(by_pattern[sources[0][1]])
        like = [torch.empty(stored.shape, dtype=stored.dtype, device="meta") for stored, _ in sources]
        try:
            made = _convert(converter, name, sources, like, model)
        except (RuntimeError, ValueError, IndexError) as error:
            raise UpdateMismatchError(
                f"The {len(sources)} tensors of '{name}', first '{sources[0][0].name}', do not go together: {error}",
                "Download or save the checkpoint again.",
            ) from error
        groups.append(Group(tuple(sources), {key: tuple(tensor.shape) for key, tensor in made.items()}, converter))
    return tuple(groups), tuple(unused)


def by_number(name: str) -> tuple[tuple[int, str], ...]:
    """Orders names so that expert 10 comes after expert 2, as transformers joins them."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name))


def _convert(
    converter: WeightConverter,
    name: str,
    sources: Iterable[tuple[StoredTensor, str]],
    tensors: Sequence[Tensor],
    model: Any,
) -> dict[str, Tensor]:
    joined: Any = copy.deepcopy(converter)
    pieces: dict[str, list[Tensor]] = {}
    for (_, pattern), tensor in zip(sources, tensors, strict=True):
        pieces.setdefault(pattern, []).append(tensor)
    joined.collected_tensors.update(pieces)
    made: dict[str, Any] = joined.convert(name, model=model, config=model.config)
    return {key: value[0] if isinstance(value, list) else value for key, value in made.items()}


def tie(model: PreTrainedModel, found: dict[str, Group]) -> None:
    """Gives tied parameters that the files hold once the group of the one that is there."""
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for target, source in tied.items():
        if target not in found and source in found:
            found[target] = found[source]
        elif source not in found and target in found:
            found[source] = found[target]
    for target, source in tied.items():  # more than two names for one tensor
        if target not in found and source in found:
            found[target] = found[source]
