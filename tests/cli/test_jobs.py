"""`--on hf-jobs`: the script runs our command line, `hf` reads the printed command, and what a job lacks is refused."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import huggingface_hub.cli.jobs
import pytest
import tomllib
from click.testing import CliRunner
from huggingface_hub.cli._uv_script_header import parse_uv_script_header
from huggingface_hub.cli.hf import app
from packaging.requirements import Requirement

from taia_hub import cli
from taia_hub.common import installing, jobs

ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
LONG = json.dumps({f"model.layers.{layer}.mlp.*": 0.5 for layer in range(12)})
TRAIN = ("train", "--base", "org/base", "--push", "org/model-taia")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with data."""
    monkeypatch.chdir(tmp_path)
    Path("items.jsonl").write_text(json.dumps(ROW))
    return tmp_path


def parts(text):
    """Returns the script, and the words of the command that starts it."""
    script = re.search(r"<<'END'\n(.*?)END\n(.*)", text, re.DOTALL)
    return script[1], shlex.split(script[2].replace("\\\n", ""))


def test_the_script_says_what_it_needs_and_runs_the_same_words(taia, here, monkeypatch):
    words = [*TRAIN, "--data", "items.jsonl", "--rank", "8", "--dry-run"]
    status, out, _ = taia(*words, "--on", "hf-jobs", "--print")
    script, command = parts(out)
    assert status == 0
    head = re.search(r"# /// script\n(.*?)# ///\n", script, re.DOTALL)[1]
    (needed,) = tomllib.loads(head.replace("# ", ""))["dependencies"]
    assert (Requirement(needed).name, Requirement(needed).extras) == ("taia-hub", {"train"})
    assert parse_uv_script_header(script) is None  # nothing but what the command says
    ran = []
    Path("taia_job.py").write_text(script)
    monkeypatch.setattr(cli, "main", lambda: ran.extend(sys.argv[1:]))
    monkeypatch.setattr(sys, "argv", command[command.index("--") + 1 :])
    runpy.run_path("taia_job.py")
    assert ran == words


def test_a_name_of_a_file_cannot_end_a_comment(taia, here):
    Path("items.jsonl").rename("a\ntouch b.jsonl")
    _, out, err = taia(*TRAIN, "--data", "a\ntouch b.jsonl", "--on", "hf-jobs", "--print")
    assert r"jobs-artifacts of yours: a\ntouch b.jsonl" in out, err


def test_hf_reads_the_command_and_leaves_our_options_to_the_script(taia, here, monkeypatch):
    _, out, _ = taia(*TRAIN, "--data=items.jsonl", "--dry-run", "--json", "--on=hf-jobs", "--print")
    script, command = parts(out)
    Path("taia_job.py").write_text(script)
    started = []

    class Api:
        def run_uv_job(self, **values):
            started.append(values)
            raise KeyboardInterrupt

    monkeypatch.setattr(huggingface_hub.cli.jobs, "get_hf_api", lambda token: Api())
    monkeypatch.setattr(huggingface_hub.cli.jobs, "_parse_and_sync_job_volumes", lambda specs, **values: specs)
    assert command[0] == "hf"
    CliRunner(env={"HF_TOKEN": "hf_none"}).invoke(app, command[1:])
    (asked,) = started
    assert asked["script"] == "taia_job.py"
    assert asked["script_args"] == [*TRAIN, "--data", "items.jsonl", "--dry-run", "--json"]
    assert (asked["flavor"], asked["timeout"], list(asked["secrets"])) == ("a10g-large", "12h", ["HF_TOKEN"])
    assert asked["volumes"] == ["./taia-wheel:/taia-wheel"]


def test_the_wheel_goes_along_until_an_index_has_it(monkeypatch):
    text = jobs.job_commands(["train"], "train")
    assert "pip wheel --no-deps --wheel-dir taia-wheel" in text
    assert f"file:///taia-wheel/taia_hub-{cli.__version__}-py3-none-any.whl" in text
    monkeypatch.setattr(installing, "SOURCE", "index")
    text = jobs.job_commands(["train"], "train")
    assert "wheel" not in text
    assert '# dependencies = ["taia-hub[train]"]' in text


