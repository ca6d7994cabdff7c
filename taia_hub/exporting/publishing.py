"""Exports to the Hub: one commit, and never over another model."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard

from taia_hub import hub
from taia_hub.errors import RepositoryError
from taia_hub.exporting.adapter import export_adapters
from taia_hub.exporting.card import TAG
from taia_hub.exporting.report import ExportReport

_OURS = re.compile(rf"(?:[^/]+/)?(?:{hub.ADAPTER_CONFIG}|{hub.ADAPTER_WEIGHTS}|{hub.CARD})|\.gitattributes")


def push_adapters(
    source: str | os.PathLike[str],
    repo_id: str,
    settings: Mapping[str, Any],
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    **options: Any,
) -> tuple[CommitInfo, dict[str, ExportReport]]:
    """Exports settings and publishes them in one commit: all of them, or nothing.

    Args:
        source: As of `export_adapters`.
        repo_id: A new repository, or one that holds nothing but our exports.
        settings: Name of a folder in the repository to the setting that goes there; an empty name is its root.
        commit_message: First line of the commit.
        private: Whether a new repository is private.
        token: Access token.
        **options: Further keywords of `export_adapters`.

    Returns:
        The commit, and the reports; their folders are gone.

    Raises:
        RepositoryError: If the repository holds another model, the base model is a folder, or a request fails.
        TAIAError: As of `export_adapters`; nothing is published.
    """
    repo_id = hub.full_repo_id(repo_id, token)
    parent = _head(repo_id, token)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "exports"
        reports = export_adapters(source, folder, settings, repo_id=repo_id, token=token, **options)
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        commit = hub.publish(
            files,
            repo_id,
            commit_message=commit_message or f"Export {', '.join(name or 'a mode' for name in reports)} as plain LoRA",
            private=private,
            token=token,
            parent_commit=parent,
        )
    return commit, reports


def _head(repo_id: str, token: str | bool | None) -> str | None:
    """Returns the commit to publish on, None for a new repository; refuses one that holds something else."""
    api = HfApi(token=token, library_name="taia-hub")
    with hub.hub_errors(repo_id, what="repository"):
        if not api.repo_exists(repo_id):
            return None
        info = api.model_info(repo_id)
        names = {sibling.rfilename for sibling in info.siblings or ()} - {".gitattributes"}
        other = sorted(name for name in names if not _OURS.fullmatch(name))
        if not other and names and TAG not in _tags(api, repo_id, info.sha, names):
            other = sorted(names)
    if other:
        raise RepositoryError(
            f"'{repo_id}' holds something else than exports of taia-hub ({', '.join(other[:3])}); it would be mixed up "
            "with them.",
            "Choose another name, such as that of the TAIA repository with the mode behind it.",
        )
    return info.sha


def _tags(api: HfApi, repo_id: str, revision: str | None, names: set[str]) -> list[str]:
    if hub.CARD not in names:
        return []
    card = ModelCard.load(Path(api.hf_hub_download(repo_id, hub.CARD, revision=revision)))
    return list(card.data.tags or ())
