"""What describes a mixture of LoRA experts (MoLoRA): its settings, and the file that holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from taia_hub import hub
from taia_hub.errors import ConfigError, RepositoryError, closest, short
from taia_hub.hub.layout import MOLORA

MOLORA_CONFIG, MOLORA_WEIGHTS = MOLORA.config, MOLORA.weights

_VERSION = 1
_LARGEST = 1_000_000
_ROLES = ("attention", "ffn")
_AGAIN = f"Correct the value in {MOLORA_CONFIG}, or save the update again with `save_molora`."


@dataclass(frozen=True)
class MoLoraSettings:
    """How a mixture of LoRA experts is built (MoLoRA of the TAIA paper's code, arXiv 2405.20192).

    Attributes:
        experts: Number of experts E of each FFN linear.
        top_k: Experts that each token uses, at most E. With 1 the router gets no gradient from the language-modelling
            loss, because the softmax over one logit is constant.
        rank: Rank of the attention's LoRA pairs and of each FFN expert, or a rank for each of both roles.
        alpha: Numerator of the scaling alpha / rank, or one for each of both roles.
        dropout: Share of the experts' and the LoRA pairs' inputs that is dropped in training; the router sees all.
        balance_loss: Weight of `balance_loss(model)` in the loss of training; the paper uses none.
        rslora: Whether the scaling is alpha / sqrt(rank).

    Example:
        >>> MoLoraSettings(rank={"attention": 4, "ffn": 64}).scaling("ffn")
        0.5
    """

    experts: int = 4
    top_k: int = 2
    rank: int | Mapping[str, int] = 16
    alpha: int | Mapping[str, int] = 32
    dropout: float = 0.05
    balance_loss: float = 0.0
    rslora: bool = False

    def __post_init__(self) -> None:
        for name in ("experts", "top_k"):
            _positive(name, getattr(self, name))
        if self.top_k > self.experts:
            raise ConfigError(f"top_k is {self.top_k}, but there are {self.experts} experts.", "Use 1 <= top_k <= E.")
        for name in ("rank", "alpha"):
            value = getattr(self, name)
            if not isinstance(value, Mapping):
                _positive(name, value)
                continue
            if set(value) != set(_ROLES):
                raise ConfigError(f"{name} is {dict(value)!r}.", f"Give one number, or one for each of {_ROLES}.")
            for role, number in value.items():
                _positive(f"{name} of {role}", number)
        _number("dropout", self.dropout, 0 <= _real(self.dropout) < 1, "at least 0 and below 1")
        _number("balance_loss", self.balance_loss, 0 <= _real(self.balance_loss) < math.inf, "at least 0")
        if not isinstance(self.rslora, bool):
            raise ConfigError(f"rslora is {self.rslora!r}; true or false is expected.", "The paper's code uses false.")

    def rank_of(self, role: str) -> int:
        """Returns the rank of a role's updates."""
        return self.rank[role] if isinstance(self.rank, Mapping) else self.rank

    def alpha_of(self, role: str) -> int:
        """Returns alpha of a role's updates."""
        return self.alpha[role] if isinstance(self.alpha, Mapping) else self.alpha

    def scaling(self, role: str) -> float:
        """Returns what a role's updates are multiplied by."""
        rank = self.rank_of(role)
        return self.alpha_of(role) / (math.sqrt(rank) if self.rslora else rank)


@dataclass(frozen=True)
class MoLoraDescription:
    """What `molora_config.json` says; the paths are as in the head model."""

    settings: MoLoraSettings
    attention: tuple[str, ...]
    ffn: tuple[str, ...]
    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None

    @property
    def revision(self) -> str | None:
        """Commit of the base model, by the name that PEFT's configurations have for it."""
        return self.base_model_revision

    def to_dict(self) -> dict[str, Any]:
        """Returns what `molora_config.json` holds."""
        values = asdict(self)
        return {"method": "molora", "version": _VERSION, **values.pop("settings"), **values}


def read_molora_config(folder: Path) -> MoLoraDescription:
    """Reads `molora_config.json` in the folder of an update; an unknown or damaged value is an error."""
    path = folder / MOLORA_CONFIG
    if not path.is_file():
        raise RepositoryError(f"'{folder}' has no {MOLORA_CONFIG}.", "Give a folder that `save_molora` wrote.")
    values = hub.read_json(path)
    if values.get("method") != "molora":
        raise ConfigError(f'\'{path}\' describes no MoLoRA update ("method": "molora").', _AGAIN)
    if values.get("version") != _VERSION:
        raise ConfigError(
            f"'{path}' has version {short(values.get('version'))}; this package reads {_VERSION}.", "Upgrade taia-hub."
        )
    own = [field.name for field in fields(MoLoraSettings)]
    rest = [field.name for field in fields(MoLoraDescription) if field.name != "settings"]
    values = {key: value for key, value in values.items() if key not in ("method", "version")}
    if unknown := sorted(values.keys() - {*own, *rest}):
        raise ConfigError(f"'{path}' holds the unknown key '{unknown[0]}'.{closest(unknown[0], [*own, *rest])}", _AGAIN)
    if missing := sorted({*own, *_ROLES} - values.keys()):
        raise ConfigError(f"'{path}' lacks '{missing[0]}'.", _AGAIN)
    for role in _ROLES:
        if not isinstance(values[role], list) or not all(isinstance(name, str) and name for name in values[role]):
            raise ConfigError(
                f"'{role}' in '{path}' is {short(values[role])}; a list of module paths is expected.", _AGAIN
            )
        values[role] = tuple(values[role])
    if len({*values["attention"], *values["ffn"]}) != len(values["attention"]) + len(values["ffn"]):
        raise ConfigError(f"'{path}' names a module path twice.", _AGAIN)
    if not values["ffn"]:
        raise ConfigError(f"'{path}' names no FFN linear, so it holds no experts.", _AGAIN)
    for name in ("base_model_name_or_path", "base_model_revision"):
        if not isinstance(values.get(name), (str, type(None))):
            raise ConfigError(f"{name} in '{path}' is {short(values[name])}; a text or null is expected.", _AGAIN)
    settings = MoLoraSettings(**{key: values.pop(key) for key in own})
    return MoLoraDescription(settings, **values)


def _positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
        expected = f"a whole number from 1 to {_LARGEST:,} is expected"
        raise ConfigError(f"{name} is {short(value)}; {expected}.", "The defaults are usual.")


def _real(value: Any) -> float:
    return math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else value


def _number(name: str, value: Any, fits: bool, allowed: str) -> None:
    if not fits:
        raise ConfigError(f"{name} is {short(value)}; a number {allowed} is expected.", "0 switches it off.")
