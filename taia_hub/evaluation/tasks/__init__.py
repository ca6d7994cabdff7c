"""The paper's tasks for lm-evaluation-harness: YAML files, and the functions that they name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

TITLES: Mapping[str, str] = {
    "taia_paper": "Avg",
    "taia_math": "MATH",
    "taia_bbh": "BBH",
    "taia_commonsense_qa": "CQA",
    "taia_logiqa": "LogiQA",
    "taia_svamp": "SVAMP",
    "taia_mmedbench": "MMB",
    "mmlu": "MMLU",
    "taia_mmedbench_zh": "MMB (zh)",
    "taia_squadv2": "SQuAD v2",
    "taia_xsum": "XSum",
    "ceval-valid": "C-Eval",
}
"""What the paper's tables call tasks and groups; the order is that of their columns."""


def tasks_dir() -> Path:
    """Returns the folder of the YAML files, for `TaskManager(include_path=...)`.

    Example:
        >>> (tasks_dir() / "taia_paper.yaml").is_file()
        True
    """
    return Path(__file__).parent
