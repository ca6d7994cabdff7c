"""Taking a switch off again: a loaded model becomes one of its plain base class, with what acts folded in."""

from __future__ import annotations

from typing import Any

import torch

from taia_hub.errors import UnsupportedUpdateError
from taia_hub.switch.calls import CHANGING
from taia_hub.switch.switch import KeepSetting, Switch
from taia_hub.updates import fusing
from taia_hub.updates.fusing import FoldedModule
from taia_hub.updates.peft.layers import FusedLayer
from taia_hub.updates.peft.strict import WRAPPERS

_OURS = (
    *("_taia_fused", "_taia_places", "_taia_switch", "_taia_update"),
    *("_hf_peft_config_loaded", "peft_config", "taia_config"),
)
_MERGE = "Write a merged model instead: `model.merge(folder, mode)`."


def unload(model: Any, inference_modules: Any, safe: bool = False) -> Any:
    """Folds a setting into the weights, as `fuse` does, and takes switch and update off; the object stays the same.

    Args:
        model: A loaded model, which is changed in place.
        inference_modules: The setting.
        safe: Whether values that are not finite are refused, and the model left as it was.

    Returns:
        The model, of its base's own class.

    Raises:
        SettingError: As in `fuse`; nothing was changed.
        UnsupportedUpdateError: If an acting update cannot be folded, or where `safe`; nothing was changed.
    """
    switch: Switch = model._taia_switch
    acting = switch.resolve(inference_modules)
    resized = {name.rpartition(".")[0] for name in getattr(model._taia_update, "resized", ())}
    if any(weight and site.path in resized for site, weight in zip(switch.sites, acting.weights, strict=True)):
        raise UnsupportedUpdateError("The update has another vocabulary than the model in memory.", _MERGE)
    with CHANGING, torch.no_grad(), switch.calls.between("unloaded"):  # no call comes between folding and taking off
        was_fused = switch.fused is not None
        fusing.fuse(model, inference_modules)
        head = model._taia_update.head_model
        try:
            if safe:
                _check_finite(head)
        except BaseException:  # also where the memory does not suffice
            if not was_fused:
                fusing.unfuse(model)
            raise
        _strip(model, head)
    return model


def _check_finite(head: Any) -> None:
    for path, module in head.named_modules():
        if isinstance(module, FoldedModule):
            for name in module._taia_own:
                if not bool(getattr(module, name).isfinite().all()):
                    raise UnsupportedUpdateError(
                        f"Merged, '{WRAPPERS.sub('', path)}.{name}' holds values that are not finite; the model is as "
                        "it was.",
                        "Choose another mode, or look at the update: `taia analyze`.",
                    )


def _strip(model: Any, head: Any) -> None:
    """Leaves of a fused model its plain modules with the tensors that they show."""
    model._taia_fused.handle.remove()
    for module in list(head.modules()):
        if isinstance(module, FoldedModule):
            del module.__dict__["_taia_own"]
            module.__class__ = module._taia_parts[1]
        if "_taia_tuned" in module.__dict__:
            for name in ("_taia_switch", "_taia_site", "_taia_tuned"):
                del module.__dict__[name]
        if isinstance(function := module.__dict__.get("_gradient_checkpointing_func"), KeepSetting):
            module._gradient_checkpointing_func = function.checkpoint
        for name, child in module._modules.items():
            while isinstance(child, FusedLayer):
                child = child.inside
            module._modules[name] = child
    for name in _OURS:
        model.__dict__.pop(name, None)
    model.__class__ = type(model)._taia_parts[1]
    one, other = head.get_input_embeddings(), head.get_output_embeddings()
    if other is not None and getattr(one, "weight", None) is not getattr(other, "weight", None):
        for config in (head.config, head.config.get_text_config()):
            config.tie_word_embeddings = False  # the update may have acted on one of them alone
