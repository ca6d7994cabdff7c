"""Which adapted modules share a weight, and the setting that a list of weights means."""

from __future__ import annotations

import re
from collections.abc import Sequence

from taia_hub.errors import ConfigError, SettingError, closest
from taia_hub.results.tuning import WeightGroup
from taia_hub.roles import ROLES
from taia_hub.switch.modes import MODES
from taia_hub.switch.settings import Entry, Setting, parse_setting
from taia_hub.switch.switch import Site
from taia_hub.tuning.options import BY

DECIMALS = 2
"""Decimals that a weight keeps: what is smaller changes no answer, and a setting stays readable."""

_NAMES = (BY, "role", "layer", "block:4")
_HINT = (
    f"Give '{BY}' (the default), 'role', 'layer', 'block:N' (N neighbouring layers of a role), or selectors as a "
    "setting has them, of which the last that selects a module counts: ['attention', 'ffn@0-7', '*.down_proj']."
)
_BLOCK = re.compile(r"block:([1-9]\d*)")


class Grouping:
    """The G groups of a switch's S sites: weights of groups become weights of sites, and a setting.

    A group is what one selector of the grammar of settings selects, unless a later one selects it too; what none does
    is a group of its own, first in the order. `of_site` is the index of each site's group, (S,), and `whole` tells of
    each group whether its sites act as a whole or not at all, (G,): where others share their selector, such sites are
    groups by themselves, last in the order.

    Raises:
        ConfigError: If `by` is not understood, or a selector that was given is left without a module.

    Example:
        >>> sites = [Site(f"layers.{n}.mlp.up_proj", "ffn", n, "lora.Linear", 64) for n in range(3)]
        >>> grouping = Grouping(sites, "block:2")
        >>> [group.label for group in grouping.groups], grouping.of_site
        (['ffn@0-1', 'ffn@2'], (0, 0, 1))
    """

    def __init__(self, sites: Sequence[Site], by: str | Sequence[str] = BY) -> None:
        if not sites:
            raise ConfigError("The model has no adapted modules.", "Give a TAIA repository, or a base with an adapter.")
        self.sites = tuple(sites)
        selectors, self.by = _selectors(sites, by)
        entries = [_entry(selector) for selector in ("*", *selectors)]
        found = [max(at for at, entry in enumerate(entries) if entry.selects(site)) for site in sites]
        for at, entry in enumerate(entries[1:], 1):
            if at not in found:
                raise ConfigError(f"The selector '{entry.key}' is left without an adapted module.", _HINT)
        for at in sorted(set(found)):
            members = [number for number, one in enumerate(found) if one == at]
            whole = [number for number in members if sites[number].whole_only]
            for number in whole if len(whole) < len(members) else ():
                found[number] = len(entries)
                entries += parse_setting({sites[number].path: 1.0}).entries
        used = sorted(set(found))
        self.of_site = tuple(map(used.index, found))
        self.whole = tuple(
            any(site.whole_only for site, one in zip(sites, found, strict=True) if one == at) for at in used
        )
        self.groups = tuple(
            _group(entries[at], [site for site, one in zip(sites, found, strict=True) if one == at]) for at in used
        )

    @property
    def neighbours(self) -> tuple[tuple[int, int], ...]:
        """Pairs of groups that stand beside each other: of one role, the second where the layers of the first end."""
        ends = {(one.role, one.layers[1] + 1): at for at, one in enumerate(self.groups) if one.layers}
        starts = [(at, (one.role, one.layers[0])) for at, one in enumerate(self.groups) if one.layers]
        return tuple((ends[start], at) for at, start in starts if start in ends)

    def of_sites(self, weights: Sequence[float]) -> tuple[float, ...]:
        """Returns the (S,) weights of the sites of the (G,) weights of the groups."""
        return tuple(weights[group] for group in self.of_site)

    def of_setting(self, setting: Setting) -> tuple[float, ...]:
        """Returns the (G,) weights that a setting gives the groups: the mean where a group's modules have several."""
        members: list[list[float]] = [[] for _ in self.groups]
        for group, weight in zip(self.of_site, setting.weights(self.sites), strict=True):
            members[group].append(weight)
        return tuple(one[0] if len(set(one)) == 1 else sum(one) / len(one) for one in members)

    def setting(self, weights: Sequence[float]) -> Setting:
        """Returns the shortest setting that gives the (G,) groups these weights, rounded; a mode, if it is one.

        Example:
            >>> sites = [Site(f"layers.{n}.mlp.up_proj", "ffn", n, "lora.Linear", 64) for n in range(4)]
            >>> Grouping(sites).setting([0.5, 0.5, 0.50001, 0]).value
            {'ffn@0-2': 0.5}
        """
        exact = [round(float(weight), DECIMALS) + 0.0 for weight in weights]
        wanted = self.of_sites(exact)
        every = {group.selector: weight for group, weight in zip(self.groups, exact, strict=True)}
        for value in (*MODES, {key: one for key, one in self._joined(exact).items() if one}, every):
            setting = parse_setting(value, allow_extrapolation=True)
            if setting.weights(self.sites) == wanted:
                return setting
        raise AssertionError(every)  # the last one is made of the groups' own selectors

    def _joined(self, weights: Sequence[float]) -> dict[str, float]:
        """Selects neighbours that have one weight together."""
        following = dict(self.neighbours)
        later = set(following.values())
        found = {}
        for at, (group, weight) in enumerate(zip(self.groups, weights, strict=True)):
            if at in later and any(weights[one] == weight for one, other in following.items() if other == at):
                continue  # an earlier one reaches here
            end = at
            while end in following and weights[following[end]] == weight:
                end = following[end]
            selector, last = group.selector, self.groups[end].layers
            if end != at and group.layers and last:
                selector = f"{group.role or '*'}@{group.layers[0]}-{last[1]}"
            found[selector] = weight
        return found


