"""The paper's tasks: loaded by lm-eval from the loopback Hub under their data sets' own ids, run, and scored."""

import json
import logging
import zipfile
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from huggingface_hub import HfApi
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from taia_hub.errors import RepositoryError
from taia_hub.evaluation.tasks import TITLES, functions, tasks_dir

SAMPLES = Path(__file__).parents[1] / "data" / "eval"
SUITE = ["taia_math", "taia_bbh", "taia_commonsense_qa", "taia_logiqa", "taia_svamp", "taia_mmedbench", "mmlu"]
BESIDE = ["taia_mmedbench_zh", "taia_xsum", "taia_squadv2", "ceval-valid_computer_network"]


def samples(name):
    lines = (SAMPLES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def parts(name, key):
    """The samples of each part, without the columns that the data set on the Hub does not have."""
    found = {}
    for row in samples(name):
        found.setdefault(row[key], []).append({k: v for k, v in row.items() if k not in (key, "canary")})
    return found


class Publisher:
    """Publishes data sets as they lie on the Hub: parquet files and a card that names configurations and splits."""

    def __init__(self, hub, scratch):
        self.api, self.scratch = HfApi(token=hub.token), scratch

    def push(self, repo_id, configs):
        folder = self.scratch / repo_id
        described = []
        for config, splits in configs.items():
            files = []
            for split, rows in splits.items():
                path = f"{config}/{split}-00000-of-00001.parquet"
                (folder / config).mkdir(parents=True, exist_ok=True)
                Dataset.from_list(rows).to_parquet(folder / path)
                files.append({"split": split, "path": path})
            described.append({"config_name": config, "data_files": files})
        (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': described})}---\n")
        self.upload(repo_id, folder)

    def upload(self, repo_id, folder):
        self.api.create_repo(repo_id, repo_type="dataset")
        self.api.upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=folder)

    def push_mmedbench(self):
        folder = self.scratch / "mmedbench"
        folder.mkdir()
        with zipfile.ZipFile(folder / "MMedBench.zip", "w") as archive:
            for language in ("English", "Chinese"):
                content = (SAMPLES / f"mmedbench_{language.lower()}.jsonl").read_text(encoding="utf-8")
                archive.writestr(f"MMedBench/Test/{language}.jsonl", content)
                archive.writestr(f"MMedBench/Train/{language}.jsonl", "")
        self.upload(functions.MMEDBENCH, folder)


@pytest.fixture(scope="module")
def published(hub, tmp_path_factory):
    publisher = Publisher(hub, tmp_path_factory.mktemp("datasets"))
    math = parts("math", "config").items()
    publisher.push("EleutherAI/hendrycks_math", {part: {"train": rows[1:], "test": rows[:1]} for part, rows in math})
    publisher.push("SaylorTwift/bbh", {part: {"test": rows} for part, rows in parts("bbh", "config").items()})
    mmlu = parts("mmlu", "subject").items()
    publisher.push("cais/mmlu", {part: {"dev": rows[1:], "test": rows[:1]} for part, rows in mmlu})
    rows = samples("commonsense_qa")
    publisher.push("tau/commonsense_qa", {"default": {"train": rows[10:], "validation": rows[:10]}})
    rows = samples("svamp")
    publisher.push("ChilleD/SVAMP", {"default": {"train": rows[:12], "test": rows[12:]}})
    publisher.push("hails/agieval-logiqa-en", {"default": {"test": samples("logiqa")}})
    rows = samples("xsum")
    publisher.push("EdinburghNLP/xsum", {"default": {"train": rows[2:], "test": rows[:2]}})
    rows = samples("squad_v2")
    publisher.push("lighteval/squad_v2", {"squad_v2": {"train": rows[4:], "validation": rows[:4]}})
    rows = samples("ceval")
    publisher.push("ceval/ceval-exam", {"computer_network": {"dev": rows[3:], "val": rows[:3]}})
    publisher.push_mmedbench()
    return publisher


@pytest.fixture(scope="module")
def manager():
    return TaskManager(include_path=str(tasks_dir()))


@pytest.fixture(scope="module")
def paper(published, manager):
    return manager.load("taia_paper")


@pytest.fixture(scope="module")
def beside(published, manager):
    return {name: manager.load(name)["tasks"][name] for name in BESIDE}


class Scripted(LM):
    """Writes what `write(task, doc)` says; of options it prefers the one that `write` names."""

    def __init__(self, tasks, write):
        super().__init__()
        self.tasks, self.write = {task.task_name: task for task in tasks}, write
        self.prompts = []

    def generate_until(self, requests, disable_tqdm=False):
        self.prompts += [request.args[0] for request in requests]
        return [self.write(self.tasks[request.task_name], request.doc) for request in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        self.prompts += [request.args[0] for request in requests]
        wanted = [self.write(self.tasks[request.task_name], request.doc) for request in requests]
        return [(float(request.args[1].strip() == text), False) for request, text in zip(requests, wanted, strict=True)]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


def right(task, doc):
    target = task.doc_to_target(doc)
    return task.doc_to_choice(doc)[target] if task.OUTPUT_TYPE == "multiple_choice" else target


def wrong(task, doc):
    if task.OUTPUT_TYPE == "multiple_choice":
        return task.doc_to_choice(doc)[task.doc_to_target(doc) - 1]
    return "Not (A), not (B). The answer is not known"


@pytest.fixture(scope="module")
def run(manager):
    """Evaluates tasks; returns the primary metric of every item by the task's name."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)

    def evaluate(tasks, lm=None, **keywords):
        lm = lm or Scripted(tasks, right)
        results = simple_evaluate(lm, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, **keywords)
        return {
            task.task_name: [item[task.config.metric_list[0]["metric"]] for item in results["samples"][task.task_name]]
            for task in tasks
        }

    return evaluate


# --- The group -----------------------------------------------------------------------------------------------------
def test_the_suite_has_the_seven_tasks_of_the_paper(paper):
    assert paper["groups"]["taia_paper"].child_names == SUITE
    assert [TITLES[name] for name in SUITE] == ["MATH", "BBH", "CQA", "LogiQA", "SVAMP", "MMB", "MMLU"]
    assert len(paper["tasks"]) == 7 + 27 + 1 + 1 + 1 + 1 + 57
    assert len(paper["groups"]["taia_bbh"].child_names) == 27


def test_only_the_average_over_the_seven_is_not_pooled(paper):
    assert not paper["groups"]["taia_paper"].has_aggregation
    for name in ("taia_math", "taia_bbh", "mmlu"):
        assert all(metric.weight_by_size for metric in paper["groups"][name].aggregate_metric_list)


def test_the_data_are_those_of_lm_evals_own_tasks(manager):
    from lm_eval.tasks._yaml_loader import load_yaml

    def read(name, *keys):
        config = load_yaml(manager.task_index[name].yaml_path)
        return [config.get(key) for key in keys]

    for ours, theirs in {
        "taia_math": "hendrycks_math_algebra",
        "taia_bbh": "bbh_zeroshot_snarks",
        "taia_commonsense_qa": "commonsense_qa",
        "taia_logiqa": "agieval_logiqa_en",
    }.items():
        assert read(ours, "dataset_path") == read(theirs, "dataset_path"), ours
    assert read("taia_math", "process_docs", "training_split") == read(
        "hendrycks_math_algebra", "process_docs", "training_split"
    )
    for group, theirs in {"taia_math": "hendrycks_math", "taia_bbh": "bbh_zeroshot"}.items():
        parts = [read(name, "dataset_name")[0] for name in read(theirs, "task")[0]]
        assert [part["dataset_name"] for part in read(group, "task")[0]] == parts


# --- Runs ----------------------------------------------------------------------------------------------------------
def test_every_task_is_run_and_right_answers_count(run, paper):
    scores = run(paper["tasks"].values())

    assert {name: set(values) for name, values in scores.items()} == {name: {1.0} for name in paper["tasks"]}
    assert len(scores["taia_svamp"]) == 20  # both splits: SVAMP is a challenge set as a whole
    assert len(scores["taia_commonsense_qa"]) == 10


def test_wrong_answers_do_not_count(run, paper):
    tasks = paper["tasks"].values()

    scores = run(tasks, Scripted(tasks, wrong))
    assert {value for values in scores.values() for value in values} == {0.0}


def test_the_tasks_beside_the_suite_are_run(run, beside):
    scores = run(beside.values())

    assert {name: set(values) for name, values in scores.items()} == {name: {1.0} for name in BESIDE}
    lm = Scripted(beside.values(), wrong)
    assert all(max(values) < 1.0 for values in run(beside.values(), lm).values())


def test_a_real_model_runs_one_task_of_each_kind(run, paper, beside, pico, tokenizer):
    lm = HFLM(pretrained=pico.plain("llama"), tokenizer=tokenizer, batch_size=4, device="cpu")
    names = ["taia_math::algebra", "taia_bbh::snarks", "taia_svamp", "taia_logiqa", "taia_mmedbench", "mmlu_anatomy"]
    tasks = [*(paper["tasks"][name] for name in names), *beside.values()]
    scores = run(tasks, lm, limit=2, gen_kwargs={"max_gen_toks": 4})

    assert all(0 <= value <= 1 for values in scores.values() for value in values)
    assert {len(values) for name, values in scores.items() if "::" not in name and name != "mmlu_anatomy"} == {2}


def test_lm_evals_own_squad_loads_but_fetches_its_metric_as_code(published, manager):
    task = manager.load("squadv2")["tasks"]["squadv2"]
    ours = manager.load("taia_squadv2")["tasks"]["taia_squadv2"]

    assert [doc["id"] for doc in task.eval_docs] == [doc["id"] for doc in ours.eval_docs]
    doc = task.eval_docs[0]
    assert ours.doc_to_text(doc).startswith(task.doc_to_text(doc).removesuffix("Answer:"))
    scores = task.process_results(doc, ["1871", (-1.0, False)])
    with pytest.raises((FileNotFoundError, ConnectionError)):
        task.aggregation()["exact"]([scores["exact"]])


@pytest.mark.parametrize("num_fewshot", [1, 3])
def test_examples_are_other_items_with_their_answers(run, paper, num_fewshot):
    tasks = [paper["tasks"][name] for name in ("taia_svamp", "taia_commonsense_qa", "taia_logiqa", "taia_mmedbench")]
    before = {task.task_name: task.config.num_fewshot for task in tasks}
    lm = Scripted(tasks, right)
    try:
        for task in tasks:
            task.set_config("num_fewshot", None)
        run(tasks, lm, num_fewshot=num_fewshot)
    finally:
        for task in tasks:
            task.set_config("num_fewshot", before[task.task_name])

    for prompt in set(lm.prompts):
        items = [part for part in prompt.split("\n\n") if "Please" not in part and "step by step" not in part]
        assert len(items) == len(set(items)), prompt
        if "final answer" in prompt:
            assert prompt.count("The answer is ") == 2 * num_fewshot + 1


# --- Prompts -------------------------------------------------------------------------------------------------------
def test_the_prompts_are_those_of_the_paper(paper, beside):
    def prompt(task):
        return task.doc_to_text(task.eval_docs[0])

    ask = "Please format the final answer at the end of the response as: The answer is {answer}."
    letter = "\n\nPlease answer with option letter directly, do not output other infomation."
    tasks = paper["tasks"]
    svamp = samples("svamp")[0]["question_concat"]
    assert prompt(tasks["taia_svamp"]) == f"{svamp}\n\n{ask}"
    assert prompt(tasks["taia_bbh::snarks"]).endswith(f"\n\n{ask}")
    assert prompt(tasks["taia_math::algebra"]).endswith(f"\n\n{ask}".replace("as: ", "as:  "))
    question = samples("commonsense_qa")[0]["question"]
    asked = prompt(tasks["taia_commonsense_qa"])
    assert asked.startswith(f"{question}\nA. bank\nB. library\n")
    assert asked.endswith(f"E. new york\n\nLet's think step by step. {ask}")
    assert prompt(tasks["taia_logiqa"]).endswith(f"(D)No key is made of steel.{letter}")
    assert prompt(tasks["taia_mmedbench"]).endswith(letter)
    assert prompt(beside["taia_mmedbench_zh"]).endswith("E. 400次\n\n请用选项的字母直接回答，不要输出其他信息：")  # noqa: RUF001


def test_a_base_model_is_stopped_before_it_answers_a_question_of_its_own(paper):
    for name in ("taia_svamp", "taia_math::algebra", "taia_bbh::snarks", "taia_commonsense_qa"):
        task = paper["tasks"][name]
        assert any(stop in task.doc_to_text(task.eval_docs[0]) for stop in task.config.generation_kwargs["until"])


# --- Scores of single items ----------------------------------------------------------------------------------------
def test_bbh_takes_the_option_of_the_answer_not_the_first_one_named():
    doc = {"input": "Which?\nOptions:\n(A) one\n(B) two", "target": "(B)"}
    assert functions.score_bbh(doc, ["(A) is wrong. The answer is (B)."]) == {"exact_match": 1.0}
    assert functions.score_bbh(doc, ["(B) is wrong. The answer is (A)."]) == {"exact_match": 0.0}
    assert functions.score_bbh(doc, ["The answer is (C)."]) == {"exact_match": 0.0}
    assert functions.score_bbh({"input": "", "target": "-13"}, ["The answer is -13.0."]) == {"exact_match": 1.0}


def test_svamp_keeps_decimals():
    assert functions.score_svamp({"Answer": "3.5"}, ["The answer is 3.5."]) == {"exact_match": 1.0}
    assert functions.score_svamp({"Answer": "3.0"}, ["The answer is 3.5."]) == {"exact_match": 0.0}


@pytest.mark.parametrize(
    ("answers", "output", "exact_match", "f1"),
    [
        (["1871", "in 1871"], " In 1871.", 1.0, 1.0),
        (["the old keeper"], "keeper", 0.0, 2 / 3),
        (["34 metres"], "unanswerable", 0.0, 0.0),
        ([], "Unanswerable.", 1.0, 1.0),
        ([], "", 1.0, 1.0),
        ([], "34 metres", 0.0, 0.0),
        (["a"], "the", 1.0, 1.0),  # nothing is left of either, as in SQuAD's own script
        (["red red blue"], "red blue blue", 0.0, 2 / 3),
    ],
)
def test_squad_scores_words(answers, output, exact_match, f1):
    scores = functions.score_squad({"answers": {"text": answers}}, [output])
    assert scores == {"exact_match": exact_match, "f1": pytest.approx(f1)}


def test_xsum_scores_by_rouge():
    doc = {"summary": "the cat sat on the mat"}
    same, half = functions.score_xsum(doc, ["The cat sat on the mat."]), functions.score_xsum(doc, ["the cat ran"])
    assert same == {"rougeL": 1.0, "rouge1": 1.0, "rouge2": 1.0}
    assert half["rouge1"] == pytest.approx(2 * 2 / 9)
    assert half["rouge2"] == pytest.approx(2 * 1 / 7)


def test_mmedbench_names_a_language_that_is_not_there(published):
    with pytest.raises(RepositoryError, match=r"no test items in 'Klingon'.*lacks 'test/klingon.jsonl'"):
        functions.mmedbench("Klingon")


def test_mmedbench_refuses_an_answer_that_is_no_option():
    item = {"question": "?", "options": {"A": "x", "B": "y"}, "answer_idx": "A,B"}
    with pytest.raises(RepositoryError, match=r"Test/x.jsonl:3: the answer 'A,B' is none of A, B"):
        functions._mmedbench_item(item, "Test/x.jsonl:3")
