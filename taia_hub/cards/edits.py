"""Making a card again without losing what a person did to the old one."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from taia_hub.cards._yaml import rewrite
from taia_hub.cards.sections import (
    END_OF_YOURS,
    YOURS,
    ParsedCard,
    Section,
    assemble,
    is_generated,
    key_hashes,
    parse_card,
    without_yours,
)
from taia_hub.errors import ConfigError


@dataclass(frozen=True)
class Merged:
    """A card that was made again.

    Attributes:
        text: The card.
        kept: What of a person's stayed, a sentence each.
    """

    text: str
    kept: tuple[str, ...]


def merge_cards(old: str | None, new: str, *, given: Collection[str] = ()) -> Merged:
    """Puts a person's edits of a card into the card that was rendered anew.

    - A generated section that nobody changed is replaced, or dropped where it is no longer generated.
    - A generated section that a person changed stays as it is. Delete it to get the generated one again.
    - A section that a person added stays, after the same section as before.
    - Text between `<!-- taia:yours -->` and `<!-- /taia:yours -->` stays in its section, or after it where that
      is gone.
    - A metadata key that a person set, changed or removed stays so, and so do the comments beside it.

    What stands in `new` already, from a merge before, wins over the same in `old`.

    Args:
        old: The card that is there, or None.
        new: The card that was rendered.
        given: Metadata keys that were asked for just now: they win, and stay as if a person had set them; tags are
            joined.

    Returns:
        The card, and what was kept.

    Raises:
        ConfigError: If the old card was not written here, or is damaged.
    """
    now = parse_card(new)
    if old is None:
        keys = {key: value for key, value in now.keys.items() if key not in given}
        return Merged(assemble(now.block, keys, now.sections) if given else new, ())
    if not is_generated(old):
        raise ConfigError(
            "The card was not written by taia-hub, or its mark was removed: nothing in it can be told apart.",
            f"Rename it for a new one; your text goes between '{YOURS}' and '{END_OF_YOURS}' there.",
        )
    before = parse_card(old)
    sections, kept = _merged_sections(before.sections, now.sections)
    metadata, keys, kept_keys = _merged_metadata(before, now, given)
    return Merged(assemble(rewrite(metadata, before.block, now.block), keys, sections), (*kept_keys, *kept))


def with_modes(card: str, rendered: str) -> Merged:
    """Puts the last section of a card of ours into somebody's own, of which nothing else changes.

    It comes at the end, or in the place of one that was put there before; one that a person changed stays.

    Args:
        card: Somebody's card.
        rendered: A card of ours that ends with the section.

    Returns:
        The card, and what was kept.

    Raises:
        ConfigError: If the card is damaged.
    """
    new, sections = parse_card(rendered).sections[-1], parse_card(card).sections
    number, own = next(((index, one) for index, one in enumerate(sections) if one.name == new.name), (-1, None))
    if own is None and any(one.title == new.title for one in sections):
        return Merged(card, (f"your section '{new.title}' stays in place of the generated one",))
    text, end = card.replace("\r\n", "\n"), "\r\n" if "\r\n" in card else "\n"
    if own is None:
        text = f"{text.rstrip(chr(10))}\n\n{new.render()}\n" if text.strip() else f"{new.render()}\n"
        return Merged(text.replace("\n", end), ())
    section, note = _renewed(new, own, None)
    lines = text.split("\n")
    rest = lines[sections[number + 1].line - 1 :] if number + 1 < len(sections) else []
    lines[own.line - 1 :] = [*section.render().split("\n"), "", *rest]
    return Merged("\n".join(lines).replace("\n", end), (note,) if note else ())


def decide(before: Any, written: str | None, now: Any, *, asked: bool = False) -> tuple[Any, str | None]:
    """Decides about one key of the metadata; `ABSENT` stands for a key that is not there.

    `written` is the hash of what was generated for it before, or None; `asked` says that the new value was asked for,
    or decided by a merge before. Returns the value, and what became of a person's, or None where there is nothing to
    say.
    """
    if asked or (before is not ABSENT and written == _hashed(before)):
        return now, None  # ours then: replaced, or dropped where it is no longer generated
    if before is ABSENT:
        removed = written is not None
        return (ABSENT, "stays removed" if now is not ABSENT else None) if removed else (now, None)
    return before, "stays as you set it" if before != now else None


def _merged_metadata(
    before: ParsedCard, now: ParsedCard, given: Collection[str]
) -> tuple[dict[str, Any], dict[str, str], tuple[str, ...]]:
    """Returns the metadata, the hashes of what was generated for it, and what was kept.

    What was asked for has no hash, so that it counts as a person's from then on.
    """
    there, made, hashes = dict(before.metadata), dict(now.metadata), key_hashes(now.metadata)
    theirs = {key for key, value in there.items() if before.keys.get(key) != _hashed(value)}
    settled = {key for key in {*now.keys, *made} if now.keys.get(key) != hashes.get(key)}  # by a merge before
    alien = frozenset[str]()  # name and link of a licence that is not the one on the card
    if _LICENSE in given:
        alien = _OF_LICENSE.difference(given)
    elif _LICENSE in theirs - (settled & made.keys()):
        alien = _OF_LICENSE.difference(given, theirs)
    for key in alien:
        there.pop(key, None)
        made.pop(key, None)
    if "tags" in given and "tags" in theirs & made.keys() and isinstance(there["tags"], list):
        made["tags"] = list(dict.fromkeys([*there["tags"], *made["tags"]]))
    result, kept = dict[str, Any](), list[str]()
    for key in dict.fromkeys([*made, *there]):
        asked = key in settled or (key in given and key in made)
        value, note = decide(there.get(key, ABSENT), before.keys.get(key), made.get(key, ABSENT), asked=asked)
        result |= {} if value is ABSENT else {key: value}
        kept += [f"metadata '{key}' {note}"] if note else []
    unhashed = {*given, *(alien & now.metadata.keys()), *((there.keys() & result.keys()) - before.keys.keys())}
    return result, {key: value for key, value in now.keys.items() if key not in unhashed}, tuple(kept)


ABSENT: Any = object()
_LICENSE = "license"
_OF_LICENSE = frozenset({"license_name", "license_link"})


def _hashed(value: Any) -> str:
    return key_hashes({"value": value})["value"]


def _merged_sections(before: Sequence[Section], now: Sequence[Section]) -> tuple[tuple[Section, ...], tuple[str, ...]]:
    before = _copies_are_theirs(before)
    old: dict[str | None, Section] = {section.name: section for section in before if section.name}
    own = {section.title: section for section in before if section.name is None and section.title}
    result, kept = list[Section](), list[str]()
    for section in _in_the_order_of(before, now):
        chosen, note = _renewed(section, old.get(section.name), own.get(section.title))
        if chosen is own.get(section.title):
            del own[section.title]
        result.append(chosen)
        kept += [note] if note else []
    present = {section.name for section in now if section.name}
    titles = {section.title for section in now if section.name is None}
    anchor: str | None = None
    after: dict[str | None, list[Section]] = {}
    for section in before:
        if section.name in present:
            anchor = section.name
        elif section.name or (section.title not in titles and not any(section is one for one in result)):
            left, note = _left(section)
            after.setdefault(anchor, []).extend([left] if left else [])
            kept += [note] if note else []
    placed = after.pop(None, [])
    for section in result:
        placed += [section, *after.pop(section.name, ())]
    return tuple(placed), tuple(kept)


def _renewed(section: Section, old: Section | None, own: Section | None) -> tuple[Section, str | None]:
    """Decides what stands in the place of a section of the new card, beside the old one and a person's of its title."""
    if section.name and old is None and own is not None:  # its marker was removed
        return own, f"your section '{section.title}' stays in place of the generated one"
    if section.name is None or old is None or section.is_edited:
        return section, None
    if not old.is_edited:
        return _with_regions(section, old), None
    if without_yours(old.lines) == without_yours(section.lines):
        return old, None
    return old, f"section '{old.title}' stays as you changed it; delete it to get the generated one"


