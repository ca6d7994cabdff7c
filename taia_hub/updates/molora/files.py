"""The two files of a mixture of LoRA experts, and what is refused when they do not fit a base model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from taia_hub import hub
from taia_hub.common.atomic import write_atomically
from taia_hub.errors import RepositoryError, UpdateMismatchError
from taia_hub.updates.molora.config import MOLORA_CONFIG, MOLORA_WEIGHTS, MoLoraDescription
from taia_hub.updates.molora.targets import FITS
from taia_hub.updates.peft.strict import few


def write_molora(description: MoLoraDescription, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Writes the two files of a mixture; `tensors` by their names in the file."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(folder / MOLORA_WEIGHTS, save(plain, metadata={"format": "pt"}))
    write_atomically(folder / MOLORA_CONFIG, json.dumps(description.to_dict(), indent=2) + "\n")


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Reads `molora_model.safetensors` in the folder of an update."""
    path = folder / MOLORA_WEIGHTS
    if not path.is_file():
        raise RepositoryError(f"'{folder}' has no {MOLORA_WEIGHTS}.", "Download or save the update again.")
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise hub.damaged(path, error) from error


def check_tensors(expected: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> None:
    """Checks that a file holds the tensors of an attached mixture, all numbers, and no others."""
    problems = []
    if missing := sorted(expected.keys() - tensors.keys()):
        problems.append(f"{len(missing)} missing: {few(missing)}")
    if unexpected := sorted(tensors.keys() - expected.keys()):
        problems.append(f"{len(unexpected)} of no adapted module: {few(unexpected)}")
    for name in sorted(expected.keys() & tensors.keys()):
        if tensors[name].shape != expected[name].shape:
            was, fits = tuple(tensors[name].shape), tuple(expected[name].shape)
            problems.append(f"'{name}' has the shape {was} instead of {fits}")
        elif not tensors[name].is_floating_point():
            problems.append(f"'{name}' holds {tensors[name].dtype}")
    if problems:
        raise UpdateMismatchError(
            f"{MOLORA_WEIGHTS} does not fit its {MOLORA_CONFIG} and base model; {'; '.join(problems[:3])}.", FITS
        )
