"""Trains the demo's adapter: LoRA on every linear layer, on the shipped medical answers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from taia_hub.common.progress import Progress
from taia_hub.common.resuming import Mark, whole_folder
from taia_hub.demo.base import MARKER
from taia_hub.demo.encoding import answer_batch, encode_item
from taia_hub.demo.samples import TRAINING_SAMPLE, load_items, sample_digest
from taia_hub.errors import ConfigError

BATCH_SIZE = 8
RANK = 16
ALPHA = 32
LEARNING_RATE = 2e-3


def train_adapter(
    base: str | Path,
    folder: Path,
    *,
    steps: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Trains a LoRA on all linear layers on the shipped medical answers; a finished one is used again.

    The loss covers the answers only. Initial weights and order of the items follow from the seed.

    Args:
        base: Hub id or folder of the base model; it is recorded in the adapter.
        folder: Where the adapter goes, in PEFT's format.
        steps: Optimizer steps of 8 items each, at least 1.
        seed: Of the initial weights and of the order of the items.
        progress: Called after each step.

    Returns:
        `folder`.

    Raises:
        ConfigError: `steps` is below 1.
        OSError: The base model cannot be loaded or the adapter cannot be written.

    Example:
        >>> train_adapter("demo/SmolLM2-135M-Instruct", Path("adapter"), steps=4)  # doctest: +SKIP
        PosixPath('adapter')
    """
    if steps < 1:
        raise ConfigError(f"The number of training steps must be at least 1, not {steps}.")
    recipe = {"rank": RANK, "alpha": ALPHA, "learning_rate": LEARNING_RATE, "batch_size": BATCH_SIZE}
    inputs = {"base": str(base), "sample": sample_digest(TRAINING_SAMPLE), "steps": steps, "seed": seed}
    mark = Mark(folder / MARKER, recipe | inputs)
    if not mark.fits():
        with whole_folder(mark) as (partial, _):
            _train(base, partial, steps, seed, progress)
    return folder


def _train(base: str | Path, folder: Path, steps: int, seed: int, progress: Progress | None) -> None:
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = get_peft_model(
        # In float32, whatever the CPU: bfloat16 is slower on those without units for it, and the numbers would differ.
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        # Without dropout: no item is seen twice, and on a CPU its random masks take a quarter of the time.
        LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    encoded = [encode_item(tokenizer, item) for item in load_items(TRAINING_SAMPLE)]
    with tempfile.TemporaryDirectory() as scratch:
        Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                max_steps=steps,
                per_device_train_batch_size=BATCH_SIZE,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="cosine",
                train_sampling_strategy="group_by_length",
                remove_unused_columns=False,
                seed=seed,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            ),
            # The sampler reads the lengths of `input_ids`; the collator makes the batch of the items.
            train_dataset=[{"input_ids": item.prompt + item.answer, "item": item} for item in encoded],
            data_collator=lambda rows: answer_batch([row["item"] for row in rows], tokenizer.eos_token_id),
            callbacks=[_StepProgress(progress)] if progress else [],
        ).train()
    model.save_pretrained(str(folder))


class _StepProgress(TrainerCallback):
    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress("training", state.global_step, state.max_steps)
