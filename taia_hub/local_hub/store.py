"""The repositories of a local Hub, on disk and without HTTP.

```
FOLDER/
  local_hub.json                        format and access token
  blobs/ab/abcd…                        contents, by sha256
  collections/NAMESPACE/SLUG.json       what is shown together
  models/NAMESPACE/NAME/                and datasets/, spaces/
    repository.json                     visibility, a Space's settings
    commits/SHA.json                    what the repository held at that commit
    references.json                     branches, tags and pull requests; moved last
```
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from taia_hub.local_hub.disk import Disk, read_json
from taia_hub.local_hub.history import Commit, File, Operation, apply, now
from taia_hub.local_hub.names import SHA, RepoKind, check_reference, check_repo_id
from taia_hub.local_hub.refusals import Reason, Refused

LARGE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".npz", ".parquet", ".zip")


@dataclass(frozen=True)
class Settings:
    """What a repository has besides its files; from `sdk` on, a Space alone has it.

    `gated` is `"auto"` or `"manual"` where its files need a token; `sleep_time` are the seconds without a visit before
    a Space sleeps. Variables and secrets are kept by name, of secrets never the value.
    """

    created: str
    private: bool = False
    gated: str | bool = False
    sdk: str | None = None
    hardware: str | None = None
    sleep_time: int | None = None
    variables: dict[str, dict[str, Any]] = field(default_factory=dict)
    secrets: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class PullRequest:
    """A proposed change: a branch of its own at `refs/pr/NUMBER`."""

    number: int
    head: str
    title: str
    author: str
    date: str


@dataclass(frozen=True)
class References:
    """Where the names of a repository point, each to a commit's sha."""

    branches: dict[str, str]
    tags: dict[str, str]
    pulls: dict[str, PullRequest]

    def find(self, revision: str) -> str | None:
        """Returns the sha that a branch, a tag or a pull request points to, or None."""
        if revision.startswith("refs/pr/"):
            pull = self.pulls.get(revision.removeprefix("refs/pr/"))
            return pull.head if pull else None
        branch, tag = revision.removeprefix("refs/heads/"), revision.removeprefix("refs/tags/")
        return self.branches.get(branch) or self.tags.get(tag)


class Repository:
    """One repository; `Store` makes these."""

    def __init__(self, disk: Disk, lock: threading.RLock, kind: RepoKind, repo_id: str) -> None:
        self.kind, self.repo_id = kind, repo_id
        self.folder = disk.folder / kind.plural / repo_id
        self._disk, self._lock = disk, lock

    @property
    def settings(self) -> Settings:
        """What the repository has besides its files."""
        return Settings(**self._read("repository.json"))

    def update_settings(self, **changes: Any) -> Settings:
        """Changes some settings and returns all."""
        with self._lock:
            settings = replace(self.settings, **changes)
            self._disk.write_json(self.folder / "repository.json", asdict(settings))
        return settings

    @property
    def references(self) -> References:
        """The branches, tags and pull requests."""
        value = self._read("references.json")
        pulls = {number: PullRequest(**pull) for number, pull in value["pulls"].items()}
        return References(value["branches"], value["tags"], pulls)

    def commit_at(self, revision: str) -> Commit:
        """Returns the commit that a branch, a tag, `refs/pr/N` or a full sha names; refuses other names."""
        sha = self.references.find(revision) or (revision if SHA.fullmatch(revision) else None)
        if sha is None or not self._commit_path(sha).exists():
            message = f"{self.repo_id} has no revision '{revision[:200]}'."
            raise Refused(Reason.REVISION_NOT_FOUND, f"{message} Use a branch, a tag, refs/pr/N or a full commit sha.")
        return _read_commit(self._commit_path(sha))

    def history(self, commit: Commit) -> Iterator[Commit]:
        """Yields a commit and those before it, the newest first."""
        yield commit
        while commit.parent is not None:
            commit = _read_commit(self._commit_path(commit.parent))
            yield commit

    def commit(
        self,
        branch: str,
        operations: Iterable[Operation],
        *,
        title: str,
        author: str,
        message: str = "",
        parent: str | None = None,
        pull_request: bool = False,
    ) -> tuple[Commit, int | None]:
        """Commits changes whose contents are on disk already, whole or not at all: the branch moves last.

        `branch` may be `refs/pr/N`, and with `pull_request` is only where a new one starts, whose number is returned
        too. Refuses a branch that is no longer at `parent`, no branch at all, and operations that do not fit.
        """
        with self._lock:
            references = self.references
            before = self.commit_at(branch)
            name = branch.removeprefix("refs/heads/")
            is_pull = branch.startswith("refs/pr/")
            if not is_pull and name not in references.branches and not pull_request:
                raise Refused(Reason.INVALID, f"'{branch}' is no branch. Commit to a branch such as 'main'.")
            # Clients may shorten the parent to seven digits.
            if parent is not None and not (len(parent) >= 7 and before.sha.startswith(parent.lower())):
                raise Refused(
                    Reason.STALE_PARENT,
                    f"'{branch}' of {self.repo_id} is at {before.sha[:12]} and no longer at {parent[:12]}: another "
                    "commit came first. Look at what changed and commit again.",
                )
            after = Commit.make(
                before.sha, apply(operations, before.files), title=title, message=message, author=author
            )
            number = None
            if pull_request:
                number = 1 + max(map(int, references.pulls), default=0)
                references.pulls[str(number)] = PullRequest(number, after.sha, title, author, after.date)
            elif is_pull:
                key = branch.removeprefix("refs/pr/")
                references.pulls[key] = replace(references.pulls[key], head=after.sha)
            else:
                references.branches[name] = after.sha
            self._disk.write_json(self._commit_path(after.sha), asdict(after))
            self._write_references(references)
        return after, number

    def add_reference(self, name: str, revision: str, *, tag: bool) -> None:
        """Makes a branch, or a tag, at a revision; refuses a name that is taken or not allowed."""
        with self._lock:
            references = self.references
            check_reference(name)
            if name in references.branches or name in references.tags:
                raise Refused(Reason.EXISTS, f"{self.repo_id} already has a branch or a tag '{name}'.")
            (references.tags if tag else references.branches)[name] = self.commit_at(revision).sha
            self._write_references(references)

    def remove_reference(self, name: str, *, tag: bool) -> None:
        """Removes a branch other than `main`, or a tag; its commits stay."""
        with self._lock:
            references = self.references
            if name == "main" and not tag:
                raise Refused(Reason.FORBIDDEN, "The branch 'main' cannot be deleted.")
            if (references.tags if tag else references.branches).pop(name, None) is None:
                what = "tag" if tag else "branch"
                raise Refused(Reason.REVISION_NOT_FOUND, f"{self.repo_id} has no {what} '{name[:200]}'.")
            self._write_references(references)

    def _commit_path(self, sha: str) -> Path:
        return self.folder / "commits" / f"{sha}.json"

    def _read(self, name: str) -> dict[str, Any]:
        try:
            value: dict[str, Any] = read_json(self.folder / name)
        except FileNotFoundError as e:
            raise no_repository(self.kind, self.repo_id) from e
        return value

    def _write_references(self, references: References) -> None:
        self._disk.write_json(self.folder / "references.json", asdict(references))


