"""`taia train`: flags over recipes, the plan, what is printed, and errors without tracebacks."""

import dataclasses
import inspect
import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from taia_hub.cli import app, main
from taia_hub.cli.training import train as command
from taia_hub.training import TrainingRecipe


@pytest.fixture(scope="module")
def base(pico, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "llama"
    shutil.copytree(pico.base("llama"), folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    path = tmp_path_factory.mktemp("items") / "items.jsonl"
    row = '{"instruction": "say it", "input": "", "output": "the cat"}\n'
    path.write_text(row * 3 + row.replace("cat", "hat") * 3)
    return str(path)


@pytest.fixture
def run(capsys):
    """Runs `taia train` and returns what it printed, and the error output."""

    def call(*words, code=0):
        with pytest.raises(SystemExit) as ended:
            main(["train", *map(str, words)])
        assert (ended.value.code or 0) == code, capsys.readouterr().err
        told = capsys.readouterr()
        return told.out, told.err

    return call


def test_every_field_of_a_recipe_has_a_flag():
    fields = {one.name for one in dataclasses.fields(TrainingRecipe)} - {"name", "description", "reference"}
    flags = set(inspect.signature(command).parameters)

    assert fields - {"inference_modules"} <= flags
    assert "mode" in flags


def test_help_comes_in_panels_without_loading_trl():
    told = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "100", "TERM": "dumb"}).output

    for panel in ("Data", "What is trained", "How it is trained", "Devices and memory", "Result"):
        assert f"\n{panel}:\n" in told


def test_flags_win_over_the_recipe(run, base, items, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: {base}\nin_domain: a.jsonl\nood: b.jsonl\nood_ratio: 0.5\nrank: 8\nbatch_size: 2\n")

    out, _ = run(path, "--data", items, "--rank", "attention=2,ffn=4", "--no-packing", "--dry-run", "--json")

    plan = json.loads(out)
    assert plan["recipe"]["rank"] == {"attention": 2, "ffn": 4}
    assert plan["recipe"]["data"] == [items]
    assert plan["recipe"]["in_domain"] == []
    assert plan["recipe"]["batch_size"] == 2
    assert plan["plan"]["steps"] == 3
    assert plan["plan"]["items"] == 6
    assert plan["plan"]["trained"].keys() == {"attention", "ffn"}
    assert plan["plan"]["memory"]["total"] > 0


def test_a_dry_run_writes_nothing(run, base, items, tmp_path):
    out, _ = run("--base", base, "--data", items, "--out", tmp_path / "out", "--dry-run")

    assert re.search(r"steps +1 of 64 items: 1 process x", out)
    assert "memory" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said", "ways"),
    [
        ([], "6 items fill 1 step of 64", ["--epochs 97"]),
        (["--epochs", 5], "30 items fill 1 step of 64", ["--batch-size 3", "--epochs 97"]),
        (["--packing", "--max-length", 128], "1 packed sequence fills 1 step of 64", []),
        (["--max-steps", 1], "", []),
        (["--max-steps", 2], "6 items fill 1 step of 64", []),
        (["--epochs", 97], "", []),
    ],
)
def test_few_steps_are_warned_of_with_what_would_do(run, base, items, tmp_path, words, said, ways):
    ask = ["--base", base, "--data", items, "--out", tmp_path / "out", "--dry-run"]
    out, _ = run(*ask, *words)
    assert ("Warning: " in out) == bool(said)
    assert said in out
    for way in ways:
        assert way in out
        fixed, _ = run(*ask, *words, *way.split())
        assert "Warning: " not in fixed
    if "--packing" in words:
        fixed, _ = run(*ask, *words, "--epochs", re.search(r"--epochs (\d+)", out)[1])
        assert "Warning: " not in fixed


def test_training_says_what_came_of_it(run, base, items, tmp_path, monkeypatch):
    monkeypatch.setattr("taia_hub.common.progress._SECONDS", 0)
    words = ["--base", base, "--data", items, "--out", tmp_path / "out", "--batch-size", 2, "--rank", 2]

    out, err = run(*words)

    assert re.search(r"Trained 3 steps, \d+ tokens in \d+ s \(.* tokens/s\); loss \d\.\d+ -> \d\.\d+", out)
    assert f"Written to {tmp_path / 'out'}" in out
    assert f"Next: taia compare {tmp_path / 'out'} " in out
    plan, _, training = err.partition("training 3/3")
    assert re.search(r"^steps +3 of 2 items: 1 process x 1 forward pass x 2 items$", plan, re.M)
    assert "trained     lora" in plan
    assert training
    assert "Loading weights" not in err
    assert "\r" not in err
    out, _ = run(*words)
    assert "finished already" in out
    out, _ = run(*words, "--json", "--restart")
    told = json.loads(out)
    assert told["steps"] == 3
    assert told["is_new"]
    assert told["commit"] is None
    _, err = run(*words, "--seed", 1, code=1)
    assert "another training already" in err
    assert "--restart" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "names no base model"),
        (["--base", "org/base"], "names no data"),
        (["--rank", "many"], "no number"),
        (["--rank", "attention=4"], "says nothing of ffn"),
        (["--method", "lorra"], "Did you mean 'lora'"),
        (["no-such-recipe"], "no recipe 'no-such-recipe'"),
        (["--base", "b", "--data", "d"], "where the trained model shall go"),
        (["--train-modules", "ffn@3-1"], "rising range"),
    ],
)
def test_errors_name_what_came_and_the_next_step(run, words, message):
    _, err = run(*words, code=1)

    assert message in err
    assert "Hint: " in err
    assert "Traceback" not in err


def test_a_bad_line_at_the_end_is_named(run, base, items, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(Path(items).read_text() + '{"instruction": "say it"\n')

    _, err = run("--base", base, "--data", bad, "--out", tmp_path / "out", code=1)

    assert "bad.jsonl:7" in err
    assert not (tmp_path / "out").exists()
