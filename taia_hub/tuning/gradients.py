"""Target loss and retention of some items under weights by group, with their gradients by weight."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taia_hub.common.labels import Encoded
from taia_hub.errors import ConfigError
from taia_hub.results.tuning import Objective
from taia_hub.retaining.measuring import no_number_hint
from taia_hub.retaining.passes import kl_divergence, padded
from taia_hub.switch.learned import learned
from taia_hub.tuning.grouping import Grouping
from taia_hub.tuning.processes import Processes

_TOKENS = 2048
"""Tokens of a forward pass with gradients, padding included, unless a single item is longer."""


@dataclass(frozen=True)
class Slope:
    """A loss over P tokens: nats a token, and its (G,) float64 gradient by the weights of the groups."""

    value: float
    gradient: np.ndarray
    tokens: int


class Gradients:
    """Computes losses of a loaded model that are differentiable in the weights of G groups.

    A group that acts as a whole or not at all has the gradient 0. The items of a call are shared out to the processes;
    sums are those over all of them.
    """

    def __init__(self, model: Any, grouping: Grouping, processes: Processes) -> None:
        self.model, self.grouping, self.processes = model, grouping, processes
        self.switch = model._taia_switch
        self.keeps = "logits_to_keep" in inspect.signature(type(model).forward).parameters
        self.computed = 0
        # ^ tokens of all calls, over all processes

    def loss(self, rows: Sequence[Encoded], weights: np.ndarray) -> Slope:
        """Returns the loss of the labels of N items, with its gradient.

        Raises:
            ConfigError: If the loss of an item is no number, or has no gradient.
        """
        return self._slope(rows, weights, None)

    def retention(self, rows: Sequence[Encoded], weights: np.ndarray, objective: Objective) -> Slope:
        """Returns KL(base || weights) of N items, or how much their loss grew, with the gradient.

        Raises:
            ConfigError: As of `loss`.
        """
        return self._slope(rows, weights, objective)

    def _slope(self, rows: Sequence[Encoded], weights: np.ndarray, against: Objective | None) -> Slope:
        total = np.zeros(2 + len(self.grouping.groups))
        for batch in _batches(self.processes.share(rows)):
            value, tokens, gradient = self._batch(batch, weights, against)
            total += np.array([value, tokens, *gradient])
        total = self.processes.sum(total)
        self.computed += sum(len(row.input_ids) for row in rows) * (2 if against else 1)  # the base too
        return Slope(float(total[0] / total[1]), total[2:] / total[1], int(total[1]))

    def _batch(
        self, batch: Sequence[Encoded], weights: np.ndarray, against: Objective | None
    ) -> tuple[float, int, list[float]]:
        """Returns the sum of the loss over the tokens of a batch, their number, and the (G,) gradient of the sum."""
        device = self.model.device
        leaf = torch.tensor(weights, dtype=torch.float32, device=device, requires_grad=True)
        inputs, kept = _inputs(batch, device, keeps=self.keeps)
        wanted = _places(batch, kept)
        base = None
        if against:
            with torch.no_grad():
                logits = self.model(**inputs, inference_modules="none").logits[:, -kept:]
                row, place, label = wanted.to(logits.device)
                base = logits[row, place].float().log_softmax(-1)
                del logits
        whole = zip(self.grouping.whole, weights, leaf.unbind(), strict=True)
        each = [float(number) if held else tensor for held, number, tensor in whole]
        with torch.enable_grad(), self.switch.hold(learned(self.switch, [each[g] for g in self.grouping.of_site])):
            logits = self.model(**inputs).logits[:, -kept:]
            row, place, label = wanted.to(logits.device)  # the last layers of a large model may be elsewhere
            scores = logits[row, place].float().log_softmax(-1)
            if base is not None and against == "kl":
                nats = kl_divergence(base, scores)
            else:
                nats = -scores.gather(1, label[:, None])[:, 0]
                if base is not None:
                    nats = nats + base.gather(1, label[:, None])[:, 0]
            value = nats.sum()
            (gradient,) = torch.autograd.grad(value, leaf)
        if not (value.isfinite() and gradient.isfinite().all()):
            raise self._not_finite(batch, nats, row)
        return float(value.detach()), len(label), gradient.tolist()

    def _not_finite(self, batch: Sequence[Encoded], nats: Tensor, row: Tensor) -> ConfigError:
        wrong = row[~nats.isfinite()].tolist()
        number = wrong[0] if wrong else 0
        ids = batch[number].input_ids
        what = "loss" if wrong else "gradient"
        return ConfigError(
            f"The {what} of an item of {len(ids)} tokens, which begins with the ids {ids[:8]}, is no number"
            f" under weights that the search tried{'' if len(batch) == 1 or wrong else ', in a batch of several'}.",
            no_number_hint(self.model.dtype),
        )


def _batches(rows: Sequence[Encoded]) -> list[list[Encoded]]:
    """Puts items of like length together, so that little of a forward pass is padding."""
    found: list[list[Encoded]] = []
    for row in sorted(rows, key=lambda one: len(one.input_ids)):
        if found and (len(found[-1]) + 1) * len(row.input_ids) <= _TOKENS:
            found[-1].append(row)
        else:
            found.append([row])
    return found


def _inputs(batch: Sequence[Encoded], device: Any, *, keeps: bool) -> tuple[dict[str, Any], int]:
    """Returns what a forward pass takes, padded behind, and of how many places at the end it gives logits."""
    inputs: dict[str, Any] = {**padded([row.input_ids for row in batch], device), "use_cache": False}
    kept = inputs["input_ids"].shape[1] - min(row.measured[0] for row in batch) + 1
    return inputs | ({"logits_to_keep": kept} if keeps else {}), kept


def _places(batch: Sequence[Encoded], kept: int) -> Tensor:
    """Returns of P labels their rows, the places of the logits that predict them among those kept, and themselves.

    They are (3, P) int64.
    """
    before = max(len(row.input_ids) for row in batch) - kept
    found = [(at, place - 1 - before, row.labels[place]) for at, row in enumerate(batch) for place in row.measured]
    return torch.tensor(found).T
