"""Prompts to try: those of the model's card."""

from __future__ import annotations

import yaml
from huggingface_hub import metadata_load

from taia_hub import hub
from taia_hub.errors import TAIAError

EXAMPLES = (
    "Explain in two sentences why the sky is blue.",
    "A train leaves at 9:40 and arrives at 11:15. How long is the journey?",
    "Write a polite reply to a customer whose parcel is late.",
)
_MOST = 6


def card_examples(name: str, revision: str | None = None, token: str | bool | None = None) -> tuple[str, ...]:
    """Reads the example prompts of a repository's card: those of its `widget`, or general ones where there are none."""
    try:
        source = hub.fetch(
            name, [hub.CARD], revision=revision, access=hub.HubAccess(token=token), what="TAIA repository"
        )
        metadata = metadata_load(source.folder / hub.CARD) or {}
    except (TAIAError, OSError, ValueError, yaml.YAMLError):
        return EXAMPLES
    entries = metadata.get("widget")
    texts = [entry.get("text") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    found = tuple(text for text in texts if isinstance(text, str) and text.strip())
    return found[:_MOST] or EXAMPLES
