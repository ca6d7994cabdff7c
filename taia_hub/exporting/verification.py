"""An export checked before it is called done: PEFT loads it whole, and it answers as the masked model does."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn

from taia_hub import hub
from taia_hub.errors import UpdateMismatchError
from taia_hub.hub.layout import PEFT, PREFIX
from taia_hub.repository.opening import OpenedUpdate
from taia_hub.roles.sublayers import find_sublayers
from taia_hub.updates.attaching import attach
from taia_hub.updates.options import AttachOptions
from taia_hub.updates.peft.plain_lora import is_state_space
from taia_hub.updates.peft.strict import read_config
from taia_hub.updates.weightless import injected
from taia_hub.weights.base_model import load_base

TOLERANCE = 1e-4
"""Largest difference of a logit, by the largest logit, where the export is exact but its tensors are not the same."""

_TOKENS = 16


def check_loads(folder: Path, model: nn.Module) -> None:
    """Checks that PEFT expects exactly the tensors that an export holds.

    PEFT's own rule says which modules it adapts, and PEFT itself puts the export on one module of each kind: it makes
    its layers one by one, and those of equal modules are equal. Where experts are parameters, which PEFT may translate
    first, and where it refuses modules of an architecture, it is put on a copy of the whole model.

    Raises:
        UpdateMismatchError: If a tensor is missing, left over or of another shape.
    """
    config = read_config(folder)
    whole = is_state_space(model) or any(parameter.dim() > 2 for parameter in model.parameters())
    expected: dict[str, tuple[int, ...]] = {}
    for path, paths in (("", ("",)),) if whole else _alike(model, config):
        expected |= _expected(folder, config, model, path, paths)
    found = hub.tensor_shapes(folder / PEFT.weights)
    if missing := sorted(expected.keys() - found.keys()):
        raise _unloadable(folder, f"{len(missing)} tensors are missing, first '{missing[0]}'")
    if unexpected := sorted(found.keys() - expected.keys()):
        raise _unloadable(folder, f"{len(unexpected)} tensors are left over, first '{unexpected[0]}'")
    if wrong := [key for key, shape in found.items() if shape != expected[key]]:
        raise _unloadable(folder, f"'{wrong[0]}' has the shape {found[wrong[0]]} instead of {expected[wrong[0]]}")


@torch.no_grad()
def compare_outputs(
    update: OpenedUpdate,
    folder: Path,
    setting: Any,
    *,
    kept: bool,
    access: hub.HubAccess,
    trust_remote_code: bool = False,
) -> float:
    """Loads the base model and compares the export in PEFT with the masked model on a short fixed input.

    The base is in its own dtype where the update's tensors were kept, and in float32 elsewhere. Returned is the largest
    difference of an output, by the largest output; 0 where all are equal.
    """
    options = {"dtype": "auto" if kept else torch.float32, "trust_remote_code": trust_remote_code}
    base = _base(update, access, **options)
    ids = torch.arange(3, 3 + _TOKENS).remainder(int(base.config.get_text_config().vocab_size))[None]
    with _quietly():
        roles = find_sublayers(base)
        attach(base, update.folder, update.kind, AttachOptions(roles.roles, roles.unplaced, setting))
        expected = _outputs(base.eval(), ids)
        del base
        exported: Any = PeftModel.from_pretrained(_base(update, access, **options), str(folder))
        found = _outputs(exported.eval(), ids)
    largest = float(expected.abs().max()) or 1.0
    return float((expected - found).abs().max()) / largest


def _alike(model: nn.Module, config: Any) -> Collection[tuple[str, tuple[str, ...]]]:
    """Finds the modules that PEFT adapts, those together that only their paths tell apart."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for path, module in model.named_modules():
        if path and check_target_module_exists(config, path):
            tensors = tuple((name, one.shape, one.dtype) for name, one in module.named_parameters())
            found.setdefault((type(module), path.rpartition(".")[2], tensors), []).append(path)
    return tuple((paths[0], tuple(paths)) for paths in found.values())


def _expected(
    folder: Path, config: Any, model: nn.Module, path: str, paths: Collection[str]
) -> dict[str, tuple[int, ...]]:
    """Has PEFT put an export on one module, and returns what it expects for all that are like it."""
    name = path.rpartition(".")[2]
    if path:
        target = nn.Module()
        target._modules[name] = copy.copy(model.get_submodule(path))
    else:
        target = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")
        update = injected(target, copy.deepcopy(config), folder, {})  # PEFT writes into the configuration
    if update is None:
        raise _unloadable(folder, f"PEFT cannot put it on {f'{path!r} of ' if path else ''}the base model")
    shapes = {key: tuple(tensor.shape) for key, tensor in update.update.parameters().items()}
    start = PREFIX + name
    return {f"{PREFIX}{one}{key.removeprefix(start)}": shape for one in paths for key, shape in shapes.items()}


def _outputs(model: Any, ids: Tensor) -> Tensor:
    made = model(input_ids=ids)
    values: Tensor = made.logits if hasattr(made, "logits") else made.last_hidden_state
    return values.double()


def _base(update: OpenedUpdate, access: hub.HubAccess, **options: Any) -> Any:
    return load_base(update.base, features_only=update.files.features_only, token=access.token, **options)


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        # PEFT itself asks for what transformers deprecates
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def _unloadable(folder: Path, what: str) -> UpdateMismatchError:
    return UpdateMismatchError(
        f"The export in '{folder}' would not load in PEFT: {what}.",
        "Report this with the update's adapter_config.json; `taia merge` writes the setting into a whole model.",
    )
