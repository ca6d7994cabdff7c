"""Why a local Hub turns a request down."""

from __future__ import annotations

from enum import Enum

from taia_hub.errors import RepositoryError


class Reason(Enum):
    """The closed set of refusals: each with its HTTP status, and the Hub's own `X-Error-Code` where it sends one."""

    REPO_NOT_FOUND = 404, "RepoNotFound"
    REVISION_NOT_FOUND = 404, "RevisionNotFound"
    ENTRY_NOT_FOUND = 404, "EntryNotFound"
    UNKNOWN_CALL = 404, ""
    GATED = 401, "GatedRepo"
    TOKEN = 401, ""
    FORBIDDEN = 403, ""
    EXISTS = 409, ""
    STALE_PARENT = 412, ""
    INVALID = 400, ""
    TOO_LARGE = 413, ""

    def __init__(self, status: int, code: str) -> None:
        self.status, self.code = status, code


class Refused(RepositoryError):
    """Raised when the Hub's rules do not allow what a client asked for, of `commit` where it was one."""

    def __init__(self, reason: Reason, message: str, *, commit: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.commit = commit