class Store:
    """All repositories of a local Hub; it holds the folder until `close`."""

    def __init__(self, folder: Path) -> None:
        self.disk = Disk(folder)
        # One lock is enough: contents are on disk before it is taken, and what it guards takes milliseconds.
        self.lock = threading.RLock()

    def close(self) -> None:
        """Frees the folder for other processes."""
        self.disk.close()

    def get(self, kind: RepoKind, repo_id: str) -> Repository:
        """Returns the repository of a name; refuses a name that none has."""
        repository = Repository(self.disk, self.lock, kind, check_repo_id(repo_id))
        if not (repository.folder / "references.json").exists():
            raise no_repository(kind, repo_id)
        return repository

    def all(self, kind: RepoKind) -> list[Repository]:
        """Returns every repository of a kind, by name."""
        files = sorted((self.disk.folder / kind.plural).glob("*/*/references.json"))
        return [self.get(kind, f"{file.parts[-3]}/{file.parts[-2]}") for file in files]

    def create(self, kind: RepoKind, repo_id: str, *, author: str, **settings: Any) -> Repository:
        """Makes a repository with these `Settings`, whose first commit holds a `.gitattributes`.

        Refuses a name that is taken or not allowed.
        """
        content = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES).encode()
        file = File.regular(self.disk.put(content), content)
        first = Commit.make(None, {".gitattributes": file}, title="initial commit", author=author)
        repository = Repository(self.disk, self.lock, kind, check_repo_id(repo_id))
        with self.lock:
            self._refuse_if_taken(repository)
            made = self.disk.new_folder()
            (made / "commits").mkdir(parents=True)
            self.disk.write_json(made / "commits" / f"{first.sha}.json", asdict(first))
            self.disk.write_json(made / "repository.json", asdict(Settings(created=now(), **settings)))
            self.disk.write_json(made / "references.json", asdict(References({"main": first.sha}, {}, {})))
            self.disk.move_folder(made, repository.folder)
        return repository

    def delete(self, repository: Repository) -> None:
        """Removes a repository; contents stay in `blobs/`, where others may share them."""
        with self.lock:
            self.disk.remove_folder(repository.folder)

    def move(self, repository: Repository, new_id: str) -> Repository:
        """Gives a repository another name; refuses one that is taken or not allowed."""
        moved = Repository(self.disk, self.lock, repository.kind, check_repo_id(new_id))
        with self.lock:
            self._refuse_if_taken(moved)
            self.disk.move_folder(repository.folder, moved.folder)
        return moved

    def _refuse_if_taken(self, repository: Repository) -> None:
        if repository.folder.exists():
            raise Refused(Reason.EXISTS, f"There is already a {repository.kind.value} '{repository.repo_id}'.")


def no_repository(kind: RepoKind, repo_id: str) -> Refused:
    """Returns the refusal of a repository that is not there, or not for the caller."""
    return Refused(Reason.REPO_NOT_FOUND, f"There is no {kind.value} '{repo_id}' on this Hub.")


@lru_cache(maxsize=64)
def _read_commit(path: Path) -> Commit:
    return Commit.from_json(read_json(path))
