"""Calls that change a repository as a whole: making, deleting, settings, branches and tags, a Space's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taia_hub.local_hub import views
from taia_hub.local_hub.history import now
from taia_hub.local_hub.names import RepoKind
from taia_hub.local_hub.refusals import Reason, Refused
from taia_hub.local_hub.service import API, Call, Routes, Service, text


def create_repo(service: Service, call: Call) -> Any:
    """Answers `HfApi.create_repo`."""
    service.check_writer(call)
    body = call.json()
    kind, repo_id = _named(service, body)
    settings: dict[str, Any] = {"private": body.get("visibility") == "private" or body.get("private") is True}
    if kind is RepoKind.SPACE:
        settings |= {"sdk": text(body, "sdk"), "hardware": body.get("hardware")}
        settings["sleep_time"] = body.get("sleepTimeSeconds")
        settings["variables"] = {text(v, "key"): _variable(v) for v in body.get("variables") or []}
        settings["secrets"] = {text(s, "key"): _secret(s) for s in body.get("secrets") or []}
    url = service.page(kind, repo_id)
    try:
        service.store.create(kind, repo_id, author=service.user, **settings)
    except Refused as e:
        if e.reason is not Reason.EXISTS:
            raise
        from starlette.responses import JSONResponse

        # With exist_ok the client takes the address from the refusal.
        return JSONResponse({"error": e.message, "url": url}, 409)
    return {"url": url, "name": repo_id, "id": repo_id}


def delete_repo(service: Service, call: Call) -> Any:
    """Answers `HfApi.delete_repo`."""
    service.check_writer(call)
    service.store.delete(service.store.get(*_named(service, call.json())))
    return {}


def move_repo(service: Service, call: Call) -> Any:
    """Answers `HfApi.move_repo`; the old name leads nowhere."""
    service.check_writer(call)
    body = call.json()
    repository = service.store.get(RepoKind.parse(body.get("type") or "model"), text(body, "fromRepo"))
    service.store.move(repository, text(body, "toRepo"))
    return {}


def update_settings(service: Service, call: Call) -> Any:
    """Answers `HfApi.update_repo_settings`."""
    body = call.json()
    changes: dict[str, Any] = {}
    if "gated" in body:
        changes["gated"] = body["gated"]
    if "visibility" in body:
        changes["private"] = body["visibility"] == "private"
    service.writable(call).update_settings(**changes)
    return changes


def create_branch(service: Service, call: Call) -> Any:
    """Answers `HfApi.create_branch`."""
    start = call.json().get("startingPoint") or "main"
    service.writable(call).add_reference(call.path["name"], start, tag=False)
    return {}


def delete_branch(service: Service, call: Call) -> Any:
    """Answers `HfApi.delete_branch`."""
    service.writable(call).remove_reference(call.path["name"], tag=False)
    return {}


def create_tag(service: Service, call: Call) -> Any:
    """Answers `HfApi.create_tag`."""
    service.writable(call).add_reference(text(call.json(), "tag"), call.path["name"], tag=True)
    return {}


def delete_tag(service: Service, call: Call) -> Any:
    """Answers `HfApi.delete_tag`."""
    service.writable(call).remove_reference(call.path["name"], tag=True)
    return {}


def runtime(service: Service, call: Call) -> Any:
    """Answers `HfApi.get_space_runtime`."""
    return views.runtime(service.readable(call).settings)


def set_hardware(service: Service, call: Call) -> Any:
    """Answers `HfApi.request_space_hardware`."""
    body = call.json()
    changes: dict[str, Any] = {"hardware": text(body, "flavor")}
    if "sleepTimeSeconds" in body:
        changes["sleep_time"] = body["sleepTimeSeconds"]
    return views.runtime(service.writable(call).update_settings(**changes))


def entries(service: Service, call: Call) -> Any:
    """Answers `HfApi.get_space_variables` and `get_space_secrets`."""
    return getattr(service.writable(call).settings, call.path["entries"])


def set_entry(service: Service, call: Call) -> Any:
    """Answers `HfApi.add_space_variable` and `add_space_secret`."""
    body, before = call.json(), entries(service, call)
    entry = _variable(body) if call.path["entries"] == "variables" else _secret(body)
    return _changed(service, call, {**before, text(body, "key"): entry})


def delete_entry(service: Service, call: Call) -> Any:
    """Answers `HfApi.delete_space_variable` and `delete_space_secret`."""
    key = text(call.json(), "key")
    return _changed(service, call, {name: entry for name, entry in entries(service, call).items() if name != key})


def _changed(service: Service, call: Call, entries: dict[str, Any]) -> Any:
    service.writable(call).update_settings(**{call.path["entries"]: entries})
    return entries


def _named(service: Service, body: Mapping[str, Any]) -> tuple[RepoKind, str]:
    repo_id = f"{body.get('organization') or service.user}/{text(body, 'name')}"
    return RepoKind.parse(body.get("type") or "model"), repo_id


def _secret(body: Mapping[str, Any]) -> dict[str, Any]:
    # Deliberately without the value: nothing here runs a Space, and a folder is no place for secrets.
    return {"description": body.get("description"), "updatedAt": now()}


def _variable(body: Mapping[str, Any]) -> dict[str, Any]:
    return {"value": text(body, "value"), **_secret(body)}


_SPACE = "/api/{kind:hub_space}/{namespace}/{repo}"
_ENTRIES = _SPACE + "/{entries:hub_entries}"

ROUTES: Routes = (
    ("POST", "/api/repos/create", create_repo),
    ("DELETE", "/api/repos/delete", delete_repo),
    ("POST", "/api/repos/move", move_repo),
    ("PUT", API + "/settings", update_settings),
    ("POST", API + "/branch/{name}", create_branch),
    ("DELETE", API + "/branch/{name}", delete_branch),
    ("POST", API + "/tag/{name}", create_tag),
    ("DELETE", API + "/tag/{name}", delete_tag),
    ("GET", _SPACE + "/runtime", runtime),
    ("POST", _SPACE + "/hardware", set_hardware),
    ("GET", _ENTRIES, entries),
    ("POST", _ENTRIES, set_entry),
    ("DELETE", _ENTRIES, delete_entry),
)