def _left(section: Section) -> tuple[Section | None, str | None]:
    """Decides what is left of a section of the old card that the new one does not have."""
    if section.name is None:
        return section, f"your section '{section.title}' stays" if section.title else "your text at the top stays"
    if section.is_edited:
        return section, f"section '{section.title}' stays as you changed it, though it is no longer generated"
    lines = [line for *_, region in _regions(section) for line in ("", *region)]
    if not lines:
        return None, None
    note = f"your text in '{section.title}' stays, though the section is no longer generated"
    return Section(section.line, tuple(lines)), note


def _copies_are_theirs(sections: Sequence[Section]) -> list[Section]:
    """A second section with the mark of a generated one was copied by a person, whose it is."""
    seen: set[str] = set()
    found = []
    for section in sections:
        if section.name in seen:
            section = dataclasses.replace(section, name=None, written=None)
        found.append(section)
        seen |= {section.name} if section.name else set()
    return found


def _in_the_order_of(before: Sequence[Section], now: Sequence[Section]) -> list[Section]:
    """Puts the generated sections into the order in which a person left them."""
    by_name = {section.name: section for section in now if section.name}
    order = iter([by_name[section.name] for section in before if section.name in by_name])
    there = {section.name for section in before if section.name}
    return [next(order) if section.name and section.name in there else section for section in now]


def _with_regions(section: Section, old: Section) -> Section:
    """Puts the user's regions of an old section into the new one: after the same line, else at its end."""
    found = _regions(old)
    if not found or _regions(section):
        return section
    if old.written == section.written:
        return old
    lines = list(section.text.split("\n"))
    same = [line.rstrip() for line in without_yours(old.lines)]
    for before, occurrence, region in reversed(found):
        hits = [index for index, line in enumerate(lines) if before and line.rstrip() == before]
        at = hits[occurrence] + 1 if len(hits) == same.count(before) > 0 else len(lines)
        blank = ("",) if at and lines[at - 1].strip() else ()
        lines[at:at] = [*blank, *region, *(("",) if at < len(lines) and lines[at].strip() else ())]
    return dataclasses.replace(section, lines=tuple(lines))


def _regions(section: Section) -> list[tuple[str, int, list[str]]]:
    """Lists the user's regions with the last line before each that is not blank, and how many like it came before."""
    found: list[tuple[str, int, list[str]]] = []
    before, inside = "", False
    seen: Counter[str] = Counter()
    for line in section.lines:
        if not inside and line.strip() == YOURS:
            found.append((before, seen[before] - 1, []))
            inside = True
        if inside:
            found[-1][2].append(line)
            inside = line.strip() != END_OF_YOURS
        elif line.strip():
            before = line.rstrip()
            seen[before] += 1
    return found
