"""The files of a TAIA repository on this disk: its configuration, and the update that it holds or points to."""

from __future__ import annotations

import logging
from pathlib import Path

import yaml
from huggingface_hub import metadata_load

from taia_hub import hub
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.hub.config import Fields, RepositoryConfig, is_taia

logger = logging.getLogger(__name__)


def read_repository_config(path: Path, name: str) -> RepositoryConfig:
    """Reads `config.json` of the repository that messages call `name`."""
    values = hub.read_json(path)
    if not is_taia(values):
        raise ConfigError(
            f"'{name}' is no TAIA repository: its config.json has model_type {values.get('model_type')!r}.",
            "To switch an adapter on this base, use `taia create`, or `TAIAForCausalLM.from_adapter(base, adapter)`; a "
            "whole model that was tuned from a base becomes a repository by `taia create BASE FINETUNED --dense`.",
        )
    return RepositoryConfig.of(values)


def base_name(config: Fields, name: str) -> str:
    """Returns the Hub id or folder of the base model that `config.json` names."""
    if not config.base_model_name_or_path:
        raise ConfigError(
            f"config.json of '{name}' names no base model (base_model_name_or_path).", "Write it with `taia create`."
        )
    return config.base_model_name_or_path


def verify_update(root: Path, folder: Path, config: Fields, *, verify: bool = True, published: bool = True) -> None:
    """Checks that the files of an update are whole and, where `verify`, against the manifest in `root`.

    `published` says whether the setting that `config.json` publishes must be that of the manifest.
    """
    kind = config.place.kind
    files = {kind.config: folder / kind.config, **hub.update_weights(folder, kind)}
    pointer = bool(config.update.get("repo"))  # fixed by a sha already, so the manifest may be absent
    if verify:
        named = {config.place.named(name): path for name, path in files.items()}
        hub.verify_manifest(root, named, required=not pointer, published=published)


def check_folder(folder: Path) -> RepositoryConfig:
    """Checks a saved TAIA repository: its configuration, its weights and the manifest; returns the configuration.

    The published setting may be another than the manifest's: what publishes the folder renews that.
    """
    if not folder.is_dir():
        raise hub.no_folder(folder, "Give the folder of a TAIA repository.")
    if not (folder / hub.CONFIG).is_file():
        raise RepositoryError(f"'{folder}' has no {hub.CONFIG}.", "Write a TAIA repository with `taia create` first.")
    from taia_hub.configuration_taia import TAIAConfig  # here, because what is read otherwise goes without transformers
    from taia_hub.updates.attaching import read_update_config
    from taia_hub.weights.checkpoint import check_numbers

    config = read_repository_config(folder / hub.CONFIG, str(folder))
    TAIAConfig.from_dict(hub.read_json(folder / hub.CONFIG))
    if not config.update.get("repo"):
        verify_update(folder, folder / config.place.path, config, published=False)
        read_update_config(folder / config.place.path, config.place.kind)
        check_numbers(
            hub.update_weights(folder / config.place.path, config.place.kind).values(), config.place.kind.noun
        )
    for file, path in hub.published_files(folder).items():
        if file.endswith(".json") and "/" not in file:
            hub.read_json(path)
    return config


def check_links(folder: Path) -> None:
    """Refuses a folder with a link to a file elsewhere, whose content would be published.

    The Hub's cache keeps the files of a snapshot as links to its own blobs.
    """
    root = folder.resolve()
    own = (root, root.parents[1] / "blobs") if root.parent.name == "snapshots" else (root,)
    for name, path in hub.published_files(folder).items():
        target = path.resolve()
        if not any(target.is_relative_to(place) for place in own):
            raise RepositoryError(
                f"'{name}' in '{folder}' is a link to '{target}', outside of the folder.",
                "Put a copy of the file in its place where it shall be published, or take the link away.",
            )


def check_publishable(config: Fields) -> None:
    """Refuses a configuration whose base model is a local folder, which nobody else can load."""
    if config.base_model_revision is None:
        raise RepositoryError(
            f"The base model '{config.base_model_name_or_path}' is a folder on this machine; whoever loads the "
            "published model could not find it.",
            "Push the base first where it is not on the Hub, then say what it is called there: `taia push DIR REPO "
            "--base org/base`, or `model.push_to_hub(repo, base='org/base')`.",
        )


def base_license(config: Fields, token: str | bool | None) -> dict[str, str | list[str]]:
    """Reads `license`, `license_name` and `license_link` of the base model's card, as far as it gives them.

    They only decorate: where the card cannot be read or reached, a warning says that they are left out.
    """
    base, revision = config.base_model_name_or_path or "", config.base_model_revision
    access, why, values = hub.HubAccess(token=token), "", {}
    try:
        found = hub.fetch(base, [hub.CARD], revision=revision, access=access, what="base model", local=revision is None)
        if (found.folder / hub.CARD).is_file():
            values = metadata_load(found.folder / hub.CARD) or {}
        elif hub.may_lack(found, hub.CARD, access):
            why = "its card is not in the cache, and the Hub cannot be reached"
    except hub.OutOfReachError:
        why = "its card is not in the cache, and the Hub cannot be reached"
    except (ValueError, yaml.YAMLError) as error:
        why = f"its card cannot be read ({' '.join(str(error).split())[:200]})"
    if why:
        logger.warning("The licence of '%s' is left out: %s.", base, why)
    return {name: values[name] for name in ("license", "license_name", "license_link") if values.get(name)}
