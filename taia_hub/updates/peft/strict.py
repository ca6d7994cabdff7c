"""What is refused when an adapter is loaded: options that cannot be switched, and tensors that do not fit."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from packaging.version import InvalidVersion, Version
from peft import PeftConfig, PeftType, TaskType, load_peft_weights
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from taia_hub import hub
from taia_hub.common.patterns import check_patterns
from taia_hub.errors import ConfigError, UnsupportedUpdateError, UpdateMismatchError, short
from taia_hub.hub.layout import PEFT, PREFIX
from taia_hub.weights.checkpoint import StoredTensor

ADAPTER = "default"
CONFIG_NAME, WEIGHTS_NAME = PEFT.config, PEFT.weights

WRAPPERS = re.compile(r"\.(?:base_layer|original_module|token_adapter|modules_to_save\.default)(?=\.|$)")

_TOWER = re.compile(r"\.(?:visual|vision_\w+|audio_\w+|multi_modal_projector|mm_projector)\.")
_SHAPE = re.compile(r"torch\.Size\(\[([\d, ]*)\]\)")
_FACTOR = re.compile(rf"size mismatch for {re.escape(PREFIX)}(.+)\.lora_([AB])\.")
# ^ of what torch says of a tensor that has another shape than its place
_LARGEST_ALPHA = 1_000_000
_MOST = {"": 100_000, "rank_pattern": 10_000, "alpha_pattern": 2_000}
# ^ PEFT matches each pattern with each module
_AGAIN = "Save the adapter again with `model.save_pretrained(...)`, or correct the value."
_REFUSED_TYPES: dict[Any, str] = {
    PeftType.ADAPTION_PROMPT: "it replaces whole attention modules and has no layer that can be switched",
    PeftType.XLORA: "its gates run as hooks on the whole model, outside the layers",
    PeftType.POLY: "its layers need task ids in every call",
    PeftType.SHADOW: "its layers hand a second stream from one to the next, so that none can be masked alone",
}
_TASKS = (None, TaskType.CAUSAL_LM, TaskType.FEATURE_EXTRACTION)
_WAY_OUT = "Load it with `PeftModel.from_pretrained`, or train a LoRA without this option."
_REFUSED_OPTIONS = {
    "layer_replication": "acts outside the adapted layers",
    "alora_invocation_tokens": "acts outside the adapted layers",
    "arrow_config": "acts outside the adapted layers",
    "kasa_config": "cuts the smallest singular values off the base model's weights, in the first forward pass",
    "monteclora_config": "keeps a sampler beside the factors, which is no part of a layer that can be switched",
}
_REFUSED_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")


def read_config(folder: Path) -> PeftConfig:
    """Reads `adapter_config.json` in a folder, and refuses what cannot be switched off at run time.

    It may be anybody's: values are bounded here, and its expressions where the names are known (`check_expressions`).
    """
    values = hub.read_json(folder / CONFIG_NAME)
    _check_format(values, folder)
    _check_bounds(values)
    try:
        methods: Any = PEFT_TYPE_TO_CONFIG_MAPPING  # its keys are texts as well
        method = methods.get(str(values.get("peft_type")))
        if method is not None:
            # PEFT asks this of the base class alone, which refuses nothing.
            method.check_kwargs(**{**values, "peft_version": str(values.get("peft_version") or "0")})
        config = PeftConfig.from_pretrained(str(folder))
    except Exception as error:
        why = f"it does not know {error}" if isinstance(error, KeyError) else hub.reason_of(error).rstrip(".")
        hint = "Save the adapter again with `model.save_pretrained(...)` of a current PEFT, or upgrade PEFT."
        if isinstance(error, KeyError) or "version" in why:  # of a PEFT to come, or of one that is gone
            hint = (
                "Upgrade PEFT where it is a newer method; else merge the adapter into its base with the PEFT that "
                "wrote it, and make a repository of the two models with --dense."
            )
        raise ConfigError(
            f"{CONFIG_NAME} in '{folder}' is no adapter configuration that PEFT reads: {why}.", hint
        ) from error
    # PEFT puts its own version where the file has none, which means one before 0.18.
    config.peft_version = values.get("peft_version")
    if config.peft_type is None:
        raise ConfigError(
            f"{CONFIG_NAME} in '{folder}' names no method (peft_type).", "Save the adapter again with PEFT."
        )
    bias = getattr(config, "bias", "none")
    if isinstance(bias, str) and bias.endswith(("all", "_only")) and (folder / WEIGHTS_NAME).is_file():
        _settle_bias(config, folder)
    if reason := _refusal(config):
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise UnsupportedUpdateError(f"This {kind} adapter cannot be switched: {reason[0]}.", reason[1])
    return config


def written_by(config: PeftConfig) -> Version:
    """Returns the version of PEFT that wrote a configuration; 0 before 0.18, which was the first to say so."""
    try:
        return Version(str(config.peft_version or "0").partition("@")[0])
    except InvalidVersion:
        return Version("0")


def _check_format(values: Mapping[str, Any], folder: Path) -> None:
    """Refuses the configurations of other tools that have the name of PEFT's."""
    other = ""
    if "peft_type" not in values:
        if {"fine_tune_type", "lora_parameters", "lora_layers"} & values.keys():
            other = "mlx-lm (its weights are in adapters.safetensors)"
        elif isinstance(values.get("config"), dict) and "model_name" in values:
            other = "the library `adapters` (AdapterHub)"
    if other:
        raise UnsupportedUpdateError(
            f"The adapter in '{folder}' was made by {other}, not by PEFT.",
            f"Convert it to PEFT's format first: {CONFIG_NAME} with a peft_type, beside {WEIGHTS_NAME}.",
        )


