"""What an export says of itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taia_hub.common.shown import Shown
from taia_hub.common.text_tables import byte_size
from taia_hub.engines.facts import Verdict


@dataclass(frozen=True, repr=False)
class ExportReport(Shown):
    """What was written, and what was lost.

    Attributes:
        folder: Folder with `adapter_config.json`, `adapter_model.safetensors` and `README.md`.
        setting: The setting that was exported, in the form that users write.
        modules: Role to the number of its modules that act.
        zeros: Number of further modules whose factors are zeros, because a target name matches them too.
        rank: The rank of all modules.
        alpha: `lora_alpha`.
        bytes: Size of the weights file.
        dtype: dtypes of the tensors, by torch's names.
        kept: Whether the acting tensors are the update's own bytes.
        error: Largest relative Frobenius error of a module; None where the export is exact up to float32 rounding.
        errors: Module path to its relative Frobenius error, where factors were made of a difference.
        verdicts: Engine to what it makes of the export.
        notes: What else to know.
        is_new: Whether it was written just now; False where this very export lay there already.
    """

    folder: Path
    setting: Any
    modules: Mapping[str, int]
    zeros: int
    rank: int
    alpha: int
    bytes: int
    dtype: str
    kept: bool
    error: float | None
    errors: Mapping[str, float]
    verdicts: Mapping[str, Verdict]
    notes: tuple[str, ...] = ()
    is_new: bool = True

    @classmethod
    def of(cls, facts: Mapping[str, Any], folder: Path) -> ExportReport:
        """Reads what `to_facts` gave, of an export that lies in a folder already."""
        verdicts = {
            engine: Verdict(**{name: tuple(lines) for name, lines in verdict.items()})
            for engine, verdict in facts["verdicts"].items()
        }
        read = {"folder": folder, "verdicts": verdicts, "notes": tuple(facts["notes"]), "is_new": False}
        return cls(**{**facts, **read})

    def to_facts(self) -> dict[str, Any]:
        """Returns all but the folder, as JSON has it."""
        values = dataclasses.asdict(self)
        del values["folder"]
        return values

    @property
    def scale(self) -> float:
        """What every product is multiplied by."""
        return self.alpha / self.rank

    @property
    def engines(self) -> dict[str, tuple[str, ...]]:
        """Engine to what to know of it: flags to set, or why it refuses."""
        return {engine: verdict.lines for engine, verdict in self.verdicts.items()}

    @property
    def refused_by(self) -> dict[str, tuple[str, ...]]:
        """Engines that do not take the export, and why."""
        return {engine: verdict.problems for engine, verdict in self.verdicts.items() if verdict.problems}

    def to_text(self) -> str:
        """Says in some lines what was written, and what each engine makes of it."""
        modules = ", ".join(f"{count} {role}" for role, count in self.modules.items())
        exact = "exact" if self.error is None else f"loses up to {self.error:.3g} of a module"
        lines = [
            f"{modules} modules, rank {self.rank}, alpha {self.alpha}, {self.dtype}, {byte_size(self.bytes)}, {exact}"
        ]
        lines += [f"{engine:<10}{'; '.join(told) or 'takes it as it is'}" for engine, told in self.engines.items()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def worst(self, count: int = 5) -> tuple[tuple[str, float], ...]:
        """Returns the modules that lost most, with their relative errors."""
        return tuple(sorted(self.errors.items(), key=lambda one: -one[1])[:count])

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {
            "folder": str(self.folder),
            "setting": self.setting,
            "modules": dict(self.modules),
            "zeros": self.zeros,
            "rank": self.rank,
            "alpha": self.alpha,
            "scale": self.scale,
            "bytes": self.bytes,
            "dtype": self.dtype,
            "kept": self.kept,
            "error": self.error,
            "errors": dict(self.errors),
            "engines": {engine: list(lines) for engine, lines in self.engines.items()},
            "refused_by": {engine: list(lines) for engine, lines in self.refused_by.items()},
            "notes": list(self.notes),
        }
