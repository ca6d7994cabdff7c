"""What exports are called: a folder a setting."""

from __future__ import annotations

import re
from collections.abc import Iterable

from taia_hub.errors import ConfigError
from taia_hub.switch.settings import Setting

_NAME = re.compile(r"\w[\w.+-]*")


def label_of(setting: Setting) -> str:
    """Returns the name of a setting's folder, which also follows the colon in a served model's name.

    Args:
        setting: The setting.

    Returns:
        The mode's name, or its selectors and weights joined by dashes: signs that every engine takes.

    Example:
        >>> from taia_hub.switch.settings import parse_setting
        >>> label_of(parse_setting("attention+other")), label_of(parse_setting({"attention": 1, "ffn@0-7": 0.5}))
        ('attention+other', 'attention-1-ffn-0-7-0.5')
    """
    return re.sub(r"[^\w.+]+", "-", setting.label).strip("-")


def check_names(names: Iterable[str]) -> None:
    """Refuses names of sub-folders that are none, and no name at all.

    Args:
        names: The names; an empty one is the folder itself.

    Raises:
        ConfigError: If there is none, or one of them could lead elsewhere.
    """
    names = list(names)
    if not names:
        raise ConfigError("No setting was given.", "Name at least one, as in {'': 'attention'}.")
    for name in names:
        if name and not _NAME.fullmatch(name):
            raise ConfigError(
                f"The name {name!r} cannot be that of a sub-folder.",
                "Use letters, digits, '_', '-', '+' and '.', or '' for the folder itself.",
            )