def test_results_of_an_evaluation_stay(taia, here):
    words = ("eval", "org/model-taia", "--task", "items.jsonl", "--mode", '{"attention": 1, "ffn": 0.5}')
    _, out, _ = taia(*words, "--on", "hf-jobs", "--print")
    assert parts(out)[1][-len(words) - 2 :] == [*words, "--out", "/data/org--model-taia.results.json"]
    assert "Sent along to the private bucket jobs-artifacts of yours: items.jsonl\n" in out
    _, out, _ = taia(*words, "--out", "mine/own.json", "--on", "hf-jobs", "--print")
    assert parts(out)[1][-2:] == ["--out", "/data/own.json"]
    assert "mine/own.json" not in out


def test_a_recipe_and_its_data_on_the_hub_go_as_they_are(taia, here):
    Path("own.yaml").write_text("base: org/base\ndata: [org/data@main]\n")
    status, out, _ = taia("train", "./own.yaml", "--push", "org/model-taia", "--on", "hf-jobs", "--print")
    assert status == 0
    assert parts(out)[1][-4:] == ["train", "./own.yaml", "--push", "org/model-taia"]


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        ((*TRAIN, "--data", "items.jsonl", "--on", "hf-jobs"), "Nothing is started on hf-jobs", "Add --print"),
        ((*TRAIN, "--data", "items.jsonl", "--on", "hf-job", "--print"), "Did you mean 'hf-jobs'?", "Choose hf-jobs"),
        ((*TRAIN, "--data", "items.jsonl", "--print"), "--print is for --on", "Add --on hf-jobs"),
        (("train", "--base", "org/base", "--data", "items.jsonl", "--out", "x"), "--push names no", "Add --push"),
        (("train", "--base", ".", "--data", "items.jsonl", "--push", "org/m"), "'.' is a folder", "Hub id"),
        ((*TRAIN, "--data", "items.jsonl", "--token", "hf_secret"), "would be shown", "hf auth login"),
        ((*TRAIN, "--data", "gone.jsonl"), "'gone.jsonl' is no file here", "Check the path"),
        (("train", "local.yaml", "--push", "org/m"), "'items.jsonl' is named in a recipe", "sends it along"),
        (
            ("train", "--base", "org/base", "--data", "items.jsonl", "--push", "no id!"),
            "'no id!' is neither",
            "Repo id",
        ),
        ((*TRAIN, "--data", "items.jsonl", "--mode", LONG), "longer than the name of a file", "shorter"),
        (("eval", "org/m"), "No task was given", "JSONL file"),
        (("eval", "x" * 300, "--task", "boolq"), "is neither a folder", "maximum length"),
        (("eval", "no id!", "--task", "boolq"), "'no id!' is neither", "Repo id"),
        (("eval", "org/m", "--task", "gone.jsonl"), "no file 'gone.jsonl' here", "Check the path"),
        (("eval", "org/m", "--task", "gone.yaml"), "'gone.yaml' is no file here", "another ending"),
        (("eval", "org/m", "--task", "boolq", "--out", "made.toml"), "'/data/made.toml' is no file", "another ending"),
        (("eval", ".", "--task", "boolq"), "The repository '.' is a folder", "taia push"),
        (("eval", "org/m", "--task", "boolq", "--include-path", "."), "--include-path '.' is a folder", "task's file"),
        (
            ("eval", "org/m", "--task", "boolq", "--prompts", "items.jsonl", "--judge", "mine:judge"),
            "'mine:judge'",
            "here",
        ),
        (("eval", "org/m", "--task", "boolq", "--backend", "vllm"), "--backend vllm prints", "--on hf-jobs out"),
        (
            ("eval", "org/m", "--task", "boolq", "--mode", "attention"),
            "'attention' is also the name of a file",
            "another",
        ),
    ],
)
def test_what_a_job_lacks_is_refused(taia, here, words, said, hint):
    Path("local.yaml").write_text("base: org/base\ndata: [items.jsonl]\n")
    Path("attention").touch()
    where = () if "--on" in words or "--print" in words else ("--on", "hf-jobs", "--print")
    status, out, err = taia(*words, *where)
    assert (status, out) == (1, "")
    assert said in err
    assert hint in err
    assert "hf_secret" not in err
