"""Text for a shell."""

from __future__ import annotations


def comment(text: str) -> str:
    r"""Makes a comment of a shell; a line that ended within it would be run.

    Example:
        >>> comment("one\nrm -r two")
        '# one\\nrm -r two'
    """
    return "# " + "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
