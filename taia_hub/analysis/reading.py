"""From a name to the adapted layers of an update, without the base model's weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftType, TaskType
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from taia_hub import hub
from taia_hub.errors import UnsupportedUpdateError
from taia_hub.hub.layout import PEFT, UpdateKind
from taia_hub.repository.update_files import find_update
from taia_hub.roles.sublayers import find_sublayers
from taia_hub.switch.switch import Site
from taia_hub.updates import weightless
from taia_hub.updates.peft.adapter import ADAPTER, attach_switch
from taia_hub.updates.peft.methods import ADDITIVE
from taia_hub.weights import skeleton as structure


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

    def check(kind: UpdateKind) -> None:
        if kind is not PEFT:
            raise UnsupportedUpdateError(
                f"The update of '{name}' is a {kind.noun}; only PEFT adapters are measured.",
                "`taia info` shows what it holds, by role.",
            )

    found = find_update(name, revision=revision, base=base, base_revision=base_revision, access=access, check=check)
    return AdapterFiles(name, found.revision, found.folder, found.settings, found.base)


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
    features_only = files.config.task_type == TaskType.FEATURE_EXTRACTION
    return structure.skeleton(files.base, access, trust_remote_code, features_only=features_only)


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
    found = weightless.attach_offline(
        lambda: skeleton(files, access, trust_remote_code), files.folder, PEFT, files.config
    )
    return AdaptedLayers(found.layers, found.streamed)


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
    update = weightless.injected(model, files.config, files.folder)
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
    layers = {id(site): layer for _, site, layer in weightless.listed(model, sites)}
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
