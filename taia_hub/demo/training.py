"""Trains the demo's adapter: LoRA on every linear layer, on the shipped medical answers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from taia_hub.demo.encoding import IGNORED_LABEL, encode_item
from taia_hub.demo.folders import complete_folder, is_complete
from taia_hub.demo.samples import TRAINING_SAMPLE, Item, load_items, sample_digest

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, what is done and the total."""

DEFAULT_STEPS = 60
BATCH_SIZE = 8
RECIPE = {
    "rank": 16,
    "alpha": 32,
    "learning_rate": 1e-3,
    "warmup_steps": 2,
    "batch_size": BATCH_SIZE,
}


def train_adapter(
    base: str | Path,
    folder: Path,
    *,
    steps: int = DEFAULT_STEPS,
    seed: int = 0,
    progress: Progress | None = None,
    items: Sequence[Item] | None = None,
) -> Path:
    """Trains a LoRA on all linear layers of the base model; a finished one from the same inputs is used again.

    The loss covers the answers only. The order of the items, the initial weights and so the adapter follow from the
    seed.

    Args:
        base: Hub id or folder of the base model; it is recorded in the adapter.
        folder: Where the adapter goes, in PEFT's format.
        steps: Optimizer steps of 8 items each, at least 1.
        seed: Of the initial weights and of the order of the items.
        progress: Called after each step.
        items: What to train on; the shipped medical answers unless given.

    Returns:
        `folder`.

    Raises:
        ValueError: `steps` is below 1.
        OSError: The base model cannot be loaded or the adapter cannot be written.

    Example:
        >>> train_adapter("demo/SmolLM2-135M-Instruct", Path("adapter"), steps=4)  # doctest: +SKIP
        PosixPath('adapter')
    """
    if steps < 1:
        raise ValueError(f"The number of training steps must be at least 1, not {steps}.")
    made_from = RECIPE | {"base": str(base), "steps": steps, "seed": seed}
    if items is None:
        made_from |= {"sample": sample_digest(TRAINING_SAMPLE)}
        if is_complete(folder, made_from):
            return folder
    with complete_folder(folder, made_from) as partial:
        _train(base, partial, load_items(TRAINING_SAMPLE) if items is None else items, steps, seed, progress)
    return folder


def _train(
    base: str | Path, folder: Path, items: Sequence[Item], steps: int, seed: int, progress: Progress | None
) -> None:
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        # No dropout: each item is seen once, and on a CPU the random masks take a quarter of the time.
        LoraConfig(
            r=RECIPE["rank"], lora_alpha=RECIPE["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    encoded = [encode_item(tokenizer, item) for item in items]
    with tempfile.TemporaryDirectory() as scratch:
        Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                max_steps=steps,
                per_device_train_batch_size=BATCH_SIZE,
                learning_rate=RECIPE["learning_rate"],
                lr_scheduler_type="cosine",
                warmup_steps=RECIPE["warmup_steps"],
                train_sampling_strategy="group_by_length",
                seed=seed,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=[{"input_ids": e.input_ids, "labels": e.labels} for e in encoded],  # type: ignore[arg-type]
            data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED_LABEL),
            callbacks=[_StepProgress(progress)] if progress else [],
        ).train()
    model.save_pretrained(folder)


class _StepProgress(TrainerCallback):
    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress("training", state.global_step, state.max_steps)
