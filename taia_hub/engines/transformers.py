"""`transformers serve`: a merged model a mode.

It looks architectures up in transformers itself, so that it serves no TAIA repository, and knows no adapter of a mode.
"""

from __future__ import annotations

import hashlib

from taia_hub.common.installing import extra_command
from taia_hub.engines.order import Command, Engine, Order, colon_name, one_machine, server


def build(order: Order) -> tuple[Command, ...]:
    """Makes the command; it runs where the merged folders are, so that a folder's name is the model's.

    One mode is loaded at the start and is the only one that is answered. Several are each loaded when they are first
    asked for, and every one is a whole model in memory. The modes are merged folders named `name:mode`.
    """
    one_machine(order, "transformers serve")
    names = [colon_name(order.name, mode.label) for mode in order.modes]
    environment = {"HF_HUB_OFFLINE": "1"}  # it would fetch whatever model of the Hub a request names
    files = {}
    if not order.trust_remote_code:  # a model's own code may lie in the Hub's cache
        # Its list of models is what a Hub's cache holds, and it serves those too: so it is given a cache that holds the
        # names of the modes. The models themselves are the folders that it runs in.
        cache = order.folder / f".listed-{hashlib.sha256(' '.join(names).encode()).hexdigest()[:8]}"
        environment["HF_HUB_CACHE"] = str(cache)
        for name in names:
            place, commit = cache / f"models--{name}", "0" * 40
            files[place / "refs" / "main"] = commit
            files[place / "snapshots" / commit / "config.json"] = '{"architectures": ["LlamaForCausalLM"]}'
    start = ("transformers", "serve", *(names if len(names) == 1 else ()))
    return (server(order, start, folder=order.folder, environment=environment, files=files),)


ENGINE = Engine(
    name="transformers",
    version="5.23",
    docs="https://huggingface.co/docs/transformers/serving",
    run_here=True,
    install=extra_command("serve"),
    needs="merged",
    serves_base=False,
    modules=("transformers", "fastapi", "uvicorn", "openai"),
    managed=("--host", "--port", "--trust-remote-code"),
    build=build,
    models=colon_name,
)
