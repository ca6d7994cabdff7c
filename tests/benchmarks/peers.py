"""What the speed benchmarks share: sizes, random adapters, peers that hold one set of weights, rounds, the table."""

from __future__ import annotations

import gc
import itertools
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, StoppingCriteria

from taia_hub.demo.base import smollm2_base

sys.path.insert(0, str(Path(__file__).parent))
from bench_dense import write_checkpoint

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
FFN = ["gate_proj", "up_proj", "down_proj"]
PARTS = {"attention": ATTENTION, "ffn": FFN, "all": ATTENTION + FFN}
_LLAMAS = {
    "1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}
SIZES = {"135m": 135e6, "1b": 1.24e9, "7b": 6.74e9}
"""Number of parameters by the name of a size."""


def base_folder(size: str, folder: Path) -> Path:
    """Returns a base model of a size: SmolLM2-135M-Instruct, or a Llama shape with random bfloat16 weights."""
    if size == "135m":
        return smollm2_base(folder)
    folder.mkdir(parents=True)
    config = LlamaConfig(**_LLAMAS[size], dtype="bfloat16", architectures=["LlamaForCausalLM"])
    write_checkpoint(folder, config, 5e9, None)
    return folder


def lora(targets: Sequence[str], rank: int = 16) -> LoraConfig:
    """Returns a configuration with twice the rank as alpha."""
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets), task_type="CAUSAL_LM")


def adapter(base: Path, folder: Path, targets: Sequence[str] = (*ATTENTION, *FFN)) -> Path:
    """Saves a random rank-16 LoRA on the named linear layers; no weight of the base is read."""
    config = lora(targets)
    with torch.device("meta"):
        model = get_peft_model(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base)), config)
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: torch.randn(one.shape, generator=generator) * (0.002 if "lora_B" in name else one.shape[1] ** -0.5)
        for name, one in get_peft_model_state_dict(model).items()
    }
    config.base_model_name_or_path, config.inference_mode = str(base), True
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def narrowed(model: Any, full: Path, targets: Sequence[str]) -> PeftModel:
    """Puts a part of an adapter on a loaded base as PEFT does it: by a narrowed configuration."""
    config = LoraConfig.from_pretrained(str(full))
    config.target_modules = list(targets)
    return PeftModel.from_pretrained(model, str(full), config=config).eval()


def share(model: Any, base: Any) -> Any:
    """Lets a model hold the very weights of a base, so that peers take the memory of one; returns the model."""
    own = {name: one.data for name, one in base.named_parameters(remove_duplicate=False)}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        plain = name.replace(".base_layer", "").removeprefix("base_model.model.")
        if plain in own and "lora_" not in name:
            parameter.data = own[plain]
    return model


def too_large(size: str, device: str, dtype: torch.dtype) -> str | None:
    """Says why the memory does not suffice for a base, a second one while that is loaded, and room to work."""
    wanted = 2.3 * SIZES[size] * dtype.itemsize
    if device == "cuda":
        free = torch.cuda.mem_get_info()[0]
    else:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return None if free >= wanted else f"{wanted / 1e9:.0f} GB of memory are needed, {free / 1e9:.0f} GB are free"


