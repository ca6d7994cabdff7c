"""From a name to the adapted layers of an update, without the base model's weights."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType, TaskType
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from taia_hub import hub
from taia_hub.errors import ConfigError, RepositoryError, UnsupportedUpdateError
from taia_hub.repository_reading import read_taia_config, update_folder, verify_update
from taia_hub.sublayers import find_sublayers
from taia_hub.switch import Site
from taia_hub.updates.kinds import PEFT
from taia_hub.updates.peft import ADAPTER, PREFIX, PeftUpdate, attach_switch, attach_update, read_config

ADDITIVE = (
    "LORA",
    "ADALORA",
    "C3A",
    "DELORA",
    "FOURIERFT",
    "GRALORA",
    "LOHA",
    "LOKR",
    "PVERA",
    "RANDLORA",
    "SHIRA",
    "SUPERTUNING",
    "TINYLORA",
    "UNILORA",
    "VBLORA",
    "VERA",
    "WAVEFT",
)
"""PEFT's methods whose `get_delta_weight` is what they add to the weight, whatever the weight is (each is tested)."""

_FILES = (hub.CONFIG, hub.MANIFEST, hub.ADAPTER_CONFIG, hub.ADAPTER_WEIGHTS, "adapter/*")


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter on this disk, and the base model that it belongs to.

    Attributes:
        name: Hub id or folder as it was asked for.
        revision: Commit sha, or None for a folder.
        folder: Folder with `adapter_config.json` and `adapter_model.safetensors`.
        config: The adapter's configuration.
        base: The base model; only its configuration is on this disk.
    """

    name: str
    revision: str | None
    folder: Path
    config: PeftConfig
    base: hub.Source

    @property
    def weights(self) -> Path:
        """The adapter's safetensors file."""
        return self.folder / hub.ADAPTER_WEIGHTS


@dataclass(frozen=True)
class AdaptedPart:
    """What an update adapts of one role.

    Attributes:
        modules: Number of adapted modules.
        parameters: Number of the update's parameters.
        ranks: The ranks of its LoRA layers; other methods and saved copies have none.
    """

    modules: int
    parameters: int
    ranks: frozenset[int]


@dataclass(frozen=True)
class AdaptedLayers:
    """The adapted layers of a model without weights.

    Attributes:
        layers: Name in the injected model, site, and PEFT's layer, of each adapted module.
        streamed: Whether the layers are on the meta device and their tensors are to be read from the file; otherwise
            they hold them.
    """

    layers: tuple[tuple[str, Site, Any], ...]
    streamed: bool


def open_adapter(
    name: str,
    *,
    revision: str | None = None,
    base: str | None = None,
    base_revision: str | None = None,
    access: hub.HubAccess,
) -> AdapterFiles:
    """Finds the adapter of a TAIA repository, or a plain PEFT adapter.

    Args:
        name: Hub id or folder of either.
        revision: Its revision.
        base: Hub id or folder of the base model, where it is not the one that the repository names.
        base_revision: Revision of the base model.
        access: How to reach the Hub.

    Returns:
        Where it is and what it belongs to.

    Raises:
        TAIAError: If it is neither, is damaged, or names no base model.
    """
    source = hub.fetch(name, _FILES, revision=revision, access=access, what="TAIA repository or adapter")
    if (source.folder / hub.ADAPTER_CONFIG).is_file():
        folder = source.folder
        hub.adapter_weights(folder)
        config = read_config(folder)
        named, fixed = config.base_model_name_or_path, config.revision
    elif (source.folder / hub.CONFIG).is_file():
        repository = read_taia_config(source.folder / hub.CONFIG, name)
        if repository.place.kind is not PEFT:
            raise UnsupportedUpdateError(
                f"The update of '{name}' is a {repository.place.kind.noun}; only PEFT adapters are measured.",
                "`taia info` shows what it holds, by role.",
            )
        folder = update_folder(source, repository, access)
        verify_update(source.folder, folder, repository)
        config = read_config(folder)
        named, fixed = repository.base_model_name_or_path, repository.base_model_revision
    else:
        raise RepositoryError(
            f"'{name}' holds neither a {hub.CONFIG} nor an {hub.ADAPTER_CONFIG}.",
            "Give a TAIA repository, or the repository or folder of a PEFT adapter.",
        )
    if base or named:
        where = hub.resolve_base(base or str(named), base_revision if base else fixed, access)
        return AdapterFiles(name, source.revision, folder, config, where)
    raise ConfigError(f"'{name}' names no base model.", "Say which one it belongs to with `base` (--base).")


def skeleton(files: AdapterFiles, access: hub.HubAccess, trust_remote_code: bool = False) -> PreTrainedModel:
    """Builds the base model on the meta device, without weights.

    Args:
        files: The adapter and its base model.
        access: How to reach the Hub.
        trust_remote_code: Whether the base model's own code may run.

    Returns:
        The base model, without its head where the adapter was trained on such.

    Raises:
        RepositoryError: If the base model's configuration cannot be read.
    """
    auto = AutoModel if files.config.task_type == TaskType.FEATURE_EXTRACTION else AutoModelForCausalLM
    with hub.hub_errors(files.base.name, what="base model", revision=files.base.revision):
        config = AutoConfig.from_pretrained(
            files.base.name, revision=files.base.revision, token=access.token, trust_remote_code=trust_remote_code
        )
        with torch.device("meta"):
            model: PreTrainedModel = auto.from_config(config, trust_remote_code=trust_remote_code)
    return model


