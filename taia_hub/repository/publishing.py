"""From a loaded model to a TAIA repository: a folder, or a commit on the Hub."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo, HfApi, metadata_load
from transformers import AutoTokenizer

from taia_hub import cards, hub
from taia_hub.analysis.reading import parts_by_role
from taia_hub.configuration_taia import TAIAConfig
from taia_hub.errors import RepositoryError
from taia_hub.hub.layout import DENSE, KINDS
from taia_hub.repository.card import card_files, describe, describe_files, role_parts, with_side_files
from taia_hub.repository.reading import check_folder
from taia_hub.repository.side_files import SIDE_FILES, SideFiles, eval_results_there, stale_eval_results

logger = logging.getLogger(__name__)

STUBS = {"configuration_taia.py": ("TAIAConfig",), "modeling_taia.py": ("TAIAForCausalLM", "TAIAModel")}
_OTHER_MODELS = {
    hub.ADAPTER_CONFIG,
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
}
_STUB = '"""Loads the classes of taia-hub (pip install taia-hub) for `trust_remote_code=True`."""\n\n'


def save(
    model: Any,
    folder: Path,
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    repo_id: str | None = None,
    license_fields: Mapping[str, str | list[str]] | None = None,
    tags: Sequence[str] = (),
) -> cards.CardData:
    """Writes a TAIA repository into a folder, whole or not at all; a person's edits of the card there stay.

    Args:
        model: A loaded TAIA model.
        folder: The folder.
        state_dict: State dict of the model to take the update's tensors from.
        repo_id: The Hub id that the card shows.
        license_fields: Licence metadata of the base model's card.
        tags: More tags for the card.

    Returns:
        What its card says, were it written anew.

    Raises:
        RepositoryError: If the folder cannot be written, or holds another model.
    """
    folder = folder.resolve()
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if hub.RESUME_INDEX in names and _is_resume_index(folder / hub.RESUME_INDEX):
        names.discard(hub.RESUME_INDEX)
    _refuse_other_model(str(folder), names, folder / hub.CONFIG)
    with hub.written_whole(folder) as scratch:
        config = _save_update(model, scratch, state_dict)
        config.save_pretrained(scratch)
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(scratch)
        for name, classes in STUBS.items():
            (scratch / name).write_text(f"{_STUB}from taia_hub import {', '.join(classes)}  # noqa: F401\n")
        data = _described(model, config, scratch, repo_id or folder.name, license_fields or {}, tags)
        full = with_side_files(data, config, SideFiles.of(folder), strict=False)
        if not _has_own_card(folder / hub.CARD):
            card_files(full, [folder / hub.CARD], scratch, given=("tags",) if tags else ())
    for name in stale_eval_results(eval_results_there(folder), full.results):
        (folder / name).unlink()
    for name in _stale_shards(folder, hub.published_files(folder)):
        (folder / name).unlink()
    return data


def push(
    model: Any,
    repo_id: str,
    *,
    commit_message: str | None,
    commit_description: str | None,
    private: bool | None,
    token: str | bool | None,
    revision: str | None,
    create_pr: bool,
    tags: Sequence[str] | None,
) -> CommitInfo:
    """Publishes a loaded model in one commit. Arguments as in `TAIAMixin.push_to_hub`.

    Returns:
        The commit.

    Raises:
        RepositoryError: If the base model is a local folder, or a request fails.
    """
    check_publishable(model.taia_config)
    repo_id = hub.full_repo_id(repo_id, token)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / repo_id.rpartition("/")[2]
        fields = base_license(model.taia_config, token)
        data = save(model, folder, repo_id=repo_id, license_fields=fields, tags=tags or ())
        return _publish(
            folder,
            repo_id,
            model.taia_config,
            data=data,
            commit_message=commit_message,
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    trust_remote_code: bool = False,
) -> CommitInfo:
    """Publishes a saved TAIA repository in one commit, with the base model's tokenizer where it has none.

    Args:
        folder: The saved repository.
        repo_id: The Hub id.
        commit_message: First line of the commit.
        commit_description: The rest of its message.
        private: Whether a new repository is private.
        token: Access token.
        revision: Branch to commit to.
        create_pr: Whether the commit becomes a pull request.
        trust_remote_code: Whether the base model's own code may run, to learn its structure for the card.

    Returns:
        The commit.

    Raises:
        ConfigError: If the folder is no TAIA repository.
        RepositoryError: If its base model is a local folder, its weights do not hold, or a request fails.
    """
    config = check_folder(folder)
    check_publishable(config)
    repo_id = hub.full_repo_id(repo_id, token)
    source = hub.Source(str(folder), folder, None)
    fields = base_license(config, token)
    data = describe_files(
        source, config, repo_id=repo_id, license_fields=fields, token=token, trust_remote_code=trust_remote_code
    )
    return _publish(
        folder,
        repo_id,
        config,
        data=data,
        commit_message=commit_message,
        commit_description=commit_description,
        private=private,
        token=token,
        revision=revision,
        create_pr=create_pr,
    )


def _publish(
    folder: Path,
    repo_id: str,
    config: TAIAConfig,
    *,
    data: cards.CardData,
    token: str | bool | None,
    revision: str | None,
    **commit: Any,
) -> CommitInfo:
    """Publishes a folder, with the base model's tokenizer where there is none.

    The card is made from `data` and the files beside the model, there and here; a person's card or edits stay. Scores
    on leaderboards that are not of these weights are deleted in the same commit.
    """
    files = hub.published_files(folder)
    if config.update.get("repo"):  # what an earlier copy left in the folder
        files = {name: path for name, path in files.items() if not _is_update(name)}
    for name in _stale_shards(folder, files):
        del files[name]
    _refuse_other_model(str(folder), files, None)
    api = HfApi(token=token, library_name="taia-hub")
    with hub.hub_errors(repo_id, what="repository", revision=revision):
        at = revision if revision and api.revision_exists(repo_id, revision) else None  # a new branch begins at main
        # Everything is judged at one commit, and published on top of that very commit.
        head = api.model_info(repo_id, revision=at) if api.repo_exists(repo_id) else None
        sha = head.sha if head else None
        there = {sibling.rfilename for sibling in (head.siblings or ())} if head else set()
        present = Path(api.hf_hub_download(repo_id, hub.CARD, revision=sha)) if hub.CARD in there else None
        before = Path(api.hf_hub_download(repo_id, hub.CONFIG, revision=sha)) if hub.CONFIG in there else None
    _refuse_other_model(repo_id, there, before)
    is_own = _has_own_card(folder / hub.CARD)
    if present is not None and _has_own_card(present):
        files.pop(hub.CARD, None)
        is_own = True
    with tempfile.TemporaryDirectory() as extra, tempfile.TemporaryDirectory() as written:
        beside, scores = SideFiles.of(folder), dict[str, str]()
        if any(fnmatch(name, pattern) for name in there for pattern in SIDE_FILES):
            access = hub.HubAccess(token=token)
            source = hub.fetch(repo_id, SIDE_FILES, revision=sha, access=access, local=False)
            beside, scores = beside.over(SideFiles.of(source.folder)), eval_results_there(source.folder)
        full = with_side_files(data, config, beside, strict=False)
        stale = stale_eval_results(scores, full.results)
        if not is_own:
            made = card_files(full, [folder / hub.CARD, present], Path(written), given=("tags",) if data.tags else ())
            if hub.CARD not in made and present is not None:
                files.pop(hub.CARD, None)
            files |= made
        kept = "tokenizer_config.json" in there and (before is None or _same_base(before, config))
        if not kept and "tokenizer_config.json" not in files:
            save_tokenizer(config, Path(extra), token)
            files |= hub.published_files(Path(extra))
        message = commit.pop("commit_message") or "Upload TAIA model"
        return hub.publish(
            {**files, **dict.fromkeys([*stale, *_stale_shards(folder, there)])},
            repo_id,
            commit_message=message,
            token=token,
            revision=revision,
            parent_commit=sha,
            **commit,
        )


def _same_base(path: Path, config: TAIAConfig) -> bool:
    """Tells whether the config.json at `path` names the base model of `config`, at the same commit."""
    before = hub.read_json(path)
    names = ("base_model_name_or_path", "base_model_revision")
    return all(before.get(name) == getattr(config, name) for name in names)


def _refuse_other_model(name: str, files: Iterable[str], config: Path | None) -> None:
    """Refuses to write over another model, which the files of a folder or repository or its config.json show."""
    other = sorted(_OTHER_MODELS.intersection(files))
    if config is not None and config.is_file() and hub.read_json(config).get("model_type") != TAIAConfig.model_type:
        other.append(hub.CONFIG)
    if other:
        raise RepositoryError(
            f"'{name}' holds another model at its root ({', '.join(other)}); transformers would load one for the "
            "other.",
            "Keep a TAIA repository to itself: choose another name, or delete these files first.",
        )


def _described(
    model: Any,
    config: TAIAConfig,
    folder: Path,
    repo_id: str,
    license_fields: Mapping[str, str | list[str]],
    tags: Sequence[str],
) -> cards.CardData:
    """Collects what the card says of a loaded model that was just saved into a folder."""
    update = model._taia_update
    parts = role_parts(parts_by_role(update.head_model, model._taia_switch.sites))
    saved = update.source if config.update.get("repo") else folder / config.place.path
    return describe(
        config,
        folder,
        repo_id=repo_id,
        method=update.method,
        parts=parts,
        adapter_config=hub.read_json(saved / update.kind.config),
        license_fields=license_fields,
        tags=tags,
    )


def check_publishable(config: TAIAConfig) -> None:
    """Refuses a configuration whose base model nobody else can load.

    Args:
        config: The configuration.

    Raises:
        RepositoryError: If the base model is a local folder.
    """
    if config.base_model_revision is None:
        raise RepositoryError(
            f"The base model '{config.base_model_name_or_path}' is a folder on this machine; whoever loads the "
            "published model could not find it.",
            "Push the base first, or give its Hub id: `TAIAForCausalLM.from_adapter('org/base', adapter)`.",
        )


def base_license(config: TAIAConfig, token: str | bool | None) -> dict[str, str | list[str]]:
    """Reads the licence fields of the base model's card; empty where it has none.

    Args:
        config: Configuration that names the base.
        token: Access token.

    Returns:
        `license`, `license_name` and `license_link`, as far as the base gives them.

    Raises:
        RepositoryError: If the base model cannot be read.
    """
    base, revision = config.base_model_name_or_path or "", config.base_model_revision
    if revision is not None or not Path(base).is_dir():
        with hub.hub_errors(base, what="base model", revision=revision):
            card = HfApi(token=token).model_info(base, revision=revision).card_data
        values = card.to_dict() if card else {}
    else:
        try:
            path = Path(base) / hub.CARD
            values = (metadata_load(path) if path.is_file() else None) or {}
        except ValueError as error:
            logger.warning("The licence of '%s' is left out: its card cannot be read (%s).", base, error)
            values = {}
    return {name: values[name] for name in ("license", "license_name", "license_link") if values.get(name)}


def save_tokenizer(
    config: TAIAConfig,
    folder: Path,
    token: str | bool | None = None,
    *,
    source: Path | None = None,
    trust_remote_code: bool = False,
) -> str | None:
    """Saves the base model's tokenizer as it is after transformers' repairs, which go by the base's model type.

    Args:
        config: Configuration that names the base.
        folder: Where the files go; nothing is written when the base has no tokenizer.
        token: Access token.
        source: Folder of a checkpoint whose tokenizer is taken instead, where it has one.
        trust_remote_code: Whether a tokenizer's own code may run.

    Returns:
        Why nothing was written, or None.

    Raises:
        RepositoryError: If the Hub cannot be reached; a base without a tokenizer is only warned of.
    """
    name, revision = config.base_model_name_or_path or "", config.base_model_revision
    if source is not None and (source / "tokenizer_config.json").is_file():
        revision = None
    else:
        source = Path(name)
    if revision is not None:
        # Each file is asked for by name: AutoTokenizer takes a Hub that does not answer for a base without a tokenizer.
        api = HfApi(token=token, library_name="taia-hub")
        with hub.hub_errors(name, what="base model", revision=revision):
            files = api.list_repo_files(name, revision=revision)
            wanted = [file for file in files if any(fnmatch(file, pattern) for pattern in hub.TOKENIZER_FILES)]
            code = [file for file in files if trust_remote_code and file.endswith(".py")]
            for file in [*wanted, *code, hub.CONFIG]:
                downloaded = Path(api.hf_hub_download(name, file, revision=revision))
        source = downloaded.parent
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        logger.warning("The base model '%s' has no tokenizer to publish: %s", name, error)
        return str(error)
    tokenizer.save_pretrained(folder)
    return None


def _save_update(model: Any, folder: Path, state_dict: Mapping[str, torch.Tensor] | None) -> TAIAConfig:
    """Writes the update and its manifest; a pointer to another repository stays one while nothing was changed."""
    update, config = model._taia_update, copy.deepcopy(model.taia_config)
    kind = update.kind
    update.save(folder / kind.folder, state_dict)
    written = hub.update_weights(folder / kind.folder, kind)
    if config.update.get("repo") and hub.same_bytes(written[kind.weights], update.source / kind.weights):
        hub.write_manifest(folder, {config.place.named(name): path for name, path in written.items()})
        shutil.rmtree(folder / kind.folder)
        return config
    config.update = {"kind": kind.name, "path": kind.folder}
    hub.write_manifest(folder, {config.place.named(name): path for name, path in written.items()})
    if kind is not DENSE and any(parameter.requires_grad for parameter in update.head_model.parameters()):
        index = {"metadata": {}, "weight_map": dict.fromkeys(model.state_dict(), config.place.weights)}
        (folder / hub.RESUME_INDEX).write_text(json.dumps(index) + "\n", encoding="utf-8")
    return config


def _is_update(name: str) -> bool:
    """Tells whether a file of a repository lies in one of the folders of updates."""
    return name.partition("/")[0] in {kind.folder for kind in KINDS.values()} and "/" in name


def _stale_shards(folder: Path, names: Iterable[str]) -> list[str]:
    """Finds shards of an earlier update among files, which the manifest of a folder does not name."""
    named = (hub.read_json(folder / hub.MANIFEST).get("files") or {}) if (folder / hub.MANIFEST).is_file() else {}
    patterns = [f"{kind.folder}/{kind.shards}" for kind in KINDS.values() if kind.shards]
    return [name for name in names if name not in named and any(fnmatch(name, pattern) for pattern in patterns)]


def _is_resume_index(path: Path) -> bool:
    """Tells an index that `save` wrote for Trainer from that of a sharded model."""
    return all(_is_update(str(file)) for file in hub.read_json(path).get("weight_map", {}).values())


def _has_own_card(path: Path) -> bool:
    return path.is_file() and not cards.is_generated(path.read_text(encoding="utf-8", errors="replace"))
