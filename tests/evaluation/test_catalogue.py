"""Tasks, numbers and batches that cannot be evaluated: what came, what is allowed, what to do."""

import functools
import json
import sys

import pytest

from taia_hub import evaluate
from taia_hub.cli import main
from taia_hub.errors import ConfigError, MissingDependencyError
from taia_hub.evaluation.catalogue import check_names, load_tasks
from taia_hub.evaluation.options import EvaluationOptions, check_batch_size
from taia_hub.results import summarise
from tests.evaluation.conftest import in_two_processes

TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
    dev: {rows}
test_split: test
fewshot_split: dev
output_type: multiple_choice
doc_to_text: "{{{{text}}}} ?"
doc_to_choice: [a, b]
doc_to_target: y
fewshot_config:
  sampler: first_n
metric_list:
  - metric: acc
"""


@pytest.fixture
def own(tmp_path):
    """A folder of the tasks own_a and own_b, and of their group."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"text": f"the sea is {letter}.", "y": index % 2} for index, letter in enumerate("abcdef")]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for name in ("own_a", "own_b"):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, rows=folder / "rows.jsonl"))
    (folder / "group.yaml").write_text("group: own_group\ntask:\n  - own_a\n  - own_b\n")
    return folder


def edit(path, before, after):
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def items(path, count=4):
    path.parent.mkdir(exist_ok=True)
    rows = [{"id": i, "question": f"say {i}", "answer": str(i), "answer_type": "number"} for i in range(count)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.mark.parametrize("names", [["own_*"], ["own_group", "own_a"], ["own_a", "own_a", "own_group"]])
def test_a_task_that_is_asked_for_twice_is_evaluated_once(own, names):
    tasks, groups = load_tasks(EvaluationOptions(names, include_path=[own]))
    assert sorted(task.blank.key for task in tasks) == ["own_a", "own_b"]
    assert groups["own_group"].tasks == ("own_a", "own_b")


def test_a_member_that_its_group_changes_is_refused_beside_the_task_alone(own):
    changed = "  - task: own_a\n    doc_to_text: other {{text}}\n"
    edit(own / "group.yaml", "  - own_a\n", changed)
    with pytest.raises(ConfigError, match="Two different tasks are called 'own_a'") as caught:
        load_tasks(EvaluationOptions(["own_a", "own_group"], include_path=[own]))
    assert "--out" in caught.value.hint


def test_files_of_one_name_are_refused(tmp_path, own):
    one, two = items(tmp_path / "one" / "t.jsonl"), items(tmp_path / "two" / "t.jsonl", 5)
    with pytest.raises(ConfigError, match=r"one/t.jsonl' and '.*two/t.jsonl' would both be the task 't'") as caught:
        load_tasks(EvaluationOptions([one, two]))
    assert caught.value.hint == "Rename one of the files."
    assert len(load_tasks(EvaluationOptions([one, one]))[0]) == 1
    with pytest.raises(ConfigError, match="Two different tasks are called 'own_a'"):
        load_tasks(EvaluationOptions([items(tmp_path / "own_a.jsonl"), "own_a"], include_path=[own]))


@pytest.mark.parametrize(("sampler", "fewshot_split", "there"), [("first_n", "dev", 6), ("default", "test", 5)])
def test_more_examples_than_there_are_are_refused(own, sampler, fewshot_split, there):
    edit(own / "own_a.yaml", "first_n", sampler)
    edit(own / "own_a.yaml", "fewshot_split: dev", f"fewshot_split: {fewshot_split}")
    (task,), _ = load_tasks(EvaluationOptions(["own_a"], include_path=[own], num_fewshot=[there]))
    assert task.blank.num_fewshot == there
    task.task.build_all_requests(rank=0, world_size=1)
    with pytest.raises(ConfigError, match=f"'own_a' has {there} items to take examples from, not {there + 1}"):
        load_tasks(EvaluationOptions(["own_a"], include_path=[own], num_fewshot=[there + 1]))


@pytest.mark.parametrize("metric", ["acc", "acc_mutual_info"])
def test_metrics_of_lm_eval_are_read(pico, tokenizer, own, metric):
    edit(own / "own_a.yaml", "metric: acc", f"metric: {metric}")
    found = evaluate(pico.taia("llama"), "own_a", ["none"], tokenizer=tokenizer, include_path=own)
    task = found.tasks["own_a"]
    assert task.metric == f"{metric},none"
    assert len(task.modes["none"].values[task.metric]) == 6
    assert 0 <= summarise(found).rows[0].scores["none"].value <= 1


def test_a_first_metric_that_the_task_does_not_give_is_named(pico, tokenizer, own, tmp_path):
    (own / "functions.py").write_text("def score(doc, results):\n    return {'hits': 1.0}\n")
    edit(own / "own_a.yaml", "doc_to_target: y", "doc_to_target: y\nprocess_results: !function functions.score")
    out = tmp_path / "r.json"
    with pytest.raises(ConfigError, match="'own_a' has the metric 'acc,none' first, but gives only hits,none"):
        evaluate(pico.taia("llama"), "own_a", ["none"], tokenizer=tokenizer, include_path=own, out=out)
    assert not out.exists()


@pytest.mark.parametrize("size", [0, -1, "0", "-1", "foo", "", "8.0", 2.5, True, None, "auto:", "auto:0", "auto:x"])
def test_what_is_no_batch_size_is_refused(pico, tokenizer, tmp_path, size):
    with pytest.raises(ConfigError, match="is no batch size") as caught:
        evaluate(pico.taia("llama"), items(tmp_path / "t.jsonl"), ["none"], tokenizer=tokenizer, batch_size=size)
    assert "'auto:4'" in caught.value.hint


def test_batch_sizes():
    assert [check_batch_size(size) for size in (3, "3", "auto", "auto:2")] == [3, 3, "auto", "auto:2"]


def test_what_lm_eval_prints_does_not_stand_among_the_results(online, own, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--include-path", str(own), "--task", "own_a", "--mode", "none", "--batch-size", "auto", "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["eval", online.taia, *words])
    assert ended.value.code == 0
    assert list(json.loads(capsys.readouterr().out)["tasks"]) == ["own_a"]


def test_fewer_items_than_processes_are_refused(tmp_path, monkeypatch):
    path = items(tmp_path / "t.jsonl")
    monkeypatch.setenv("WORLD_SIZE", "2")  # as `accelerate launch` sets it
    with pytest.raises(ConfigError, match="'t' has 1 items, too few for 2 processes"):
        load_tasks(EvaluationOptions([path], limit=1))
    assert len(load_tasks(EvaluationOptions([path], limit=2))[0]) == 1


def test_two_processes_say_so_and_end(pico, tokenizer, tmp_path):
    folder, path = tmp_path / "model", items(tmp_path / "t.jsonl")
    pico.taia("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    errors = in_two_processes(functools.partial(evaluate, limit=1), str(folder), str(path), ["none"])
    assert [type(error) for error in errors] == [ConfigError, ConfigError]
    assert all("The task 't' has 1 items, too few for 2 processes" in str(error) for error in errors)


def test_names_need_lm_eval(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError):
        check_names(["mmlu"])
