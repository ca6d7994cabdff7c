"""Commits: what a repository holds at one moment, and how one moment becomes the next."""

from __future__ import annotations

import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from taia_hub.common.resuming import git_sha1
from taia_hub.local_hub.disk import Blob
from taia_hub.local_hub.names import check_path
from taia_hub.local_hub.refusals import Reason, Refused


@dataclass(frozen=True)
class File(Blob):
    """A file in a commit: `oid` is the git hash of its content, or of the pointer that git would hold (`lfs`)."""

    oid: str
    lfs: bool

    @classmethod
    def regular(cls, blob: Blob, content: bytes) -> File:
        """Returns the file whose content git holds itself."""
        return cls(blob.sha256, blob.size, git_sha1(content), lfs=False)

    @classmethod
    def large(cls, blob: Blob) -> File:
        """Returns the file for which git holds only a pointer."""
        return cls(blob.sha256, blob.size, git_sha1(pointer(blob)), lfs=True)


@dataclass(frozen=True)
class AddFile:
    """Puts a file at a path, replacing the one that is there."""

    path: str
    file: File


@dataclass(frozen=True)
class DeleteFile:
    """Removes the file at a path."""

    path: str


@dataclass(frozen=True)
class DeleteFolder:
    """Removes every file under a path."""

    path: str


Operation = AddFile | DeleteFile | DeleteFolder


@dataclass(frozen=True)
class Commit:
    """A moment of a repository: all its files, by path.

    `sha` is the hash of everything else here, `parent` the sha of the commit before, `message` what follows the title.
    """

    sha: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: Mapping[str, File]

    @classmethod
    def make(
        cls, parent: str | None, files: Mapping[str, File], *, title: str, message: str = "", author: str
    ) -> Commit:
        """Returns the commit that holds `files` now."""
        body = {"parent": parent, "title": title, "message": message, "author": author, "date": now()}
        named = {path: asdict(file) for path, file in files.items()}
        sha = hashlib.sha1(json.dumps({**body, "files": named}, sort_keys=True).encode()).hexdigest()
        return cls(sha=sha, files=files, **body)  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Commit:
        """Returns the commit whose `asdict` this is."""
        return cls(**{**value, "files": {path: File(**file) for path, file in value["files"].items()}})

    def file(self, path: str) -> File:
        """Returns the file at a path; refuses one that is not there."""
        try:
            return self.files[path]
        except KeyError as e:
            message = f"There is no file '{path}' in commit {self.sha[:12]}."
            raise Refused(Reason.ENTRY_NOT_FOUND, message, commit=self.sha) from e


def apply(operations: Iterable[Operation], files: Mapping[str, File]) -> dict[str, File]:
    """Returns the files after the operations of a commit, by path.

    It refuses a path that is not safe, a deletion of what is not there, and a file that would be a folder too.
    """
    after = dict(files)
    for operation in operations:
        if isinstance(operation, AddFile):
            after[check_path(operation.path)] = operation.file
        elif isinstance(operation, DeleteFile):
            if after.pop(operation.path, None) is None:
                raise Refused(Reason.ENTRY_NOT_FOUND, f"There is no file '{operation.path}' to delete.")
        else:
            inside = operation.path.rstrip("/") + "/"
            doomed = [path for path in after if path.startswith(inside)]
            if not doomed:
                raise Refused(Reason.ENTRY_NOT_FOUND, f"There is no folder '{operation.path}' to delete.")
            for path in doomed:
                del after[path]
    folders = {folder for path in after for folder in parents(path)}
    if clash := sorted(folders & after.keys()):
        raise Refused(Reason.INVALID, f"'{clash[0]}' would be a file and a folder. Delete one of them.")
    return after


def parents(path: str) -> list[str]:
    """Returns the folders above a path, the outermost first: `a` and `a/b` for `a/b/c.txt`."""
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def decode(content: str, encoding: str) -> bytes:
    """Returns the bytes of a file that a commit carries as text; refuses what is not in `encoding`."""
    if encoding == "utf-8":
        return content.encode()
    if encoding != "base64":
        raise Refused(Reason.INVALID, f"Unknown encoding '{encoding}'. Use 'base64' or 'utf-8'.")
    try:
        decoded = binascii.a2b_base64(content)
    except ValueError as e:
        raise Refused(Reason.INVALID, f"The content of a file is not base64: {e}.") from e
    # Letters that are not base64 are skipped over, which shows in the length.
    if len(content) != (len(decoded) + 2) // 3 * 4:
        raise Refused(Reason.INVALID, "The content of a file is not base64.")
    return decoded


def pointer(blob: Blob) -> bytes:
    """Returns the text that git holds in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{blob.sha256}\nsize {blob.size}\n".encode()


def now() -> str:
    """Returns the time as the Hub writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
