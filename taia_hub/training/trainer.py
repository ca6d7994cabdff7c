"""TRL's `SFTTrainer`, set up for a recipe: items in order, whole checkpoints, progress."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from taia_hub.common.imports import import_or_raise
from taia_hub.common.labels import IGNORED_LABEL
from taia_hub.common.progress import Progress, ProgressBars
from taia_hub.errors import ConfigError, MissingDependencyError, closest
from taia_hub.training.planning import Plan
from taia_hub.training.recipe import TrainingRecipe
from taia_hub.training.workspace import Workspace

_CHECKPOINTS = 20
_LOGS = 500
_PROBE = 8  # tokens of the item whose logits must not depend on the one before it
_PROBE_ERROR = {torch.float32: 1e-3, torch.bfloat16: 0.05}  # relative, by rounding alone


def trainer_arguments(recipe: TrainingRecipe, plan: Plan, folder: Path) -> Any:
    """Makes the arguments of TRL's trainer, a `trl.SFTConfig`; checkpoints go into `folder`."""
    trl = import_or_raise("trl", extra="train", feature="`taia train`")
    return trl.SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=plan.accumulation,
        num_train_epochs=1,  # the items of all epochs are in the data, in their order
        max_steps=plan.steps,
        train_sampling_strategy="sequential",
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.scheduler,
        # Rounded down: a warm-up begins at a rate of 0, and in a run of one step nothing would be learnt.
        warmup_steps=int(recipe.warmup_ratio * plan.steps),
        weight_decay=recipe.weight_decay,
        bf16=plan.dtype == "bfloat16",
        use_cpu=plan.device == "cpu",
        gradient_checkpointing=plan.gradient_checkpointing,
        padding_free=recipe.packing,
        max_length=None,  # they were cut already
        seed=recipe.seed,
        save_strategy="steps",
        save_steps=recipe.save_steps or max(10, math.ceil(plan.steps / _CHECKPOINTS)),
        save_total_limit=2,  # the older goes when the newer is written, before that one is marked as whole
        logging_steps=max(1, math.ceil(plan.steps / _LOGS)),
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to=list(recipe.report_to) or "none",
        run_name=recipe.name,
        disable_tqdm=True,
        dataloader_pin_memory=plan.device == "cuda",
        ddp_find_unused_parameters=False,  # experts that no token chose have gradients too: zeros
        # Only full fine-tuning trains the routers of a mixture, which the base's own balance loss is for.
        router_aux_loss_coef=None if recipe.method == "full" else 0.0,
        dataset_kwargs={"skip_prepare_dataset": True},  # tokens and labels are there
    )


