"""An update attached to its base's structure on the meta device, without weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel, PeftType
from torch import nn
from transformers import PreTrainedModel

from taia_hub.hub.layout import PEFT, UpdateKind
from taia_hub.roles.sublayers import SublayerRoles, find_sublayers
from taia_hub.switch.switch import Site, Switch
from taia_hub.updates.attaching import Update, attach
from taia_hub.updates.options import AttachOptions
from taia_hub.updates.peft.carried import ReadBase, find_carried, passed_by, stood_in, tuned_modules
from taia_hub.updates.peft.fitting import fitted
from taia_hub.updates.peft.plain_lora import LeanLora, read_lean
from taia_hub.updates.peft.update import PeftUpdate, attach_switch
from taia_hub.weights.checkpoint import StoredTensor, read_header
from taia_hub.weights.skeleton import give_zeros

Entry = tuple[str, Site, Any]
"""Name of an adapted module in the injected model, its site, and its layer."""


@dataclass(frozen=True)
class Attached:
    """An update attached to a model without weights.

    Attributes:
        layers: Name in the injected model, site and layer of each adapted module: PEFT's layer, the module itself
            where a full fine-tune replaces its tensors, or a `LoraPair`.
        streamed: Whether the layers are on the meta device and their tensors are read from the file one at a time;
            otherwise the layers hold them.
    """

    update: Update | LeanLora
    switch: Switch
    layers: tuple[Entry, ...]
    streamed: bool


@dataclass(frozen=True)
class Injected:
    """A LoRA in its base's structure.

    Attributes:
        resized: The modules with another number of rows, as of `Carried`.
        passed: Names of the tensors in the file that nothing reads.
    """

    update: PeftUpdate
    resized: Mapping[str, int]
    passed: frozenset[str]

    def fits(self, stored: Mapping[str, StoredTensor]) -> bool:
        """Tells whether the file holds exactly what PEFT expects."""
        try:
            expected = {key: tuple(tensor.shape) for key, tensor in self.update.parameters().items()}
        except (TypeError, AttributeError, ValueError, RuntimeError, LookupError):
            return False
        return {key: one.shape for key, one in stored.items() if key not in self.passed} == expected

    def switched(self, roles: SublayerRoles) -> Switch:
        """Makes its layers obey a new switch."""
        model, tuned = self.update.head_model, self.update.tuned
        return attach_switch(model, roles.roles, "all", roles.unplaced, tuned, self.resized)


def attach_weightless(
    make: Callable[[], PreTrainedModel],
    folder: Path,
    kind: UpdateKind,
    settings: Any,
    *,
    read_base: ReadBase,
    lean: bool = False,
) -> Attached:
    """Attaches an update to a model without weights, and checks that they fit together.

    A LoRA whose file names the very tensors that PEFT expects is left in its file, and so are full fine-tunes.
    Everything else (other methods, old checkpoints that PEFT converts, files that do not fit) goes through the strict
    load, on a second model of `make`. `read_base` gives the base's weights, which few files ask for. `lean` reads a
    LoRA of linear layers without PEFT's layers: enough to export, not to merge.
    """
    model = make()
    roles = find_sublayers(model)
    if kind is PEFT and settings.peft_type == PeftType.LORA:
        stored = read_header(folder / PEFT.weights)
        if lean and (read := read_lean(model, settings, folder, roles, stored, read_base)) is not None:
            return Attached(read, read.switch, read.layers, streamed=True)
        lora: Any = injected(model, settings, folder, stored, read_base)
        if lora is not None and lora.fits(stored):
            switch = lora.switched(roles)
            return Attached(lora.update, switch, listed(lora.update.head_model, switch.sites), streamed=True)
        model = make()
    if kind is PEFT:
        give_zeros(model)
    options = AttachOptions(roles.roles, roles.unplaced, "all", read_base=read_base)
    update, switch = attach(model, folder, kind, options)
    return Attached(update, switch, listed(update.head_model, switch.sites), streamed=kind is not PEFT)


def injected(
    model: nn.Module, config: Any, folder: Path, stored: Mapping[str, StoredTensor], read_base: ReadBase | None = None
) -> Injected | None:
    """Injects a LoRA without its weights into a base model on the meta device, which is changed in place.

    `stored` are the tensors of its file. Returns None where PEFT cannot, which the strict load says in our words.
    """
    shapes = {key: one.shape for key, one in stored.items()}
    try:
        fit = fitted(config, shapes, model)
    except (TypeError, AttributeError, re.error):
        return None
    if not fit.has_its_names:
        return None
    carried, config = find_carried(model, config, shapes), fit.config
    try:
        with stood_in(model, carried) as stand_ins:
            update = PeftUpdate(PeftModel(model, config, low_cpu_mem_usage=True), folder)
    except (TypeError, AttributeError, ValueError, RuntimeError, LookupError, ArithmeticError, ImportError, re.error):
        return None
    update.resized = carried.resized_parameters
    update.tuned = tuned_modules(update.head_model, carried, stand_ins, stored, read_base)
    return Injected(update, carried.resized, passed_by(update.head_model, carried, update.tuned))


def listed(model: nn.Module, sites: Sequence[Site]) -> tuple[Entry, ...]:
    """Lists the adapted modules of a model inside PEFT's wrapper: name in it, site of its switch, and layer."""
    return tuple(
        (name, sites[layer._taia_site], layer)
        for name, layer in model.named_modules()
        if getattr(layer, "_taia_site", None) is not None
    )
