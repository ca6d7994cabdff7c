"""Publishing in one commit: all of it, or nothing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id

from taia_hub.hub._errors import TransportError, hub_errors
from taia_hub.hub.spaces import SpaceSettings, change_space

logger = logging.getLogger(__name__)

CARD = "README.md"
RESUME_INDEX = "model.safetensors.index.json"
"""What Trainer looks for in a checkpoint; written for trainable models, never published."""

_TRAINERS_FILES = (RESUME_INDEX, "trainer_state.json", "zero_to_fp32.py", "latest")
_PRIVATE = ("__pycache__", "runs")


def publish(
    files: Mapping[str, Path | None],
    repo_id: str,
    *,
    commit_message: str,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    parent_commit: str | None = None,
    space: SpaceSettings | None = None,
) -> CommitInfo:
    """Publishes files in one commit: all of them, or nothing.

    Args:
        files: Path in the repository to path on this disk, or to None where the file is deleted.
        repo_id: The repository with its namespace; a new one is deleted again if the commit fails.
        commit_message: First line of the commit.
        commit_description: The rest of its message.
        private: Whether a new repository is private.
        token: Access token.
        revision: Branch to commit to, made from main if need be; None for main.
        create_pr: Whether the commit becomes a pull request.
        parent_commit: The commit that the files were made for; any other head refuses them. None for a
            new repository, which must not exist then.
        space: The settings of a Space; None for a model repository.

    Returns:
        The commit.

    Raises:
        RepositoryError: If any request fails; the repository is as it was before.
    """
    api = HfApi(token=token, library_name="taia-hub")
    kind, what = ("space", "Space") if space else ("model", "repository")
    with hub_errors(repo_id, what=what, revision=revision), contextlib.ExitStack() as undo:
        if parent_commit is None:  # what somebody makes meanwhile refuses ours: nobody looked at what is in it
            api.create_repo(repo_id, private=private, repo_type=kind, **(space.creation() if space else {}))
            undo.callback(_undone, api, repo_id, None, None, kind)
        elif space:
            change_space(api, repo_id, space, undo)
        if revision and not create_pr and not api.revision_exists(repo_id, revision):
            head = api.model_info(repo_id).sha
            api.create_branch(repo_id, branch=revision, revision=head)
            undo.callback(_undone, api, repo_id, revision, head, kind)
        commit = api.create_commit(
            repo_id,
            [
                CommitOperationAdd(name, path) if path else CommitOperationDelete(name, is_folder=False)
                for name, path in files.items()
            ],
            repo_type=kind,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
            parent_commit=parent_commit or api.repo_info(repo_id, revision=revision, repo_type=kind).sha,
        )
        undo.pop_all()
    return commit


def full_repo_id(repo_id: str, token: str | bool | None = None) -> str:
    """Returns the Hub id with its namespace, which is the user's own where only a name is given.

    Args:
        repo_id: A Hub id, or the name of a repository of the user's.
        token: Access token.

    Returns:
        `namespace/name`.

    Raises:
        RepositoryError: If the id is malformed, or the user is not known because there is no token.
    """
    with hub_errors(repo_id, what="repository"):
        validate_repo_id(repo_id)
        return repo_id if "/" in repo_id else f"{HfApi(token=token).whoami()['name']}/{repo_id}"


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
    """Lists the files of a TAIA folder that go to the Hub; a checkpoint's optimizer and Trainer files stay.

    Args:
        folder: The folder.

    Returns:
        Path in the repository to path on this disk.
    """
    kept = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        private = any(part.startswith((".", "checkpoint-", "global_step")) or part in _PRIVATE for part in parts)
        trainers = path.name in _TRAINERS_FILES or path.suffix in (".pt", ".pth", ".bin", ".distcp")
        if path.is_file() and not private and not trainers:
            kept["/".join(parts)] = path
    return kept
