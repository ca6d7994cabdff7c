"""From a loaded model to a TAIA repository: a folder, or a commit on the Hub."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch, fnmatchcase
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo

from taia_hub import cards, hub
from taia_hub.common.atomic import write_atomically
from taia_hub.configuration_taia import TAIAConfig
from taia_hub.errors import ConfigError, RepositoryError, SettingError
from taia_hub.hub.config import AUTO_MAP, MODEL_TYPE, Fields, RepositoryConfig, config_values, is_taia
from taia_hub.hub.layout import DENSE, KINDS
from taia_hub.refining.report import REFINEMENT_FILE
from taia_hub.repository.card import card_files, describe, describe_files, role_parts, with_side_files
from taia_hub.repository.loaded_update import check_scaling
from taia_hub.repository.loading import Loaded
from taia_hub.repository.opening import open_update
from taia_hub.repository.reading import base_license, check_folder, check_links, check_publishable
from taia_hub.repository.rebasing import on_base
from taia_hub.repository.refined import refinement_of
from taia_hub.repository.side_files import SIDE_FILES, SideFiles, eval_results_there, stale_eval_results
from taia_hub.repository.stubs import write_stubs
from taia_hub.repository.tokenizer import copy_tokenizer, save_tokenizer
from taia_hub.repository.update_files import open_repository, own_tokenizer
from taia_hub.updates.parts import parts_by_role
from taia_hub.weights.checkpoint import check_numbers

logger = logging.getLogger(__name__)

_OTHER_MODELS = {
    hub.ADAPTER_CONFIG,
    "model.safetensors",
    hub.MODEL_INDEX,
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
}


def save(
    loaded: Loaded,
    folder: Path,
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    repo_id: str | None = None,
    license_fields: Mapping[str, str | list[str]] | None = None,
    extra_files: Callable[[Path], None] | None = None,
) -> None:
    """Writes a TAIA repository into a folder, whole or not at all; a person's edits of the card there stay.

    The card shows `repo_id`, by default the folder's name. `extra_files` is called with the folder that will be moved
    to `folder`, when all but the card is in it: what it writes there goes with it, and on the card what belongs there.

    Raises:
        RepositoryError: If the folder cannot be written, or holds another model.
    """
    folder = folder.resolve()
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if hub.RESUME_INDEX in names and _is_resume_index(folder / hub.RESUME_INDEX):
        names.discard(hub.RESUME_INDEX)
    refuse_other_model(str(folder), names, config_values(folder))
    with written_over(folder) as scratch:
        config = _write_files(loaded, scratch, state_dict, extra_files)
        own = own_tokenizer(loaded.places)
        if own and not any((place / hub.TOKENIZER_CONFIG).is_file() for place in (scratch, folder)):
            copy_tokenizer(own, scratch)
        data = _described(loaded, config, scratch, repo_id or folder.name, license_fields or {})
        beside = SideFiles.of(scratch).over(SideFiles.of(folder))
        full = with_side_files(data, config, beside, strict=False)
        if not _has_own_card(folder / hub.CARD):
            card_files(full, [folder / hub.CARD], scratch)
    for name in stale_eval_results(eval_results_there(folder), full.results):
        (folder / name).unlink()


@contextlib.contextmanager
def written_over(folder: Path) -> Iterator[Path]:
    """Gives a scratch folder whose files become a repository, whole, over the one in `folder`.

    Of an earlier update nothing stays but what a person put beside it.
    """
    before = config_values(folder)
    with hub.written_whole(folder) as scratch:
        yield scratch
        new = hub.published_files(scratch)
    for name in _stale(hub.published_files(folder), before, new):
        path = folder / name
        path.unlink()
        with contextlib.suppress(OSError):  # it holds something else
            path.parent.rmdir()


def push(
    loaded: Loaded,
    repo_id: str,
    commit: hub.Commit,
    *,
    tags: Sequence[str] = (),
    extra_files: Callable[[Path], None] | None = None,
    keep: Path | None = None,
    base: str | None = None,
) -> CommitInfo:
    """Publishes a loaded model in one commit; `tags` go on its card, and `extra_files` is as of `save`.

    `base` is as of `push_folder`.

    In the folder `keep` all but the card is written whole before the Hub is asked for anything, and stays, so that
    `push_folder` can publish it where the Hub refuses now.

    Raises:
        RepositoryError: If the base model is a local folder, or a request fails.
    """
    if base is not None:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / repo_id.rpartition("/")[2]
            save(loaded, folder, extra_files=extra_files)
            return push_folder(folder, repo_id, commit, base=base, tags=tags)
    check_publishable(loaded.config)
    head = None if keep else hub.look(repo_id, revision=commit.revision, token=commit.token)
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch) / "model"
        with written_over(folder) as new:
            config = _write_files(loaded, new, None, extra_files)
        head = head or hub.look(repo_id, revision=commit.revision, token=commit.token)
        data = _described(loaded, config, folder, head.repo_id, base_license(config, commit.token), tags)
        return _publish(folder, config, data, head, commit, loaded.places)


def push_folder(
    folder: Path,
    repo_id: str,
    commit: hub.Commit | None = None,
    *,
    base: str | None = None,
    tags: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> CommitInfo:
    """Publishes a saved TAIA repository in one commit, with its adapter's or base model's tokenizer where it has none.

    The base model's own code runs, where `trust_remote_code` says so, to learn its structure for the card. A base model
    in a local folder is refused, unless `base` names it on the Hub: the same weights are checked to lie there, and all
    files that are published name that one and its commit.
    """
    commit = commit or hub.Commit()
    check_links(folder)
    if base is None:
        return _push_folder(folder, check_folder(folder), repo_id, commit, tags, trust_remote_code)
    access = hub.HubAccess(token=commit.token)
    with on_base(folder, check_folder(folder), base, access, trust_remote_code) as there:  # of links to the files
        return _push_folder(there, check_folder(there), repo_id, commit, tags, trust_remote_code)


def _push_folder(
    folder: Path, config: Fields, repo_id: str, commit: hub.Commit, tags: Sequence[str], trust_remote_code: bool
) -> CommitInfo:
    access = hub.HubAccess(token=commit.token)
    check_publishable(config)
    head = hub.look(repo_id, revision=commit.revision, token=commit.token)
    found = open_repository(folder, access, config=config).with_tokenizer(access)
    # as whoever loads it does: what does not fit is refused before anything is published; `config` is of checked files
    opened = open_update(found.with_weights(access, verify=False), access=access, trust_remote_code=trust_remote_code)
    data = describe_files(
        found,
        access,
        repo_id=head.repo_id,
        license_fields=base_license(config, commit.token),
        parts=parts_by_role(opened.model, opened.switch.sites),
    )
    return _publish(folder, config, dataclasses.replace(data, tags=(*data.tags, *tags)), head, commit, found.places)


def _publish(
    folder: Path,
    config: Fields,
    data: cards.CardData,
    head: hub.Head,
    commit: hub.Commit,
    places: tuple[hub.Source, ...],
) -> CommitInfo:
    """Publishes a folder, with the model's tokenizer where there is none."""
    files: dict[str, Path | None] = dict(_model_files(folder, config))
    refuse_other_model(str(folder), files, {"model_type": MODEL_TYPE})
    refuse_other_model(head.repo_id, head.files, head.config)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = Path(scratch) / "tokenizer"
        if hub.TOKENIZER_CONFIG not in files and not _has_tokenizer(head, config):
            save_tokenizer(config, tokenizer, commit.token, own=own_tokenizer(places))
            files |= hub.published_files(tokenizer)
        if renewed := hub.renewed_manifest(folder, folder / config.place.path):
            files[hub.MANIFEST] = Path(scratch) / hub.MANIFEST
            write_atomically(Path(scratch) / hub.MANIFEST, renewed)
        files |= _card_over(head, folder, config, data, Path(scratch) / "card")
        if files.get(hub.CARD) is None:  # the one on the Hub stays
            files.pop(hub.CARD, None)
        files |= dict.fromkeys(_stale(head.files, head.config, files))
        return hub.publish(files, head, dataclasses.replace(commit, message=commit.message or "Upload TAIA model"))


