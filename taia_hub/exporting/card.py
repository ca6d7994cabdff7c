"""The model card of an export: which mode of which TAIA repository it is, and how engines load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData

from taia_hub import cards
from taia_hub.exporting.assembly import base_name
from taia_hub.exporting.report import ExportReport
from taia_hub.hub.config import PAPER
from taia_hub.repository.opening import OpenedUpdate
from taia_hub.switch.settings import parse_setting

TAGS = ("taia", "export", "lora")
"""Tell the card of an export, and so a repository of our exports, from other cards."""


def export_card(
    report: ExportReport,
    update: OpenedUpdate,
    place: str,
    licence: Mapping[str, str | list[str]],
    others: Mapping[str, str] | None = None,
) -> str:
    """Renders the card of an export, with the marks that let a later push keep a person's edits.

    `place` is the Hub id, or the folder on this disk, that it is loaded from; `others` are modes of the same update to
    the Hub ids that they have.
    """
    flags = " ".join(note for note in report.verdicts["vllm"].notes if note.startswith("--"))
    values = {"report": report, "label": _label(report), "flags": flags, "others": others or {}}
    return _rendered("export.md.j2", update, place, licence, **values)


def index_card(reports: Mapping[str, ExportReport], update: OpenedUpdate, place: str) -> str:
    """Renders the card above several exports on this disk, which lie in the sub-folders named."""
    rows = [(folder, _label(report), report) for folder, report in reports.items()]
    return _rendered("exports.md.j2", update, place, {}, rows=rows)


def _rendered(
    template: str, update: OpenedUpdate, place: str, licence: Mapping[str, str | list[str]], **values: Any
) -> str:
    base, revision, features_only = base_name(update), update.base.revision, update.files.features_only
    metadata: dict[str, Any] = {"library_name": "peft", "tags": [*TAGS]}
    metadata["pipeline_tag"] = "feature-extraction" if features_only else "text-generation"
    if revision is not None:  # the Hub refuses a folder
        metadata |= {"base_model": base, "base_model_relation": "adapter", **licence}
        metadata["tags"].append(f"base_model:adapter:{base}")
    body = (
        cards.environment_for(None)
        .get_template(template)
        .render(
            place=place,
            source=update.files.name,
            source_revision=update.files.revision,
            base=base,
            base_revision=revision,
            model_class="AutoModel" if features_only else "AutoModelForCausalLM",
            paper=PAPER,
            **values,
        )
    )
    return cards.marked_card(ModelCardData(**metadata), body)


def _label(report: ExportReport) -> str:
    return parse_setting(report.setting).label
