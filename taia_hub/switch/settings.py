"""The grammar of a setting: which roles' updates act, and with which weight.

A setting is a mode name, roles joined by `+`, or a mapping from a role, a role at layers or a glob on the
module path to a weight in [0, 1]. It is parsed once, at the edge, into a `Setting`; files store `Setting.published`.
"""

from __future__ import annotations

import hashlib
import json
import numbers
import re
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, Protocol

from taia_hub.common.parsing import parse_json
from taia_hub.errors import ConfigError, SettingError, closest, short
from taia_hub.roles import ROLES

MODES: Mapping[str, tuple[str, ...]] = {
    "attention": ("attention",),
    "ffn": ("ffn",),
    "all": ROLES,
    "none": (),
}
"""Mode name to the roles whose updates act: TAIA, TAIF, the vanilla fine-tune and the base model."""

PAPER_NAMES: Mapping[str, str] = {"attention": "TAIA", "ffn": "TAIF", "all": "vanilla", "none": "base"}
"""Mode name to what the paper calls it; in any case that is taken for the mode too, and never written to a file."""

_LONGEST_SLUG = 64

Mode = Literal["attention", "ffn", "all", "none"]
"""A mode by its name."""

_NAMES = {**{mode: mode for mode in MODES}, **{name.lower(): mode for mode, name in PAPER_NAMES.items()}}
_ALLOWED = (
    f"Choose one of {', '.join(map(repr, MODES))} (or {', '.join(PAPER_NAMES.values())}), roles joined by '+' (as in "
    "'attention+other'), or a mapping of a role ('ffn'), a role at layers ('ffn@0-7') or a glob on the module path "
    "('model.layers.3.mlp.*') to a weight in [0, 1]."
)
_LAYERS = re.compile(r"(?P<first>\d+)(?:-(?P<last>\d+))?")
_MOST = 1_024
_LONGEST = 512


class Adapted(Protocol):
    """What a setting needs to know of an adapted module."""

    @property
    def path(self) -> str:
        """Module path as in the head model."""

    @property
    def role(self) -> str:
        """One of `ROLES`."""

    @property
    def layer(self) -> int | None:
        """Index of the layer that the module is in, or None outside the layers."""


class Weighed(Adapted, Protocol):
    """What is known of an adapted module that a setting gives its weight to."""

    @property
    def whole_only(self) -> str | None:
        """Why the update cannot take a weight strictly between 0 and 1, or None when it can."""


@dataclass(frozen=True)
class Entry:
    """One line of a setting: what it selects and with which weight in [0, 1].

    A selector is a `role` with first and last of its `layers` (inclusive, None for every one), or a glob without a
    role.
    """

    key: str
    weight: float
    role: str | None
    layers: tuple[int, int] | None

    def selects(self, module: Adapted) -> bool:
        """Tells whether this entry's weight applies to `module`."""
        if self.role is None:
            return fnmatchcase(module.path, self.key)
        if self.role != module.role:
            return False
        if self.layers is None:
            return True
        return module.layer is not None and self.layers[0] <= module.layer <= self.layers[1]


def _short(weight: float) -> str:
    """Writes a weight in as few digits as tell it from every other."""
    return f"{weight:g}" if float(f"{weight:g}") == weight else repr(weight)


@dataclass(frozen=True)
class Setting:
    """A parsed setting; `parse_setting` makes one.

    A later entry overrides an earlier one where both select a module; `name` is the string it was given as, if any.
    """

    entries: tuple[Entry, ...]
    name: str | None = None

    @property
    def published(self) -> str | list[list[Any]]:
        """The form that config.json stores: the string, or a list of `[selector, weight]` pairs in order."""
        return self.name if self.name is not None else [[entry.key, entry.weight] for entry in self.entries]

    @property
    def acts(self) -> bool:
        """Whether any update may act: false of `none`, and of zeros alone."""
        return any(entry.weight for entry in self.entries)

    @property
    def value(self) -> str | dict[str, float]:
        """The form that users write: the string, or a mapping of selectors to weights."""
        return self.name if self.name is not None else {entry.key: entry.weight for entry in self.entries}

    @property
    def label(self) -> str:
        """A short text for tables: the string, or `selector=weight` joined by commas."""
        return self.name or ", ".join(f"{entry.key}={_short(entry.weight)}" for entry in self.entries) or "none"

    @property
    def slug(self) -> str:
        """The label in signs that folders, files and engines take: selectors and weights joined by dashes.

        No other setting has the same: one with globs, whose signs are lost, and one that would be too long for the name
        of a folder or a repository end with a hash.

        Example:
            >>> parse_setting("attention+other").slug, parse_setting({"attention": 1, "ffn@0-7": 0.5}).slug
            ('attention+other', 'attention-1-ffn-0-7-0.5')
            >>> parse_setting({"*.q_proj": 1}).slug, parse_setting({"?*.q_proj": 1}).slug
            ('q_proj-1-cd36e163906c', 'q_proj-1-ed5a2b448034')
        """
        text = re.sub(r"[^\w.+]+", "-", self.label, flags=re.ASCII).strip("-.")
        if len(text) <= _LONGEST_SLUG and all(entry.role for entry in self.entries):
            return text
        hashed = hashlib.sha256(json.dumps(self.published).encode()).hexdigest()[:12]
        return f"{text[: _LONGEST_SLUG - 13].rstrip('-.')}-{hashed}"

    def weights(self, modules: Sequence[Adapted]) -> tuple[float, ...]:
        """Gives each adapted module its weight, in the order of `modules`; 0 where no entry selects the module.

        Raises:
            SettingError: If a selector with layers or a glob matches no adapted module.
        """
        result = [0.0] * len(modules)
        for entry in self.entries:
            hits = [index for index, module in enumerate(modules) if entry.selects(module)]
            if not hits and (entry.role is None or entry.layers is not None):
                raise _no_match(entry, modules)
            for index in hits:
                result[index] = entry.weight
        return tuple(result)


