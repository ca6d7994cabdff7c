"""The keyword `inference_modules` on `forward` and `generate` of a generated class."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from taia_hub.errors import ConfigError, SettingError, misspelt
from taia_hub.switch.learned import takes_gradients
from taia_hub.switch.switch import Acting, Switch, check

_KEYWORD = ("inference_modules",)
_BATCH_NAMES = ("input_ids", "inputs_embeds", "inputs", "decoder_input_ids", "decoder_inputs_embeds", "pixel_values")


def with_setting(method: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the keyword `inference_modules` to `forward` or `generate` of the base model's class, before `**kwargs`."""
    trains = method.__name__ == "forward"

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, inference_modules: Any = None, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return run(self, inference_modules, args, kwargs)
        for name in kwargs:
            if misspelt(name, _KEYWORD):
                raise TypeError(f"The keyword '{name}' is not known. Did you mean 'inference_modules'?")
        if kwargs.pop("adapter_names", None) is not None:
            raise SettingError(
                "adapter_names came, PEFT's choice of an adapter for each row; a TAIA model has settings a row.",
                "Pass the keyword `inference_modules` a list: 'none' is '__base__', 'all' the whole update.",
            )
        if trains and self.training and torch.is_grad_enabled():
            check_training(self, (*args, *kwargs.values()))
        calls = self._taia_switch.calls
        call = calls.begin()
        try:
            return run(self, inference_modules, args, kwargs)
        finally:
            calls.end(call)

    def run(self: Any, inference_modules: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if inference_modules is not None:
            return _run_under(self, inference_modules, method, args, kwargs)
        if self._taia_switch.fused is not None:
            args, kwargs = _checked(self, args, kwargs)
        return method(self, *args, **kwargs)

    wrapped.__signature__ = _with_keyword(method)  # type: ignore[attr-defined]
    return wrapped


def check_training(model: Any, values: Iterable[Any] = ()) -> None:
    """Refuses to train what gets no gradients; `values` are the arguments of a call, which may want some.

    Weights that are being learned want some too.

    Raises:
        SettingError: If the model is fused.
        ConfigError: If no parameter takes gradients.
    """
    if model._taia_switch.fused is not None:
        raise _fused_training()
    if (
        not any(parameter.requires_grad for parameter in model.parameters())
        and not any(isinstance(value, torch.Tensor) and value.requires_grad for value in values)
        and not takes_gradients(model._taia_switch.asked())
    ):
        raise ConfigError(
            "The model came to be trained, but none of its parameters takes gradients.",
            "Load it with `from_pretrained(..., is_trainable=True)` and give the trainer that model, not its name; "
            "PEFT's `prepare_model_for_kbit_training` freezes an update too: call it before, on the base, or not at "
            "all. For answers, call `model.eval()` or use `torch.no_grad()`.",
        )


def _fused_training() -> SettingError:
    return SettingError(
        "A fused model came to be trained, but gradients would pass its update by.",
        "Call `model.unfuse()` first; to run it without gradients, `model.eval()` or `torch.no_grad()`.",
    )


def _checked(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Checks a call of a fused model; in a graph, an operator on its first tensor does so whenever the graph runs."""
    if model.training and torch.is_grad_enabled():
        raise _fused_training()
    if not torch.compiler.is_compiling():
        model._taia_switch.check()
        return args, kwargs
    number = model._taia_switch.number
    for place, value in enumerate(args):
        if isinstance(value, torch.Tensor):
            return (*args[:place], check_in_graph(value, number), *args[place + 1 :]), kwargs
    for name, value in kwargs.items():
        if isinstance(value, torch.Tensor):
            return args, {**kwargs, name: check_in_graph(value, number)}
    return args, kwargs


@torch.library.custom_op("taia_hub::check_fused", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def check_in_graph(x: torch.Tensor, switch: int) -> torch.Tensor:
    """Refuses what `Switch.check` refuses when the graph runs, and returns a copy of `x`, so that the check is kept."""
    check(switch)
    return x.clone()


@check_in_graph.register_fake
def _(x: torch.Tensor, switch: int) -> torch.Tensor:
    return torch.empty_like(x)


check_in_graph.register_autograd(lambda ctx, grad: (grad, None))


@torch.compiler.disable(recursive=False)  # the frame that sets a context variable stays out of the graph
def _run_under(
    model: Any, setting: Any, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    with model._taia_switch.hold(_acting(model._taia_switch, setting, args, kwargs)):
        return function(model, *args, **kwargs)


def _acting(switch: Switch, setting: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Acting:
    if not isinstance(setting, (list, tuple)):
        return switch.resolve(setting)
    candidates = [*args[:1], *(kwargs.get(name) for name in _BATCH_NAMES)]
    batch = next((value for value in candidates if isinstance(value, torch.Tensor)), None)
    if batch is None:
        raise SettingError(
            f"{len(setting)} settings came for a call without a batch of inputs.", "Pass `input_ids`, a row a setting."
        )
    return switch.resolve_rows(setting, batch.shape[0])


def _with_keyword(function: Callable[..., Any]) -> inspect.Signature:
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    keyword = inspect.Parameter("inference_modules", inspect.Parameter.KEYWORD_ONLY, default=None)
    at = len(parameters) - (bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
    return signature.replace(parameters=[*parameters[:at], keyword, *parameters[at:]])
