"""A card as sections, with what tells a section that was written here from one that a person wrote or changed.

Under the heading of each generated section stands `<!-- taia:NAME HASH -->`, where HASH is that of its text. A section
whose text still has this hash is replaced when the card is made again; any other belongs to a person. The line above
all says so, with the hash of each value of the metadata. No page shows these comments. Cards up to version 0.1 have
longer ones (`<!-- taia:section NAME HASH -->`, and a line of their own for the metadata), which are read as well.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from taia_hub.cards._yaml import read_metadata
from taia_hub.cards.escaping import is_repo_id
from taia_hub.errors import ConfigError

MARK = "<!-- taia:card Written by taia-hub"
"""How the line begins that tells a card of ours from one that somebody wrote."""

YOURS, END_OF_YOURS = "<!-- taia:yours -->", "<!-- /taia:yours -->"
"""A person's text between them stays, wherever in the card it stands."""

_DIGITS = 8
_CARD = re.compile(rf"{MARK}[^<>]*-->")
_HEAD = re.compile(rf"(?:{MARK}|<!-- taia:metadata)(?P<keys>[^<>]*)-->")
_KEY = re.compile(rf"(?P<name>[\w-]+)=(?P<hash>[0-9a-f]{{{_DIGITS}}})")
_SECTION = re.compile(r"<!-- taia:(?:section )?(?P<name>[\w-]+) (?P<hash>[0-9a-f]{8}(?:[0-9a-f]{4})?) -->")
_HEADING = re.compile(r" {0,3}#{1,2}(?:[ \t]+(?P<title>.*?))?(?:[ \t]+#+)?[ \t]*")
_FENCE = re.compile(r" {0,3}(?P<fence>`{3,}|~{3,})(?P<rest>.*)")
_FRONT = re.compile(r"\A---[ \t]*\r?\n(?P<yaml>.*?)(?:^|\n)---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Section:
    """A part of a card from one heading of level one or two to the next, its lines without our marker.

    `name` is that of the generated section, or None for a person's; `written` is the hash in its marker.
    """

    line: int
    lines: tuple[str, ...]
    name: str | None = None
    written: str | None = None

    @property
    def title(self) -> str:
        """Text of its heading, or `""` before the first one."""
        match = _HEADING.fullmatch(self.lines[0]) if self.lines else None
        return (match["title"] or "").strip() if match else ""

    @property
    def text(self) -> str:
        """Its text without space at its ends."""
        return "\n".join(self.lines).strip("\n")

    @property
    def is_edited(self) -> bool:
        """Whether somebody changed what was generated; what stands between the user's markers does not count."""
        return self.name is not None and self.written != fingerprint("\n".join(without_yours(self.lines)))

    def render(self) -> str:
        """Returns its text with its marker, under the heading."""
        if self.name is None:
            return self.text
        lines = self.text.split("\n")
        at = 1 if _HEADING.fullmatch(lines[0]) else 0
        return "\n".join([*lines[:at], f"<!-- taia:{self.name} {self.written} -->", *lines[at:]])


@dataclass(frozen=True)
class ParsedCard:
    """A card in its parts; `keys` are metadata key to the hash of the value that was generated for it."""

    metadata: Mapping[str, Any]
    keys: Mapping[str, str]
    sections: tuple[Section, ...]
    ours: bool
    block: str = ""


def is_generated(text: str) -> bool:
    """Tells whether a card was written by taia-hub and not taken over by somebody since."""
    return _CARD.search(text) is not None


def title_of(text: str) -> str | None:
    """Returns the model's name that a card of ours shows, or None where it is no Hub id or the card is damaged.

    It is that of the heading; where a person changed that, the one of the code that loads the model.
    """
    try:
        sections = {section.name: section for section in parse_card(text).sections} if is_generated(text) else {}
    except ConfigError:
        return None
    first = sections.get("card")
    name = re.sub(r"\\(.)|`", r"\1", first.title) if first else ""
    if first is None or first.is_edited:
        use = sections.get("use")
        loaded = re.search(r'from_pretrained\("([^"\\]+)"\)$', use.text, re.MULTILINE) if use else None
        name = loaded[1] if loaded else name
    return name if is_repo_id(name) else None


def parse_card(text: str) -> ParsedCard:
    """Takes a card apart, and refuses a user's marker that is opened or closed alone."""
    block, body, first = front_matter(text)
    try:
        metadata = read_metadata(block)
    except (yaml.YAMLError, TypeError) as error:
        raise ConfigError(f"The card's YAML cannot be read: {error}.", "Repair the block between the '---'.") from error
    keys: dict[str, str] = {}
    sections: list[Section] = []
    pending: list[str] = []
    start, name, written = first, None, None
    for number, line, kind in classified(body, first):
        if kind == "heading" and (pending or name):
            sections.append(Section(start, tuple(pending), name, written))
            pending, start, name, written = [], number, None, None
        if kind == "text" and (match := _SECTION.fullmatch(line.strip())):
            name, written = match["name"], match["hash"][:_DIGITS]
        elif kind == "text" and (match := _HEAD.fullmatch(line.strip())):
            keys |= _KEY.findall(match["keys"])
        else:
            pending.append(line)
    sections.append(Section(start, tuple(pending), name, written))
    found = tuple(part for part in sections if part.text or part.name)
    return ParsedCard(metadata, keys, found, is_generated(text), block)


def front_matter(text: str) -> tuple[str, str, int]:
    """Returns a card's YAML block, its body, and the number of the body's first line, from 1."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")  # some editors begin a file with a mark of its encoding
    front = _FRONT.match(text)
    if front is None:
        return "", text, 1
    return front["yaml"], text[front.end() :], text[: front.end()].count("\n") + 1


def stamp(body: str) -> tuple[Section, ...]:
    """Cuts a body that was just rendered into sections and gives each its name and hash."""
    found: list[Section] = []
    for section in parse_card(body).sections:
        slug = re.sub(r"[^\w]+", "-", section.title.lower()).strip("-_") or "text"
        taken = {one.name for one in found}
        name = "card" if not found else slug  # the first heading is the model's name, which may change
        while name in taken:
            name += "-again"
        text = section.text
        found.append(Section(section.line, tuple(text.split("\n")), name, fingerprint(text)))
    return tuple(found)


def assemble(yaml_block: str, keys: Mapping[str, str], sections: tuple[Section, ...]) -> str:
    """Puts a card together of its YAML block, the hashes of what was generated for its keys, and its sections."""
    hashes = "".join(f" {key}={value}" for key, value in keys.items())
    mark = f"{MARK}; what you change stays. Without this line all of it is yours.{hashes} -->"
    head = f"---\n{yaml_block.strip()}\n---\n{mark}"
    return "\n\n".join([head, *(section.render() for section in sections)]) + "\n"


def key_hashes(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Hashes each value of the metadata as YAML gives it back."""
    return {key: fingerprint(_canonical(value)) for key, value in metadata.items() if re.fullmatch(r"[\w-]+", str(key))}


def fingerprint(text: str) -> str:
    """Returns hex digits that tell texts apart; space at the ends of lines and blank lines do not count."""
    lines = (line.rstrip() for line in text.split("\n"))
    return hashlib.sha256("\n".join(line for line in lines if line).encode("utf-8", "replace")).hexdigest()[:_DIGITS]


def without_yours(lines: tuple[str, ...]) -> list[str]:
    """Returns the lines of a section without the user's regions."""
    kept, inside = [], False
    for line in lines:
        inside = inside or line.strip() == YOURS
        if not inside:
            kept.append(line)
        inside = inside and line.strip() != END_OF_YOURS
    return kept


def classified(body: str, first: int) -> Iterator[tuple[int, str, str]]:
    """Yields number, line and kind: `heading`, `text`, `code`, or `yours` between the user's markers."""
    fence, opened = "", 0
    for number, line in enumerate(body.split("\n"), first):
        stripped = line.strip()
        if not opened and not fence and stripped == YOURS:
            opened = number
            yield number, line, "yours"
        elif opened:
            yield number, line, "yours"
            opened = 0 if stripped == END_OF_YOURS else opened
        elif fence:
            match = _FENCE.fullmatch(line)
            closes = match and match["fence"].startswith(fence) and not match["rest"].strip()
            fence = "" if closes else fence
            yield number, line, "code"
        elif (match := _FENCE.fullmatch(line)) and not (match["fence"][0] == "`" and "`" in match["rest"]):
            fence = match["fence"]
            yield number, line, "code"
        elif stripped == END_OF_YOURS:
            raise ConfigError(f"Line {number} of the card closes '{YOURS}', which is not open.", _PAIR)
        else:
            yield number, line, "heading" if _HEADING.fullmatch(line) and stripped else "text"
    if opened:
        raise ConfigError(f"Line {opened} of the card opens '{YOURS}', which is never closed.", _PAIR)


_PAIR = f"Put your text between '{YOURS}' and '{END_OF_YOURS}', each on a line of its own."


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
