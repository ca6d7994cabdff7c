"""What a merged checkpoint needs beside its weights: configurations, index, tokenizer and card."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taia_hub import cards, hub
from taia_hub._version import __version__
from taia_hub.hub.config import RepositoryConfig
from taia_hub.merging.planning import MergePlan
from taia_hub.repository.opening import OpenedUpdate
from taia_hub.repository.reading import base_license
from taia_hub.repository.tokenizer import save_tokenizer
from taia_hub.repository.update_files import own_tokenizer
from taia_hub.weights.checkpoint import SINGLE, Checkpoint


def write_texts(
    folder: Path,
    plan: MergePlan,
    update: OpenedUpdate,
    checkpoint: Checkpoint,
    digests: Mapping[str, str],
    *,
    name: str,
    access: hub.HubAccess,
    trust_remote_code: bool = False,
) -> tuple[str, ...]:
    """Writes all files beside the shards into the folder of the merged checkpoint; returns what to know of them."""
    _write_json(folder / hub.CONFIG, _merged_config(hub.read_json(checkpoint.folder / hub.CONFIG), plan))
    if set(plan.shards) != {SINGLE}:
        placed = {piece.name: file for file, pieces in plan.shards.items() for piece in pieces}
        _write_json(
            folder / hub.MODEL_INDEX,
            {"metadata": {"total_size": plan.bytes}, "weight_map": dict(sorted(placed.items()))},
        )
    files = update.files
    if (generation := files.generation) is not None:
        shutil.copyfile(generation, folder / hub.GENERATION)
    config = RepositoryConfig(update.base.name, update.base.revision)
    own = own_tokenizer(files.places) if _fits(plan, update) else None
    notes = []
    # transformers makes an empty tokenizer of some model types where there are no files
    if own is not None or any(next(checkpoint.folder.glob(pattern), None) for pattern in hub.TOKENIZER_FILES):
        why = save_tokenizer(config, folder, access.token, own=own, trust_remote_code=trust_remote_code)
        if why is not None:
            notes.append(f"The tokenizer is left out, because it could not be loaded: {why}")
    written = [folder / name for name in (hub.CONFIG, hub.TOKENIZER_CONFIG) if (folder / name).is_file()]
    if any("auto_map" in hub.read_json(path) for path in written):
        for path in checkpoint.folder.glob("*.py"):
            shutil.copyfile(path, folder / path.name)
    text = cards.render_card(
        cards.MergedCardData(
            repo_id=name,
            base_model=update.base.name if update.base.revision else None,
            base_revision=update.base.revision,
            source=files.name if files.revision else None,
            source_revision=files.revision,
            setting=plan.setting,
            dtype=str(plan.dtype).removeprefix("torch."),
            sha256=dict(sorted(digests.items())),
            taia_version=__version__,
            license_fields=base_license(config, access.token),
        )
    )
    (folder / hub.CARD).write_text(text, encoding="utf-8")
    return tuple(notes)


def _merged_config(values: Mapping[str, Any], plan: MergePlan) -> dict[str, Any]:
    """Makes `config.json` of a merged checkpoint from that of the base; what is not concerned stays as it is."""
    made = copy.deepcopy(dict(values))
    for key in ("_name_or_path", "_commit_hash", "quantization_config"):
        made.pop(key, None)
    inner = made.get("text_config")
    dtype = str(plan.dtype).removeprefix("torch.")
    made["torch_dtype" if "torch_dtype" in made else "dtype"] = dtype
    for one in (made, *([inner] if isinstance(inner, dict) else [])):
        for key in ("torch_dtype", "dtype"):
            if key in one:
                one[key] = dtype
        if plan.untied and (one is made or "tie_word_embeddings" in one):
            one["tie_word_embeddings"] = False
        if plan.vocabulary is not None and "vocab_size" in one:
            one["vocab_size"] = plan.vocabulary
    return made


def _fits(plan: MergePlan, update: OpenedUpdate) -> bool:
    """Tells whether the update's tokenizer is that of the merged model, whose vocabulary may be the base's."""
    return plan.vocabulary is not None or not update.resized


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
