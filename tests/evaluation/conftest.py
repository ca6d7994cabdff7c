"""What lm-eval does again and again is done once a run, or not at all."""

import functools
import pickle
from pathlib import Path

import lm_eval.tasks
import pytest
from lm_eval.tasks._index import TaskIndex

from tests.conftest import made_once

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
