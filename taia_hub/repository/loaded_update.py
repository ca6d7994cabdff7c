"""The update of a loaded model as files, which exports and merges start from."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora.layer import LoraLayer

from taia_hub import hub
from taia_hub.errors import UnsupportedUpdateError
from taia_hub.hub.layout import UpdatePlace
from taia_hub.repository.tokenizer import copy_tokenizer
from taia_hub.repository.update_files import Repository, own_tokenizer
from taia_hub.updates.attaching import Update
from taia_hub.updates.peft.plain_lora import lora_scaling
from taia_hub.updates.peft.strict import ADAPTER


@contextlib.contextmanager
def files_of(model: Any, access: hub.HubAccess) -> Iterator[Repository]:
    """Gives the files of a loaded model's update; one that was trained on is written to a temporary folder.

    A scaling that was changed in memory is refused, because no file of the update can say it.
    """
    update, config = model._taia_update, model.taia_config
    check_scaling(update)
    base = hub.resolve_base(config.base_model_name_or_path, config.base_model_revision, access)
    with tempfile.TemporaryDirectory(prefix="taia-update-") as scratch:
        root, folder = Path(scratch), update.source
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(root)
        revision = getattr(config, "_commit_hash", None)  # only a repository of the Hub has one
        if not update.is_unchanged():
            revision, folder = None, root / update.kind.folder
            update.save(folder)
        if own := own_tokenizer(model._taia_places):
            copy_tokenizer(own, root)
        yield Repository(
            name=config._name_or_path if revision else "a loaded model",
            revision=revision,
            config=config,
            root=root,
            holder=hub.Source(str(folder), folder, None),
            place=UpdatePlace(update.kind, ""),
            base=base,
        )


def check_scaling(update: Update) -> None:
    """Refuses a LoRA layer whose scaling is not what its rank and alpha give, as a file would."""
    for path, layer in update.head_model.named_modules():
        if not isinstance(layer, LoraLayer) or ADAPTER not in layer.scaling:
            continue
        rank, alpha, scaling = layer.r[ADAPTER], layer.lora_alpha[ADAPTER], float(layer.scaling[ADAPTER])
        if isinstance(layer, AdaLoraLayer):  # it divides by the rank that is left, in each forward
            expected = float(alpha if alpha > 0 else rank)
        else:
            expected = lora_scaling(alpha, rank, update.settings.get("use_rslora", False))
        if scaling != expected:
            raise UnsupportedUpdateError(
                f"The scaling of '{path}' was changed to {scaling:g}, which no file of the update can say.",
                f"Set it back to {expected:g}; to weaken an update, give the setting a weight: {{'attention': 0.5}}.",
            )
