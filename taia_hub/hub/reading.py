"""Reading from the Hub: what lies in the cache at a commit is taken from there, and only the rest is asked for.

Whoever wants to know something of a repository asks here; nothing outside this room talks to the Hub.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.utils import SafetensorsFileMetadata

from taia_hub.common.resuming import sha256
from taia_hub.hub._cache import cached_names, is_known_absent
from taia_hub.hub._errors import OutOfReachError, hub_errors
from taia_hub.hub._names import asked_once
from taia_hub.hub.access import HubAccess, Source, api, fetch


def info(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    what: str = "repository",
    kind: str = "model",
) -> Any:
    """Asks what a repository is now, and returns it as huggingface_hub does, with sizes and hashes of its files.

    Raises:
        RepositoryError: If it is not there, or the Hub cannot be reached.
    """
    with hub_errors(name, what=what, revision=revision):
        return api(token).repo_info(name, revision=revision, repo_type=kind, files_metadata=True)


def quantised_from(name: str, *, most: int = 3) -> list[str]:
    """Lists files of GGUF that repositories on the Hub hold of a model, as `ORG/REPO/FILE.gguf`, one a repository.

    Those say that they were made of it, or have its name with -GGUF. Of each, the one with most bits a number that is
    no part of several. Where the Hub does not answer at once, the list is empty.
    """
    found: dict[str, str] = {}
    for asked in ({"search": f"{name.rpartition('/')[2]}-GGUF"}, {"filter": f"base_model:quantized:{name}"}):
        for one in asked_once("models", {**asked, "full": "true", "limit": 20}) or ():
            files = [each["rfilename"] for each in one.get("siblings") or () if _GGUF.search(each["rfilename"])]
            if files:
                found.setdefault(one["id"], f"{one['id']}/{min(files, key=_by_bits)}")
    return list(found.values())[:most]


_GGUF = re.compile(r"(?<!-of-\d{5})\.gguf$", re.IGNORECASE)
_BITS = ("bf16", "f16", "fp16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")


def _by_bits(file: str) -> tuple[int, str]:
    return next((at for at, name in enumerate(_BITS) if name in file.lower()), len(_BITS)), file


def user(token: str | bool | None, name: str, *, what: str = "repository") -> dict[str, Any]:
    """Asks who the token is of, before `name` is made for them; as `HfApi.whoami` returns it.

    Raises:
        RepositoryError: If there is no token, or the Hub cannot be reached.
    """
    with hub_errors(name, what=what):
        return dict(api(token).whoami())


def count_commits(name: str, *, token: str | bool | None = None, what: str = "repository", kind: str = "model") -> int:
    """Asks how many commits the main branch of a repository has.

    Raises:
        RepositoryError: If it is not there, or the Hub cannot be reached.
    """
    with hub_errors(name, what=what):
        return len(api(token).list_repo_commits(name, repo_type=kind))


def names_at(source: Source, access: HubAccess, *, what: str = "repository") -> frozenset[str]:
    """Lists the files of a repository at a commit; without a network, those that are known from the cache.

    Raises:
        RepositoryError: If the repository is not there (any more).
    """
    found = cached_names(source.name, str(source.revision), access.cache_dir)
    if found is not None:
        return found
    try:
        if not access.local_files_only:
            with hub_errors(source.name, what=what, revision=source.revision):
                return frozenset(api(access.token).list_repo_files(source.name, revision=source.revision))
    except OutOfReachError:
        pass
    paths = (path for path in source.folder.rglob("*") if path.is_file())
    return frozenset(path.relative_to(source.folder).as_posix() for path in paths)


def has_file(source: Source, path: str, access: HubAccess, *, what: str = "repository") -> bool:
    """Tells whether a repository has a file at a commit; what is in the cache is not asked for."""
    return (source.folder / path).is_file() or path in names_at(source, access, what=what)


def may_lack(source: Source, path: str, access: HubAccess) -> bool:
    """Tells whether the cache may lack a file that the repository has: nobody could be asked when it was fetched."""
    if source.revision is None or (source.folder / path).exists():
        return False
    if is_known_absent(source.name, path, source.revision, access.cache_dir):
        return False
    names = cached_names(source.name, source.revision, access.cache_dir)
    if names is not None:
        return path in names
    return access.local_files_only or constants.is_offline_mode()


def sha256_at(source: Source, path: str, access: HubAccess, *, what: str = "repository") -> str:
    """Finds the sha256 of a file at a commit, of a file in the cache, or from what the Hub knows of a large one.

    Raises:
        RepositoryError: If the file or the Hub is not there.
    """
    if not (source.folder / path).is_file():
        with hub_errors(source.name, what=what, revision=source.revision):
            found: Any = api(access.token).get_paths_info(source.name, path, revision=source.revision)
        if large := [one.lfs.sha256 for one in found if getattr(one, "lfs", None)]:
            return str(large[0])
    return sha256(bring(source, path, access, what=what))


def bring(source: Source, path: str, access: HubAccess, *, what: str = "repository") -> Path:
    """Brings one file of a repository at a commit to this disk, where it is not there yet, and says where it lies.

    Raises:
        RepositoryError: If the file or the Hub is not there.
    """
    if source.revision is None or (source.folder / path).is_file():
        return source.folder / path
    name, revision = source.name, source.revision
    folder = fetch(name, [path], revision=revision, access=access, what=what, local=False).folder
    return folder / path


def safetensors_header(
    source: Source, path: str, access: HubAccess, *, what: str = "repository"
) -> SafetensorsFileMetadata:
    """Reads the header of a safetensors file on the Hub, which stays there.

    Raises:
        RepositoryError: If the file or the Hub is not there.
        SafetensorsParsingError: If it is no such file.
    """
    with hub_errors(source.name, what=what, revision=source.revision):
        return api(access.token).parse_safetensors_file_metadata(source.name, path, revision=source.revision)
