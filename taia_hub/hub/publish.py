"""Publishing in one commit, on top of what was looked at: all of it, or nothing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id

from taia_hub.common.resuming import git_sha1, sha256
from taia_hub.errors import RepositoryError
from taia_hub.hub._errors import hub_errors
from taia_hub.hub._names import TransportError
from taia_hub.hub.access import CONFIG
from taia_hub.hub.access import api as hub_api
from taia_hub.hub.files import read_json
from taia_hub.hub.layout import MODEL_INDEX
from taia_hub.hub.spaces import SpaceSettings, change_space

logger = logging.getLogger(__name__)

RESUME_INDEX = MODEL_INDEX
"""What Trainer looks for in a checkpoint; written for trainable models, never published."""

_TRAINERS_FILES = (RESUME_INDEX, "trainer_state.json", "zero_to_fp32.py", "latest")
_PRIVATE = ("__pycache__", "runs")
_HUBS_OWN = ".gitattributes"


@dataclass(frozen=True)
class Commit:
    """How something is published.

    Attributes:
        message: First line of the commit.
        description: The rest of its message.
        private: Whether a new repository is private.
        token: Access token.
        revision: Branch to commit to, made from main if need be; None for main.
        create_pr: Whether the commit becomes a pull request.
    """

    message: str | None = None
    description: str | None = None
    private: bool | None = None
    token: str | bool | None = field(default=None, repr=False)
    revision: str | None = None
    create_pr: bool = False


@dataclass(frozen=True)
class Head:
    """A repository on the Hub at one commit, on top of which something may be published.

    Attributes:
        repo_id: Its id with its namespace.
        sha: The commit, or None where there is no such repository.
        files: Paths of its files, without what the Hub itself writes.
        private: Whether it is private.
        kind: `model` or `space`.
        token: Access token.
    """

    repo_id: str
    sha: str | None = None
    files: frozenset[str] = frozenset()
    private: bool = False
    kind: str = "model"
    token: str | bool | None = field(default=None, repr=False)

    def file(self, name: str) -> Path | None:
        """Fetches a file at this commit; None where it has none of that name."""
        if name not in self.files:
            return None
        with hub_errors(self.repo_id, what=_noun(self.kind), revision=self.sha):
            path = hub_api(self.token).hf_hub_download(self.repo_id, name, repo_type=self.kind, revision=self.sha)
        return Path(path)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The contents of its `config.json`; empty where it has none."""
        path = self.file(CONFIG)
        return read_json(path) if path else {}


def look(repo_id: str, *, revision: str | None = None, token: str | bool | None = None, kind: str = "model") -> Head:
    """Looks at the head of a branch that something shall be published on; a branch that is not there begins at main.

    `repo_id` may be the name alone of a repository of the user's; `kind` is `model` or `space`.

    Raises:
        RepositoryError: If the id is malformed, or the Hub cannot be reached.
    """
    repo_id = full_repo_id(repo_id, token)
    api = hub_api(token)
    with hub_errors(repo_id, what=_noun(kind), revision=revision):
        if not api.repo_exists(repo_id, repo_type=kind):
            return Head(repo_id, kind=kind, token=token)
        at = revision if revision and api.revision_exists(repo_id, revision, repo_type=kind) else None
        info: Any = api.repo_info(repo_id, revision=at, repo_type=kind)
    files = frozenset(one.rfilename for one in info.siblings or ()) - {_HUBS_OWN}
    return Head(repo_id, info.sha, files, bool(info.private), kind, token)


def publish(
    files: Mapping[str, Path | None], head: Head, commit: Commit | None = None, *, space: SpaceSettings | None = None
) -> CommitInfo:
    """Publishes files in one commit: all of them, or nothing.

    Args:
        files: Path in the repository to path on this disk, or to None where the file is deleted.
        head: The commit that the files were made for; any other one refuses them. A repository that was not there must
            not exist then, and is deleted again if the commit fails.
        commit: How it is published.
        space: The settings of a Space.

    Returns:
        The commit.

    Raises:
        RepositoryError: If any request fails; the repository is as it was before.
    """
    commit = commit or Commit()
    api, repo_id, kind, revision = hub_api(commit.token), head.repo_id, head.kind, commit.revision
    with hub_errors(repo_id, what=_noun(kind), revision=revision), contextlib.ExitStack() as undo:
        if head.sha is None:  # what somebody makes meanwhile refuses ours: nobody looked at what is in it
            try:
                api.create_repo(repo_id, private=commit.private, repo_type=kind, **(space.creation() if space else {}))
                undo.callback(_undone, api, repo_id, None, None, kind)
            except (HfHubHTTPError, TransportError) as error:
                if not _is_unknown(error) or not _is_new(api, repo_id, kind, commit.private):
                    raise
        elif space:
            change_space(api, repo_id, space, undo)
        if revision and not commit.create_pr and not api.revision_exists(repo_id, revision):
            main = api.model_info(repo_id).sha
            try:
                api.create_branch(repo_id, branch=revision, revision=main)
            except (HfHubHTTPError, TransportError) as error:
                if not _is_unknown(error) or not api.revision_exists(repo_id, revision):
                    raise
            undo.callback(_undone, api, repo_id, revision, main, kind)
        parent = head.sha or api.repo_info(repo_id, revision=revision, repo_type=kind).sha
        title = commit.message or "Upload with taia-hub"
        try:
            done = api.create_commit(
                repo_id,
                [
                    CommitOperationAdd(name, path) if path else CommitOperationDelete(name, is_folder=False)
                    for name, path in files.items()
                ],
                repo_type=kind,
                commit_message=title,
                commit_description=commit.description,
                revision=revision,
                create_pr=commit.create_pr,
                parent_commit=parent,
            )
        except (HfHubHTTPError, TransportError) as error:
            if not _is_unknown(error):
                raise
            done = _landed(api, head, commit, files, parent, title, error)
        undo.pop_all()
    return done


