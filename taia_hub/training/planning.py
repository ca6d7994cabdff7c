"""What a run will take: dtype, items of a forward pass that fit, steps and memory."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from taia_hub.common.devices import choose_device
from taia_hub.common.text_tables import amount
from taia_hub.errors import ConfigError
from taia_hub.training.recipe import TrainingRecipe, divisors

_FEW = 10
"""With fewer optimizer steps than this, a plan warns."""
_SHARE = 0.8
"""Share of the free memory that an estimate may fill."""
_MOST_ITEMS = {"cuda": 32, "mps": 8, "cpu": 8}
"""More items of a forward pass than this gain nothing: longer padding eats what larger products save."""


@dataclass(frozen=True)
class Memory:
    """An estimate of a process's memory, in bytes; `available` is what is free, or None where it is not known.

    `optimizer`: gradients and AdamW's moments; `activations`: a forward pass of `micro_batch_size` longest items.
    """

    weights: int
    optimizer: int
    activations: int
    available: int | None

    @property
    def total(self) -> int:
        """Everything together."""
        return self.weights + self.optimizer + self.activations


@dataclass(frozen=True)
class ReportPlan:
    """What the report at the end of a training measures.

    Attributes:
        items: Number of items that were held out.
        texts: Number of general texts.
        settings: Number of settings.
        share: How long that takes about, as a share of the training's time.
    """

    items: int
    texts: int
    settings: int
    share: float


@dataclass(frozen=True)
class Plan:
    """How a recipe is run here.

    Attributes:
        items: Items (packed sequences with `packing`) that are trained on, all epochs included.
        tokens: Their tokens; an estimate where steps end before the items do.
        longest: Tokens of the longest item.
        steps: Optimizer steps.
        batch_size: Items of an optimizer step.
        micro_batch_size: Items of a forward pass of a process.
        accumulation: Forward passes of a process before an optimizer step.
        processes: Number of processes.
        device: `"cuda"`, `"mps"` or `"cpu"`.
        dtype: What is computed in: `"bfloat16"` or `"float32"`.
        gradient_checkpointing: Whether activations are computed twice.
        base_parameters: Parameters of the base model.
        trained: Role to number of trained parameters.
        memory: The estimate.
        notes: What the user should know, a sentence each.
        warnings: What the user may want to change before the training, a sentence each.
        held_out: Number of items that are never trained on.
        report: What is measured at the end; None where nothing is.
    """

    items: int
    tokens: int
    longest: int
    steps: int
    batch_size: int
    micro_batch_size: int
    accumulation: int
    processes: int
    device: str
    dtype: str
    gradient_checkpointing: bool
    base_parameters: int
    trained: Mapping[str, int]
    memory: Memory
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    held_out: int = 0
    report: ReportPlan | None = None


def process_count() -> int:
    """Returns the number of processes that accelerate launched."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """Returns the number of this process, 0 for the one that writes."""
    return int(os.environ.get("RANK", "0"))


def _find_device() -> str:
    """Returns the kind of device that the trainer will use."""
    return choose_device().partition(":")[0]


def find_dtype(asked: str, device: str) -> str:
    """Returns the dtype to compute in; `"auto"` is bfloat16 where the device has units for it.

    Example:
        >>> find_dtype("float32", "cuda")
        'float32'
    """
    if asked != "auto":
        return asked
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    # Without such units bfloat16 is several times slower on a CPU than float32.
    has_units = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # private: there is no public one
    fast = device == "cpu" and has_units()
    return "bfloat16" if fast else "float32"


def _free_memory(device: str, processes: int) -> int | None:
    """Returns the memory that a process may use, in bytes; None where it is not known.

    Several processes must come to the same plan, so they look at what there is instead of what is free just now.
    """
    if device == "cuda":
        free, whole = torch.cuda.mem_get_info()
        return whole if processes > 1 else free
    if device == "mps":
        return torch.mps.recommended_max_memory()
    import psutil  # accelerate needs it, so it is there

    memory = psutil.virtual_memory()
    return memory.total // processes if processes > 1 else memory.available


def make_plan(
    recipe: TrainingRecipe,
    config: Any,
    *,
    lengths: Sequence[int],
    items: int,
    tokens: int,
    base_parameters: int,
    trained: Mapping[str, int],
    micro_batch_size: int | None = None,
    notes: tuple[str, ...] = (),
) -> Plan:
    """Decides how a recipe is run here, on a base model with this configuration and so many parameters.

    Of `items` (packed sequences) with `tokens` in all, epochs included, `lengths` are of some; the longest counts.
    `trained` is role to number of parameters. `micro_batch_size` is what an earlier part of this run took, or what is
    left after memory ran out; it goes before the recipe's. `notes` are what the user should know so far.
    """
    if not items:
        raise ConfigError("The data holds no items to train on.", "Look at its files, and at max_length.")
    processes, device = process_count(), _find_device()
    if recipe.batch_size % processes:
        raise ConfigError(
            f"batch_size {recipe.batch_size} cannot be shared among {processes} processes.",
            f"Choose a multiple of {processes}.",
        )
    dtype = find_dtype(recipe.dtype, device)
    longest = max(lengths, default=1)
    steps = min(math.ceil(items / recipe.batch_size), recipe.max_steps or items)
    seen = min(items, steps * recipe.batch_size)
    available = _free_memory(device, processes)
    width = 4 if dtype == "float32" or recipe.method == "full" else 2
    count = sum(trained.values())
    weights = base_parameters * width + (0 if recipe.method == "full" else 4 * count)
    fixed = weights + 12 * count  # gradients and two moments, in float32
    share = recipe.batch_size // processes
    fitting = {
        twice: _largest(
            share, _MOST_ITEMS[device], available, fixed, longest * _per_token(config, dtype, recipe, twice)
        )
        for twice in (False, True)
    }
    checkpointing = recipe.gradient_checkpointing
    if checkpointing is None:
        checkpointing = fitting[False] < min(4, fitting[True])
    micro = micro_batch_size or recipe.micro_batch_size or fitting[checkpointing]
    if share % micro:
        raise ConfigError(
            f"micro_batch_size {micro} does not divide the {share} items that each of {processes} processes takes.",
            f"Choose one of {', '.join(map(str, divisors(share)))}, or leave it out.",
        )
    activations = micro * longest * _per_token(config, dtype, recipe, checkpointing)
    return Plan(
        items=seen,
        tokens=round(tokens * seen / items),
        longest=longest,
        steps=steps,
        batch_size=recipe.batch_size,
        micro_batch_size=micro,
        accumulation=share // micro,
        processes=processes,
        device=device,
        dtype=dtype,
        gradient_checkpointing=checkpointing,
        base_parameters=base_parameters,
        trained=dict(trained),
        memory=Memory(weights, 12 * count, activations, available),
        notes=notes,
        warnings=_few_steps(recipe, items, steps, processes, tokens / recipe.max_length if recipe.packing else items),
    )


def _few_steps(recipe: TrainingRecipe, items: int, steps: int, processes: int, filled: float) -> tuple[str, ...]:
    """Warns where the data fills few optimizer steps, in which little is learnt, and says what would do.

    `filled` is `items`, or full rows where they are packed.
    """
    if steps >= min(_FEW, recipe.max_steps or _FEW):
        return ()
    noun = amount(items, "packed sequence" if recipe.packing else "item")
    smaller_batch = items // _FEW // processes * processes
    epochs = math.ceil(((_FEW - 1) * recipe.batch_size + 1) * recipe.epochs / filled)
    ways = [f"--batch-size {smaller_batch}"] if smaller_batch else []
    ways += ["--no-packing"] if recipe.packing else []
    said = f"{noun} {'fills' if items == 1 else 'fill'} {amount(steps, 'step')} of {recipe.batch_size}"
    return (f"{said}: use {' or '.join([*ways, f'--epochs {epochs}'])}.",)


def smaller(plan: Plan) -> int | None:
    """Returns the next smaller number of items of a forward pass that divides the batch; None below 1."""
    share = plan.micro_batch_size * plan.accumulation
    return max((one for one in divisors(share) if one <= plan.micro_batch_size // 2), default=None)


def _largest(share: int, most: int, available: int | None, fixed: int, per_item: int) -> int:
    fits = most if available is None else min(most, max(1, int((available * _SHARE - fixed) // per_item)))
    return max(one for one in divisors(share) if one <= fits)


def _per_token(config: Any, dtype: str, recipe: TrainingRecipe, checkpointing: bool) -> int:
    """Estimates the bytes of activations that a token keeps for the backward pass.

    A layer keeps about 16 vectors of the hidden size (norms, projections, residuals and, with LoRA, the inputs after
    dropout) and 4 of the FFN's; with checkpointing only its input, and one layer whole at a time.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    hidden = int(getattr(text, "hidden_size", 0) or 1024)
    inner = getattr(text, "intermediate_size", None)
    ffn = int(inner) if isinstance(inner, int) else 4 * hidden
    layers = int(getattr(text, "num_hidden_layers", 0) or 24)
    width = 2 if dtype == "bfloat16" else 4
    layer = (16 * hidden + 4 * ffn) * width
    return layers * hidden * width + layer if checkpointing else layers * layer
