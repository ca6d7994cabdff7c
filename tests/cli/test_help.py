"""What a person reads of the command line: where to begin, words for values, examples that run as they stand."""

import io
import itertools
import re
import shlex
import shutil
from types import SimpleNamespace

import pytest
import yaml

from taia_hub import TAIAForCausalLM, cli
from taia_hub.cli import COMMANDS, GROUPS
from taia_hub.evaluation.environment import identify
from taia_hub.local_hub import LocalHub
from tests.evaluation.conftest import _task_files  # noqa: F401 - lm-eval's index is read once
from tests.tuning_samples import tuned

PAGES = [*(name for name in COMMANDS if name not in ("hub", "space")), "hub serve", "space create"]


@pytest.fixture
def help_of(taia, monkeypatch):
    """Returns the help of a command, as wide as it wants to be."""

    def read(command, columns="300"):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setenv("TERMINAL_WIDTH", columns)
        status, out, err = taia(*command.split(), "--help")
        assert (status, err) == (0, "")
        return out

    return read


def examples_in(text):
    return re.findall(r"^ +(taia .+)$", text[text.index("Examples:") :].partition("\n\n")[0], re.MULTILINE)


def test_a_newcomer_sees_six_commands_and_where_the_others_are(taia):
    status, out, err = taia()
    assert (status, err) == (0, "")
    shown = re.findall(r"^  ([a-z]+)  ", out, re.MULTILINE)
    assert len(shown) == 6
    assert set(shown) < set(COMMANDS)
    assert len(re.findall(r"^[A-Z][a-z ]+:$", out, re.MULTILINE)) == 3
    assert "taia --help" in out
    assert f"all {len(COMMANDS)} commands" in " ".join(out.split())


def test_every_command_stands_under_one_heading():
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMANDS)


@pytest.mark.parametrize("command", PAGES)
def test_a_help_page_has_two_examples_and_words_for_values(help_of, command):
    out = help_of(command)
    examples = examples_in(out)
    assert len(examples) >= 2
    assert all(one.startswith(f"taia {command}") for one in examples)
    assert not re.search(r"<[a-z]+( range)?>|list\[|\[\[", out)
    assert re.search(r"^  --help, -h|^  -h, --help", out, re.MULTILINE)
    for line in out.splitlines():
        assert not re.match(r"  --\S+ (True|False)\b", line)


def test_every_command_that_takes_a_mode_takes_weights_beyond_1(help_of):
    pages = {command: help_of(command) for command in PAGES}
    taking = {command for command, page in pages.items() if re.search(r"^  --mode ", page, re.MULTILINE)}
    assert taking > {"create", "train", "eval", "compare", "chat", "generate", "export", "merge", "serve"}
    for command, page in pages.items():  # `tune` looks for such weights, and takes no mode
        assert len(re.findall(r"^  --extrapolate  ", page, re.MULTILINE)) == (command in {*taking, "tune"})


def test_weights_beyond_1_are_taken_where_they_are_asked_for_and_nowhere_after(taia, tmp_path):
    beyond, at = '{"ffn": 1.5}', ("--out", tmp_path / "out")
    for words in (("--extrapolate", "--mode", beyond), ("--mode", beyond, "--extrapolate")):
        assert "nowhere" in taia("merge", "./nowhere", *words, *at)[2]  # the weight was taken
    status, _, err = taia("merge", "./nowhere", "--mode", beyond, *at)
    assert status == 1
    assert "The weight of 'ffn' is 1.5" in err
    assert "--extrapolate" in err
    assert "from -2 to 2" in taia("merge", "./nowhere", "--extrapolate", "--mode", '{"ffn": 2.5}', *at)[2]


@pytest.mark.parametrize("command", ["analyze", "card", "chat", "export", "info", "merge", "serve"])
def test_what_takes_a_plain_adapter_says_so(help_of, command):
    assert "Hub id or folder of a TAIA repository or a PEFT adapter." in help_of(command)


def test_overwriting_promises_what_every_command_keeps(help_of):
    for command in ("create", "export", "merge"):
        assert "what you added stays, or you are asked to move it first" in " ".join(help_of(command).split())


def test_defaults_and_brackets_are_shown(help_of):
    assert "[default: 256" in help_of("compare")
    out = " ".join(help_of("eval").split())
    assert "(prompt, answer) -> bool or [0, 1]" in out
    page = help_of("train")
    assert "What is trained:" in page
    assert "Usage: taia train [OPTIONS] [RECIPE]" in page


def test_a_help_page_fits_a_narrow_terminal(help_of):
    for line in help_of("train", columns="60").splitlines():
        assert len(line) <= 80 or line.lstrip().startswith("taia ")


