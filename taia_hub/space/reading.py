"""What a Space needs to know: the parts of a model, each at its commit, and the versions that are in use."""

from __future__ import annotations

import importlib.metadata
import logging
import os
from fnmatch import fnmatch
from typing import Any

from taia_hub import hub
from taia_hub.common.installing import extra_command
from taia_hub.errors import ConfigError, MissingDependencyError
from taia_hub.repository.reading import check_publishable
from taia_hub.repository.update_files import open_repository
from taia_hub.space.package import NAME
from taia_hub.space.rendering import CARD, SpaceModel, required_packages

logger = logging.getLogger(__name__)

_TOKENIZER = ("*token*", "*vocab*", "merges.txt", "*.model", "chat_template*", "tekken.json")
_OURS = ("config.json", hub.MANIFEST, CARD, "generation_config.json", *_TOKENIZER)
_BASE = ("config.json", "generation_config.json", "*.py", *_TOKENIZER)
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


def read_model(repo: str, revision: str | None, token: str | bool | None) -> SpaceModel:
    """Reads what a Space needs to know of a TAIA repository, every part of it at a commit; no weights are fetched.

    Raises:
        TAIAError: If it is no TAIA repository on the Hub, or a part of it cannot be read.
    """
    if os.path.isdir(repo):
        raise ConfigError(
            f"'{repo}' is a folder here; a Space loads its model from the Hub.",
            "Publish it first with `taia push DIR REPO`, then `taia space create REPO`.",
        )
    access = hub.HubAccess(token=token)
    info = _info(repo, revision, "TAIA repository", token)  # asked first: a fetch may answer from an older cache
    opened = open_repository(repo, access, revision=info.sha, plain=False)
    config, base = opened.config, opened.base
    check_publishable(config)
    update, adapter = config.place.files, config.update.get("repo")
    infos = {repo: info, base.name: _info(base.name, base.revision, "base model", token)}
    sizes = _weights(infos[base.name])
    preload = {
        repo: _matching(info, _OURS if adapter else (*_OURS, *update)),
        base.name: (*_matching(infos[base.name], _BASE), *_matching(infos[base.name], ("*.index.json",)), *sizes),
    }
    if adapter:
        infos[adapter] = _info(adapter, config.update["revision"], "adapter repository", token)
        preload[adapter] = _matching(infos[adapter], (*update, *_TOKENIZER))
    closed = tuple(name for name, info in infos.items() if info.private or info.gated)
    whole = hub.read_json(base.folder / hub.CONFIG)
    halved = "float32" in (whole.get("dtype"), whole.get("torch_dtype"))
    return SpaceModel(
        repo_id=repo,
        revision=infos[repo].sha,
        base_model=base.name,
        base_revision=infos[base.name].sha,
        adapter_repo=adapter,
        adapter_revision=infos[adapter].sha if adapter else None,
        preload={name: files for name, files in preload.items() if name not in closed},
        licenses={name: found for name, info in infos.items() if (found := _license(info))},
        bytes=sum(sizes.values()) // (2 if halved else 1),
        closed=closed,
    )


def installed_versions() -> dict[str, str]:
    """Returns package to version of what a Space requires, as far as it is installed here.

    Raises:
        MissingDependencyError: If Gradio is not installed, whose version every Space names.
    """
    found = {}
    for name in required_packages():
        if name != NAME:  # `space.package` says how that comes
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                logger.debug("%s is not installed: the Space takes its newest version.", name)
    if "gradio" not in found:
        raise MissingDependencyError(
            "A Space names the version of Gradio that it runs on, and Gradio is not installed.",
            f"Install it with: {extra_command('space')}",
        )
    return found


def _info(name: str, revision: str | None, what: str, token: str | bool | None) -> Any:
    return hub.info(name, revision=revision, token=token, what=what)


def _matching(info: Any, patterns: tuple[str, ...]) -> tuple[str, ...]:
    names = sorted(one.rfilename for one in info.siblings or ())
    return tuple(
        name for name in names if any(name == one or ("/" not in name and fnmatch(name, one)) for one in patterns)
    )


def _weights(info: Any) -> dict[str, int]:
    """Returns path to size of the weights that transformers loads: safetensors before anything else."""
    sizes = {one.rfilename: one.size or 0 for one in info.siblings or ()}
    for pattern in _WEIGHTS:
        found = {name: size for name, size in sorted(sizes.items()) if "/" not in name and fnmatch(name, pattern)}
        if found:
            return found
    return {}


def _license(info: Any) -> str | None:
    card = info.card_data
    found = getattr(card, "license_name", None) or getattr(card, "license", None) if card else None
    return found if isinstance(found, str) else None
