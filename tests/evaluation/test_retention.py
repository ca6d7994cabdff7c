"""What each mode keeps of the base, as a task of an evaluation."""

import dataclasses
import json

import pytest

import taia_hub
from taia_hub import evaluate
from taia_hub.errors import ConfigError, RepositoryError, SettingError
from taia_hub.evaluation import runner
from taia_hub.evaluation.options import EvaluationOptions
from taia_hub.evaluation.retention import read_retention
from taia_hub.results import Results, summarise
from taia_hub.results.retained import retained
from tests.evaluation.conftest import in_two_processes
from tests.evaluation.test_harness import choice, write

MODES = ("none", "attention", "all")
TEXTS = [f"the {word} is {other}" for word in ("cat", "dog", "sun", "sea") for other in ("here", "there", "at home")]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "letters.txt"
    path.write_text("\n\n".join(TEXTS))
    return path


def test_retention_needs_no_task_and_no_lm_eval(pico, tokenizer, file, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "make_lm", lambda *_, **__: pytest.fail("lm-eval was asked"))
    model, done, out = pico.taia("llama"), [], tmp_path / "results.json"
    found = evaluate(
        model, modes=MODES, tokenizer=tokenizer, retention=file, out=out, progress=lambda *a: done.append(a)
    )
    task = found.tasks["retention:letters.txt"]
    assert Results.load(out) == found
    direct = taia_hub.retention(model, MODES, texts=file, tokenizer=tokenizer)
    assert retained(task) == direct.modes
    assert (task.items, task.weights, task.dataset) == (direct.task.items, direct.task.weights, direct.task.dataset)
    assert done[-1] == ("evaluation", 36, 36)
    assert summarise(found).retained[0].startswith("attention keeps ")


def test_a_text_that_comes_twice_counts_once(file, caplog):
    file.write_text("\n\n".join([*TEXTS, TEXTS[3], TEXTS[0]]))
    assert list(read_retention(file, EvaluationOptions()).items) == TEXTS
    assert "Retention on letters.txt: 2 repeated texts left out: each counts once." in caplog.text


def test_a_second_run_measures_the_modes_that_are_missing(pico, tokenizer, file, tmp_path, monkeypatch):
    model, out, asked = pico.taia("llama"), tmp_path / "results.json", []
    measure = taia_hub.evaluation.retention.measure
    monkeypatch.setattr(
        taia_hub.evaluation.retention, "measure", lambda *a, **k: (asked.append(a[2]), measure(*a, **k))[1]
    )
    given = {"tokenizer": tokenizer, "retention": file, "out": out}
    first = evaluate(model, modes=["none", "all"], **given)
    found = evaluate(model, modes=MODES, **given)
    assert asked == [["none", "all"], ["attention"]]
    assert list(found.tasks["retention:letters.txt"].modes) == ["none", "all", "attention"]
    assert evaluate(model, modes=MODES, **given) == found
    assert len(asked) == 2
    assert first.tasks["retention:letters.txt"].weights == found.tasks["retention:letters.txt"].weights
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "letters.txt"
    other.write_text("another text")
    with pytest.raises(ConfigError, match="its data set changed") as refused:
        evaluate(model, modes=MODES, **{**given, "retention": other})
    assert refused.value.hint.startswith("Another file of the same name? Rename one")
    assert Results.load(out) == found
    renamed = other.rename(tmp_path / "other" / "more.txt")
    both = evaluate(model, modes=["none"], **{**given, "retention": renamed})
    assert list(both.tasks) == ["retention:letters.txt", "retention:more.txt"]


def test_the_dtype_of_earlier_results_is_named_where_only_it_differs(online, file, tmp_path):
    out = tmp_path / "results.json"
    given = {"modes": ["none", "all"], "retention": file, "out": out}
    evaluate(online.taia, dtype="bfloat16", **given)
    before = out.read_bytes()
    with pytest.raises(ConfigError, match=r"in bfloat16; now it runs in float32") as caught:
        evaluate(online.taia, **given)
    assert "another model" not in str(caught.value)
    assert "--dtype bfloat16" in caught.value.hint
    assert out.read_bytes() == before
    evaluate(online.taia, dtype="bfloat16", **given)


def test_a_task_and_retention_stand_beside_each_other(pico, tokenizer, tmp_path):
    found = evaluate(
        pico.taia("llama"),
        write(tmp_path / "choices.jsonl", choice, 12),
        MODES,
        tokenizer=tokenizer,
        retention=TEXTS,
        limit=11,
    )
    assert list(found.tasks) == ["choices", "retention:given texts"]
    assert [len(task.items) for task in found.tasks.values()] == [11, 11]
    rows = summarise(found).rows
    assert [row.key for row in rows] == ["choices", "retention:given texts"]
    assert summarise(found).recommendation.row.key == "choices"


