"""What is known of vLLM, SGLang, TGI, LoRAX, llama.cpp, PEFT and `transformers serve`, in one place.

What an engine takes of an adapter (`check_engine`, `check_adapter`) and the command that makes it serve modes
(`ENGINES`): values and files in, refusals, notes and commands out. It imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping

from taia_hub.engines import llamacpp, sglang, transformers, vllm
from taia_hub.engines.checking import AdapterCheck, check_adapter
from taia_hub.engines.facts import BaseFacts, Verdict, largest_rank, saved_dtype
from taia_hub.engines.order import Command, Engine, Order, ServedMode, taia_command
from taia_hub.engines.rules import LOADERS, check_engine, check_engines, config_refusals, vllm_rank
from taia_hub.errors import ConfigError, closest

__all__ = [
    "ENGINES",
    "LOADERS",
    "AdapterCheck",
    "BaseFacts",
    "Command",
    "Engine",
    "Order",
    "ServedMode",
    "Verdict",
    "check_adapter",
    "check_engine",
    "check_engines",
    "config_refusals",
    "find_engine",
    "largest_rank",
    "saved_dtype",
    "taia_command",
    "vllm_rank",
]

ENGINES: Mapping[str, Engine] = {
    engine.name: engine for engine in (vllm.ENGINE, sglang.ENGINE, llamacpp.ENGINE, transformers.ENGINE)
}
"""The engines that `taia serve` starts, by name."""


def find_engine(name: str) -> Engine:
    """Finds an engine of `ENGINES` by its name.

    Raises:
        ConfigError: If the name is not known.

    Example:
        >>> find_engine("vllm").version
        '0.32'
    """
    if name not in ENGINES:
        raise ConfigError(f"The engine '{name}' is not known.{closest(name, ENGINES)}", f"Choose {', '.join(ENGINES)}.")
    return ENGINES[name]
