"""A linear layer with LoRA experts and a router, as PEFT's custom module."""

from __future__ import annotations

import math
import weakref
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from taia_hub.errors import UnsupportedUpdateError
from taia_hub.switch.weight import LearnedWeight, RowWeights, Weight
from taia_hub.updates.molora.config import MoLoraDescription
from taia_hub.updates.molora.routing import add_experts, add_experts_in_place, group_tokens

_BALANCE: weakref.WeakKeyDictionary[nn.Module, Tensor] = weakref.WeakKeyDictionary()
# ^ the balance loss of each layer's last training forward; outside the layers, which are copied and pickled


class MoLoraConfig(LoraConfig):
    """PEFT's configuration of a mixture: plain LoRA where the description says attention, experts where it says FFN.

    What PEFT writes from it names the method `MOLORA`, so that plain PEFT refuses the folder instead of reading the
    experts as something else.
    """

    def __init__(self, description: MoLoraDescription, **options: Any) -> None:
        settings = description.settings
        super().__init__(
            r=settings.rank_of("attention"),
            lora_alpha=settings.alpha_of("attention"),
            lora_dropout=settings.dropout,
            use_rslora=settings.rslora,
            target_modules=[*description.attention, *description.ffn],
            **options,
        )
        self.description = description
        custom: Any = _ExpertsAt(frozenset(description.ffn))  # PEFT calls it as it would call a class
        self._register_custom_module({nn.Module: custom})

    def to_dict(self) -> dict[str, Any]:
        """Returns what PEFT writes into a configuration file."""
        return {**super().to_dict(), "peft_type": "MOLORA", "molora": self.description.to_dict()}


class _ExpertsAt:
    """Makes PEFT's layer for a module: experts at the given paths; elsewhere None, so that PEFT's own follows."""

    def __init__(self, paths: frozenset[str]) -> None:
        self.paths = paths

    def __call__(self, target: nn.Module, adapter_name: str, *, config: Any, **kwargs: Any) -> nn.Module | None:
        return MoLoraLinear(target, adapter_name, config) if kwargs["target_name"] in self.paths else None


class StackedLinear(nn.Module):
    """The weights of E linear layers without bias, in one parameter (E, D_out, D_in)."""

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, outputs, inputs))


