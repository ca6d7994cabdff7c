"""PEFT's methods by what can be done with their files alone; each is tested."""

from __future__ import annotations

ADDITIVE = (
    "LORA",
    "ADALORA",
    "C3A",
    "DELORA",
    "FOURIERFT",
    "GRALORA",
    "LOHA",
    "LOKR",
    "PVERA",
    "RANDLORA",
    "SHIRA",
    "SUPERTUNING",
    "TINYLORA",
    "UNILORA",
    "VBLORA",
    "VERA",
    "WAVEFT",
)
"""Methods whose `get_delta_weight` is what they add to the weight, whatever the weight is."""

CONVERTED = ("BOFT", "DEFT", "GLORA", "HIRA", "HRA", "IA3", "MISS", "OFT", "PEANUT", "ROAD")
"""Methods that change a weight by what depends on it, and whose merged weight is computed from files alone.

Not among them are those that take the base's weights apart when they are put on a model (OSF, PSOFT, ADAMSS, FROD).
"""

MERGEABLE = frozenset((*ADDITIVE, *CONVERTED, "LN_TUNING", "TRAINABLE_TOKENS"))
"""Methods whose `merge` asks for nothing of the base but the weight itself. AdaMSS, FRoD, OSF and PSOFT decompose the
base's weights when they are attached; BEFT and Lily cannot be merged by PEFT either."""
