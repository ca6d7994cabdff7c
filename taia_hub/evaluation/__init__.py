"""Evaluation by lm-evaluation-harness: every task under every mode, on one loaded model.

A model or its name and `options.EvaluationOptions` come in, `results.Results` go out. It may import `compare` and what
lies below it; torch and lm-eval are imported where something is run.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taia_hub.evaluation.prompts import find_judge, safety_task, win_rate_task
    from taia_hub.evaluation.runner import evaluate
    from taia_hub.evaluation.safety import attack_success_rate, refusal_rate, win_rate
    from taia_hub.evaluation.vllm import vllm_commands

__all__ = [
    "attack_success_rate",
    "evaluate",
    "find_judge",
    "refusal_rate",
    "safety_task",
    "vllm_commands",
    "win_rate",
    "win_rate_task",
]
_HOMES = {
    **dict.fromkeys(("find_judge", "safety_task", "win_rate_task"), "prompts"),
    **dict.fromkeys(("attack_success_rate", "refusal_rate", "win_rate"), "safety"),
    "evaluate": "runner",
    "vllm_commands": "vllm",
}


def __getattr__(name: str) -> Any:
    """Loads a function when it is asked for: the command line reads the options without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
