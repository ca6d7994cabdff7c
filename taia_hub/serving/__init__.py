"""Serving the modes of a repository with an engine that exists: its files, its command, starting it.

A repository, an engine's name and modes go in; prepared files and a command come out, and `run` starts it. It exports
and merges, and knows the engines by `taia_hub.engines` alone. How to serve many modes, on many machines, and what to
expect of each engine stands in `guide.md` beside this file: `taia serve --guide`.
"""

from typing import TYPE_CHECKING

from taia_hub.common.imports import later
from taia_hub.engines import ENGINES, Command, Engine, Order, ServedMode, find_engine
from taia_hub.engines.gguf_base import GGUFBase, write_gguf_base
from taia_hub.engines.gguf_lora import GGUFLora, write_gguf_lora
from taia_hub.serving.gguf import base_gguf, check_gguf
from taia_hub.serving.launching import check_installed, check_startable, choose_engine, run, start

if TYPE_CHECKING:
    from taia_hub.serving.planning import ServingPlan, plan_serving

__all__ = [
    "ENGINES",
    "Command",
    "Engine",
    "GGUFBase",
    "GGUFLora",
    "Order",
    "ServedMode",
    "ServingPlan",
    "base_gguf",
    "check_gguf",
    "check_installed",
    "check_startable",
    "choose_engine",
    "find_engine",
    "plan_serving",
    "run",
    "start",
    "write_gguf_base",
    "write_gguf_lora",
]
# exports and merges come with torch and PEFT, which starting an engine and vLLM's processes need not wait for
__getattr__ = later(__name__, {"ServingPlan": "planning", "plan_serving": "planning"})
