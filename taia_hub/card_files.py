"""The files beside a model that go on its card: results, analysis, training, figures; each must be of this model."""

from __future__ import annotations

import dataclasses
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from taia_hub import cards, hub
from taia_hub.errors import ConfigError
from taia_hub.results import RESULTS_FILE, ModelIdentity, Results

ANALYSIS_FILE = "taia_analysis.json"
TRAINING_FILE = "taia_training.json"
FIGURES = "figures"
SIDE_FILES = (RESULTS_FILE, ANALYSIS_FILE, TRAINING_FILE, f"{FIGURES}/*")
"""What lies beside a model and goes on its card."""

_ALT = {
    "update_norms": "Norm of the update by layer and role",
    "scores": "Scores by task and mode",
    "similarity": "Similarity of the hidden states to the base model's, by mode",
    "residual_rank": "Residual rank by layer and mode",
}
_DUBLIN = "{http://purl.org/dc/elements/1.1/}title"


@dataclass(frozen=True)
class SideFiles:
    """Where the files beside a model lie on this disk.

    Attributes:
        results: The results file, or None.
        analysis: The analysis file, or None.
        training: The training file, or None.
        figures: Path in the repository to path on this disk.
    """

    results: Path | None = None
    analysis: Path | None = None
    training: Path | None = None
    figures: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> SideFiles:
        """Finds the files in a folder of a repository."""

        def there(name: str) -> Path | None:
            return folder / name if (folder / name).is_file() else None

        figures = sorted((folder / FIGURES).glob("*.png")) if (folder / FIGURES).is_dir() else []
        named = {f"{FIGURES}/{path.name}": path for path in figures}
        return cls(there(RESULTS_FILE), there(ANALYSIS_FILE), there(TRAINING_FILE), named)

    def over(self, other: SideFiles) -> SideFiles:
        """Returns these files, and those of another place where there are none here."""
        return SideFiles(
            self.results or other.results,
            self.analysis or other.analysis,
            self.training or other.training,
            {**other.figures, **self.figures},
        )


def read_results(path: Path, expected: ModelIdentity) -> Results:
    """Reads a results file that must be of a certain model.

    Args:
        path: The file.
        expected: The model; its name and dtype do not count.

    Returns:
        The results.

    Raises:
        ConfigError: If they are of another model, or of this update on another revision of its base.
    """
    results = Results.load(path)
    _refuse_other(path, "results", dataclasses.replace(results.model, dtype=""), expected)
    return results


def read_training(path: Path, expected: ModelIdentity | None = None) -> cards.Training:
    """Reads `taia_training.json`: how the update was trained.

    Args:
        path: The file: an object with `datasets`, `hyperparameters`, `hardware`, `versions`, `seconds`,
            `co2_eq_emissions` and `adapter_sha256`, all of them optional.
        expected: The model that it must be of, where the file names one.

    Returns:
        What it says.

    Raises:
        ConfigError: If it is damaged or of another model.
    """
    value = hub.read_json(path)
    try:
        known = {one.name for one in dataclasses.fields(cards.Training)} & value.keys()
        kept = {name: value[name] for name in known}
        names = {one.name for one in dataclasses.fields(cards.DatasetFacts)}
        kept["datasets"] = tuple(
            cards.DatasetFacts(**{key: one[key] for key in names & one.keys()}) for one in value.get("datasets", ())
        )
        for name in ("hyperparameters", "hardware", "versions"):
            kept[name] = dict(value.get(name) or {})
        training = cards.Training(**kept)
        for name in ("seconds", "co2_eq_emissions"):
            number = getattr(training, name)
            is_number = isinstance(number, (int, float)) and math.isfinite(number)
            if not (number is None or is_number or (name != "seconds" and isinstance(number, Mapping))):
                raise ValueError(f"{name} is {number!r}")
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"'{path}' is damaged: {type(error).__name__}: {error}.", "Write it again.") from error
    if expected and training.adapter_sha256 not in (None, expected.adapter_sha256):
        found = dataclasses.replace(expected, adapter_sha256=training.adapter_sha256)
        _refuse_other(path, "the training", found, expected)
    return training


def _refuse_other(path: Path, what: str, found: ModelIdentity, expected: ModelIdentity) -> None:
    difference = expected.difference(found)
    if difference:
        raise ConfigError(
            f"'{path}' holds {what} of another model than '{expected.name}': {difference}.",
            "Give the file that was made for this model, or make it again.",
        )


def read_analysis(path: Path, expected: ModelIdentity) -> dict[str, dict[str, float | tuple[int, ...] | None]]:
    """Reads an analysis file that must be of a certain model.

    Args:
        path: The file.
        expected: The model; its name and dtype do not count.

    Returns:
        Role to the fields of `cards.RolePart` that were measured.

    Raises:
        ConfigError: If it is damaged or of another model.
    """
    from taia_hub.analysis import load_analysis

    analysis = load_analysis(path)
    subject = analysis.subject
    found = dataclasses.replace(
        expected,
        base_model=subject.base_model,
        base_revision=subject.base_revision,
        adapter_sha256=subject.adapter_sha256,
    )
    _refuse_other(path, "the analysis", found, expected)
    ranks: dict[str, set[int]] = {}
    for module in analysis.update.modules:
        if module.rank is not None:
            ranks.setdefault(module.role, set()).add(module.rank)
    return {
        role: {
            "frobenius": part.frobenius,
            "relative": part.relative_frobenius,
            "effective_rank": part.effective_rank,
            **({"ranks": tuple(sorted(ranks[role]))} if role in ranks else {}),
        }
        for role, part in analysis.update.by_role.items()
    }


def figure_alt(path: Path) -> str:
    """Says what a figure shows: the title of the SVG beside it, which is written with it.

    Args:
        path: The figure as PNG.

    Returns:
        Its alternative text.
    """
    try:
        title = next(ElementTree.parse(path.with_suffix(".svg")).iter(_DUBLIN), None)
    except (OSError, ElementTree.ParseError):
        title = None
    if title is not None and title.text:
        return title.text
    return _ALT.get(path.stem, path.stem.replace("_", " ").replace("-", " "))
