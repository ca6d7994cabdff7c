"""llama.cpp, by xllamacpp: the base as GGUF and a GGUF LoRA a role, which each request weighs, on a CPU or a GPU."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path

from taia_hub import hub
from taia_hub.common.installing import extra_command
from taia_hub.common.shell import split_options
from taia_hub.engines.order import Command, Engine, Order, colon_name, one_machine
from taia_hub.engines.parts import Served
from taia_hub.errors import ConfigError
from taia_hub.switch.settings import parse_setting

CONFIG = "llama_cpp_server-{}.json"
"""Name of the file that the server reads, by a hash of what it says: several servers share a folder."""
_FRONT = ("ssl_keyfile", "ssl_certfile", "root_path")


def build(order: Order) -> tuple[Command, ...]:
    """Makes the command and the file that it reads: the order's `gguf`, its LoRAs, and the names of its models.

    The user's flags are parameters of llama.cpp, which are checked where xllamacpp is installed.
    """
    one_machine(order, "llama.cpp")
    settings = _settings(order.extra)
    if "chat_template" not in settings and (template := _template(order.tokenizer)):
        settings["chat_template"] = template
    front = {name: settings.pop(name) for name in _FRONT if name in settings}
    _check_tls(front)
    if importlib.util.find_spec("xllamacpp"):
        from taia_hub.engines.llamacpp_front import make_params  # a module that is started is not imported before

        make_params(settings)
    models = {colon_name(order.name, mode.label): mode.setting or parse_setting(mode.label) for mode in order.modes}
    described = {
        "host": order.host,
        "port": order.port,
        "base": str(order.gguf),
        "served": Served(order.name, models, order.parts).to_dict(),
        "settings": settings,
        "front": front,
    }
    text = json.dumps(described, indent=2) + "\n"
    path = order.folder / CONFIG.format(hashlib.sha256(text.encode()).hexdigest()[:8])
    return (Command((("python", "-m", "taia_hub.engines.llamacpp_front"), (str(path),)), files={path: text}),)


def notes(order: Order) -> tuple[str, ...]:
    """Says that requests are not bound to the modes that are listed."""
    return (f"Every other setting is there too: as the model {order.name}:SETTING, or in the field inference_modules.",)


def _template(tokenizer: Path | None) -> str | None:
    """Reads the chat template in the folder of a tokenizer; None where there is none."""
    if tokenizer is None:
        return None
    if (path := tokenizer / "chat_template.jinja").is_file():
        return path.read_text(encoding="utf-8")
    config = tokenizer / hub.TOKENIZER_CONFIG
    found = hub.read_json(config).get("chat_template") if config.is_file() else None
    if isinstance(found, list):  # several by name
        found = {one["name"]: one["template"] for one in found}.get("default")
    return found if isinstance(found, str) else None


def _settings(extra: tuple[str, ...]) -> dict[str, str]:
    """Reads `--n-ctx 4096` and the like: name to text."""
    settings: dict[str, str] = {}
    words = split_options(extra)
    while words:
        flag = words.pop(0)
        if not flag.startswith("--") or not words or words[0].startswith("--"):
            raise ConfigError(f"'{flag}' is no flag with a value.", "llama.cpp's have one here, as in -- --n-ctx 4096.")
        settings[flag[2:].replace("-", "_")] = words.pop(0)
    return settings


def _check_tls(front: Mapping[str, str]) -> None:
    """Refuses a key without its certificate, and files that are not there."""
    if "ssl_keyfile" in front and "ssl_certfile" not in front:
        raise ConfigError("--ssl-keyfile came without --ssl-certfile.", "Give both.")
    for name in ("ssl_keyfile", "ssl_certfile"):
        if name in front and not os.path.isfile(front[name]):
            raise ConfigError(f"There is no file '{front[name]}' for --{name.replace('_', '-')}.", "Check the path.")


ENGINE = Engine(
    name="llama.cpp",
    version="xllamacpp 2026.10",
    docs="https://github.com/xorbitsai/xllamacpp",
    run_here=True,
    install=extra_command("serve"),
    needs="gguf",
    serves_base=True,
    modules=("xllamacpp", "gguf", "starlette", "uvicorn", "httpx"),
    managed=(
        *("--host", "--port", "--hostnames", "--model", "--model.path", "--model-alias", "--lora-adapters"),
        # prompts kept in memory are found without asking which LoRA they were read with
        "--cache-ram-mib",
    ),
    build=build,
    models=colon_name,
    notes=notes,
)
