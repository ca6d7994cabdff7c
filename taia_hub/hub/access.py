"""Bringing repositories to this disk."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_session, hf_hub_url, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, filter_repo_objects, hf_raise_for_status

from taia_hub.errors import RepositoryError
from taia_hub.hub._cache import cached_commits, cached_names, is_cached, snapshot_folder
from taia_hub.hub._errors import OutOfReachError, TransportError, hub_errors, not_there
from taia_hub.hub._names import files_there, is_path, looks_like_path
from taia_hub.hub._seen import seen_file, seen_folder, seen_in
from taia_hub.hub.layout import PEFT

logger = logging.getLogger(__name__)

CARD = "README.md"
CONFIG = "config.json"
GENERATION = "generation_config.json"
_LIBRARY = "taia-hub"
_SPARE = ["*.model", "vocab*", "merges.txt", "bpe.codes"]
"""Older forms of a vocabulary, which `tokenizer.json` holds too."""


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
    kind: str = "model",
) -> Source:
    """Brings the files of a folder or Hub repository to this disk.

    Nothing is asked for at a commit whose files are in the cache. Where the Hub cannot be reached, what is in the cache
    suffices if it is whole; of a main branch that the cache does not know, its only commit is taken.

    Args:
        name: A folder, or a Hub id.
        patterns: Which files to download, as globs.
        revision: Branch, tag or commit sha; None for the main branch.
        access: How to reach the Hub.
        what: What the repository is for, in error messages.
        local: Whether `name` may be a folder; what is fixed by a commit is always a Hub id.
        kind: `model` or `dataset`.

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
        if local and kind == "model":
            _check_reach(name, what, access)
        try:
            folder = _downloaded(name, patterns, revision, access, what, kind)
        except (LocalEntryNotFoundError, TransportError) as error:
            known = cached_commits(name, access.cache_dir, kind)
            if revision is not None or len(known) != 1 or isinstance(error.__cause__, HfHubHTTPError):
                raise
            folder = _downloaded(name, patterns, known[0], access, what, kind)
            logger.warning(
                "Which commit '%s' has now is not known without the Hub: %s, the only one in the cache, is taken.",
                name,
                known[0][:12],
            )
    return Source(name, folder, folder.name)


def _downloaded(
    name: str, patterns: Sequence[str], revision: str | None, access: HubAccess, what: str, kind: str
) -> Path:
    try:
        found: str | Path = snapshot_download(
            name,
            repo_type=kind,
            revision=getattr(revision, "resolved", revision),
            allow_patterns=list(patterns),
            token=access.token,
            cache_dir=access.cache_dir,
            local_files_only=access.local_files_only,
            force_download=access.force_download,
            library_name=_LIBRARY,
        )
    except LocalEntryNotFoundError as error:
        partial = getattr(error, "snapshot_path", None) or _snapshot(name, revision, access, kind)
        if partial is None or isinstance(error.__cause__, HfHubHTTPError):
            raise
        found = partial
        if missing := _missing(name, Path(partial), patterns, access, kind):
            named = " ".join(missing[:5])
            raise OutOfReachError(
                f"The {what} '{name}' is in the cache without {', '.join(map(repr, missing[:5]))}, and the Hub cannot "
                "be reached.",
                f"Bring it here with a network: `hf download {name} {named} --revision {Path(partial).name}`.",
            ) from error
    return Path(found)


def _snapshot(name: str, revision: str | None, access: HubAccess, kind: str) -> Path | None:
    """Finds the folder of a commit in the cache, where it is known which files belong to it."""
    commit = str(getattr(revision, "resolved", revision))
    is_known = cached_names(name, commit, access.cache_dir, kind) is not None
    return snapshot_folder(name, commit, access.cache_dir, kind) if is_known else None


