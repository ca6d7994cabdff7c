"""A Space that compares the modes of a model: made, published in one commit and brought up to date, or written."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import tempfile
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import SpaceHardware, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from taia_hub import cards, hub
from taia_hub._version import __version__
from taia_hub.common.resuming import git_sha1
from taia_hub.errors import ConfigError, RepositoryError, TAIAError, closest
from taia_hub.repository.card_updating import link_space
from taia_hub.space.package import read_package
from taia_hub.space.reading import installed_versions, read_model
from taia_hub.space.rendering import (
    CARD,
    STATE,
    ZERO,
    MergedSpace,
    SpaceModel,
    merge_space,
    space_files,
    suggested_hardware,
    written_files,
    zero_size,
)


@dataclass(frozen=True)
class SpacePlan:
    """A Space that was looked at, and what would change in it; nothing is done yet.

    Attributes:
        head: The Space on the Hub; what is there was looked at unless it is written to a folder.
        model: The model.
        changes: What is written.
        commit: The token, and whether a new Space is private.
        folder: The folder that it is written to instead of the Hub.
        hardware: The hardware to ask for, or None.
    """

    head: hub.Head
    model: SpaceModel
    changes: MergedSpace
    commit: hub.Commit
    folder: Path | None = None
    hardware: str | None = None

    @property
    def space_id(self) -> str:
        """Its Hub id."""
        return self.head.repo_id

    @property
    def makes_public(self) -> bool:
        """Whether carrying it out makes a Space that everybody sees."""
        return self.folder is None and self.head.sha is None and not self.commit.private

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the Space needs besides its files, a sentence each."""
        found, size = [], self.model.bytes
        if self.model.closed:
            names = " and ".join(f"'{name}'" for name in self.model.closed)
            found.append(f"{names} cannot be read without a token: give the Space one as its secret HF_TOKEN")
        weights, suggested = f"The weights take {size / 2**30:.0f} GiB", suggested_hardware(size)
        if self.hardware == ZERO and suggested == ZERO and zero_size(size):
            found.append(f"{weights}: each call asks for a whole card of ZeroGPU, at twice a visitor's quota")
        elif suggested != ZERO and self.hardware in (None, ZERO):
            found.append(f"{weights}, more than ZeroGPU lends: --hardware {suggested} fits them, and costs money")
        return tuple(found)


@dataclass(frozen=True)
class CreatedSpace:
    """A Space that was published, or written to a folder.

    Attributes:
        space_id: Its Hub id.
        url: Its address, or the folder.
        commit: Sha of the commit; None where nothing changed, or for a folder.
        files: Paths of the files that were written.
        deleted: Paths of the files that were deleted.
        kept: What of a person's stayed, a sentence each.
        warnings: What is left to do by hand, a sentence each.
        card_commit: Address of the commit that linked the model's card to the Space, or None.
    """

    space_id: str
    url: str
    commit: str | None
    files: tuple[str, ...]
    deleted: tuple[str, ...]
    kept: tuple[str, ...]
    warnings: tuple[str, ...]
    card_commit: str | None = None


