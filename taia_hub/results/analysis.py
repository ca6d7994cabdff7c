"""The analysis file: what was measured of an update, on which model, with which versions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taia_hub.common.environment import installed_versions
from taia_hub.common.shown import Shown
from taia_hub.results.files import FORMAT, SideFile
from taia_hub.results.norms import ModuleUpdate, UpdateAnalysis

ANALYSIS_FILE = "taia_analysis.json"
"""Name of the analysis file at the root of a TAIA repository."""

_FILE = SideFile("analysis", "taia analyze")


@dataclass(frozen=True)
class Subject:
    """Which model was examined; revisions are commit shas, or None for a folder."""

    name: str
    revision: str | None
    base_model: str
    base_revision: str | None
    adapter_sha256: str

    def is_same_model(self, other: Subject) -> bool:
        """Tells whether another subject has the same update on the same base, wherever they lie."""
        if self.base_revision is None and other.base_revision is None and self.base_model != other.base_model:
            return False
        return (self.adapter_sha256, self.base_revision) == (other.adapter_sha256, other.base_revision)


@dataclass(frozen=True)
class Curve:
    """A value by layer.

    Attributes:
        mean: (L + 1) means; number 0 is of the embeddings, number k of the state after the k-th layer. In most
            architectures the last one is taken after the final norm.
        standard_error: (L + 1) standard errors of the means; 0 for a single value.
    """

    mean: tuple[float, ...]
    standard_error: tuple[float, ...]


@dataclass(frozen=True)
class HiddenStates:
    """What the hidden states of texts say under several modes.

    Attributes:
        tokens: Number N of their tokens, after cutting.
        similarity: Label of a mode to its cosine similarity to the base model by layer, over tokens.
        residual_rank: Label of a mode to its residual rank by layer, over texts.
        grid: (G) similarities.
        last_density: Label of a mode to the (G) density of the similarity in the last layer.
        pooled_density: The same over the tokens of all layers; the embeddings are left out.
    """

    texts: int
    tokens: int
    max_tokens: int
    texts_sha256: str
    similarity: Mapping[str, Curve]
    residual_rank: Mapping[str, Curve]
    grid: tuple[float, ...]
    last_density: Mapping[str, tuple[float, ...]]
    pooled_density: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, repr=False)
class Analysis(Shown):
    """Everything that was measured of one model; `hidden` is None where no texts were given.

    `versions` are package to version of what measured the update, `hidden_versions` of what measured the hidden states.
    """

    subject: Subject
    update: UpdateAnalysis
    hidden: HiddenStates | None = None
    versions: Mapping[str, str | None] = field(default_factory=installed_versions)
    hidden_versions: Mapping[str, str | None] = field(default_factory=installed_versions)

    def with_kept(self, older: Analysis) -> Analysis:
        """Takes what was not measured this time from an older analysis of the same model; of another, nothing.

        That is the hidden states, and the update where only the older one looked at the base's weights, each with the
        versions that measured it.
        """
        if not self.subject.is_same_model(older.subject):
            return self
        kept = self
        if older.update.is_relative and not self.update.is_relative:
            kept = dataclasses.replace(kept, update=older.update, versions=older.versions)
        if self.hidden is None:
            kept = dataclasses.replace(kept, hidden=older.hidden, hidden_versions=older.hidden_versions)
        return kept

    def to_json(self) -> dict[str, Any]:
        """Returns the analysis as JSON values."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, value: Any, name: str = ANALYSIS_FILE) -> Analysis:
        """Makes of JSON values the analysis that gave them by `to_json`; `name` is the file's, in error messages."""
        return _FILE.parse(value, name, _analysis)

    def save(self, path: Path) -> None:
        """Writes the analysis file, whole or not at all; a folder gets `taia_analysis.json`."""
        _FILE.write(analysis_path(path), self.to_json())


def load_analysis(path: Path) -> Analysis:
    """Reads an analysis file, or the one in a folder."""
    path = analysis_path(path)
    return Analysis.from_json(_FILE.read(path), str(path))


def analysis_path(path: Path) -> Path:
    """Returns the analysis file in a folder, or the path itself where it is no folder."""
    return path / ANALYSIS_FILE if path.is_dir() else path


def _analysis(value: Any) -> Analysis:
    update, hidden = value["update"], value["hidden"]
    return Analysis(
        Subject(**value["subject"]),
        UpdateAnalysis(update["method"], tuple(map(_module, update["modules"])), tuple(update["notes"])),
        _hidden(hidden) if hidden is not None else None,
        dict(value["versions"]),
        dict(value["hidden_versions"]),
    )


def _module(value: Mapping[str, Any]) -> ModuleUpdate:
    shape = value["shape"]
    return ModuleUpdate(**{**value, "shape": tuple(shape) if shape is not None else None})


def _hidden(value: Mapping[str, Any]) -> HiddenStates:
    curves = {
        name: {label: Curve(**{key: tuple(items) for key, items in curve.items()}) for label, curve in found.items()}
        for name, found in value.items()
        if name in ("similarity", "residual_rank")
    }
    densities = {
        name: {label: tuple(items) for label, items in value[name].items()}
        for name in ("last_density", "pooled_density")
    }
    return HiddenStates(**{**value, **curves, **densities, "grid": tuple(value["grid"])})
