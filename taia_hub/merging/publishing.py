"""A merged model to the Hub, in one commit, and never over a model that was not published here."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi

from taia_hub import cards, hub
from taia_hub.configuration_taia import TAIAConfig
from taia_hub.errors import RepositoryError
from taia_hub.merging.running import MergeReport
from taia_hub.repository.side_files import card_tags, keep_edits
from taia_hub.weights.checkpoint import INDEX

_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
_EMPTY = {".gitattributes"}
_TAGS = {"taia", "merged"}


@dataclass(frozen=True)
class _Found:
    """A repository at one commit.

    Attributes:
        sha: The commit, or None where the repository does not exist.
        files: Names of its files.
        card: Its card, or None.
        shards: What its index names.
    """

    sha: str | None
    files: frozenset[str]
    card: Path | None
    shards: frozenset[str]


def check_repository(repo_id: str, token: str | bool | None = None, *, used: Collection[str] = ()) -> str:
    """Refuses a repository that holds anything but an earlier merged model, before anything is merged.

    Args:
        repo_id: A Hub id, or the name of a repository of the user's.
        token: Access token.
        used: Hub ids of what is merged, which cannot be the target.

    Returns:
        The Hub id with its namespace.

    Raises:
        RepositoryError: If it is one of `used`, is neither empty nor a merged model that was published here, or cannot
            be reached.
    """
    repo_id = hub.full_repo_id(repo_id, token)
    _look(repo_id, token, used)
    return repo_id


def publish_merged(
    report: MergeReport,
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
) -> CommitInfo:
    """Publishes a merged model in one commit, which also deletes shards of an earlier one that it has no more.

    A person's edits of the card that is there stay.

    Args:
        report: What `merge` returned.
        repo_id: The Hub id with its namespace, as `check_repository` gives it.
        commit_message: First line of the commit.
        private: Whether a new repository is private.
        token: Access token.

    Returns:
        The commit.

    Raises:
        RepositoryError: If the repository is not ours to replace, gets another commit meanwhile, or a request fails; it
            is as it was before.
    """
    found = _look(repo_id, token, (report.source, report.base))
    files: dict[str, Path | None] = {
        path.relative_to(report.folder).as_posix(): path for path in report.folder.rglob("*") if path.is_file()
    }
    stale = [name for name in found.files if (_WEIGHTS.fullmatch(name) or name in found.shards) and name not in files]
    with tempfile.TemporaryDirectory() as scratch:
        if found.card is not None:
            card = Path(shutil.copy(report.folder / hub.CARD, scratch))
            files[hub.CARD] = card
            if not keep_edits(found.card, card):
                del files[hub.CARD]
        return hub.publish(
            {**files, **dict.fromkeys(stale)},
            repo_id,
            commit_message=commit_message or f"Merge with inference modules '{report.setting}' acting",
            private=private,
            token=token,
            parent_commit=found.sha,
        )


def _look(repo_id: str, token: str | bool | None, used: Collection[str]) -> _Found:
    """Reads what is in a repository, and refuses one that a merged model must not replace."""
    if repo_id.lower() in {name.lower() for name in used}:
        raise _refused(repo_id, "is what is merged")
    api = HfApi(token=token, library_name="taia-hub")
    with hub.hub_errors(repo_id, what="repository"):
        if not api.repo_exists(repo_id):
            return _Found(None, frozenset(), None, frozenset())
        head = api.model_info(repo_id)
        files = frozenset(sibling.rfilename for sibling in head.siblings or ())
        if files <= _EMPTY:
            return _Found(head.sha, files, None, frozenset())
        paths = {
            name: Path(api.hf_hub_download(repo_id, name, revision=head.sha))
            for name in (hub.CARD, hub.CONFIG, INDEX)
            if name in files
        }
    if hub.ADAPTER_CONFIG in files:
        raise _refused(repo_id, "is an adapter, which a merged model would replace")
    if hub.CONFIG in paths and hub.read_json(paths[hub.CONFIG]).get("model_type") == TAIAConfig.model_type:
        raise _refused(repo_id, "is a TAIA repository, which a merged model would replace")
    if hub.CARD not in paths or not _is_merged(paths[hub.CARD]):
        raise _refused(repo_id, "holds files, and its card is not that of a merged model that was published here")
    shards = hub.index_shards(paths[INDEX]) if INDEX in paths else ()
    return _Found(head.sha, files, paths[hub.CARD], frozenset(shards))


def _is_merged(card: Path) -> bool:
    return cards.is_generated(card.read_text(encoding="utf-8", errors="replace")) and card_tags(card) >= _TAGS


def _refused(repo_id: str, why: str) -> RepositoryError:
    return RepositoryError(f"'{repo_id}' {why}.", "Publish the merged model to a new repository.")
