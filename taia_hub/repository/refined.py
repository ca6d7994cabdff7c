"""An update that is refined before it becomes a repository, and the record of it beside the update's files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from taia_hub import hub
from taia_hub.common.progress import Progress
from taia_hub.errors import ConfigError
from taia_hub.hub.layout import DENSE
from taia_hub.refining.dg_hard import refine_difference
from taia_hub.refining.norm import refine_lora
from taia_hub.refining.report import REFINEMENT_FILE, Method, Refinement
from taia_hub.switch.switch import Switch
from taia_hub.updates.attaching import Update
from taia_hub.updates.dense.difference import DenseReport, Difference, write_dense
from taia_hub.weights.base_weights import open_base
from taia_hub.weights.skeleton import skeleton


def parse_refine(value: Any, *, dense: bool, compress: Any = None) -> Method | None:
    """Reads how an update shall be refined, and refuses what is for another kind of update.

    Raises:
        ConfigError: If the method is not known, or not for this update.

    Example:
        >>> parse_refine(None, dense=False) is None
        True
    """
    if value is None:
        return None
    method = Method.parse(value)
    if method is Method.DG_HARD and not dense:
        raise ConfigError(
            "dg-hard refines full fine-tunes, whose noise fills their whole matrices, and this is an adapter.",
            "Choose norm; or name a fine-tune and give --dense.",
        )
    if method is Method.NORM and dense:
        raise ConfigError("norm refines LoRA adapters, and this is a full fine-tune.", "Choose dg-hard.")
    if compress is not None:
        raise ConfigError(
            "A fine-tune is either refined or compressed: what --compress keeps is cut by its rank already.",
            "Leave --refine or --compress out.",
        )
    return method


def refine_adapter(
    update: Update,
    switch: Switch,
    base: hub.Source,
    access: hub.HubAccess,
    folder: Path,
    *,
    features_only: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Refinement:
    """Writes an adapter refined by NoRM into a folder, with its record; errors as of `refine_lora`.

    The base's files are read, or brought from the Hub, one by one; its own code runs where `trust_remote_code` says so.
    `features_only` says that the adapter is of the base without its head.
    """
    model = skeleton(base, access, trust_remote_code, features_only=features_only)
    weights = open_base(base, model, access)
    made = refine_lora(update, switch, weights, folder, progress)
    made.save(folder / REFINEMENT_FILE)
    return made


def write_refined(
    base: Path, finetuned: Path, folder: Path, *, trust_remote_code: bool = False, progress: Progress | None = None
) -> DenseReport:
    """Writes a full fine-tune refined by DG-Hard into a folder, with its record; errors as of `write_dense`."""
    made: list[Refinement] = []

    def refine(difference: Difference, scratch: Path) -> Difference:
        refined, told = refine_difference(difference, scratch, progress)
        made.append(told)
        return refined

    report = write_dense(base, finetuned, folder, refine=refine, trust_remote_code=trust_remote_code, progress=progress)
    told = dataclasses.replace(made[0], update_sha256=hub.sha256(folder / DENSE.weights))
    told.save(folder / REFINEMENT_FILE)
    return report


def refinement_of(folder: Path) -> Refinement | None:
    """Reads the record in a folder of a refined update or of its repository; None where there is none."""
    return Refinement.load(folder / REFINEMENT_FILE) if (folder / REFINEMENT_FILE).is_file() else None
