"""What of a base model is trained: its linear layers and experts for LoRA, its own parameters for full fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from taia_hub.errors import ConfigError, SettingError
from taia_hub.roles.sublayers import find_sublayers, layer_of
from taia_hub.switch.entries import Entry
from taia_hub.training.fields import TRAINED_ROLES
from taia_hub.training.recipe import TrainingRecipe
from taia_hub.updates.peft.plain_lora import is_state_space


@dataclass(frozen=True)
class Target:
    """A module, or a parameter of one (also one that holds several experts), that can be trained.

    `shape` is experts (1 for a linear layer), outputs and inputs of an adapted weight, empty in full fine-tuning;
    `parameters` counts those trained in full fine-tuning, 0 for LoRA. `layer` is None outside the layers.
    """

    path: str
    role: str
    layer: int | None
    shape: tuple[int, ...] = ()
    parameters: int = 0
    is_experts: bool = False


@dataclass(frozen=True)
class Selection:
    """The modules (full fine-tuning) or weights (LoRA) that are trained, in the model's order; `notes` for the user."""

    targets: tuple[Target, ...]
    notes: tuple[str, ...] = ()

    def by_role(self) -> dict[str, tuple[Target, ...]]:
        """Returns the targets of each role that has any."""
        roles = dict.fromkeys(target.role for target in self.targets)
        return {role: tuple(target for target in self.targets if target.role == role) for role in roles}


def select(model: nn.Module, recipe: TrainingRecipe) -> Selection:
    """Finds what a recipe trains of a base model on any device, also `meta`; SettingError for an entry without effect.

    Example:
        >>> select(model, TrainingRecipe(train_modules="attention+ffn@0-7"))  # doctest: +SKIP
    """
    candidates, notes = _parameters(model) if recipe.method == "full" else _weights(model, recipe.method)
    setting = recipe.trained
    if setting.name != "all":
        for entry in setting.entries:
            _refuse_empty(entry, candidates, recipe)
    weights = setting.weights(candidates)
    chosen = tuple(target for target, weight in zip(candidates, weights, strict=True) if weight)
    if not chosen:
        raise SettingError(
            f"train_modules '{recipe.train_modules}' selects nothing of this model that {recipe.method} trains.",
            "Try 'all', or method: full.",
        )
    if recipe.method == "lora" and recipe.dropout and any(target.is_experts for target in chosen):
        notes += (
            "Experts are adapted as parameters, where PEFT has no dropout: dropout is 0 for the whole adapter "
            f"instead of {recipe.dropout:g}.",
        )
    return Selection(chosen, notes)


def trained_parameters(selection: Selection, recipe: TrainingRecipe) -> dict[str, int]:
    """Counts the parameters that are trained, by role."""
    counts: dict[str, int] = {}
    for target in selection.targets:
        counts[target.role] = counts.get(target.role, 0) + _parameter_count(target, recipe)
    return counts


