"""The grammar of a setting: which roles' updates act, and with which weight.

A setting is a mode name, roles joined by `+`, or a mapping from a role, a role at layers or a glob on the module path
to a weight, or from layers to a ramp of weights. Weights are in [0, 1]; in [-2, 2] where the setting says so itself. It
is parsed once, at the edge, into a `Setting`; files store `Setting.published`.
"""

from __future__ import annotations

import hashlib
import json
import numbers
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from taia_hub.common.parsing import parse_json
from taia_hub.errors import ConfigError, SettingError, closest, misspelt, short
from taia_hub.roles import ROLES
from taia_hub.switch.entries import ANY, Adapted, Entry
from taia_hub.switch.modes import MODES, NAMES, PAPER_NAMES, TUNED, Mode, canonical_mode

EXTRAPOLATES = "allow_extrapolation"
"""Beside the selectors of a mapping, `True` allows weights that go beyond what was trained."""

_LOWEST, _HIGHEST = -2, 2  # people probe with -1 and 1.5; far outside, a model says nothing any more
_LONGEST_SLUG = 64
_LONGEST_LABEL = 80

_ALLOWED = (
    f"Choose one of {', '.join(map(repr, MODES))} (or {', '.join(PAPER_NAMES.values())}), '{TUNED}' (what "
    "the repository publishes), roles joined by '+' (as in 'attention+other'), or a mapping of a role ('ffn'), a role "
    "at layers ('ffn@0-7', '*@0-7') or a glob on the module path ('model.layers.3.mlp.*') to a weight in [0, 1]."
)
_LAYERS = re.compile(r"(?P<first>\d+)(?:-(?P<last>\d+))?")
_MOST = 1_024
_LONGEST = 512


class Weighed(Adapted, Protocol):
    """What is known of an adapted module that a setting gives its weight to."""

    @property
    def whole_only(self) -> str | None:
        """Why the update cannot take another weight than 0 or 1, or None when it can."""


def _said(entry: Entry) -> str:
    """Writes the weight of an entry in as few digits as tell it from every other."""
    return " to ".join(f"{end:g}" if float(f"{end:g}") == end else repr(end) for end in entry.ends)


