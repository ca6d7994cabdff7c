"""What a candidate costs under the switch against a merge; `tune` against a TPE search; its memory.

    python tests/benchmarks/bench_tuning.py [--rows candidate search memory] [--items 16] [--candidates 8] [--rounds 3]
        [--seeds 3] [--limit 128] [--work FOLDER] [--base FOLDER --adapter FOLDER --data FILE] [--clock wall]
        [--json FILE]

Needs `pip install "taia-hub[demo]"` for SmolLM2-135M-Instruct with the medical LoRA of `taia demo`, which is trained
first (`--work FOLDER` keeps it); `--base` and `--adapter` name others, with `--data FILE` for their items.

A candidate is a random weight for every role and layer. What it costs is timed twice: until the model can answer under
it, of which the switch is to take at most 1/20; and with the losses of some items, whose forward passes are the same.
The rivals are PEFT's: merged on the base from its files, written, and loaded anew, as tools do that merge models on the
disk; and merged in place in memory, and unmerged afterwards, which is kinder than those.

The search is compared with optuna's TPE (`pip install optuna`, in an environment of its own), which gets as many tokens
as all of `tune` computes, its backward passes counted as forward passes; both are judged on the items that neither has
seen. Memory is that of processes of their own, one that tunes and one that takes a training step by AdamW on as many
items as `tune` has in a batch, the longest ones.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, AutoTokenizer

from taia_hub import TAIAForCausalLM
from taia_hub.common.chat import embedding_rows
from taia_hub.common.labels import Encoded
from taia_hub.demo.base import smollm2_base
from taia_hub.demo.inputs import find_inputs
from taia_hub.demo.samples import TRAINING_SAMPLE, load_items, read_items, write_items
from taia_hub.demo.stages import train_model
from taia_hub.retaining import measure
from taia_hub.switch.settings import parse_setting
from taia_hub.training.encoding import Encoder
from taia_hub.tuning import tune
from taia_hub.tuning.grouping import Grouping
from taia_hub.tuning.items import make_sides
from taia_hub.tuning.reading import read_retain, read_target

sys.path.insert(0, str(Path(__file__).parent))
from peers import Clock, Row, table
from searches import by_tpe, counted, hypervolume, measured, target_at

STEPS = 24
"""Of the demo's training."""
LIMIT = 1 / 20
BATCH = 2048
"""Tokens of a batch of `tune`, padding included."""


class Bench:
    """A base model with an adapter in folders, and items.

    Args:
        options: What the command line says.
        work: Where files go.
    """

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work = options, work
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.clock = Clock(self.device, options.clock == "cpu" and self.device == "cpu")
        self.seconds: dict[str, list[float]] = {}
        if options.base:
            self.base, self.adapter, self.data = options.base, options.adapter, options.data
        else:
            self.base = smollm2_base(work)
            train_model(self.base, work, find_inputs(work, steps=STEPS, items=24, seed=0), steps=STEPS, seed=0)
            self.adapter, self.data = work / "model" / "adapter", work / "rest.jsonl"
            write_items(self.data, load_items(TRAINING_SAMPLE)[4 * STEPS :])  # those that it was not trained on
        self.tokenizer = AutoTokenizer.from_pretrained(self.base)
        encoder = Encoder(self.tokenizer)
        self.items = [encoder.encode(item.messages) for item in read_items(self.data)]

    def taia(self) -> Any:
        """Loads base and adapter as this package does."""
        model = TAIAForCausalLM.from_adapter(self.base, self.adapter, dtype=torch.float32)
        return model.to(self.device).eval()

    def peft(self) -> PeftModel:
        """Loads them as PEFT does."""
        base = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        return PeftModel.from_pretrained(base, str(self.adapter)).to(self.device).eval()


