"""The names of modes: ours, the paper's, and the one of what a repository publishes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from taia_hub.roles import ROLES

MODES: Mapping[str, tuple[str, ...]] = {
    "attention": ("attention",),
    "ffn": ("ffn",),
    "all": ROLES,
    "none": (),
}
"""Mode name to the roles whose updates act: TAIA, TAIF, the vanilla fine-tune and the base model."""

PAPER_NAMES: Mapping[str, str] = {"attention": "TAIA", "ffn": "TAIF", "all": "vanilla", "none": "base"}
"""Mode name to what the paper calls it; in any case that is taken for the mode too, and never written to a file."""

TUNED = "tuned"
"""Name of the setting that a repository publishes, wherever one is at hand; never written to a file."""

Mode = Literal["attention", "ffn", "all", "none"]
"""A mode by its name."""

NAMES: Mapping[str, str] = {
    **{name: name for name in (*MODES, TUNED)},
    **{name.lower(): mode for mode, name in PAPER_NAMES.items()},
}
"""Every name in lower case to the one that is stored."""


def canonical_mode(name: str) -> str:
    """Returns the mode that a name means, in any case and in the paper's words too; other texts come back as they are.

    Example:
        >>> canonical_mode("TAIA"), canonical_mode("Base"), canonical_mode("attention+other")
        ('attention', 'none', 'attention+other')
    """
    return NAMES.get(name.lower(), name)


def mode_title(label: str) -> str:
    """Returns what a person reads for the label of a setting: a mode with the paper's name for it.

    Example:
        >>> mode_title("attention"), mode_title("ffn=0.5")
        ('attention (TAIA)', 'ffn=0.5')
    """
    return f"{label} ({PAPER_NAMES[label]})" if label in PAPER_NAMES else label