@dataclass(frozen=True)
class Setting:
    """A parsed setting; `parse_setting` makes one.

    A later entry overrides an earlier one where both select a module; `name` is the string it was given as, if any.
    That of `tuned` stands for what a repository publishes: it has a name, and means nothing before it is `resolved`.
    """

    entries: tuple[Entry, ...]
    name: str | None = None

    def resolved(self, published: Setting | None = None) -> Setting:
        """Returns this setting, or of `tuned` the one that is `published`.

        Raises:
            SettingError: If it is `tuned`, and nothing is published.
        """
        if self.name != TUNED:
            return self
        if published is None:
            raise SettingError(
                f"'{TUNED}' names the setting that a repository publishes, and none is at hand here.",
                'Name a mode, or write the weights, as in {"attention": 1, "ffn": 0.5}.',
            )
        return published

    @property
    def extrapolates(self) -> bool:
        """Whether a weight lies outside [0, 1]; files and users then say that this is meant."""
        return any(not 0 <= end <= 1 for entry in self.entries for end in entry.ends)

    @property
    def pairs(self) -> list[tuple[str, Any]]:
        """Selectors with their weights, as numbers or lists of two, in order; and what allows extrapolation."""
        pairs: list[tuple[str, Any]] = [(entry.key, entry.value) for entry in self.entries]
        return [*pairs, (EXTRAPOLATES, True)] if self.extrapolates else pairs

    @property
    def published(self) -> str | list[list[Any]]:
        """The form that config.json stores: the string, or a list of `[selector, weight]` pairs in order.

        A ramp is stored as its two weights; one more pair, `["allow_extrapolation", true]`, says that weights outside
        [0, 1] are meant.
        """
        name = self.resolved().name
        return name if name is not None else [list(pair) for pair in self.pairs]

    @property
    def acts(self) -> bool:
        """Whether any update may act: false of `none`, and of zeros alone."""
        return any(any(entry.ends) for entry in self.resolved().entries)

    @property
    def value(self) -> str | dict[str, Any]:
        """The form that users write: the string, or a mapping of selectors to weights."""
        return self.name if self.name is not None else dict(self.pairs)

    @property
    def whole_label(self) -> str:
        """The string, or `selector=weight` joined by commas, however many these are.

        No other setting has the same: one with a glob that could be read as several ends with a hash.
        """
        is_plain = all(entry.role or not {"=", ","} & set(entry.key) for entry in self.entries)
        return self._text if is_plain else f"{self._text} ({self._hash[:8]})"

    @property
    def _text(self) -> str:
        return self.name or ", ".join(f"{entry.key}={_said(entry)}" for entry in self.entries) or "none"

    @property
    def label(self) -> str:
        """A short text for tables: `whole_label`, or what is too long for a line counted, with a hash.

        Example:
            >>> parse_setting({"attention": 1, "*@0-7": [0.2, 1]}).label
            'attention=1, *@0-7=0.2 to 1'
            >>> parse_setting({f"ffn@{layer}": layer / 64 for layer in range(64)}).label
            '64 weights (403d18a3)'
        """
        text = self.whole_label
        return text if len(text) <= _LONGEST_LABEL else f"{len(self.entries)} weights ({self._hash[:8]})"

    @property
    def slug(self) -> str:
        """The label in signs that folders, files and engines take: selectors and weights joined by dashes.

        No other setting has the same: one with globs, whose signs are lost, and one that would be too long for the name
        of a folder or a repository end with a hash.

        Example:
            >>> parse_setting("attention+other").slug, parse_setting({"attention": 1, "*@0-7": [0.2, 1]}).slug
            ('attention+other', 'attention-1-any-0-7-0.2-to-1')
            >>> parse_setting({"*.q_proj": 1}).slug, parse_setting({"?*.q_proj": 1}).slug
            ('q_proj-1-cd36e163906c', 'q_proj-1-ed5a2b448034')
        """
        text = re.sub(r"(?<==)-|(?<= to )-", "minus", self._text).replace(f"{ANY}@", "any@")
        text = re.sub(r"[^\w.+]+", "-", text, flags=re.ASCII).strip("-.")
        if len(text) <= _LONGEST_SLUG and all(entry.role for entry in self.entries):
            return text
        return f"{text[: _LONGEST_SLUG - 13].rstrip('-.')}-{self._hash[:12]}"

    @property
    def _hash(self) -> str:
        return hashlib.sha256(json.dumps(self.published).encode()).hexdigest()

    def weights(self, modules: Sequence[Adapted]) -> tuple[float, ...]:
        """Gives each adapted module its weight, in the order of `modules`; 0 where no entry selects the module.

        Raises:
            SettingError: If a selector with layers or a glob matches no adapted module.
        """
        result = [0.0] * len(modules)
        for entry in self.resolved().entries:
            hits = [index for index, module in enumerate(modules) if entry.selects(module)]
            if not hits and (entry.role is None or entry.layers is not None):
                raise entry.no_match(modules)
            for index in hits:
                result[index] = entry.weight_of(modules[index])
        return tuple(result)


InferenceModules = Mode | str | Mapping[str, float | Sequence[float]] | Setting
"""What says which updates act: a mode, roles joined by `+`, or a mapping of selectors to weights."""


def parse_setting(value: Any, *, allow_extrapolation: bool = False) -> Setting:
    """Parses a mode name, roles joined by `+`, a mapping of selectors to weights, or a `Setting`.

    A mode may be called as the paper does: `TAIA`, `TAIF`, `vanilla` and `base`, in any case. A weight is a number in
    [0, 1]; of a role at several layers it may be a pair, a ramp that is linear over the layers with both ends included
    (LiNeS, arXiv 2410.17146). Weights in [-2, 2], which go beyond what was trained, are taken where the mapping holds
    `"allow_extrapolation": True`, or the caller says so.

    Raises:
        SettingError: If `value` is none of these; the message names the closest match.

    Example:
        >>> parse_setting("TAIA").published
        'attention'
        >>> parse_setting({"attention": 1, "*@0-7": [0.2, 1]}).published
        [['attention', 1.0], ['*@0-7', [0.2, 1.0]]]
        >>> parse_setting({"attention": 1.5, "allow_extrapolation": True}).published
        [['attention', 1.5], ['allow_extrapolation', True]]
    """
    if isinstance(value, Setting):
        return value
    if isinstance(value, str):
        return _parse_name(value)
    if isinstance(value, Mapping):
        return _parse_pairs(value.items(), allow_extrapolation)
    if isinstance(value, (list, tuple)):
        raise SettingError(
            f"A list of {len(value)} settings came where one setting is expected.",
            "A list means one setting a row of a batch, and only `forward` and `generate` take it: "
            'model.generate(**rows, inference_modules=["none", "attention"]).',
        )
    raise SettingError(f"Inference modules cannot be {short(value)} of type {type(value).__name__}.", _ALLOWED)