class Merged:
    """Candidates as merged models: a weight for each adapted module, by its path."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.live = bench.peft()
        self.layers, self.scaling = _layers(self.live), {}
        for path, layer in self.layers.items():
            self.scaling[path] = layer.scaling["default"]

    def in_place(self, weights: Mapping[str, float], items: list[Encoded]) -> list[float]:
        """Merges in memory, measures, and unmerges."""
        for path, layer in self.layers.items():
            layer.scaling["default"] = self.scaling[path] * weights[path]
        self.live.merge_adapter()
        found = _losses(self.live.base_model.model, items)
        self.live.unmerge_adapter()
        return found

    def anew(self, weights: Mapping[str, float], items: list[Encoded]) -> list[float]:
        """Loads, merges, writes, loads what was written, and measures."""
        folder = self.bench.work / "merged"
        model = self.bench.peft()
        for path, layer in _layers(model).items():
            layer.scaling["default"] *= weights[path]
        model.merge_and_unload().save_pretrained(folder)
        del model
        merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(self.bench.device).eval()
        found = _losses(merged, items)
        shutil.rmtree(folder)
        return found


def candidate_rows(bench: Bench) -> Iterator[Row]:
    """Measures what candidates cost, each a new one, so that nothing is remembered."""
    options = bench.options
    model, merged, items = bench.taia(), Merged(bench), bench.items[: options.items]
    switch = model._taia_switch
    drawn = _random_settings(switch.sites)

    def switched() -> None:
        for _ in range(100):
            with switch.hold(switch.resolve(next(drawn))):
                pass

    def weights() -> dict[str, float]:
        found = switch.resolve(next(drawn)).weights
        return {site.path: weight for site, weight in zip(switch.sites, found, strict=True)}

    def ours(count: int) -> None:
        measure(model, items, [next(drawn) for _ in range(count)], divergence=False)

    _check_equal(model, merged, items, next(drawn))
    jobs = {
        "100 switches": switched,
        "merge in place": lambda: merged.in_place(weights(), []),
        "merge and load": lambda: merged.anew(weights(), []),
        "rows": partial(ours, options.candidates),
        "one": partial(ours, 1),
        "in place with items": lambda: merged.in_place(weights(), items),
        "anew with items": lambda: merged.anew(weights(), items),
    }
    seconds = bench.clock.rounds(jobs, options.rounds)
    seconds["a switch"] = [one / 100 for one in seconds["100 switches"]]
    seconds["a row"] = [one / options.candidates for one in seconds["rows"]]
    bench.seconds.update(seconds)
    anew, in_place = "merged by PEFT, written, loaded anew", "merged in place by PEFT, and unmerged"
    tokens = sum(len(item.input_ids) for item in items)
    with_items = f"with the losses of {len(items)} items ({tokens:,} tokens)"
    rows = f"{options.candidates} candidates as rows of a batch"
    for what, limit, mine, against, its in (
        ("until it can answer", LIMIT, "a switch", anew, "merge and load"),
        ("until it can answer", LIMIT, "a switch", in_place, "merge in place"),
        (f"{with_items}, {rows}", 1.0, "a row", anew, "anew with items"),
        (f"{with_items}, one after another", 1.0, "one", anew, "anew with items"),
        (f"{with_items}, {rows}", 1.0, "a row", in_place, "in place with items"),
        (f"{with_items}, one after another", 1.0, "one", in_place, "in place with items"),
    ):
        times = " against ".join(_said(statistics.median(seconds[name])) for name in (mine, its))
        row = Row.ratio(f"a candidate {what}", against, limit, seconds, [mine], [its])
        yield replace(row, note=times)


def search_rows(bench: Bench) -> Iterator[Row]:
    """Compares fronts on the items that no search has seen, a search a seed."""
    options, model = bench.options, bench.taia()
    grouping = Grouping(model._taia_switch.sites)
    length, vocabulary = 512, embedding_rows(model)
    ratios, apart, notes = [], [], []
    for seed in range(options.seeds):
        with counted(model) as tokens:
            tuned = tune(
                model, bench.items, options.retain, seed=seed, limit=options.limit, max_length=length,
                tokenizer=bench.tokenizer, objective="kl",
            )  # fmt: skip
        target, retain, _ = make_sides(
            read_target(bench.items, bench.tokenizer, most=4 * options.limit, seed=seed),
            read_retain(options.retain, model, bench.tokenizer, max_length=length),
            tokenizer=bench.tokenizer, vocabulary=vocabulary, max_length=length, limit=options.limit, seed=seed,
        )  # fmt: skip
        if (target.sha256, retain.sha256) != (tuned.target.sha256, tuned.retain.sha256):
            raise RuntimeError("The searches would not see the same items.")
        spent = tokens.forward + tokens.backward
        start = bench.clock.now()
        rival = by_tpe(model, grouping, target.search, retain.search, tokens=spent, seed=seed)
        bench.seconds.setdefault("tune", []).append(tuned.seconds)
        bench.seconds.setdefault("TPE", []).append(bench.clock.now() - start)
        plain = [parse_setting(mode) for mode in ("none", "attention", "ffn", "all")]
        none, taia, _, whole = known = measured(model, plain, target.report, retain.report)
        ours = measured(model, [one.parsed for one in tuned.candidates], target.report, retain.report)
        theirs = [*known, *measured(model, rival, target.report, retain.report)]
        areas = hypervolume(ours, none, whole), hypervolume(theirs, none, whole)
        losses = target_at(ours, taia.retention), target_at(theirs, taia.retention)
        ratios.append(areas[1] / areas[0])
        apart.append(losses[0] - losses[1])
        notes.append(
            f"seed {seed}: hypervolume {areas[0]:.3f} and {areas[1]:.3f} (TAIA and the other plain modes alone "
            f"{hypervolume(known, none, whole):.3f}), target loss {losses[0]:.4f} and {losses[1]:.4f} (TAIA "
            f"{taia.target:.4f}, all {whole.target:.4f}, none {none.target:.4f}), {spent:,} tokens\n"
        )
        sys.stdout.write(notes[-1])
    for what, limit, found in (
        ("hypervolume of a TPE search of as many tokens", 1.0, ratios),
        ("target loss of `tune` at TAIA's retention, less TPE's, in nats", 0.0, apart),
    ):
        yield Row(what, "`tune`", statistics.median(found), limit, min(found), max(found), f"{len(found)} seeds")


def memory_rows(bench: Bench) -> Iterator[Row]:
    """Compares the peaks of two processes."""
    options = bench.options
    files = {"base": bench.base, "adapter": bench.adapter, "data": bench.data, "retain": options.retain}
    words = [word for name, value in files.items() if value for word in (f"--{name}", str(value))]
    words += ["--limit", str(options.limit)]
    found = {}
    for what in ("tune", "step"):
        command = [sys.executable, __file__, "--alone", what, *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[what] = json.loads(done.stdout.splitlines()[-1])
    note = " against ".join(f"{found[what]['peak'] / 2**20:,.0f} MiB" for what in ("tune", "step"))
    for name, key in (("peak memory", "peak"), ("peak memory beyond the loaded model's", "grown")):
        ratio = found["tune"][key] / found["step"][key]
        yield Row(f"{name} of `tune`", "a training step", ratio, 1.3, note=note if key == "peak" else "")


def alone(bench: Bench, what: str) -> dict[str, int]:
    """Tunes for a step or two, or takes a training step, and returns the memory of this process."""
    options = bench.options
    if what == "tune":
        model = bench.taia()
        before = _peak()
        tune(model, bench.items, options.retain, points=1, limit=options.limit, tokenizer=bench.tokenizer)
        return {"peak": _peak(), "grown": _peak() - before}
    model = TAIAForCausalLM.from_adapter(bench.base, bench.adapter, dtype=torch.float32, is_trainable=True)
    before = _peak()
    rows = read_retain(options.retain, model, bench.tokenizer, max_length=512).rows
    most = -(-options.limit // 20)  # a step of `tune` sees a tenth of the half that is searched on
    batch = max((_batch(side, most) for side in (bench.items, rows)), key=lambda one: one["input_ids"].numel())
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad])
    model.train().to(bench.device)
    model(**{name: one.to(bench.device) for name, one in batch.items()}).loss.backward()
    optimizer.step()
    return {"peak": _peak(), "grown": _peak() - before}


def _batch(rows: Sequence[Encoded], most: int) -> dict[str, torch.Tensor]:
    """Pads as many of the longest items as a batch of `tune` takes, and at most so many."""
    rows = sorted(rows, key=lambda one: -len(one.input_ids))
    length = min(len(rows[0].input_ids), 512)
    rows = rows[: max(1, min(most, BATCH // length))]
    ids, mask, labels = (torch.full((len(rows), length), fill) for fill in (0, 0, -100))
    for at, row in enumerate(rows):
        size = min(len(row.input_ids), length)
        ids[at, :size], mask[at, :size] = torch.tensor(row.input_ids[:size]), 1
        labels[at, :size] = torch.tensor(row.labels[:size])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _peak() -> int:
    """Returns the most bytes that this process held."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(r"VmHWM:\s*(\d+)", status)[0]) * 1024


