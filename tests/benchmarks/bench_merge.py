"""Time and peak memory of merging a mode to disk, beside PEFT's `merge_and_unload` + `save_pretrained`.

    python tests/benchmarks/bench_merge.py [--gigabytes 3] [--shard-gigabytes 1.5] [--mode attention] [--json FILE]

The base is a synthetic Llama of random bfloat16 weights, the adapter a LoRA of rank 16 on all its linear layers. What
is measured runs in a process of its own; the page cache is emptied of the inputs before each. The yardstick is reading
the base's files and writing them again in pieces, in one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
from bench_dense import HIDDEN, INNER, VOCABULARY, forget, write_checkpoint

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
FFN = ["gate_proj", "up_proj", "down_proj"]

_PEAK = """
import json, re, sys, time
from pathlib import Path

def peak():  # of this program alone: getrusage counts what started it too
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

base, adapter, out, mode, shard = sys.argv[1:6]
"""
_OURS = """
from taia_hub.merging import merge
before = peak()
start = time.perf_counter()
merge(adapter, out, mode)
print(json.dumps({"seconds": time.perf_counter() - start, "peak": peak(), "grown": peak() - before}))
"""
_PEFT = """
from peft import PeftModel
from transformers import AutoModelForCausalLM
before = peak()
start = time.perf_counter()
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
model.merge_and_unload().save_pretrained(out, max_shard_size=int(shard))
print(json.dumps({"seconds": time.perf_counter() - start, "peak": peak(), "grown": peak() - before}))
"""


def make_inputs(folder: Path, gigabytes: float, shard_bytes: float, rank: int = 16) -> int:
    """Writes `base`, and the adapters `all` and `attention` of the same tensors; returns the base's bytes."""
    layer = 2 * (4 * HIDDEN**2 + 3 * HIDDEN * INNER)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=max(1, round((gigabytes * 1e9 - 4 * VOCABULARY * HIDDEN) / layer)),
        num_attention_heads=16,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    (folder / "base").mkdir()
    size = write_checkpoint(folder / "base", config, shard_bytes, None)
    tensors: dict[str, torch.Tensor] = {}
    for label, targets in (("all", ATTENTION + FFN), ("attention", ATTENTION)):
        lora = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=targets,
            task_type="CAUSAL_LM",
        )
        with torch.device("meta"):
            shapes = get_peft_model_state_dict(get_peft_model(LlamaForCausalLM(config), lora))
        generator = torch.Generator().manual_seed(1)
        for name, like in shapes.items():
            if name not in tensors:
                tensors[name] = (torch.randn(like.shape, generator=generator) * 0.02).bfloat16()
        lora.inference_mode, lora.base_model_name_or_path = True, str(folder / "base")
        lora.save_pretrained(str(folder / label))
        save_file({name: tensors[name] for name in shapes}, folder / label / "adapter_model.safetensors")
    return size


def copy_in_pieces(source: Path, out: Path, piece: int = 1 << 20) -> float:
    """Returns the seconds that reading the weights of a folder and writing them again takes."""
    out.mkdir()
    buffer = memoryview(bytearray(piece))
    start = time.perf_counter()
    for path in sorted(source.glob("*.safetensors")):
        with path.open("rb", buffering=0) as reading, (out / path.name).open("wb", buffering=0) as writing:
            while count := reading.readinto(buffer):
                writing.write(buffer[:count])
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return seconds


def measure_merge(
    gigabytes: float = 3.0, *, shard_gigabytes: float | None = None, mode: str = "attention", repeats: int = 3
) -> dict[str, Any]:
    """Measures one size.

    Args:
        gigabytes: Size of the base.
        shard_gigabytes: Size of its shards; by default half of it, at most 5.
        mode: `attention` or `all`.
        repeats: How often each is measured; medians count.

    Returns:
        Bytes, seconds, ratios. `peak` counts the whole process, `grown` what was added to that of the imports.
    """
    shard = (shard_gigabytes or min(gigabytes / 2, 5.0)) * 1e9
    root = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        size = make_inputs(folder, gigabytes, shard)
        largest = max(path.stat().st_size for path in (folder / "base").glob("*.safetensors"))
        runs: dict[str, list[dict[str, float]]] = {"copy": [], "ours": [], "peft": []}
        for _ in range(repeats):
            for label, values in runs.items():
                forget(folder / "base", folder / "all", folder / "attention")
                out = folder / f"out-{label}"
                if label == "copy":
                    values.append({"seconds": copy_in_pieces(folder / "base", out)})
                    continue
                adapter = folder / ("all" if label == "ours" else mode)  # PEFT merges all that an adapter holds
                code = _PEAK + (_OURS if label == "ours" else _PEFT)
                paths = [str(one) for one in (folder / "base", adapter, out, mode, int(shard))]
                done = subprocess.run(
                    [sys.executable, "-W", "ignore", "-c", code, *paths],
                    capture_output=True,
                    text=True,
                    cwd=root,
                    env={**os.environ, "PYTHONPATH": str(root)},
                )
                if done.returncode:
                    raise RuntimeError(done.stderr)
                values.append(json.loads(done.stdout.splitlines()[-1]))
                shutil.rmtree(out)
    middle = {
        f"{label}_{key}": statistics.median(one[key] for one in values)
        for label, values in runs.items()
        for key in values[0]
    }
    return {
        "mode": mode,
        "bytes": size,
        "largest_shard": largest,
        **middle,
        "peak_by_shard": middle["ours_peak"] / largest,
        "grown_by_shard": middle["ours_grown"] / largest,
        "time_by_copy": middle["ours_seconds"] / middle["copy_seconds"],
        "memory_by_peft": middle["ours_peak"] / middle["peft_peak"],
        "time_by_peft": middle["ours_seconds"] / middle["peft_seconds"],
    }


def to_markdown(found: dict[str, Any]) -> str:
    """Makes a table of what was measured and what was aimed at."""
    rows = [
        ("peak memory / largest shard", "peak_by_shard", 1.3),
        ("time / reading and writing the files", "time_by_copy", 1.5),
        ("peak memory / PEFT merge_and_unload + save", "memory_by_peft", 0.35),
        ("time / PEFT merge_and_unload + save", "time_by_peft", 1.0),
    ]
    lines = [
        f"Base of {found['bytes'] / 1e9:.2f} GB, largest shard {found['largest_shard'] / 1e9:.2f} GB, "
        f"mode `{found['mode']}`, {os.cpu_count()} cores, torch {torch.__version__}.",
        "",
        "| what | measured | at most |",
        "| --- | --- | --- |",
    ]
    return "\n".join([*lines, *(f"| {label} | {found[key]:.2f} | {most} |" for label, key, most in rows)])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="size of the base")
    parser.add_argument("--shard-gigabytes", type=float, help="size of a shard; by default half of the base, at most 5")
    parser.add_argument("--mode", choices=("attention", "all"), default="attention")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    found = measure_merge(
        options.gigabytes, shard_gigabytes=options.shard_gigabytes, mode=options.mode, repeats=options.repeats
    )
    print(json.dumps(found, indent=2))  # noqa: T201
    print(to_markdown(found))  # noqa: T201
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
