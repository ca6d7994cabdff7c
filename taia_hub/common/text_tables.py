"""Tables of text, aligned for a terminal or in Markdown, and the numbers in them."""

from __future__ import annotations

from collections.abc import Container, Sequence

Rows = Sequence[Sequence[str]]


def aligned(rows: Rows, left: Container[int] = (0,)) -> str:
    """Aligns the columns of rows, the numbers of those in `left` to the left and the others to the right.

    Example:
        >>> print(aligned([["mode", "score"], ["all", "0.5"]]))
        mode  score
        all     0.5
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def markdown_table(head: Sequence[str], rows: Rows, left: Container[int] = (0,)) -> str:
    """Writes a table of cells that are Markdown already: `cards.escaping.text` makes it of a user's text.

    Example:
        >>> print(markdown_table(["mode", "score"], [["all", "0.5"]]))
        | mode | score |
        | --- | ---: |
        | all | 0.5 |
    """
    rule = ["---" if column in left else "---:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def byte_size(count: int) -> str:
    """Writes a number of bytes in the unit that fits.

    Example:
        >>> byte_size(512), byte_size(26000), byte_size(3 * 2**30)
        ('512 bytes', '25.4 KiB', '3.0 GiB')
    """
    if count < 1024:
        return amount(count, "byte")
    value, units = float(count), ["KiB", "MiB", "GiB", "TiB"]
    while True:
        value /= 1024
        if value < 1023.95 or len(units) == 1:
            return f"{value:,.1f} {units[0]}"
        units.pop(0)


def amount(count: int, noun: str, plural: str = "s") -> str:
    """Writes a number of things.

    Example:
        >>> amount(1, "shard"), amount(2000, "process", "es")
        ('1 shard', '2,000 processes')
    """
    return f"{count:,} {noun}{plural * (count != 1)}"
