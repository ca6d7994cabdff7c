"""JSON and YAML of others as values, whose every refusal is a ValueError."""

from __future__ import annotations

import json
from typing import Any

from taia_hub.errors import short

_DEEPEST = 64


def parse_json(text: str, *, unique: bool = False) -> Any:
    """Reads JSON; also what Python cannot hold or print is a ValueError: too many levels, half of a letter.

    With `unique` so is a key that comes twice in one object, of which Python takes the first place and the last value.

    Example:
        >>> parse_json('{"r": 8}')
        {'r': 8}
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique if unique else None)
        _check_depth(value)
        if "\\ud" in text.lower():  # half of a letter may be escaped there, of which no text can be made
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError(f"a text in it is no Unicode: {error.reason}") from error
    return value


def parse_yaml(text: str) -> Any:
    """Reads YAML of plain values; an error in it is a ValueError too.

    Example:
        >>> parse_yaml("r: 8")
        {'r': 8}
    """
    import yaml

    try:
        return yaml.safe_load(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inside
            for one in level
            if isinstance(one, (dict, list))
            for inside in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return
    raise ValueError("it is nested too deeply")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {short(next(key for key in made if keys.count(key) > 1))} comes twice")
    return made
