"""What becomes of a tuned setting: published by the repository that was tuned, or put into a folder or repository."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from taia_hub import hub
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.hub.config import config_values, is_taia
from taia_hub.repository.card_request import CardRequest
from taia_hub.repository.card_updating import make_card, publish_card, write_card
from taia_hub.repository.creating import create_repository
from taia_hub.repository.publishing import refuse_other_model
from taia_hub.repository.reading import check_publishable
from taia_hub.repository.side_files import FIGURES
from taia_hub.repository.update_files import Repository
from taia_hub.results import TUNING_FILE, Tuned

_ELSEWHERE = "Name a folder for it with --out."


@dataclass(frozen=True)
class Destination:
    """Where a tuned setting goes; nowhere by default.

    Attributes:
        write: Whether the folder of the repository publishes it from now on.
        push: Hub id of the repository that publishes it from now on; empty for the one that was tuned.
        out: A folder for the tuning, its figures and, of an adapter, the repository that is made of it.
        overwrite: Whether another repository in `out` is replaced.
    """

    write: bool = False
    push: str | None = None
    out: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuses several places."""
        if self.write + (self.push is not None) + (self.out is not None) > 1:
            raise ConfigError("--write, --push and --out exclude each other.", "Give one of them.")

    @property
    def is_somewhere(self) -> bool:
        """Whether anything is written."""
        return self.write or self.push is not None or self.out is not None

    def check(self, found: Repository, commit: hub.Commit, state: Path | None = None) -> None:
        """Refuses what could not be written or published in the end, before the long work.

        `out` may hold what was made of the tuning in the folder `state` before.

        Raises:
            ConfigError: If there is nothing to write to.
            RepositoryError: If a folder or repository holds something else, or the token may not write.
        """
        if self.write:
            _check_write(found)
        if self.push is not None:
            self._check_push(found, commit)
        if self.out is not None:
            self._check_out(found, self.out, state)

    def _check_push(self, found: Repository, commit: hub.Commit) -> None:
        if not found.is_plain:
            if found.revision is None:
                raise ConfigError(
                    f"--push needs a Hub id, and '{found.name}' is a folder.",
                    f"Use --write, then `taia push {found.name} {self.push or 'REPO'}`.",
                )
            if self.push and self.push != found.name:
                raise ConfigError(
                    f"--push {self.push} is another repository than '{found.name}', which was tuned.",
                    "Leave its name out: the setting is published where the update is.",
                )
            _check_token(found.name, commit.token)
            return
        if not self.push:
            raise ConfigError(
                f"'{found.name}' is a plain adapter, whose files publish no setting.",
                "Name the TAIA repository that is made of it: --push REPO.",
            )
        check_publishable(found.config)
        _check_token(self.push, commit.token)
        head = hub.look(self.push, revision=commit.revision, token=commit.token)
        refuse_other_model(head.repo_id, head.files, head.config)

    def _check_out(self, found: Repository, out: Path, state: Path | None) -> None:
        if out.exists() and not out.is_dir():
            raise RepositoryError(f"'{out}' is a file.", "Give a folder.")
        found.check_outside(out)
        names = {path.name for path in out.iterdir()} if out.is_dir() else set()
        if not found.is_plain and (model := sorted(names & {hub.CONFIG, hub.ADAPTER_CONFIG})):
            raise RepositoryError(
                f"'{out}' holds a model ({model[0]}), which was not tuned.", "Give a folder for the tuning alone."
            )
        if found.is_plain:
            refuse_other_model(str(out), names, config_values(out))
            if is_taia(config_values(out)) and not self.overwrite and not (state and hold_the_same(out, state)):
                raise RepositoryError(
                    f"'{out}' holds another TAIA repository.",
                    "Replace it with --overwrite, which keeps what you put beside it, or give a new folder.",
                )


def hold_the_same(one: Path, other: Path) -> bool:
    """Tells whether two folders hold the same tuning."""
    with contextlib.suppress(ConfigError, RepositoryError):
        return Tuned.load(one / TUNING_FILE) == Tuned.load(other / TUNING_FILE)
    return False


def _check_write(found: Repository) -> None:
    if found.revision is not None:
        raise ConfigError(
            f"--write needs a folder, and '{found.name}' is none here.",
            "Use --push to publish the setting on the Hub, or name a folder with --out."
            if not found.is_plain
            else _ELSEWHERE,
        )
    if found.is_plain:
        raise ConfigError(
            f"'{found.name}' is a plain adapter, and has no {hub.CONFIG} that publishes a setting.",
            "--out DIR makes a TAIA repository of it there.",
        )
    if not os.access(found.root, os.W_OK):
        raise RepositoryError(f"The folder '{found.name}' cannot be written.", _ELSEWHERE)


def _check_token(repo_id: str, token: str | bool | None) -> None:
    """Refuses to begin without a token that may write."""
    role = hub.user(token, repo_id).get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise RepositoryError(
            f"The token may only read, and the setting shall be published in '{repo_id}'.",
            "Log in with one that may write: `hf auth login`.",
        )


def write_tuned(name: str, tuned: Tuned, access: hub.HubAccess, *, trust_remote_code: bool = False) -> str:
    """Lets the repository in a folder publish the chosen setting, with the tuning, its figures and a card that says so.

    All of it is written, or nothing. Returns the path of the card.
    """
    with _files_of(tuned) as request:
        setting = tuned.recommended.parsed
        made = make_card(name, request, access, setting=setting, trust_remote_code=trust_remote_code)
        return write_card(made)


def push_tuned(
    name: str, tuned: Tuned, access: hub.HubAccess, commit: hub.Commit, *, trust_remote_code: bool = False
) -> CommitInfo:
    """Lets a repository on the Hub publish the chosen setting, as `write_tuned` does, in one commit."""
    with _files_of(tuned) as request:
        made = make_card(
            name,
            request,
            access,
            revision=commit.revision,
            setting=tuned.recommended.parsed,
            trust_remote_code=trust_remote_code,
        )
        message = commit.message or f"Publish the tuned setting: {tuned.choice.label}"
        return publish_card(made, dataclasses.replace(commit, message=message))


def save_tuned(tuned: Tuned, folder: Path) -> tuple[Path, ...]:
    """Writes a tuning and its figures into a folder; returns their paths."""
    from taia_hub.analysis import draw_tuning  # here, because it needs matplotlib where something is drawn

    folder.mkdir(parents=True, exist_ok=True)
    tuned.save(folder)
    drawn = draw_tuning(tuned, folder / FIGURES)
    return tuple(path for figure in drawn for path in (figure.png, figure.svg))


def create_tuned(found: Repository, tuned: Tuned, where: Destination, commit: hub.Commit, **options: Any) -> Any:
    """Makes a TAIA repository of a plain adapter that publishes the chosen setting, as `create_repository` does."""

    def beside(folder: Path) -> None:
        save_tuned(tuned, folder)

    return create_repository(
        found.base,
        found.name,
        adapter_revision=found.revision,
        out=where.out,
        push=where.push,
        inference_modules=tuned.recommended.parsed,
        commit=commit,
        extra_files=beside,
        overwrite=where.overwrite,
        **options,
    )


@contextlib.contextmanager
def _files_of(tuned: Tuned) -> Iterator[CardRequest]:
    """Gives what a card is made of, in a folder for the time being."""
    with tempfile.TemporaryDirectory() as scratch:
        save_tuned(tuned, Path(scratch))
        yield CardRequest(tuning=Path(scratch) / TUNING_FILE, figures=Path(scratch) / FIGURES)
