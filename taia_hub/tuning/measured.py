"""Losses of items under several settings, measured by all processes together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from taia_hub.common.labels import Encoded
from taia_hub.retaining import Losses, measure
from taia_hub.tuning.processes import Processes


@dataclass(frozen=True)
class Measure:
    """Measures on a loaded model; each of the processes takes a share of the items, and gets the losses of all."""

    model: Any
    processes: Processes

    def __call__(
        self,
        rows: Sequence[Encoded],
        settings: Sequence[Any],
        *,
        divergence: bool = True,
        told: Callable[[int, int], None] | None = None,
    ) -> tuple[Losses, ...]:
        """Returns the losses of N items under M settings, as of `taia_hub.retaining.measure`."""
        share = self.processes.share(rows)
        own = measure(self.model, share, settings, divergence=divergence, progress=told) if share else ()
        parts = self.processes.gather(own or tuple(Losses((), ()) for _ in settings))
        if len(parts) == 1:
            return parts[0]
        return tuple(
            Losses(
                *(
                    tuple(self.processes.merge([getattr(part[at], name) for part in parts]))
                    for name in ("tokens", "nats", "kl", "changed")
                )
            )
            for at in range(len(settings))
        )
