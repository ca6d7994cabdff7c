"""What may have been meant by a name that is not there: a folder here, a repository, a revision."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, get_session

# Transport errors derive from the HTTP client's own base class, which huggingface_hub may exchange for another.
TransportError: type[Exception] = next(cls for cls in HfHubHTTPError.__bases__ if cls is not OSError)

DATA = "data set"
_KINDS = {DATA: "datasets", "Space": "spaces"}
_SECONDS = 3
_MOST = 300


def is_path(name: str) -> bool:
    """Tells whether a name can only be that of a folder, here or, as Windows writes them, on another machine."""
    return name.startswith((".", "/", "~")) or "\\" in name or name[1:3] == ":/" or os.path.isabs(name)


def looks_like_path(name: str) -> bool:
    """Tells whether a name may be meant for a folder here: the one above it exists, or one of nearly its name."""
    return is_path(name) or ("/" in name and Path(name).parent.is_dir()) or _path(name, files=False) is not None


def meant(name: str, *, what: str = "", local: bool = True, online: bool = False) -> str:
    """Returns `" Did you mean 'x'?"` for what is nearest to a name that is not there, or an empty text.

    Folders here (for data, files too) come before repositories of that owner, which one short request names where
    `online`, and those in the cache. Nothing is raised.
    """
    found = _path(name, files=what == DATA) if local else None
    if found is None and not is_path(name):
        kind = _KINDS.get(what, "models")
        owner, _, own = name.rpartition("/")
        owned = _owned(owner, kind) if online and owner else ()
        found = _nearest(own, {one.rpartition("/")[2]: one for one in owned})
        found = found or _nearest(name, {one: one for one in _cached(kind)}, 0.8)
    return f" Did you mean '{found}'?" if found else ""


def revision_meant(name: str, revision: str, *, what: str = "") -> str:
    """Returns which branch or tag of a repository was meant by one that it has not, else those that it has."""
    refs = asked_once(f"{_KINDS.get(what, 'models')}/{name}/refs", {})
    found = [one["name"] for kind in ("branches", "tags") for one in (refs or {}).get(kind, ())]
    if near := _nearest(revision, {one: one for one in found}):
        return f" Did you mean '{near}'?"
    return f" It has {', '.join(found[:5])}." if found else ""


def files_there(name: str, what: str = "") -> list[str]:
    """Returns the paths of a repository's files on the Hub; none where it does not say."""
    found = asked_once(f"{_KINDS.get(what, 'models')}/{name}", {})
    return [str(one.get("rfilename")) for one in (found or {}).get("siblings") or ()]


def _path(name: str, *, files: bool) -> str | None:
    """Finds the path here that is nearest to one that is not, part by part."""
    path = Path(name).expanduser()
    at = Path(path.anchor)
    for part in path.parts[1 if path.anchor else 0 :]:
        if os.path.exists(at / part) or part == "..":
            at /= part
            continue
        is_last = part == path.parts[-1]
        try:
            beside = [one.name for one in at.iterdir() if one.is_dir() or (files and is_last)]
        except OSError:
            return None
        near = _nearest(part, {one: one for one in beside if not one.startswith(".") or part.startswith(".")})
        if near is None:
            return None
        at /= near
    return at.as_posix() if at.parts else None


def _nearest(name: str, known: dict[str, str], cutoff: float = 0.6) -> str | None:
    """Returns the value of the key that is nearest to a name, whatever its case."""
    lower = {key.lower(): value for key, value in known.items()}
    match = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=cutoff)
    return lower[match[0]] if match else None


def _owned(owner: str, kind: str) -> Iterable[str]:
    found = asked_once(kind, {"author": owner, "limit": _MOST})
    return [str(one["id"]) for one in found or () if "id" in one]


def asked_once(path: str, params: dict[str, Any]) -> Any:
    """Asks the Hub once and shortly; None where it does not answer."""
    url = f"{constants.ENDPOINT}/api/{path}"
    try:
        headers = build_hf_headers(library_name="taia-hub")
        answer = get_session().get(url, params=params, headers=headers, timeout=_SECONDS)
        return answer.json() if answer.status_code == 200 else None
    except (TransportError, OSError, ValueError):  # offline, refused, no JSON
        return None


def _cached(kind: str) -> Iterable[str]:
    folder, prefix = Path(constants.HF_HUB_CACHE), f"{kind}--"
    names = [one.name for one in folder.glob(f"{prefix}*")] if folder.is_dir() else []
    return [name.removeprefix(prefix).replace("--", "/") for name in names]