def parse_text(text: str, *, allow_extrapolation: bool = False) -> Setting:
    """Parses a setting that a person wrote into one line: a mode, roles joined by `+`, or a mapping as JSON.

    Raises:
        SettingError: As of `parse_setting`.
        ConfigError: If what begins as a mapping is no JSON.

    Example:
        >>> parse_text('{"attention": 1, "ffn": 0.5}').value
        {'attention': 1.0, 'ffn': 0.5}
    """
    if not text.lstrip().startswith("{"):
        return parse_setting(text)
    try:
        value = parse_json(text, unique=True)
    except ValueError as error:
        raise ConfigError(
            f"The setting {short(text)} is no JSON: {error}.", """Write it as in {"attention": 1, "ffn": 0.5}."""
        ) from error
    return parse_setting(value, allow_extrapolation=allow_extrapolation)


def parse_published(value: Any) -> Setting:
    """Parses the form that config.json stores: a string, or a list of `[selector, weight]` pairs.

    Example:
        >>> parse_published([["attention", 1.0], ["ffn@0-7", 0.5]]).value
        {'attention': 1.0, 'ffn@0-7': 0.5}
    """
    if not isinstance(value, (list, tuple)):
        return parse_setting(value)
    for pair in value:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise SettingError(
                f"Published inference modules hold {short(pair)} where a pair of selector and weight is expected.",
                'Write them as [["attention", 1.0], ["ffn@0-7", 0.5]].',
            )
    return _parse_pairs(value)


def check_weights(modules: Sequence[Weighed], weights: Sequence[float]) -> None:
    """Refuses another weight than 0 or 1 for an update that only acts as a whole.

    Raises:
        SettingError: If there is one.
    """
    for module, weight in zip(modules, weights, strict=True):
        if module.whole_only and weight not in (0, 1):
            raise SettingError(
                f"The weight {weight:g} came for '{module.path}', which takes only 0 or 1: {module.whole_only}.",
                "Use other weights for plain LoRA updates, and 0 or 1 here.",
            )


def _parse_name(name: str) -> Setting:
    if len(name) > _LONGEST:
        raise SettingError(f"Inference modules cannot be a text of {len(name):,} characters.", _ALLOWED)
    name = canonical_mode(name)
    if name == TUNED:
        return Setting((), TUNED)
    roles = MODES.get(name)
    if roles is None:
        roles = tuple(name.split("+"))
        if unknown := [role for role in roles if role not in ROLES]:
            if len(roles) > 1 and unknown[0].lower() in NAMES:
                raise SettingError(f"'{unknown[0]}' in '{name}' is a mode; '+' joins roles.", _ALLOWED)
            what = f"'{name}'" if len(roles) == 1 else f"'{unknown[0]}' in '{name}'"
            meant = closest(unknown[0].lower(), (*NAMES, "other"))
            raise SettingError(f"Unknown inference modules {what}.{meant}", _ALLOWED)
        if len(set(roles)) < len(roles):
            raise SettingError(f"A role comes twice in '{name}'.", "Name each role once.")
    return Setting(tuple(Entry(role, 1.0, role, None) for role in roles), name)


