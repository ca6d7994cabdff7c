"""The YAML block at the head of a card, written by huggingface_hub's own card data classes."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub import DatasetCardData, EvalResult, ModelCardData, SpaceCardData

from taia_hub.cards import data as values
from taia_hub.cards.escaping import is_repo_id, plain
from taia_hub.cards.linking import SPACE_KEY
from taia_hub.cards.tables import MODE_WORDS
from taia_hub.errors import ConfigError
from taia_hub.hub.layout import DENSE, PEFT
from taia_hub.results import Results

_SHA = re.compile(r"[0-9a-f]{40}")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual")


def model_metadata(card: values.CardData) -> ModelCardData:
    """Makes the metadata of a TAIA repository's card.

    Args:
        card: What the card says.

    Returns:
        The metadata.

    Raises:
        ConfigError: If a language is no code.
    """
    metadata: dict[str, Any] = {
        "library_name": "peft" if card.update_kind == PEFT.name else "transformers",
        "pipeline_tag": "text-generation",
        "tags": [*dict.fromkeys(["taia", card.update_kind, card.method.lower(), *map(plain, card.tags)])],
        **_shared(card),
    }
    if card.base_model:
        relation = "finetune" if card.update_kind == DENSE.name else "adapter"
        metadata |= {"base_model": card.base_model, "base_model_relation": relation}
        metadata["tags"].append(f"base_model:{relation}:{card.base_model}")
    trained = card.training.datasets if card.training else ()
    ids = [name for name in (*card.datasets, *(one.id for one in trained)) if name and is_repo_id(name)]
    if ids:
        metadata["datasets"] = list(dict.fromkeys(ids))
    if card.training and card.training.co2_eq_emissions is not None:
        emissions = card.training.co2_eq_emissions
        metadata["co2_eq_emissions"] = _plain_values(emissions) if isinstance(emissions, Mapping) else emissions
    if is_repo_id(card.space):
        metadata[SPACE_KEY] = card.space
    if card.widget:
        lines = [[plain(line) for line in prompt.splitlines()] for prompt in card.widget]
        metadata["widget"] = [{"text": "\n".join(prompt).strip("\n")} for prompt in lines]
    return _with_results(metadata, card.repo_id, eval_results(card.results) if card.results else [])


def merged_metadata(card: values.MergedCardData) -> ModelCardData:
    """Makes the metadata of a merged model's card."""
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["taia", "merged", *map(plain, card.tags)],
        **_shared(card),
    }
    if card.base_model:
        metadata |= {"base_model": card.base_model, "base_model_relation": "merge"}
    found = eval_results(card.results) if card.results else []
    found = [one for one in found if (one.metric_args or {}).get("inference_modules") == plain(card.setting)]
    return _with_results(metadata, card.repo_id, found)


def mixture_metadata(card: values.MixtureCardData) -> DatasetCardData:
    """Makes the metadata of a data mixture's card."""
    sources = [f"extended|{part.id}" for part in card.parts if part.id and is_repo_id(part.id)]
    total = sum(part.items or 0 for part in card.parts)
    metadata: dict[str, Any] = {"tags": ["taia", "mixture", *map(plain, card.tags)], **_shared(card)}
    metadata["source_datasets"] = list(dict.fromkeys(sources)) or None
    if total and all(part.items is not None for part in card.parts):
        metadata["size_categories"] = [_size(total)]
    if card.splits:
        files = [{"split": plain(split), "path": plain(path)} for split, path in card.splits.items()]
        metadata["configs"] = [{"config_name": "default", "data_files": files}]
    return DatasetCardData(**metadata)


def space_metadata(card: values.SpaceCardData) -> SpaceCardData:
    """Makes the metadata of a Space's README."""
    pinned = []
    for name, files in card.preload.items():
        # The Hub splits an entry at spaces and its files at commas; without files it would take the sha for one.
        written = ",".join(file for file in files if not re.search(r"[\s,]", file))
        if is_repo_id(name) and written and _SHA.fullmatch(card.revisions.get(name, "")):
            pinned.append(f"{name} {written} {card.revisions[name]}")
    return SpaceCardData(
        title=plain(card.title),
        emoji=plain(card.emoji),
        colorFrom="blue",
        colorTo="yellow",
        sdk="gradio",
        sdk_version=plain(card.sdk_version),
        python_version=plain(card.python_version) if card.python_version else None,
        app_file=plain(card.app_file),
        license=plain(card.license) if card.license else None,
        models=[name for name in dict.fromkeys(card.models) if is_repo_id(name)] or None,
        tags=list(dict.fromkeys(["taia", *map(plain, card.tags)])),
        short_description=textwrap.shorten(plain(card.short_description or ""), 60, placeholder="…") or None,
        suggested_hardware=plain(card.hardware) if card.hardware else None,
        preload_from_hub=pinned or None,
    )


def eval_results(results: Results) -> list[EvalResult]:
    """Lists one result a task and mode for the model index; its metric names the mode.

    Args:
        results: What was evaluated.

    Returns:
        The results, in the order of the file; `metric_args` say task, setting and number of shots.
    """
    found = []
    for task in results.tasks.values():
        for label, mode in task.modes.items():
            metric, _, filtered = task.metric.partition(",")
            named = f"{MODE_WORDS[label].name}, {label}" if label in MODE_WORDS else label
            found.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type=plain(task.dataset.path),
                    dataset_name=plain(task.title),
                    dataset_config=plain(task.dataset.name) if task.dataset.name else None,
                    dataset_split=task.dataset.split,
                    dataset_revision=task.dataset.revision,
                    metric_type=plain(metric),
                    metric_name=plain(f"{metric} ({named}; {task.num_fewshot}-shot)"),
                    metric_value=round(mode.scores[task.metric], 6),
                    metric_args={
                        "task": plain(task.key),
                        "inference_modules": plain(label),
                        "num_fewshot": task.num_fewshot,
                        **({"filter": plain(filtered)} if filtered not in ("", "none") else {}),
                    },
                )
            )
    return found


def _shared(card: Any) -> dict[str, Any]:
    """Returns licence and languages, which every card has alike."""
    for code in card.language:
        if not _LANGUAGE.fullmatch(code):
            raise ConfigError(
                f"'{code}' is no code of a language.",
                "Give ISO 639 codes such as 'en', or 'multilingual'.",
            )
    fields: dict[str, Any] = {
        name: [plain(one) for one in value] if isinstance(value, list | tuple) else plain(value)
        for name, value in card.license_fields.items()
    }
    if card.language:
        fields["language"] = list(dict.fromkeys(card.language))
    return fields


def _with_results(metadata: dict[str, Any], name: str, results: list[EvalResult]) -> ModelCardData:
    if results:
        metadata |= {"model_name": plain(name).rpartition("/")[2] or plain(name), "eval_results": results}
    return ModelCardData(**metadata)


def _plain_values(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {plain(key): plain(value) if isinstance(value, str) else value for key, value in mapping.items()}


_BOUNDS = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def _size(items: int) -> str:
    names: Iterable[str] = (name for bound, name in _BOUNDS if items < bound)
    return next(iter(names), "1M<n<10M" if items < 10_000_000 else "n>10M")