def _is_unknown(error: Exception) -> bool:
    """Tells whether the Hub may have done what failed: its answer was lost, or was to a request that was sent twice."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is None or status == 412 or status >= 500


def _is_new(api: HfApi, repo_id: str, kind: str, private: bool | None) -> bool:
    """Tells whether a repository is there now, as the Hub makes it and as it was asked for."""
    if not api.repo_exists(repo_id, repo_type=kind):
        return False
    info: Any = api.repo_info(repo_id, repo_type=kind)
    return len(api.list_repo_commits(repo_id, repo_type=kind)) <= 1 and (private is None or info.private == private)


def _landed(
    api: HfApi,
    head: Head,
    commit: Commit,
    files: Mapping[str, Path | None],
    parent: str | None,
    title: str,
    error: Exception,
) -> CommitInfo:
    """Looks for a commit whose answer was lost; where it is not there, `error` is the reason."""
    repo_id, kind = head.repo_id, head.kind
    page = f"{api.endpoint}/{'spaces/' if kind == 'space' else ''}{repo_id}"
    commits: list[Any] = []
    with contextlib.suppress(HfHubHTTPError, TransportError):
        commits = api.list_repo_commits(repo_id, revision=commit.revision, repo_type=kind)
    if getattr(error, "response", None) is None and (commit.create_pr or not commits):
        raise RepositoryError(
            f"The connection to the Hub broke while '{repo_id}' was published, and what it did by then is not known.",
            f"Look at {page} before you publish again: '{title}' may be there.",
        ) from error
    if commit.create_pr or [one.commit_id for one in commits[1:2]] != [parent]:
        raise error
    newest = commits[0]
    if newest.title != title or not _holds(api, head, newest.commit_id, files):
        raise error
    logger.warning("The connection to the Hub broke while '%s' was published; the commit is there.", repo_id)
    return CommitInfo(
        commit_url=f"{page}/commit/{newest.commit_id}",
        commit_message=title,
        commit_description=commit.description or "",
        oid=newest.commit_id,
    )


def _holds(api: HfApi, head: Head, sha: str, files: Mapping[str, Path | None]) -> bool:
    """Tells whether a commit has these very files: somebody else's may have the same title and parent."""
    found: list[Any] = api.get_paths_info(head.repo_id, list(files), revision=sha, repo_type=head.kind)
    there = {one.path: one for one in found}
    return all(_is_same(path, there.get(name)) for name, path in files.items())


def _is_same(path: Path | None, there: Any) -> bool:
    if path is None or there is None:
        return path is None and there is None
    return bool(sha256(path) == there.lfs.sha256 if there.lfs else git_sha1(path.read_bytes()) == there.blob_id)


def _noun(kind: str) -> str:
    return "Space" if kind == "space" else "repository"


def full_repo_id(repo_id: str, token: str | bool | None = None) -> str:
    """Returns the Hub id with its namespace, which is the user's own where only a name is given.

    Raises:
        RepositoryError: If the id is malformed, or the user is not known because there is no token.
    """
    check_repo_id(repo_id)
    with hub_errors(repo_id, what="repository"):
        return repo_id if "/" in repo_id else f"{hub_api(token).whoami()['name']}/{repo_id}"


def check_repo_id(repo_id: str) -> None:
    """Checks that a name can be a repository's; nothing is asked.

    Raises:
        RepositoryError: If it cannot.
    """
    with hub_errors(repo_id, what="repository"):
        validate_repo_id(repo_id)


def _undone(api: HfApi, repo_id: str, branch: str | None, head: str | None, kind: str) -> None:
    """Takes back what was made for a commit that failed, unless somebody else has published there meanwhile.

    The commit's own error is the one to raise, so nothing is raised here.
    """
    what = f"The branch '{branch}' of '{repo_id}'" if branch else f"The repository '{repo_id}'"
    try:
        if branch is None:
            if len(api.list_repo_commits(repo_id, repo_type=kind)) <= 1:  # as the Hub makes it
                api.delete_repo(repo_id, repo_type=kind)
        elif api.model_info(repo_id, revision=branch).sha == head:
            api.delete_branch(repo_id, branch=branch)
    except (HfHubHTTPError, TransportError) as error:
        logger.warning("%s was made for a commit that failed, and could not be deleted again: %s", what, error)


def published_files(folder: Path) -> dict[str, Path]:
    """Lists the files of a TAIA folder that go to the Hub, by their paths there; Trainer's and an optimizer's stay."""
    kept = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        private = any(part.startswith((".", "checkpoint-", "global_step")) or part in _PRIVATE for part in parts)
        trainers = path.name in _TRAINERS_FILES or path.suffix in (".pt", ".pth", ".bin", ".distcp")
        if path.is_file() and not private and not trainers:
            kept["/".join(parts)] = path
    return kept
