"""Regular expressions from files of others: tried where they can be ended, before anything is matched here.

Python's `re` cannot be interrupted and holds the interpreter, so that one expression with nested quantifiers stops a
whole process, and no look at an expression tells what it costs on given names. A process of its own matches the same
expressions with the same names first, with a limit on its time.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from taia_hub.errors import ConfigError

_SECONDS = 3
"""Processor time that all expressions of one configuration may take; usual ones take milliseconds."""
_PATIENCE = 15
"""Seconds by the clock, for a busy machine and for one that does not count processor time."""
_LONGEST = 20_000
_MOST = 2_000
_REPEATS = re.compile(r"(?<!\()[*+?{]")
_OF_A_GROUP = re.compile(r"\).*?(?<!\()[*+?{]", re.DOTALL)
# ^ with one quantifier alone, only alternatives inside of it may take exponential time, as in (.|.)*
_FORMS = ("{}$", r"(.*\.)?({})$", r".*\.{}$", r"(^|.*\.){}($|\..*)", r"(?:^|.*?\.){}\.(?P<idx>\d+)\.", ".*({})")
# ^ PEFT's ways of matching a module's name
_CHILD = """
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]), int(sys.argv[1])))
except ImportError:
    pass
patterns, forms, names = json.load(sys.stdin)
for number, pattern in enumerate(patterns):
    print(number, flush=True)
    for form in forms:
        try:
            match = re.compile(form.replace("{}", pattern)).match
        except re.error:
            continue
        for name in names:
            match(name)
"""


def check_patterns(values: Any, names: Iterable[str], *, where: str) -> None:
    """Refuses a configuration whose texts, taken as regular expressions on `names`, would take too long to match.

    Args:
        values: The configuration, as JSON values: every text and key in it may be an expression.
        names: What the expressions will be matched with.
        where: What messages call the configuration.

    Raises:
        ConfigError: If there are too many, one is too long, matching does not end in time, or it cannot be tried.

    Example:
        >>> check_patterns({"target_modules": ".*[qv]_proj"}, ["model.layers.0.q_proj"], where="adapter_config.json")
    """
    found = tuple(dict.fromkeys(text for text in _texts(values) if _may_last(text)))
    hint = "Name the modules in a list, or write a shorter expression."
    if len(found) > _MOST:
        raise ConfigError(f"{where} holds {len(found):,} expressions; at most {_MOST:,} are tried.", hint)
    if longest := next((text for text in found if len(text) > _LONGEST), None):
        raise ConfigError(
            f"{where} holds an expression of {len(longest):,} characters, '{longest[:40]}…'; at most {_LONGEST:,} are "
            "tried.",
            hint,
        )
    try:
        slow = _slow(found, tuple(names)) if found else None
    except OSError as error:
        raise ConfigError(
            f"{where} holds an expression that is tried in a process first, and none can be started: {error}.", hint
        ) from error
    if slow is not None:
        raise ConfigError(
            f"{where} holds an expression that would not end in {_SECONDS} seconds on this model's module names: "
            f"'{slow[:200]}'.",
            f"Quantifiers inside quantifiers, as in (a+)+, take exponential time. {hint}",
        )


@functools.lru_cache(maxsize=8)
def _slow(patterns: tuple[str, ...], names: tuple[str, ...]) -> str | None:
    """Returns the expression at which matching did not end in time; None where all did."""
    command = [sys.executable, "-I", "-S", "-c", _CHILD, str(_SECONDS)]
    asked = json.dumps([patterns, _FORMS, names]).encode()
    try:
        done = subprocess.run(command, input=asked, capture_output=True, timeout=_PATIENCE, check=False)
        if done.returncode == 0:
            return None
        reached = done.stdout
    except subprocess.TimeoutExpired as error:
        reached = error.stdout or b""
    return patterns[int((reached.split() or [b"0"])[-1])]


def _may_last(text: str) -> bool:
    return len(_REPEATS.findall(text)) > 1 or _OF_A_GROUP.search(text) is not None


def _texts(values: Any) -> Iterable[str]:
    """Yields every text and key in JSON values."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from (str(key), *_texts(value))
    elif isinstance(values, (list, tuple, set)):
        for value in values:
            yield from _texts(value)
