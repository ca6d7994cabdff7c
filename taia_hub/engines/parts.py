"""An update in parts that an engine weighs for itself: the cut by role, and a weight for each part under a setting.

Modules and settings come in, values go out; the same values cut the files and answer requests, so that neither can
mean another setting than the rest of the package.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import Any

from taia_hub.common.resuming import digest
from taia_hub.errors import ConfigError, SettingError, closest, short
from taia_hub.roles import ROLES
from taia_hub.switch.entries import Entry
from taia_hub.switch.settings import Setting, check_weights, parse_published, parse_setting, parse_text


@dataclass(frozen=True)
class Module:
    """An adapted module, as settings know it."""

    path: str
    role: str
    layer: int | None
    whole_only: str | None = None


@dataclass(frozen=True)
class Part:
    """Modules that have one weight under every setting that they were cut for.

    Attributes:
        label: A readable name: the role, a role at layers, or a role and a hash.
        selectors: What selects these modules, and no others of the update.
        path: The file that the engine weighs; None where nothing acts, or none could be made.
        refused: Why none could be made.
        rank: Rank of the LoRA in it.
    """

    label: str
    modules: tuple[Module, ...]
    selectors: tuple[str, ...]
    path: Path | None = None
    refused: str | None = None
    rank: int = 0

    @property
    def setting(self) -> Setting:
        """The setting under which this part alone acts, in full."""
        if self.selectors[0] in ROLES:
            return parse_setting(self.selectors[0])
        if self.selectors[0].partition("@")[0] in ROLES:
            return parse_setting(dict.fromkeys(self.selectors, 1))
        return Setting(tuple(Entry(path, 1.0, None, None) for path in self.selectors))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {**asdict(self), "path": None if self.path is None else str(self.path)}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Part:
        """Makes a part of the values of `to_dict`."""
        return cls(
            **{
                **values,
                "modules": tuple(Module(**one) for one in values["modules"]),
                "selectors": tuple(values["selectors"]),
                "path": values["path"] and Path(values["path"]),
            }
        )


def split(modules: Iterable[Module], settings: Sequence[Setting]) -> tuple[Part, ...]:
    """Cuts an update into as few parts as can be: by role, and further where a setting weighs modules of one otherwise.

    Raises:
        SettingError: If a setting selects by what matches no module, or cannot act on one.

    Example:
        >>> modules = [Module("l.0.mlp", "ffn", 0), Module("l.1.mlp", "ffn", 1), Module("l.1.attn", "attention", 1)]
        >>> [part.label for part in split(modules, [parse_setting({"attention": 1, "ffn@0": 0.5})])]
        ['attention', 'ffn@0', 'ffn@1']
    """
    adapted = tuple({one.path: one for one in modules}.values())
    columns = [_weights(setting, adapted) for setting in settings]
    cut: dict[tuple[Any, ...], list[Module]] = {}
    for module, *weights in zip(adapted, *columns, strict=True):
        cut.setdefault((module.role, *weights), []).append(module)
    of_role = {role: [one for one in adapted if one.role == role] for role in ROLES}
    parts = [_part(part, of_role[part[0].role]) for part in cut.values()]
    return tuple(sorted(parts, key=lambda part: ROLES.index(part.modules[0].role)))


def _part(part: Sequence[Module], of_role: Sequence[Module]) -> Part:
    """Names modules by their role, by some layers of it, or one by one."""
    role, paths = part[0].role, [one.path for one in part]
    if len(part) == len(of_role):
        return Part(role, tuple(part), (role,))
    layers = sorted({one.layer for one in part if one.layer is not None})
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    if sum(one.layer in layers for one in of_role) == len(part) and all(one.layer is not None for one in part):
        names = tuple(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)
        if len(names) <= 4:
            return Part(f"{role}@{'+'.join(names)}", tuple(part), tuple(f"{role}@{name}" for name in names))
    return Part(f"{role}-{digest(sorted(paths))[:8]}", tuple(part), tuple(map(escape, paths)))


def _weights(setting: Setting, modules: Sequence[Module]) -> tuple[float, ...]:
    weights = setting.weights(modules)
    check_weights(modules, weights)
    return weights


@dataclass(frozen=True)
class Served:
    """What a server answers to.

    Attributes:
        name: Name of the model; `name:SETTING` is the model under a setting.
        models: Names that are listed, each with its setting; the first is meant where a request names none.
        parts: All of the update.
    """

    name: str
    models: Mapping[str, Setting]
    parts: tuple[Part, ...]

    @cached_property
    def _modules(self) -> tuple[Module, ...]:
        return tuple(module for part in self.parts for module in part.modules)

    def setting(self, model: Any) -> Setting:
        """Finds the setting that the name of a model means.

        Raises:
            ConfigError: If there is no such model.
            SettingError: If what follows its colon is no setting.
        """
        if model is None or model == "":
            return next(iter(self.models.values()))
        if not isinstance(model, str) or (model not in self.models and not model.startswith(f"{self.name}:")):
            near = closest(model, self.models) if isinstance(model, str) else ""
            raise ConfigError(
                f"There is no model {short(model)} here.{near}",
                f"The models are {', '.join(self.models)}; any other setting may follow the colon too, as in "
                f'{self.name}:{{"attention": 1, "ffn": 0.5}}.',
            )
        return self.models.get(model) or self.known(parse_text(model.removeprefix(f"{self.name}:")))

    def known(self, setting: Setting) -> Setting:
        """Returns a setting, or of `tuned` what the model means by its name alone, which is what is published."""
        return setting.resolved(self.models.get(self.name))

    def weights(self, setting: Setting) -> tuple[float, ...]:
        """Gives each part its weight under a setting.

        Raises:
            SettingError: If the setting does not fit the update, tells modules of one part apart, or asks for a part
                that could not be made.
        """
        given = dict(zip(self._modules, _weights(setting, self._modules), strict=True))
        found = []
        for part in self.parts:
            weights = sorted({given[module] for module in part.modules})
            if len(weights) > 1:
                own = setting.value if isinstance(setting.value, str) else json.dumps(setting.value)
                raise SettingError(
                    f"The setting '{setting.label}' tells modules apart that are one LoRA here: those of "
                    f"'{part.label}' would get the weights {', '.join(f'{one:g}' for one in weights)}.",
                    f"Start the server with --mode '{own}' besides its other modes: its LoRAs are cut by them.",
                )
            if weights[0] and part.refused:
                raise SettingError(
                    f"The setting '{setting.label}' asks for the update of '{part.label}', which is not served here: "
                    f"{part.refused}",
                    "Ask for a setting in which it does not act.",
                )
            found.append(weights[0])
        return tuple(found)

    def takes(self, setting: Setting) -> bool:
        """Tells whether `weights` gives an answer."""
        try:
            self.weights(setting)
        except SettingError:
            return False
        return True

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        models = {name: setting.published for name, setting in self.models.items()}
        return {"name": self.name, "models": models, "parts": [part.to_dict() for part in self.parts]}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Served:
        """Makes it of the values of `to_dict`."""
        models = {name: parse_published(setting) for name, setting in values["models"].items()}
        return cls(values["name"], models, tuple(map(Part.of, values["parts"])))
