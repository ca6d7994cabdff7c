"""Evaluation by lm-evaluation-harness: every task under every mode, on one loaded model."""

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