def _selectors(sites: Sequence[Site], by: str | Sequence[str]) -> tuple[list[str], str]:
    """Returns the selectors of the groups, later ones overriding earlier ones, and how `by` is called."""
    if not isinstance(by, str) or (by not in ("role", "layer", BY) and not _BLOCK.fullmatch(by)):
        given = [part.strip() for part in by.split(",")] if isinstance(by, str) else list(by)
        return given, ",".join(map(str, given))
    found = _BLOCK.fullmatch(by)
    size = int(found[1]) if found else 1
    layers = sorted({site.layer for site in sites if site.layer is not None})
    roles = ["*"] if by == "layer" else [role for role in ROLES if any(site.role == role for site in sites)]
    whole = [role for role in roles if role != "*"]
    if by == "role":
        return whole, by
    blocks = [[one for one in layers if one // size == number] for number in sorted({one // size for one in layers})]
    pairs = [
        (role, block)
        for block in blocks
        for role in roles
        if any(site.layer in block and role in ("*", site.role) for site in sites)
    ]
    outside = [role for role in whole if any(site.layer is None and site.role == role for site in sites)]
    return [*outside, *(f"{role}@{_span(block[0], block[-1])}" for role, block in pairs)], by


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _entry(selector: str) -> Entry:
    cause: SettingError | None = None
    try:
        entry = parse_setting({selector: 1.0}).entries[0]
        if entry.role is not None or set("*?[.") & set(selector):  # else it is a word that was meant to be another
            return entry
    except SettingError as error:
        cause = error
    meant = closest(str(selector), _NAMES)
    raise ConfigError(f"Modules cannot be put together by {selector!r}.{meant}", _HINT) from cause


def _group(entry: Entry, members: Sequence[Site]) -> WeightGroup:
    roles = {site.role for site in members}
    layers = [site.layer for site in members if site.layer is not None]
    inside = len(layers) == len(members) and (entry.layers is not None or entry.role is not None)
    return WeightGroup(
        label=entry.key,
        selector=entry.key,
        role=roles.pop() if len(roles) == 1 else None,
        layers=(min(layers), max(layers)) if inside else None,
        modules=len(members),
        parameters=sum(site.parameters for site in members),
    )