def plan_space(
    repo: str,
    commit: hub.Commit | None = None,
    *,
    space_id: str | None = None,
    revision: str | None = None,
    package: str | None = None,
    hardware: str | None = None,
    title: str | None = None,
    out: Path | None = None,
) -> SpacePlan:
    """Looks at a TAIA repository and at the Space of it that is there; changes nothing.

    A person's files and edits in the Space stay.

    Args:
        repo: Hub id of the TAIA repository.
        commit: The token, and whether a new Space is private.
        space_id: Hub id of the Space; `NAME-compare` under the repository's owner, or the user, by default.
        revision: Branch, tag or commit of the repository; the Space is pinned to its commit.
        package: How it gets taia-hub, as of `read_package`.
        hardware: Hardware to ask the Hub for. A new Space asks for ZeroGPU where the model fits it, and one that is
            there stays as it is; what costs money is only taken when it is named here.
        title: Title of the Space.
        out: Folder to write the Space to instead of publishing it.

    Raises:
        TAIAError: If the repository is no TAIA repository, an argument is not allowed, or a request fails.
    """
    commit = commit or hub.Commit()
    known = [one.value for one in SpaceHardware]
    if hardware is not None and hardware not in known:
        raise ConfigError(
            f"There is no hardware '{hardware}'.{closest(hardware, known)}", f"Choose one of {', '.join(known)}."
        )
    if commit.token is False and out is None:
        raise ConfigError("A Space cannot be published without a token.", "Leave `token` out, or give `out`.")
    model = read_model(repo, revision, commit.token)
    name = _checked(space_id or _default_id(repo, commit.token, ask=out is None))
    comes, versions = read_package(package), installed_versions()
    python = ".".join(platform.python_version_tuple()[:2])
    if out is not None:
        files = space_files(model, versions, comes, title=title, hardware=hardware, python=python)
        changes = merge_space(files, _in_folder(out, files), __version__)
        return SpacePlan(hub.Head(name, kind="space"), model, changes, commit, folder=out)
    head = hub.look(name, token=commit.token, kind="space")
    if head.sha is None:
        hardware = hardware or (ZERO if suggested_hardware(model.bytes) == ZERO else None)
    runs_on = hardware or hub.space_hardware(head)
    files = space_files(model, versions, comes, title=title, hardware=runs_on, python=python)
    changes = merge_space(files, _there(head, files, commit.private), __version__)
    return SpacePlan(head, model, changes, commit, hardware=hardware)


