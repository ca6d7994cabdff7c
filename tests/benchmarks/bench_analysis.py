"""Time and memory of an update's norms, on an adapter of the shape of one for a 7B model (Llama 2: 32 layers).

    python tests/benchmarks/bench_analysis.py [--rank 16] [--layers 32] [--dtype float32] [--relative] [--json FILE]

The adapter is written to a scratch folder tensor by tensor, with random numbers; `--relative` writes base weights too
(`--layers 2` keeps those at 1.6 GB in float32). What is measured runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import LlamaConfig

HIDDEN, INNER, VOCABULARY = 4096, 11008, 32000
SHAPES = {  # module to (out, in)
    **{f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"},
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def write_streamed(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> int:
    """Writes a safetensors file of random tensors, one in memory at a time; returns its size."""
    header, start = {}, 0
    for name, shape in shapes.items():
        end = start + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            tensor = (torch.randn(shape, generator=generator) * 0.02).to(dtype)
            file.write(tensor.view(torch.uint8).numpy().tobytes())
    return path.stat().st_size


def make(folder: Path, rank: int, layers: int, dtype: torch.dtype, weights: bool) -> Path:
    """Writes a base model (its configuration, and its layers' weights if asked) and a LoRA on all linear layers."""
    base, adapter = folder / "base", folder / "adapter"
    LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=32,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(base)
    paths = {f"model.layers.{layer}.{name}": shape for layer in range(layers) for name, shape in SHAPES.items()}
    if weights:
        write_streamed(base / "model.safetensors", {f"{path}.weight": shape for path, shape in paths.items()}, dtype)
    adapter.mkdir()
    targets = [name.rpartition(".")[2] for name in SHAPES]
    LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=targets,
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(base),
    ).save_pretrained(adapter)
    pairs = {}
    for path, (out, into) in paths.items():
        pairs[f"base_model.model.{path}.lora_A.weight"] = (rank, into)
        pairs[f"base_model.model.{path}.lora_B.weight"] = (out, rank)
    write_streamed(adapter / "adapter_model.safetensors", pairs, dtype)
    return adapter


def peak_mib() -> float:
    """Returns the largest memory that this process held so far; a parent's does not count, as it does in getrusage."""
    (kibibytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kibibytes) / 1024


def measure(adapter: str, relative: bool) -> dict[str, float]:
    """Analyses an adapter; returns seconds, and mebibytes of memory before and at the peak."""
    from taia_hub.analysis import analyze_update
    from taia_hub.modeling_taia import TAIAForCausalLM  # noqa: F401 - what a command imports is no part of the work

    before = peak_mib()
    start = time.perf_counter()
    found = analyze_update(adapter, relative=relative)
    seconds = time.perf_counter() - start
    return {
        "modules": len(found.modules),
        "parameters": found.total.parameters,
        "seconds": seconds,
        "before_mib": before,
        "peak_mib": peak_mib(),
        "relative": found.total.relative_frobenius or 0.0,
    }


def main() -> None:
    """Makes the adapter, measures in a process of its own, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--relative", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        sys.stdout.write(json.dumps(measure(options.measure, options.relative)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        dtype = getattr(torch, options.dtype)
        adapter = make(Path(scratch), options.rank, options.layers, dtype, options.relative)
        size = (adapter / "adapter_model.safetensors").stat().st_size
        words = [sys.executable, __file__, "--measure", str(adapter), *(["--relative"] if options.relative else [])]
        root = str(Path(__file__).parents[2])
        environment = {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
        found = json.loads(done.stdout.strip().splitlines()[-1])
    rows = {
        "shape": f"{options.layers} layers, hidden {HIDDEN}, inner {INNER}, rank {options.rank}, {options.dtype}",
        "adapter": f"{size / 2**20:.0f} MiB, {found['parameters']:,} parameters, {found['modules']} modules",
        "threads": f"{torch.get_num_threads()}",
        "time": f"{found['seconds']:.1f} s",
        "peak memory": f"{found['peak_mib']:.0f} MiB, of which {found['before_mib']:.0f} MiB before the work",
    }
    sys.stdout.write("\n".join(f"{name:<12} {value}" for name, value in rows.items()) + "\n")
    if options.json:
        options.json.write_text(json.dumps({**found, "bytes": size}, indent=2) + "\n")


if __name__ == "__main__":
    main()
