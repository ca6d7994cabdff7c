"""What lm-eval does again and again is done once a run, or not at all."""

import functools
import pickle
from pathlib import Path

import lm_eval.tasks
import pytest
from lm_eval.tasks._index import TaskIndex

from tests.conftest import made_once


@pytest.fixture(scope="session", autouse=True)
def _task_files(shared):
    """There are 14,000 of them; the folders of a test are read every time."""
    build, own = TaskIndex.build, Path(lm_eval.tasks.__file__).parent

    def make(folder):
        folder.mkdir()
        (folder / "index").write_bytes(pickle.dumps(build([own])))

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