def lora_arguments(selection: Selection, recipe: TrainingRecipe, model: nn.Module) -> dict[str, Any]:
    """Makes the keywords of PEFT's `LoraConfig`; ranks that differ by role become `rank_pattern`.

    Targets are written as the shortest names that select just them in `model`.
    """
    linear = [target for target in selection.targets if not target.is_experts]
    experts = [target for target in selection.targets if target.is_experts]
    role = selection.targets[0].role
    arguments: dict[str, Any] = {
        "r": recipe.rank_of(role),
        "lora_alpha": recipe.alpha_of(role),
        "lora_dropout": 0.0 if experts else recipe.dropout,
        "target_modules": _names(linear, [name for name, _ in model.named_modules()], 1) or None,
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    if experts:
        arguments["target_parameters"] = _names(experts, [name for name, _ in model.named_parameters()], 3)
    others = [target for target in selection.targets if target.role != role]
    for keyword, usual, of in (
        ("rank_pattern", arguments["r"], recipe.rank_of),
        ("alpha_pattern", arguments["lora_alpha"], recipe.alpha_of),
    ):
        different = [target for target in others if of(target.role) != usual]
        taken = [target.path for target in selection.targets]
        plain = _names([one for one in different if not one.is_experts], taken, 1)
        names = [*plain, *_names([one for one in different if one.is_experts], taken, 3)]
        if different:
            arguments[keyword] = dict.fromkeys(names, of(different[0].role))
    if any(isinstance(model.get_submodule(target.path), Conv1D) for target in linear):
        arguments["fan_in_fan_out"] = True
    return arguments


def freeze_others(model: nn.Module, selection: Selection) -> None:
    """Leaves gradients to the selected parameters only, for full fine-tuning; the model is changed in place."""
    model.requires_grad_(False)
    for target in selection.targets:
        for parameter in model.get_submodule(target.path).parameters(recurse=False):
            parameter.requires_grad_(parameter.is_floating_point())


def _weights(model: nn.Module, method: str) -> tuple[tuple[Target, ...], tuple[str, ...]]:
    """Lists the weights that LoRA adapts: linear layers and experts in attention and FFN, never head or embeddings."""
    placed = find_sublayers(model)
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    is_mamba = is_state_space(model)  # its kernels read `out_proj.weight` directly, so that PEFT refuses an adapter
    targets: list[Target] = []
    notes: list[str] = []
    for path, module in model.named_modules():
        role = placed.roles.get(path)
        if role not in TRAINED_ROLES:
            continue
        if is_mamba and path.rpartition(".")[2] in ("out_proj", "conv1d"):
            if not notes:
                notes.append(f"PEFT cannot adapt out_proj and conv1d of {model_type}: they stay as they are.")
            continue
        if isinstance(module, nn.Linear):
            targets.append(Target(path, role, layer_of(path), (1, module.out_features, module.in_features)))
        elif isinstance(module, Conv1D):
            inputs, outputs = module.weight.shape
            targets.append(Target(path, role, layer_of(path), (1, outputs, inputs)))
        else:
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 3 and role == "ffn":
                    full = f"{path}.{name}"
                    targets.append(Target(full, role, layer_of(full), tuple(parameter.shape), is_experts=True))
    if method == "lora" and (lost := _lost_to_peft(targets, model)):
        targets = [target for target in targets if target.path not in lost]
        notes.append(
            f"PEFT takes {sorted(lost)[0]} and {len(lost) - 1} more of {model_type} for routed experts: they stay as "
            "they are."
        )
    if method == "molora" and any(target.is_experts for target in targets):
        targets = [target for target in targets if not target.is_experts]
        notes.append("MoLoRA adapts linear layers only: the model's own experts stay as they are.")
    return tuple(targets), tuple(notes)


def _lost_to_peft(targets: Sequence[Target], model: nn.Module) -> set[str]:
    """Returns the linear layers whose names PEFT rewrites, as those of experts that transformers fuses by now."""
    paths = {target.path for target in targets if not target.is_experts}
    if not paths:
        return set()
    config = LoraConfig(target_modules=sorted(paths))
    convert_peft_config_for_transformers(config, model, None)
    return paths - set(config.target_modules or ())


def _parameters(model: nn.Module) -> tuple[tuple[Target, ...], tuple[str, ...]]:
    """Lists the modules that own parameters, each parameter counted where it comes first."""
    placed, seen = find_sublayers(model), set[int]()
    targets = []
    for path, module in model.named_modules():
        own = [one for one in module.parameters(recurse=False) if one.is_floating_point() and id(one) not in seen]
        seen.update(map(id, own))
        if own:
            count = sum(parameter.numel() for parameter in own)
            targets.append(Target(path, placed.roles.get(path, "other"), layer_of(path), parameters=count))
    return tuple(targets), ()


def _parameter_count(target: Target, recipe: TrainingRecipe) -> int:
    if recipe.method == "full":
        return target.parameters
    experts, outputs, inputs = target.shape
    pair = recipe.rank_of(target.role) * (outputs + inputs)
    if recipe.method == "molora" and target.role == "ffn":
        return recipe.experts * pair + recipe.experts * (inputs + 1)
    return experts * pair


def _refuse_empty(entry: Entry, candidates: Sequence[Target], recipe: TrainingRecipe) -> None:
    if any(entry.selects(target) for target in candidates):
        return
    if entry.role == "other":
        raise SettingError(
            f"train_modules '{recipe.train_modules}' names 'other'; {recipe.method} adapts linear layers of attention "
            "and FFN only.",
            "Leave it out, or use method: full.",
        )
    if entry.role is not None and entry.layers is None:
        raise SettingError(
            f"train_modules '{recipe.train_modules}': this model has no {entry.role} weights that {recipe.method} "
            "can train.",
            "Leave it out.",
        )


def _names(targets: Sequence[Target], everything: Iterable[str], parts: int) -> list[str]:
    """Returns the last `parts` words of the targets' paths where they select no other path, else whole paths."""
    if not targets:
        return []
    wanted = {target.path for target in targets}
    short = sorted({".".join(path.split(".")[-parts:]) for path in wanted})
    reached = {path for path in everything if any(path == name or path.endswith(f".{name}") for name in short)}
    return short if reached == wanted else sorted(wanted)


def check_trainable(model: nn.Module) -> None:
    """Refuses a prepared model of which no parameter is trained, with a ConfigError."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("No parameter of the model is trained.", "Choose other train_modules.")
