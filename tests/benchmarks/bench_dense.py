"""Time and peak memory of the dense path on a synthetic pair of checkpoints, and what switching costs a call.

    python tests/benchmarks/bench_dense.py [--gigabytes 3] [--share 1.0] [--shard-gigabytes 1.5] [--json FILE]

Both checkpoints are written to a scratch folder tensor by tensor; `--share` is the share of the layers that the
fine-tune changed. Reading both files is timed in the same way: in pieces, with the page cache emptied of them before.
What is measured runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from taia_hub.roles.sublayers import find_sublayers
from taia_hub.updates.dense.difference import write_dense
from taia_hub.updates.dense.update import DEFAULT_SETTING, attach_dense
from taia_hub.updates.options import AttachOptions

HIDDEN = 2048
INNER, VOCABULARY = 5632, 32000


def write_checkpoint(folder: Path, config: LlamaConfig, shard_bytes: float, changed: int | None) -> int:
    """Writes random bfloat16 weights, one tensor in memory at a time; layers below `changed` differ. Returns bytes."""
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tuple(one.shape) for name, one in LlamaForCausalLM(config).state_dict().items()}
    parts: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        if size + 2 * math.prod(shape) > shard_bytes and parts[-1]:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += 2 * math.prod(shape)
    weight_map = {}
    for number, names in enumerate(parts, 1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        header, end = {}, 0
        for name in names:
            count = 2 * math.prod(shapes[name])
            header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [end, end + count]}
            end += count
            weight_map[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                generator = torch.Generator().manual_seed(len(name))
                tensor = (torch.randn(shapes[name], generator=generator) * 0.02).bfloat16()
                layer = int(name.split(".")[2]) if ".layers." in name else 0
                if changed is not None and layer < changed:
                    tensor += 0.01
                out.write(tensor.view(torch.uint8).numpy().tobytes())
            out.flush()
            os.fsync(out.fileno())
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def forget(*folders: Path) -> None:
    """Drops the files of folders from the page cache."""
    for folder in folders:
        for path in folder.glob("*.safetensors"):
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def read(*folders: Path) -> float:
    """Returns the seconds that reading all weights of folders takes."""
    buffer, start = bytearray(8 << 20), time.perf_counter()
    for folder in folders:
        for path in folder.glob("*.safetensors"):
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
    return time.perf_counter() - start


_MEASURED = """
import json, re, sys, time
from pathlib import Path
from taia_hub.updates.dense.difference import write_dense

def peak():  # of this program alone: getrusage counts what started it too
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

before = peak()
start = time.perf_counter()
report = write_dense(*sys.argv[1:4])
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "peak": peak(), "grown": peak() - before, "stored": report.changed.bytes}))
"""


def measure_writing(folder: Path, gigabytes: float, share: float, shard_gigabytes: float) -> dict[str, float]:
    """Measures `write_dense` on a pair of checkpoints."""
    layer = 2 * (4 * HIDDEN**2 + 3 * HIDDEN * INNER)
    layers = max(1, round((gigabytes * 1e9 - 4 * VOCABULARY * HIDDEN) / layer))
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=16,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    base, tuned = folder / "base", folder / "tuned"
    size = write_checkpoint(base, config, shard_gigabytes * 1e9, None)
    write_checkpoint(tuned, config, shard_gigabytes * 1e9, round(share * layers))
    forget(base, tuned)
    cold = read(base, tuned)
    warm = read(base, tuned)
    forget(base, tuned)
    start = time.perf_counter()
    shutil.copytree(tuned, folder / "copy")
    copied = time.perf_counter() - start
    shutil.rmtree(folder / "copy")
    forget(base, tuned)
    root = Path(__file__).parents[2]
    found: dict[str, float] = {}
    for label in ("cold", "warm"):
        out = folder / f"dense-{label}"
        done = subprocess.run(
            [sys.executable, "-c", _MEASURED, str(base), str(tuned), str(out)],
            capture_output=True,
            text=True,
            cwd=root,
            check=True,
        )
        values = json.loads(done.stdout.splitlines()[-1])
        found |= {f"{label}_seconds": values["seconds"], "peak": values["peak"], "grown": values["grown"]}
        found["stored"] = values["stored"]
        for path in out.iterdir():
            path.unlink()
    largest = max(path.stat().st_size for path in tuned.glob("*.safetensors"))
    found |= {"bytes": size, "largest_shard": largest, "read_cold_seconds": cold, "read_warm_seconds": warm}
    found["copy_cold_seconds"] = copied
    found["speed_cold"], found["speed_warm"] = cold / found["cold_seconds"], warm / found["warm_seconds"]
    found["peak_by_shard"] = found["peak"] / largest
    return found


def measure_switching(folder: Path, layers: int = 8, tokens: int = 1, repeats: int = 30) -> dict[str, float]:
    """Measures a forward pass of a small model of real width under settings, against the base model's."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder / "small")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    model.save_pretrained(folder / "small-tuned")
    write_dense(folder / "small", folder / "small-tuned", folder / "small-dense")
    base = AutoModelForCausalLM.from_pretrained(folder / "small").eval()
    switched = AutoModelForCausalLM.from_pretrained(folder / "small").eval()
    placed = find_sublayers(switched)
    _, switch = attach_dense(
        switched, folder / "small-dense", AttachOptions(placed.roles, inference_modules=DEFAULT_SETTING)
    )
    ids = torch.randint(3, 8000, (1, tokens))
    times: dict[str, list[float]] = {"base": [], "none": [], "attention+other": [], "all": []}
    with torch.inference_mode():
        for _ in range(repeats):
            for label, values in times.items():
                start = time.perf_counter()
                if label == "base":
                    base(ids)
                else:
                    with switch.hold(switch.resolve(label)):
                        switched(ids)
                values.append(time.perf_counter() - start)
    medians = {label: sorted(values[2:])[len(values[2:]) // 2] for label, values in times.items()}
    return {f"{label}_{tokens}_tokens": value / medians["base"] for label, value in medians.items()} | {
        f"microseconds_a_module_{tokens}_tokens": (medians["all"] - medians["base"]) / len(switch.sites) * 1e6
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="size of one checkpoint")
    parser.add_argument("--share", type=float, default=1.0, help="share of the layers that differ, above 0")
    parser.add_argument("--shard-gigabytes", type=float, default=1.5, help="size of a shard")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure_writing(Path(scratch), options.gigabytes, options.share, options.shard_gigabytes)
        for tokens in (1, 64):
            found |= measure_switching(Path(tempfile.mkdtemp(dir=scratch)), tokens=tokens)
    for name, value in found.items():
        print(f"{name:<32}{value:>20,.3f}")  # noqa: T201
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
