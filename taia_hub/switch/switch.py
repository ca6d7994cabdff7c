"""The switch: which updates act in this call, this row, this thread.

A `Switch` belongs to one loaded model and knows its adapted modules as plain values. Every adapted layer holds its
switch and its own index, and asks `Switch.acting()` when it runs. A setting for one call or block lives in one context
variable that maps switches to blocks: threads and tasks each see their own, and a second model sees none of it.
Switching therefore touches no weight and no module, whatever the depth.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

from taia_hub.common.shown import Shown
from taia_hub.common.text_tables import aligned
from taia_hub.errors import SettingError
from taia_hub.roles import ROLES
from taia_hub.switch.blocks import ACTIVE, Block, block_in_force
from taia_hub.switch.calls import Calls
from taia_hub.switch.modes import TUNED
from taia_hub.switch.settings import Setting, check_weights, parse_setting
from taia_hub.switch.weight import LearnedWeight, RowWeights, Weight

_CACHED_SETTINGS = 256
_SHOWN_WEIGHTS = 6


@dataclass(frozen=True)
class Site:
    """One adapted module.

    Attributes:
        path: Module path as in the head model, without PEFT's wrapper names.
        method: Name of the tuner layer's class, as in `"Linear"` or `"LoHa Linear"`.
        parameters: Number of parameters of the update.
        whole_only: Why the update cannot take another weight than 0 or 1, or None when it can.
        same_rows: Why the rows of a batch cannot take different weights here, or None when they can.
    """

    path: str
    role: str
    layer: int | None
    method: str
    parameters: int
    whole_only: str | None = None
    same_rows: str | None = None


class Publishing(Protocol):
    """What publishes a setting: the configuration of a repository."""

    @property
    def setting(self) -> Setting:
        """The setting."""


@dataclass(frozen=True)
class Acting:
    """What a setting, or one a row of the batch, means on one model: a weight for each adapted module of the switch."""

    settings: tuple[Setting, ...]
    weights: tuple[Weight, ...]


@dataclass(frozen=True)
class RoleStatus:
    """How the adapted modules of one role stand now: acting with a weight other than 0, or masked.

    `weights` is each weight in use with the number of modules that have it; `parameters` those of the role's updates.
    """

    adapted: int
    acting: int
    masked: int
    weights: Mapping[float, int]
    parameters: int


@dataclass(frozen=True, repr=False)
class SwitchStatus(Shown):
    """How a model's switch stands now, in this thread.

    Attributes:
        inference_modules: The setting in force, in the form that users write.
        roles: Role to its status, for each of `taia_hub.roles.ROLES`.
        methods: Class name of the tuner layers to the number of modules.
        unplaced: Paths of modules whose role could not be told from the structure; they count as `other`.
        fused: The setting whose updates are folded into the weights, so that no other can act; None when none are.
    """

    inference_modules: str | dict[str, Any]
    roles: Mapping[str, RoleStatus]
    methods: Mapping[str, int]
    unplaced: tuple[str, ...] = ()
    fused: str | dict[str, Any] | None = None

    def to_text(self) -> str:
        """Says which setting is in force, and lays out what acts by role."""
        rows = [["role", "adapted", "acting", "masked", "weights", "parameters"]]
        for role, part in self.roles.items():
            weights = ", ".join(f"{weight:g}" for weight in part.weights)
            if len(part.weights) > _SHOWN_WEIGHTS:
                weights = f"{min(part.weights):g} to {max(part.weights):g}"
            rows.append([role, *map(str, (part.adapted, part.acting, part.masked)), weights, f"{part.parameters:,}"])
        fused = "" if self.fused is None else ", fused into the weights"
        methods = ", ".join(f"{count} {method}" for method, count in self.methods.items())
        lines = [f"inference modules: {parse_setting(self.inference_modules).label}{fused}", aligned(rows)]
        lines.append(f"methods: {methods or 'none'}")
        if self.unplaced:
            lines.append(f"counted as other, as their role could not be told: {', '.join(self.unplaced)}")
        return "\n".join(lines)


_SWITCHES: weakref.WeakValueDictionary[int, Switch] = weakref.WeakValueDictionary()
# ^ lets a compiled graph, which can hold integers only, find the switch at run time
_NUMBERS = itertools.count()


class Switch:
    """The switch of one loaded model.

    `sites` are in the order of the indices that their layers hold; `inference_modules` holds where no call or block
    says otherwise; `unplaced` are paths of modules whose role could not be told; `published` is the configuration that
    says what `tuned` means.
    """

    def __init__(self, sites: Sequence[Site], inference_modules: Any, unplaced: Sequence[str] = ()) -> None:
        self.sites = tuple(sites)
        self.unplaced = tuple(unplaced)
        self.published: Publishing | None = None
        self.fused = None
        self._enlist()
        self._default = self.resolve(inference_modules)

    def _enlist(self) -> None:
        self._cache: dict[Any, Acting] = {}
        self.held: dict[FrameType, tuple[Block[Any], ...]] = {}
        # ^ the open blocks of generators, by frame
        self.calls = Calls()
        self.number = next(_NUMBERS)
        _SWITCHES[self.number] = self

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_cache", "calls", "held", "number")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._enlist()

    @property
    def default(self) -> Setting:
        """The setting that holds where no call or block says otherwise; while fused, the fused one."""
        return (self._fused or self._default).settings[0]

    @default.setter
    def default(self, value: Any) -> None:
        self._default = self.allowed(self.resolve(value))

    @property
    def fused(self) -> Acting | None:
        """What is folded into the weights, so that no other setting can act; None when nothing is."""
        return self._fused

    @fused.setter
    def fused(self, acting: Acting | None) -> None:
        self._fused = acting
        # What the layers obey meanwhile: nothing, because the weights hold the updates.
        self._silent = None if acting is None else Acting(acting.settings, (0.0,) * len(self.sites))

    def acting(self) -> Acting:
        """Returns what the layers obey now, in this thread or task: nothing while the weights hold the updates."""
        if self._silent is not None:
            return self._silent
        block: Block[Any] | None = ACTIVE.get().get(self)
        if block is None and not self.held:  # the usual way is short, because every layer asks
            return self._default
        return self._in_force() or self._default

    def asked(self) -> Acting:
        """Returns the setting in force now, in this thread or task."""
        return self._fused or self._in_force() or self._default

    def _in_force(self) -> Acting | None:
        """Returns what the block in force here says."""
        block: Block[Any] | None = ACTIVE.get().get(self)
        if self.held or (block is not None and not block.open):
            block = block_in_force(self)
        return None if block is None else block.acting

    def check(self) -> None:
        """Refuses to run a fused model in a thread or task that is inside a block of another setting."""
        if self._fused is not None and (active := self._in_force()) is not None:
            self.allowed(active)

    def allowed(self, acting: Acting) -> Acting:
        """Returns what may be put in force; while the model is fused, that is the fused setting alone."""
        if self._fused is not None and acting.weights != self._fused.weights:
            came = ", ".join(repr(value) for value in dict.fromkeys(str(one.value) for one in acting.settings))
            raise SettingError(
                f"The setting {came} came, but the model is fused: its weights hold the updates of "
                f"'{self._fused.settings[0].value}'.",
                "Call `model.unfuse()` first, or leave the `with model.fused(...)` block.",
            )
        return acting

    def resolve(self, value: Any) -> Acting:
        """Finds what one setting means on this model; nothing is changed, and settings seen before are looked up.

        Raises:
            SettingError: If the setting is not understood, or not possible on one of the modules.
        """
        key = (Mapping, *((k, *_typed(v)) for k, v in value.items())) if isinstance(value, Mapping) else value
        try:
            found = self._cache.get(key)
        except TypeError:  # not hashable, so certainly not a setting: parsing says why
            found = None
        if found is None:
            setting = parse_setting(value)
            if setting.name == TUNED:  # which may be another the next time
                return self.resolve(setting.resolved(None if self.published is None else self.published.setting))
            weights = setting.weights(self.sites)
            check_weights(self.sites, weights)
            found = self._remember(key, Acting((setting,), weights))
        return found

    def resolve_rows(self, values: Sequence[Any], rows: int | None = None) -> Acting:
        """Finds what one setting a row means on this model; nothing is changed.

        Raises:
            SettingError: If there are not as many settings as `rows` (where it is known), one is not understood, or a
                module cannot treat rows differently.
        """
        if not values or (rows is not None and len(values) != rows):
            raise SettingError(
                f"{len(values)} settings came for a batch of {'unknown size' if rows is None else f'{rows} rows'}.",
                "Give one setting for the whole batch, or a list with exactly one setting a row.",
            )
        acting = [self.resolve(value) for value in values]
        settings = tuple(one.settings[0] for one in acting)
        key = (RowWeights, *settings)
        if (found := self._cache.get(key)) is None:
            patterns: dict[tuple[float, ...], Weight] = {}
            columns = list(zip(*(one.weights for one in acting), strict=True))
            for site, column in zip(self.sites, columns, strict=True):
                differ = len(set(column)) > 1
                if differ and site.same_rows:
                    raise SettingError(
                        f"The rows of the batch have different settings at '{site.path}', which must treat all rows "
                        f"alike: {site.same_rows}.",
                        "Run the modes one after the other: `with model.using(mode): ...`.",
                    )
                patterns.setdefault(column, RowWeights(column) if differ else column[0])
            found = self._remember(key, Acting(settings, tuple(patterns[column] for column in columns)))
        return found

    def _remember(self, key: Any, acting: Acting) -> Acting:
        if len(self._cache) >= _CACHED_SETTINGS:
            self._cache = {}
        self._cache[key] = acting
        return acting

    def hold(self, acting: Acting) -> Block[None]:
        """Makes a block in which `acting` is in force, as of `taia_hub.switch.blocks`."""
        return Block(self, acting, None)

    def status(self) -> SwitchStatus:
        """Returns what is in force now, by role."""
        acting, fused = self.asked(), self._fused
        roles = {}
        for role in ROLES:
            modules = {  # a module may be wrapped by more than one tuner layer: it counts once
                site.path: _largest(weight)
                for site, weight in zip(self.sites, acting.weights, strict=True)
                if site.role == role
            }
            weights = Counter(modules.values())
            roles[role] = RoleStatus(
                adapted=len(modules),
                acting=len(modules) - weights[0.0],
                masked=weights[0.0],
                weights=dict(sorted(weights.items())),
                parameters=sum(site.parameters for site in self.sites if site.role == role),
            )
        return SwitchStatus(
            inference_modules=acting.settings[0].value,
            roles=roles,
            methods=dict(Counter(site.method for site in self.sites)),
            unplaced=self.unplaced,
            fused=None if fused is None else fused.settings[0].value,
        )


def weight_at(switch: int, site: int) -> float | RowWeights:
    """Returns the weight in force at a site, by numbers alone: what a compiled graph can hold.

    Raises:
        SettingError: If it is being learned: a graph would not let gradients through to it.
    """
    weight = _SWITCHES[switch].acting().weights[site]
    if isinstance(weight, LearnedWeight):
        raise SettingError(
            "A learned weight came in a compiled model, whose graph gives it no gradient.",
            "Learn weights on the model as it was before `torch.compile`, or inside `torch.compiler.set_stance"
            "('force_eager')`.",
        )
    return weight


def check(switch: int) -> None:
    """Refuses, by `Switch.number` alone, what `Switch.check` refuses."""
    _SWITCHES[switch].check()


@dataclass(frozen=True)
class KeepSetting:
    """An activation checkpointing function that recomputes under the setting of its forward.

    The recomputation runs in the backward pass, after a `using` block has ended and, on CUDA, in another thread; the
    switch's own setting may have changed before.
    """

    checkpoint: Callable[..., Any]
    switch: Switch

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls `checkpoint` with `function` bound to the setting in force now."""
        active = {switch: switch.asked() for switch in (*ACTIVE.get(), self.switch)}

        def run(*inner_args: Any, **inner_kwargs: Any) -> Any:
            with contextlib.ExitStack() as blocks:
                for switch, acting in active.items():
                    blocks.enter_context(switch.hold(acting))
                return function(*inner_args, **inner_kwargs)

        return self.checkpoint(run, *args, **kwargs)


def _largest(weight: Weight) -> float:
    if isinstance(weight, LearnedWeight):
        return max(weight.values.detach().view(-1).tolist(), key=abs)
    return max(weight.weights, key=abs) if isinstance(weight, RowWeights) else weight


def _typed(weight: Any) -> tuple[Any, ...]:
    """Tells a weight or a ramp from others; the types belong to it because True == 1, and only one is a weight."""
    return (tuple, *weight, *map(type, weight)) if isinstance(weight, (list, tuple)) else (weight, type(weight))
