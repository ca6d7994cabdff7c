"""One task of lm-evaluation-harness on one loaded model."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import numbers
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from taia_hub.common.chat import check_ids, embedding_rows, give_padding
from taia_hub.common.imports import import_or_raise
from taia_hub.errors import ConfigError
from taia_hub.evaluation.options import check_batch_size
from taia_hub.results import TaskResults

FEATURE = "Evaluation"
Advance = Callable[[float], None]
"""Called with the share of a task that is done, in [0, 1]."""


@dataclass(frozen=True)
class HarnessSettings:
    """What holds for every task of a run; it is compared when an interrupted run goes on.

    `limit` is the most items a task; 1234, the seed of the examples in the prompts and of sampling, is lm-eval's own;
    `gen_kwargs` override the tasks' keywords of generation.
    """

    limit: int | None = None
    seed: int = 1234
    chat_template: bool = False
    system_instruction: str | None = None
    gen_kwargs: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Measured:
    """What a task gave under one setting: a score by metric, and one value an item where the score is their mean.

    With `weights`, the number of tokens of each item, scores are means a token, and values sums.
    """

    scores: Mapping[str, float]
    values: Mapping[str, tuple[float, ...]]
    weights: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Session:
    """A loaded model with what evaluation needs of it; `lm` is lm-eval's view of the model, or `Processes` alone."""

    model: Any
    tokenizer: Any
    lm: Any
    settings: HarnessSettings
    batch_size: int | str


class Processes:
    """What is asked of lm-eval's view where none of its tasks is run: the processes of `accelerate launch`."""

    def __init__(self) -> None:
        from accelerate import PartialState

        self._state = PartialState()

    @property
    def rank(self) -> int:
        """The number of this process."""
        return int(self._state.process_index)

    @property
    def world_size(self) -> int:
        """How many processes there are."""
        return int(self._state.num_processes)

    def barrier(self) -> None:
        """Waits for the other processes."""
        self._state.wait_for_everyone()


@dataclass(frozen=True)
class HarnessTask:
    """One task of lm-eval at one number of shots, ready to be run; `blank` is its results without any mode."""

    task: Any
    blank: TaskResults

    def run(self, session: Session, advance: Advance) -> Measured | None:
        """Runs lm-eval under the model's present setting; a task must give the metric that it names first."""
        import numpy as np
        import torch

        evaluator = import_or_raise("lm_eval.evaluator", "eval", FEATURE)
        settings = session.settings
        answered = 0

        def count() -> None:
            nonlocal answered
            answered += 1
            advance(min(1.0, answered / max(1, len(self.task.instances))))

        session.lm.answered = count
        if settings.gen_kwargs and self.task.get_config("output_type") == "generate_until":
            self.task.set_config(key="generation_kwargs", value=dict(settings.gen_kwargs), update=True)
        # As `simple_evaluate` does it, which also asks git and pip what is installed, for every task and mode.
        self.task.set_fewshot_seed(seed=settings.seed)
        random.seed(0)
        np.random.seed(settings.seed)
        torch.manual_seed(settings.seed)
        with quiet():
            found = evaluator.evaluate(
                lm=session.lm,
                task_dict={"tasks": {self.task.task_name: self.task}, "groups": {}},
                limit=settings.limit,
                bootstrap_iters=0,  # intervals are ours: paired, over the items
                system_instruction=settings.system_instruction,
                apply_chat_template=settings.chat_template,
                fewshot_as_multiturn=settings.chat_template,
            )
        if found is None:
            return None
        measured = self._measured(found)
        if self.blank.metric not in measured.scores:
            raise ConfigError(
                f"The task '{self.blank.name}' has the metric '{self.blank.metric}' first, but gives only "
                f"{', '.join(measured.scores) or 'what is no number'}.",
                "Put a metric that it gives first in the metric_list of its YAML file.",
            )
        return measured

    def _measured(self, found: Mapping[str, Any]) -> Measured:
        name = self.task.task_name
        scores = {
            key: float(value)
            for key, value in found["results"][name].items()
            if "," in key and "_stderr," not in key and isinstance(value, (int, float))
        }
        values = {}
        for key, score in scores.items():
            if not math.isfinite(score):
                raise ConfigError(
                    f"The task '{name}' gave {key}={score}: the model's logits overflow, or there is nothing to count.",
                    "Try another --dtype, such as float32; nothing of this task and mode was saved.",
                )
            metric, _, filter_key = key.rpartition(",")
            samples = [row for row in found["samples"][name] if row["filter"] == filter_key and metric in row]
            items = [row[metric] for row in sorted(samples, key=lambda row: row["doc_id"])]
            complete = len(items) == len(self.blank.items) and all(isinstance(item, numbers.Real) for item in items)
            if complete and math.isclose(math.fsum(items) / len(items), score, rel_tol=1e-9, abs_tol=1e-12):
                values[key] = tuple(map(float, items))
        return Measured(scores, values)


