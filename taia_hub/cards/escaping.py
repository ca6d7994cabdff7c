"""User text made safe for Markdown, Python and shell: it shows as it is, and nothing of it can act."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any
from urllib.parse import quote, urlsplit

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]+")
_INLINE = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|(?:(?<=\s)|^)#")
_LEADING = re.compile(r"^(?:[-+=:#]|\d{1,9}(?=[.)](?:\s|$)))")
_ADDRESS = re.compile(
    r"((?:(?:https?|ftp)://|www\.)[^\s`|<>&]*[^\s`|<>&.,;:!?)'\"\\]|(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+)",
    re.IGNORECASE,
)
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_NOT_CODE = re.compile(r"[`|<>&]")


def plain(value: Any) -> str:
    r"""Puts a text on one line, without control characters, halves of characters and marks that turn its direction.

    Example:
        >>> plain("two\nlines ")
        'two lines'
    """
    return " ".join(_CONTROL.sub(" ", str(value)).split())


def text(value: Any) -> str:
    r"""Escapes a text for running Markdown, a table's cell or a heading.

    No link, emphasis, cell, heading, list or HTML can come of it. An address of a page or of a mailbox is written as
    code, the one form that no page makes a link of.

    Example:
        >>> text('"]: x | <b>'), text("see www.example.org.")
        ('"\\]: x \\| &lt;b&gt;', 'see `www.example.org`.')
    """
    parts = _ADDRESS.split(plain(value))  # what is no address, an address, what is none, ...
    line = "".join(f"`{part}`" if number % 2 else _escaped_words(part) for number, part in enumerate(parts))
    if match := _LEADING.match(line):
        at = match.end() if match[0].isdigit() else 0
        line = f"{line[:at]}\\{line[at:]}"
    return line


def code(value: Any) -> str:
    r"""Writes a text as code where it can stand there as it is, else as `text` does.

    Example:
        >>> code("ffn@0-7=0.5"), code("a|b")
        ('`ffn@0-7=0.5`', 'a\\|b')
    """
    line = plain(value)
    return text(line) if not line or _NOT_CODE.search(line) else f"`{line}`"


def link(label: Any, url: str) -> str:
    r"""Links to a web page; where `url` is no http(s) address, only the label is left.

    Example:
        >>> link("a]b", "https://example.org/(x)"), link("x", "javascript:alert(1)")
        ('[a\\]b](https://example.org/%28x%29)', 'x')
    """
    address = plain(url)
    try:
        scheme = urlsplit(address).scheme
    except ValueError:
        scheme = ""
    if scheme not in ("http", "https"):
        return text(label)
    return f"[{text(label)}]({quote(address, safe='/:#?&=%@+,;~.-_')})"


def relative_path(path: str) -> str:
    """Writes the path of a file in the repository as the target of a link.

    Example:
        >>> relative_path("figures/a (1).png")
        'figures/a%20%281%29.png'
    """
    return quote(plain(path).lstrip("/"), safe="/-_.~")


def hub_link(repo_id: Any, kind: str = "") -> str:
    """Links to a repository on the Hub, of kind `""`, `"datasets/"` or `"spaces/"`; what is no Hub id stays text."""
    return link(repo_id, f"https://huggingface.co/{kind}{repo_id}") if is_repo_id(repo_id) else code(repo_id)


def is_repo_id(value: Any) -> bool:
    """Tells whether a value could be the id of a repository on the Hub."""
    try:
        validate_repo_id(value)
    except HFValidationError:
        return False
    return isinstance(value, str)


def python(value: Any) -> str:
    """Writes a string as a literal of Python that cannot end the code block around it.

    Example:
        >>> python("org/model")
        '"org/model"'
    """
    literal = json.dumps(str(value), ensure_ascii=False)
    return re.sub("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff<>]", _escaped, literal)


def shell(value: Any) -> str:
    """Quotes a word for a POSIX shell or bash, so that it cannot end the code block around it.

    Example:
        >>> shell("org/model"), shell("a b")
        ('org/model', "'a b'")
    """
    word = str(value)
    if re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029<>\ud800-\udfff]", word):
        return "$'" + "".join(char if char.isalnum() else f"\\U{ord(char):08x}" for char in word) + "'"
    return shlex.quote(word)


def number(value: Any) -> str:
    r"""Writes a count with separators, another number with at most four significant figures, else escaped text.

    Example:
        >>> number(1234567), number(0.012345), number("x_")
        ('1,234,567', '0.01235', 'x\\_')
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return text(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _escaped_words(words: str) -> str:
    words = _INLINE.sub(lambda match: f"\\{match[0]}", words)
    return re.sub("[&<>]", lambda match: _ENTITIES[match[0]], words)


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"