def _model_files(folder: Path, config: Fields) -> dict[str, Path]:
    """Lists what of a folder is published: without what an earlier update left in it."""
    files = hub.published_files(folder)
    elsewhere = bool(config.update.get("repo"))
    named = (hub.read_json(folder / hub.MANIFEST).get("files") or {}) if hub.MANIFEST in files else {}
    own = {**named, config.place.config: None}
    stale = {*_stale(files, config_values(folder), own), *(name for name in files if elsewhere and _is_update(name))}
    return {name: path for name, path in files.items() if name not in stale}


def _card_over(
    head: hub.Head, folder: Path, config: Fields, data: cards.CardData, scratch: Path
) -> dict[str, Path | None]:
    """Makes the card that goes over the one on the Hub, from `data` and the files beside the model, there and here.

    Returns path in the repository to path on this disk: the card and what goes with it, unless somebody wrote it by
    hand. None where the card that is there stays, and for scores on leaderboards that are not of these weights.
    """
    present, beside, scores = head.file(hub.CARD), SideFiles.of(folder), dict[str, str]()
    if any(fnmatch(name, pattern) for name in head.files for pattern in SIDE_FILES):
        access = hub.HubAccess(token=head.token)
        there = hub.fetch(head.repo_id, SIDE_FILES, revision=head.sha, access=access, local=False).folder
        beside, scores = beside.over(SideFiles.of(there)), eval_results_there(there)
    full = with_side_files(data, config, beside, strict=False)
    stale: dict[str, Path | None] = dict.fromkeys(stale_eval_results(scores, full.results))
    if present is not None and _has_own_card(present):
        return {**stale, hub.CARD: None}
    if _has_own_card(folder / hub.CARD):
        return stale
    made = card_files(full, [folder / hub.CARD, present], scratch, given=("tags",) if data.tags else ())
    kept = {hub.CARD: None} if hub.CARD not in made and present is not None else {}
    return {**stale, **made, **kept}


