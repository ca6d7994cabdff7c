"""What one batch saves: four streamed columns against four generations with PEFT, one after the other.

    python tests/benchmarks/bench_compare.py [--tokens 48] [--rounds 5] [--json FILE]

Needs `pip install "taia-hub[demo]"`. SmolLM2-135M with random weights of a rank-16 adapter: float32 on a CPU, bfloat16
on CUDA. Every round measures all of it in turn; the table has the medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from taia_hub import TAIAForCausalLM
from taia_hub.compare import stream_compare
from taia_hub.demo.base import smollm2_base

MODES = ("none", "attention", "ffn", "all")
PROMPT = "Explain in a few sentences how a bicycle stays upright, and why it is harder to ride one very slowly."


def timed(function: Callable[[], Any]) -> float:
    """Runs a function; seconds, with the GPU's work done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Bench:
    """The two ways on one base model.

    Args:
        folder: Where files go.
        tokens: Length of every answer.
    """

    def __init__(self, folder: Path, tokens: int) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        base = smollm2_base(folder)
        torch.manual_seed(0)
        config = LoraConfig(
            r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
        )
        tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(0.4)
        tuned.save_pretrained(folder / "adapter")
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).to(self.device)
        self.peft = PeftModel.from_pretrained(plain, folder / "adapter").eval()
        self.taia = TAIAForCausalLM.from_adapter(base, folder / "adapter", dtype=dtype).to(self.device).eval()
        for model in (self.peft, self.taia):
            model.generation_config.eos_token_id = None  # every answer has the same length
        self.keywords = {"max_new_tokens": tokens, "do_sample": False}
        chat = [{"role": "user", "content": PROMPT}]
        self.inputs = self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self.device)

    def four_by_peft(self) -> None:
        """Four generations with PEFT, one after the other, as one compares adapters today."""
        for _ in MODES:
            self.peft.generate(**self.inputs, pad_token_id=0, **self.keywords)

    def generated(self) -> None:
        """Four rows by our `generate`, not streamed."""
        batch = {name: value.expand(len(MODES), -1) for name, value in self.inputs.items()}
        self.taia.generate(**batch, inference_modules=list(MODES), pad_token_id=0, **self.keywords)

    def streamed(self, modes: tuple[str, ...] = MODES) -> None:
        """The columns, token by token."""
        for _ in self.states(modes):
            pass

    def first_token(self, modes: tuple[str, ...]) -> None:
        """The columns' first token."""
        states = self.states(modes)
        next(states)
        states.close()

    def states(self, modes: tuple[str, ...]) -> Any:
        """The stream, without the measures that follow the last token."""
        return stream_compare(self.taia, self.tokenizer, PROMPT, modes, measures=False, **self.keywords)


def measure(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """Measures all ratios in every round, after one that warms up."""
    ratios: dict[str, list[float]] = {"columns": [], "first": [], "stream": []}
    for number in range(rounds + 1):
        peft, streamed, generated = timed(bench.four_by_peft), timed(bench.streamed), timed(bench.generated)
        one = statistics.median(timed(lambda: bench.first_token(("attention",))) for _ in range(3))
        four = statistics.median(timed(lambda: bench.first_token(MODES)) for _ in range(3))
        if number:
            ratios["columns"].append(streamed / peft)
            ratios["first"].append(four / one)
            ratios["stream"].append(streamed / generated)
    return ratios


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), given.tokens)
        ratios = measure(bench, given.rounds)
    aims = {
        "columns": ("four streamed columns against four PEFT generations", 0.42 if bench.device == "cpu" else 0.30),
        "first": ("time to the first token, four columns against one", 2.0),
        "stream": ("the stream against `generate`", 1.03),
    }
    lines = ["| what | measured | spread | at most |", "| --- | --- | --- | --- |"]
    for key, (what, most) in aims.items():
        middle = statistics.median(ratios[key])
        missed = "" if middle <= most else " **missed**"
        spread = f"{min(ratios[key]):.3f} to {max(ratios[key]):.3f}"
        lines.append(f"| {what} | {middle:.3f}{missed} | {spread} | {most:.2f} |")
    where = (
        torch.cuda.get_device_name()
        if bench.device == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    versions = f"torch {torch.__version__}, {given.tokens} tokens, medians of {given.rounds} rounds"
    sys.stdout.write("\n".join(lines) + f"\n\nSmolLM2-135M on {where}; {versions}.\n")
    if given.json:
        given.json.write_text(json.dumps({"ratios": ratios, "device": bench.device, "where": where}, indent=2))


if __name__ == "__main__":
    main()
