"""What one loaded model saves: `taia eval` with four modes against four separate runs of lm-eval with PEFT.

    python tests/benchmarks/bench_evaluation.py [--items 20] [--rounds 1] [--json FILE]

Needs `pip install "taia-hub[demo,eval]"`. The four runs are `lm_eval run` on the base model alone, and with the full,
the attention-only and the FFN-only adapter, each in a process of its own, as one does without this package.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from taia_hub import TAIAForCausalLM
from taia_hub.demo.base import smollm2_base
from taia_hub.results import Results

ROLES = {"attention": r"self_attn\.[qkvo]_proj", "ffn": r"mlp\.(gate|up|down)_proj"}
TASK = "bench_words"


def adapters(base: Path, folder: Path) -> dict[str, Path | None]:
    """Writes a random rank-16 adapter and its two halves; mode to the folder of its adapter."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(0.4)
    model.save_pretrained(folder / "all")
    tensors = load_file(folder / "all" / "adapter_model.safetensors")
    for role, pattern in ROLES.items():
        part = PeftConfig.from_pretrained(str(folder / "all"))
        part.target_modules = rf".*\.{pattern}"
        part.save_pretrained(folder / role)
        kept = {key: value for key, value in tensors.items() if re.search(pattern, key)}
        save_file(kept, folder / role / "adapter_model.safetensors")
    return {"none": None, **{mode: folder / mode for mode in ("attention", "ffn", "all")}}


def write_task(folder: Path, items: int) -> None:
    """Writes a likelihood task of `items` items that lm-eval's command line and ours read alike."""
    folder.mkdir()
    words = ["sea", "sun", "tree", "stone"]
    rows = [{"q": f"Item {n}: which of these is number {n % 4 + 1} in the list?", "a": n % 4} for n in range(items)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "task.yaml").write_text(
        f"""task: {TASK}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / "rows.jsonl"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}} {", ".join(words)}."
doc_to_target: a
doc_to_choice: {json.dumps(words)}
"""
    )


def timed(words: list[str]) -> float:
    """Runs a command; seconds."""
    start = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Prints the ratio and checks that both ways give the same scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = smollm2_base(folder)
        halves = adapters(base, folder)
        write_task(folder / "task", given.items)
        repository = folder / "model-taia"
        TAIAForCausalLM.from_adapter(base, halves["all"]).save_pretrained(repository)
        common = ["--include_path", f"{folder / 'task'}", "--tasks", TASK, "--batch_size", "8", "--device", "cpu"]
        ratios, equal = [], True
        for number in range(given.rounds):
            out = folder / f"ours-{number}.json"
            ours = [sys.executable, "-m", "taia_hub.cli", "eval", str(repository), "--task", TASK, "--out", str(out)]
            ours += ["--include-path", str(folder / "task"), "--no-chat-template", "--dtype", "float32"]
            seconds, separate = timed(ours), 0.0
            scores = Results.load(out).tasks[TASK].modes
            for mode, adapter in halves.items():
                model = f"pretrained={base},dtype=float32" + (f",peft={adapter}" if adapter else "")
                path = folder / f"lm-eval-{number}-{mode}"
                command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", model, *common]
                separate += timed([*command, "--output_path", str(path)])
                (file,) = path.rglob("results_*.json")
                alone = json.loads(file.read_text())["results"][TASK]
                equal &= alone["acc,none"] == scores[mode].scores["acc,none"]
            ratios.append(seconds / separate)
        ratio = statistics.median(ratios)
        missed = "" if ratio <= 0.8 else " **missed**"
        sys.stdout.write(
            "| what | measured | at most |\n| --- | --- | --- |\n"
            f"| four modes by `taia eval` against four runs of lm-eval | {ratio:.3f}{missed} | 0.8 |\n\n"
            f"{given.items} items, SmolLM2-135M in float32; scores equal in every mode: {equal}.\n"
        )
        if given.json:
            given.json.write_text(json.dumps({"ratio": ratio, "ratios": ratios, "equal": equal}) + "\n")


if __name__ == "__main__":
    main()
