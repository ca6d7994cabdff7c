"""lm-eval's own task files are read once a run, not by every index that a test makes."""

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

    def built(paths, **options):
        if own not in paths[:1]:
            return build(paths, **options)
        index = pickle.loads((made_once(shared / "lm-eval", make) / "index").read_bytes())
        return index | build(paths[1:], **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskIndex, "build", staticmethod(built))
        yield
