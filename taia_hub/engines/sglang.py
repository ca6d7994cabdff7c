"""SGLang: one base model in memory, a LoRA a mode, one machine or many."""

from __future__ import annotations

from taia_hub.engines.order import (
    Command,
    Engine,
    Order,
    check_rank,
    flag_of,
    given_number,
    server,
    several,
    unless_given,
)
from taia_hub.errors import ConfigError

_RANK, _LORAS = "--max-lora-rank", "--max-loras-per-batch"
HEAD_PORT = 50000
"""Where the machines find the first one."""


def model_name(name: str, label: str) -> str:
    """Returns the name of a mode in requests; the base is the plain name.

    SGLang itself reads `model:adapter` in a request, so that `name:attention` is the LoRA `attention` on `name`, and
    it refuses a colon in the name of the base.

    Example:
        >>> model_name("model-taia", "attention"), model_name("model-taia", "none")
        ('model-taia:attention', 'model-taia')
    """
    return name if label == "none" else f"{name}:{label}"


def build(order: Order) -> tuple[Command, ...]:
    """Makes the commands: one, or one a machine; the last one is the first machine's, which answers requests.

    The modes are LoRA folders that every machine sees under the same path. What SGLang cannot spread is refused, and a
    flag that contradicts the ranks.
    """
    if order.nodes > 1 and order.data_parallel > 1:
        raise ConfigError(
            "SGLang keeps copies of a model on one machine; --data-parallel and --nodes do not go together.",
            "Cut one copy over the machines with --tensor-parallel, or start a server a machine behind its router.",
        )
    if order.tensor_parallel % order.nodes:
        raise ConfigError(
            f"--tensor-parallel {order.tensor_parallel} does not spread evenly over {order.nodes} machines.",
            f"SGLang counts the GPUs of all machines: choose a multiple of {order.nodes}.",
        )
    given = given_number(order, _RANK, hint=f"Give a rank from {order.rank} on, or leave it out.")
    check_rank(order, _RANK, given, order.rank)
    return tuple(_command(order, machine) for machine in reversed(range(order.nodes)))


def _command(order: Order, machine: int) -> Command:
    machines = several(order.nodes)
    paths = [f"{mode.label}={mode.path}" for mode in order.updates]
    where = "" if not machines else "the first machine" if machine == 0 else f"machine {machine + 1}"
    return server(
        order,
        ("python", "-m", "sglang.launch_server"),
        ("--model-path", order.base),
        ("--revision", order.revision),
        unless_given(order, "--tokenizer-path", order.tokenizer),
        ("--served-model-name", order.name),
        ("--enable-lora", bool(paths)),
        ("--lora-paths", paths or None),
        # the base counts as one of the LoRAs that a batch may mix
        (_LORAS, len(paths) + 1 if paths and not _has(order, _LORAS) else None),
        ("--tp-size", several(order.tensor_parallel)),
        ("--dp-size", several(order.data_parallel)),
        ("--nnodes", machines),
        ("--node-rank", machine if machines else None),
        ("--dist-init-addr", f"{order.head}:{HEAD_PORT}" if machines else None),
        where=where,
    )


def _has(order: Order, flag: str) -> bool:
    return any(flag_of(word) == flag for word in order.extra)


ENGINE = Engine(
    name="sglang",
    version="0.5",
    docs="https://docs.sglang.io/advanced_features/lora.html",
    run_here=False,
    install='pip install "sglang[all]"',
    needs="adapter",
    serves_base=True,
    modules=("sglang",),
    managed=(
        *("--model-path", "--model", "--served-model-name", "--enable-lora", "--lora-paths", "--revision"),
        *("--host", "--port", "--tp-size", "--tp", "--tensor-parallel-size", "--dp-size", "--dp"),
        *("--data-parallel-size", "--nnodes", "--node-rank", "--dist-init-addr", "--trust-remote-code"),
    ),
    build=build,
    models=model_name,
)
