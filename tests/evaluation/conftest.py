"""What lm-eval does again and again is done once a run, or not at all."""

import functools
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
import torch
from accelerate.state import AcceleratorState
from lm_eval.tasks._index import TaskIndex

from tests.conftest import FORKS, made_once

# The folders of lm-eval's tasks that a test names; all of them are 14,000 files, and take ten seconds.
_READ = "agieval", "arc", "bbh", "ceval", "commonsense_qa", "gsm8k", "hendrycks_math", "logiqa", "mmlu", "squadv2"


@pytest.fixture(scope="session", autouse=True)
def _task_files(shared):
    """A few folders of tasks stand for all of lm-eval's; the folders of a test are read every time."""
    build, own = TaskIndex.build, Path(lm_eval.tasks.__file__).parent
    asked = [own / name for name in _READ]

    def make(folder):
        folder.mkdir()
        (folder / "index").write_bytes(pickle.dumps(build(asked)))

    @functools.cache
    def index():
        return pickle.loads((made_once(shared / "lm-eval", make) / "index").read_bytes())

    def built(paths, **options):
        if own not in paths[:1]:
            return build(paths, **options)
        return index() | build(paths[1:], **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskIndex, "build", staticmethod(built))
        yield


@pytest.fixture(scope="session", autouse=True)
def _environment():
    """lm-eval asks seven programs about the machine at the end of every evaluation; nothing here reads the answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        yield


def _in_rank(rank: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...], told: Any) -> None:
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"})
    try:
        function(*arguments)
        told.send(None)
    except Exception as error:  # noqa: BLE001 (the test that started this looks at it)
        told.send(error)


def in_two_processes(function: Callable[..., Any], *arguments: Any) -> list[Exception | None]:
    """Runs a function in two copies of this process that find each other as those of torchrun do; returns their errors.

    A training is started by torchrun itself: `test_two_processes_train_what_one_does`.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    ears, running = [], []
    for rank in range(2):
        told, tells = FORKS.Pipe(duplex=False)
        running.append(FORKS.Process(target=_in_rank, args=(rank, port, function, arguments, tells)))
        running[-1].start()
        tells.close()
        ears.append(told)
    try:
        return [ear.recv() if ear.poll(120) else TimeoutError("Neither done nor failed in 120 s.") for ear in ears]
    finally:
        for process in running:
            process.kill()
