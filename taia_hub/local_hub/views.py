"""What the Hub's API says about a repository: plain values in, JSON values out."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from taia_hub.local_hub.history import Commit, File, parents, pointer
from taia_hub.local_hub.names import RepoKind
from taia_hub.local_hub.refusals import Reason, Refused
from taia_hub.local_hub.store import PullRequest, Repository, Settings

_MODEL_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def repository_info(repository: Repository, commit: Commit, readme: str, *, blobs: bool) -> dict[str, Any]:
    """Returns what `model_info`, `dataset_info` and `space_info` read; with `blobs`, files have sizes and hashes."""
    settings = repository.settings
    card = card_data(readme)
    info: dict[str, Any] = {
        "_id": hashlib.sha1(f"{repository.kind.value} {repository.repo_id}".encode()).hexdigest()[:24],
        "id": repository.repo_id,
        "author": repository.repo_id.split("/")[0],
        "sha": commit.sha,
        "createdAt": settings.created,
        "lastModified": commit.date,
        "private": settings.private,
        "gated": settings.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": _tags(card),
        "usedStorage": sum(file.size for file in commit.files.values()),
        "siblings": [_sibling(path, file, blobs) for path, file in sorted(commit.files.items())],
    }
    if card:
        info["cardData"] = card
    if repository.kind is RepoKind.MODEL:
        info["modelId"] = repository.repo_id
        info |= {key: card[key] for key in ("library_name", "pipeline_tag", "model-index") if key in card}
    if repository.kind is RepoKind.SPACE:
        info |= {"sdk": settings.sdk, "runtime": runtime(settings)}
    return info


def card_data(readme: str) -> dict[str, Any]:
    """Returns the metadata of a card; empty where there are none or they are damaged."""
    try:
        data = _metadata(readme)
    except yaml.YAMLError:
        return {}
    # YAML knows dates, JSON does not.
    return json.loads(json.dumps(data, default=str)) if isinstance(data, dict) else {}


def card_problems(content: str, kind: RepoKind) -> tuple[list[str], list[str]]:
    """Returns the errors and the warnings that the Hub's check finds in a card for this kind of repository."""
    try:
        data = _metadata(content)
    except yaml.YAMLError as e:
        return [f"The metadata are not YAML: {e}"], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data, dict):
        return [f"The metadata are a {type(data).__name__}, not a mapping."], []
    base = data.get("base_model") or []
    bases = base if isinstance(base, list) else [base]
    wrong = [name for name in bases if not _MODEL_ID.fullmatch(str(name))] if kind is RepoKind.MODEL else []
    return [f"base_model '{name}' is no model on the Hub. Write its namespace/name." for name in wrong], []


def tree(commit: Commit, folder: str, *, recursive: bool, last: Mapping[str, Commit] | None) -> list[dict[str, Any]]:
    """Returns the files and folders in a folder, or in the whole repository for `""`; refuses one that is not there.

    They come as `items` describes them, by path, a folder before the files in it.
    """
    inside = f"{folder}/" if folder else ""
    found = {path: item for path, item in items(commit, last).items() if path.startswith(inside)}
    if folder and not found:
        message = f"There is no folder '{folder[:200]}' in commit {commit.sha[:12]}."
        raise Refused(Reason.ENTRY_NOT_FOUND, message, commit=commit.sha)
    return [found[path] for path in sorted(found) if recursive or "/" not in path[len(inside) :]]


def items(commit: Commit, last: Mapping[str, Commit] | None = None) -> dict[str, dict[str, Any]]:
    """Returns every file and folder of a commit as listings show them, by path.

    Each says which commit last changed it, where the client asked for these (`last_changes`).
    """
    shown: dict[str, dict[str, Any]] = {}
    hashes: dict[str, Any] = {}
    for path, file in sorted(commit.files.items()):
        shown[path] = {"type": "file", "path": path, "oid": file.oid, "size": file.size}
        if file.lfs:
            shown[path]["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(pointer(file))}
        for folder in parents(path):
            hashes.setdefault(folder, hashlib.sha1()).update(f"{path} {file.oid}\n".encode())
    for folder, digest in hashes.items():
        shown[folder] = {"type": "directory", "path": folder, "oid": digest.hexdigest(), "size": 0}
    for path, item in shown.items():
        if last is not None:
            item["lastCommit"] = {"id": last[path].sha, "title": last[path].title, "date": last[path].date}
    return shown


def pull_request(repository: Repository, pull: PullRequest) -> dict[str, Any]:
    """Returns a pull request as listings of discussions show it."""
    return {
        "title": pull.title,
        "num": pull.number,
        "author": {"name": pull.author},
        "createdAt": pull.date,
        "status": "open",
        "repo": {"name": repository.repo_id, "type": repository.kind.value},
        "isPullRequest": True,
    }


def last_changes(repository: Repository, commit: Commit) -> dict[str, Commit]:
    """Returns the commit that last changed each file and folder of a commit, by path."""
    found: dict[str, Commit] = {}
    history = list(repository.history(commit))
    for newer, older in zip(history, [*history[1:], None], strict=True):
        before = older.files if older else {}
        for path, file in newer.files.items():
            if before.get(path) != file and commit.files.get(path) == file:
                for entry in (path, *parents(path)):
                    found.setdefault(entry, newer)
    return found


def runtime(settings: Settings) -> dict[str, Any]:
    """Returns the state of a Space, which a local Hub never runs."""
    return {
        "stage": "STOPPED",
        "hardware": {"current": None, "requested": settings.hardware},
        "storage": None,
        "gcTimeout": settings.sleep_time,
    }


def _metadata(readme: str) -> Any:
    from huggingface_hub.repocard import REGEX_YAML_BLOCK  # takes longer than the rest of the Hub: when it is asked

    match = REGEX_YAML_BLOCK.search(readme)
    return yaml.safe_load(match.group(2)) if match else None


def _tags(card: Mapping[str, Any]) -> list[str]:
    tags = [str(tag) for tag in card.get("tags") or []]
    tags += [str(card[key]) for key in ("library_name", "pipeline_tag") if card.get(key)]
    for key in ("base_model", "dataset", "license"):
        value = card.get("datasets" if key == "dataset" else key) or []
        tags += [f"{key}:{name}" for name in (value if isinstance(value, list) else [value])]
    if relation := card.get("base_model_relation"):
        tags += [tag.replace(":", f":{relation}:", 1) for tag in tags if tag.startswith("base_model:")]
    return list(dict.fromkeys(tags))


def _sibling(path: str, file: File, blobs: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"rfilename": path}
    if blobs:
        shown |= {"size": file.size, "blobId": file.oid}
        if file.lfs:
            shown["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": len(pointer(file))}
    return shown