@dataclass(frozen=True)
class Clock:
    """How jobs are timed.

    Attributes:
        device: `cpu` or `cuda`, whose work is waited for.
        cpu_time: Whether the processor time of this process counts instead of the wall clock, which other work on the
            machine disturbs; only on a CPU.
    """

    device: str
    cpu_time: bool = False

    def seconds(self, job: Callable[[], object]) -> float:
        """Runs a job once; its seconds, with the GPU's work done and what earlier jobs left collected before."""
        gc.collect()
        start = self.now()
        job()
        return self.now() - start

    def tokens(self, jobs: Mapping[str, Callable[..., object]], rounds: int) -> dict[str, list[list[float]]]:
        """Runs generations in turns of one token each, so that what disturbs one disturbs its neighbours alike.

        Args:
            jobs: Name to a function that passes its keyword `stopping_criteria` to `generate`; all of them generate
                the same number of tokens.
            rounds: How often; the order is another one each time, and a round before warms up.

        Returns:
            Job to the seconds of each token but the first, which the prompt belongs to, by round.
        """
        seconds: dict[str, list[list[float]]] = {name: [] for name in jobs}
        for number in range(rounds + 1):
            names = random.Random(number).sample([*jobs], len(jobs))
            laps = _laps([jobs[name] for name in names], self)
            for name, lap in zip(names, laps, strict=True):
                if number:
                    seconds[name].append(lap[1:])
        return seconds

    def now(self) -> float:
        """Returns the seconds on this clock, with the GPU's work done."""
        self._wait()
        return time.process_time() if self.cpu_time else time.perf_counter()

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def rounds(self, jobs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
        """Runs every job once a round, every other round backwards, after one that warms up; seconds by job.

        The machine's moods fall on all jobs of a round alike, and whatever a job leaves behind on both neighbours.
        """
        for job in jobs.values():
            job()
        seconds: dict[str, list[float]] = {name: [] for name in jobs}
        for number in range(rounds):
            for name in reversed(jobs) if number % 2 else jobs:
                seconds[name].append(self.seconds(jobs[name]))
        return seconds


class _Turn(StoppingCriteria):
    """Lets a generation make one token whenever it is its turn."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.mine, self.seconds = clock, threading.Semaphore(0), list[float]()
        self.next: _Turn = self
        self.error: BaseException | None = None

    def run(self, job: Callable[..., object]) -> None:
        """Runs the job, in a thread of its own."""
        self.mine.acquire()
        self.start = self.clock.now()
        try:
            with torch.inference_mode():
                job(stopping_criteria=[self])
        except BaseException as error:  # noqa: BLE001 - raised again where the threads were started
            self.error = error
        self.next.mine.release()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.seconds.append(self.clock.now() - self.start)
        self.next.mine.release()
        self.mine.acquire()
        self.start = self.clock.now()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _laps(jobs: Sequence[Callable[..., object]], clock: Clock) -> list[list[float]]:
    turns = [_Turn(clock) for _ in jobs]
    for turn, after in zip(turns, [*turns[1:], turns[0]], strict=True):
        turn.next = after
    threads = [threading.Thread(target=turn.run, args=(job,)) for turn, job in zip(turns, jobs, strict=True)]
    for thread in threads:
        thread.start()
    turns[0].mine.release()
    for thread in threads:
        thread.join()
    for turn in turns:
        if turn.error is not None:
            raise turn.error
    return [turn.seconds for turn in turns]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: What was measured.
        against: What it was measured against.
        value: The number, or None where it was not measured.
        limit: The most that it should be.
        low: Lowest of the rounds.
        high: Highest of the rounds.
        note: Why it was not measured, or what belongs to the number.
    """

    what: str
    against: str
    value: float | None
    limit: float
    low: float | None = None
    high: float | None = None
    note: str = ""

    @classmethod
    def by_token(
        cls,
        what: str,
        against: str,
        limit: float,
        seconds: Mapping[str, list[list[float]]],
        above: Sequence[str],
        below: Sequence[str],
    ) -> Row:
        """Makes a row of the median of all tokens' ratios, with the lowest and highest median of a round."""
        rounds = range(len(next(iter(seconds.values()))))
        each = []
        for number in rounds:
            tops = zip(*(seconds[name][number] for name in above), strict=True)
            bottoms = zip(*(seconds[name][number] for name in below), strict=True)
            each.append([sum(top) / sum(bottom) for top, bottom in zip(tops, bottoms, strict=True)])
        middles = [statistics.median(ratios) for ratios in each]
        return cls(
            what, against, statistics.median(itertools.chain.from_iterable(each)), limit, min(middles), max(middles)
        )

    @classmethod
    def ratio(
        cls,
        what: str,
        against: str,
        limit: float,
        seconds: Mapping[str, list[float]],
        above: Sequence[str],
        below: Sequence[str],
    ) -> Row:
        """Makes a row of the median of the rounds' ratios: the sum of the jobs `above` over that of those `below`."""
        tops = [sum(times) for times in zip(*(seconds[name] for name in above), strict=True)]
        bottoms = [sum(times) for times in zip(*(seconds[name] for name in below), strict=True)]
        each = [top / bottom for top, bottom in zip(tops, bottoms, strict=True)]
        return cls(what, against, statistics.median(each), limit, min(each), max(each))

    def cells(self) -> list[str]:
        """Returns the cells of its line: what, against, at most, measured with range, met."""
        if self.value is None:
            return [self.what, self.against, f"{self.limit:.4g}", f"not measured: {self.note}", ""]
        number = f"{self.value:.3g}" if self.value < 0.1 or self.value >= 10 else f"{self.value:.3f}"
        spread = "" if self.low is None or self.high is None else f" ({self.low:.3g} to {self.high:.3g})"
        note = f"; {self.note}" if self.note else ""
        met = "yes" if self.value <= self.limit else "**no**"
        return [self.what, self.against, f"{self.limit:.4g}", f"{number}{spread}{note}", met]


def table(rows: Sequence[Row]) -> str:
    """Renders rows as Markdown."""
    head = ["what", "against", "at most", "measured (lowest to highest)", "met"]
    lines = [head, ["---"] * len(head), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
