"""Serving the modes of a repository with an engine that exists: its files, its command, starting it."""

from taia_hub.engines import ENGINES, Command, Engine, Order, ServedMode, find_engine
from taia_hub.engines.gguf_lora import GGUFLora, write_gguf_lora
from taia_hub.serving.launching import check_installed, check_port, run, start
from taia_hub.serving.planning import Plan, plan_serving

__all__ = [
    "ENGINES",
    "Command",
    "Engine",
    "GGUFLora",
    "Order",
    "Plan",
    "ServedMode",
    "check_installed",
    "check_port",
    "find_engine",
    "plan_serving",
    "run",
    "start",
    "write_gguf_lora",
]
