"""The link from a model's card to the Space that compares its modes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from taia_hub.cards._yaml import rewrite
from taia_hub.cards.escaping import is_repo_id, link
from taia_hub.cards.sections import (
    Section,
    assemble,
    fingerprint,
    is_generated,
    key_hashes,
    parse_card,
    without_yours,
)
from taia_hub.errors import ConfigError

SPACE_KEY = "taia_space"
"""The metadata key that names the Space; the card alone knows it, so that it stays when the card is made again."""

_START = "Try it: [Space](https://huggingface.co/spaces/"


def try_it(space_id: str) -> str:
    """Writes the line of a card that links to a Space.

    Example:
        >>> try_it("org/model-compare")
        'Try it: [Space](https://huggingface.co/spaces/org/model-compare)'
    """
    return f"Try it: {link('Space', f'https://huggingface.co/spaces/{space_id}')}"


def space_of(card: str) -> str | None:
    """Returns the Hub id of the Space that a card names; None where it names none, or cannot be read."""
    try:
        found = parse_card(card).metadata.get(SPACE_KEY)
    except ConfigError:
        return None
    return found if is_repo_id(found) else None


def with_space(card: str, space_id: str) -> str:
    """Links a card to a Space and leaves everything else as it is.

    What a person decided stays: a card that names another Space by hand, or whose link was taken out.

    Args:
        card: A card that taia-hub wrote.
        space_id: Hub id of the Space.

    Returns:
        The card; the same text where nothing is to do.

    Raises:
        ConfigError: If the card was not written by taia-hub, or is damaged.
    """
    if not is_generated(card):
        raise ConfigError("The card was not written by taia-hub.", f"Add this line to it: {try_it(space_id)}")
    parsed = parse_card(card)
    named, ours = parsed.metadata.get(SPACE_KEY), parsed.keys.get(SPACE_KEY)
    by_hand = ours != _hashed(parsed.metadata) if named is not None else ours is not None
    if named == space_id or by_hand:
        return card
    metadata = {**parsed.metadata, SPACE_KEY: space_id}
    keys = {**parsed.keys, SPACE_KEY: str(_hashed(metadata))}
    sections = tuple(_linked(part, space_id) if part.name == "card" else part for part in parsed.sections)
    return assemble(rewrite(metadata, parsed.block), keys, sections)


def _hashed(metadata: Mapping[str, object]) -> str | None:
    return key_hashes(metadata).get(SPACE_KEY)


def _linked(section: Section, space_id: str) -> Section:
    """Puts the line into the section under the model's name, in place of the one that is there."""
    line = try_it(space_id)
    lines = [line if old.startswith(_START) else old for old in section.text.split("\n")]
    if line not in lines:
        lines += ["", line]
    changed = dataclasses.replace(section, lines=tuple(lines))
    if section.is_edited:
        return changed
    return dataclasses.replace(changed, written=fingerprint("\n".join(without_yours(changed.lines))))
