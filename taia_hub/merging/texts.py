"""What a merged checkpoint needs beside its weights: configurations, index, tokenizer and card."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load

from taia_hub import cards, hub
from taia_hub.merging.planning import MergePlan
from taia_hub.offline import OfflineUpdate
from taia_hub.publishing import save_tokenizer
from taia_hub.updates.dense_checkpoint import INDEX, SINGLE, Checkpoint

logger = logging.getLogger(__name__)

_GENERATION = "generation_config.json"
_LICENSE = ("license", "license_name", "license_link")


def write_texts(
    folder: Path,
    plan: MergePlan,
    update: OfflineUpdate,
    checkpoint: Checkpoint,
    digests: Mapping[str, str],
    *,
    name: str,
    access: hub.HubAccess,
) -> None:
    """Writes all files beside the shards.

    Args:
        folder: Folder of the merged checkpoint.
        plan: What was written.
        update: The update.
        checkpoint: The base model.
        digests: Name of each shard to its sha256.
        name: What the card calls the model.
        access: How to reach the Hub.

    Raises:
        RepositoryError: If the Hub cannot be reached, or a file cannot be written.
    """
    _write_json(folder / hub.CONFIG, merged_config(hub.read_json(checkpoint.folder / hub.CONFIG), plan))
    if set(plan.shards) != {SINGLE}:
        placed = {piece.name: file for file, pieces in plan.shards.items() for piece in pieces}
        _write_json(
            folder / INDEX, {"metadata": {"total_size": plan.bytes}, "weight_map": dict(sorted(placed.items()))}
        )
    files = update.files
    own = files.root
    if files.revision:
        wanted = (_GENERATION, *hub.TOKENIZER_FILES)
        own = hub.fetch(files.name, wanted, revision=files.revision, access=access).folder
    for place in (files.root, own, checkpoint.folder):
        if (place / _GENERATION).is_file():
            shutil.copyfile(place / _GENERATION, folder / _GENERATION)
            break
    if "auto_map" in hub.read_json(folder / hub.CONFIG):
        for path in checkpoint.folder.glob("*.py"):
            shutil.copyfile(path, folder / path.name)
    _write_tokenizer(folder, own if _is_of(own, plan, update) else None, checkpoint.folder, update, access)
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
            taia_version=_version(),
            license_fields=_license(update.base, access),
        )
    )
    (folder / hub.CARD).write_text(text, encoding="utf-8")


def merged_config(values: Mapping[str, Any], plan: MergePlan) -> dict[str, Any]:
    """Makes `config.json` of a merged checkpoint from that of the base; what is not concerned stays as it is.

    Args:
        values: The base's.
        plan: What was written.

    Returns:
        Its contents.
    """
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


def _write_tokenizer(folder: Path, own: Path | None, base: Path, update: OfflineUpdate, access: hub.HubAccess) -> None:
    if own is None and not any(next(base.glob(pattern), None) for pattern in hub.TOKENIZER_FILES):
        return  # transformers makes an empty tokenizer of some model types where there are no files
    config = copy.deepcopy(update.config)
    config.base_model_name_or_path, config.base_model_revision = update.base.name, update.base.revision
    save_tokenizer(config, folder, access.token, source=own)


def _is_of(own: Path, plan: MergePlan, update: OfflineUpdate) -> bool:
    """Tells whether the tokenizer beside the update is that of the merged model, whose vocabulary may be the base's."""
    if not (own / "tokenizer_config.json").is_file():
        return False
    resized = getattr(update.update, "config", None)
    return plan.vocabulary is not None or not (isinstance(resized, Mapping) and resized.get("resized"))


def _license(base: hub.Source, access: hub.HubAccess) -> dict[str, Any]:
    source = hub.fetch(base.name, [hub.CARD], revision=base.revision, access=access, what="base model")
    path = source.folder / hub.CARD
    try:
        found = metadata_load(path) if path.is_file() else None
    except ValueError as error:
        logger.warning("The licence of '%s' is left out: its card has no metadata that can be read (%s).", base, error)
        return {}
    return {key: found[key] for key in _LICENSE if found.get(key)} if found else {}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _version() -> str:
    from taia_hub import __version__  # the package imports this module's users

    return __version__
