"""Words and text of a shell."""

from __future__ import annotations

from collections.abc import Iterable


def comment(text: str) -> str:
    r"""Makes a comment of a shell; a line that ended within it would be run.

    Example:
        >>> comment("one\nrm -r two")
        '# one\\nrm -r two'
    """
    return "# " + "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def split_options(words: Iterable[str]) -> list[str]:
    """Parts each option from the value that is written behind its `=`.

    Example:
        >>> split_options(["--rank=8", "--out", "a=b"])
        ['--rank', '8', '--out', 'a=b']
    """
    return [part for word in words for part in (word.split("=", 1) if word.startswith("--") else (word,))]
