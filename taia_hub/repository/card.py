"""What the card of a repository says, collected from its files; and what a card is checked against."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taia_hub import cards, hub
from taia_hub._version import __version__
from taia_hub.errors import ConfigError, RepositoryError, TAIAError
from taia_hub.hub.config import Fields
from taia_hub.hub.layout import MOLORA, PEFT
from taia_hub.repository.side_files import (
    SideFiles,
    eval_results_there,
    read_analysis,
    read_card,
    read_refinement,
    read_results,
    read_training,
    read_tuning,
    true_figures,
)
from taia_hub.repository.update_files import Repository
from taia_hub.results import RESULTS_FILE, TUNING_FILE, ModelIdentity, config_sha256
from taia_hub.results.analysis import ANALYSIS_FILE
from taia_hub.roles import ROLES

if TYPE_CHECKING:
    from taia_hub.updates.parts import AdaptedPart

logger = logging.getLogger(__name__)


def describe(
    config: Fields,
    folder: Path,
    *,
    repo_id: str,
    method: str,
    parts: Mapping[str, cards.RolePart],
    adapter_config: Mapping[str, Any],
    license_fields: Mapping[str, str | list[str]],
    tags: Iterable[str] = (),
) -> cards.CardData:
    """Collects what the card of a repository says, without the files beside the model; `folder` holds its manifest."""
    place = config.place
    return cards.CardData(
        repo_id=repo_id,
        base_model=config.base_model_name_or_path if config.base_model_revision else None,
        base_revision=config.base_model_revision,
        default=config.setting.label,
        method=method,
        parts=parts,
        adapter_repo=config.update.get("repo"),
        adapter_revision=config.update.get("revision"),
        update_kind=place.kind.name,
        adapter_path=place.path,
        adapter_sha256=manifest_sha256(folder, place.weights),
        adapter_config=dict(adapter_config),
        taia_version=__version__,
        license_fields=license_fields,
        tags=tuple(tags),
    )


def with_side_files(data: cards.CardData, config: Fields, files: SideFiles, *, strict: bool = True) -> cards.CardData:
    """Adds what the files beside a model say, as far as they are of this model.

    A file of another model is an error where `strict`, and left out with a warning elsewhere.
    """
    expected = ModelIdentity(
        data.repo_id,
        None,
        config.base_model_name_or_path,
        config.base_model_revision,
        data.adapter_sha256,
        "",
        config_sha256(data.adapter_config) if data.adapter_config else None,
    )

    def read(path: Path | None, reader: Any) -> Any:
        if path is None:
            return None
        try:
            return reader(path, expected)
        except TAIAError as error:
            if strict:
                raise
            logger.warning("Left out of the model card: %s", error.message)
            return None

    results, training = read(files.results, read_results), read(files.training, read_training)
    analysis = read(files.analysis, read_analysis)
    tuning = read(files.tuning, read_tuning)
    known = {RESULTS_FILE: results, ANALYSIS_FILE: analysis, TUNING_FILE: tuning}
    true = [name for name, found in known.items() if found is not None]
    refinement = read(files.refinement, read_refinement)
    figures, notes = true_figures(files.figures, true), refinement.sentences() if refinement else ()
    full = dataclasses.replace(
        data, results=results, training=training, figures=figures, tuning=tuning, update_notes=notes
    )
    if analysis is None:
        return full
    parts = {role: dataclasses.replace(part, **analysis.parts.get(role, {})) for role, part in data.parts.items()}
    return dataclasses.replace(full, parts=parts, update_notes=(*notes, *analysis.notes))


def manifest_sha256(folder: Path, name: str) -> str | None:
    """Reads the hash of a weights file from the manifest of a folder; None where it says nothing."""
    if not (folder / hub.MANIFEST).is_file():
        return None
    files = hub.read_json(folder / hub.MANIFEST).get("files")
    entry = files.get(name) if isinstance(files, dict) else None
    return str(entry["sha256"]) if isinstance(entry, dict) and "sha256" in entry else None


def card_facts(
    data: cards.CardData,
    source: hub.Source,
    files: Iterable[str],
    problems: Iterable[cards.Finding] = (),
    *,
    template: str | None = None,
    template_dir: Path | None = None,
) -> cards.CardFacts:
    """Collects what a card is checked against; weights that lie here are hashed.

    `files` are the paths of all there is, `problems` what did not fit together when they were read.
    """
    found, hashes = list(problems), {}
    weights = data.weights_path
    if not data.adapter_repo and (source.folder / weights).is_file():
        hashes[weights] = hub.sha256(source.folder / weights)
    true, listed = hashes.get(weights, data.adapter_sha256), manifest_sha256(source.folder, weights)
    if true:
        found.append(cards.Finding(None, f"{hub.MANIFEST}: {weights}", listed == true, true, listed))
    expected = cards.eval_results_files(data.results, data.repo_id)
    for name, text in eval_results_there(source.folder).items():
        if name in expected or cards.is_eval_results_file(name, text):
            same = cards.same_scores(text, expected.get(name))
            found.append(cards.Finding(None, f"{name} holds the scores of {RESULTS_FILE}", same))
    repo_id = source.name if source.revision else None
    return cards.CardFacts(data, repo_id, frozenset(files), hashes, tuple(found), template, template_dir)


def describe_files(
    found: Repository,
    access: hub.HubAccess,
    *,
    repo_id: str,
    license_fields: Mapping[str, str | list[str]],
    trust_remote_code: bool = False,
    parts: Mapping[str, AdaptedPart] | None = None,
) -> cards.CardData:
    """Collects what a card says of a repository whose model is not loaded, without the files beside the model.

    `parts` are what the update adapts by role, where that is known already. No weights are loaded. What can be wrong
    with the files is told before the base model's structure is built, for which its own code may run.
    """
    if found.holder.revision is None:
        hub.update_weights(found.folder, found.kind)
    data = describe(
        found.config,
        found.root,
        repo_id=repo_id,
        method=found.method,
        parts={},
        adapter_config=hub.read_json(found.folder / found.kind.config),
        license_fields=license_fields,
    )
    if found.is_plain:
        data = dataclasses.replace(data, adapter_path=found.place.path, adapter_sha256=_sha256(found, access))
    elif data.adapter_repo:  # the manifest is here, the weights are elsewhere
        sha256 = hub.sha256_at(found.holder, found.place.weights, access, what="adapter repository")
        data = dataclasses.replace(data, adapter_sha256=sha256)
    elif found.revision:
        _check_there(found, access)
    known = _parts(found, access, trust_remote_code) if parts is None else parts
    return dataclasses.replace(data, parts=role_parts(known))


def _check_there(found: Repository, access: hub.HubAccess) -> None:
    """Refuses a repository on the Hub without the weights that its card shall describe."""
    weights, source = found.place.weights, hub.Source(found.name, found.root, found.revision)
    if not hub.has_file(source, weights, access, what="TAIA repository"):
        raise RepositoryError(f"'{found.name}' has no {weights}.", f"Publish the {found.kind.noun} again.")


def _parts(found: Repository, access: hub.HubAccess, trust_remote_code: bool) -> dict[str, AdaptedPart]:
    """Says what an update adapts by role, on its base's structure and by the headers of its files."""
    from taia_hub.repository.info import tensors_of
    from taia_hub.updates.parts import lora_parts  # here, because all else of a card goes without a model

    known = None
    if found.kind is PEFT:
        known = lora_parts(
            found.base, found.folder, found.settings, tensors_of(found, access), access, trust_remote_code
        )
    return _parts_by_size(found, access, trust_remote_code) if known is None else known