InferenceModules = Mode | str | Mapping[str, float] | Setting
"""What says which updates act: a mode, roles joined by `+`, or a mapping of selectors to weights in [0, 1]."""


def canonical_mode(name: str) -> str:
    """Returns the mode that a name means, in any case and in the paper's words too; other texts come back as they are.

    Example:
        >>> canonical_mode("TAIA"), canonical_mode("Base"), canonical_mode("attention+other")
        ('attention', 'none', 'attention+other')
    """
    return _NAMES.get(name.lower(), name)


def mode_title(label: str) -> str:
    """Returns what a person reads for the label of a setting: a mode with the paper's name for it.

    Example:
        >>> mode_title("attention"), mode_title("ffn=0.5")
        ('attention (TAIA)', 'ffn=0.5')
    """
    return f"{label} ({PAPER_NAMES[label]})" if label in PAPER_NAMES else label


def parse_setting(value: Any) -> Setting:
    """Parses a mode name, roles joined by `+`, a mapping of selectors to weights in [0, 1], or a `Setting`.

    A mode may be called as the paper does: `TAIA`, `TAIF`, `vanilla` and `base`, in any case.

    Raises:
        SettingError: If `value` is none of these; the message names the closest match.

    Example:
        >>> parse_setting("TAIA").published
        'attention'
        >>> parse_setting("attention+other").published
        'attention+other'
        >>> parse_setting({"attention": 1, "ffn@0-7": 0.5}).published
        [['attention', 1.0], ['ffn@0-7', 0.5]]
    """
    if isinstance(value, Setting):
        return value
    if isinstance(value, str):
        return _parse_name(value)
    if isinstance(value, Mapping):
        _check_number(value)
        return Setting(tuple(_parse_entry(key, weight) for key, weight in value.items()))
    if isinstance(value, (list, tuple)):
        raise SettingError(
            f"A list of {len(value)} settings came where one setting is expected.",
            "A list means one setting a row of a batch, and only `forward` and `generate` take it: "
            'model.generate(**rows, inference_modules=["none", "attention"]).',
        )
    raise SettingError(f"Inference modules cannot be {short(value)} of type {type(value).__name__}.", _ALLOWED)


def parse_text(text: str) -> Setting:
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
    return parse_setting(value)


def parse_published(value: Any) -> Setting:
    """Parses the form that config.json stores: a string, or a list of `[selector, weight]` pairs.

    Example:
        >>> parse_published([["attention", 1.0], ["ffn@0-7", 0.5]]).value
        {'attention': 1.0, 'ffn@0-7': 0.5}
    """
    if not isinstance(value, (list, tuple)):
        return parse_setting(value)
    _check_number(value)
    entries: dict[str, Entry] = {}
    for pair in value:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise SettingError(
                f"Published inference modules hold {short(pair)} where a pair of selector and weight is expected.",
                'Write them as [["attention", 1.0], ["ffn@0-7", 0.5]].',
            )
        entry = _parse_entry(*pair)
        if entry.key in entries:
            raise SettingError(
                f"The selector '{entry.key}' comes twice.", "Keep the later pair; it overrides the other."
            )
        entries[entry.key] = entry
    return Setting(tuple(entries.values()))