def test_the_texts_may_be_those_of_a_task_of_lm_eval(pico, tokenizer, tmp_path, monkeypatch):
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"q": f"what is {chr(97 + at)} ?", "options": ["a sea", "a sun"], "right": at % 2} for at in range(5)]
    write(folder / "rows.jsonl", rows.__getitem__, 5)
    common = (
        f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder / 'rows.jsonl'}\ntest_split: test\n"
    )
    (folder / "chosen.yaml").write_text(
        f"task: own_chosen\n{common}output_type: multiple_choice\ndoc_to_text: '{{{{q}}}}'\ndoc_to_choice: options\n"
        "doc_to_target: right\nmetric_list:\n  - metric: acc\n"
    )
    (folder / "said.yaml").write_text(
        f"task: own_said\n{common}output_type: generate_until\ndoc_to_text: '{{{{q}}}}'\n"
        "doc_to_target: '{{options[0]}}'\nmetric_list:\n  - metric: exact_match\n"
    )
    (folder / "both.yaml").write_text("group: own_both\ntask:\n  - own_chosen\n  - own_said\n")
    seen = []
    encode = taia_hub.evaluation.retention.encode_texts
    monkeypatch.setattr(
        taia_hub.evaluation.retention, "encode_texts", lambda *a, **k: (seen.extend(a[2]), encode(*a, **k))[1]
    )
    given = {"tokenizer": tokenizer, "include_path": folder, "limit": 2}
    found = evaluate(pico.taia("llama"), modes=MODES, retention="own_both", **given)
    assert seen == ["what is a ? a sea", "what is b ? a sun", "what is a ? a sea", "what is b ? a sea"]
    assert found.tasks["retention:own_both"].title == "Retention on own_both"
    with pytest.raises(ConfigError, match="There is no task 'own_botch'"):
        evaluate("no-model", modes=MODES, retention="own_botch", **given)


def test_what_is_wrong_is_told_before_a_model_is_loaded(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n{}\n')
    for given, error, message in (
        (tmp_path / "bad.jsonl", ConfigError, r"bad\.jsonl:2: "),
        (str(tmp_path / "gone.txt"), RepositoryError, "No such file"),
        ([], ConfigError, "There are no texts"),
    ):
        with pytest.raises(error, match=message):
            evaluate("no-model", retention=given)
    with pytest.raises(ConfigError, match="No task was given"):
        evaluate("no-model")


def test_what_is_cut_is_logged(pico, tokenizer, caplog):
    model = pico.taia("llama")
    evaluate(model, modes=["all"], tokenizer=tokenizer, retention=[*TEXTS, "the sea " * 200, "a"])
    assert [record.getMessage() for record in caplog.records] == [
        "Retention on given texts: 1 text is longer than 128 tokens: what stands behind is not measured.",
        "Retention on given texts: 1 text left out: no token to measure (a text takes two, an answer one).",
    ]


def _measured(pico, tokenizer, out):
    found = evaluate(pico.taia("llama"), modes=MODES, tokenizer=tokenizer, retention=TEXTS, out=out)
    assert found.tasks["retention:given texts"].modes.keys() == set(MODES)


def test_the_first_of_two_processes_measures_and_tells_the_other(pico, tokenizer, tmp_path):
    pico.taia("llama")  # made once
    assert in_two_processes(_measured, pico, tokenizer, tmp_path / "shared.json") == [None, None]
    assert Results.load(tmp_path / "shared.json").tasks


def test_the_command_measures_prints_and_refuses(taia, saved_copy, tokenizer, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer.save_pretrained(saved_copy)
    status, out, err = taia("eval", saved_copy, "--mode", "all", "--retention", file)
    assert status == 0, err
    assert "all keeps " in out
    status, out, err = taia(
        "eval", saved_copy, "--mode", "all", "--retention", "--limit", 3, "--json", "--out", "few.json"
    )
    assert status == 0, err
    assert list(json.loads(out)["tasks"]) == ["retention"]
    assert len(json.loads(out)["tasks"]["retention"]["items"]) == 3
    status, _, err = taia("eval", "org/model", "--backend", "vllm", "--task", "mmlu", "--retention")
    assert status == 1
    assert "--retention compares the logits" in err


def test_a_job_takes_the_file_along(taia, file, monkeypatch):
    monkeypatch.chdir(file.parent)
    status, out, err = taia("eval", "org/m", "--retention", "letters.txt", "--on", "hf-jobs", "--print")
    assert status == 0, err
    assert "jobs-artifacts of yours: letters.txt" in out
    assert "--retention letters.txt --out /data/org--m.results.json" in out
    status, out, err = taia("eval", "org/m", "--retention", "--on", "hf-jobs", "--print")
    assert status == 0, err
    assert "eval org/m --retention --out /data/org--m.results.json" in out
    status, _, err = taia("eval", "org/m", "--retention", "gone.txt", "--on", "hf-jobs", "--print")
    assert "There is no file 'gone.txt' here" in err


def test_a_mode_that_cannot_act_is_refused_before_anything_is_measured(pico, tokenizer):
    model = pico.taia("llama")
    model.fuse("all")
    with pytest.raises(SettingError, match="the model is fused"):
        evaluate(model, modes=["all"], tokenizer=tokenizer, retention=TEXTS)


def test_an_evaluation_goes_on_from_the_report_of_a_training(pico, tokenizer, tmp_path):
    """Which has no settings of an evaluation, and took as many texts as there was time for."""
    out, given = tmp_path / "taia_results.json", {"tokenizer": tokenizer, "modes": ["all"]}
    model = pico.taia("llama")
    few = evaluate(model, retention=TEXTS[:2], **given)
    (key,) = few.tasks
    direct = taia_hub.retention(model, texts=TEXTS[:2], tokenizer=tokenizer).task
    assert few.tasks[key].prompts_sha256 == direct.prompts_sha256
    report = dataclasses.replace(few, settings={}).with_task(dataclasses.replace(few.tasks[key], name="holdout"))
    report.save(out)
    kept = evaluate(model, retention=TEXTS[:2], out=out, tokenizer=tokenizer, modes=["attention"])
    assert list(kept.tasks[key].modes) == ["all", "attention"]  # the same texts are not measured anew
    report.save(out)
    whole = evaluate(model, retention=TEXTS, out=out, **given)
    assert list(whole.tasks) == ["holdout", key]
    assert len(whole.tasks["holdout"].items) == 2 < len(whole.tasks[key].items) == len(TEXTS)
    with pytest.raises(ConfigError, match="its data set changed"):  # what an evaluation took is not thrown away
        evaluate(model, retention=TEXTS[:2], out=out, **given)
