"""Model cards: data in, text out. No network, no inference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from taia_hub.configuration_taia import PAPER

MARK = "<!-- Written by taia-hub. Remove this line to keep your own edits when the model is pushed again. -->"
"""Tells a card of ours, which a later push may replace, from one that somebody wrote."""


@dataclass(frozen=True)
class RolePart:
    """The update's part of one role.

    Attributes:
        modules: Number of adapted modules.
        parameters: Number of the update's parameters.
    """

    modules: int
    parameters: int


@dataclass(frozen=True)
class CardData:
    """What a model card says.

    Attributes:
        repo_id: The Hub id, or the folder's name.
        base_model: Hub id of the base model, or None while it is a local folder.
        base_revision: Commit sha of the base model, or None.
        method: PEFT's name of the update's method, as in `"LORA"`.
        parts: Role to the update's part of it.
        default: Label of the published setting.
        adapter_repo: Hub id of the repository that the update lies in, when it is another one.
        license_fields: `license`, `license_name`, `license_link` of the base model's card, as far as it has them.
        tags: More tags.
    """

    repo_id: str
    base_model: str | None
    base_revision: str | None
    method: str
    parts: Mapping[str, RolePart]
    default: str
    adapter_repo: str | None = None
    license_fields: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()


def render_card(data: CardData) -> str:
    """Renders a model card.

    Args:
        data: What the card says.

    Returns:
        Markdown with the metadata block that the Hub reads.
    """
    tags = ["taia", "peft", data.method.lower(), *data.tags]
    metadata: dict[str, Any] = {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys(tags)),
        **data.license_fields,
    }
    if data.base_model:
        metadata |= {"base_model": data.base_model, "base_model_relation": "adapter"}
        metadata["tags"].append(f"base_model:adapter:{data.base_model}")
    environment = Environment(
        loader=FileSystemLoader(templates_dir()),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    return environment.get_template("model_card.md.j2").render(
        metadata=ModelCardData(**metadata).to_yaml(), mark=MARK, paper=PAPER, card=data
    )


def is_generated(text: str) -> bool:
    """Tells whether a card was written by `render_card` and not adopted by somebody since."""
    return MARK in text


def templates_dir() -> Path:
    """Returns the folder of the templates: `taia_hub/_templates` in a wheel, `templates/` in a checkout."""
    package = Path(__file__).parents[1]
    packaged = package / "_templates"
    return packaged if packaged.is_dir() else package.parent / "templates"
