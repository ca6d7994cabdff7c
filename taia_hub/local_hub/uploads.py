"""Calls that bring files: what to send how, large files, commits.

The bodies of commits and large files do not fit into memory: `app.py` reads them piece by piece, and calls `stage` and
`commit` here.
"""

from __future__ import annotations

from typing import Any

from taia_hub.common.parsing import parse_json
from taia_hub.local_hub.history import AddFile, DeleteFile, DeleteFolder, File, Operation, decode
from taia_hub.local_hub.names import SHA256
from taia_hub.local_hub.refusals import Reason, Refused
from taia_hub.local_hub.service import API, PAGES, Call, Routes, Service, text
from taia_hub.local_hub.store import LARGE_SUFFIXES

_LARGE_SIZE = 10 << 20


def preupload(service: Service, call: Call) -> Any:
    """Answers which files go into the commit, which ahead of it, and which hashes are there already."""
    repository = service.writable(call)
    commit = repository.commit_at(call.path["revision"])
    shown = []
    for asked in call.json().get("files", []):
        path, size = text(asked, "path"), asked["size"]
        large = service.large_files == "lfs" and size > 0 and (path.endswith(LARGE_SUFFIXES) or size >= _LARGE_SIZE)
        answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        there = commit.files.get(path)
        if there and (large or not there.lfs):
            # The client leaves out a file whose hash has not changed.
            answer["oid"] = there.sha256 if large else there.oid
        shown.append(answer)
    return {"files": shown}


def lfs_batch(service: Service, call: Call) -> Any:
    """Answers where to send large files; for those that are there already it names no place."""
    service.writable(call)
    objects = []
    for asked in call.json().get("objects", []):
        sha256, size = text(asked, "oid"), int(asked["size"])
        if not SHA256.fullmatch(sha256):
            raise Refused(Reason.INVALID, f"'{sha256[:100]}' is no sha256.")
        shown: dict[str, Any] = {"oid": sha256, "size": size}
        if service.store.disk.find(sha256) is None:
            href = f"{service.endpoint}/lfs/{sha256}?size={size}&signature={service.signature(sha256, size)}"
            shown["actions"] = {"upload": {"href": href}, "verify": {"href": f"{service.endpoint}/lfs-verify"}}
        objects.append(shown)
    return {"transfer": "basic", "objects": objects}


def lfs_verify(service: Service, call: Call) -> Any:
    """Answers whether a large file has arrived."""
    service.check_writer(call)
    body = call.json()
    sha256 = text(body, "oid")
    blob = service.store.disk.find(sha256)
    if blob is None or blob.size != body.get("size"):
        message = f"No file of {body.get('size')} bytes with sha256 {sha256[:64]} has arrived."
        raise Refused(Reason.ENTRY_NOT_FOUND, message)
    return {}


def stage(service: Service, line: bytes | bytearray) -> dict[str, Any] | Operation:
    """Reads one line of a commit, a JSON object with a `key` and a `value`, and keeps the content that it carries.

    Returns the header's value, or what the commit shall do.
    """
    try:
        part = parse_json(line.decode())
        key, value = part["key"], dict(part["value"])
    except (ValueError, KeyError, TypeError) as e:
        raise Refused(Reason.INVALID, "A line of the commit is no JSON object with a key and a value.") from e
    if key == "header":
        return value
    path = text(value, "path")
    if key == "deletedFile":
        return DeleteFile(path)
    if key == "deletedFolder":
        return DeleteFolder(path)
    if key == "file":
        content = decode(text(value, "content"), value.get("encoding", "utf-8"))
        return AddFile(path, File.regular(service.store.disk.put(content), content))
    if key == "lfsFile":
        sha256 = text(value, "oid")
        blob = service.store.disk.find(sha256)
        if blob is None:
            message = f"The large file '{path}' with sha256 {sha256[:64]} has not arrived. Upload it first."
            raise Refused(Reason.INVALID, message)
        return AddFile(path, File.large(blob))
    raise Refused(Reason.INVALID, f"A commit cannot hold '{str(key)[:100]}'.")


def commit(service: Service, call: Call, header: dict[str, Any], operations: list[Operation]) -> Any:
    """Commits what `stage` kept; answers with the addresses of the commit and of a pull request that was opened."""
    repository = service.writable(call)
    made, number = repository.commit(
        call.path["revision"],
        operations,
        title=text(header, "summary"),
        message=header.get("description") or "",
        author=service.user,
        parent=header.get("parentCommit"),
        pull_request=call.flag("create_pr"),
    )
    page = service.page(repository.kind, repository.repo_id)
    shown = {"success": True, "commitOid": made.sha, "commitUrl": f"{page}/commit/{made.sha}"}
    return shown if number is None else {**shown, "pullRequestUrl": f"{page}/discussions/{number}"}


ROUTES: Routes = (
    ("POST", API + "/preupload/{revision}", preupload),
    *(("POST", page + ".git/info/lfs/objects/batch", lfs_batch) for page in PAGES),
    ("POST", "/lfs-verify", lfs_verify),
)