def _check_equal(model: Any, merged: Merged, items: list[Encoded], setting: Any) -> None:
    """Ends the benchmark if the ways do not measure the same candidate."""
    acting = model._taia_switch.resolve(setting)
    weights = {site.path: one for site, one in zip(model._taia_switch.sites, acting.weights, strict=True)}
    (ours,) = measure(model, items, [setting], divergence=False)
    (base,) = measure(model, items, ["none"], divergence=False)
    for found in (merged.in_place(weights, items), merged.anew(weights, items)):
        apart = max(abs(one - other) for one, other in zip(ours.nats, found, strict=True))
        if apart > 0.01 * max(abs(one - other) for one, other in zip(ours.nats, base.nats, strict=True)):
            raise RuntimeError(f"The losses of one candidate differ by up to {apart:.3g} nats an item.")


def _random_settings(sites: Any) -> Iterator[dict[str, float]]:
    """Yields a weight for each role and layer, without end."""
    groups = sorted({f"{site.role}@{site.layer}" for site in sites if site.layer is not None})
    for seed in itertools.count():
        drawn = random.Random(seed)
        yield {group: round(drawn.random(), 3) for group in groups}


def _layers(model: PeftModel) -> dict[str, LoraLayer]:
    """Returns the LoRA layers by their paths in the base model."""
    named = model.base_model.model.named_modules()
    return {path: module for path, module in named if isinstance(module, LoraLayer)}