def make_trainer(
    model: Any, arguments: Any, dataset: Any, tokenizer: Any, recipe: TrainingRecipe, callback: TrainerCallback
) -> Any:
    """Makes TRL's trainer of rows with `input_ids` and `labels`; a tokenizer without a padding token gets one."""
    trl = import_or_raise("trl", extra="train", feature="`taia train`")

    class RecipeTrainer(trl.SFTTrainer):  # type: ignore[name-defined]
        """TRL's trainer without its model card, and with MoLoRA's balance loss."""

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """Writes nothing: checkpoints are no repositories."""

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            """Adds the balance loss, where the recipe has one."""
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if recipe.method != "molora" or not recipe.balance_loss:
                return loss
            from taia_hub.updates.molora.update import balance_loss

            whole = self.accelerator.unwrap_model(model)
            # Trainer divides by the forward passes of a step only what was not divided by its number of tokens.
            passes = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            extra = recipe.balance_loss * balance_loss(whole) / passes
            return (loss[0] + extra, loss[1]) if return_outputs else loss + extra

    trainer = RecipeTrainer(
        model=model,
        args=arguments,
        train_dataset=_filled(dataset, arguments),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _filled(dataset: Any, arguments: Any) -> Any:
    """Adds rows without labels until all processes have as many: accelerate would train on the first rows again."""
    missing = -len(dataset) % (arguments.world_size * arguments.per_device_train_batch_size)
    if arguments.world_size == 1 or not missing:
        return dataset
    datasets = import_or_raise("datasets", extra="train", feature="`taia train`")
    blank = {**dataset[0], "labels": [IGNORED_LABEL] * len(dataset[0]["labels"])}
    rows = datasets.Dataset.from_list([blank] * missing, features=dataset.features)
    return datasets.concatenate_datasets([dataset, rows])


def check_packing(trainer: Any) -> None:
    """Raises ConfigError if an item's logits change with the item before it, as in some architectures."""
    size = min(trainer.model.get_input_embeddings().weight.shape[0], _PROBE)
    first, second = list(range(size)) * 2, list(range(size))
    dtype = torch.bfloat16 if trainer.args.bf16 else torch.float32

    @torch.no_grad()
    def logits(items: list[list[int]]) -> torch.Tensor:
        ids = [one for item in items for one in item]
        row = {"input_ids": ids, "labels": ids, "seq_lengths": [len(item) for item in items]}
        inputs = trainer._prepare_inputs(trainer.data_collator([row]))
        del inputs["labels"]
        with trainer.compute_loss_context_manager():
            return trainer.model(**inputs, use_cache=False).logits[0, -size:].float()

    was_training = trainer.model.training
    trainer.model.eval()
    try:
        alone, packed = logits([second]), logits([first, second])
        reason = "the items that share a sequence see each other"
        leaks = (packed - alone).norm() > _PROBE_ERROR[dtype] * (alone - alone.mean()).norm()
    except ValueError as error:  # of models that tell it themselves
        if "packed" not in str(error):
            raise
        leaks, reason = True, " ".join(str(error).split())[:300].rstrip(".")
    finally:
        trainer.model.train(was_training)
    if leaks:
        kind = trainer.model.config.model_type
        raise ConfigError(
            f"packing cannot be used with a model of type '{kind}': {reason}.", "Leave packing out, and give --restart."
        )


class Watch(TrainerCallback):
    """Marks whole checkpoints, measures the time, shows the progress and stops at a loss that is no number.

    `seconds` is the training time over all parts of the run; only with `is_main` this process writes.
    """

    def __init__(self, workspace: Workspace, seconds: float, progress: Progress | None, is_main: bool) -> None:
        self.seconds = seconds
        self._workspace, self._progress, self._is_main = workspace, progress, is_main
        self._since: float | None = None

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds += 0.0 if self._since is None else now - self._since
        self._since = now

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self._since = None
        self._tick()
        if self._progress and state.global_step:
            self._progress("training", state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Shows the progress."""
        if self._progress:
            self._progress("training", state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Shows the loss, and stops at one that is no number."""
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise ConfigError(
                f"The loss is {loss} at step {state.global_step}: the training went astray.",
                "Give a lower learning_rate, more warm-up, or dtype float32, and --restart.",
            )
        if isinstance(self._progress, ProgressBars):
            self._progress.note(loss=loss)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Marks the checkpoint as whole."""
        self._tick()
        if self._is_main:
            self._workspace.mark(state.global_step, self.seconds)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops the clock."""
        self._tick()


def check_trackers(names: tuple[str, ...]) -> None:
    """Checks that the trackers of a recipe's `report_to` are known and installed, before hours of training."""
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in names:
        known = [*INTEGRATION_TO_CALLBACK, "none", "all"]
        if name not in known:
            raise ConfigError(
                f"report_to names '{name}'.{closest(name, known)}", f"Choose among {', '.join(sorted(known))}."
            )
        if name not in ("none", "all") and name not in get_available_reporting_integrations():
            raise MissingDependencyError(
                f"The tracker '{name}' of report_to is not installed.", f"Install it: pip install {name}"
            )


def ran_out_of_memory(error: Exception) -> bool:
    """Tells whether an error means that fewer items of a forward pass would do."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or should_reduce_batch_size(error)