def is_of_backbone(config: PeftConfig) -> bool:
    """Tells an adapter of a model without its language-modelling head, by its task or the class that it names."""
    if config.task_type is not None or not isinstance(config.auto_mapping, dict):
        return config.task_type == TaskType.FEATURE_EXTRACTION
    named = config.auto_mapping.get("base_model_class")
    classes = MODEL_MAPPING_NAMES.values()
    return any(named == one or (isinstance(one, (list, tuple)) and named in one) for one in classes)


def _settle_bias(config: Any, folder: Path) -> None:
    """Reads `bias` as "none" where the file holds no bias of the base model, as of bases that have none."""
    method = PEFT_TYPE_TO_PREFIX_MAPPING.get(config.peft_type, "lora_")
    saved = tuple(getattr(config, "modules_to_save", None) or ())
    biases = [
        key
        for key in hub.tensor_shapes(folder / WEIGHTS_NAME)
        if key.endswith(".bias")
        and f".{method}" not in key
        and not any(f".{name}." in key.removesuffix("bias") for name in saved)
    ]
    if biases:
        raise UnsupportedUpdateError(
            f"This {config.peft_type.value} adapter cannot be switched: with bias={config.bias!r} its file overwrites "
            f"{len(biases)} of the base model's biases, {few(biases)}, which PEFT cannot switch back.",
            _WAY_OUT,
        )
    config.bias = "none"


def check_expressions(config: PeftConfig, base: nn.Module) -> None:
    """Refuses an adapter whose regular expressions would not end on the names of a base model's modules."""
    check_patterns(config.to_dict(), (name for name, _ in base.named_modules()), where=CONFIG_NAME)


def _check_bounds(values: Mapping[str, Any]) -> None:
    """Refuses scalings with which an update is no number any more, and more patterns than any model has modules."""
    for name, value in values.items():
        try:
            json.dumps(value, allow_nan=False)
        except ValueError as error:  # Python takes NaN and Infinity for JSON
            said = f"{name} in {CONFIG_NAME} is {short(value)}"
            raise ConfigError(f"{said}; a finite number is expected.", _AGAIN) from error
        if isinstance(value, (dict, list)) and len(value) > (most := _MOST.get(name, _MOST[""])):
            raise ConfigError(f"{name} in {CONFIG_NAME} has {len(value):,} entries; at most {most:,} are read.", _AGAIN)
        inside = value.values() if isinstance(value, dict) else [value]
        if name.endswith("token_indices") and any(
            type(one) is int and one < 0 for held in inside if isinstance(held, list) for one in held
        ):
            raise ConfigError(f"{name} in {CONFIG_NAME} has numbers below 0, which are no tokens.", _AGAIN)
        for number in inside if "alpha" in name else ():
            if isinstance(number, (bool, int, float)) and (number is True or abs(number) > _LARGEST_ALPHA):
                said = f"{name} in {CONFIG_NAME} is {str(number)[:40]}"
                raise ConfigError(f"{said}; a number of at most {_LARGEST_ALPHA:,} is expected.", _AGAIN)


