"""Exports to the Hub: one commit, and never over another model."""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from taia_hub import hub
from taia_hub.common.resuming import made_files
from taia_hub.errors import RepositoryError
from taia_hub.exporting.adapter import export_adapters
from taia_hub.exporting.card import TAGS
from taia_hub.exporting.options import ExportOptions
from taia_hub.exporting.report import ExportReport
from taia_hub.repository.side_files import card_tags, keep_edits
from taia_hub.repository.update_files import Repository, open_repository
from taia_hub.switch.settings import parse_setting

_OURS = re.compile(rf"(?:[^/]+/)?(?:{hub.ADAPTER_CONFIG}|{hub.ADAPTER_WEIGHTS}|{hub.CARD})")


def push_adapters(
    source: str | os.PathLike[str] | Repository,
    repo_id: str,
    settings: Mapping[str, Any],
    commit: hub.Commit | None = None,
    options: ExportOptions | None = None,
    *,
    revision: str | None = None,
) -> tuple[CommitInfo, dict[str, ExportReport]]:
    """Exports settings as `export_adapters` does and publishes them in one commit: all of them, or nothing.

    A person's edits of the cards stay; only those of folders that are not exported any more go with their folder. The
    repository is a new one, or one that holds nothing but our exports, which the new ones replace. The folders of the
    reports are gone.

    Raises:
        RepositoryError: If the repository holds another model or is what is exported, the base model is a folder, or a
            request fails.
    """
    commit = commit or hub.Commit()
    head = _look(repo_id, commit.token)
    repo_id = head.repo_id
    access = hub.HubAccess(token=commit.token)
    if isinstance(source, Repository):
        files = source
    else:
        files = open_repository(source, access, revision=revision).with_weights(access)
    _refuse_own(repo_id, files)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "exports"
        reports = export_adapters(
            files,
            folder,
            settings,
            dataclasses.replace(options or ExportOptions(), token=commit.token),
            repo_id=repo_id,
        )
        new = made_files(folder)
        stale = sorted(head.files - new.keys())
        labels = "; ".join(parse_setting(report.setting).label for report in reports.values())
        for name in head.files & new.keys():
            before = head.file(name) if Path(name).name == hub.CARD else None
            if before and not keep_edits(before, new[name]):
                del new[name]
        commit = dataclasses.replace(commit, message=commit.message or f"Export {labels} as plain LoRA")
        done = hub.publish({**new, **dict.fromkeys(stale)}, head, commit)
    return done, reports


def _refuse_own(repo_id: str, files: Repository) -> None:
    """Refuses a target that is what is exported, or what that is made of."""
    made_of = {
        files.name if files.revision else None: "the repository that is exported",
        files.config.update.get("repo"): "where the update lies",
        files.base.name if files.base.revision else None: "the base model",
    }
    for name, what in made_of.items():
        if name is not None and name.casefold() == repo_id.casefold():
            raise RepositoryError(f"'{repo_id}' is {what}; the export would replace it.", "Choose another name.")


def _look(repo_id: str, token: str | bool | None) -> hub.Head:
    """Looks at a repository, and refuses one that holds something else than exports."""
    head = hub.look(repo_id, token=token)
    other = sorted(name for name in head.files if not _OURS.fullmatch(name))
    if head.files and not other:
        card = head.file(hub.CARD)
        other = [] if card and card_tags(card) >= set(TAGS) else sorted(head.files)
    if other:
        raise RepositoryError(
            f"'{head.repo_id}' holds something else than exports of taia-hub ({', '.join(other[:3])}); it would be "
            "mixed up with them.",
            "Choose another name, such as that of the TAIA repository with the mode behind it. Exports are known by "
            f"the tags {', '.join(TAGS)} of their card.",
        )
    return head
