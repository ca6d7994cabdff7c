"""Weights that are tensors: a loss of the model is differentiable in how much of each update acts.

What is learned is a number a module, while base and update stay as they are. The paper's outlook asks for a choice
finer than attention or nothing (arXiv 2405.20192, its limitations); its setting is found by descending in these.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from taia_hub.errors import SettingError, short
from taia_hub.switch.settings import Entry, Setting, check_weights
from taia_hub.switch.switch import Acting, Site, Switch
from taia_hub.switch.weight import LearnedWeight

_DTYPES = (torch.float32, torch.float64)


def learned(switch: Switch, weights: Sequence[float | Tensor]) -> Acting:
    """Makes what the layers obey under weights that may be tensors, for `Switch.hold`.

    Under a tensor an update is computed whatever its value is, 0 included, and `weight * update` is differentiable in
    it: the gradient of a loss arrives in the tensor, also where activations are checkpointed (with reentrant
    checkpointing, in tensors that are leaves). The values are those of every call in the block, so that a tensor may
    be changed in place between two calls. Parameters of the model are left alone. Compiled models are refused when
    they run.

    Args:
        switch: The switch of a loaded model, `model._taia_switch`.
        weights: One for each of `switch.sites`: a number; a () tensor; or an (R,) tensor, the weights of the R rows of
            the calls in the block. Tensors are float32 or float64; those in float32 serve updates of 16 bits too.

    Returns:
        What `Switch.hold` takes.

    Raises:
        SettingError: If there are not as many weights as sites, one has another type, shape or dtype, the numbers of
            rows differ, a site takes only 0 or 1 or must treat all rows alike, or a number is not possible there.

    Example:
        >>> import torch
        >>> from taia_hub.switch.switch import Site, Switch
        >>> switch = Switch([Site("layers.0.mlp.up_proj", "ffn", 0, "lora.Linear", 64)], "all")
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> with switch.hold(learned(switch, [weight])):  # and `model(...).loss.backward()`
        ...     switch.status().inference_modules
        {'layers.0.mlp.up_proj': 0.5}
    """
    if len(weights) != len(switch.sites):
        raise SettingError(
            f"{len(weights)} weights came for {len(switch.sites)} adapted modules.",
            "Give one for each of the switch's sites, in their order.",
        )
    rows: dict[int, str] = {}
    for site, weight in zip(switch.sites, weights, strict=True):
        if isinstance(weight, Tensor):
            _check(site, weight)
            if weight.dim():
                rows.setdefault(len(weight), site.path)
        elif isinstance(weight, bool) or not isinstance(weight, numbers.Real) or not math.isfinite(weight):
            raise SettingError(
                f"The weight of '{site.path}' is {short(weight)}.",
                "Give a number, 0 (masked) to 1 (acts in full), or a tensor of float32 or float64.",
            )
    if len(rows) > 1:
        (one, path), (other, elsewhere) = list(rows.items())[:2]
        raise SettingError(
            f"Weights of {one} rows came for '{path}' and of {other} for '{elsewhere}'.",
            "Give every (R,) tensor the number of rows of the batch; () tensors and numbers hold for all rows.",
        )
    given = tuple(LearnedWeight(one) if isinstance(one, Tensor) else float(one) for one in weights)
    check_weights(switch.sites, [one if isinstance(one, float) else 1.0 for one in given])
    return _Learned(switch.sites, given, next(iter(rows), 1))


class _Learned(Acting):
    """What learned weights mean; its settings are read from the tensors when somebody asks, because that waits."""

    def __init__(self, sites: tuple[Site, ...], weights: tuple[float | LearnedWeight, ...], rows: int) -> None:
        self.__dict__.update(_sites=sites, weights=weights, _rows=rows)  # frozen, as what it stands for

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Each row's weights now, by module."""
        rows: int = self.__dict__["_rows"]
        columns = [
            weight.values.detach().expand(rows).tolist() if isinstance(weight, LearnedWeight) else [weight] * rows
            for weight in self.weights
        ]
        paths = [site.path for site in self.__dict__["_sites"]]
        return tuple(
            Setting(tuple(Entry(path, number, None, None) for path, number in zip(paths, row, strict=True)))
            for row in zip(*columns, strict=True)
        )


def takes_gradients(acting: Acting) -> bool:
    """Tells whether weights are in force that want gradients."""
    return any(isinstance(weight, LearnedWeight) and weight.values.requires_grad for weight in acting.weights)


def _check(site: Site, weight: Tensor) -> None:
    came = f"A tensor of shape {tuple(weight.shape)} and dtype {str(weight.dtype).removeprefix('torch.')} came"
    if weight.dim() > 1 or not weight.numel() or weight.dtype not in _DTYPES:
        raise SettingError(
            f"{came} as the weight of '{site.path}'.",
            "Give a () tensor, or an (R,) tensor with one weight a row, in float32 or float64.",
        )
    if site.whole_only:
        raise SettingError(
            f"{came} for '{site.path}', which takes only the numbers 0 or 1: {site.whole_only}.",
            "Give 0 or 1 here, and tensors to plain LoRA and full fine-tunes.",
        )
    if weight.dim() and site.same_rows:
        raise SettingError(
            f"{came} for '{site.path}', which must treat all rows alike: {site.same_rows}.",
            "Give a () tensor here, and run the weights one after the other.",
        )