def _refusal(config: PeftConfig) -> tuple[str, str] | None:
    """Returns why the adapter cannot be switched and the way out, or None when it can."""
    if config.is_prompt_learning:
        return (
            "prompt learning adds tokens to the input and updates no module, so there is no attention or FFN part",
            "Load it with `PeftModel.from_pretrained`; TAIA needs a method that updates modules, such as LoRA.",
        )
    if config.task_type not in _TASKS:
        task = getattr(config.task_type, "value", config.task_type)
        kind = "an encoder-decoder" if task == "SEQ_2_SEQ_LM" else "a classification head"
        return (
            f"it was trained for {task} ({kind}), and TAIA takes causal language models",
            "Give an adapter of a causal language model; if this one is and its task is named wrongly, write "
            f"CAUSAL_LM as task_type into {CONFIG_NAME}.",
        )
    if config.peft_type in _REFUSED_TYPES:
        return _REFUSED_TYPES[config.peft_type], _WAY_OUT
    init = getattr(config, "init_lora_weights", True)
    if isinstance(init, str) and init.startswith(_REFUSED_INITS):
        return (
            f"init_lora_weights={init!r} changes the base model's weights when it is loaded",
            "Convert it to a plain LoRA with PEFT's `save_pretrained(path_initial_model_for_weight_conversion=...)`.",
        )
    if getattr(config, "use_cayley_neumann", False) and written_by(config) < Version("0.18.0"):
        return (
            "use_cayley_neumann means another rotation since PEFT 0.18 than before, when it was trained",
            "Merge it into its base with PEFT 0.17, and make a repository of the two models with --dense.",
        )
    for option, reason in _REFUSED_OPTIONS.items():
        if getattr(config, option, None) not in (None, [], False):
            return f"{option} {reason}", _WAY_OUT
    return None


def check_tensors(
    update: Any,
    folder: Path,
    stored: Mapping[str, StoredTensor],
    keys: set[str],
    originals: Mapping[str, torch.Tensor],
    read: Callable[[str], torch.Tensor | None] | None = None,
) -> set[str]:
    """Checks that every tensor of the file is used and every adapted module got its tensors.

    A faithful copy of `originals`, which are the base's as they were before the load, does no harm, and its name is
    returned; one that differs would replace the base's. `keys` are the names in the file without those that belong to
    embeddings and head; `read` gives the originals of a model without weights.
    """
    expected = set(update.parameters())
    if keys == expected:
        return set()
    own = {
        PREFIX + path: (WRAPPERS.sub("", path), parameter)
        for path, parameter in update.head_model.named_parameters(remove_duplicate=False)
    }
    carried = sorted(key for key in keys - expected if key in own and own[key][0] in originals)

    def is_same(key: str) -> bool:
        name, parameter = own[key]
        if parameter.shape != originals[name].shape:
            return False
        base = read(name) if read else originals[name]
        if read and base is not None:
            return torch.equal(stored[key].read().to(base.dtype), base)
        return parameter.is_meta or (base is not None and torch.equal(parameter.to(base.device), base))

    if changed := [key for key in carried if not is_same(key)]:
        raise UnsupportedUpdateError(
            f"The adapter's file carries {len(changed)} of the base model's own tensors with other values, "
            f"{few(changed)}, which would replace the base's and could not be switched off.",
            "Save it again with PEFT's `save_pretrained`, or list these modules in `modules_to_save`.",
        )
    keys, copies = keys.difference(carried), {own[key][0] for key in carried}
    if keys == expected:
        return copies
    # PEFT converts old checkpoints while it loads (names, fused experts), so its own verdict decides.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")  # of a model without weights
        exchanged = {key for one in update.tuned for key in one.keys}
        tensors = load_peft_weights(str(folder), device="cpu")
        result = update.load({key: tensors[key] for key in keys - exchanged})
    missing, unexpected = list(result.missing_keys), list(result.unexpected_keys)
    if not missing and not unexpected and keys - expected and expected - keys:
        return copies
    missing, unexpected = missing or sorted(expected - keys), unexpected or sorted(keys - expected)
    problems = []
    if missing:
        missing = [name.replace(f".{ADAPTER}", "") for name in missing]  # as the file would name them
        problems.append(f"{_count(missing)} missing: {few(missing)}")
    if unexpected:
        problems.append(f"{_count(unexpected)} of no adapted module: {few(unexpected)}")
    hint = "Check the base model and `target_modules`; the file needs the configuration that it was saved with."
    if any(_TOWER.search(name) for name in unexpected) and not any(_TOWER.search(name) for name in own):
        hint = "The adapter changes an image or audio tower, which this base lacks: name the model that has one."
    raise UpdateMismatchError(
        f"{WEIGHTS_NAME} does not fit its {CONFIG_NAME} and base model; {'; '.join(problems)}.", hint
    )