def make_lm(model: Any, tokenizer: Any, *, batch_size: int | str, chat: bool = False) -> Any:
    """Makes lm-eval's view of a loaded model, an `HFLM` whose `answered` is called for every answered request.

    Several processes of accelerate share the items. lm-eval sets the tokenizer's padding: give a copy. With `chat` no
    token is put before or behind a prompt, because its chat template writes them.
    """
    batch_size = check_batch_size(batch_size)
    module = import_or_raise("lm_eval.models.huggingface", "eval", FEATURE)
    give_padding(tokenizer, embedding_rows(model))
    bos = {"add_bos_token": False} if chat else {}
    with quiet():
        lm = _lm_class(module.HFLM)(model, tokenizer=tokenizer, batch_size=batch_size, backend="causal", **bos)
    accelerator = import_or_raise("accelerate", "eval", FEATURE).Accelerator()
    if accelerator.num_processes > 1:
        lm.accelerator = accelerator
        lm._rank, lm._world_size = accelerator.process_index, accelerator.num_processes
    return lm


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences lm-eval's notes and its bars, one of which would appear for every task and mode.

    What it prints while it looks for a batch size goes to stderr, so that stdout holds the results alone.
    """
    task_module: Any = import_or_raise("lm_eval.api.task", "eval", FEATURE)
    logger, bar = logging.getLogger("lm_eval"), task_module.tqdm
    level = logger.level
    logger.setLevel(logging.ERROR)
    task_module.tqdm = functools.partial(bar, disable=True)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        task_module.tqdm = bar
        logger.setLevel(level)


@functools.cache
def _lm_class(base: type) -> type:
    class Counting(base):
        """lm-eval's model, which tells of every answered request instead of drawing bars of its own."""

        answered: Callable[[], None] | None = None

        def __init__(self, *args: Any, **keywords: Any) -> None:
            super().__init__(*args, **keywords)
            self.cache_hook = _Counter(self)

        def tok_encode(self, *args: Any, **keywords: Any) -> Any:
            ids = super().tok_encode(*args, **keywords)
            check_ids(self.tokenizer, ids, embedding_rows(self.model))
            return ids

        def tok_batch_encode(self, *args: Any, **keywords: Any) -> Any:
            encoded = super().tok_batch_encode(*args, **keywords)
            check_ids(self.tokenizer, encoded[0].flatten().tolist(), embedding_rows(self.model))
            return encoded

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, **keywords: Any) -> Any:
            return super()._loglikelihood_tokens(requests, disable_tqdm=True, **keywords)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().generate_until(requests, disable_tqdm=True)

    return Counting


class _Counter:
    """lm-eval hands every answer to its cache; this one only counts."""

    dbdict = None

    def __init__(self, lm: Any) -> None:
        self.lm = lm

    def add_partial(self, attribute: str, request: Any, answer: Any) -> None:
        if self.lm.answered:
            self.lm.answered()
