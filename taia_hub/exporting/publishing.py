"""Exports to the Hub: a repository each, in one commit, never over another model; several in a collection."""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from taia_hub import hub
from taia_hub.common.resuming import made_files
from taia_hub.errors import RepositoryError
from taia_hub.exporting.adapter import export_adapters
from taia_hub.exporting.card import TAGS
from taia_hub.exporting.options import ExportOptions
from taia_hub.exporting.report import ExportReport
from taia_hub.repository.side_files import card_tags, keep_edits
from taia_hub.repository.update_files import Repository, open_repository
from taia_hub.switch.settings import parse_setting

_OURS = re.compile(rf"(?:[^/]+/)?(?:{hub.ADAPTER_CONFIG}|{hub.ADAPTER_WEIGHTS}|{hub.CARD})")


@dataclass(frozen=True)
class PushedExports:
    """Exports that were published.

    Attributes:
        reports: Hub id to the report; the folders of the reports are gone.
        commits: Hub id to the commit.
        collection: Address of the collection of several; None for one.
    """

    reports: Mapping[str, ExportReport]
    commits: Mapping[str, CommitInfo]
    collection: str | None = None


def push_adapters(
    source: str | os.PathLike[str] | Repository,
    repo_id: str,
    settings: Mapping[str, Any],
    commit: hub.Commit | None = None,
    options: ExportOptions | None = None,
    *,
    revision: str | None = None,
) -> PushedExports:
    """Exports settings as `export_adapters` does and publishes each at the root of a repository of its own.

    Each is one commit. Several are shown together by a collection of their owner. A person's edits of the cards stay.
    The repositories are new ones, or hold nothing but our exports, which the new ones replace. All are looked at, and
    all exports are made, before the first is published; given again, the same call completes one that failed.

    Args:
        source: As of `export_adapter`.
        repo_id: Hub id of the repository, or what the names of several begin with.
        settings: What is added to `repo_id`, behind a dash, to the setting that goes there; an empty name adds nothing.
        commit: How they are published.
        options: How they are exported.
        revision: Revision of the source.

    Raises:
        RepositoryError: If a repository holds another model or is what is exported, the base model is a folder, or a
            request fails; the message then names what was published by then.
    """
    commit = commit or hub.Commit()
    hub.user(commit.token, repo_id)  # without a token that may write, nothing is converted
    whole = hub.full_repo_id(repo_id, commit.token)
    heads = {name: _look(export_id(whole, name), commit.token) for name in settings}
    repo_ids = {name: head.repo_id for name, head in heads.items()}
    access = hub.HubAccess(token=commit.token)
    if isinstance(source, Repository):
        files = source
    else:
        files = open_repository(source, access, revision=revision).with_weights(access)
    for name in repo_ids.values():
        _refuse_own(name, files)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "exports"
        how = dataclasses.replace(options or ExportOptions(), token=commit.token)
        reports = export_adapters(files, folder, settings, how, repo_ids=repo_ids)
        done: dict[str, CommitInfo] = {}
        labels = {repo_ids[name]: parse_setting(report.setting).label for name, report in reports.items()}
        try:
            for name, head in heads.items():
                done[head.repo_id] = _publish(folder / name, head, commit, labels[head.repo_id])
            where = _collected(labels, whole, files.name, heads.values(), commit) if len(heads) > 1 else None
        except RepositoryError as error:
            if not done:
                raise
            left = [name for name in repo_ids.values() if name not in done] or ["the collection"]
            raise RepositoryError(
                f"{_listed(done)} {'was' if len(done) == 1 else 'were'} published, {_listed(left)} not: "
                f"{error.message}",
                f"{error.hint or ''} Then give the same command again: it does what is left.".strip(),
            ) from error
    return PushedExports({repo_ids[name]: report for name, report in reports.items()}, done, where)


def export_id(repo_id: str, name: str) -> str:
    """Returns the repository that a mode's export goes to, of the name that those of several begin with.

    Example:
        >>> export_id("org/model", "attention+other"), export_id("org/model", "")
        ('org/model-attention-other', 'org/model')
    """
    return f"{repo_id}-{name.replace('+', '-')}" if name else repo_id


def _listed(names: Iterable[str]) -> str:
    return " and ".join(names)


def _publish(folder: Path, head: hub.Head, commit: hub.Commit, label: str) -> CommitInfo:
    """Publishes one export, in place of those that are there."""
    new = made_files(folder)
    stale = sorted(head.files - new.keys())
    before = head.file(hub.CARD)
    if before and not keep_edits(before, new[hub.CARD]):
        del new[hub.CARD]
    commit = dataclasses.replace(commit, message=commit.message or f"Export {label} as plain LoRA")
    return hub.publish({**new, **dict.fromkeys(stale)}, head, commit)


def _collected(
    labels: Mapping[str, str], repo_id: str, source: str, heads: Iterable[hub.Head], commit: hub.Commit
) -> str:
    private = any(head.private if head.sha else commit.private for head in heads)
    notes = {name: f"The mode {label}" for name, label in labels.items()}
    description = f"Modes of {source} as plain LoRAs (TAIA: train all parameters, infer with only attention)"
    name = repo_id.partition("/")[2]
    return hub.collect(notes, name, description=description, private=bool(private), token=commit.token)


def _refuse_own(repo_id: str, files: Repository) -> None:
    """Refuses a target that is what is exported, or what that is made of."""
    made_of = {
        files.name if files.revision else None: "the repository that is exported",
        files.config.update.get("repo"): "where the update lies",
        files.base.name if files.base.revision else None: "the base model",
    }
    for name, what in made_of.items():
        if name is not None and name.casefold() == repo_id.casefold():
            raise RepositoryError(f"'{repo_id}' is {what}; the export would replace it.", "Choose another name.")


def _look(repo_id: str, token: str | bool | None) -> hub.Head:
    """Looks at a repository, and refuses one that holds something else than exports."""
    head = hub.look(repo_id, token=token)
    other = sorted(name for name in head.files if not _OURS.fullmatch(name))
    if head.files and not other:
        card = head.file(hub.CARD)
        other = [] if card and card_tags(card) >= set(TAGS) else sorted(head.files)
    if other:
        raise RepositoryError(
            f"'{head.repo_id}' holds something else than exports of taia-hub ({', '.join(other[:3])}); it would be "
            "mixed up with them.",
            "Choose another name, such as that of the TAIA repository with the mode behind it. Exports are known by "
            f"the tags {', '.join(TAGS)} of their card.",
        )
    return head
