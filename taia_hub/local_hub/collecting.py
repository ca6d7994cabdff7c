"""Calls about collections: repositories that somebody shows together, kept as a file each in `collections/`."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Any

from taia_hub.local_hub.disk import read_json
from taia_hub.local_hub.history import now
from taia_hub.local_hub.names import RepoKind, check_repo_id
from taia_hub.local_hub.refusals import Reason, Refused
from taia_hub.local_hub.service import Call, Routes, Service, text

_LONGEST_DESCRIPTION = 150
_LONGEST_NOTE = 500


def create(service: Service, call: Call) -> Any:
    """Answers `HfApi.create_collection`; of an owner no two have the same title."""
    service.check_writer(call)
    body = call.json()
    title, namespace = text(body, "title"), text(body, "namespace")
    words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    slug = check_repo_id(f"{namespace}/{f'{words}-'[:60].lstrip('-')}{secrets.token_hex(12)}")
    if len(body.get("description") or "") > _LONGEST_DESCRIPTION:
        raise Refused(Reason.INVALID, f"The description is longer than {_LONGEST_DESCRIPTION} signs.")
    with service.store.lock:
        for other in _all(service):
            if (other["owner"]["name"], other["title"]) == (namespace, title):
                from starlette.responses import JSONResponse

                # With exists_ok the client takes the name from the refusal.
                return JSONResponse({"error": f"There is already '{title}'.", "slug": other["slug"]}, 409)
        made: dict[str, Any] = {
            "slug": slug,
            "title": title,
            "owner": {"name": namespace},
            "description": body.get("description"),
            "private": body.get("private") is True,
            "items": [],
            "lastUpdated": now(),
            "position": 0,
            "theme": "blue",
            "upvotes": 0,
        }
        path = _path(service, slug)
        path.parent.mkdir(parents=True, exist_ok=True)
        service.store.disk.write_json(path, made)
    return made


def listing(service: Service, call: Call) -> Any:
    """Answers `HfApi.list_collections`, in one page."""
    owner, wanted = call.query.get("owner", []), call.query.get("item", [])
    found = []
    for one in _all(service):
        shown = _shown(service, call, one)
        items = {f"{item['type']}s/{item['id']}" for item in shown["items"]}
        visible = call.authorised or not one["private"]
        if visible and (not owner or one["owner"]["name"] in owner) and items.issuperset(wanted):
            found.append({name: value for name, value in shown.items() if name != "position"})  # the client counts
    return found


def get(service: Service, call: Call) -> Any:
    """Answers `HfApi.get_collection`."""
    return _shown(service, call, _read(service, call))


def delete(service: Service, call: Call) -> Any:
    """Answers `HfApi.delete_collection`."""
    service.check_writer(call)
    _path(service, _read(service, call)["slug"]).unlink()
    return {}


def add_item(service: Service, call: Call) -> Any:
    """Answers `HfApi.add_collection_item`, for repositories."""
    service.check_writer(call)
    body = call.json()
    asked = body.get("item")
    if not isinstance(asked, dict):
        raise Refused(Reason.INVALID, f"'item' is {asked!r}; it must be an object with an id and a type.")
    kind, name = RepoKind.parse(text(asked, "type")), text(asked, "id")
    service.store.get(kind, name)
    note = body.get("note")
    if len(note or "") > _LONGEST_NOTE:
        raise Refused(Reason.INVALID, f"The note is longer than {_LONGEST_NOTE} signs.")
    with service.store.lock:
        one = _read(service, call)
        if any((item["type"], item["id"]) == (kind.value, name) for item in one["items"]):
            raise Refused(Reason.EXISTS, f"'{name}' is already in '{one['title']}'.")
        item = {"_id": secrets.token_hex(12), "id": name, "type": kind.value, "position": len(one["items"])}
        one["items"].append({**item, **({"note": {"text": note}} if note else {})})
        one["lastUpdated"] = now()
        service.store.disk.write_json(_path(service, one["slug"]), one)
    return one


def remove_item(service: Service, call: Call) -> Any:
    """Answers `HfApi.delete_collection_item`."""
    service.check_writer(call)
    with service.store.lock:
        one = _read(service, call)
        left = [item for item in one["items"] if item["_id"] != call.path["item"]]
        if len(left) == len(one["items"]):
            raise Refused(Reason.UNKNOWN_CALL, f"'{one['title']}' has no such item.")
        service.store.disk.write_json(_path(service, one["slug"]), {**one, "items": left, "lastUpdated": now()})
    return {}


def _read(service: Service, call: Call) -> dict[str, Any]:
    slug = check_repo_id(f"{call.path['namespace']}/{call.path['repo']}")
    path = _path(service, slug)
    found: dict[str, Any] = read_json(path) if path.is_file() else {"private": True}
    if "slug" not in found or (found["private"] and not call.authorised):
        raise Refused(Reason.UNKNOWN_CALL, f"There is no collection '{slug}' on this Hub.")
    return found


def _shown(service: Service, call: Call, one: dict[str, Any]) -> dict[str, Any]:
    """Leaves out what is gone, or not for the caller."""

    def is_seen(item: dict[str, Any]) -> bool:
        try:
            settings = service.store.get(RepoKind.parse(item["type"]), item["id"]).settings
        except Refused:
            return False
        return call.authorised or not settings.private

    return {**one, "items": [item for item in one["items"] if is_seen(item)]}


def _all(service: Service) -> list[dict[str, Any]]:
    return [read_json(path) for path in sorted(_folder(service).glob("*/*.json"))]


def _path(service: Service, slug: str) -> Path:
    return _folder(service) / f"{slug}.json"


def _folder(service: Service) -> Path:
    return service.store.disk.folder / "collections"


_ONE = "/api/collections/{namespace}/{repo}"
ROUTES: Routes = (
    ("POST", "/api/collections", create),
    ("GET", "/api/collections", listing),
    ("GET", _ONE, get),
    ("DELETE", _ONE, delete),
    ("POST", _ONE + "/items", add_item),
    ("DELETE", _ONE + "/items/{item}", remove_item),
)
