"""What a user asks the page, as values: they travel to a GPU worker by pickle."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taia_hub.compare.prompting import LEAST_TEMPERATURE, Messages
from taia_hub.errors import ConfigError, SettingError
from taia_hub.page.settings import MOST_COLUMNS, PageSettings
from taia_hub.switch.modes import PAPER_NAMES
from taia_hub.switch.settings import parse_setting

NAMES: Mapping[str, str] = {
    "none": f"{PAPER_NAMES['none'].capitalize()} model",
    "attention": f"{PAPER_NAMES['attention']}: attention updates",
    "ffn": f"{PAPER_NAMES['ffn']}: feed-forward updates",
    "all": f"{PAPER_NAMES['all'].capitalize()}: all updates",
}
"""Mode to the name that columns show."""


@dataclass(frozen=True)
class Question:
    """One request for answers side by side, by 1 to 4 modes in the order of the columns.

    `histories` are the conversation before, one a mode, empty at its start. Temperature 0 is greedy.
    """

    prompt: str
    modes: tuple[Any, ...]
    system: str = ""
    histories: tuple[Messages, ...] = ()
    temperature: float = 0.0
    max_new_tokens: int = 128
    seed: int = 0

    @property
    def generation(self) -> dict[str, Any]:
        """Keywords of `stream_compare`."""
        sampled = self.temperature >= LEAST_TEMPERATURE
        sampling = {"do_sample": True, "temperature": self.temperature} if sampled else {"do_sample": False}
        return {"max_new_tokens": self.max_new_tokens, "seed": self.seed, **sampling}


def read_question(
    settings: PageSettings,
    *,
    prompt: Any,
    modes: Sequence[Any],
    ffn_weight: float | None = None,
    system: Any = "",
    histories: Mapping[str, Messages] | None = None,
    temperature: Any = 0.0,
    max_new_tokens: Any = 128,
    seed: Any = 0,
) -> Question:
    """Checks what came from a page or an API call: types, ranges, and the page's limits in `settings`.

    `ffn_weight` gives one more column, between TAIA (0) and vanilla (1); `histories` are label of a mode to its
    conversation so far. What is wrong is a `ConfigError`, or a `SettingError` for the modes.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise ConfigError("The prompt is empty.", "Write a text.")
    if system is not None and not isinstance(system, str):
        raise ConfigError(f"system is {system!r}.", "Give a text.")
    modes = [modes] if isinstance(modes, (str, Mapping)) else modes
    if not isinstance(modes, (list, tuple)):
        raise SettingError(f"The modes are {modes!r}.", "Give a list of modes.")
    texts = prompt + (system or "")
    if len(texts) > settings.max_prompt_characters:
        raise ConfigError(
            f"The prompt has {len(texts):,} characters; {settings.max_prompt_characters:,} are allowed here.",
            f"Shorten it by {len(texts) - settings.max_prompt_characters:,}.",
        )
    columns = [*modes, *([between(ffn_weight)] if ffn_weight is not None else [])]
    parsed = [parse_setting(mode) for mode in columns]
    if not 1 <= len(parsed) <= MOST_COLUMNS:
        raise SettingError(f"{len(parsed)} columns were chosen.", f"Choose 1 to {MOST_COLUMNS} modes.")
    return Question(
        prompt=prompt,
        modes=tuple(setting.value for setting in parsed),
        system=system or "",
        histories=tuple((histories or {}).get(setting.label, ()) for setting in parsed) if histories else (),
        temperature=_number("temperature", temperature, 0.0, 10.0),
        max_new_tokens=int(_number("max_new_tokens", max_new_tokens, 1, settings.max_new_tokens)),
        seed=int(_number("seed", seed, 0, 2**63 - 1)),
    )


def between(weight: Any) -> dict[str, float]:
    """Returns the setting between TAIA (weight 0) and the vanilla fine-tune (1).

    Raises:
        ConfigError: If the weight is not between 0 and 1.

    Example:
        >>> between(0.5)
        {'attention': 1.0, 'ffn': 0.5, 'other': 0.5}
    """
    value = _number("ffn_weight", weight, 0.0, 1.0)
    return {"attention": 1.0, "ffn": value, "other": value}


def column_name(label: str) -> str:
    """Returns the name that a column shows for the label of a setting.

    Example:
        >>> column_name("none"), column_name("attention=1, ffn=0.5, other=0.5")
        ('Base model', 'FFN weight 0.5')
    """
    if label in NAMES:
        return NAMES[label]
    between_both = re.fullmatch(r"attention=1, ffn=([\d.e-]+), other=\1", label)
    return f"FFN weight {between_both[1]}" if between_both else label


def _number(name: str, value: Any, low: float, high: float) -> float:
    """Reads a number; JSON and sliders give whole numbers and floats alike."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{name} is {value!r}.", f"Give a number from {low:g} to {high:g}.")
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value:g}.", f"Give a number from {low:g} to {high:g}.")
    return value
