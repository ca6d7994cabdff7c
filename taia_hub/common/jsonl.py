"""Files of one item a line that users bring: read whole and checked before anything runs."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from taia_hub.common.parsing import parse_json
from taia_hub.errors import ConfigError, RepositoryError

_SHOWN = 5

T = TypeVar("T")


class LineError(ValueError):
    """Raised where a line cannot be used; its text is the reason."""


def read_lines(path: Path, parse: Callable[[str], T], form: str) -> tuple[bytes, list[tuple[int, T]]]:
    """Reads a UTF-8 file of one item a line, of the form that `form` shows in a hint; empty lines are passed over.

    `parse` makes an item of a line, or raises `LineError`.

    Returns:
        The bytes of the file, and each item with its line's number, from 1.

    Raises:
        RepositoryError: If the file cannot be read.
        ConfigError: If lines are bad, all of them counted and the first ones named, or there is none.
    """
    try:
        content = path.read_bytes()
    except OSError as e:
        raise RepositoryError(f"'{path}' cannot be read: {e.strerror or e}.", "Check the path.") from e
    found, problems = list[tuple[int, T]](), []
    for number, item in parse_lines(content.split(b"\n"), parse):
        if isinstance(item, LineError):
            problems.append(f"{path}:{number}: {item}")
        else:
            found.append((number, item))
    refuse(problems, form)
    if not found:
        raise ConfigError(f"'{path}' is empty.", f"One item a line: {form}")
    return content, found


def parse_lines(lines: Iterable[bytes | LineError], parse: Callable[[str], T]) -> Iterator[tuple[int, T | LineError]]:
    """Yields number, from 1, and item of each line of UTF-8, or why there is none; empty lines are passed over."""
    for number, line in enumerate(lines, 1):
        try:
            if isinstance(line, LineError):
                raise line
            text = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode("utf-8").strip()
            if text:
                yield number, parse(text)
        except UnicodeDecodeError:
            yield number, LineError("not UTF-8")
        except LineError as e:
            yield number, e


def refuse(problems: list[str], form: str) -> None:
    """Raises one `ConfigError` for all problems, each `file:line: reason`, if there are any."""
    if problems:
        shown = "\n".join(problems[:_SHOWN])
        more = f"\nand {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        lines = "1 line is" if len(problems) == 1 else f"{len(problems)} lines are"
        raise ConfigError(f"{lines} wrong; nothing was run.\n{shown}{more}", f"One item a line: {form}")


def parse_object(text: str) -> dict[str, Any]:
    """Reads a line that holds a JSON object.

    Raises:
        LineError: If it is no JSON, or no object.

    Example:
        >>> parse_object('{"prompt": "Hello"}')
        {'prompt': 'Hello'}
    """
    try:
        value = parse_json(text)
    except ValueError as e:
        raise LineError(f"no JSON: {e}") from e
    if not isinstance(value, dict):
        raise LineError(f"a JSON {type(value).__name__} instead of an object")
    return value


def get_text(item: dict[str, Any], key: str, required: bool = True) -> str:
    """Returns a value of an item that must be text; `""` where it is absent and not required.

    Raises:
        LineError: If it is absent, empty or no text.
    """
    if key not in item or (item[key] is None and not required):
        if required:
            raise LineError(f"'{key}' is missing")
        return ""
    value = item[key]
    if not isinstance(value, str):
        raise LineError(f"'{key}' is {value!r:.60}, not text")
    if required and not value.strip():
        raise LineError(f"'{key}' is empty")
    return value
