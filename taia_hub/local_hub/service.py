"""What every call of the API works with: the request, the repositories, and who may do what."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from taia_hub.common.parsing import parse_json
from taia_hub.local_hub.history import Commit
from taia_hub.local_hub.names import RepoKind
from taia_hub.local_hub.refusals import Reason, Refused
from taia_hub.local_hub.store import Repository, Store, no_repository

LargeFiles = Literal["regular", "lfs"]


@dataclass(frozen=True)
class Call:
    """A request, as far as the API looks at it.

    `path` holds the parts of the address that the route names, percent-decoded; `authorised` is a request that holds
    this Hub's token, or needs none.
    """

    path: Mapping[str, str]
    query: Mapping[str, list[str]]
    body: bytes
    authorised: bool

    def json(self) -> dict[str, Any]:
        """Returns the JSON object in the body, empty where there is no body; refuses any other value."""
        try:
            value = parse_json(self.body.decode() or "{}")
        except ValueError as e:
            raise Refused(Reason.INVALID, f"The body of the request is not JSON: {e}.") from e
        if not isinstance(value, dict):
            raise Refused(Reason.INVALID, f"The body of the request is a {type(value).__name__}, not an object.")
        return value

    def flag(self, name: str) -> bool:
        """Returns whether a query parameter is set to true."""
        return self.last(name).lower() in ("true", "1")

    def last(self, name: str) -> str:
        """Returns the value of a query parameter; of several the last, and empty where there is none."""
        return self.query.get(name, [""])[-1]


@dataclass(frozen=True)
class Service:
    """A local Hub, as the API's functions see it: its repositories and the settings of `LocalHub`."""

    store: Store
    user: str
    endpoint: str
    large_files: LargeFiles

    def readable(self, call: Call) -> Repository:
        """Returns the repository that a call names; to a caller who may not see it, there is none."""
        kind = RepoKind.parse(call.path.get("kind", "models"))
        repository = self.store.get(kind, f"{call.path['namespace']}/{call.path['repo']}")
        if repository.settings.private and not call.authorised:
            raise no_repository(kind, repository.repo_id)
        return repository

    def writable(self, call: Call) -> Repository:
        """Returns the repository that a call wants to change; refuses a caller without the token."""
        repository = self.readable(call)
        self.check_writer(call)
        return repository

    def commit_of(self, call: Call) -> tuple[Repository, Commit]:
        """Returns the repository and the commit that a call names."""
        repository = self.readable(call)
        return repository, repository.commit_at(call.path.get("revision", "main"))

    def check_writer(self, call: Call) -> None:
        """Refuses a caller without the token."""
        if not call.authorised:
            raise Refused(Reason.TOKEN, "This needs the token of the local Hub. Set HF_TOKEN to it.")

    def check_gate(self, call: Call, repository: Repository) -> None:
        """Refuses the files of a gated repository to a caller without the token."""
        if repository.settings.gated and not call.authorised:
            message = f"The files of {repository.repo_id} are gated. Set HF_TOKEN to the token of the local Hub."
            raise Refused(Reason.GATED, message)

    def page(self, kind: RepoKind, repo_id: str) -> str:
        """Returns the address of a repository."""
        return f"{self.endpoint}/{kind.prefix}{repo_id}"

    def signature(self, sha256: str, size: int) -> str:
        """Returns what lets a client upload this one file: it sends large files without its token."""
        return hmac.new(self.store.disk.token.encode(), f"{sha256} {size}".encode(), hashlib.sha256).hexdigest()


# Answers with a JSON value, or with a response of Starlette's.
Handler = Callable[[Service, Call], Any]
Routes = tuple[tuple[str, str, Handler], ...]

# What may stand in a path where a route names one of these, beside Starlette's own `str` and `path`.
CONVERTORS = {
    "hub_kind": "models|datasets|spaces",
    "hub_prefix": "datasets|spaces",
    "hub_space": "spaces",
    "hub_entries": "variables|secrets",
}
API = "/api/{kind:hub_kind}/{namespace}/{repo}"
PAGES = ("/{namespace}/{repo}", "/{kind:hub_prefix}/{namespace}/{repo}")


def text(body: Mapping[str, Any], key: str) -> str:
    """Returns a text that a request must hold; refuses its absence and any other value."""
    value = body.get(key)
    if not isinstance(value, str):
        raise Refused(Reason.INVALID, f"'{key}' is {value!r}; it must be a text.")
    return value
