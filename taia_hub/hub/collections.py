"""Collections: repositories that are shown together on the Hub."""

from __future__ import annotations

from collections.abc import Mapping

from taia_hub.hub._errors import hub_errors
from taia_hub.hub.access import api as hub_api

_LONGEST_TITLE = 60
_LONGEST_DESCRIPTION = 150


def collect(
    notes: Mapping[str, str],
    name: str,
    *,
    description: str,
    private: bool,
    token: str | bool | None = None,
) -> str:
    """Puts models into a collection of their owner; what is there already, the collection too, stays as it is.

    Args:
        notes: Hub id of each model to a few words about it.
        name: What they are, of which the title is made: `NAME: modes`.
        description: A line about the collection, cut at the Hub's limit.
        private: Whether a new one is private.
        token: Access token.

    Returns:
        Its address.

    Raises:
        RepositoryError: If a request fails; what was added by then stays.
    """
    api, end = hub_api(token), ": modes"
    owner = next(iter(notes)).partition("/")[0]
    title = f"{name[: _LONGEST_TITLE - len(end)]}{end}"
    with hub_errors(f"{owner}/{name}", what="collection"):
        found = api.create_collection(
            title, namespace=owner, description=description[:_LONGEST_DESCRIPTION], private=private, exists_ok=True
        )
        for repo_id, note in notes.items():
            api.add_collection_item(found.slug, repo_id, "model", note=note, exists_ok=True)
    return found.url
