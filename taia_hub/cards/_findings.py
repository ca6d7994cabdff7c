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
        expected: What the files say, or None where they say nothing of it.
        found: What the card says, or None where it says nothing.
        warning: Whether something is to be looked at though the card may tell the truth, such as words of a person.
    """

    line: int | None
    what: str
    ok: bool
    expected: str | None = None
    found: str | None = None
    warning: bool = False

    def __str__(self) -> str:
        where = "files" if self.line is None else f"line {self.line}"
        if self.ok and not self.warning:
            return f"{where}: ok: {self.what}"
        text = f"{where}: {'warning' if self.warning else 'wrong'}: {self.what}"
        if self.expected is None and self.found is None:
            return text
        said, true = ("nothing of it" if one is None else one for one in (self.found, self.expected))
        return (
            f"{text}: expected {true}, found {said}"
            if self.line is None
            else (f"{text}: the card says {said}; the files say {true}")
        )


@dataclass(frozen=True)
class CardLine:
    """A line below the metadata, numbered from 1.

    Attributes:
        kind: `heading`, `text`, `code`, or `yours` between the user's markers.
        section: Name of that section where taia-hub wrote it, else None.
    """

    number: int
    text: str
    kind: str
    title: str
    section: str | None


def card_lines(text: str, parsed: ParsedCard) -> list[CardLine]:
    """Lists the lines of a card below its metadata."""
    _, body, first = front_matter(text)
    starts = [section.line for section in parsed.sections]
    lines = []
    for number, line, kind in classified(body, first):
        index = bisect_right(starts, number) - 1
        section = parsed.sections[index] if index >= 0 else None
        title, name = (section.title, section.name) if section else ("", None)
        lines.append(CardLine(number, line, kind, title, name))
    return lines
