"""Why a local Hub turns a request down."""

from __future__ import annotations

from enum import Enum

from taia_hub.errors import RepositoryError


class Reason(str, Enum):
    """The closed set of refusals; the values with capitals are the Hub's own `X-Error-Code`s."""

    REPO_NOT_FOUND = "RepoNotFound"
    REVISION_NOT_FOUND = "RevisionNotFound"
    ENTRY_NOT_FOUND = "EntryNotFound"
    GATED = "GatedRepo"
    EXISTS = "exists"
    STALE_PARENT = "stale-parent"
    INVALID = "invalid"
    TOO_LARGE = "too-large"
    FORBIDDEN = "forbidden"
    NO_TOKEN = "no-token"
    BAD_TOKEN = "bad-token"
    UNKNOWN_CALL = "unknown-call"

    @property
    def code(self) -> str:
        """The Hub's `X-Error-Code`; empty where the Hub sends none."""
        return self.value if self.value[0].isupper() else ""


class Refused(RepositoryError):
    """Raised when the Hub's rules do not allow what a client asked for.

    Args:
        reason: Which rule.
        message: What came and what is allowed.
        commit: The commit that was looked at, where there was one.

    Attributes:
        reason: Which rule.
        commit: The commit's sha, or None.
    """

    def __init__(self, reason: Reason, message: str, *, commit: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.commit = commit
