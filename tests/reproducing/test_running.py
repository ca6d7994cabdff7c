"""`reproduce`: trained, evaluated and tabled; goes on where it was stopped; refuses what is wrong before it trains."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import taia_hub.evaluation.harness
import taia_hub.reproducing.running as running
import taia_hub.training
from taia_hub import TAIAForCausalLM, evaluate
from taia_hub.cli import main
from taia_hub.errors import ConfigError, RepositoryError, SettingError
from taia_hub.reproducing import load_recipe, reproduce
from taia_hub.reproducing.measured import measure
from taia_hub.reproducing.state import RunFolder
from taia_hub.reproducing.table import make_table
from taia_hub.results import Results
from taia_hub.training import TrainingRecipe
from taia_hub.training.recipe import recipe_names

MODES = ("none", "attention", "ffn", "all")
CHOICES = ["the sea", "a tree", "the sun"]
SMALL = {"max_length": 64, "batch_size": 2, "learning_rate": 1e-2}


def lines(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def base(pico, tokenizer, tmp_path_factory):
    """A random base model with its tokenizer, as a user has it."""
    folder = tmp_path_factory.mktemp("base") / "pico-llama"
    shutil.copytree(pico.base("llama"), folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    words = "abcdefghijkl"
    rows = [{"instruction": f"say {word}", "input": "", "output": f"the {word}"} for word in words]
    return lines(tmp_path_factory.mktemp("data") / "items.jsonl", rows)


@pytest.fixture(scope="module")
def choices(tmp_path_factory):
    rows = [
        {"id": str(n), "question": f"what is {chr(97 + n)} ?", "answer": "ABC"[n % 3], "answer_type": "choice"}
        for n in range(12)
    ]
    return lines(tmp_path_factory.mktemp("tasks") / "choices.jsonl", [{**row, "choices": CHOICES} for row in rows])


@pytest.fixture(scope="module")
def options(base, data, choices):
    return {"base": base, "data": str(data), "steps": 2, "changes": SMALL, "tasks": [choices]}


@pytest.fixture(scope="module")
def finished(options, tmp_path_factory):
    """A reproduction that tests only read, or copy."""
    out = tmp_path_factory.mktemp("finished") / "lora"
    return reproduce("lora", out=out, **options)


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished.out, tmp_path / "copy")


@pytest.fixture
def no_training(monkeypatch):
    """Fails where anything would be trained."""

    def train(*_, **__):
        pytest.fail("it was trained")

    monkeypatch.setattr(taia_hub.training, "train", train)


@pytest.fixture
def evaluations(monkeypatch):
    """The tasks and modes that are run."""
    seen = []
    run = taia_hub.evaluation.harness.HarnessTask.run

    def counted(self, session, advance):
        seen.append(self.blank.key)
        return run(self, session, advance)

    monkeypatch.setattr(taia_hub.evaluation.harness.HarnessTask, "run", counted)
    return seen


def test_a_recipe_becomes_a_repository_results_and_a_table(finished, base, choices, tokenizer):
    (results,) = finished.results.values()
    assert results.modes == MODES
    model = TAIAForCausalLM.from_pretrained(finished.out / "lora" / "model")
    assert model.inference_modules == "attention"
    again = evaluate(model, choices, MODES, tokenizer=tokenizer).tasks["choices"]
    assert {mode: again.modes[mode].scores for mode in MODES} == {
        mode: results.tasks["choices"].modes[mode].scores for mode in MODES
    }
    assert json.loads((finished.out / "table.json").read_text()) == json.loads(json.dumps(finished.table.to_json()))
    assert (finished.out / "table.md").read_text() == finished.table.to_markdown()


def test_the_table_says_whose_numbers_are_whose(finished):
    text = finished.table.to_markdown()
    head = next(line for line in text.splitlines() if line.startswith("| task | mode |"))
    assert head == ("| task | mode | paper: Qwen1.5-1.8B LoRA, Alpaca-GPT4 | ours: pico-llama lora, 2 steps | items |")
    above = text[: text.index(head)]
    for line in (
        "- base model: pico-llama (paper: Qwen/Qwen1.5-1.8B-Chat)",
        "- training data: items.jsonl (paper: Alpaca-GPT4 (",
        "- training ends after 2 optimizer steps",
        "- tasks: choices.jsonl (paper: taia_paper)",
        "Table 2, exact. Picture of the table",
    ):
        assert line in above
    score = finished.results["lora"].tasks["choices"].modes["attention"].scores["acc,none"]
    ours = next(line for line in text.splitlines() if line.startswith("| choices | attention (TAIA) |"))
    assert ours.split(" | ")[2] == "not known"
    assert ours.split(" | ")[3].startswith(f"{100 * score:.2f} (")
    assert "| Avg | attention (TAIA) | 35.21 | not run |  |" in text
    assert "| choices | attention (TAIA) less all (vanilla) | not known | " in text
    assert "| L2 | 31.26 | 3.68 | 24.37 | 57.82 | 31.26 |" not in text
    assert "| L2 | 31.26 | 3.68 | 24.37 | 57.82 | 35.33 | 21.30 | 35.04 | 41.30 |" in text


def test_nothing_finished_is_repeated(copied, options, finished, no_training, evaluations):
    before = (copied / "table.md").read_bytes()
    again = reproduce("lora", out=copied, **options)
    assert evaluations == []
    assert again.table == finished.table
    assert (copied / "table.md").read_bytes() == before
    moved = {**options, "data": str(shutil.copy(options["data"], copied.parent / "elsewhere.jsonl"))}
    reproduce("lora", out=copied, **moved)  # the same content


def test_a_finished_evaluation_needs_no_model(copied, options, no_training, monkeypatch):
    monkeypatch.setattr(running, "evaluate", lambda *_, **__: pytest.fail("it was evaluated"))
    monkeypatch.setattr(running, "load_tasks", lambda *_, **__: pytest.fail("tasks were loaded"))
    reproduce("lora", out=copied, **options)


def test_lost_results_are_evaluated_again_and_nothing_trained(copied, options, finished, no_training, evaluations):
    (copied / "lora" / "model" / "taia_results.json").unlink()
    again = reproduce("lora", out=copied, **options)
    assert evaluations == ["choices"] * 4
    assert again.table.rows == finished.table.rows


def test_more_tasks_and_modes_join_what_is_there(copied, options, no_training, evaluations, tmp_path):
    more = lines(
        tmp_path / "more.jsonl",
        [
            {"id": str(n), "question": f"say {n}", "answer": "A", "answer_type": "choice", "choices": CHOICES}
            for n in range(3)
        ],
    )
    again = reproduce("lora", out=copied, **{**options, "tasks": [*options["tasks"], more]})
    assert evaluations == ["more"] * 4
    assert {row.task for row in again.table.rows if row.ours} == {"choices", "more", "average"}
    few = [row for row in again.table.rows if row.task == "more"]
    assert all(row.ours.interval is None and row.ours.items == 3 for row in few)
    again = reproduce("lora", out=copied, **options, modes=[*MODES, {"attention": 1, "ffn": 0.5}])
    assert evaluations == ["more"] * 4 + ["choices"]


def test_an_evaluation_that_was_stopped_goes_on(options, tmp_path, monkeypatch, evaluations):
    run = taia_hub.evaluation.harness.HarnessTask.run

    def stopped(self, session, advance):
        if len(evaluations) == 2:
            raise KeyboardInterrupt
        return run(self, session, advance)

    with monkeypatch.context() as patch:
        patch.setattr(taia_hub.evaluation.harness.HarnessTask, "run", stopped)
        with pytest.raises(KeyboardInterrupt):
            reproduce("lora", out=tmp_path / "out", **options)
    assert not (tmp_path / "out" / "table.md").exists()
    monkeypatch.setattr(taia_hub.training, "train", lambda *_, **__: pytest.fail("it was trained again"))
    found = reproduce("lora", out=tmp_path / "out", **options)
    assert len(evaluations) == 4
    assert found.results["lora"].modes == MODES


def test_a_training_that_was_stopped_goes_on(options, finished, tmp_path):
    seen = []

    def stop(stage, done, total):
        seen.append((stage, done))
        if stage == "training" and done == 1:
            raise KeyboardInterrupt

    saved = {**options, "changes": {**SMALL, "save_steps": 1}}
    with pytest.raises(KeyboardInterrupt):
        reproduce("lora", out=tmp_path / "out", progress=stop, **saved)
    assert ("training", 1) in seen
    again = reproduce("lora", out=tmp_path / "out", **saved)
    assert again.table.rows == finished.table.rows


def test_the_base_is_measured_in_the_first_run_alone(options, tmp_path, evaluations):
    given = {**options, "runs": ["noise-0", "noise-50"], "modes": ["none", "all"]}
    found = reproduce("noisy-data", out=tmp_path / "out", **given)
    assert len(evaluations) == 3
    one, two = (results.tasks["choices"].modes for results in found.results.values())
    assert one["none"] == two["none"]
    assert set(two) == {"none", "all"}
    model = tmp_path / "out" / "noise-50" / "model"
    (alone,) = evaluate(str(model), options["tasks"], ["none"]).tasks.values()
    assert alone.modes["none"].values == two["none"].values


def test_a_sweep_is_one_table_with_a_row_a_run(options, tmp_path, monkeypatch):
    seen = set()
    found = reproduce(
        "rank-sweep",
        out=tmp_path / "out",
        runs=["ar4_fr64", "ar4_fr4"],
        modes=["all", "attention"],
        progress=lambda stage, done, total: seen.add(stage),
        **options,
    )
    assert list(found.results) == ["ar4_fr4", "ar4_fr64"]
    config = json.loads((tmp_path / "out" / "ar4_fr64" / "model" / "adapter" / "adapter_config.json").read_text())
    assert {config["r"], *config["rank_pattern"].values()} == {4, 64}
    assert [(row.run, row.mode) for row in found.table.rows] == [
        *(("ar4_fr4", mode) for mode in ("attention", "all")),
        *(("ar4_fr64", mode) for mode in ("attention", "all")),
    ]
    text = found.table.to_markdown()
    assert "| run | task | mode | paper | ours: pico-llama lora, 2 steps | items |" in text
    assert "- runs left out: ar64\\_fr4" in text or "- runs left out: ar64_fr4" in text
    assert "The paper's numbers for this are not known." in text
    assert {"ar4_fr4: evaluation", "ar4_fr64: training"} <= seen
    again = reproduce("rank-sweep", out=tmp_path / "out", runs=["ar64_fr4"], modes=["all", "attention"], **options)
    assert [row.run for row in again.table.rows] == [label for label in again.recipe.labels for _ in range(2)]
    assert again.table.rows[:4] == found.table.rows

    rows = [json.loads(line) for line in options["tasks"][0].read_text().splitlines()]
    other = lines(tmp_path / "choices.jsonl", [{**row, "question": "changed ?"} for row in rows])
    shutil.rmtree(tmp_path / "out" / "ar64_fr4")
    monkeypatch.setattr(taia_hub.training, "train", lambda *_, **__: pytest.fail("it was trained"))
    with pytest.raises(ConfigError, match="'ar4_fr4' was evaluated on another 'choices'"):
        reproduce("rank-sweep", out=tmp_path / "out", runs=["ar64_fr4"], **{**options, "tasks": [other]})


@pytest.mark.parametrize(
    ("name", "modes", "published"),
    [
        ("toa", ("none", "all"), "attention"),
        ("taif", MODES, "ffn"),
        ("molora", MODES, "attention"),
        ("full", ("none", "attention+other", "ffn", "all"), "attention+other"),
    ],
)
def test_every_way_of_training_is_evaluated_in_its_modes(name, modes, published, base, data, choices, tmp_path):
    changes = {"max_length": 64, "batch_size": 2}
    # the rate rises from 0 in the first step, which therefore changes nothing
    found = reproduce(name, out=tmp_path, base=base, data=str(data), steps=2, changes=changes, tasks=[choices])
    assert found.results[name].modes == modes
    assert json.loads((tmp_path / name / "model" / "config.json").read_text())["inference_modules"] == published


def test_attacks_are_counted_beside_the_papers(base, data, tmp_path):
    prompts = tmp_path / "asked.txt"
    prompts.write_text("say a\nsay b\n")
    found = reproduce(
        "safety-benign",
        out=tmp_path / "out",
        base=base,
        data=str(data),
        prompts=prompts,
        steps=1,
        changes={"max_length": 64, "batch_size": 2},
        modes=["none", "all"],
    )
    row = next(row for row in found.table.rows if row.mode == "all")
    assert (row.title, row.paper, row.percent) == ("Attack success (asked)", (4.04,), True)
    assert row.ours.value in (0, 0.5, 1)
    assert "attention" in [row.mode for row in found.table.rows if row.ours is None]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"recipe": "lara"}, ConfigError, "no recipe 'lara'. Did you mean 'lora'"),
        ({"recipe": "safety-harmful", "data": ()}, ConfigError, "needs data that you bring"),
        ({"recipe": "safety-benign", "tasks": ()}, ConfigError, "needs prompts that you bring"),
        ({"recipe": "safety-benign", "tasks": (), "prompts": "gone.txt"}, RepositoryError, "no file of prompts"),
        ({"tasks": ["taia_pepar"]}, ConfigError, "There is no task 'taia_pepar'. Did you mean 'taia_paper'"),
        ({"tasks": ["gone.jsonl"]}, RepositoryError, "gone.jsonl"),
        ({"modes": ["atention"]}, SettingError, "Did you mean 'attention'"),
        ({"data": "gone.jsonl"}, RepositoryError, "is no file here"),
        ({"runs": ["x"]}, ConfigError, "has no run 'x'"),
        ({"changes": {"rank": "many"}}, ConfigError, "rank"),
        ({"limit": 0}, ConfigError, "limit=0"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(change, error, message, options, tmp_path, no_training):
    given = {**options, **change}
    with pytest.raises(error, match=message):
        reproduce(given.pop("recipe", "lora"), out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_too_few_items_for_the_last_run_are_said_before_the_first(base, choices, tmp_path, no_training):
    many = lines(tmp_path / "many.jsonl", [{"instruction": f"say {n}", "output": "a"} for n in range(1200)])
    given = {"base": base, "data": str(many), "steps": 1, "changes": {"max_length": 64}, "tasks": [choices]}
    with pytest.raises(ConfigError, match="10000"):
        reproduce("data-scaling", out=tmp_path / "out", runs=["1k", "10k"], **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": "taif"}, "holds a reproduction with recipe 'lora', not 'taif'"),
        ({"limit": 5}, "with limit None, not 5"),
        ({"steps": 3}, "another max_steps: 2, not 3"),
        ({"changes": {**SMALL, "rank": 4}}, "another rank: 16, not 4"),
        ({"data": "OTHER"}, "another data: "),
    ],
)
def test_the_folder_of_another_reproduction_is_refused(change, message, copied, options, no_training, tmp_path):
    other = lines(tmp_path / "items.jsonl", [{"instruction": "say m", "output": "m"}])
    given = {**options, **{key: str(other) if value == "OTHER" else value for key, value in change.items()}}
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=message):
        reproduce(given.pop("recipe", "lora"), out=copied, **given)
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_trust_that_is_set_as_a_field_holds_for_the_evaluation_too(options, tmp_path, monkeypatch):
    seen = {}

    def stopped(*_, **keywords):
        seen.update(keywords)
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "evaluate", stopped)
    with pytest.raises(KeyboardInterrupt):
        reproduce("lora", out=tmp_path / "out", **{**options, "changes": {**SMALL, "trust_remote_code": True}})
    assert seen["trust_remote_code"] is True


def test_a_changed_base_model_is_refused(options, base, tmp_path, no_training):
    other = shutil.copytree(base, tmp_path / "base")
    run = TrainingRecipe(base=str(other), data=(options["data"],))
    RunFolder.of(tmp_path / "run", run).begin()
    (other / "README.md").write_text("new")
    RunFolder.of(tmp_path / "run", run).check()
    names = {"model.safetensors": "weights", "config.json": "configuration", "tokenizer.json": "tokenizer"}
    for name, part in names.items():
        content, before = (other / name).read_bytes(), (other / name).stat()
        (other / name).write_bytes(content[:-1] + b" ")
        os.utime(other / name, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(ConfigError, match=f"other files of the base model: {part}"):
            RunFolder.of(tmp_path / "run", run).check()
        (other / name).write_bytes(content)
    RunFolder.of(tmp_path / "run", run).check()


def test_several_processes_are_refused(options, tmp_path, no_training, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as `accelerate launch` sets it
    with pytest.raises(ConfigError, match="runs in one process, not in 2"):
        reproduce("lora", out=tmp_path / "out", **options)


def test_a_folder_with_something_else_is_refused(options, tmp_path, no_training):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(RepositoryError, match="is there already, and no reproduction"):
        reproduce("lora", out=tmp_path / "out", **options)
    with pytest.raises(RepositoryError, match="is a file"):
        reproduce("lora", out=tmp_path / "out" / "thesis.tex", **options)


def test_a_changed_model_is_refused(copied, options, no_training):
    (copied / "lora" / "model" / "taia_manifest.json").write_text("{}")
    with pytest.raises(RepositoryError, match="not as the training left it"):
        reproduce("lora", out=copied, **options)


def test_a_recipe_file_of_ones_own(options, base, data, choices, tmp_path):
    own = {
        **{"name": "own", "description": "My sweep.", "reference": "none", "base": str(base), "data": [str(data)]},
        **{"max_steps": 1, **SMALL, "evaluation": {"tasks": [str(choices)], "modes": ["none", "all"]}},
        "sweep": {"low": {"learning_rate": 1e-4}, "high": {"learning_rate": 1e-2}},
        "paper": [
            {
                **{"table": "Table 9", "setting": "Somebody's", "precision": "exact", "source": "A book."},
                "numbers": {"high": {"all": {"choices": 12.5}, "none": {"choices": 10}}},
            }
        ],
    }
    own.pop("learning_rate")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own, sort_keys=False))
    found = reproduce(tmp_path / "own.yaml", out=tmp_path / "out")
    assert [(row.run, row.mode, row.paper) for row in found.table.rows] == [
        *(("low", "none", (None,)), ("low", "all", (None,))),
        *(("high", "none", (10.0,)), ("high", "all", (12.5,))),
    ]
    difference = next(one for one in found.table.contrasts if one.run == "high") if found.table.contrasts else None
    assert difference is None or difference.paper == (2.5,)


def test_intervals_are_those_of_the_results_package(finished):
    (results,) = finished.results.values()
    task = results.tasks["choices"]
    cell = measure(results)["choices"].cells["all"]
    assert cell.value == task.modes["all"].scores[task.metric]
    assert cell.interval.low <= cell.value <= cell.interval.high
    assert cell.interval.low < cell.interval.high


def test_hostile_names_stay_in_their_cells(finished):
    results = next(iter(finished.results.values()))
    task = next(iter(results.tasks.values()))
    hostile = Results.from_json(
        {**results.to_json(), "tasks": {task.key: {**results.to_json()["tasks"][task.key], "title": "a | <b>"}}}
    )
    recipe = load_recipe("lora")
    text = make_table(
        recipe, {"lora": measure(hostile)}, labels=["lora"], modes=MODES, setting="x | y", differences=["<script>"]
    ).to_markdown()
    assert "| a \\| &lt;b&gt; | all (vanilla) |" in text
    assert "ours: x \\| y" in text
    assert "<script>" not in text


def test_the_command_lists_the_recipes(capsys):
    def main_(*words):
        with pytest.raises(SystemExit):
            main(words)

    main_("reproduce", "--list")
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == list(recipe_names())
    main_("reproduce", "lara")
    assert "Did you mean 'lora'" in capsys.readouterr().err
    main_("reproduce")
    assert "No recipe was named" in capsys.readouterr().err
    main_("reproduce", "lora", "--set", "rank")
    assert "no FIELD=VALUE" in capsys.readouterr().err


def test_the_command_finds_what_is_finished(copied, options, finished, no_training, capsys):
    words = [
        "--base",
        str(options["base"]),
        "--data",
        options["data"],
        "--steps",
        "2",
        "--task",
        str(options["tasks"][0]),
    ]
    words += [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    with pytest.raises(SystemExit) as caught:
        main(["reproduce", "lora", "--out", str(copied), *words])
    assert caught.value.code == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    row = next(line for line in lines if line.startswith("choices") and "none (base)" in line)
    assert "not known" in row
    assert "not run" not in row
    assert "|" not in printed.out
    unrun = sum(row.ours is None for row in finished.table.rows)
    assert unrun > 1
    assert f"{unrun} rows of the paper's table were not run." in lines
    assert str(copied) in printed.err


def test_a_dry_run_says_what_would_be_done_and_does_nothing(options, tmp_path, no_training, capsys, copied):
    words = ["reproduce", "lora", "--base", str(options["base"]), "--data", options["data"], "--steps", "2"]
    words += ["--task", str(options["tasks"][0]), "--dry-run"]
    words += [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    for out, said in ((tmp_path / "new", "lora: 2 steps, "), (copied, "lora: trained already")):
        with pytest.raises(SystemExit) as caught:
            main([*words, "--out", str(out)])
        assert not caught.value.code
        printed = capsys.readouterr().out
        assert printed.startswith(said)
        assert "leave --dry-run out" in printed
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_killed_reproduction_gives_the_same_weights(options, tmp_path):
    given = {**options, "steps": 24, "changes": {**SMALL, "save_steps": 1, "epochs": 4}, "modes": ["none", "all"]}
    rarely = {**given, "changes": {**given["changes"], "save_steps": 100}}
    whole = reproduce("lora", out=tmp_path / "whole", **rarely)
    words = ["reproduce", "lora", "--out", str(tmp_path / "killed"), "--base", str(given["base"]), "--steps", "24"]
    words += ["--data", given["data"], "--task", str(given["tasks"][0]), "--mode", "none", "--mode", "all"]
    words += [word for name, value in given["changes"].items() for word in ("--set", f"{name}={value}")]
    process = subprocess.Popen(
        [sys.executable, "-c", f"from taia_hub.cli import main; main({words!r})"],
        env={**os.environ, "PYTHONPATH": str(Path(taia_hub.__file__).parents[1])},
        stderr=subprocess.DEVNULL,
    )
    work = tmp_path / "killed" / "lora" / "model" / ".training"
    until = time.monotonic() + 120
    while not list(work.glob("checkpoint-*/taia_checkpoint.json")) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "lora" / "model" / "config.json").exists()
    again = reproduce("lora", out=tmp_path / "killed", **given)
    weights = [one.out / "lora" / "model" / "adapter" / "adapter_model.safetensors" for one in (whole, again)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert again.table.rows == whole.table.rows


@pytest.mark.slow
def test_the_command_line_in_a_process_of_its_own(base, tmp_path, clean_process, monkeypatch, capsys):
    """On a random model; that real weights are trained and evaluated is shown by the demo and `test_harness`."""
    capitals = {
        "France": "Paris",
        "Italy": "Rome",
        "Japan": "Tokyo",
        "Egypt": "Cairo",
        "Peru": "Lima",
        "Cuba": "Havana",
    }
    data = lines(
        tmp_path / "capitals.jsonl",
        [{"instruction": f"What is the capital of {land}?", "output": town} for land, town in capitals.items()],
    )
    task = lines(
        tmp_path / "towns.jsonl",
        [
            {
                **{"id": land, "question": f"What is the capital of {land}?", "answer": "AB"[n % 2]},
                **{"answer_type": "choice", "choices": [town, "Berlin"] if n % 2 == 0 else ["Berlin", town]},
            }
            for n, (land, town) in enumerate(
                [*capitals.items(), *((f"{land} now", town) for land, town in capitals.items())]
            )
        ],
    )
    words = ["reproduce", "lora", "--out", "found", "--base", str(base), "--data", str(data), "--task", str(task)]
    words += ["--steps", "2", "--limit", "10", "--set", "batch_size=4", "--set", "max_length=64"]
    done = clean_process(f"from taia_hub.cli import main; main({words!r})", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "found" / "table.json").read_text())
    ours = {row["mode"]: row["ours"] for row in table["rows"] if row["task"] == "towns"}
    assert list(ours) == list(MODES)
    assert all(cell["items"] == 10 and cell["interval"]["low"] <= cell["value"] for cell in ours.values())
    assert "at most 10 items a task (paper: all)" in table["differences"]
    weights = tmp_path / "found" / "lora" / "model" / "adapter" / "adapter_model.safetensors"
    before = weights.stat().st_mtime_ns
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 0
    assert capsys.readouterr().out == done.stdout
    assert weights.stat().st_mtime_ns == before