def adapted_layers(files: AdapterFiles, access: hub.HubAccess, trust_remote_code: bool = False) -> AdaptedLayers:
    """Injects an adapter into its base model without weights, and checks that they fit together.

    A LoRA whose file names the very tensors that PEFT expects is left in its file. Everything else (other methods, old
    checkpoints that PEFT converts, files that do not fit) goes through the strict load.

    Args:
        files: The adapter and its base model.
        access: How to reach the Hub.
        trust_remote_code: Whether the base model's own code may run.

    Returns:
        The adapted layers.

    Raises:
        UnsupportedUpdateError: If the method adds nothing to the weights that could be measured alone.
        UpdateMismatchError: If the adapter does not fit the base model.
    """
    kind = str(getattr(files.config.peft_type, "value", files.config.peft_type))
    if kind not in ADDITIVE:
        raise UnsupportedUpdateError(
            f"The update of this {kind} adapter has no norm of its own: the method does not add a matrix to the base's "
            "weight, or one that depends on it.",
            f"Norms are given for {', '.join(ADDITIVE)}.",
        )
    model = skeleton(files, access, trust_remote_code)
    roles, own = find_sublayers(model), set(model.state_dict())
    update = _injected(model, files) if files.config.peft_type == PeftType.LORA else None
    if update is not None and _fits(update, files.weights, own):
        switch = attach_switch(update.head_model, roles.roles, "all", roles.unplaced)
        return AdaptedLayers(_listed(update.head_model, switch.sites), streamed=True)
    model = skeleton(files, access, trust_remote_code)
    _give_zeros(model, files.weights)
    update, switch = attach_update(
        model, files.folder, roles=roles.roles, unplaced=roles.unplaced, inference_modules="all"
    )
    return AdaptedLayers(_listed(update.head_model, switch.sites), streamed=False)


def lora_parts(
    files: AdapterFiles, access: hub.HubAccess, trust_remote_code: bool = False
) -> dict[str, AdaptedPart] | None:
    """Says what a LoRA adapts by role, from configurations alone: neither its weights nor the base's are needed.

    Args:
        files: The adapter, of which only `adapter_config.json` need be there, and its base model.
        access: How to reach the Hub.
        trust_remote_code: Whether the base model's own code may run.

    Returns:
        Role to what is adapted; None for other methods, and for a LoRA that PEFT cannot put on this base.
    """
    if files.config.peft_type != PeftType.LORA:
        return None
    model = skeleton(files, access, trust_remote_code)
    roles = find_sublayers(model)
    update = _injected(model, files)
    if update is None:
        return None
    switch = attach_switch(update.head_model, roles.roles, "all", roles.unplaced)
    return parts_by_role(update.head_model, switch.sites)


def parts_by_role(model: nn.Module, sites: Sequence[Site]) -> dict[str, AdaptedPart]:
    """Says what the adapted layers of a model are by role.

    Args:
        model: The model inside PEFT's wrapper, with a switch.
        sites: The switch's sites.

    Returns:
        Role to what is adapted.
    """
    found: dict[str, AdaptedPart] = {}
    # A module of a full fine-tune is no layer of PEFT, so that only its site is known.
    layers = {id(site): layer for _, site, layer in _listed(model, sites)}
    for site in sites:
        layer: Any = layers.get(id(site))
        before = found.get(site.role, AdaptedPart(0, 0, frozenset()))
        is_lora = isinstance(layer, LoraLayer) and not isinstance(layer, AdaLoraLayer)
        # AdaLoRA keeps a number beside its factors that it never saves
        unsaved = sum(one.numel() for one in getattr(layer, "ranknum", nn.ParameterDict()).values())
        found[site.role] = AdaptedPart(
            before.modules + 1,
            before.parameters + site.parameters - unsaved,
            before.ranks | ({int(layer.r[ADAPTER])} if is_lora else set()),
        )
    return found


def header(path: Path) -> dict[str, tuple[int, ...]]:
    """Reads the shapes of the tensors of a safetensors file; no tensor is read.

    Args:
        path: The file.

    Returns:
        Name of a tensor to its shape.
    """
    with safe_open(path, framework="pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping


def _injected(model: PreTrainedModel, files: AdapterFiles) -> PeftUpdate | None:
    """Injects a LoRA without its weights; returns None where PEFT cannot."""
    try:
        return PeftUpdate(PeftModel(model, files.config, low_cpu_mem_usage=True), files.folder)
    except (TypeError, AttributeError, ValueError, RuntimeError, KeyError):
        return None  # the strict load meets the same, and says it in our words


def _fits(update: PeftUpdate, weights: Path, own: Collection[str]) -> bool:
    """Tells whether a LoRA's file holds exactly what PEFT expects; `own` are the names of the base's tensors."""
    try:
        expected = {key: tuple(tensor.shape) for key, tensor in update.parameters().items()}
    except (TypeError, AttributeError, ValueError, RuntimeError, KeyError):
        return False
    found = {
        key: shape
        for key, shape in header(weights).items()
        # PEFT saves copies of adapted embeddings along; they are no part of the update
        if key in expected or key.removeprefix(PREFIX).replace(".base_layer", "") not in own
    }
    return found == expected


def _give_zeros(model: nn.Module, weights: Path) -> None:
    """Puts zeros that take no memory in the place of weights, so that PEFT keeps the update off the meta device.

    Parameters that the file holds too stay on the meta device: their values cannot be compared.
    """
    held = {key.removeprefix(PREFIX) for key in header(weights)}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if f"{path}.{name}" not in held:
                zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                setattr(module, name, nn.Parameter(zeros, requires_grad=False))


def _listed(model: nn.Module, sites: Any) -> tuple[tuple[str, Site, Any], ...]:
    return tuple(
        (name, sites[layer._taia_site], layer)
        for name, layer in model.named_modules()
        if getattr(layer, "_taia_site", None) is not None
    )
