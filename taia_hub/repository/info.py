"""What a TAIA repository holds, read from its configuration and the header of its weights; no weights are loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taia_hub import hub
from taia_hub.configuration_taia import TAIAConfig
from taia_hub.errors import RepositoryError
from taia_hub.hub.layout import PEFT
from taia_hub.repository.reading import base_name, read_taia_config
from taia_hub.roles import ROLES
from taia_hub.roles.sublayers import find_sublayers
from taia_hub.switch.settings import MODES
from taia_hub.updates.peft.update import PREFIX
from taia_hub.weights.base_weights import header_on_hub
from taia_hub.weights.checkpoint import StoredTensor, read_header
from taia_hub.weights.skeleton import skeleton


@dataclass(frozen=True)
class RoleInfo:
    """The update's part of one role.

    Attributes:
        modules: Number of adapted modules.
        parameters: Number of the update's parameters.
        bytes: Their size in the file.
    """

    modules: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class RepositoryInfo:
    """What a TAIA repository holds.

    Attributes:
        name: Hub id or folder.
        revision: Commit sha, or None for a folder.
        base_model: Hub id or folder of the base model.
        base_revision: Commit sha of the base model, or None.
        inference_modules: The published setting, in the form that config.json stores.
        method: PEFT's name of the update's method, as in `"LORA"`.
        location: Where the update lies: a path in the repository, or `repo@revision/path`.
        bytes: Size of the update's tensors.
        dtypes: The dtypes in the file.
        roles: Role to the update's part of it.
        modes: Mode name to the number of the update's parameters that act.
        unplaced: Paths of base modules whose role could not be told; they count as `other`.
    """

    name: str
    revision: str | None
    base_model: str
    base_revision: str | None
    inference_modules: Any
    method: str
    location: str
    bytes: int
    dtypes: tuple[str, ...]
    roles: Mapping[str, RoleInfo]
    modes: Mapping[str, int]
    unplaced: tuple[str, ...]


def repository_info(
    name: str, *, revision: str | None = None, token: str | bool | None = None, trust_remote_code: bool = False
) -> RepositoryInfo:
    """Reads what a TAIA repository holds, without its weights: some kilobytes are fetched, whatever its size.

    Args:
        name: Hub id or folder.
        revision: Revision of the repository.
        token: Access token.
        trust_remote_code: Whether the base model's own code may run, to learn its structure.

    Returns:
        The repository's contents by role.

    Raises:
        TAIAError: If the repository or its base model is missing or malformed.
    """
    access = hub.HubAccess(token=token)
    source = hub.fetch(name, [hub.CONFIG], revision=revision, access=access, what="TAIA repository")
    if not (source.folder / hub.CONFIG).is_file():
        raise RepositoryError(f"'{name}' has no {hub.CONFIG}.", "Make a TAIA repository with `taia create`.")
    config = read_taia_config(source.folder / hub.CONFIG, name)
    base = hub.resolve_base(base_name(config, source.name), config.base_model_revision, access)
    model = skeleton(base, access, trust_remote_code)
    placed = find_sublayers(model)
    location, method, tensors = _read_update(source, config, access)
    paths = dict(model.named_modules())
    modules: dict[str, dict[str, tuple[int, int]]] = {role: {} for role in ROLES}
    for key, stored in tensors.items():
        path = _module_of(key, paths)
        found = modules[placed.roles.get(path, "other")]
        before = found.get(path, (0, 0))
        found[path] = before[0] + math.prod(stored.shape), before[1] + stored.size
    roles = {
        role: RoleInfo(len(found), sum(count for count, _ in found.values()), sum(size for _, size in found.values()))
        for role, found in modules.items()
    }
    return RepositoryInfo(
        name=name,
        revision=source.revision,
        base_model=base.name,
        base_revision=base.revision,
        inference_modules=config.inference_modules,
        method=method,
        location=location,
        bytes=sum(stored.size for stored in tensors.values()),
        dtypes=tuple(sorted({stored.kind for stored in tensors.values()})),
        roles=roles,
        modes={mode: sum(roles[role].parameters for role in acting) for mode, acting in MODES.items()},
        unplaced=placed.unplaced,
    )


def _read_update(
    source: hub.Source, config: TAIAConfig, access: hub.HubAccess
) -> tuple[str, str, dict[str, StoredTensor]]:
    """Returns where the update is, its method, and name to place of each tensor."""
    place = config.place
    kind = place.kind
    repo, revision, location = source.name, source.revision, place.path or "."
    elsewhere = bool(config.update.get("repo"))
    if elsewhere:
        repo, revision = config.update["repo"], config.update["revision"]
        location = f"{repo}@{revision[:8]}/{place.path}".removesuffix("/")
    wanted = [place.config, place.weights] if kind.shards else [place.config]  # an index is small
    pointed = hub.fetch(repo, wanted, revision=revision, access=access, what="adapter repository", local=not elsewhere)
    folder = pointed.folder / place.path
    if not (folder / kind.config).is_file():
        hub.update_weights(folder, kind)
    method = kind.name.upper()
    if kind is PEFT:
        method = str(hub.read_json(folder / kind.config).get("peft_type"))
    if pointed.revision is None:
        weights = hub.update_weights(folder, kind)
        headers = [read_header(path) for path in weights.values() if path.suffix == ".safetensors"]
        return location, method, {key: value for header in headers for key, value in header.items()}
    names = hub.index_shards(folder / kind.weights) if kind.shards else (kind.weights,)
    tensors: dict[str, StoredTensor] = {}
    with hub.hub_errors(repo, what="adapter repository", revision=revision):
        api = hub.api(access.token)
        for name in names:
            header = api.parse_safetensors_file_metadata(repo, place.named(name), revision=revision)
            tensors |= header_on_hub(name, header)
    return location, method, tensors


def _module_of(key: str, modules: Mapping[str, Any]) -> str:
    """Finds the base module that a tensor of PEFT's file belongs to, by its longest prefix."""
    path = key.removeprefix(PREFIX)
    while path and path not in modules:
        path = path.rpartition(".")[0]
    return path
