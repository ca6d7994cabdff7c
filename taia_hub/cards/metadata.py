"""The YAML block at the head of a card, written by huggingface_hub's own card data classes."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData, SpaceCardData

from taia_hub.cards import data as values
from taia_hub.cards.escaping import is_repo_id, plain
from taia_hub.cards.linking import SPACE_KEY
from taia_hub.cards.tables import MODE_WORDS
from taia_hub.errors import ConfigError
from taia_hub.hub.layout import DENSE, PEFT
from taia_hub.results import Results
from taia_hub.results.retained import HOLDOUT, is_retention

LIBRARY = "taia-hub"
"""What loads a TAIA repository.

With `peft` the Hub looks for an adapter at the root, to count downloads and to show how to load it; with `transformers`
it offers engines that know no `model_type` taia. No library's name is a tag either: the Hub takes it for one, too.
"""

_SHA = re.compile(r"[0-9a-f]{40}")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual")


def model_metadata(card: values.CardData) -> ModelCardData:
    """Makes the metadata of a TAIA repository's card, and refuses a language that is no code."""
    metadata: dict[str, Any] = {
        "library_name": PEFT.name if card.is_plain_adapter else LIBRARY,
        "pipeline_tag": "text-generation",
        "tags": [*dict.fromkeys(["taia", card.method.lower(), *map(plain, card.tags)])],
        **_license(card),
    }
    for code in card.language:
        if not _LANGUAGE.fullmatch(code):
            raise ConfigError(
                f"'{code}' is no code of a language.", "Give ISO 639 codes such as 'en', or 'multilingual'."
            )
    if card.language:
        metadata["language"] = list(dict.fromkeys(card.language))
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
    if card.results and (found := eval_results(card.results)):
        metadata |= {"model_name": plain(card.repo_id).rpartition("/")[2] or plain(card.repo_id), "eval_results": found}
    return ModelCardData(**metadata)


def merged_metadata(card: values.MergedCardData) -> ModelCardData:
    """Makes the metadata of a merged model's card."""
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["taia", "merged"],
        **_license(card),
    }
    if card.base_model:
        metadata |= {"base_model": card.base_model, "base_model_relation": "finetune"}  # merge: of several
    return ModelCardData(**metadata)


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

    Their `metric_args` say task, setting and number of shots. What a mode gains on a training's own items, and keeps of
    the base, is left out: no other model could be compared by it.
    """
    found = []
    for task in results.tasks.values():
        if task.name == HOLDOUT or is_retention(task.name):
            continue
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


def _license(card: values.CardData | values.MergedCardData) -> dict[str, Any]:
    return {
        name: [plain(one) for one in value] if isinstance(value, list | tuple) else plain(value)
        for name, value in card.license_fields.items()
    }


def _plain_values(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {plain(key): plain(value) if isinstance(value, str) else value for key, value in mapping.items()}
