"""The files beside a model that go on its card: results, analysis, training, figures; each must be of this model."""

from __future__ import annotations

import dataclasses
import logging
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load

from taia_hub import cards, hub
from taia_hub.errors import ConfigError
from taia_hub.refining.report import REFINEMENT_FILE, Refinement
from taia_hub.results import RESULTS_FILE, TUNING_FILE, ModelIdentity, Results, Tuned
from taia_hub.results.analysis import ANALYSIS_FILE, load_analysis

logger = logging.getLogger(__name__)

TRAINING_FILE = "taia_training.json"
RECIPE_FILE = "taia_recipe.yaml"
FIGURES = "figures"
SIDE_FILES = (
    RESULTS_FILE,
    ANALYSIS_FILE,
    TRAINING_FILE,
    REFINEMENT_FILE,
    TUNING_FILE,
    f"{FIGURES}/*",
    f"{cards.EVAL_RESULTS}/*",
)
"""What lies beside a model and goes on its card, or comes of it."""

_ALT = {
    "update_norms": "Norm of the update by layer and role",
    "scores": "Scores by task and mode",
    "similarity": "Similarity of the hidden states to the base model's, by mode",
    "residual_rank": "Residual rank by layer and mode",
    "tuning_front": "What settings gain on the target against what they lose elsewhere",
    "tuning_weights": "Weights by role and layer",
}
_DRAWN_FROM = {
    "scores": (RESULTS_FILE,),
    **dict.fromkeys(("update_norms", "similarity", "residual_rank"), (ANALYSIS_FILE,)),
    **dict.fromkeys(("tuning_front", "tuning_weights"), (TUNING_FILE,)),
}
_DUBLIN = "{http://purl.org/dc/elements/1.1/}title"


@dataclass(frozen=True)
class SideFiles:
    """Where the files beside a model lie on this disk; `figures` are path in the repository to path here."""

    results: Path | None = None
    analysis: Path | None = None
    training: Path | None = None
    figures: Mapping[str, Path] = field(default_factory=dict)
    refinement: Path | None = None
    tuning: Path | None = None

    @classmethod
    def of(cls, folder: Path) -> SideFiles:
        """Finds the files in a folder of a repository."""

        def there(name: str) -> Path | None:
            return folder / name if (folder / name).is_file() else None

        figures = sorted((folder / FIGURES).glob("*.png")) if (folder / FIGURES).is_dir() else []
        named = {f"{FIGURES}/{path.name}": path for path in figures}
        return cls(
            there(RESULTS_FILE),
            there(ANALYSIS_FILE),
            there(TRAINING_FILE),
            named,
            there(REFINEMENT_FILE),
            there(TUNING_FILE),
        )

    def over(self, other: SideFiles) -> SideFiles:
        """Returns these files, and those of another place where there are none here."""
        return SideFiles(
            self.results or other.results,
            self.analysis or other.analysis,
            self.training or other.training,
            {**other.figures, **self.figures},
            self.refinement or other.refinement,
            self.tuning or other.tuning,
        )


def read_results(path: Path, expected: ModelIdentity) -> Results:
    """Reads a results file that must be of a certain model and base revision; name and dtype do not count."""
    results = Results.load(path)
    _refuse_other(path, "results", dataclasses.replace(results.model, dtype=""), expected)
    return results


def read_tuning(path: Path, expected: ModelIdentity) -> Tuned:
    """Reads a tuning file that must be of a certain model and base revision; name and dtype do not count."""
    tuned = Tuned.load(path)
    _refuse_other(path, "the tuning", dataclasses.replace(tuned.model, dtype=""), expected)
    return tuned


def read_training(path: Path, expected: ModelIdentity | None = None) -> cards.Training:
    """Reads `taia_training.json`, how the update of `expected` was trained; every field is optional."""
    try:
        training = cards.training_from_json(hub.read_json(path))
    except ValueError as error:
        raise ConfigError(f"'{path}' is damaged: {error}.", "Write it again.") from error
    if expected and training.adapter_sha256 not in (None, expected.adapter_sha256):
        found = dataclasses.replace(expected, adapter_sha256=training.adapter_sha256)
        _refuse_other(path, "the training", found, expected)
    return training


def read_refinement(path: Path, expected: ModelIdentity) -> Refinement:
    """Reads what refining kept of the update of `expected`."""
    refinement = Refinement.load(path)
    found = dataclasses.replace(expected, adapter_sha256=refinement.update_sha256)
    _refuse_other(path, "the refinement", found, expected)
    return refinement


