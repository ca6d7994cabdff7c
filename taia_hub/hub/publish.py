"""Publishing in one commit: all of it, or nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from taia_hub.hub._errors import TransportError, hub_errors

CARD = "README.md"
RESUME_INDEX = "model.safetensors.index.json"
"""What Trainer looks for in a checkpoint; written for trainable models, never published."""


def publish(
    files: Mapping[str, Path],
    repo_id: str,
    *,
    commit_message: str,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Publishes files in one commit: all of them, or nothing.

    Args:
        files: Path in the repository to path on this disk.
        repo_id: The model repository; made if need be, and removed again if it was new and the commit fails.
        commit_message: First line of the commit.
        commit_description: The rest of its message.
        private: Whether a new repository is private.
        token: Access token.
        revision: Branch to commit to; None for main.
        create_pr: Whether the commit becomes a pull request.

    Returns:
        The commit.

    Raises:
        RepositoryError: If any request fails; the repository is as it was before.
    """
    api = HfApi(token=token, library_name="taia-hub")
    with hub_errors(repo_id, what="repository", revision=revision):
        existed = api.repo_exists(repo_id)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        try:
            head = api.model_info(repo_id, revision=revision).sha
            return api.create_commit(
                repo_id,
                [CommitOperationAdd(name, path) for name, path in files.items()],
                commit_message=commit_message,
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
                parent_commit=head,
            )
        except BaseException:
            if not existed:
                with contextlib.suppress(HfHubHTTPError, TransportError):
                    api.delete_repo(repo_id)
            raise


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
        private = any(part.startswith((".", "checkpoint-")) or part == "__pycache__" for part in parts)
        trainers = path.name in (RESUME_INDEX, "trainer_state.json") or path.suffix in (".pt", ".pth", ".bin")
        if path.is_file() and not private and not trainers:
            kept["/".join(parts)] = path
    return kept
