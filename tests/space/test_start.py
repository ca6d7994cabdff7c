"""A Space as the Hub starts it: downloaded into an empty folder, run with nothing but its own files and variables."""

import importlib.metadata
import os
import subprocess
import sys
import time
import venv

import gradio_client
import pytest
from huggingface_hub import snapshot_download
from packaging.requirements import Requirement

from tests.ports import free_port
from tests.space.helpers import create_space


@pytest.fixture(scope="module")
def downloaded(_published, tmp_path_factory):
    """A published Space with the package's source in an empty folder, with the variables that were set for it."""
    how = {"private": True, "token": _published.hub.token, "link": False, "package": "bundle"}
    made = create_space(_published.taia, space_id="own/started", **how)
    folder = tmp_path_factory.mktemp("started") / "space"
    snapshot_download(made.space_id, repo_type="space", local_dir=folder, token=_published.hub.token)
    variables = _published.api.get_space_variables(made.space_id)
    return folder, {name: variable.value for name, variable in variables.items()}


def test_the_requirements_are_the_versions_in_use(downloaded):
    lines = [line for line in (downloaded[0] / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    for line in lines:
        wanted = Requirement(line)
        assert wanted.specifier.contains(importlib.metadata.version(wanted.name).partition("+")[0]), line


@pytest.fixture(params=["here", pytest.param("built", marks=[pytest.mark.network, pytest.mark.timeout(900)])])
def python(request, downloaded, tmp_path):
    """The Python that runs the Space: this one, or one that has nothing but the Space's requirements."""
    if request.param == "here":
        return sys.executable
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    words = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "--only-binary",
        ":all:",
        "-r",
        str(downloaded[0] / "requirements.txt"),
    ]
    done = subprocess.run([python, *words], capture_output=True, text=True, env=_clean(os.environ))
    assert done.returncode == 0, done.stderr[-3000:]
    return python


@pytest.mark.slow
def test_a_downloaded_space_answers(downloaded, python, online, tmp_path):
    folder, variables = downloaded
    port = str(free_port())
    own = {"GRADIO_SERVER_PORT": port, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": online.hub.token}
    log = (tmp_path / "log.txt").open("w+")
    app = subprocess.Popen(
        [python, "app.py"], cwd=folder, env={**_clean(os.environ), **own, **variables}, stdout=log, stderr=log
    )
    try:
        client = _client(app, f"http://127.0.0.1:{port}", log)
        found = client.predict(prompt="the sea", max_new_tokens=4, api_name="/compare")
        assert found["model"] == online.taia
        assert [answer["mode"] for answer in found["answers"]] == ["none", "attention", "all"]
        assert found["revision"] == variables["TAIA_REVISION"]
    finally:
        app.terminate()
        app.wait(30)
        log.close()


def _clean(environment):
    return {key: value for key, value in environment.items() if key not in ("PYTHONPATH", "HF_HUB_CACHE")}


def _client(app, url, log):
    end = time.monotonic() + 120
    while time.monotonic() < end and app.poll() is None:
        try:
            return gradio_client.Client(url, verbose=False, download_files=False)
        except (OSError, ValueError):
            time.sleep(0.5)
        except Exception as error:  # the transport has errors of its own
            if "Connect" not in type(error).__name__:
                raise
            time.sleep(0.5)
    log.seek(0)
    pytest.fail(f"The Space did not start:\n{log.read()[-3000:]}")
