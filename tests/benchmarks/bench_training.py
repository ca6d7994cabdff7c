"""Tokens a CPU second of `taia_hub.train` against the same SFTTrainer and PEFT written by hand, on SmolLM2-135M.

python tests/benchmarks/bench_training.py [STEPS]: runs both in turns, in this process, on the demo's medical answers.
"""

import itertools
import json
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from taia_hub.demo.base import smollm2_base
from taia_hub.demo.samples import TRAINING_SAMPLE, load_items
from taia_hub.training import TrainingRecipe, train
from taia_hub.training.data import prepare_data
from taia_hub.training.encoding import Encoder

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BATCH, MICRO, LENGTH, ROUNDS = 8, 4, 256, 2


class Clock(TrainerCallback):
    """Takes the CPU time after each step, which a busy machine disturbs less than the time on the wall."""

    def __init__(self):
        self.times = []

    def on_step_end(self, *args, **kwargs):
        self.times.append(time.process_time())

    def seconds(self):
        """Median of the steps after the first, which begins before the first time was taken."""
        return statistics.median(later - sooner for sooner, later in itertools.pairwise(self.times))


def recipe_of(base: Path, data: Path, steps: int) -> TrainingRecipe:
    return TrainingRecipe(
        base=str(base), data=(str(data),), batch_size=BATCH, micro_batch_size=MICRO, max_length=LENGTH,
        max_steps=steps, dtype="float32", gradient_checkpointing=False, save_steps=10 * steps,
    )  # fmt: skip


def ours(recipe: TrainingRecipe, folder: Path) -> tuple[float, float]:
    clock = Clock()
    done = train(recipe, out=folder, progress=lambda stage, *_: clock.on_step_end() if stage == "training" else None)
    return done.tokens / recipe.max_steps / clock.seconds(), done.last_loss


def by_hand(base: Path, rows: list, folder: Path, steps: int) -> tuple[float, float]:
    set_seed(0)
    tokenizer, clock = AutoTokenizer.from_pretrained(base), Clock()
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=TARGETS, task_type="CAUSAL_LM"),
    )
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder), per_device_train_batch_size=MICRO, gradient_accumulation_steps=BATCH // MICRO,
            max_steps=steps, max_length=LENGTH, bf16=False, use_cpu=True,
            gradient_checkpointing=False, learning_rate=2e-4, lr_scheduler_type="cosine", warmup_steps=1,
            train_sampling_strategy="sequential", save_strategy="no", logging_steps=1, report_to="none",
            disable_tqdm=True, seed=0,
        ),
        # TRL knows no assistant-only form of SmolLM2's template, so the labels are made as ours are.
        train_dataset=Dataset.from_list([vars(Encoder(tokenizer).encode(row["messages"])) for row in rows]),
        processing_class=tokenizer,
        callbacks=[clock],
    )  # fmt: skip
    trainer.train()
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]][: steps * BATCH]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return sum(lengths) / steps / clock.seconds(), losses[-1]


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    logging.disable(logging.WARNING)
    scratch = Path(tempfile.mkdtemp())
    base = smollm2_base(scratch)
    chosen = load_items(TRAINING_SAMPLE)[: steps * BATCH]
    rows = [
        {"messages": [{"role": "user", "content": one.question}, {"role": "assistant", "content": one.answer}]}
        for one in chosen
    ]
    data = scratch / "items.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = recipe_of(base, data, steps)
    rows = list(prepare_data(recipe).train)  # the same items in the same order, so the same padding
    figures = []
    for number in range(ROUNDS):
        theirs, their_loss = by_hand(base, rows, scratch / f"hand-{number}", steps)
        mine, my_loss = ours(recipe, scratch / f"ours-{number}")
        figures.append((mine, theirs))
        sys.stdout.write(
            f"round {number}, tokens a CPU second: taia_hub.train {mine:.1f} (last loss {my_loss:.3f}), "
            f"by hand {theirs:.1f} (last loss {their_loss:.3f}), ratio {mine / theirs:.3f}\n"
        )
    best = max(one[0] for one in figures) / max(one[1] for one in figures)
    sys.stdout.write(f"best of each: ratio {best:.3f}\n")


if __name__ == "__main__":
    main()
