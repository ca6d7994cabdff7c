"""Calls that read: the user, repositories, listings and downloads."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from taia_hub.local_hub import views
from taia_hub.local_hub.history import Commit
from taia_hub.local_hub.names import RepoKind
from taia_hub.local_hub.service import API, PAGES, Call, Routes, Service, text
from taia_hub.local_hub.store import Repository


def whoami(service: Service, call: Call) -> Any:
    """Answers `HfApi.whoami`."""
    service.check_writer(call)
    auth = {"type": "access_token", "accessToken": {"displayName": "local", "role": "write"}}
    return {"type": "user", "id": "0", "name": service.user, "fullname": service.user, "orgs": [], "auth": auth}


def agent_harnesses(service: Service, call: Call) -> Any:
    """Answers what the client asks once a day to name itself: nothing is known."""
    return {"standardEnvVars": [], "harnesses": {}}


def validate_yaml(service: Service, call: Call) -> Any:
    """Answers the check of a card before it is committed."""
    from starlette.responses import JSONResponse

    body = call.json()
    errors, warnings = views.card_problems(text(body, "content"), RepoKind.parse(body.get("repoType") or "model"))
    shown = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
    return JSONResponse(shown, 400 if errors else 200)


def info(service: Service, call: Call) -> Any:
    """Answers `HfApi.model_info`, `dataset_info` and `space_info`."""
    repository, commit = service.commit_of(call)
    return _expanded(call, _info(service, call, repository, commit))


def listing(service: Service, call: Call) -> Any:
    """Answers `HfApi.list_models`, `list_datasets` and `list_spaces`, in one page, by name."""
    author, search, tags = call.last("author"), call.last("search").lower(), set(call.query.get("filter", []))
    shown = []
    for repository in service.store.all(RepoKind.parse(call.path["kind"])):
        owned = not author or repository.repo_id.startswith(f"{author}/")
        if owned and search in repository.repo_id.lower() and (call.authorised or not repository.settings.private):
            found = _info(service, call, repository, repository.commit_at("main"))
            if tags <= set(found["tags"]):
                shown.append(_expanded(call, found))
    limit = call.last("limit")
    return shown[: int(limit)] if limit.isdecimal() else shown


def auth_check(service: Service, call: Call) -> Any:
    """Answers `HfApi.auth_check`."""
    service.check_gate(call, service.readable(call))
    return {}


def refs(service: Service, call: Call) -> Any:
    """Answers `HfApi.list_repo_refs`."""
    references = service.readable(call).references
    pulls = {number: pull.head for number, pull in references.pulls.items()}
    shown: dict[str, Any] = {
        "branches": _references("refs/heads", references.branches),
        "tags": _references("refs/tags", references.tags),
        "converts": [],
    }
    return {**shown, "pullRequests": _references("refs/pr", pulls)} if call.flag("include_prs") else shown


def commits(service: Service, call: Call) -> Any:
    """Answers `HfApi.list_repo_commits`."""
    repository, commit = service.commit_of(call)
    return [
        {"id": c.sha, "title": c.title, "message": c.message, "authors": [{"user": c.author}], "date": c.date}
        for c in repository.history(commit)
    ]


def tree(service: Service, call: Call) -> Any:
    """Answers `HfApi.list_repo_tree`, in one page."""
    repository, commit = service.commit_of(call)
    last = views.last_changes(repository, commit) if call.flag("expand") else None
    return views.tree(commit, call.path.get("path", "").strip("/"), recursive=call.flag("recursive"), last=last)


def paths_info(service: Service, call: Call) -> Any:
    """Answers `HfApi.get_paths_info`; paths that are not there are left out."""
    repository, commit = service.commit_of(call)
    form = parse_qs(call.body.decode(errors="replace"))
    last = views.last_changes(repository, commit) if form.get("expand", [""])[-1].lower() == "true" else None
    items = views.items(commit, last)
    return [items[path] for path in (asked.strip("/") for asked in form.get("paths", [])) if path in items]


def discussions(service: Service, call: Call) -> Any:
    """Answers `HfApi.get_repo_discussions`: the pull requests, all of them open."""
    repository = service.readable(call)
    shown = [views.pull_request(repository, pull) for pull in repository.references.pulls.values()]
    return {"discussions": shown, "count": len(shown), "start": 0}


def resolve(service: Service, call: Call) -> Any:
    """Answers downloads."""
    from starlette.responses import FileResponse

    repository, commit = service.commit_of(call)
    service.check_gate(call, repository)
    file = commit.file(call.path["path"])
    etag = f'"{file.sha256 if file.lfs else file.oid}"'
    headers = {"X-Repo-Commit": commit.sha, "ETag": etag}
    if file.lfs:
        headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(file.size)}
    path = service.store.disk.blob_path(file.sha256)
    return FileResponse(path, headers=headers, media_type="application/octet-stream")


def _info(service: Service, call: Call, repository: Repository, commit: Commit) -> dict[str, Any]:
    card = commit.files.get("README.md")
    readme = service.store.disk.blob_path(card.sha256).read_text("utf-8", "replace") if card else ""
    return views.repository_info(repository, commit, readme, blobs=call.flag("blobs"))


def _expanded(call: Call, info: dict[str, Any]) -> dict[str, Any]:
    # A client that names fields gets only these.
    fields = [*call.query.get("expand", []), *call.query.get("expand[]", [])]
    return {key: value for key, value in info.items() if not fields or key in ("_id", "id", *fields)}


def _references(prefix: str, names: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "ref": f"{prefix}/{name}", "targetCommit": sha} for name, sha in names.items()]


ROUTES: Routes = (
    ("GET", "/api/whoami-v2", whoami),
    ("GET", "/api/agent-harnesses", agent_harnesses),
    ("POST", "/api/validate-yaml", validate_yaml),
    ("GET", "/api/{kind:hub_kind}", listing),
    ("GET", API, info),
    ("GET", API + "/revision/{revision}", info),
    ("GET", API + "/auth-check", auth_check),
    ("GET", API + "/refs", refs),
    ("GET", API + "/commits/{revision}", commits),
    ("GET", API + "/tree/{revision}", tree),
    ("GET", API + "/tree/{revision}/{path:path}", tree),
    ("POST", API + "/paths-info/{revision}", paths_info),
    ("GET", API + "/discussions", discussions),
    *(("GET", page + "/resolve/{revision}/{path:path}", resolve) for page in PAGES),
)
