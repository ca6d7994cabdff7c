"""What a check found, and the lines of a card that it looks at."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from taia_hub.cards.sections import ParsedCard, classified, front_matter


@dataclass(frozen=True)
class Finding:
    """One fact of a card that was checked.

    Attributes:
        line: Its line in the card, or None where it is about files.
        what: What was checked.
        ok: Whether the card tells the truth.
        expected: What the files say.
        found: What the card says, or None where it says nothing.
    """

    line: int | None
    what: str
    ok: bool
    expected: str | None = None
    found: str | None = None

    def __str__(self) -> str:
        where = "files" if self.line is None else f"line {self.line}"
        if self.ok:
            return f"{where}: ok: {self.what}"
        expected = "" if self.expected is None else f" expected {self.expected},"
        found = "nothing" if self.found is None else self.found
        return f"{where}: wrong: {self.what}:{expected} found {found}"


@dataclass(frozen=True)
class CardLine:
    """A line below the metadata.

    Attributes:
        number: Its number in the card, from 1.
        text: The line.
        kind: `heading`, `text`, `code`, or `yours` between the user's markers.
        section: Title of the section that it is in.
        generated: Whether the section is one that taia-hub writes, and the line not between the user's markers.
    """

    number: int
    text: str
    kind: str
    section: str
    generated: bool


def card_lines(text: str, parsed: ParsedCard) -> list[CardLine]:
    """Lists the lines of a card below its metadata.

    Args:
        text: The card.
        parsed: The same, taken apart.

    Returns:
        The lines.
    """
    _, body, first = front_matter(text)
    starts = [section.line for section in parsed.sections]
    lines = []
    for number, line, kind in classified(body, first):
        index = bisect_right(starts, number) - 1
        section = parsed.sections[index] if index >= 0 else None
        generated = section is not None and section.name is not None and kind != "yours"
        lines.append(CardLine(number, line, kind, section.title if section else "", generated))
    return lines