@pytest.mark.parametrize("words", [["--debug", "info", "x y"], ["info", "--debug", "x y"], ["info", "x y", "--debug"]])
def test_debug_works_wherever_it_stands(words, online):
    with pytest.raises(Exception, match="x y"):
        cli.main(words)


def test_what_follows_two_dashes_is_not_ours(taia, monkeypatch):
    asked = []
    monkeypatch.setattr("taia_hub.serving.check_startable", lambda *_: None)

    def plan(repo, engine, modes, **fields):
        asked.append(fields["extra"])
        raise KeyboardInterrupt

    monkeypatch.setattr("taia_hub.serving.plan_serving", plan)
    status, _, _ = taia("serve", "org/x", "--engine", "vllm", "--", "--debug", "--version")
    assert status == 130
    assert list(asked[0]) == ["--debug", "--version"]


@pytest.mark.parametrize("words", [["--version"], ["eval", "--version"], ["train", "x.yaml", "--version"]])
def test_the_version_is_told_wherever_it_is_asked_for(taia, words):
    assert taia(*words)[:2] == taia("--version")[:2]


def test_python_m_is_the_command(monkeypatch, capsys):
    import runpy

    monkeypatch.setattr("sys.argv", ["taia", "--version"])
    with pytest.raises(SystemExit):
        runpy.run_module("taia_hub", run_name="__main__")
    assert capsys.readouterr().out.startswith("taia-hub ")


# --- Examples ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def published(_published, tmp_path_factory):
    """What the examples name, in a name space of its own: some of them publish."""
    online, folder = _published, tmp_path_factory.mktemp("examples")
    for name in ("base", "small"):
        online.push_base(f"docs/{name}")
    for name in ("adapter", "lora", "other-lora"):
        online.push_adapter(f"docs/{name}", base="docs/base")
    model = TAIAForCausalLM.from_adapter("docs/base", "docs/adapter")
    model.push_to_hub("docs/model-taia")
    model.save_pretrained(folder / "model-taia")
    online.api.snapshot_download("docs/adapter", local_dir=folder / "lora")
    tuned = online.pico.plain("llama")
    for parameter in tuned.parameters():
        parameter.data.mul_(1.01)
    online.api.create_repo("docs/base-instruct")
    tuned.save_pretrained(folder / "instruct")
    online.api.upload_folder(repo_id="docs/base-instruct", folder_path=folder / "instruct")
    (folder / "prompts.jsonl").write_text('{"prompt": "the"}\n')
    (folder / "items.jsonl").write_text('{"prompt": "the", "completion": "end"}\n' * 20)
    (folder / "my_items.jsonl").write_text(
        '{"id": "1", "question": "the", "answer": "A", "answer_type": "choice", "choices": ["end", "he"]}\n'
    )
    (folder / "texts.txt").write_text("the end\n\n" * 20)
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump({"base": "docs/base", "data": ["items.jsonl"], "max_length": 32})
    )
    return folder


@pytest.fixture
def work(monkeypatch):
    """Leaves out what takes minutes or an engine: the trainings of `demo` and `reproduce`, and servers and pages."""
    said = SimpleNamespace(to_json=dict, to_text=str, to_markdown=str)
    monkeypatch.setattr("taia_hub.demo.run_demo", lambda *_, **__: said)
    monkeypatch.setattr("taia_hub.reproducing.reproduce", lambda *_, **__: SimpleNamespace(table=said))
    monkeypatch.setattr("taia_hub.tuning.tune", lambda model, *_, **__: tuned(model=identify(model)), raising=False)
    monkeypatch.setattr("taia_hub.page.launch_page", lambda *_, **__: None)
    monkeypatch.setattr("taia_hub.serving.run", lambda *_: 0)
    monkeypatch.setattr("taia_hub.serving.check_startable", lambda *_: None)
    monkeypatch.setattr(LocalHub, "serve_forever", LocalHub.stop)


SHORTER = {"train": "--dry-run", "generate": "--max-new-tokens=3", "compare": "--max-new-tokens=3"}
"""What is added to the examples of a command: the work itself is tested elsewhere."""


@pytest.mark.parametrize("command", PAGES)
def test_examples_run_as_they_stand(taia, published, work, help_of, tmp_path, monkeypatch, command):
    shutil.copytree(published, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    for example in examples_in(help_of(command)):
        _, *words = shlex.split(example.replace("org/", "docs/").replace("somebody/", "docs/"))
        if command == "serve" and not {"vllm", "--for"} & {*words}:  # llama.cpp would make a GGUF of the base
            words.append("--help")
        if command in SHORTER and "--ui" not in words and SHORTER[command] not in words:
            words.append(SHORTER[command])
        if ("--out", "model-taia") in itertools.pairwise(words):
            shutil.rmtree("model-taia")
        monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
        status, _, err = taia(*words)
        assert status == 0, f"{example}\n{err}"
