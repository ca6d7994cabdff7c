"""Tokens with labels: which of them a loss looks at."""

from __future__ import annotations

from dataclasses import dataclass

IGNORED_LABEL = -100
"""The label that the models of transformers leave out of the loss."""


@dataclass(frozen=True)
class Encoded:
    """A text or conversation as the model reads it; its labels are `IGNORED_LABEL` where the loss does not look."""

    input_ids: list[int]
    labels: list[int]

    @property
    def measured(self) -> list[int]:
        """The places of the labels that a loss sees: not the first, which no token stands before.

        Example:
            >>> Encoded([5, 6, 7], [5, IGNORED_LABEL, 7]).measured
            [2]
        """
        return [at for at, label in enumerate(self.labels) if at and label != IGNORED_LABEL]

    def first(self, count: int | None) -> Encoded:
        """Returns what is left when it is cut off behind so many tokens; all of it for None."""
        return Encoded(self.input_ids[:count], self.labels[:count])