def _refuse_other(path: Path, what: str, found: ModelIdentity, expected: ModelIdentity) -> None:
    difference = expected.difference(found)
    if difference:
        raise ConfigError(
            f"'{path}' holds {what} of another model than '{expected.name}': {difference}.",
            "Give the file that was made for this model, or make it again.",
        )


@dataclass(frozen=True)
class Measures:
    """What an analysis says of an update: role to the measured fields of `cards.RolePart`, and notes."""

    parts: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...]


def read_card(path: Path) -> str | None:
    """Reads a card; None where there is none."""
    if path.is_dir():
        raise ConfigError(f"'{path}' is a folder, where the card belongs.", "Rename it.")
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except UnicodeDecodeError as error:
        raise ConfigError(f"'{path}' is no UTF-8: {error}.", "Save it as UTF-8 in your editor.") from error


def keep_edits(old: Path, new: Path) -> bool:
    """Puts a person's edits of a published card into the one that shall replace it; says whether that was possible.

    Elsewhere a warning says why, and the card that is there should stay as it is. Warnings say what was kept, too.
    """
    try:
        merged = cards.merge_cards(read_card(old), new.read_text(encoding="utf-8"))
    except ConfigError as error:  # a card must not cost anybody what goes with it
        logger.warning("The model card stays as it is: %s", error.message)
        return False
    for sentence in merged.kept:  # what it says may be true no more
        logger.warning("In the published card, %s.", sentence)
    new.write_text(merged.text, encoding="utf-8")
    return True


def card_tags(card: Path) -> frozenset[str]:
    """Reads the tags of a card; none where its metadata cannot be read."""
    try:
        found = (metadata_load(card) or {}).get("tags")
    except (ValueError, yaml.YAMLError):
        return frozenset()
    return frozenset(map(str, found)) if isinstance(found, list) else frozenset()


def read_analysis(path: Path, expected: ModelIdentity) -> Measures:
    """Reads what an analysis file says of an update that must be of a certain model."""
    analysis = load_analysis(path)
    subject = analysis.subject
    found = dataclasses.replace(
        expected,
        base_model=subject.base_model,
        base_revision=subject.base_revision,
        adapter_sha256=subject.adapter_sha256,
    )
    _refuse_other(path, "the analysis", found, expected)
    parts = {
        role: {
            "frobenius": part.frobenius,
            "relative": part.relative_frobenius,
            "effective_rank": part.effective_rank,
            "measured": part.measured,
        }
        for role, part in analysis.update.by_role.items()
    }
    return Measures(parts, analysis.update.notes)


def true_figures(figures: Mapping[str, Path], true: Collection[str]) -> tuple[cards.Figure, ...]:
    """Lists the figures that the card may show: a picture does not say which model it is of, the file beside it does.

    `true` names which of the results and the analysis file are there and of this model. Of a person's own figures it
    is taken that they go with either.
    """
    return tuple(
        cards.Figure(name, _figure_alt(path))
        for name, path in sorted(figures.items())
        if set(_DRAWN_FROM.get(path.stem, (RESULTS_FILE, ANALYSIS_FILE))) & set(true)
    )


def _figure_alt(path: Path) -> str:
    """Says what a figure shows: the title of the SVG beside it, which is written with it."""
    try:
        title = next(ElementTree.parse(path.with_suffix(".svg")).iter(_DUBLIN), None)
    except (OSError, ElementTree.ParseError):
        title = None
    if title is not None and title.text:
        return title.text
    return _ALT.get(path.stem, path.stem.replace("_", " ").replace("-", " "))


def eval_results_there(folder: Path) -> dict[str, str]:
    """Reads the files of leaderboard scores in a folder: path in the repository to text."""
    paths = sorted((folder / cards.EVAL_RESULTS).glob("*.yaml"))
    return {f"{cards.EVAL_RESULTS}/{path.name}": path.read_text("utf-8", "replace") for path in paths}


def stale_eval_results(there: Mapping[str, str], results: Results | None) -> tuple[str, ...]:
    """Lists the files of leaderboard scores to delete: an earlier card wrote them, these results do not have them."""
    expected = cards.eval_results_files(results)
    return tuple(
        name for name, text in there.items() if name not in expected and cards.is_eval_results_file(name, text)
    )
