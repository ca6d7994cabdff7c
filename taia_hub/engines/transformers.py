"""`transformers serve`: a merged model a mode.

It looks architectures up in transformers itself, so that it serves no TAIA repository, and knows no adapter of a mode.
"""

from __future__ import annotations

from taia_hub.engines.order import Command, Engine, Order, colon_name, one_machine, server


def build(order: Order) -> tuple[Command, ...]:
    """Makes the command; it runs where the merged folders are, so that a folder's name is the model's.

    One mode is loaded at the start and is the only one that is answered. Several are each loaded when they are first
    asked for, and every one is a whole model in memory. The modes are merged folders named `name:mode`.
    """
    one_machine(order, "transformers serve")
    pinned = [colon_name(order.name, mode.label) for mode in order.modes] if len(order.modes) == 1 else []
    # it would fetch whatever model of the Hub a request names
    offline = {"HF_HUB_OFFLINE": "1"}
    return (server(order, ("transformers", "serve", *pinned), folder=order.folder, environment=offline),)


ENGINE = Engine(
    name="transformers",
    version="5.23",
    docs="https://huggingface.co/docs/transformers/serving",
    run_here=True,
    install='pip install "transformers[serving]"',
    needs="merged",
    serves_base=False,
    modules=("transformers", "fastapi", "uvicorn", "openai"),
    managed=("--host", "--port", "--trust-remote-code"),
    build=build,
    models=colon_name,
)