def _has_tokenizer(head: hub.Head, config: Fields) -> bool:
    """Tells whether a repository has a tokenizer already, which a person may have chosen, of the same base model."""
    names = ("base_model_name_or_path", "base_model_revision")
    same = all(head.config.get(name) == getattr(config, name) for name in names)
    return hub.TOKENIZER_CONFIG in head.files and (hub.CONFIG not in head.files or same)


def refuse_other_model(name: str, files: Iterable[str], config: Mapping[str, Any]) -> None:
    """Refuses to write over another model, which the files of a folder or repository or its config.json show."""
    names = set(files)
    other = sorted(_OTHER_MODELS & names)
    if hub.CONFIG in names and not is_taia(config):
        other.append(hub.CONFIG)
    if other:
        raise RepositoryError(
            f"'{name}' holds another model at its root ({', '.join(other)}); transformers would load one for the "
            "other.",
            "Keep a TAIA repository to itself: choose another name.",
        )


def _described(
    loaded: Loaded,
    config: Fields,
    folder: Path,
    repo_id: str,
    license_fields: Mapping[str, str | list[str]],
    tags: Sequence[str] = (),
) -> cards.CardData:
    """Collects what the card says of a loaded model whose files were just written into a folder."""
    update = loaded.update
    saved = update.source if config.update.get("repo") else folder / config.place.path
    return describe(
        config,
        folder,
        repo_id=repo_id,
        method=update.method,
        parts=role_parts(parts_by_role(update.head_model, loaded.switch.sites)),
        adapter_config=hub.read_json(saved / update.kind.config),
        license_fields=license_fields,
        tags=tags,
    )


def _write_files(
    loaded: Loaded,
    folder: Path,
    state_dict: Mapping[str, torch.Tensor] | None,
    extra_files: Callable[[Path], None] | None,
) -> TAIAConfig:
    """Writes all of a repository but its card; a pointer to another repository stays one while nothing was changed."""
    update, config = loaded.update, copy.deepcopy(loaded.config)
    kind, generation = update.kind, getattr(loaded.model, "generation_config", None)
    check_scaling(update)
    update.save(folder / kind.folder, state_dict)
    written = hub.update_weights(folder / kind.folder, kind)
    check_numbers(written.values(), kind.noun)
    pointer = config.update.get("repo") and hub.same_bytes(written[kind.weights], update.source / kind.weights)
    if not pointer:
        config.update = {"kind": kind.name, "path": kind.folder}
    config.auto_map = dict(AUTO_MAP)  # a trusted load names the repository that it came from
    config.save_pretrained(folder)
    written[kind.config] = folder / kind.folder / kind.config
    hub.write_manifest(folder, {config.place.named(name): path for name, path in written.items()})
    if pointer:
        shutil.rmtree(folder / kind.folder)
    elif kind is not DENSE and any(parameter.requires_grad for parameter in update.head_model.parameters()):
        index = {"metadata": {}, "weight_map": dict.fromkeys(loaded.model.state_dict(), config.place.weights)}
        (folder / hub.RESUME_INDEX).write_text(json.dumps(index) + "\n", encoding="utf-8")
    if generation is not None:
        generation.save_pretrained(folder)
    refinement = refinement_of(update.source)
    if refinement and refinement.update_sha256 == hub.sha256(written[kind.weights]):  # not changed since
        shutil.copyfile(update.source / REFINEMENT_FILE, folder / REFINEMENT_FILE)
    write_stubs(folder)
    if extra_files is not None:
        extra_files(folder)
    return config


def _is_update(name: str) -> bool:
    """Tells whether a file of a repository lies in one of the folders of updates."""
    return name.partition("/")[0] in {kind.folder for kind in KINDS.values()} and "/" in name


def _stale(names: Iterable[str], config: Mapping[str, Any], kept: Container[str]) -> list[str]:
    """Finds files of an earlier update, which the `config.json` beside it tells, and shards of any, without `kept`."""
    patterns = [f"{kind.folder}/{kind.shards}" for kind in KINDS.values() if kind.shards]
    if is_taia(config):
        with contextlib.suppress(ConfigError, SettingError):  # a damaged one is being replaced: it tells nothing
            before = RepositoryConfig.of(config)
            patterns += before.place.files if before.update.get("repo") is None else ()
    return [name for name in names if name not in kept and any(fnmatchcase(name, pattern) for pattern in patterns)]


def _is_resume_index(path: Path) -> bool:
    """Tells an index that `save` wrote for Trainer from that of a sharded model."""
    return all(_is_update(str(file)) for file in hub.read_json(path).get("weight_map", {}).values())


def _has_own_card(path: Path) -> bool:
    return path.is_file() and not cards.is_generated(path.read_text(encoding="utf-8", errors="replace"))
