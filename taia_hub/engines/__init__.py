"""The engines that `taia serve` starts: values in, commands out."""

from __future__ import annotations

from collections.abc import Mapping

from taia_hub.engines import llamacpp, sglang, transformers, vllm
from taia_hub.engines.order import Command, Engine, Order, ServedMode
from taia_hub.errors import ConfigError, closest

__all__ = ["ENGINES", "Command", "Engine", "Order", "ServedMode", "find_engine"]

ENGINES: Mapping[str, Engine] = {
    engine.name: engine for engine in (vllm.ENGINE, sglang.ENGINE, llamacpp.ENGINE, transformers.ENGINE)
}
"""The engines by name."""


def find_engine(name: str) -> Engine:
    """Finds an engine by its name.

    Args:
        name: Such as `"vllm"`.

    Returns:
        The engine.

    Raises:
        ConfigError: If the name is not known.

    Example:
        >>> find_engine("vllm").version
        '0.27'
    """
    if name not in ENGINES:
        raise ConfigError(f"The engine '{name}' is not known.{closest(name, ENGINES)}", f"Choose {', '.join(ENGINES)}.")
    return ENGINES[name]
