"""Reproducing evaluates, with lm-eval's index of tasks that the tests of evaluation read once a run."""

from tests.evaluation.conftest import _environment, _task_files

__all__ = ["_environment", "_task_files"]