def _missing(name: str, folder: Path, patterns: Sequence[str], access: HubAccess, kind: str) -> list[str]:
    """Lists files that patterns name and the cache lacks, without those in sub-folders that are hit by chance."""
    names = cached_names(name, folder.name, access.cache_dir, kind) or ()
    nested = [pattern for pattern in patterns if "/" in pattern]
    spare = _SPARE if (folder / "tokenizer.json").is_file() else None
    wanted: Any = filter_repo_objects(sorted(names), allow_patterns=list(patterns), ignore_patterns=spare)
    return [
        path
        for path in wanted
        if not (folder / path).is_file() and ("/" not in path or any(fnmatch(path, one) for one in nested))
    ]


def resolve_base(name: str, revision: str | None, access: HubAccess) -> Source:
    """Finds a base model's configuration on the Hub or in a folder, and the commit that `revision` points to.

    Its card comes along, so that nobody has to ask for the licence after long work.

    Raises:
        RepositoryError: If the base or its revision is gone, or cannot be reached.
    """
    if os.path.isdir(name):
        if not os.path.isfile(os.path.join(name, CONFIG)):
            seen = seen_file(Path(name, CONFIG)) or seen_folder(Path(name))
            said, hint = seen or ("", "Give the folder of a model.")
            raise RepositoryError(f"The base model folder '{name}' has no {CONFIG}{said and f': it is {said}'}.", hint)
        check_alone(Source(name, Path(name), None))
        return Source(name, Path(name), None)
    found = fetch(name, (CONFIG, GENERATION), revision=revision, access=access, what="base model")
    if not (found.folder / CONFIG).is_file():
        names = cached_names(name, str(found.revision), access.cache_dir) or files_there(name)
        seen = seen_in(sorted(names))
        raise RepositoryError(
            f"The base model '{name}' lacks a file that is needed: {f'it is {seen[0]}' if seen else CONFIG}.",
            seen[1] if seen else f"Looked for at commit {found.revision}. Give the repository of a whole model.",
        )
    with contextlib.suppress(RepositoryError):  # a card is no reason to stop; who needs it says that it is not there
        fetch(name, (CARD,), revision=found.revision, access=access, what="base model", local=False)
    return found


def check_alone(base: Source) -> None:
    """Refuses a base model with an adapter's files beside its own, which transformers would load into it.

    Raises:
        RepositoryError: If there is an adapter.
    """
    if (base.folder / PEFT.config).is_file():
        raise RepositoryError(
            f"The base model '{base.name}' holds an adapter too ({PEFT.config}), and transformers would load it too, "
            "so that it would be no base any more.",
            f"Move {PEFT.config} and {PEFT.weights} into a folder of their own, or name the model that they are for.",
        )


def read_bytes(source: Source, file: str, start: int, count: int, access: HubAccess) -> bytes:
    """Reads a piece of a file of a repository on the Hub, without bringing the file here.

    Raises:
        RepositoryError: If the file is gone, or the Hub cannot be reached.
    """
    if not count:
        return b""
    with hub_errors(source.name, revision=source.revision, what="repository"):
        headers = build_hf_headers(token=access.token, library_name=_LIBRARY)
        headers["range"] = f"bytes={start}-{start + count - 1}"
        response = get_session().get(hf_hub_url(source.name, file, revision=source.revision), headers=headers)
        hf_raise_for_status(response)
    if len(response.content) != count:
        raise RepositoryError(
            f"The Hub gave {len(response.content)} bytes of '{file}' in '{source.name}' where {count} were asked for.",
            "Try it again, or download the repository.",
        )
    return bytes(response.content)


def _check_reach(name: str, what: str, access: HubAccess) -> None:
    """Asks the Hub shortly for what has the form of a path and is not in the cache: it retries long when offline."""
    if is_path(name):
        raise not_there(name, what=what)
    if looks_like_path(name) and not access.local_files_only and not is_cached(name, access.cache_dir):
        try:
            api(access.token).model_info(name, timeout=5)
        except RepositoryNotFoundError:
            raise
        except HfHubHTTPError:
            pass  # a Hub that has a problem of its own: the download tries again, and says it
        except TransportError as error:
            if type(error).__name__ != "ReadTimeout":  # the Hub is there, and slow
                raise
