"""Evaluation by lm-evaluation-harness: every task under every mode, on one loaded model.

A model or its name and `options.EvaluationOptions` come in, `results.Results` go out. It may import `compare` and what
lies below it; torch and lm-eval are imported where something is run.
"""

from typing import TYPE_CHECKING

from taia_hub.common.imports import later

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
__getattr__ = later(
    __name__,
    {
        **dict.fromkeys(("find_judge", "safety_task", "win_rate_task"), "prompts"),
        **dict.fromkeys(("attack_success_rate", "refusal_rate", "win_rate"), "safety"),
        "evaluate": "runner",
        "vllm_commands": "vllm",
    },
)
