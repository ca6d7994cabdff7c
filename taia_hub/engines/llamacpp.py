"""llama.cpp, by the server of llama-cpp-python: the base as GGUF and a GGUF LoRA a mode, on a CPU or a GPU."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import Any

from taia_hub.engines.order import Command, Engine, Order, ServedMode, colon_name, one_machine
from taia_hub.errors import ConfigError

CONFIG = "llama_cpp_server-{}.json"
"""Name of the file that the server reads, by a hash of what it says: several servers share a folder."""
_SERVER_TEXTS = ("api_key", "ssl_keyfile", "ssl_certfile", "root_path")
_SERVER_SWITCHES = ("interrupt_requests", "disable_ping_events")
# what its server reads beside the models, and would ignore among a model's settings


def build(order: Order) -> tuple[Command, ...]:
    """Makes the command and the file that it reads, with an entry a mode: a GGUF LoRA on the order's `gguf`."""
    one_machine(order, "llama-cpp-python")
    settings = _settings(order.extra)
    described = {
        "host": order.host,
        "port": order.port,
        **{name: settings.pop(name) for name in (*_SERVER_TEXTS, *_SERVER_SWITCHES) if name in settings},
        "models": [_entry(order, mode, settings) for mode in order.modes],
    }
    text = json.dumps(described, indent=2) + "\n"
    path = order.folder / CONFIG.format(hashlib.sha256(text.encode()).hexdigest()[:8])
    return (
        Command(
            (("python", "-m", "llama_cpp.server"), ("--config_file", str(path))),
            without=("CONFIG_FILE", "HOST", "PORT"),  # the server prefers them to its file
            files={path: text},
        ),
    )


def _entry(order: Order, mode: ServedMode, settings: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "model": str(order.gguf),
        "model_alias": colon_name(order.name, mode.label),
        "n_ctx": 0,  # as long as the model was trained for
        "n_gpu_layers": -1,  # all of them, where this build has a GPU
        "logits_all": False,  # they would fill n_ctx x vocabulary floats
        "verbose": False,
    }
    if mode.path is not None:
        entry["lora_path"] = str(mode.path)
    return {**entry, **settings}


def _settings(extra: tuple[str, ...]) -> dict[str, Any]:
    """Reads `--n_ctx 4096` and the like, which the server takes from its file when it has one."""
    settings: dict[str, Any] = {}
    words = [part for word in extra for part in (word.split("=", 1) if word.startswith("--") else [word])]
    while words:
        flag = words.pop(0)
        if not flag.startswith("--") or not words or words[0].startswith("--"):
            raise ConfigError(
                f"'{flag}' is no flag with a value.", "llama-cpp-python's flags all have one, as in -- --n_ctx 4096."
            )
        name, text = flag[2:].replace("-", "_"), words.pop(0)
        settings[name] = text
        if name not in _SERVER_TEXTS:  # a key of digits stays one
            with contextlib.suppress(ValueError):
                settings[name] = json.loads(text)
    return settings


ENGINE = Engine(
    name="llama.cpp",
    version="llama-cpp-python 0.3.36",
    docs="https://llama-cpp-python.readthedocs.io/en/latest/server/",
    run_here=True,
    install='pip install "llama-cpp-python[server]"',
    needs="gguf",
    serves_base=True,
    modules=("llama_cpp", "fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings"),
    managed=("--host", "--port", "--model", "--models", "--model-alias", "--lora-path", "--config-file"),
    build=build,
    models=colon_name,
)
