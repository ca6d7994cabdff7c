"""How an export is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from taia_hub import hub
from taia_hub.common.fields import asked
from taia_hub.common.progress import Progress
from taia_hub.engines.rules import check_known
from taia_hub.errors import ConfigError
from taia_hub.switch.settings import parse_setting


@dataclass(frozen=True)
class ExportOptions:
    """The keywords of `export_adapter` and `export_adapters`.

    `progress` is called with the stage, what is done of it and what there is; `max_error` is a relative Frobenius norm.

    Raises:
        ConfigError: If a value is not possible, or an engine is not known.
    """

    rank: int | None = asked(
        None,
        "Largest rank of updates that are no LoRA; the smallest exact one where it pays, else 64.",
        least=1,
    )
    max_error: float = asked(
        0.02, "Largest relative error of a module that is no LoRA; above it, nothing is written.", least=0
    )
    verify: bool = asked(
        False, "Load the base model and compare the export's output with the mode's.", flags="--verify"
    )
    engines: tuple[str, ...] = asked(
        (), "Refuse an export that this engine does not take; repeat it.", flags="--engine"
    )
    token: str | bool | None = field(default=None, repr=False)
    trust_remote_code: bool = False
    progress: Progress | None = None

    def __post_init__(self) -> None:
        rank, max_error = self.rank, self.max_error
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
            raise ConfigError(f"rank is {rank!r}.", "Give a whole number from 1 on.")
        if isinstance(max_error, bool) or not isinstance(max_error, int | float) or not 0 <= max_error < 1:
            raise ConfigError(f"max_error is {max_error!r}.", "Give a number from 0 up to, but not including, 1.")
        for engine in self.engines:
            check_known(engine)

    @property
    def access(self) -> hub.HubAccess:
        """How to reach the Hub."""
        return hub.HubAccess(token=self.token)

    @property
    def remote(self) -> dict[str, Any]:
        """Keywords of whatever reads the base model."""
        return {"access": self.access, "trust_remote_code": self.trust_remote_code}

    def advance(self, stage: str) -> Callable[[int, int], None] | None:
        """Returns what is called as a stage goes on."""
        return partial(self.progress, stage) if self.progress else None


def by_folder(modes: Sequence[Any]) -> dict[str, Any]:
    """Gives each mode its folder: the root for one, a sub-folder each for several."""
    if len(modes) == 1:
        return {"": modes[0]}
    settings: dict[str, Any] = {}
    for mode in modes:
        if (name := parse_setting(mode).slug) in settings:
            raise ConfigError(f"--mode {name} comes twice.", "Name each mode once.")
        settings[name] = mode
    return settings


def default_folder(repo: str, settings: Mapping[str, Any]) -> Path:
    """Names the folder of an export: in the working folder, or beside the repository where that lies within it."""
    label = parse_setting(settings[""]).slug if "" in settings else "exports"
    source = Path(repo).resolve()
    if not source.is_dir():
        return Path(f"{repo.rpartition('/')[2]}-{label}")
    name = f"{source.name}-{label}"
    return source.with_name(name) if Path.cwd().is_relative_to(source) else Path(name)