class MoLoraLinear(nn.Module, LoraLayer):
    """A linear layer, whose weights are left alone, plus the LoRA experts that each token's router chooses.

    `y = W x + b + sum of softmax(chosen logits)_i * scaling * B_i A_i x` over the `top_k` experts with the largest
    logits of this layer's own router, as in `taia/model/utils.py` of github.com/pixas/TAIA_LLM.
    """

    adapter_layer_names: tuple[str, ...] = (*LoraLayer.adapter_layer_names, "lora_router")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: MoLoraConfig) -> None:
        super().__init__()
        LoraLayer.__init__(self, base_layer)
        self.lora_router = nn.ModuleDict({})
        self.top_k: dict[str, int] = {}
        self.balanced: dict[str, bool] = {}
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config=config)

    def update_layer(
        self, adapter_name: str, r: int = 0, lora_alpha: int = 1, config: Any = None, **kwargs: Any
    ) -> None:
        """Adds experts and a router under a name; rank and alpha are those of the configuration's description."""
        if not isinstance(config, MoLoraConfig):
            raise UnsupportedUpdateError(
                f"The adapter '{adapter_name}' is no MoLoRA update, and this layer takes no other.",
                "Load it on a fresh base model.",
            )
        settings = config.description.settings
        rank, experts = settings.rank_of("ffn"), settings.experts
        self.r[adapter_name], self.lora_alpha[adapter_name] = rank, settings.alpha_of("ffn")
        self.scaling[adapter_name] = settings.scaling("ffn")
        self.use_rslora[adapter_name] = settings.rslora
        self.use_dora[adapter_name] = self.lora_bias[adapter_name] = False
        self.top_k[adapter_name], self.balanced[adapter_name] = settings.top_k, settings.balance_loss > 0
        self.lora_dropout[adapter_name] = nn.Dropout(settings.dropout) if settings.dropout else nn.Identity()
        inputs, outputs = cast(int, self.in_features), cast(int, self.out_features)
        self.lora_A[adapter_name] = StackedLinear(experts, inputs, rank)
        self.lora_B[adapter_name] = StackedLinear(experts, rank, outputs)
        self.lora_router[adapter_name] = nn.Linear(inputs, experts)
        self.reset_lora_parameters(adapter_name, config.init_lora_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def reset_lora_parameters(self, adapter_name: str, init_lora_weights: Any) -> None:
        """Draws every expert's first factor anew and sets the second ones to zero."""
        if init_lora_weights:
            for weight in self._factor("lora_A", adapter_name):
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            nn.init.zeros_(self._factor("lora_B", adapter_name))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Adds the active updates, or by row those of `adapter_names`; (N, ..., D_in) to (N, ..., D_out)."""
        self._check_forward_args(x, *args, **kwargs)
        names = kwargs.pop("adapter_names", None)
        y: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return y
        for name in self.active_adapters if names is None else sorted(set(names)):
            if name in self.lora_A:
                rows = None if names is None else tuple(float(one == name) for one in names)
                y = self.add_update(y, x, name, RowWeights(rows) if rows and len(set(rows)) > 1 else 1.0)
        return y

    @torch.compiler.disable
    def add_update(self, y: Tensor, x: Tensor, name: str, weight: Weight, in_place: bool = False) -> Tensor:
        """Adds the chosen experts' updates to `y` under a weight but 0, weights by row, or a learned one.

        `x` is (N, ..., D_in), `y` and the result, in its dtype, (N, ..., D_out); with `in_place`, which needs gradients
        off, the result may be `y` itself. A row whose weight is 0 is not computed, unless the weight is learned. Where
        rows cannot be told apart, a `SettingError` says so.
        """
        if isinstance(weight, RowWeights):
            rows, scale = weight.select(y.shape[0], y.device)
            part = self._routed(y[rows], x[rows], name, scale)
            y = y if in_place else y.clone()
            y[rows] = part
            return y
        if isinstance(weight, LearnedWeight):
            return self._routed(y, x, name, weight.beside(x).view(-1).expand(len(x)), in_place)
        return self._routed(y, x, name, weight, in_place)

    def _routed(self, y: Tensor, x: Tensor, name: str, scale: float | Tensor, in_place: bool = False) -> Tensor:
        a, b = self._factor("lora_A", name), self._factor("lora_B", name)
        device, dtype = x.device.type, a.dtype
        if torch.is_autocast_enabled(device):  # as PEFT's linear layers would compute
            dtype = torch.get_autocast_dtype(device)
        rows, flat = x.shape[0], x.reshape(-1, x.shape[-1])
        with torch.autocast(device_type=device, enabled=False):
            selected, gates = self._choose(flat, name)
            if isinstance(scale, Tensor):
                scale = scale.repeat_interleave(len(flat) // rows).unsqueeze(1)
            gates = (gates * (scale * self.scaling[name])).to(dtype)
            grouping = group_tokens(selected, len(a))
            inputs = self.lora_dropout[name](flat.to(dtype))
            factors = inputs, a.to(dtype), b.to(dtype), gates, grouping
            if in_place and y.is_contiguous() and torch.promote_types(y.dtype, dtype) == y.dtype:
                add_experts_in_place(y.view(-1, y.shape[-1]), *factors)
                return y
            wide = y.reshape(-1, y.shape[-1]).to(torch.promote_types(y.dtype, dtype))
            return add_experts(wide, *factors).view(y.shape).to(y.dtype)

    def _choose(self, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Returns each token's experts in ascending order, (T, k) int64, and their gates, (T, k) float32."""
        router, k = cast(nn.Linear, self.lora_router[name]), self.top_k[name]
        logits = F.linear(x.to(router.weight.dtype), router.weight, router.bias).float()
        selected = logits.detach().topk(k).indices.sort().values
        if self.balanced[name] and self.training and torch.is_grad_enabled():
            loss = _switch_loss(logits, selected)  # also when run again: checkpointing counts what was kept
            if not _in_backward():
                _BALANCE[self] = loss
        return selected, logits.gather(1, selected).softmax(1)

    def _factor(self, which: str, name: str) -> Tensor:
        return cast(Tensor, getattr(self, which)[name].weight)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuses: which experts act depends on the token."""
        raise _unmergeable()

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Refuses: which experts act depends on the token."""
        raise _unmergeable()

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Returns False: no single matrix holds a mixture."""
        return False


def take_balance_losses(model: nn.Module) -> list[Tensor]:
    """Returns the balance loss of every layer's last training forward, once."""
    return [_BALANCE.pop(layer) for layer in model.modules() if layer in _BALANCE]


def _switch_loss(logits: Tensor, selected: Tensor) -> Tensor:
    experts = logits.shape[1]
    shares = torch.bincount(selected.reshape(-1), minlength=experts) / selected.numel()
    return experts * (shares * logits.softmax(1).mean(0)).sum()


def _in_backward() -> bool:
    """Tells whether activation checkpointing runs this forward again, when the loss has been taken already."""
    return bool(torch._C._current_graph_task_id() != -1)


def _unmergeable() -> UnsupportedUpdateError:
    return UnsupportedUpdateError(
        "A mixture of experts cannot be merged into the base weights: which experts act depends on the token.",
        "Mode 'attention' is a plain LoRA and can be merged or exported: `taia merge`, `taia export`.",
    )
