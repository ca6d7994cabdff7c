"""Bringing repositories to this disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.file_download import repo_folder_name

from taia_hub.errors import RepositoryError
from taia_hub.hub._errors import TransportError, hub_errors, not_there
from taia_hub.hub._names import is_path, looks_like_path
from taia_hub.hub._seen import seen_file, seen_folder

CONFIG = "config.json"
_LIBRARY = "taia-hub"


def api(token: str | bool | None = None) -> HfApi:
    """Returns a client of the Hub that says who asks."""
    return HfApi(token=token, library_name=_LIBRARY)


@dataclass(frozen=True)
class HubAccess:
    """How files are fetched from the Hub.

    Attributes:
        token: Access token, True for the stored one, False for none, None for the default.
        cache_dir: Folder of the cache, or None for the default.
        local_files_only: Whether only the cache is read.
        force_download: Whether the cache is passed over.
    """

    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    force_download: bool = False


@dataclass(frozen=True)
class Source:
    """A repository or folder whose files lie on this disk.

    Attributes:
        name: The Hub id or folder as it was asked for.
        folder: Where the files are.
        revision: The commit sha, or None for a folder.
    """

    name: str
    folder: Path
    revision: str | None


def fetch(
    name: str | os.PathLike[str],
    patterns: Sequence[str],
    *,
    revision: str | None = None,
    access: HubAccess | None = None,
    what: str = "repository",
    local: bool = True,
) -> Source:
    """Brings the files of a folder or Hub repository to this disk.

    Args:
        name: A folder, or a Hub id.
        patterns: Which files to download, as globs.
        revision: Branch, tag or commit sha; None for the main branch.
        access: How to reach the Hub.
        what: What the repository is for, in error messages.
        local: Whether `name` may be a folder; what is fixed by a commit is always a Hub id.

    Returns:
        Where the files are. Files that the repository lacks are not an error here.

    Raises:
        RepositoryError: If it does not exist, is private or gated, lacks the revision, or cannot be reached.
    """
    access = access or HubAccess()
    name = os.fspath(name)
    if local and os.path.isdir(name):
        return Source(name, Path(name), None)
    with hub_errors(name, revision=revision, what=what, local=local):
        if local:
            _check_reach(name, what, access)
        folder = Path(
            snapshot_download(
                name,
                revision=getattr(revision, "resolved", revision),
                allow_patterns=list(patterns),
                token=access.token,
                cache_dir=access.cache_dir,
                local_files_only=access.local_files_only,
                force_download=access.force_download,
                library_name=_LIBRARY,
            )
        )
    return Source(name, folder, folder.name)


def resolve_base(name: str, revision: str | None, access: HubAccess) -> Source:
    """Finds a base model's configuration on the Hub or in a folder, and the commit that `revision` points to.

    Raises:
        RepositoryError: If the base or its revision is gone, or cannot be reached.
    """
    if os.path.isdir(name):
        if not os.path.isfile(os.path.join(name, CONFIG)):
            seen = seen_file(Path(name, CONFIG)) or seen_folder(Path(name))
            said, hint = seen or ("", "Give the folder of a model.")
            raise RepositoryError(f"The base model folder '{name}' has no {CONFIG}{said and f': it is {said}'}.", hint)
        return Source(name, Path(name), None)
    with hub_errors(name, revision=revision, what="base model", local=True):
        _check_reach(name, "base model", access)
        path = hf_hub_download(
            name,
            CONFIG,
            revision=revision,
            token=access.token,
            cache_dir=access.cache_dir,
            local_files_only=access.local_files_only,
            library_name=_LIBRARY,
        )
    return Source(name, Path(path).parent, Path(path).parent.name)


def _check_reach(name: str, what: str, access: HubAccess) -> None:
    """Asks the Hub shortly for what has the form of a path and is not in the cache: it retries long when offline."""
    if is_path(name):
        raise not_there(name, what=what)
    cached = Path(access.cache_dir or constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    if looks_like_path(name) and not access.local_files_only and not cached.is_dir():
        try:
            api(access.token).model_info(name, timeout=5)
        except RepositoryNotFoundError:
            raise
        except HfHubHTTPError:
            pass  # a Hub that has a problem of its own: the download tries again, and says it
        except TransportError as error:
            if type(error).__name__ != "ReadTimeout":  # the Hub is there, and slow
                raise