def _parse_pairs(pairs: Iterable[tuple[Any, Any]], allow_extrapolation: bool = False) -> Setting:
    """Parses selectors and weights in order; the pair that allows extrapolation may stand anywhere."""
    pairs, said = list(pairs), [value for key, value in pairs if key == EXTRAPOLATES]
    if any(not isinstance(one, bool) for one in said):
        raise SettingError(f"'{EXTRAPOLATES}' is {short(said[0])}.", "Write true or false, without quotes.")
    if said and len(pairs) == len(said):
        raise SettingError(
            f"'{EXTRAPOLATES}' came alone: no weight is given.",
            f'Write it as in {{"ffn": 1.5, "{EXTRAPOLATES}": true}}.',
        )
    if len(pairs) - len(said) > _MOST:  # each is matched with every adapted module
        raise SettingError(
            f"A setting has {len(pairs) - len(said):,} entries; at most {_MOST:,} are taken.",
            "Select many modules by a glob ('model.layers.3.*') or by their layers ('ffn@0-7').",
        )
    entries: dict[str, Entry] = {}
    for key, value in pairs:
        if key == EXTRAPOLATES:
            continue
        entry = _parse_entry(key, value, allow_extrapolation or any(said))
        if key in entries:
            raise SettingError(f"The selector '{key}' comes twice.", "Keep the later pair; it overrides the other.")
        entries[key] = entry
    return Setting(tuple(entries.values()))


def _parse_entry(key: Any, weight: Any, extrapolates: bool) -> Entry:
    if not isinstance(key, str) or not 0 < len(key) <= _LONGEST:
        raise SettingError(f"A selector of inference modules cannot be {short(key)}.", _ALLOWED)
    ends = _parse_weight(key, weight, extrapolates)
    role, at, layers = key.partition("@")
    if role not in ROLES and not (role == ANY and at):
        if at or key.lower() in NAMES or "+" in key:
            hint = f"Use the selector '*' for every module. {_ALLOWED}" if key.lower() in NAMES else _ALLOWED
            meant = closest(canonical_mode(role), ROLES)
            raise SettingError(f"Unknown selector '{key}' in a mapping.{meant}", hint)
        return Entry(key, _flat(key, ends), None, None)
    if not at:
        return Entry(key, _flat(key, ends), role, None)
    match = _LAYERS.fullmatch(layers)
    first = int(match["first"]) if match else 0
    last = int(match["last"] or first) if match else -1
    if last < first:
        raise SettingError(
            f"Layers '{layers}' in '{key}' are neither one layer nor a rising range.",
            f"Write '{role}@12' or '{role}@0-7', both ends included.",
        )
    if len(ends) == 2 and first < last:
        return Entry(key, (ends[0], ends[1]), role, (first, last))
    return Entry(key, _flat(key, ends), role, (first, last))


def _parse_weight(key: str, weight: Any, extrapolates: bool) -> tuple[float, ...]:
    """Reads a weight, or the two of a ramp."""
    is_ramp = isinstance(weight, (list, tuple))
    given = tuple(weight) if is_ramp else (weight,)
    is_form = len(given) == 1 + is_ramp
    low, high = (_LOWEST, _HIGHEST) if extrapolates else (0, 1)
    if is_form and all(_is_number(one, low, high) for one in given):
        return tuple(float(one) + 0.0 for one in given)  # of -0.0 a plain zero
    what = f"{low} to {high}, where 0 masks and 1 acts in full" if extrapolates else "0 (masked) to 1 (acts in full)"
    hint = 'Write it as in {"attention": 1, "ffn": 0.5}, or as a ramp over layers: {"*@0-7": [0.2, 1]}.'
    if is_form and all(_is_number(one, _LOWEST, _HIGHEST) for one in given):
        hint = (
            f"Weights from {_LOWEST} to {_HIGHEST} go beyond what was trained; a setting that means them says so: "
            f'{{"ffn": 1.5, "{EXTRAPOLATES}": true}}, or on the command line --extrapolate.'
        )
    elif isinstance(weight, bool) and misspelt(key, (EXTRAPOLATES,)):
        hint = f"Did you mean '{EXTRAPOLATES}'?"
    raise SettingError(f"The weight of '{key}' is {short(weight)}; it must be a number from {what}.", hint)


def _is_number(value: Any, low: int, high: int) -> bool:
    """Tells a number of a range; it is compared as it is, because of a whole number no float may be large enough."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and bool(low <= value <= high)  # type: ignore[operator]


def _flat(key: str, ends: tuple[float, ...]) -> float:
    """Returns the one weight of a selector that is no range of layers; a ramp has nothing to run over there."""
    if len(ends) > 1:
        ramp = ", ".join(f"{end:g}" for end in ends)
        raise SettingError(
            f"'{key}' came with the two weights {ramp}, and is no range of layers.",
            f'A ramp runs over at least two layers: {{"*@0-7": [{ramp}]}}, or of one role: {{"ffn@0-7": [{ramp}]}}.',
        )
    return ends[0]