def check_names(keys: Iterable[str]) -> None:
    """Refuses the tensors of another tool, or of a whole model, by their names."""
    if seen := hub.seen_tensors(keys):
        raise UpdateMismatchError(f"The tensors in {WEIGHTS_NAME} are {seen[0]}, and none of PEFT's.", seen[1])


def check_base_untouched(model: nn.Module, before: Mapping[str, tuple[nn.Parameter, int, int]]) -> None:
    """Refuses an adapter whose loading changed, replaced or moved the base's own parameters.

    `before` is the parameter, its address and its version before the load, by name.
    """
    if {"cpu", "disk"} & {str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()}:
        return  # PEFT dispatches an offloaded model anew, which moves the base's parameters without changing them
    here = {id(parameter) for parameter in model.parameters()}
    changed = [
        name
        for name, (parameter, pointer, version) in before.items()
        if id(parameter) not in here or parameter.data_ptr() != pointer or parameter._version != version
    ]
    if changed:
        raise UnsupportedUpdateError(
            f"Loading the adapter changes {len(changed)} of the base model's own parameters, {few(changed)}, so the "
            "base model could not be had back at run time.",
            "Load it with `PeftModel.from_pretrained`; TAIA needs an update that stands beside the base's weights.",
        )


def mismatch(error: Exception, config: PeftConfig, base: nn.Module) -> UpdateMismatchError:
    """Says in our words why PEFT could not put an adapter on a base model; raise it from `error`."""
    base_name = getattr(getattr(base, "config", None), "_name_or_path", "") or type(base).__name__
    made_for = config.base_model_name_or_path
    hint = f"Check {CONFIG_NAME}: it has to be the one that was saved with {WEIGHTS_NAME}, as PEFT wrote it."
    if made_for != base_name:
        hint = f"The adapter was made for '{made_for}' and the base is '{base_name}'; check that they belong together."
    if isinstance(error, KeyError):
        return UpdateMismatchError(f"{WEIGHTS_NAME} lacks the tensor {error}.", hint)
    lines = [line.strip() for line in str(error).splitlines() if "size mismatch for" in line]
    if lines:
        if config.peft_type == PeftType.LORA and (ranks := _other_ranks(lines)):
            return UpdateMismatchError(
                f"{_count(lines)} of another shape than {CONFIG_NAME} says: the factors of {few(ranks, 1)} have rank "
                f"{next(iter(ranks.values()))}.",
                f"Check r (now {getattr(config, 'r', None)}) and rank_pattern: they have to be those that the adapter "
                "was trained with.",
            )
        if made_for == base_name:
            hint = f"{hint} Or the base has changed since: try its older revisions."
        shown = " ".join(line.removeprefix("size mismatch for ") for line in lines[:3])
        return UpdateMismatchError(f"{_count(lines)} of another shape than the base: {shown}", hint)
    return UpdateMismatchError(f"The adapter does not fit the base model: {error}", hint)


def _other_ranks(lines: Iterable[str]) -> dict[str, str]:
    """Returns path to rank in the file, where nothing but the rank of a LoRA is another than the configuration says."""
    ranks = {}
    for line in lines:
        sides = [shape.split(", ") for shape in _SHAPE.findall(line)]
        if (found := _FACTOR.match(line)) is None or [len(side) for side in sides] != [2, 2]:
            return {}
        there, here = sides if found[2] == "A" else (sides[0][::-1], sides[1][::-1])
        if there[0] == here[0] or there[1] != here[1]:
            return {}
        ranks[found[1]] = there[0]
    return ranks


def _count(names: Sequence[str]) -> str:
    return "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"


def few(names: Iterable[str], count: int = 3) -> str:
    """Lists the first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(f"'{name}'" for name in names[:count]) + more
