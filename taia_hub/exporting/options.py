"""How an export is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from taia_hub import hub
from taia_hub.common.progress import Progress
from taia_hub.engines.rules import check_known
from taia_hub.errors import ConfigError


@dataclass(frozen=True)
class ExportOptions:
    """The keywords of `export_adapter` and `export_adapters`.

    Attributes:
        rank: Largest rank of updates that are no LoRA; by default the smallest exact one where it pays, else 64.
        max_error: Largest relative Frobenius error of a module, in [0, 1), above which nothing is written.
        verify: Whether the base model is loaded and the export's output in PEFT compared with the masked model's.
        engines: Engines that must take the export; it is refused where one of them would not.
        token: Access token.
        trust_remote_code: Whether the base model's own code may run, to learn its structure.
        progress: Called with the stage, what is done of it and what there is.

    Raises:
        ConfigError: If a value is not possible, or an engine is not known.
    """

    rank: int | None = None
    max_error: float = 0.02
    verify: bool = False
    engines: tuple[str, ...] = ()
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
