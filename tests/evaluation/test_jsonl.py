"""Local JSONL files as tasks of lm-eval: checked line by line, run, with examples that are never the item itself."""

import hashlib
import json
import logging

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.evaluation.jsonl import SUFFIX, read_jsonl_tasks

ITEMS = {
    "options": {"answer": "B", "answer_type": "choice", "choices": ["red", "blue", "green"]},
    "letter": {"answer": "(B)", "answer_type": "choice", "question": "Which?\nOptions:\n(A) red\n(B) blue"},
    "number": {"answer": "3.5", "answer_type": "number"},
    "latex": {"answer": "\\frac{1}{2}", "answer_type": "latex"},
    "text": {"answer": "yes", "answer_type": "text"},
}


def item(kind, identifier, **changes):
    return {"id": identifier, "question": f"Question {identifier}?", **ITEMS[kind], **changes}


def write(path, items):
    path.write_text("".join(f"{json.dumps(one)}\n" for one in items), encoding="utf-8")
    return path


class Scripted(LM):
    """Writes the same for every item, or likes one letter."""

    def __init__(self, text):
        super().__init__()
        self.text, self.prompts = text, []

    def generate_until(self, requests, disable_tqdm=False):
        self.prompts += [request.args[0] for request in requests]
        return [self.text for _ in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        self.prompts += [request.args[0] for request in requests]
        return [(float(request.args[1].strip() == self.text), False) for request in requests]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


@pytest.fixture(scope="module")
def manager():
    return TaskManager(include_defaults=False)


@pytest.fixture
def run(manager):
    logging.getLogger("lm_eval").setLevel(logging.ERROR)

    def evaluate(lm, tasks, **keywords):
        configs = [dict(task.config) for task in tasks]
        results = simple_evaluate(lm, tasks=configs, task_manager=manager, bootstrap_iters=0, **keywords)
        return {task.name: [one[task.metric] for one in results["samples"][task.name]] for task in tasks}

    return evaluate


# --- One kind a file -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "good", "bad", "metric"),
    [
        ("options", "B", "A", "acc"),
        ("letter", "(A) is wrong. The answer is (B).", "(B) is wrong. The answer is (A).", "exact_match"),
        ("number", "The answer is 3.5.", "The answer is 3.", "exact_match"),
        ("latex", "So $\\boxed{0.5}$.", "So $\\boxed{0.4}$.", "exact_match"),
        ("text", "The answer is Yes.", "The answer is not yes.", "exact_match"),
    ],
)
def test_every_kind_is_scored(tmp_path, run, kind, good, bad, metric):
    path = write(tmp_path / "my items.jsonl", [item(kind, "a"), item(kind, "b")])
    (task,) = read_jsonl_tasks(path)

    assert (task.name, task.metric, task.items, task.path) == ("my-items", metric, 2, path)
    assert task.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert run(Scripted(good), [task]) == {"my-items": [1.0, 1.0]}
    assert run(Scripted(bad), [task]) == {"my-items": [0.0, 0.0]}


def test_the_prompt_has_the_context_the_question_and_the_options(tmp_path, run):
    path = write(tmp_path / "a.jsonl", [item("options", "a", context="{{context}} % {x}")])
    lm = Scripted("B")
    run(lm, read_jsonl_tasks(path))
    assert set(lm.prompts) == {"{{context}} % {x}\n\nQuestion a?\nA. red\nB. blue\nC. green\nAnswer:"}

    path = write(tmp_path / "b.jsonl", [item("number", "b", context="Context.")])
    lm = Scripted("7")
    run(lm, read_jsonl_tasks(path, name="mine"))
    assert lm.prompts == [f"Context.\n\nQuestion b?{SUFFIX}"]


