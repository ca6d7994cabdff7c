"""A merged model to the Hub, in one commit."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, hf_hub_download

from taia_hub import hub
from taia_hub.configuration_taia import TAIAConfig
from taia_hub.errors import RepositoryError
from taia_hub.merging.running import MergeReport

_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")


def check_repository(repo_id: str, token: str | bool | None = None) -> str:
    """Refuses a repository that holds something else than a whole model, before anything is merged.

    Args:
        repo_id: A Hub id, or the name of a repository of the user's.
        token: Access token.

    Returns:
        The Hub id with its namespace.

    Raises:
        RepositoryError: If it holds an adapter or a TAIA repository, or cannot be reached.
    """
    repo_id = hub.full_repo_id(repo_id, token)
    names = _there(repo_id, token)
    other = "an adapter" if hub.ADAPTER_CONFIG in names else None
    if other is None and hub.CONFIG in names:
        with hub.hub_errors(repo_id, what="repository"):
            path = Path(hf_hub_download(repo_id, hub.CONFIG, token=token, library_name="taia-hub"))
        if hub.read_json(path).get("model_type") == TAIAConfig.model_type:
            other = "a TAIA repository"
    if other:
        raise RepositoryError(
            f"'{repo_id}' is {other}, which a merged model would replace.", "Publish the merged model to a new one."
        )
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

    Args:
        report: What `merge` returned.
        repo_id: The Hub id with its namespace, as `check_repository` gives it.
        commit_message: First line of the commit.
        private: Whether a new repository is private.
        token: Access token.

    Returns:
        The commit.

    Raises:
        RepositoryError: If a request fails; the repository is as it was before.
    """
    files: dict[str, Path | None] = {
        path.relative_to(report.folder).as_posix(): path for path in report.folder.rglob("*") if path.is_file()
    }
    stale = [name for name in _there(repo_id, token) if _WEIGHTS.fullmatch(name) and name not in files]
    return hub.publish(
        {**files, **dict.fromkeys(stale)},
        repo_id,
        commit_message=commit_message or f"Merge with inference modules '{report.setting}' acting",
        private=private,
        token=token,
    )


def _there(repo_id: str, token: str | bool | None) -> list[str]:
    """Lists the files of a repository; none where it does not exist."""
    api = HfApi(token=token, library_name="taia-hub")
    with hub.hub_errors(repo_id, what="repository"):
        return list(api.list_repo_files(repo_id)) if api.repo_exists(repo_id) else []
