"""Measures what an update does to the weights, module by module; no forward pass is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.lora.layer import MultiheadAttention, ParamWrapper
from torch import Tensor
from transformers import PreTrainedModel

from taia_hub import hub
from taia_hub.analysis import spectra
from taia_hub.common.progress import Progress
from taia_hub.errors import RepositoryError, UnsupportedUpdateError
from taia_hub.hub.layout import PEFT, PREFIX
from taia_hub.repository.update_files import Repository, open_repository
from taia_hub.results.norms import ModuleUpdate, UpdateAnalysis
from taia_hub.switch.switch import Site
from taia_hub.updates.peft.methods import ADDITIVE
from taia_hub.updates.peft.strict import ADAPTER
from taia_hub.updates.weightless import attach_weightless
from taia_hub.weights.base_weights import base_reader, open_base
from taia_hub.weights.checkpoint import StoredTensor, read_header
from taia_hub.weights.skeleton import skeleton

_PAIRS = (("lora_A", "lora_B", ".weight"), ("lora_embedding_A", "lora_embedding_B", ""))
_SAME_PRODUCT = ("Dora", "Velora")  # variants of LoRA whose factors still stand for scaling * B @ A
DORA_NOTE = (
    "DoRA: norms and ranks are those of its low-rank part, before the magnitude vector rescales the sum of base and "
    "update."
)


def analyze_update(
    name: str,
    *,
    revision: str | None = None,
    base: str | None = None,
    base_revision: str | None = None,
    relative: bool = False,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> UpdateAnalysis:
    """Measures the update of a TAIA repository or a PEFT adapter, module by module, without loading the base model.

    The factors of a LoRA are read from the file one pair at a time, and their product is never made. Scaling, ranks by
    pattern, rank-stabilised scaling, transposed weights and experts' parameters are PEFT's own, because its layers are
    built (without weights) to ask them. Other additive methods give their difference through PEFT's `get_delta_weight`,
    one module at a time. Of a DoRA, the low-rank part is measured.

    Args:
        name: Hub id or folder of a TAIA repository or a PEFT adapter.
        revision: Its revision.
        base: Hub id or folder of the base model, where the one that is named there is not at hand.
        base_revision: Revision of that base model.
        relative: Whether norms of the base's weights are taken too, which reads (and downloads) those weights.
        token: Access token.
        trust_remote_code: Whether the base model's own code may run, to learn its structure.
        progress: Called with how far it is.

    Returns:
        Norms and ranks.

    Raises:
        RepositoryError: If files are missing, damaged or out of reach.
        UnsupportedUpdateError: If the method adds no matrix to the weights.
        UpdateMismatchError: If the update does not fit the base.

    Example:
        ```python
        found = analyze_update("org/model-taia", relative=True)
        found.by_role["attention"].relative_frobenius
        ```
    """
    access = hub.HubAccess(token=token)
    files = find_adapter(name, revision=revision, base=base, base_revision=base_revision, access=access)
    return analyze_files(files, access, relative=relative, trust_remote_code=trust_remote_code, progress=progress)


def find_adapter(name: str, *, access: hub.HubAccess, **where: Any) -> Repository:
    """Finds an update to measure, by the keywords of `open_repository`, and refuses one that is no PEFT adapter."""
    found = open_repository(name, access, **where)
    if found.kind is not PEFT:
        raise UnsupportedUpdateError(
            f"The update of '{name}' is a {found.kind.noun}; only PEFT adapters are measured.",
            "`taia info` shows what it holds, by role.",
        )
    return found.with_weights(access)


def analyze_files(
    files: Repository,
    access: hub.HubAccess,
    *,
    relative: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> UpdateAnalysis:
    """Measures an adapter that is on this disk already; see `analyze_update`."""
    method = str(getattr(files.settings.peft_type, "value", files.settings.peft_type))
    if method not in ADDITIVE:
        raise UnsupportedUpdateError(
            f"The update of this {method} adapter has no norm of its own: the method does not add a matrix to the "
            "base's weight, or one that depends on it.",
            f"Norms are given for {', '.join(ADDITIVE)}.",
        )

    def make() -> PreTrainedModel:
        return skeleton(files.base, access, trust_remote_code, features_only=files.features_only)

    read_base = base_reader(files.base, access, make)
    adapted = attach_weightless(make, files.folder, PEFT, files.settings, read_base=read_base)
    targets = {name: _target(site, layer) for name, site, layer in adapted.layers if _reason(layer) is None}
    weights = open_base(files.base, make(), access) if relative else None
    if weights:
        weights.require(targets.values())
    stored = read_header(files.folder / PEFT.weights) if adapted.streamed else None
    modules, unmeasured, dora = [], {}, False
    for done, (name, site, layer) in enumerate(adapted.layers):
        if progress:
            progress("update", done, len(adapted.layers))
        if reason := _reason(layer):
            unmeasured[site.path] = reason
            modules.append(ModuleUpdate(site.path, site.role, site.layer, site.method, site.parameters))
            continue
        dora = dora or "Dora" in _variant(layer)
        base = spectra.norms(_matrices(weights.read(targets[name]), layer)) if weights else (None, None)
        modules.append(_measured(name, site, layer, stored, base))
    if progress:
        progress("update", len(adapted.layers), len(adapted.layers))
    notes = [DORA_NOTE] if dora else []
    for reason in dict.fromkeys(unmeasured.values()):
        paths = [path for path, why in unmeasured.items() if why == reason]
        notes.append(f"No norms for {', '.join(paths[:3])}{' and others' if paths[3:] else ''}: {reason}.")
    return UpdateAnalysis(method, tuple(modules), tuple(notes))


def _measured(
    name: str,
    site: Site,
    layer: Any,
    stored: Mapping[str, StoredTensor] | None,
    base: tuple[float | None, float | None],
) -> ModuleUpdate:
    pair = _factors(name, layer, stored)
    if pair is None:
        delta = layer.get_delta_weight(ADAPTER).detach()
        matrix = _matrices(delta.to_dense() if delta.is_sparse else delta, layer)
        if matrix.is_meta:
            raise UnsupportedUpdateError(
                f"The update of '{site.path}' cannot be had without the base model's weights.", "Train a plain LoRA."
            )
        _require_numbers(site.path, matrix)
        found, shape, rank = spectra.spectrum_of_matrix(matrix), tuple(matrix.shape), None
    else:
        left, right = pair
        _require_numbers(site.path, left, right)
        found = spectra.spectrum_of_product(left, right, layer.scaling[ADAPTER])
        shape, rank = (*left.shape[:-1], right.shape[-1]), left.shape[-1]
    known = site.path, site.role, site.layer, site.method, site.parameters
    return ModuleUpdate(*known, shape, rank, **vars(found), base_frobenius=base[0], base_spectral=base[1])


def _require_numbers(path: str, *tensors: Tensor) -> None:
    if not all(torch.isfinite(tensor).all() for tensor in tensors):
        raise RepositoryError(
            f"The update of '{path}' holds values that are no numbers (nan or infinity).",
            "Its training diverged, or the file is damaged.",
        )


def _factors(name: str, layer: Any, stored: Mapping[str, StoredTensor] | None) -> tuple[Tensor, Tensor] | None:
    """Returns (M, r) and (r, N) factors of a LoRA layer, with a dimension of experts in front where it has them."""
    for down, up, ending in _PAIRS:
        if ADAPTER not in getattr(layer, down, ()):
            continue
        if stored is not None:
            a, b = (stored[f"{PREFIX}{name}.{part}{ending}"].read() for part in (down, up))
        else:
            a, b = (
                getattr(part[ADAPTER], "weight", part[ADAPTER]) for part in (getattr(layer, down), getattr(layer, up))
            )
        if a.is_meta or not hasattr(layer, "scaling") or hasattr(layer, "lora_E"):
            return None  # AdaLoRA scales each of its directions
        a, b = a.detach(), b.detach()
        if isinstance(layer, ParamWrapper) and layer.num_experts > 1:  # PEFT's layout: experts first in A, last in B
            a = a.reshape(layer.num_experts, -1, a.shape[-1])
            b = b.reshape(b.shape[0], -1, layer.num_experts).permute(2, 0, 1)
        elif a.ndim > 2:
            a, b = a.flatten(1), b.flatten(1)
        return b, a
    return None


def _reason(layer: Any) -> str | None:
    """Says why the update of a layer has no norms, or returns None where it has."""
    if not hasattr(layer, "get_delta_weight"):
        return "PEFT keeps a changed copy of them, not a difference"
    if getattr(layer.get_base_layer(), "groups", 1) > 1:
        return "grouped convolutions are not measured"
    variant = _variant(layer)
    if variant and not variant.startswith(_SAME_PRODUCT):
        raise UnsupportedUpdateError(
            f"The LoRA variant {variant.removesuffix('Variant')} is not the product of two factors, so its norms are "
            "not known here.",
            "Norms are given for LoRA, rank-stabilised LoRA and DoRA.",
        )
    return None


def _variant(layer: Any) -> str:
    variants: Mapping[str, Any] = getattr(layer, "lora_variant", {})
    return type(variants[ADAPTER]).__name__ if variants.get(ADAPTER) is not None else ""


def _target(site: Site, layer: Any) -> str:
    if isinstance(layer, ParamWrapper):
        return site.path
    return f"{site.path}.{'in_proj_weight' if isinstance(layer, MultiheadAttention) else 'weight'}"


def _matrices(weight: Tensor, layer: Any) -> Tensor:
    """Reads a weight as one matrix, or as one an expert; a convolution's kernel belongs to its inputs."""
    return weight if weight.ndim == 2 or isinstance(layer, ParamWrapper) else weight.flatten(1)