def test_a_real_model_is_run(tmp_path, run, pico, tokenizer):
    items = [item("options", "a"), item("options", "b"), item("number", "c"), item("latex", "d")]
    lm = HFLM(pretrained=pico.plain("llama"), tokenizer=tokenizer, batch_size=2, device="cpu")
    scores = run(lm, read_jsonl_tasks(write(tmp_path / "all.jsonl", items)), gen_kwargs={"max_gen_toks": 4})

    assert {name: len(values) for name, values in scores.items()} == {"all_likelihood": 2, "all_generation": 2}


def test_a_file_of_several_kinds_is_scored_item_by_item(tmp_path, run):
    kinds = ["number", "text", "letter", "options"]
    likelihood, generation = read_jsonl_tasks(write(tmp_path / "mixed.jsonl", [item(kind, kind) for kind in kinds]))

    assert (likelihood.items, generation.items) == (1, 3)
    assert run(Scripted("The answer is 3.5."), [generation]) == {"mixed_generation": [1.0, 0.0, 0.0]}
    assert run(Scripted("The answer is (B)."), [generation]) == {"mixed_generation": [0.0, 0.0, 1.0]}
    assert run(Scripted("B"), [likelihood]) == {"mixed_likelihood": [1.0]}


def test_numbers_may_be_written_as_numbers_and_a_mark_of_bytes_is_passed_over(tmp_path, run):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(item("number", 1, answer=7)), "", json.dumps(item("number", 2, answer=7.0))]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert run(Scripted("7"), read_jsonl_tasks(path)) == {"a": [1.0, 1.0]}


# --- Examples ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["options", "number"])
def test_examples_are_other_items_of_the_file(tmp_path, run, kind):
    (task,) = read_jsonl_tasks(write(tmp_path / "a.jsonl", [item(kind, f"n{index}") for index in range(4)]))
    lm = Scripted("B")
    run(lm, [task], num_fewshot=3)

    assert task.examples == 3
    assert len(set(lm.prompts)) == 4
    for prompt in lm.prompts:
        assert sorted(f"Question n{index}?" in prompt for index in range(4)) == [True] * 4
        assert all(prompt.count(f"Question n{index}?") == 1 for index in range(4))
    shown = "Answer: B\n\n" if kind == "options" else "The answer is 3.5.\n\n"
    assert all(prompt.count(shown) == 3 for prompt in lm.prompts)


def test_examples_may_come_from_another_file(tmp_path, run):
    examples = write(tmp_path / "train.jsonl", [item("number", f"t{index}", solution="7 / 2 = 3.5") for index in "12"])
    path = write(tmp_path / "a.jsonl", [item("number", "n")])
    (task,) = read_jsonl_tasks(path, fewshot_path=examples)
    lm = Scripted("3.5")

    assert run(lm, [task], num_fewshot=2) == {"a": [1.0]}
    assert task.examples == 2
    assert lm.prompts[0].count("7 / 2 = 3.5\nThe answer is 3.5.\n\n") == 2
    assert lm.prompts[0].endswith(f"Question n?{SUFFIX}")


@pytest.mark.parametrize("kind", ["options", "number"])
@pytest.mark.parametrize("source", ["same", "overlapping", "copies"])
def test_an_item_is_never_among_its_own_examples(tmp_path, run, kind, source):
    """Neither by a file of examples that holds the items, nor by a copy of the item under another id."""
    items = [item(kind, f"n{index}") for index in range(6)]
    copies = [{**one, "id": f"copy-{one['id']}"} for one in items[:3]]
    path = write(tmp_path / "a.jsonl", items + copies if source == "copies" else items)
    others = write(tmp_path / "b.jsonl", copies + [item(kind, f"m{index}") for index in range(3)])
    fewshot_path = {"same": path, "overlapping": others, "copies": None}[source]
    (task,) = read_jsonl_tasks(path, fewshot_path=fewshot_path)
    lm = Scripted("B")
    run(lm, [task], num_fewshot=task.examples)

    assert task.examples == {"same": 5, "overlapping": 5, "copies": 7}[source]
    assert lm.prompts
    for prompt in lm.prompts:
        asked = prompt.rpartition("Question ")[2].partition("?")[0]
        assert prompt.count(f"Question {asked}?") == 1
        assert prompt.count("Question ") == task.examples + 1
    with pytest.raises(ConfigError, match=f"has {task.examples} items to take examples from"):
        task.check_fewshot(task.examples + 1)