def write_space(plan: SpacePlan) -> CreatedSpace:
    """Writes a planned Space to its folder, whole or not at all.

    Raises:
        RepositoryError: If the folder cannot be written; it is then as it was.
    """
    if plan.folder is None:
        raise ConfigError("The plan has no folder to write to.", "Give `out` to `plan_space`.")
    with hub.written_whole(plan.folder) as scratch:
        _write(plan.changes.files, scratch)
    for name in plan.changes.deleted:
        (plan.folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a folder that still holds something stays
            os.removedirs((plan.folder / name).parent)
    return _done(plan, str(plan.folder), None)


def publish_space(plan: SpacePlan, *, link: bool = True) -> CreatedSpace:
    """Publishes a planned Space in one commit and, where `link`, links the model's card to it; failing that, it warns.

    Raises:
        RepositoryError: If a request fails, the Hub asks for a paid plan, or the Space changed since the plan was made;
            it is then as it was.
    """
    if plan.folder is not None:
        raise ConfigError("The plan is one to write to a folder.", "Leave `out` out of `plan_space`.")
    settings = hub.SpaceSettings(plan.model.variables, plan.hardware)
    commit = None
    try:
        if plan.changes.files or plan.changes.deleted:
            with tempfile.TemporaryDirectory() as scratch:
                files = {**_write(plan.changes.files, Path(scratch)), **dict.fromkeys(plan.changes.deleted)}
                how = dataclasses.replace(plan.commit, message=f"Compare the modes of {plan.model.repo_id}")
                commit = hub.publish(files, plan.head, how, space=settings).oid
        else:
            hub.set_space(plan.space_id, settings, token=plan.commit.token)
    except hub.PaymentError as error:
        here = f"`taia compare {plan.model.repo_id} --ui` shows the same page here, at once."
        raise hub.PaymentError(error.message, f"{here} {error.hint}") from error
    url = f"{constants.ENDPOINT}/spaces/{plan.space_id}"
    return _done(plan, url, commit, *(_linked(plan) if link else (None, ())))


def _linked(plan: SpacePlan) -> tuple[str | None, tuple[str, ...]]:
    """Links the model's card; the Space is there, whatever comes of it."""
    try:
        return link_space(plan.model.repo_id, plan.space_id, plan.commit.token), ()
    except TAIAError as error:
        line = cards.try_it(plan.space_id)
        reason = f"the card of '{plan.model.repo_id}' was not linked: {error.message}"
        return None, (f"{reason} Add this line to it by hand: {line}",)


def _done(
    plan: SpacePlan, url: str, commit: str | None, card_commit: str | None = None, more: tuple[str, ...] = ()
) -> CreatedSpace:
    changes = plan.changes
    return CreatedSpace(
        space_id=plan.space_id,
        url=url,
        commit=commit,
        files=tuple(sorted(changes.files)),
        deleted=changes.deleted,
        kept=changes.kept,
        warnings=(*plan.warnings, *more),
        card_commit=card_commit,
    )


def _default_id(repo: str, token: str | bool | None, *, ask: bool) -> str:
    """Names the Space after the model, under its owner where the user may write there."""
    owner, _, name = repo.rpartition("/")
    if ask:
        me = hub.user(token, f"{repo}-compare", what="Space")
        organisations = {one["name"] for one in me.get("orgs") or () if one.get("roleInOrg") != "read"}
        owner = owner if owner in {me["name"], *organisations} else me["name"]
    return f"{owner}/{name}-compare"


def _checked(space_id: str) -> str:
    try:
        validate_repo_id(space_id)
    except HFValidationError as error:
        raise ConfigError(f"'{space_id}' is no name for a Space.", f"Choose another with --space. {error}") from error
    return space_id


def _there(head: hub.Head, new: Mapping[str, bytes], private: bool | None) -> dict[str, bytes] | None:
    """Returns the files of a Space that matter here; None where there is no Space."""
    if head.sha is None:
        return None
    if private is not None and private != head.private:
        raise ConfigError(
            f"The Space '{head.repo_id}' is there already, and {'private' if head.private else 'public'}.",
            "Change that in its settings on the Hub, or leave --private and --public out.",
        )
    if STATE not in head.files:
        commits = hub.count_commits(head.repo_id, token=head.token, what="Space", kind="space")
        if head.files <= {CARD} and commits <= 1:
            return {}  # as the Hub makes it
        raise RepositoryError(
            f"'{head.repo_id}' is a Space that was not made by taia-hub; nothing in it was touched.",
            "Choose another name with --space.",
        )
    return _relevant(head.files, new, head.file, _hub_hashes(head))


def _in_folder(folder: Path, new: Mapping[str, bytes]) -> dict[str, bytes] | None:
    """Returns the files of a Space in a folder; None where there are none."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    if not (folder / STATE).is_file():
        raise RepositoryError(
            f"'{folder}' is not empty and holds no Space of taia-hub; nothing in it was touched.",
            "Give an empty or a new folder with --out.",
        )
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return _relevant(names, new, folder.joinpath)


def _relevant(
    names: Collection[str],
    new: Mapping[str, bytes],
    at: Callable[[str], Path | None],
    hashes: Mapping[str, str] | None = None,
) -> dict[str, bytes]:
    """Reads the files of a Space that were written here, or would be; the rest is none of ours.

    Those that are known by the hashes of git to be as they would be written are not fetched: a bundle has hundreds.
    """
    state = at(STATE)
    ours = {STATE, CARD, *new, *written_files(state.read_bytes() if state else None)}
    there = sorted(ours.intersection(names))
    same = {name: new[name] for name in there if name in new and (hashes or {}).get(name) == git_sha1(new[name])}
    with ThreadPoolExecutor(8) as pool:
        paths = zip(there, pool.map(lambda name: None if name in same else at(name), there), strict=True)
        return {**same, **{name: path.read_bytes() for name, path in paths if path}}


def _hub_hashes(head: hub.Head) -> dict[str, str]:
    info = hub.info(head.repo_id, revision=head.sha, token=head.token, what="Space", kind="space")
    return {one.rfilename: one.blob_id or "" for one in info.siblings or ()}


def _write(files: Mapping[str, bytes], folder: Path) -> dict[str, Path]:
    paths = {name: folder / name for name in files}
    for name, content in files.items():
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        paths[name].write_bytes(content)
    return paths
