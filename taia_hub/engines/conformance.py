"""What the loaders of serving engines take of a LoRA in PEFT's format, from its two files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taia_hub.engines.facts import Adapter, BaseFacts, Verdict
from taia_hub.engines.rules import RULES
from taia_hub.errors import ConfigError, closest

ENGINES: tuple[str, ...] = tuple(dict.fromkeys(rule.engine for rule in RULES))
"""The engines whose rules are known."""


def check_engine(
    engine: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], base: BaseFacts
) -> Verdict:
    """Says what an engine makes of an adapter.

    Args:
        engine: One of `ENGINES`.
        config: Contents of `adapter_config.json`.
        shapes: Name of each tensor of `adapter_model.safetensors` to its shape.
        base: The base model.

    Returns:
        Refusals and notes.

    Raises:
        ConfigError: If there is no such engine.

    Example:
        >>> config = {"peft_type": "LORA", "r": 24, "lora_alpha": 24, "target_modules": ["q_proj"], "bias": "none"}
        >>> name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
        >>> shapes = {name.format("A"): (24, 8), name.format("B"): (8, 24)}
        >>> base = BaseFacts(frozenset({"model.layers.0.self_attn.q_proj"}))
        >>> check_engine("vllm", config, shapes, base).notes
        ('--max-lora-rank 32',)
    """
    if engine not in ENGINES:
        raise ConfigError(
            f"The engine {engine!r} is not known.{closest(str(engine), ENGINES)}", f"Choose {', '.join(ENGINES)}."
        )
    adapter = Adapter(config, shapes, base)
    found: dict[bool, list[str]] = {False: [], True: []}
    for rule in RULES:
        if rule.engine == engine:
            found[rule.is_note] += [one for one in rule.find(adapter) if one not in found[rule.is_note]]
    return Verdict(tuple(found[False]), tuple(found[True]))


def check_engines(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], base: BaseFacts
) -> dict[str, Verdict]:
    """Says what every engine makes of an adapter. Arguments as in `check_engine`.

    Returns:
        Engine to its verdict.
    """
    return {engine: check_engine(engine, config, shapes, base) for engine in ENGINES}
