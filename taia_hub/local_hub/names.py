"""Names that a local Hub accepts: repositories, files and git references."""

from __future__ import annotations

import re
from enum import Enum

from taia_hub.local_hub.refusals import Reason, Refused

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NOT_IN_REFERENCES = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|//|@\{|/\.|\.lock(/|$)")
SHA = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


class RepoKind(str, Enum):
    """The kinds of repository that the Hub keeps apart."""

    MODEL = "model"
    DATASET = "dataset"
    SPACE = "space"

    @property
    def plural(self) -> str:
        """The kind as the Hub's API writes it, such as `"models"`."""
        return f"{self.value}s"

    @property
    def prefix(self) -> str:
        """What stands before the repository's name in a page's address; empty for models."""
        return "" if self is RepoKind.MODEL else f"{self.plural}/"

    @classmethod
    def parse(cls, text: str) -> RepoKind:
        """Returns the kind for `"model"` or `"models"` and the like; refuses others."""
        for kind in cls:
            if text in (kind.value, kind.plural):
                return kind
        allowed = ", ".join(kind.value for kind in cls)
        raise Refused(Reason.INVALID, f"Unknown repository type '{text}'. Choose one of {allowed}.")


def check_repo_id(repo_id: str) -> str:
    """Returns `repo_id` when it is a `namespace/name` that is safe as two folder names; refuses any other."""
    parts = repo_id.split("/")
    fits = len(parts) == 2 and all(_NAME.fullmatch(part) and ".." not in part and "--" not in part for part in parts)
    return _checked(
        repo_id,
        fits and not parts[1].endswith(".git"),
        "is no repository name. Write namespace/name, each of at most 96 letters, digits, '-', '_' or '.', without "
        "'--' or '..' and not starting or ending with '-' or '.'.",
    )


def check_path(path: str) -> str:
    """Returns `path` when it names a file inside a repository; refuses what climbs out, here or on another system."""
    parts = path.split("/")
    forbidden = any(part in ("", ".", "..", ".git") for part in parts)
    return _checked(
        path,
        not (forbidden or "\\" in path or ":" in parts[0] or _CONTROL.search(path) or len(path) > 1000),
        "is no file name in a repository. Write a relative path of at most 1000 characters with forward slashes, "
        "without '.', '..' or '.git' as a part.",
    )


def check_reference(name: str) -> str:
    """Returns `name`, without `refs/heads/` or `refs/tags/`, when it can name a branch or a tag.

    It refuses what git would not take, and what could be taken for a commit or a pull request.
    """
    bad_edges = name.startswith(("/", "-", ".", "refs/")) or name.endswith(("/", "."))
    return _checked(
        name,
        not (not name or len(name) > 200 or bad_edges or _NOT_IN_REFERENCES.search(name) or SHA.fullmatch(name)),
        "cannot name a branch or a tag. Use a name such as 'v1.0'.",
    )


def _checked(name: str, fits: bool, otherwise: str) -> str:
    if not fits:
        raise Refused(Reason.INVALID, f"'{name[:200]}' {otherwise}")
    return name
