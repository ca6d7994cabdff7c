"""What a TAIA repository holds, read from its configuration and the header of its weights; no weights are loaded."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from taia_hub import hub
from taia_hub.errors import ConfigError
from taia_hub.hub.layout import PEFT, PREFIX
from taia_hub.repository.update_files import Repository, open_repository, own_tokenizer
from taia_hub.results import TUNING_FILE, Tuned
from taia_hub.roles import ROLES
from taia_hub.roles.sublayers import find_sublayers
from taia_hub.switch.modes import MODES
from taia_hub.updates.peft.carried import find_carried
from taia_hub.updates.peft.fitting import fitted
from taia_hub.weights.base_weights import base_reader, header_at
from taia_hub.weights.checkpoint import StoredTensor, read_header
from taia_hub.weights.skeleton import skeleton

_FIXED = re.compile(r"\.(?:p?vera|randlora)_[AB]$")
# ^ random projections, which are saved along and never trained, as are integers, which say where values belong


@dataclass(frozen=True)
class RoleInfo:
    """The update's part of one role; `bytes` are those in the file."""

    modules: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class TuningInfo:
    """What `taia tune` chose.

    Attributes:
        label: Its name for the setting.
        date: The day.
        published: Whether the repository publishes that setting.
    """

    label: str
    date: str
    published: bool


@dataclass(frozen=True)
class RepositoryInfo:
    """What a TAIA repository or a plain adapter holds; revisions are commit shas, or None for a folder.

    Attributes:
        base_parameters: Number of the base model's parameters.
        inference_modules: The published default; None of a plain adapter, which has none.
        method: PEFT's name of the update's method, as in `"LORA"`.
        rank: The rank, or role to rank; None where the method has none. `alpha` likewise.
        patterns: What other ranks and alphas the configuration gives to some modules, by its name for them.
        location: Where the update lies: a path in the repository, or `repo@revision/path`.
        tokenizer: Where its tokenizer is from: `"its own"`, `"its adapter's"` or `"the base model's"`.
        modes: Mode name to the number of the update's parameters that act.
        unplaced: Paths of base modules whose role could not be told; they count as `other`.
        tuning: What was chosen by a tuning of this update that lies beside it; None without one.
        vocabulary: Rows of the update's embeddings and head, where they are not as many as the base's.
    """

    name: str
    revision: str | None
    base_model: str
    base_revision: str | None
    base_parameters: int
    inference_modules: Any
    method: str
    rank: Any
    alpha: Any
    patterns: Mapping[str, Mapping[str, float]]
    location: str
    bytes: int
    dtypes: tuple[str, ...]
    tokenizer: str
    roles: Mapping[str, RoleInfo]
    modes: Mapping[str, int]
    unplaced: tuple[str, ...]
    vocabulary: int | None = None
    tuning: TuningInfo | None = None


