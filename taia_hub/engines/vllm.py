"""vLLM: one base model in memory, a LoRA a mode, one machine or many."""

from __future__ import annotations

import json

from taia_hub.engines.order import (
    HEAD_PORT,
    Command,
    Engine,
    Order,
    ServedMode,
    check_rank,
    colon_name,
    given_number,
    server,
    several,
    unless_given,
)
from taia_hub.engines.rules import VLLM_RANKS, vllm_rank
from taia_hub.errors import ConfigError

_RANK, _LORAS = "--max-lora-rank", "--max-loras"


def build(order: Order) -> tuple[Command, ...]:
    """Makes the commands: Ray's, where there are several machines, and `vllm serve` on the first one.

    The modes are LoRA folders that every machine sees under the same path, in one slot less than there are: vLLM's CPU
    backend answers a request for the base, which runs beside others, by the last slot (`index -1`). Copies that do not
    spread evenly are refused, and a flag that contradicts the ranks.
    """
    needed = vllm_rank(order.rank) if order.rank else None
    given = given_number(order, _RANK, hint=f"Give one of {', '.join(map(str, VLLM_RANKS))}.")
    check_rank(order, _RANK, given, needed or order.rank)
    loras = given_number(
        order, _LORAS, hint="Give how many LoRAs one batch may mix, or leave it out: it is set to all and a free slot."
    )
    command = server(
        order,
        ("vllm", "serve", order.base),
        ("--revision", order.revision),
        unless_given(order, "--tokenizer", order.tokenizer),
        unless_given(order, "--generation-config", order.tokenizer),  # where answers end
        ("--served-model-name", colon_name(order.name, "none")),
        ("--enable-lora", bool(order.updates)),
        (_RANK, needed if given is None else None),
        (_LORAS, len(order.updates) + 1 if loras is None and order.updates else None),
        ("--lora-modules", [_module(order.name, mode) for mode in order.updates] or None),
        ("--tensor-parallel-size", several(order.tensor_parallel)),
        *_spread(order),
        where="the first machine" if order.nodes > 1 else "",
    )
    return (*_ray(order), command)


def notes(order: Order) -> tuple[str, ...]:
    """Says where vLLM rounds the base, and where the user's own number of slots leaves none free."""
    said = []
    if order.dtype == "float32" != order.computed_in:
        said.append(
            "The base is saved in float32 and vLLM computes in 16 bits, so that answers may differ from those of "
            "transformers. On CPUs `-- --dtype float32` avoids that; on GPUs vLLM 0.32 takes LoRAs in 16 bits only."
        )
    loras, updates = given_number(order, _LORAS, hint=""), len(order.updates)
    if updates and loras is not None and loras <= updates:
        said.append(
            f"{_LORAS} {loras} leaves no slot free beside {updates} LoRAs: on CPUs vLLM 0.32 then answers "
            f"{colon_name(order.name, 'none')} with another mode's LoRA. Give {_LORAS} {updates + 1}, or leave it out."
        )
    return tuple(said)


def _module(name: str, mode: ServedMode) -> str:
    served, path = colon_name(name, mode.label), str(mode.path)
    if any(sign in f"{served}{path}" for sign in "=,"):  # vLLM reads name=path only where neither sign is in it
        return json.dumps({"name": served, "path": path})
    return f"{served}={path}"


def _spread(order: Order) -> tuple[tuple[str, object], ...]:
    """Several copies are spread over the machines; one copy is cut into as many stages as there are machines."""
    copies, nodes = order.data_parallel, order.nodes
    if copies % nodes and copies > 1:
        raise ConfigError(
            f"{copies} copies do not spread evenly over {nodes} machines.",
            f"Choose a multiple of {nodes} for --data-parallel, or 1: one copy over all machines.",
        )
    cut, spread = nodes > 1 and copies == 1, nodes > 1 and copies > 1
    return (
        ("--pipeline-parallel-size", nodes if cut else None),
        ("--distributed-executor-backend", "ray" if cut else None),
        ("--data-parallel-size", several(copies)),
        ("--data-parallel-size-local", copies // nodes if spread else None),
        ("--data-parallel-backend", "ray" if spread else None),
    )


def _ray(order: Order) -> tuple[Command, ...]:
    if order.nodes == 1:
        return ()
    head = (("ray", "start", "--head", f"--node-ip-address={order.head}", f"--port={HEAD_PORT}"),)
    other = (("ray", "start", f"--address={order.head}:{HEAD_PORT}"),)
    return Command(head, where="the first machine"), Command(other, where=f"each of the other {order.nodes - 1}")


ENGINE = Engine(
    name="vllm",
    version="0.32",
    docs="https://docs.vllm.ai/en/stable/features/lora/",
    run_here=True,
    install="pip install vllm",
    needs="adapter",
    serves_base=True,
    modules=("vllm",),
    managed=(
        *("--served-model-name", "--enable-lora", "--lora-modules", "--revision", "--trust-remote-code"),
        *("--host", "--port", "--tensor-parallel-size", "--tp", "-tp", "--data-parallel-size", "--dp", "-dp"),
    ),
    spreading=(
        *("--pipeline-parallel-size", "--pp", "-pp", "--distributed-executor-backend"),
        *("--data-parallel-size-local", "-dpl", "--data-parallel-backend", "-dpb"),
    ),
    build=build,
    notes=notes,
    mixes_base=True,
    models=colon_name,
    largest_rank=(VLLM_RANKS[-1], _RANK),
)