def test_examples_change_with_the_seed_alone(tmp_path, run):
    path = write(tmp_path / "a.jsonl", [item("number", f"n{index}") for index in range(9)])
    prompts = []
    for seed in (1, 1, 2):
        lm = Scripted("7")
        run(lm, read_jsonl_tasks(path), num_fewshot=3, fewshot_random_seed=seed)
        prompts.append(lm.prompts)
    assert prompts[0] == prompts[1] != prompts[2]


def test_too_few_examples_are_named(tmp_path):
    (task,) = read_jsonl_tasks(write(tmp_path / "a.jsonl", [item("number", "a"), item("number", "b")]))
    task.check_fewshot(1)
    with pytest.raises(ConfigError, match=r"'a' has 1 items to take examples from, not 2"):
        task.check_fewshot(2)


def test_examples_of_another_kind_are_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", [item("options", "a")])
    examples = write(tmp_path / "train.jsonl", [item("number", "b")])
    with pytest.raises(ConfigError, match=r"train.jsonl' has no examples for the items of .*likelihood"):
        read_jsonl_tasks(path, fewshot_path=examples)


# --- Bad lines -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "no JSON: Expecting property name"),
        ("[1]", "a JSON list instead of an object"),
        (item("number", "x", question=" "), "'question' is empty"),
        ({"id": "x", "question": "?", "answer_type": "text"}, "'answer' is missing"),
        ({"question": "?", "answer": "1", "answer_type": "text"}, "'id' is missing"),
        (item("text", "x", answer=True), "'answer' is True, not text"),
        (item("text", "x", context=["a"]), r"'context' is \['a'\], not text"),
        (item("number", "x", answer_type="numbr"), "the answer_type 'numbr' is none of .* Did you mean 'number'?"),
        (item("number", "x", answer="seven"), "the answer 'seven' is no number"),
        (item("number", "x", choices=["a", "b"]), "'choices' with the answer_type 'number'"),
        (item("options", "x", answer="D"), "the answer 'D' is no letter from A to C"),
        (item("options", "x", answer="b"), "the answer 'b' is no letter from A to C"),
        (item("letter", "x", answer="(C)"), r"the answer '\(C\)' is no letter from A to B"),
        (item("options", "x", choices=["a"]), "'choices' is no list of 2 to 26 options"),
        (item("options", "x", choices="ab"), "'choices' is no list of 2 to 26 options"),
        (item("options", "x", choices=["a", ""]), "'choices' has an option that is empty"),
        (item("number", "good"), "the id 'good' is that of line 1"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, reason):
    path = tmp_path / "bad.jsonl"
    line = json.dumps(line) if isinstance(line, dict) else line
    line = line.encode() if isinstance(line, str) else line
    path.write_bytes(json.dumps(item("number", "good")).encode() + b"\n\n" + line + b"\n")

    with pytest.raises(ConfigError, match=rf"(?s)1 line is wrong; nothing was run\.\n.*bad\.jsonl:3: {reason}"):
        read_jsonl_tasks(path)


def test_several_bad_lines_are_named_at_once(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text("{\n" * 8)
    with pytest.raises(ConfigError, match="8 lines are wrong") as e:
        read_jsonl_tasks(path)
    assert e.value.message.count("bad.jsonl:") == 5
    assert "and 3 more" in e.value.message
    assert '"answer_type"' in e.value.hint


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path, content):
    (tmp_path / "empty.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=r"empty.jsonl' is empty"):
        read_jsonl_tasks(tmp_path / "empty.jsonl")


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(RepositoryError, match=r"cannot be read: (No such file|Is a directory)"):
        read_jsonl_tasks(tmp_path / name)
