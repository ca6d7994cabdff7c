"""From a name to the files of an update, and the base model that it belongs to."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import TaskType

from taia_hub import hub
from taia_hub.configuration_taia import TAIAConfig
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.hub.layout import KINDS, PEFT, UpdateKind, UpdatePlace
from taia_hub.repository.reading import (
    base_name,
    config_of,
    read_taia_config,
    resolve_recorded_base,
    tell_other_base,
    update_folder,
    verify_update,
    with_safetensors,
)
from taia_hub.updates.attaching import base_of, find_kind, read_update_config

_ROOT = (hub.CONFIG, hub.MANIFEST, *(name for kind in KINDS.values() for name in kind.files))


@dataclass(frozen=True)
class UpdateFiles:
    """An update on this disk, and the base model that it belongs to.

    Attributes:
        name: Hub id or folder as it was asked for.
        revision: Commit sha, or None for a folder.
        config: Configuration of the TAIA repository; of a plain update, what one of it would say.
        root: Folder of the repository.
        folder: Folder with the update's files.
        kind: The kind of update.
        settings: What the update's own configuration file says, of a class that the kind has.
        base: The base model; only its configuration is on this disk.
    """

    name: str
    revision: str | None
    config: TAIAConfig
    root: Path
    folder: Path
    kind: UpdateKind
    settings: Any
    base: hub.Source

    @property
    def features_only(self) -> bool:
        """Whether the update is of a model without its language-modelling head."""
        return self.kind is PEFT and self.settings.task_type == TaskType.FEATURE_EXTRACTION

    def check_outside(self, out: Path) -> None:
        """Refuses to write into a folder that is read from, which would be published with what is in it.

        Args:
            out: Where something made of the update shall go.

        Raises:
            RepositoryError: If that lies inside the repository's folder, or inside the base model's.
        """
        read = {self.name: None if self.revision else self.root}
        read[self.base.name] = None if self.base.revision else self.base.folder
        for name, folder in read.items():
            if folder is not None and out.resolve().is_relative_to(folder.resolve()):
                raise RepositoryError(
                    f"'{out}' lies inside '{name}', from which it is made, and would be published with it.",
                    "Give a folder beside it.",
                )


def find_update(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    base: str | None = None,
    base_revision: str | None = None,
    access: hub.HubAccess,
    check: Callable[[UpdateKind], None] | None = None,
) -> UpdateFiles:
    """Finds the update of a TAIA repository, or a plain PEFT adapter or other update in a folder of its own.

    Args:
        name: Hub id or folder of either.
        revision: Its revision.
        base: Hub id or folder of the base model, where it is not the one that is named there.
        base_revision: Revision of the base model.
        access: How to reach the Hub.
        check: Called with the kind of update before its weights are fetched; what it raises ends the search.

    Returns:
        Where it is and what it belongs to.

    Raises:
        TAIAError: If it is neither, is damaged, or names no base model.
    """
    name = os.fspath(name)
    source = hub.fetch(name, _ROOT, revision=revision, access=access, what="TAIA repository or adapter")
    kind = find_kind(source.folder)
    if (source.folder / kind.config).is_file():
        if check is not None:
            check(kind)
        folder = with_safetensors(source, UpdatePlace(kind, ""), access)
        hub.update_weights(folder, kind)
        settings = read_update_config(folder, kind)
        where = _base(name, base, base_revision, *base_of(settings), access)
        return UpdateFiles(name, source.revision, config_of(where, kind), source.folder, folder, kind, settings, where)
    if not (source.folder / hub.CONFIG).is_file():
        raise RepositoryError(
            f"'{name}' holds neither a {hub.CONFIG} nor an {hub.ADAPTER_CONFIG}.",
            "Give a TAIA repository, or the repository or folder of a PEFT adapter.",
        )
    config = read_taia_config(source.folder / hub.CONFIG, name)
    kind = config.place.kind
    if check is not None:
        check(kind)
    named, fixed = base or base_name(config, name), config.base_model_revision
    if source.revision and not config.update.get("repo"):
        source = hub.fetch(name, (*_ROOT, *config.place.files), revision=source.revision, access=access)
    folder = update_folder(source, config, access)
    verify_update(source.folder, folder, config)
    if base is None:
        where = resolve_recorded_base(named, fixed, access)
    else:
        where = _base(name, base, base_revision, config.base_model_name_or_path, fixed, access)
        config.base_model_name_or_path, config.base_model_revision = where.name, where.revision
    settings = read_update_config(folder, kind)
    return UpdateFiles(name, source.revision, config, source.folder, folder, kind, settings, where)


def _base(
    name: str,
    base: str | None,
    base_revision: str | None,
    named: str | None,
    fixed: str | None,
    access: hub.HubAccess,
) -> hub.Source:
    if base:
        tell_other_base(name, named, base)
        return hub.resolve_base(base, base_revision, access)
    if named:
        return hub.resolve_base(named, fixed, access)
    raise ConfigError(
        f"'{name}' names no base model.",
        "Say which one it belongs to (`base`, --base), or make a repository of both: `taia create BASE ADAPTER`.",
    )
