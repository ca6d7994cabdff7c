"""Time and memory of exporting a mode, against loading the base with its adapter in PEFT, filtering and saving.

    python tests/benchmarks/bench_export.py [--rank 16] [--runs 3] [--layers 0] [--json FILE]

By default on SmolLM2-135M from its Python package; `--layers N` takes a synthetic bfloat16 Llama of hidden size 2,048
with N layers instead (16 is about 1B). Each way runs in a process of its own; importing is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_SHARED = """
import json, pathlib, sys, time, warnings
warnings.filterwarnings("ignore")
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from taia_hub.exporting import export_adapter
base, adapter, out, mode = sys.argv[1:]
def peak():  # getrusage would begin with the peak of the process that started this one
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
imported = peak()
start = time.perf_counter()
"""
_OURS = """
export_adapter(adapter, out, mode)
"""
_PEFT = """
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), adapter)
wanted = {"attention": (".self_attn.",), "ffn": (".mlp.",), "all": (".",)}[mode]
state = get_peft_model_state_dict(model, save_embedding_layers=False)
kept = {key: value.contiguous() for key, value in state.items() if any(part in key for part in wanted)}
config = PeftConfig.from_pretrained(adapter)
config.target_modules = sorted({key.split(".lora_")[0].rpartition(".")[2] for key in kept})
config.save_pretrained(out)
save_file(kept, pathlib.Path(out) / "adapter_model.safetensors", metadata={"format": "pt"})
"""
_END = """
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "mib": (peak() - imported) / 1024}))
"""


def measure_export(
    base: str | Path, adapter: str | Path, *, mode: str = "attention", runs: int = 3, folder: str | Path | None = None
) -> dict[str, Any]:
    """Measures an export and the usual way by PEFT, each in processes of its own, by turns.

    Args:
        base: Folder of the base model.
        adapter: Folder of a plain LoRA adapter of all roles that names it.
        mode: `attention`, `ffn` or `all`.
        runs: Number of runs of each way; the median counts.
        folder: Scratch folder; a temporary one by default.

    Returns:
        `seconds` and `mib` (growth of the peak memory) of both ways, and their ratios.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        found: dict[str, list[dict[str, float]]] = {"export": [], "peft": []}
        for run in range(runs):
            for way, code in (("export", _OURS), ("peft", _PEFT)):
                words = [str(base), str(adapter), f"{scratch}/{way}-{run}", mode]
                ran = subprocess.run(
                    [sys.executable, "-c", _SHARED + code + _END, *words],
                    capture_output=True,
                    text=True,
                    check=True,
                    env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
                )
                found[way].append(json.loads(ran.stdout.strip().splitlines()[-1]))
    result: dict[str, Any] = {
        way: {key: statistics.median(one[key] for one in many) for key in ("seconds", "mib")}
        for way, many in found.items()
    }
    result["time_ratio"] = result["export"]["seconds"] / result["peft"]["seconds"]
    result["memory_ratio"] = result["export"]["mib"] / result["peft"]["mib"]
    return result


def make_adapter(base: Path, folder: Path, rank: int) -> Path:
    """Writes a random LoRA of all linear layers of a model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype="auto"),
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    model.save_pretrained(folder)
    return folder


def make_base(folder: Path, layers: int) -> Path:
    """Writes a random bfloat16 Llama of hidden size 2,048."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    return folder


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--mode", default="attention")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.layers:
            base = make_base(folder / "base", options.layers)
        else:
            from taia_hub.demo.base import smollm2_base

            base = smollm2_base(folder)
        adapter = make_adapter(Path(base), folder / "adapter", options.rank)
        found = measure_export(base, adapter, mode=options.mode, runs=options.runs, folder=folder)
    for way in ("export", "peft"):
        print(f"{way:<8}{found[way]['seconds']:8.2f} s{found[way]['mib']:10.0f} MiB")  # noqa: T201
    print(f"ratios  {found['time_ratio']:8.3f}  {found['memory_ratio']:10.3f}")  # noqa: T201
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
