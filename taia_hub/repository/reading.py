"""The files of a TAIA repository on this disk: its configuration, and the update that it holds or points to."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from taia_hub import hub
from taia_hub.configuration_taia import AUTO_MAP, TAIAConfig
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.hub.layout import UpdateKind, UpdatePlace
from taia_hub.updates.attaching import read_update_config

logger = logging.getLogger(__name__)


def read_taia_config(path: Path, name: str) -> TAIAConfig:
    """Reads `config.json` of a TAIA repository.

    Args:
        path: The file.
        name: Name of the repository, for messages.

    Returns:
        The configuration.

    Raises:
        ConfigError: If it is malformed, or of another model type.
    """
    values = hub.read_json(path)
    if values.get("model_type") != TAIAConfig.model_type:
        raise ConfigError(
            f"'{name}' is no TAIA repository: its config.json has model_type {values.get('model_type')!r}.",
            "To switch an adapter on this base, use `taia create`, or `TAIAForCausalLM.from_adapter(base, adapter)`.",
        )
    config: TAIAConfig = TAIAConfig.from_dict(values)
    return config


def base_name(config: TAIAConfig, name: str) -> str:
    """Returns the Hub id or folder of the base model.

    Args:
        config: The configuration.
        name: Name of the repository, for messages.

    Returns:
        What `config.json` names.

    Raises:
        ConfigError: If it names no base model.
    """
    if not config.base_model_name_or_path:
        raise ConfigError(
            f"config.json of '{name}' names no base model (base_model_name_or_path).", "Write it with `taia create`."
        )
    return config.base_model_name_or_path


def resolve_recorded_base(name: str, revision: str | None, access: hub.HubAccess) -> hub.Source:
    """Finds the base model that `config.json` names.

    Args:
        name: Its Hub id or folder, as of `base_name`.
        revision: The commit that is recorded; None for a folder.
        access: How to reach the Hub.

    Returns:
        The base model, of which only the configuration need be on this disk.

    Raises:
        RepositoryError: If it cannot be reached, or a folder here would be taken for it.
    """
    if revision and os.path.isdir(name):
        raise RepositoryError(
            f"The base model '{name}' is fixed at a commit on the Hub, but a folder here has the same name and would "
            "be taken for it.",
            "Rename the folder, or work in another one.",
        )
    return hub.resolve_base(name, revision, access)


def tell_other_base(name: str, made_for: str | None, base: str) -> None:
    """Warns where an update is put on another base model than the one that it names.

    Args:
        name: Hub id or folder of the update.
        made_for: The base model that it names, if any.
        base: The base model that it is put on.
    """
    if made_for and made_for != base:
        logger.warning("The adapter '%s' was made for '%s' and is put on '%s'.", name, made_for, base)


def config_of(base: hub.Source, kind: UpdateKind, **fields: Any) -> TAIAConfig:
    """Makes the configuration of a repository of an update that has none yet.

    Args:
        base: The base model.
        kind: The kind of update.
        **fields: Further fields, as `inference_modules`.

    Returns:
        The configuration.
    """
    return TAIAConfig(  # type: ignore[call-arg]  # PreTrainedConfig takes any keyword
        architectures=["TAIAForCausalLM"],
        auto_map=dict(AUTO_MAP),
        base_model_name_or_path=base.name if base.revision else str(base.folder.resolve()),
        base_model_revision=base.revision,
        update={"kind": kind.name, "path": kind.folder},
        **fields,
    )


def update_folder(source: hub.Source, config: TAIAConfig, access: hub.HubAccess) -> Path:
    """Brings the update's files to this disk.

    Args:
        source: The TAIA repository.
        config: Its configuration.
        access: How to reach the Hub.

    Returns:
        Folder of the adapter.
    """
    place = config.place
    repo = config.update.get("repo")
    if repo:
        sha = config.update["revision"]
        pointed = hub.fetch(repo, place.files, revision=sha, access=access, what="adapter repository", local=False)
        return with_safetensors(pointed, place, access)
    if source.revision and place.path != place.kind.folder:  # the usual folders came with the first download
        source = hub.fetch(source.name, place.files, revision=source.revision, access=access, what="TAIA repository")
    return with_safetensors(source, place, access)


def verify_update(root: Path, folder: Path, config: TAIAConfig, *, verify: bool = True) -> None:
    """Checks that the files of an update are whole, and against the manifest.

    Args:
        root: Folder of the TAIA repository.
        folder: Folder of the update, as `update_folder` gives it.
        config: The configuration.
        verify: Whether the hashes are checked as well.

    Raises:
        RepositoryError: If a file is missing or damaged.
        ConfigError: If the manifest or an index is malformed.
    """
    weights = hub.update_weights(folder, config.place.kind)
    pointer = bool(config.update.get("repo"))  # fixed by a sha already, so the manifest may be absent
    for name, path in weights.items() if verify else ():
        hub.verify_manifest(root, path, config.place.named(name), required=not pointer)


def check_folder(folder: Path) -> TAIAConfig:
    """Checks a saved TAIA repository: its configuration, its weights and the manifest.

    Args:
        folder: The folder.

    Returns:
        Its configuration.

    Raises:
        RepositoryError: If a file is missing or damaged.
        ConfigError: If a file is malformed, or the folder holds another kind of model.
    """
    if not (folder / hub.CONFIG).is_file():
        raise RepositoryError(f"'{folder}' has no {hub.CONFIG}.", "Write a TAIA repository with `taia create` first.")
    config = read_taia_config(folder / hub.CONFIG, str(folder))
    if not config.update.get("repo"):
        verify_update(folder, folder / config.place.path, config)
        read_update_config(folder / config.place.path, config.place.kind)
    for file, path in hub.published_files(folder).items():
        if file.endswith(".json") and "/" not in file:
            hub.read_json(path)
    return config


def with_safetensors(source: hub.Source, place: UpdatePlace, access: hub.HubAccess) -> Path:
    """Finds an update's folder; pickled weights that were left on the Hub are named as the reason if need be.

    Args:
        source: The repository.
        place: Where it keeps the update.
        access: How to reach the Hub.

    Returns:
        The folder; whether its files are there is not checked.

    Raises:
        RepositoryError: If the weights on the Hub are pickled.
    """
    folder = source.folder / place.path
    pickled = place.named(hub.PICKLED_WEIGHTS)
    if source.revision and not access.local_files_only and not (source.folder / place.weights).is_file():
        with hub.hub_errors(source.name, what="adapter repository", revision=source.revision):
            if hub.api(access.token).file_exists(source.name, pickled, revision=source.revision):
                raise RepositoryError(
                    f"'{source.name}' holds pickled weights ({pickled}), which can run code when they are loaded; "
                    "only safetensors are read.",
                    "Convert them with `taia create BASE ADAPTER --convert-pickle --out DIR`.",
                )
    return folder