def _losses(model: Any, items: list[Encoded]) -> list[float]:
    if not items:
        return []
    (found,) = measure(model, items, [None], divergence=False)
    return list(found.nats)


def _said(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1e3:.2f} ms"


MEASURES = {"candidate": candidate_rows, "search": search_rows, "memory": memory_rows}


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=[*MEASURES], default=[*MEASURES])
    parser.add_argument("--base", type=Path, help="folder of another base model, with --adapter and --data")
    parser.add_argument("--adapter", type=Path, help="folder of its LoRA")
    parser.add_argument("--data", type=Path, help="JSON lines of messages")
    parser.add_argument("--retain", type=Path, help="texts to retain; by default those of the package")
    parser.add_argument("--work", type=Path, help="where base and adapter are made; kept afterwards")
    parser.add_argument("--items", type=int, default=16)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=128, help="items a side")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--alone", choices=("tune", "step"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        sys.stdout.write(json.dumps(alone(Bench(options, Path()), options.alone)) + "\n")
        return
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, options.work or Path(scratch))
        rows = [row for name in options.rows for row in MEASURES[name](bench)]
    threads = torch.get_num_threads()
    sys.stdout.write(
        f"{bench.device}, {platform.machine()}, {threads} threads; torch {torch.__version__}, transformers "
        f"{transformers.__version__}\n\n{table(rows)}\n"
    )
    if options.json:
        options.json.write_text(json.dumps({"rows": [vars(row) for row in rows], "seconds": bench.seconds}, indent=1))


if __name__ == "__main__":
    main()
