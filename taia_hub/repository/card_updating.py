"""The card of a repository, on the Hub or in a folder, made again, written, published or checked."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from taia_hub import cards, hub
from taia_hub.cards.escaping import is_repo_id
from taia_hub.common.atomic import write_atomically, write_together
from taia_hub.errors import ConfigError, RepositoryError, TAIAError
from taia_hub.hub.config import Fields, RepositoryConfig
from taia_hub.refining.report import REFINEMENT_FILE
from taia_hub.repository.card import card_facts, describe_files, render_over, with_side_files
from taia_hub.repository.card_request import CardRequest
from taia_hub.repository.reading import base_license
from taia_hub.repository.side_files import (
    FIGURES,
    SIDE_FILES,
    TRAINING_FILE,
    SideFiles,
    eval_results_there,
    read_card,
    stale_eval_results,
)
from taia_hub.repository.update_files import Repository, open_repository
from taia_hub.results import RESULTS_FILE, TUNING_FILE
from taia_hub.results.analysis import ANALYSIS_FILE
from taia_hub.switch.settings import Setting

_FETCHED = (hub.CONFIG, hub.MANIFEST, hub.CARD, *SIDE_FILES)


@dataclass(frozen=True)
class MadeCard:
    """A card that was made again, and what goes with it; keys are paths in the repository.

    Attributes:
        kept: What of a person's stayed, a sentence each.
        files: Files that were given: path in the repository to path on this disk.
        stale: Paths of what an earlier card wrote beside itself and these results do not give.
    """

    source: hub.Source
    text: str
    before: str | None
    kept: tuple[str, ...]
    texts: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    stale: tuple[str, ...] = ()

    @property
    def others(self) -> tuple[str, ...]:
        """Paths of what goes with the card and is not there already, and of what is deleted with it."""
        folder = self.source.folder
        changed = [name for name, text in self.texts.items() if _read(folder / name) != text.encode()]
        given = (name for name, path in self.files.items() if not hub.same_bytes(path, folder / name))
        return (*changed, *given, *self.stale)

    def difference(self) -> str:
        """Returns the unified diff from the card that is there; empty where nothing changes."""
        old = (self.before or "").splitlines(keepends=True)
        new = self.text.splitlines(keepends=True)
        lines = difflib.unified_diff(old, new, f"{hub.CARD} (there)", f"{hub.CARD} (new)")
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def refuse_contradictions(repo: str, *, write: bool, push: bool, check: bool, pr: bool = False) -> None:
    """Refuses words that cannot be followed together, or not for this repository."""
    if pr and not push:
        raise ConfigError("--pr says how --push publishes.", "Give both, or leave --pr out.")
    if write + push + check > 1:
        raise ConfigError("--write, --push and --check exclude each other.", "Give one of them.")
    if write and not os.path.isdir(repo):
        raise ConfigError(f"--write needs a folder; '{repo}' is none here.", "Use --push for a repository on the Hub.")
    if push and os.path.isdir(repo):
        raise ConfigError(f"--push needs a Hub id; '{repo}' is a folder.", "Use --write, then `taia push DIR REPO`.")


def make_card(
    name: str,
    request: CardRequest,
    access: hub.HubAccess | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    pr: bool = False,
    setting: Setting | None = None,
) -> MadeCard:
    """Makes the card of a repository again, from its files and with a person's edits; nothing is written.

    A plain adapter's own card stays, and gets a section about its modes. The base model's own code runs, where
    `trust_remote_code` says so, to learn its structure. `pr` says that a pull request shall come of it. With `setting`
    the repository publishes that from now on: its `config.json` and manifest go with the card.

    Raises:
        TAIAError: If a file is missing, malformed or of another model, or the card that is there is somebody else's.
    """
    access = access or hub.HubAccess()
    given = _given_files(request)
    found, source, before = _opened(name, revision, access, plain=setting is None)
    published: dict[str, Any] | None = None
    if setting is not None:
        published = {**hub.read_json(source.folder / hub.CONFIG), "inference_modules": setting.published}
        found = dataclasses.replace(found, config=RepositoryConfig.of(published))
    data = _described(found, request, before, access, trust_remote_code)
    data = with_side_files(data, found.config, given.over(SideFiles.of(source.folder)))
    if found.is_plain:
        merged = _of_adapter(data, request, before)
    else:
        merged = render_over(
            data, [before], given=request.given, template=request.template, template_dir=request.template_dir
        )
    named = {
        RESULTS_FILE: given.results,
        ANALYSIS_FILE: given.analysis,
        TRAINING_FILE: given.training,
        TUNING_FILE: given.tuning,
        **given.figures,
    }
    files = {path: file for path, file in named.items() if file is not None}
    for path, figure in given.figures.items():  # the same figure as SVG, which says what it shows
        if figure.with_suffix(".svg").is_file():
            files[str(Path(path).with_suffix(".svg").as_posix())] = figure.with_suffix(".svg")
    stale = stale_eval_results(eval_results_there(source.folder), data.results)
    scores = cards.eval_results_files(data.results, data.repo_id, source.revision if pr else None)
    texts = {} if published is None else {hub.CONFIG: json.dumps(published, indent=2) + "\n"}
    if not found.is_plain and (renewed := hub.renewed_manifest(source.folder, found.folder, values=published)):
        texts[hub.MANIFEST] = renewed  # the card says which setting is published, and so does the manifest
    return MadeCard(source, merged.text, before, merged.kept, {**scores, **texts}, files, stale)


def _of_adapter(data: cards.CardData, request: CardRequest, before: str | None) -> cards.Merged:
    """Makes a new card for a plain adapter, or adds our section to the one that is there."""
    if before is None:
        return cards.merge_cards(None, cards.render_card(data, cards.ADAPTER), given=request.given)
    if request.given:
        raise ConfigError(
            f"'{data.repo_id}' is a plain adapter, whose card keeps its metadata ({', '.join(request.given)}).",
            "Leave the options for metadata out, or make a repository of it: `taia create BASE ADAPTER`.",
        )
    return cards.with_modes(before, cards.render_card(data, cards.ADAPTER))


def write_card(made: MadeCard) -> str:
    """Writes a card, and what goes with it, into its folder, all or nothing, and says where it is."""
    folder = made.source.folder
    given = {name: path for name, path in made.files.items() if not hub.same_bytes(path, folder / name)}
    with hub.disk_errors(folder):
        contents: dict[str, str | bytes] = {name: path.read_bytes() for name, path in given.items()}
        contents |= {**made.texts, hub.CARD: made.text}
        write_together({folder / name: content for name, content in contents.items()})
        for name in made.stale:
            (folder / name).unlink(missing_ok=True)
    return str(folder / hub.CARD)


def publish_card(made: MadeCard, commit: hub.Commit) -> CommitInfo:
    """Publishes a card and what goes with it on top of the commit that it was made for, in one commit.

    Raises:
        RepositoryError: If a request fails or the repository changed meanwhile; it is then as it was.
    """
    with tempfile.TemporaryDirectory() as scratch:
        files = dict(made.files)
        for name, text in {**made.texts, hub.CARD: made.text}.items():
            files[name] = Path(scratch) / name
            write_atomically(files[name], text)
        head = hub.Head(made.source.name, made.source.revision)
        commit = dataclasses.replace(commit, message=commit.message or "Update the model card")
        try:
            return hub.publish({**files, **dict.fromkeys(made.stale)}, head, commit)
        except RepositoryError as error:
            if commit.create_pr or "(403)" not in error.message:
                raise
            hint = f"Where it is somebody else's, propose it: `taia card {head.repo_id} --push --pr`. {error.hint}"
            raise RepositoryError(error.message, hint) from error


def link_space(name: str, space_id: str, token: str | bool | None) -> str | None:
    """Links the card of a repository on the Hub to the Space that compares its modes, and changes nothing else of it.

    Returns the address of the commit; None where the card links to it already, or a person decided otherwise.

    Raises:
        TAIAError: If there is no card, it is somebody else's, or it cannot be published.
    """
    source = hub.fetch(name, [hub.CARD], access=hub.HubAccess(token=token), what="TAIA repository", local=False)
    before = read_card(source.folder / hub.CARD)
    if before is None:
        raise RepositoryError(f"'{name}' has no {hub.CARD}.", "Make one with `taia card`.")
    text = cards.with_space(before, space_id)
    if text == before:
        return None
    commit = hub.Commit("Link to the Space that compares the modes", token=token)
    return str(publish_card(MadeCard(source, text, before, ()), commit).commit_url)


def check_repository_card(
    name: str,
    request: CardRequest,
    access: hub.HubAccess | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> list[cards.Finding]:
    """Checks every fact on the card of a repository that its files, or those that were given, can confirm."""
    access, given = access or hub.HubAccess(), _given_files(request)
    found, source, before = _opened(name, revision, access, plain=False)
    if before is None:
        raise RepositoryError(f"'{name}' has no {hub.CARD}.", "Make one with `taia card`.")
    data = _described(found, request, before, access, trust_remote_code)
    data = dataclasses.replace(data, space=cards.space_of(before))
    beside = given.over(SideFiles.of(source.folder))
    data, problems = _with_true_files(data, found.config, beside)
    if source.revision is None:
        files = [path.relative_to(source.folder).as_posix() for path in source.folder.rglob("*") if path.is_file()]
    else:
        files = sorted(hub.names_at(source, access))
        if not data.adapter_repo:  # its weights, to hash them
            wanted = [*_FETCHED, data.weights_path]
            source = hub.fetch(name, wanted, revision=source.revision, access=access)
    facts = card_facts(data, source, files, problems, template=request.template, template_dir=request.template_dir)
    return cards.check_card(before, facts)


def _opened(
    name: str, revision: str | None, access: hub.HubAccess, *, plain: bool = True
) -> tuple[Repository, hub.Source, str | None]:
    """Opens a repository with the files that a card is made of; returns also where they are, and the card there."""
    found = open_repository(name, access, revision=revision, plain=plain)
    source = hub.Source(name, found.root, found.revision)
    if found.revision is not None:
        source = hub.fetch(name, _FETCHED, revision=found.revision, access=access, what="TAIA repository")
    return found, source, read_card(source.folder / hub.CARD)


def _described(
    found: Repository, request: CardRequest, before: str | None, access: hub.HubAccess, trust_remote_code: bool
) -> cards.CardData:
    wrong = [dataset for dataset in request.datasets if not is_repo_id(dataset)]
    if wrong:
        raise ConfigError(f"The data set {wrong[0]!r} is no Hub id.", "As in tatsu-lab/alpaca.")
    fields = base_license(found.config, access.token) if found.config.base_model_revision else {}
    asked = {name: getattr(request, name) for name in ("license", "license_name", "license_link")}
    if request.license:
        fields = {}
    fields |= {name: value for name, value in asked.items() if value}
    if found.revision:
        repo_id = found.name
    else:
        repo_id = request.repo_id or (cards.title_of(before) if before else None) or found.root.resolve().name
    data = describe_files(found, access, repo_id=repo_id, license_fields=fields, trust_remote_code=trust_remote_code)
    return dataclasses.replace(
        data, language=request.language, datasets=request.datasets, tags=request.tags, widget=request.widget
    )


def _with_true_files(
    data: cards.CardData, config: Fields, beside: SideFiles
) -> tuple[cards.CardData, list[cards.Finding]]:
    """Adds what the files say that are of this model; says of each whether it is."""
    problems = []
    true = SideFiles(figures=beside.figures)
    for name, one in (
        (RESULTS_FILE, SideFiles(results=beside.results)),
        (ANALYSIS_FILE, SideFiles(analysis=beside.analysis)),
        (TRAINING_FILE, SideFiles(training=beside.training)),
        (REFINEMENT_FILE, SideFiles(refinement=beside.refinement)),
        (TUNING_FILE, SideFiles(tuning=beside.tuning)),
    ):
        if one == SideFiles():
            continue
        try:
            with_side_files(data, config, one)
        except TAIAError as error:
            problems.append(cards.Finding(None, f"{name} is of this model", False, None, error.message))
        else:
            problems.append(cards.Finding(None, f"{name} is of this model", True))
            true = true.over(one)
    return with_side_files(data, config, true), problems


def _given_files(request: CardRequest) -> SideFiles:
    """Returns the files that were given, which must be there."""
    for path in (request.results, request.analysis, request.training, request.tuning):
        if path is not None and not path.is_file():
            raise RepositoryError(f"'{path}' does not exist.", "Give an existing file.")
    if request.figures is not None and not request.figures.is_dir():
        raise RepositoryError(f"'{request.figures}' is no folder.", "Draw figures with `taia analyze --figures DIR`.")
    figures = sorted(request.figures.glob("*.png")) if request.figures else []
    named = {f"{FIGURES}/{path.name}": path for path in figures}
    return SideFiles(request.results, request.analysis, request.training, named, tuning=request.tuning)


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
