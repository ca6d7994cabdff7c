"""What starts the command line: nothing heavy is imported before a command has work for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import taia_hub
from taia_hub.cli import COMMANDS, GROUPS

ROOT = Path(taia_hub.__file__).parents[1]

HEAVY = ("rich", "torch", "transformers", "peft", "gradio", "lm_eval", "trl", "datasets", "matplotlib", "accelerate")
_SERVER = """
import json, os, sys
import taia_hub.repository.card_updating  # half a second, and as light
from taia_hub.cli import main
from taia_hub.local_hub import LocalHub
LocalHub.serve_forever = lambda hub: None  # it listens by then
print([name for name in HEAVY if name in sys.modules], flush=True)
for line in sys.stdin:
    words, environment, (out, err) = json.loads(line)
    if (child := os.fork()) == 0:
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        os.environ.update(environment)
        sys.argv = ["taia", *words]
        try:
            main()
            status = 0
        except SystemExit as ended:
            status = ended.code
        sys.stdout.flush()
        found = [status or 0, [name for name in HEAVY if name in sys.modules]]
        print(json.dumps(found), file=sys.stderr, flush=True)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A process that has imported the command line and what checks a card; it forks once a command."""
    environment = {**os.environ, "HF_HOME": str(tmp_path_factory.mktemp("home")), "PYTHONPATH": str(ROOT)}
    code = _SERVER.replace("HEAVY", repr(HEAVY))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes) as process:
        assert process.stdout.readline() == "[]\n"  # the import is light itself
        yield process
        process.stdin.close()


@pytest.fixture
def start(server, tmp_path):
    """Starts `taia` in a process of its own; returns (status, heavy modules that it imported, output or error)."""

    def run(*words, **environment):
        out, err = tmp_path / "out.txt", tmp_path / "err.txt"
        out.unlink(missing_ok=True)
        err.unlink(missing_ok=True)
        server.stdin.write(json.dumps([words, environment, [str(out), str(err)]]) + "\n")
        server.stdin.flush()
        assert server.stdout.readline() == "0\n", err.read_text()
        status, heavy = json.loads(err.read_text().splitlines()[-1])
        return status, heavy, out.read_text() or err.read_text()

    return run


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ([], "Try it"),
        (["--help"], "Share it"),
        (["--version"], "taia-hub"),
        (["eval", "--version"], "taia-hub"),
        (["--show-completion", "bash"], "_TAIA_COMPLETE"),
    ],
)
def test_the_front_door_is_light(start, words, shown):
    status, heavy, out = start(*words, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert (status, heavy) == (0, [])
    assert shown in out


@pytest.mark.parametrize("command", [*COMMANDS, "hub serve", "space create"])
def test_the_help_of_a_command_is_light(start, command):
    status, heavy, out = start(*command.split(), "--help")
    assert (status, heavy) == (0, [])
    assert f"taia {command}" in out


@pytest.mark.parametrize(
    "words",
    [
        ["compare", "org/x", "hi", "--mode", "atention"],
        ["generate", "org/x", "hi", "--mode", '{"attention": 2}'],
        ["chat", "org/x", "--mode", "atention"],
        ["export", "org/x", "--mode", "attn", "--out", "d"],
        ["merge", "org/x", "--mode", "attn", "--out", "d"],
        ["eval", "org/x", "--task", "t", "--mode", "attn"],
        ["serve", "org/x", "--engine", "vllm", "--mode", "attn"],
        ["create", "org/x", "--mode", "attn", "--out", "d"],
        ["compare", "org/x", " "],
        ["generate", "org/x", " "],
    ],
)
def test_what_the_words_alone_tell_is_said_before_anything_heavy_is_imported(start, words):
    status, heavy, said = start(*words)
    assert (status, heavy) == (1, [])
    assert "Error: " in said


def test_the_shell_completes_commands_and_options(start):
    asked = {"_TAIA_COMPLETE": "complete_bash"}
    _, heavy, out = start(COMP_WORDS="taia e", COMP_CWORD="1", **asked)
    assert heavy == []
    assert {"eval", "export"} <= set(out.split())
    _, heavy, out = start(COMP_WORDS="taia train --noise", COMP_CWORD="2", **asked)
    assert heavy == []
    assert "--noise-ratio" in out
    for words, offered in (
        ("taia compare org/x --mode a", {"attention", "all"}),
        ("taia train --method ", {"lora", "molora", "full"}),
        ("taia space c", {"create"}),
    ):
        _, heavy, out = start(COMP_WORDS=words, COMP_CWORD=str(len(words.split(" ")) - 1), **asked)
        assert (heavy, set(out.split())) == ([], offered)


@pytest.mark.parametrize(("asked", "bars"), [({}, "3"), ({"HF_HUB_DISABLE_PROGRESS_BARS": "0"}, None)])
def test_short_work_shows_no_bars_and_libraries_are_quiet_unless_asked(asked, bars):
    names = ("TQDM_DELAY", "HF_HUB_VERBOSITY", "TRANSFORMERS_VERBOSITY")
    code = "import os, taia_hub.cli as cli; cli.main(['hub', 'serve', '--help'])"
    code = f"import atexit, os; atexit.register(lambda: print([os.environ.get(name) for name in {names}])); {code}"
    given = {key: value for key, value in os.environ.items() if key not in names}
    given |= {"PYTHONPATH": str(ROOT), **asked}
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == str([bars, "error", "error"])


def test_a_hub_listens_without_what_models_need(start, tmp_path):
    status, heavy, out = start("hub", "serve", str(tmp_path / "hub"), "--port", "0")
    assert (status, heavy) == (0, [])
    assert "HF_ENDPOINT=http://127.0.0.1:" in out


def test_every_command_is_listed_in_a_line_of_its_own(start):
    _, _, out = start("--help", COLUMNS="80")
    listed = [line for line in out[out.index("--help") :].splitlines()[1:] if line.startswith("  ")]
    assert [line.split()[0] for line in listed] == [name for names in GROUPS.values() for name in names]
    assert not any(line.endswith("...") for line in listed)
    assert all(line.endswith(COMMANDS[line.split()[0]][1]) for line in listed)


def test_a_card_that_is_not_there_is_told_without_what_models_need(start, tmp_path):
    status, heavy, _ = start("card", str(tmp_path), "--check")
    assert (status, heavy) == (1, [])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("README.md", None, "has no README.md"),
        ("README.md", b"\xff", "no UTF-8"),
        ("config.json", b"{", "no JSON"),
        ("config.json", b'{"model_type": "taia", "update": {"kind": "none"}}', "update.kind is 'none'"),
        ("taia_manifest.json", b"[]", "a JSON object is expected"),
        ("adapter/adapter_config.json", b"{", "no JSON"),
        ("adapter/adapter_model.safetensors", None, "has no adapter_model.safetensors"),
        ("adapter/adapter_model.safetensors", b"short", "truncated"),
    ],
)
def test_what_is_wrong_with_a_folder_is_told_without_what_models_need(start, saved_copy, name, content, said):
    folder = saved_copy
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    status, heavy, out = start("card", str(folder), "--check")
    assert (status, heavy) == (1, [])
    assert said in out