def check_weights(modules: Sequence[Weighed], weights: Sequence[float]) -> None:
    """Refuses a weight strictly between 0 and 1 for an update that only acts as a whole.

    Raises:
        SettingError: If there is one.
    """
    for module, weight in zip(modules, weights, strict=True):
        if module.whole_only and 0 < weight < 1:
            raise SettingError(
                f"The weight {weight:g} came for '{module.path}', which takes only 0 or 1: {module.whole_only}.",
                "Use weights between 0 and 1 for plain LoRA updates, and 0 or 1 here.",
            )


def _check_number(entries: Sized) -> None:
    """Refuses more entries than anybody writes: each is matched with every adapted module."""
    if len(entries) > _MOST:
        raise SettingError(
            f"A setting has {len(entries):,} entries; at most {_MOST:,} are taken.",
            "Select many modules by a glob ('model.layers.3.*') or by their layers ('ffn@0-7').",
        )


def _parse_name(name: str) -> Setting:
    if len(name) > _LONGEST:
        raise SettingError(f"Inference modules cannot be a text of {len(name):,} characters.", _ALLOWED)
    name = canonical_mode(name)
    roles = MODES.get(name)
    if roles is None:
        roles = tuple(name.split("+"))
        if unknown := [role for role in roles if role not in ROLES]:
            if len(roles) > 1 and unknown[0].lower() in _NAMES:
                raise SettingError(f"'{unknown[0]}' in '{name}' is a mode; '+' joins roles.", _ALLOWED)
            what = f"'{name}'" if len(roles) == 1 else f"'{unknown[0]}' in '{name}'"
            meant = closest(unknown[0].lower(), (*_NAMES, "other"))
            raise SettingError(f"Unknown inference modules {what}.{meant}", _ALLOWED)
        if len(set(roles)) < len(roles):
            raise SettingError(f"A role comes twice in '{name}'.", "Name each role once.")
    return Setting(tuple(Entry(role, 1.0, role, None) for role in roles), name)


def _parse_entry(key: Any, weight: Any) -> Entry:
    if not isinstance(key, str) or not 0 < len(key) <= _LONGEST:
        raise SettingError(f"A selector of inference modules cannot be {short(key)}.", _ALLOWED)
    real: Any = weight  # compared as it is: of a whole number no float may be large enough
    if isinstance(weight, bool) or not isinstance(weight, numbers.Real) or not 0 <= real <= 1:
        raise SettingError(
            f"The weight of '{key}' is {short(weight)}; it must be a number from 0 (masked) to 1 (acts in full).",
            'Write it as in {"attention": 1, "ffn": 0.5}.',
        )
    number = float(real)
    role, at, layers = key.partition("@")
    if role not in ROLES:
        if at or key.lower() in _NAMES or "+" in key:
            hint = f"Use the selector '*' for every module. {_ALLOWED}" if key.lower() in _NAMES else _ALLOWED
            meant = closest(canonical_mode(role), ROLES)
            raise SettingError(f"Unknown selector '{key}' in a mapping.{meant}", hint)
        return Entry(key, number, None, None)
    if not at:
        return Entry(key, number, role, None)
    match = _LAYERS.fullmatch(layers)
    first = int(match["first"]) if match else 0
    last = int(match["last"] or first) if match else -1
    if last < first:
        raise SettingError(
            f"Layers '{layers}' in '{key}' are neither one layer nor a rising range.",
            f"Write '{role}@12' or '{role}@0-7', both ends included.",
        )
    return Entry(key, number, role, (first, last))


def _no_match(entry: Entry, modules: Iterable[Adapted]) -> SettingError:
    modules = list(modules)
    if entry.role is not None:
        layers = sorted({module.layer for module in modules if module.role == entry.role and module.layer is not None})
        has, hint = f"none of them is {entry.role} in a layer", "Leave it out: where there is no update, nothing acts."
        if layers:
            has = f"its adapted {entry.role} modules are in layers {_ranges(layers)}"
            hint = f"Write '{entry.role}@{layers[0]}-{layers[-1]}', or '{entry.role}' for every layer."
        return SettingError(f"'{entry.key}' matches none of the model's {len(modules)} adapted modules; {has}.", hint)
    paths = [module.path for module in modules]
    example = f" The first adapted module is '{paths[0]}'." if paths else ""
    return SettingError(
        f"'{entry.key}' matches none of the model's {len(paths)} adapted modules."
        f"{closest(entry.key, [*ROLES, *paths])}",
        f"A selector is a role, a role at layers, or a glob on the module path.{example}",
    )


def _ranges(numbers_: Sequence[int]) -> str:
    if numbers_[-1] - numbers_[0] == len(numbers_) - 1:
        return f"{numbers_[0]}-{numbers_[-1]}"
    return ", ".join(map(str, numbers_))
