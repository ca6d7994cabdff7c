"""What is searched and how: the keywords of `tune` and the options of `taia tune`, checked before a model is loaded."""
# ruff: noqa: RUF009 - `asked` makes a field

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from taia_hub.common.fields import asked, documented
from taia_hub.errors import ConfigError, closest, misspelt
from taia_hub.results.tuning import Objective
from taia_hub.roles import ROLES

BY = "role x layer"
"""How modules are put together where nobody says otherwise."""

_SEEDS = 2**32
"""So many seeds there are, as of a training."""


@documented
@dataclass(frozen=True)
class TuningOptions:
    """What `tune` is asked for.

    Example:
        >>> TuningOptions(points=3, budget=5).objective
        'kl'
    """

    by: str | Sequence[str] = asked(
        BY,
        "Which modules share a weight: 'role x layer', role, layer, block:N (N neighbouring layers of a role), or "
        "selectors joined by commas, of which a later one overrides, as in 'ffn,*.down_proj'.",
        metavar="WHAT",
    )
    objective: Objective = asked(
        "kl",
        "What counts as lost on the retained texts: kl, the divergence from the base, or loss, how much the loss "
        "grows.",
        choices=get_args(Objective),
    )
    points: int = asked(5, "How many points of the front are searched.", least=1)
    budget: float | None = asked(
        None, "Minutes that all of it may take; an unfinished front says so, and goes on with more.", metavar="MIN"
    )
    limit: int = asked(64, "Most items a side that are drawn; one half is searched on.", least=20)
    max_length: int = asked(512, "Most tokens of an item; what a choice of weights depends on shows in few.", least=2)
    seed: int = asked(0, "Of the split of the items, their order and the intervals.")
    allow_extrapolation: bool = asked(False, "Search weights from -2 to 2 instead of 0 to 1.", flags="--extrapolate")

    def __post_init__(self) -> None:
        """Refuses values that mean nothing."""
        for part in self.by.split(",") if isinstance(self.by, str) else ():
            if meant := misspelt(part.strip(), (BY, "role", "layer", *ROLES)):
                raise ConfigError(
                    f"Modules cannot be put together by '{part.strip()}'. Did you mean '{meant}'?",
                    f"Give '{BY}', role, layer, block:N, or selectors as a setting has them, joined by commas.",
                )
        objectives = get_args(Objective)
        if self.objective not in objectives:
            raise ConfigError(
                f"The objective is {self.objective!r}.{closest(str(self.objective), objectives)}",
                "Give 'kl', the divergence from the base, or 'loss', how much the loss grows on the retained texts.",
            )
        for name, least in (("points", 1), ("limit", 20), ("max_length", 2)):
            value: Any = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} is {value!r}.", f"Give a whole number of at least {least}.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < _SEEDS:
            raise ConfigError(f"seed is {self.seed!r}.", f"Give a whole number from 0 to {_SEEDS - 1}.")
        if self.budget is not None and not _is_positive(self.budget):
            raise ConfigError(
                f"The budget is {self.budget!r}.", "Give minutes, more than 0, or None for as long as it takes."
            )


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0