def _parts_by_size(found: Repository, access: hub.HubAccess, trust_remote_code: bool) -> dict[str, AdaptedPart]:
    """Says what an update adapts by role from the sizes of its tensors and its configuration."""
    from taia_hub.repository.info import info_of
    from taia_hub.updates.parts import AdaptedPart
    from taia_hub.weights.skeleton import skeleton

    ranks: dict[str, frozenset[int]] = {}
    if found.kind is MOLORA:
        settings = found.settings.settings
        ranks = {role: frozenset({settings.rank_of(role)}) for role in ("attention", "ffn")}
    info = info_of(found, lambda: skeleton(found.base, access, trust_remote_code), access)
    return {
        role: AdaptedPart(
            part.modules,
            part.parameters,
            ranks.get(role, frozenset()) if part.modules else frozenset(),
            resized=role == "other" and info.vocabulary is not None,
        )
        for role, part in info.roles.items()
    }


def role_parts(parts: Mapping[str, AdaptedPart]) -> dict[str, cards.RolePart]:
    """Lists what an update adapts, every role in the order that cards have."""
    return {
        role: cards.RolePart(one.modules, one.parameters, tuple(sorted(one.ranks)), resized=one.resized)
        if (one := parts.get(role))
        else cards.RolePart(0, 0, ())
        for role in ROLES
    }


def _sha256(found: Repository, access: hub.HubAccess) -> str | None:
    """Finds the hash of a plain adapter's weights."""
    if found.revision is None:
        return hub.sha256(found.folder / found.kind.weights)
    _check_there(found, access)
    return hub.sha256_at(found.holder, found.place.weights, access, what="adapter repository")


def render_over(
    data: cards.CardData, before: Iterable[str | None], *, given: Collection[str] = (), **template: Any
) -> cards.Merged:
    """Renders a card with the edits that people made to the cards that are there, the earlier first.

    The metadata keys `given` were asked for just now: they stay from now on, as if they were set by hand. `template` is
    as of `cards.render_card`.

    Raises:
        ConfigError: If a card was not written by taia-hub or is damaged, or the template is.
    """
    there: list[str | None] = [one for one in before if one is not None]
    if data.space is None:  # only the card knows it
        data = dataclasses.replace(data, space=next(filter(None, (cards.space_of(one or "") for one in there)), None))
    text, kept = cards.render_card(data, **template), list[str]()
    for old in there or [None]:
        merged = cards.merge_cards(old, text, given=given)
        text, kept = merged.text, [*kept, *merged.kept]
    return cards.Merged(text, tuple(dict.fromkeys(kept)))


def card_files(
    data: cards.CardData, before: Iterable[Path | None], folder: Path, *, given: Collection[str] = ()
) -> dict[str, Path]:
    """Writes the card of a repository and what else of its results the Hub reads; a damaged card is left alone.

    Returns path in the repository to path in `folder`; without the card where one that is there is damaged.
    """
    there = [path for path in before if path is not None and path.exists()]
    texts = cards.eval_results_files(data.results, data.repo_id)
    try:
        texts[hub.CARD] = render_over(data, map(read_card, there), given=given).text
    except ConfigError as error:  # a card must not cost anybody a trained model
        if not there:
            raise
        logger.warning("The model card stays as it is: %s", error.message)
    files = {}
    for name, text in texts.items():
        files[name] = folder / name
        files[name].parent.mkdir(parents=True, exist_ok=True)
        files[name].write_text(text, encoding="utf-8")
    return files
