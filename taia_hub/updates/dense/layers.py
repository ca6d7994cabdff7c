"""Makes modules show their base or their tuned tensors by the setting in force: references change, data stays.

The class of every module that owns tuned tensors is swapped for a subclass whose `__getattr__` answers `weight` with
one tensor or the other. Whatever reads the attribute obeys: the module's own forward, a tied head, a router that is
read by its neighbour, a fused function. `state_dict()`, `parameters()`, `.to()` and `half()` go through
`_parameters`, which holds the base's own tensors all the time.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from taia_hub.common.rebuildable import Rebuildable, subclass
from taia_hub.errors import SettingError
from taia_hub.roles.sublayers import is_routed
from taia_hub.switch.switch import Switch
from taia_hub.switch.weight import LearnedWeight, RowWeights
from taia_hub.weights.checkpoint import Group

_KEPT_MIXTURES = 2
# ^ a tensor has at most so many interpolated copies: a sweep over weights needs one, two threads need two
_READING = threading.RLock()  # one for all, because locks are neither copied nor pickled
_ROW: ContextVar[float | None] = ContextVar("taia_hub_dense_row", default=None)
_ROWWISE = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, Conv1D)


class TunedFiles:
    """The tuned tensors of an update: on the disk until first used, then where the base's tensors are.

    A copy, also by pickle, reads them from the same files again. Some conversions ask the base `model` for sizes.
    """

    def __init__(self, groups: Mapping[str, Group], model: nn.Module) -> None:
        self.groups = dict(groups)
        self._model = model
        self._loaded: dict[str, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": {}}

    @property
    def bytes_in_use(self) -> int:
        """Size of the tuned tensors that were used so far, interpolated copies apart."""
        return sum(tensor.nbytes for tensor in list(self._loaded.values()))

    def read(self, name: str, like: Tensor) -> Tensor:
        """Gives a tuned tensor with device and dtype of `like`; the same one each time, until either changes."""
        with _READING, torch.no_grad(), torch.inference_mode(False):  # it may be used under autograd later
            found = self._loaded.get(name)
            if found is None or found.device != like.device or found.dtype != like.dtype:
                group = self.groups[name]
                mapped = [stored.read() for stored, _ in group.sources]
                made = group.convert(self._model, mapped)[name]
                # Never a view of the file: it may be replaced on the disk, and maps are not aligned as memory is.
                shared = any(one.untyped_storage().data_ptr() == made.untyped_storage().data_ptr() for one in mapped)
                found = self._loaded[name] = made.to(like.device, like.dtype, copy=shared)
        return found

    def add(self, name: str, group: Group, loaded: Tensor | None) -> None:
        """Takes a further tuned tensor; `loaded` is what `read` would give, where it is in memory."""
        self.groups[name] = group
        if loaded is not None and not loaded.is_meta:
            self._loaded[name] = loaded.detach()

    def forget(self, name: str) -> None:
        """Frees a tuned tensor; it is read again when it is asked for."""
        self._loaded.pop(name, None)


class TunedTensor:
    """The tuned values of one parameter of one module, under any weight; `name` is another's where that is tied."""

    def __init__(self, files: TunedFiles, name: str) -> None:
        self._files, self._name = files, name
        self._ready: dict[float, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": {}}

    def at(self, base: Tensor, weight: float) -> Tensor:
        """Gives the tuned tensor, or `torch.lerp(base, tuned, weight)` for a weight other than 0 and 1.

        Of these the two that were used last keep theirs. A tensor on the meta device, of a model without
        weights, is given back.
        """
        found = self._ready.get(weight)
        if found is None or found.dtype != base.dtype or found.device != base.device:
            found = base if base.is_meta else self._make(base, weight)
        return found

    def release(self) -> None:
        """Frees what `at` keeps."""
        self._ready = {}
        self._files.forget(self._name)

    def _make(self, base: Tensor, weight: float) -> Tensor:
        with _READING, torch.no_grad(), torch.inference_mode(False):
            tuned = self._files.read(self._name, base)
            made = tuned if weight == 1 else torch.lerp(base.detach(), tuned, weight)
            if isinstance(base, nn.Parameter):
                made = nn.Parameter(made, requires_grad=False)
                made._taia_base = base  # type: ignore[attr-defined]
            ready = {
                other: tensor
                for other, tensor in self._ready.items()
                if other != weight and tensor.dtype == made.dtype and tensor.device == made.device
            }
            mixtures = [other for other in ready if other != 1]
            if weight != 1 and len(mixtures) >= _KEPT_MIXTURES:
                del ready[mixtures[0]]
            self._ready = {**ready, weight: made}
        return made


class SwitchedTensors(Rebuildable):
    """A module that shows its base or its tuned tensors by the setting in force."""

    _taia_switch: Switch
    # ^ the switch of the model that the module belongs to; a copy of the model copies both
    _taia_site: int
    # ^ index of this module in `Switch.sites`
    _taia_tuned: dict[str, TunedTensor]
    # ^ attribute name to its tuned values

    def __getattr__(self, name: str) -> Any:
        state = self.__dict__
        tuned = state.get("_taia_tuned")
        if tuned is None or (one := tuned.get(name)) is None:
            return super().__getattr__(name)  # type: ignore[misc]
        base = state["_parameters"].get(name)
        if base is None:
            base = state["_buffers"][name]
        weight = state["_taia_switch"].acting().weights[state["_taia_site"]]
        if weight.__class__ is not float:
            if weight.__class__ is LearnedWeight and weight.rows is None and _ROW.get() is None:
                return weight.between(base, one.at(base, 1.0))
            weight = _row_weight(state)
        return base if weight == 0 else one.at(base, weight)

    def __setattr__(self, name: str, value: Any) -> None:
        # Tying takes what one module shows and gives it to another, which must get the base's own parameter.
        super().__setattr__(name, getattr(value, "_taia_base", value))


class SwitchedRows(SwitchedTensors):
    """The same of a module whose output's rows depend on the same rows of its input alone."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module on (N, ...) input, once for each weight that the rows of the batch have.

        The output has N rows, or R where N is 1, as of positions that all R rows of the call share.
        """
        if torch.compiler.is_compiling():  # which tensor is read is no part of a graph
            return self._uncompiled(*args, **kwargs)
        state = self.__dict__
        weight = state["_taia_switch"].acting().weights[state["_taia_site"]]
        if weight.__class__ is not float and args and _ROW.get() is None:
            if weight.__class__ is LearnedWeight:
                return self._learned(weight, *args, **kwargs)
            return self._by_rows(weight, *args, **kwargs)
        return super().forward(*args, **kwargs)  # type: ignore[misc]

    @torch.compiler.disable
    def _uncompiled(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def _by_rows(self, weight: RowWeights, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(x) == 1:
            x = x.expand(len(weight.weights), *x.shape[1:])
        weights = weight.per_row(len(x))
        parts, order = [], []
        for one in dict.fromkeys(weights):
            rows = [row for row, other in enumerate(weights) if other == one]
            parts.append(self._under(one, x[rows], *args, **kwargs))
            order += rows
        places = sorted(range(len(order)), key=order.__getitem__)
        return torch.cat(parts)[places]

    def _learned(self, weight: LearnedWeight, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Mixes outputs, not tensors: they are linear in the tensors, and no row needs tensors of its own."""
        if weight.rows is not None and len(x) == 1:
            x = x.expand(weight.rows, *x.shape[1:])
        return weight.between(self._under(0.0, x, *args, **kwargs), self._under(1.0, x, *args, **kwargs))

    def _under(self, weight: float, *args: Any, **kwargs: Any) -> Tensor:
        token = _ROW.set(weight)
        try:
            return cast(Tensor, super().forward(*args, **kwargs))  # type: ignore[misc]
        finally:
            _ROW.reset(token)


def show_tuned(module: nn.Module, switch: Switch, site: int, tuned: Mapping[str, TunedTensor]) -> None:
    """Makes a module of the base show tuned tensors, by attribute name, where the switch says so."""
    module.__dict__.update(_taia_switch=switch, _taia_site=site, _taia_tuned=dict(tuned))
    module.__class__ = subclass(mixin_for(module), type(module))


def check_tokens(embedding: nn.Module, args: tuple[Any, ...]) -> None:
    """Refuses tokens beyond the rows that an embedding shows now: a hook before its forward, where rows are not fixed.

    A GPU would end the process, and the message of a CPU does not say what a token has to do with a setting.
    """
    if torch.compiler.is_compiling() or not args or not isinstance(args[0], Tensor) or args[0].is_meta:
        return
    rows, last = len(embedding.weight), int(args[0].max()) if args[0].numel() else -1  # type: ignore[arg-type]
    if last >= rows:
        raise SettingError(
            f"The token {last} came, and the vocabulary that acts here has {rows} rows: update and base have different "
            "ones.",
            "Let the update's embeddings act (their role is 'other', as in 'attention+other' or 'all'), or leave its "
            "added tokens out of the prompt.",
        )


def mixin_for(module: nn.Module) -> type[SwitchedTensors]:
    """Chooses how a module that owns tuned tensors obeys the switch: by rows where they can be told apart in it."""
    takes = len(inspect.signature(type(module).forward).parameters) - 1
    if type(module) in _ROWWISE or (takes == 1 and type(module).__name__.endswith(("RMSNorm", "LayerNorm"))):
        return SwitchedRows
    return SwitchedTensors


def same_rows(module: nn.Module, path: str) -> str | None:
    """Says why the rows of a batch must be treated alike in a module; None when they need not."""
    if is_routed(path):
        return "a routed expert sees the tokens of all rows mixed"
    if mixin_for(module) is SwitchedRows:
        return None
    return f"{type(module).__name__} uses its tensors for all rows of the batch at once"


def refusal(module: nn.Module, names: Mapping[str, Any]) -> str | None:
    """Says why a module cannot show other tensors than its own, by attribute names; None when it can."""
    if isinstance(module, nn.RNNBase):
        return "it keeps its weights in a list for the fused kernel, which no attribute is asked for"
    if isinstance(module, torch.jit.ScriptModule):
        return "its attributes are compiled"
    if shadowed := [name for name in names if hasattr(type(module), name)]:
        return f"its class has an attribute '{shadowed[0]}' of its own"
    return None


def _row_weight(state: Mapping[str, Any]) -> float:
    if (weight := _ROW.get()) is None:
        site = state["_taia_switch"].sites[state["_taia_site"]]
        raise SettingError(
            f"The rows of the batch have different settings at '{site.path}', whose tensors are read outside it.",
            "Run the modes one after the other: `with model.using(mode): ...`.",
        )
    return weight
