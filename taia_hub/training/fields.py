"""What a field of a recipe may be, by its type and its metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import Field
from typing import Any, get_args

from taia_hub.errors import ConfigError, SettingError, closest
from taia_hub.switch.modes import MODES, canonical_mode
from taia_hub.switch.settings import Setting, parse_setting

TRAINED_ROLES = ("attention", "ffn")
"""The roles that ranks can be given for; LoRA adapts no other."""

ByRole = int | Mapping[str, int]
"""One number for every role, or one a role."""


def checked(field: Field[Any], kind: Any, value: Any) -> Any:
    """Returns a value, as YAML, the command line or Python give it, in the type of its field, or raises ConfigError.

    The field's metadata may hold `check` (a function that raises), `choices` (texts), and of numbers `low`, `high` and
    `below` (whether `high` itself is too much).
    """
    if value is None and field.default is None:
        return None
    if "check" in field.metadata:
        field.metadata["check"](value)
        return value
    if type(None) in get_args(kind):
        (kind,) = (one for one in get_args(kind) if one is not type(None))
    limits = {name: limit for name, limit in field.metadata.items() if name in ("choices", "low", "high", "below")}
    return _CHECKS[kind](field.name, value, **limits)


def parse_modules(text: Any) -> Setting:
    """Parses `train_modules`: the grammar of a setting, without weights; SettingError if it selects nothing.

    Example:
        >>> [entry.key for entry in parse_modules("attention+ffn@0-7").entries]
        ['attention', 'ffn@0-7']
    """
    if isinstance(text, Mapping):
        raise SettingError(
            f"train_modules is {dict(text)!r}; weights have no meaning in training.",
            "Join what is trained by '+', as in 'attention+ffn@0-7'.",
        )
    if not isinstance(text, str):
        raise SettingError(f"train_modules is {text!r}.", "Give a text such as 'all' or 'attention+ffn@0-7'.")
    text = canonical_mode(text)
    if text == "none":
        raise SettingError("train_modules is 'none': nothing would be trained.", "Choose 'all', 'attention' or 'ffn'.")
    try:
        if text in MODES:
            return parse_setting(text)
        entries = parse_setting(dict.fromkeys(text.split("+"), 1)).entries
        for entry in entries:  # a glob may be anything, also a role that was mistyped
            if entry.role is None and (meant := closest(entry.key, (*MODES, "other"))):
                raise SettingError(f"unknown part '{entry.key}'.{meant}")
        return Setting(entries, text)
    except SettingError as error:
        raise SettingError(
            f"train_modules '{text}': {error.message}",
            "Choose 'all', 'attention' or 'ffn', or join roles, roles at layers and globs on module paths by '+': "
            "'attention+ffn@0-7'.",
        ) from error


def _text(name: str, value: Any, choices: Sequence[str] = ()) -> str:
    if not isinstance(value, str):
        raise ConfigError(
            f"{name} is {value!r}, and no text.",
            "Write a text; put it in quotes where YAML would take it for something else.",
        )
    if choices and value not in choices:
        raise ConfigError(f"{name} is '{value}'.{closest(value, choices)}", f"Choose one of {', '.join(choices)}.")
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    values = (value,) if isinstance(value, str) else () if value is None else value
    if not isinstance(values, list | tuple) or not all(isinstance(one, str) and one.strip() for one in values):
        raise ConfigError(f"{name} is {value!r}.", "Give a text, or a list of texts.")
    return tuple(values)


def _number(name: str, value: Any, high: float = math.inf, below: bool = True) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ConfigError(f"{name} is {value!r}, and no number.", "Write it as in 0.0002 or 2e-4.") from None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (0 <= value < high if below else 0 <= value <= high):
        upto = "" if high == math.inf else f" to {'below ' if below else ''}{high:g}"
        raise ConfigError(f"{name} is {value!r}.", f"Give a number from 0{upto}.")
    return float(value)


def _whole(name: str, value: Any, low: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{name} is {value!r}.", f"Give a whole number from {low}.")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}.", "Give true or false.")
    return value


def _by_role(name: str, value: Any) -> ByRole:
    if not isinstance(value, Mapping):
        return _whole(name, value)
    for role in value:
        if role not in TRAINED_ROLES:
            raise ConfigError(
                f"{name} names the role {role!r}.{closest(str(role), TRAINED_ROLES)}",
                f"Give one for each of {', '.join(TRAINED_ROLES)}.",
            )
    if missing := [role for role in TRAINED_ROLES if role not in value]:
        raise ConfigError(f"{name} says nothing of {missing[0]}.", f"Give one for each of {', '.join(TRAINED_ROLES)}.")
    return {role: _whole(f"{name}.{role}", value[role]) for role in TRAINED_ROLES}


_CHECKS: Mapping[Any, Any] = {
    str: _text,
    tuple[str, ...]: _texts,
    float: _number,
    int: _whole,
    bool: _flag,
    ByRole: _by_role,
}