def repository_info(
    name: str,
    access: hub.HubAccess | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> RepositoryInfo:
    """Reads what a repository or plain adapter holds, without weights: only some kilobytes are fetched."""
    access = access or hub.HubAccess()
    found = open_repository(name, access, revision=revision)
    return info_of(found, lambda: skeleton(found.base, access, trust_remote_code), access)


def info_of(found: Repository, make: Callable[[], PreTrainedModel], access: hub.HubAccess) -> RepositoryInfo:
    """Says what an opened repository holds; `make` builds its base's structure.

    Raises:
        UpdateMismatchError: If the update is of another vocabulary than the base, and lacks rows of it.
    """
    model, tensors, vocabulary = make(), tensors_of(found, access), None
    placed, exchanged = find_sublayers(model), set[str]()
    if found.kind is PEFT:
        shapes = {key: one.shape for key, one in tensors.items()}
        fit = fitted(found.settings, shapes, model)
        tensors = {fit.names[key]: one for key, one in tensors.items()}
        shapes = {fit.names[key]: one for key, one in shapes.items()}
        carried = find_carried(model, found.settings, shapes)
        read = base_reader(found.base, access, make)
        tensors = {key: one for key, one in tensors.items() if not carried.is_idle(key, one, read)}
        vocabulary, exchanged = next(iter(carried.resized.values()), None), carried.exchanged_by(tensors)
    paths = dict(model.named_modules())
    modules: dict[str, dict[str, tuple[int, int]]] = {role: {} for role in ROLES}
    for path in exchanged:
        modules[placed.roles.get(path, "other")][path] = 0, 0
    for key, stored in tensors.items():
        if found.kind is PEFT and (_FIXED.search(key) or stored.kind.startswith(("I", "U"))):
            continue
        path = _module_of(key, paths)
        of_role = modules[placed.roles.get(path, "other")]
        before = of_role.get(path, (0, 0))
        of_role[path] = before[0] + math.prod(stored.shape), before[1] + stored.size
    roles = {
        role: RoleInfo(len(parts), sum(count for count, _ in parts.values()), sum(size for _, size in parts.values()))
        for role, parts in modules.items()
    }
    path, is_here = found.place.path, found.config.update.get("repo") is None
    elsewhere = f"{found.holder.name}@{str(found.holder.revision)[:8]}/{path}".removesuffix("/")
    return RepositoryInfo(
        name=found.name,
        revision=found.revision,
        base_model=found.base.name,
        base_revision=found.base.revision,
        base_parameters=sum(parameter.numel() for parameter in model.parameters()),
        inference_modules=None if found.is_plain else found.config.inference_modules,
        method=found.method,
        **_ranks(found),
        location=(path or ".") if is_here else elsewhere,
        bytes=sum(stored.size for stored in tensors.values()),
        dtypes=tuple(sorted({stored.kind for stored in tensors.values()})),
        tokenizer=_tokenizer(found),
        roles=roles,
        modes={mode: sum(roles[role].parameters for role in acting) for mode, acting in MODES.items()},
        unplaced=placed.unplaced,
        vocabulary=vocabulary,
        tuning=None if found.is_plain else _tuning(found, access),
    )


def _tuning(found: Repository, access: hub.HubAccess) -> TuningInfo | None:
    """Reads what a tuning chose; one that is damaged tells nothing here, and is an error on the card."""
    source = hub.Source(found.name, found.root, found.revision)
    there = source.folder / TUNING_FILE
    if not (there.is_file() or (source.revision and hub.has_file(source, TUNING_FILE, access))):
        return None
    with contextlib.suppress(ConfigError):
        tuned = Tuned.load(hub.bring(source, TUNING_FILE, access))
        label = tuned.recommended.parsed.label
        return TuningInfo(tuned.choice.label, tuned.date, label == found.config.setting.label)
    return None


def _tokenizer(found: Repository) -> str:
    """Says whose tokenizer is used, of an opened repository."""
    own = own_tokenizer(found.places)
    return "the base model's" if own is None else "its own" if own.folder == found.root else "its adapter's"


def _ranks(found: Repository) -> dict[str, Any]:
    """Returns rank, alpha and their patterns as the update's configuration gives them."""
    values = hub.read_json(found.folder / found.kind.config)
    patterns = {name: values[name] for name in ("rank_pattern", "alpha_pattern") if values.get(name)}
    return {"rank": values.get("r", values.get("rank")), "alpha": values.get("lora_alpha", values.get("alpha"))} | {
        "patterns": patterns
    }


def tensors_of(found: Repository, access: hub.HubAccess) -> dict[str, StoredTensor]:
    """Returns name to place of each tensor of the update, from the files' headers."""
    kind, place, holder = found.kind, found.place, found.holder
    tensors: dict[str, StoredTensor] = {}
    if holder.revision is None:
        for path in hub.update_weights(found.folder, kind).values():
            tensors |= read_header(path) if path.suffix == ".safetensors" else {}
        return tensors
    names = hub.index_shards(found.folder / kind.weights) if kind.shards else (kind.weights,)
    for name in names:
        tensors |= header_at(holder, place.named(name), access, what="adapter repository")
    return tensors


def _module_of(key: str, modules: Mapping[str, Any]) -> str:
    """Finds the base module that a tensor of PEFT's file belongs to, by its longest prefix."""
    path = key.removeprefix(PREFIX)
    by_expert = ".experts." in path
    while path and path not in modules:
        path = path.rpartition(".")[0]
    if by_expert and not path.endswith(".experts"):  # transformers 4 had another module around them
        path = next((one for one in modules if one.startswith(f"{path}.") and one.endswith(".experts")), path)
    return path
