"""Hashes of items and of what prompts are made of, so that results of changed ones never stand side by side."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import os
from typing import Any

_ELSEWHERE = {
    *("task", "task_alias", "tag", "group", "metadata", "num_fewshot"),
    *("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "process_docs"),
    *("training_split", "validation_split", "test_split"),
    *("should_decontaminate", "doc_to_decontamination_query"),
}
"""Keys of a task's configuration that change no prompt and no score, or that the results hold beside the hash."""

_EXAMPLES = 1000  # of a training split of 200,000 the first ones tell that it changed


def item_hash(item: Any) -> str:
    """Hashes one item.

    Args:
        item: JSON values; what is none is hashed by its `repr`.

    Returns:
        16 hexadecimal digits.
    """
    return _sha256(item)[:16]


def prompts_sha256(task: Any) -> str:
    """Hashes what lm-eval makes the prompts and scores of a task of, beside its items.

    The examples in the prompts are drawn process by process, so with examples the number of processes counts too.

    Args:
        task: lm-eval's task, its number of examples set.

    Returns:
        sha256 in hexadecimal digits.
    """
    config = task.config.to_dict(keep_callable=True)
    parts: list[Any] = [{key: value for key, value in config.items() if key not in _ELSEWHERE}]
    if config.get("num_fewshot"):
        parts += [list(itertools.islice(task.fewshot_docs(), _EXAMPLES)), os.environ.get("WORLD_SIZE", "1")]
    return _sha256(parts)


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=_text).encode()).hexdigest()


def _text(value: Any) -> str:
    """Writes what is no JSON value; the source of a function rather than its address."""
    try:
        return inspect.getsource(value)
    except (TypeError, OSError):
        return str(getattr(value, "__qualname__", None) or repr(value))
