"""Adam with a projection on bounds, whose state can be written down and taken up again bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_FIRST, _SECOND = 0.6, 0.9
"""How long the means of the gradient and of its square remember: a point has few steps, so that both are short."""

_RATE = 0.22
"""Length of a point's first step, as a part of the way from 0 to 1; a weight has to be able to go all of it."""

_LAST = 0.3
"""Length of a point's last step as a part of its first: large steps find the way, small ones settle."""


_FLAT = 1e-4
"""A weight whose slope is less than this part of the steepest one's moves less: it may be nothing but rounding."""


class Descent:
    """Where a descent is, and how it goes on: `weights` are (G,) float64.

    Adam (Kingma & Ba 2015) with short memories, projected on the bounds after each step. Its steps are as long in every
    weight, however flat the loss is there, unless only rounding is left, so that ten of them on parts of the items come
    as near as a second-order method does with whole gradients: those were tried.

    Example:
        >>> descent = Descent(np.ones(2), (0.0, 1.0))
        >>> for step in range(10):
        ...     descent.step(descent.weights - [0.5, -3], step / 10)
        >>> descent.weights.round(1)
        array([0.5, 0. ])
    """

    def __init__(self, weights: np.ndarray, bounds: tuple[float, float]) -> None:
        self.bounds = bounds
        self.weights = np.asarray(weights, dtype=np.float64)
        self.mean = np.zeros_like(self.weights)
        self.square = np.zeros_like(self.weights)
        self.steps = 0

    def step(self, gradient: np.ndarray, done: float) -> None:
        """Takes a step against the (G,) gradient; `done` is the share of this point's steps that were taken."""
        self.steps += 1
        self.mean = _FIRST * self.mean + (1 - _FIRST) * gradient
        self.square = _SECOND * self.square + (1 - _SECOND) * gradient**2
        mean, square = self.mean / (1 - _FIRST**self.steps), self.square / (1 - _SECOND**self.steps)
        rate = _RATE * (1 - (1 - _LAST) * done)
        slope = np.sqrt(square)
        moved = self.weights - rate * mean / (slope + max(_FLAT * slope.max(), 1e-12))
        self.weights = np.clip(moved, *self.bounds)

    def to_json(self) -> dict[str, Any]:
        """Returns the state as JSON values, which hold every bit of a float64."""
        arrays = {"weights": self.weights, "mean": self.mean, "square": self.square}
        return {"steps": self.steps, **{name: array.tolist() for name, array in arrays.items()}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], bounds: tuple[float, float]) -> Descent:
        """Takes up a descent where `to_json` wrote it down."""
        found = cls(np.array(value["weights"]), bounds)
        found.mean, found.square = np.array(value["mean"]), np.array(value["square"])
        found.steps = int(value["steps"])
        return found


def roughness(weights: np.ndarray, neighbours: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the mean squared difference of neighbours, (P, 2) pairs of indices, with its gradient by weight.

    Example:
        >>> roughness(np.array([1.0, 0.0]), np.array([[0, 1]]))
        (1.0, array([ 2., -2.]))
    """
    gradient = np.zeros_like(weights)
    if not len(neighbours):
        return 0.0, gradient
    difference = weights[neighbours[:, 0]] - weights[neighbours[:, 1]]
    np.add.at(gradient, neighbours[:, 0], 2 * difference / len(neighbours))
    np.add.at(gradient, neighbours[:, 1], -2 * difference / len(neighbours))
    return float((difference**2).mean()), gradient
