"""A merged model to the Hub, in one commit, and never over a model that was not published here."""

from __future__ import annotations

import dataclasses
import re
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from taia_hub import cards, hub
from taia_hub.common.resuming import made_files
from taia_hub.errors import RepositoryError
from taia_hub.hub.config import is_taia
from taia_hub.merging.running import MergeReport, merge
from taia_hub.repository.side_files import card_tags, keep_edits
from taia_hub.repository.update_files import Repository

_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
_TAGS = {"taia", "merged"}


def check_repository(repo_id: str, token: str | bool | None = None, *, used: Collection[str] = ()) -> str:
    """Refuses a repository that holds anything but an earlier merged model, before anything is merged.

    Returns the Hub id with its namespace; `used` are the Hub ids of what is merged, which cannot be the target.

    Raises:
        RepositoryError: If it is one of `used`, is neither empty nor a merged model that was published here, or cannot
            be reached.
    """
    return _look(repo_id, token, used)[0].repo_id


def push_merged(
    source: str | Repository, repo_id: str, setting: Any, commit: hub.Commit, **options: Any
) -> tuple[MergeReport, CommitInfo]:
    """Merges into a scratch folder, with `options` of `merge`, and publishes that; the report's folder is gone."""
    used = [source if isinstance(source, str) else source.name]
    repo_id = check_repository(repo_id, commit.token, used=used)
    with tempfile.TemporaryDirectory(prefix="taia-merge-") as scratch:
        report = merge(source, Path(scratch) / "model", setting, repo_id=repo_id, token=commit.token, **options)
        return report, publish_merged(report, repo_id, commit)


def publish_merged(report: MergeReport, repo_id: str, commit: hub.Commit | None = None) -> CommitInfo:
    """Publishes a merged model in one commit, which also deletes shards of an earlier one that it has no more.

    A person's edits of the card that is there stay. Where another commit came meanwhile, the repository stays as it
    was, and a `RepositoryError` says so.
    """
    commit = commit or hub.Commit()
    head, shards = _look(repo_id, commit.token, (report.source, report.base))
    files: dict[str, Path | None] = dict(made_files(report.folder))
    before = head.file(hub.CARD)
    stale = [name for name in head.files if (_WEIGHTS.fullmatch(name) or name in shards) and name not in files]
    message = commit.message or f"Merge with inference modules '{report.setting}' acting"
    with tempfile.TemporaryDirectory() as scratch:
        if before is not None:
            card = Path(shutil.copy(report.folder / hub.CARD, scratch))
            files[hub.CARD] = card
            if not keep_edits(before, card):
                del files[hub.CARD]
        return hub.publish({**files, **dict.fromkeys(stale)}, head, dataclasses.replace(commit, message=message))


def _look(repo_id: str, token: str | bool | None, used: Collection[str]) -> tuple[hub.Head, tuple[str, ...]]:
    """Looks at a repository and the shards that its index names, and refuses what a merged model must not replace."""
    repo_id = hub.full_repo_id(repo_id, token)
    if repo_id.lower() in {name.lower() for name in used}:
        raise _refused(repo_id, "is what is merged")
    head = hub.look(repo_id, token=token)
    if not head.files:
        return head, ()
    if hub.ADAPTER_CONFIG in head.files:
        raise _refused(repo_id, "is an adapter, which a merged model would replace")
    if is_taia(head.config):
        raise _refused(repo_id, "is a TAIA repository, which a merged model would replace")
    card = head.file(hub.CARD)
    if card is None or not _is_merged(card):
        raise _refused(repo_id, "holds files, and its card is not that of a merged model that was published here")
    index = head.file(hub.MODEL_INDEX)
    return head, hub.index_shards(index) if index else ()


def _is_merged(card: Path) -> bool:
    return cards.is_generated(card.read_text(encoding="utf-8", errors="replace")) and card_tags(card) >= _TAGS


def _refused(repo_id: str, why: str) -> RepositoryError:
    return RepositoryError(f"'{repo_id}' {why}.", "Publish the merged model to a new repository.")
