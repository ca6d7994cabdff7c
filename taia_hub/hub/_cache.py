"""What the Hub's cache on this disk knows: commits, and the names of their files; nothing is asked of the Hub."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub import _CACHED_NO_EXIST, constants, errors, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name

CacheFolder = str | Path | None
_NOT_WRITTEN_DOWN = getattr(errors, "CachedRepoTreeNotFoundError", ())  # older versions write no list of files down


def _folder(name: str, cache_dir: CacheFolder, kind: str) -> Path:
    return Path(cache_dir or constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)


def is_cached(name: str, cache_dir: CacheFolder = None, kind: str = "model") -> bool:
    """Tells whether the cache knows a repository."""
    return _folder(name, cache_dir, kind).is_dir()


def cached_commits(name: str, cache_dir: CacheFolder = None, kind: str = "model") -> tuple[str, ...]:
    """Lists the commits of which files are in the cache."""
    folder = _folder(name, cache_dir, kind) / "snapshots"
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir())) if folder.is_dir() else ()


def snapshot_folder(name: str, commit: str, cache_dir: CacheFolder = None, kind: str = "model") -> Path | None:
    """Returns the folder with the files of a commit; None where the cache has none."""
    folder = _folder(name, cache_dir, kind) / "snapshots" / commit
    return folder if folder.is_dir() else None


def cached_names(name: str, commit: str, cache_dir: CacheFolder = None, kind: str = "model") -> frozenset[str] | None:
    """Lists all files of a repository at a commit, where an earlier download wrote them down; else None."""
    read = getattr(huggingface_hub, "get_cached_repo_tree", None)
    if read is None:
        return None
    try:
        return frozenset(one.path for one in read(name, repo_type=kind, revision=commit, cache_dir=cache_dir))
    except _NOT_WRITTEN_DOWN:
        return None


def is_known_absent(name: str, path: str, commit: str, cache_dir: CacheFolder = None) -> bool:
    """Tells whether the Hub said before that a repository has no such file at a commit."""
    return try_to_load_from_cache(name, path, cache_dir=cache_dir, revision=commit) is _CACHED_NO_EXIST
