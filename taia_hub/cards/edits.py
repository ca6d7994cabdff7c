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
            f"Rename or delete it for a new one; your text goes between '{YOURS}' and '{END_OF_YOURS}' there.",
        )
    before = parse_card(old)
    sections, kept = _merged_sections(before.sections, now.sections)
    metadata, keys, kept_keys = _merged_metadata(before, now, given)
    return Merged(assemble(rewrite(metadata, before.block, now.block), keys, sections), (*kept_keys, *kept))


def _merged_metadata(
    before: ParsedCard, now: ParsedCard, given: Collection[str]
) -> tuple[dict[str, Any], dict[str, str], tuple[str, ...]]:
    """Returns the metadata, the hashes of what was generated for it, and what was kept.

    A person's values stay where they differ from what was generated then. What was asked for has no hash, so that it
    counts as a person's from then on.
    """
    hashes, ours_now = key_hashes(before.metadata), key_hashes(now.metadata)
    theirs = {key for key in before.metadata if key not in before.keys or before.keys[key] != hashes.get(key)}
    removed = {key for key in before.keys if key not in before.metadata}
    decided = {key for key in now.metadata if now.keys.get(key) != ours_now.get(key)}  # by a merge before
    generated = dict(now.metadata)
    if _LICENSE in given or _LICENSE in theirs - decided:  # its name and link belong to it
        theirs_now = set() if _LICENSE in given else theirs
        stays = {*given, *theirs_now}
        generated = {key: one for key, one in generated.items() if key not in _OF_LICENSE - stays}
        theirs -= _OF_LICENSE - theirs_now
    result: dict[str, Any] = {}
    kept = []
    for key, value in generated.items():
        if key in removed and key not in given and key not in decided:
            kept.append(f"metadata '{key}' stays removed")
        elif key == "tags" and key in given and key in theirs and isinstance(before.metadata[key], list):
            result[key] = list(dict.fromkeys([*before.metadata[key], *value]))
        elif key not in theirs or key in decided or key in given:
            result[key] = value
        else:
            result[key] = before.metadata[key]
            if result[key] != value:
                kept.append(f"metadata '{key}' stays as you set it")
    removed_now = {key for key in now.keys if key not in now.metadata}
    for key in before.metadata:
        if key in theirs and key not in result and key not in removed_now:
            result[key] = before.metadata[key]
            kept.append(f"metadata '{key}' stays as you set it")
    asked = {*given, *(key for key in theirs & result.keys() if key not in before.keys)}
    unknown = now.metadata.keys() - generated.keys()
    keys = {key: value for key, value in now.keys.items() if key not in asked | unknown}
    return result, keys, tuple(kept)


_LICENSE = "license"
_OF_LICENSE = {"license_name", "license_link"}


def _merged_sections(before: Sequence[Section], now: Sequence[Section]) -> tuple[tuple[Section, ...], tuple[str, ...]]:
    kept: list[str] = []
    before = _copies_are_theirs(before)
    now = _in_the_order_of(before, now)
    old = {section.name: section for section in before if section.name}
    own = {section.title: section for section in before if section.name is None and section.title}
    result: list[Section] = []
    for section in now:
        mine = old.get(section.name or "")
        if section.name and mine is None and section.title in own:  # its marker was removed
            kept.append(f"your section '{section.title}' stays in place of the generated one")
            result.append(own.pop(section.title))
            continue
        if section.name is None or mine is None or section.is_edited:
            result.append(section)
        elif mine.is_edited:
            result.append(mine)
            if without_yours(mine.lines) != without_yours(section.lines):
                kept.append(f"section '{mine.title}' stays as you changed it; delete it to get the generated one")
        else:
            result.append(_with_regions(section, mine))
    present = {section.name for section in now if section.name}
    there = {section.title: section for section in now if section.name is None}
    anchor: str | None = None
    after: dict[str | None, list[Section]] = {}
    for section in before:
        gone = section.name is not None and section.name not in present
        if section.name is None:
            if section.title not in there and not any(section is one for one in result):
                after.setdefault(anchor, []).append(section)
                kept.append(f"your section '{section.title}' stays" if section.title else "your text at the top stays")
        elif gone and section.is_edited:
            after.setdefault(anchor, []).append(section)
            kept.append(f"section '{section.title}' stays as you changed it, though it is no longer generated")
        elif gone and _regions(section):
            lines = [line for *_, region in _regions(section) for line in ("", *region)]
            after.setdefault(anchor, []).append(Section(section.line, tuple(lines)))
            kept.append(f"your text in '{section.title}' stays, though the section is no longer generated")
        if section.name in present:
            anchor = section.name
    placed = list(after.pop(None, []))
    for section in result:
        placed.append(section)
        if section.name in after:
            placed.extend(after.pop(section.name))
    return tuple(placed), tuple(kept)


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
