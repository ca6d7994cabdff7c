"""Evaluation on one loaded model: exact, resumable, distributed, and clear about what is wrong."""

import copy
import dataclasses
import functools
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import snapshot_download
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file, save_file

import taia_hub
from taia_hub import TAIAForCausalLM, evaluate
from taia_hub.cli import main
from taia_hub.errors import ConfigError, MissingDependencyError, RepositoryError, SettingError
from taia_hub.evaluation import find_judge, safety_task, vllm_commands, win_rate_task
from taia_hub.evaluation.catalogue import load_tasks
from taia_hub.evaluation.options import EvaluationOptions
from taia_hub.results import RESULTS_FILE, Results, summarise
from tests.evaluation.conftest import in_two_processes

MODES = ("none", "attention", "ffn", "all")
CHOICES = ["the sea", "a tree", "the sun"]


def choice(number):
    letter = "ABC"[number % 3]
    question = f"what is {'seen' if number % 2 else 'known'} in {'the ' * (number % 5)}{chr(97 + number)} ?"
    return {"id": str(number), "question": question, "answer": letter, "answer_type": "choice", "choices": CHOICES}


def text(number):
    return {"id": str(number), "question": f"say {chr(97 + number)}", "answer": chr(97 + number), "answer_type": "text"}


def write(path, make, count=6):
    path.write_text("".join(f"{json.dumps(make(number))}\n" for number in range(count)))
    return path


@pytest.fixture
def choices(tmp_path):
    return write(tmp_path / "choices.jsonl", choice)


@pytest.fixture
def texts(tmp_path):
    return write(tmp_path / "texts.jsonl", text)


@pytest.fixture
def rolling(tmp_path):
    """A task whose scores are continuous, so that equal scores mean equal logits."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"text": f"the {'sea ' * number}is {chr(97 + number)}."} for number in range(1, 9)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "rolling.yaml").write_text(
        f"""task: own_rolling
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder / "rows.jsonl"}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
"""
    )
    return folder


def reference(model, tokenizer, folder):
    """lm-eval on a bare model, without this package."""
    lm = HFLM(model, tokenizer=tokenizer, batch_size=8)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(lm, tasks=["own_rolling"], task_manager=manager, bootstrap_iters=0)
    return {key: value for key, value in found["results"]["own_rolling"].items() if "," in key and "stderr" not in key}


def test_every_mode_scores_as_lm_eval_on_the_model_it_stands_for(pico, tokenizer, rolling):
    found = evaluate(pico.taia("llama"), "own_rolling", MODES, tokenizer=tokenizer, include_path=rolling)
    task = found.tasks["own_rolling"]
    expected = {
        "none": pico.plain("llama"),
        "all": pico.peft("llama", pico.adapter("llama")),
        "attention": pico.peft("llama", pico.narrowed("llama", "attention")),
        "ffn": pico.peft("llama", pico.narrowed("llama", "ffn")),
    }
    for mode, model in expected.items():
        assert task.modes[mode].scores == reference(model, tokenizer, rolling), mode
    assert len({task.modes[mode].scores["word_perplexity,none"] for mode in MODES}) == 4
    assert task.metric == "word_perplexity,none"
    assert not task.higher_is_better
    assert task.modes["none"].values == {}  # a perplexity is no mean over items
    assert summarise(found).rows[0].differences == {}


def test_the_base_is_loaded_once_and_stays_as_it_was(pico, tokenizer, choices, monkeypatch):
    model = pico.taia("llama").train()
    model.inference_modules = "ffn"
    loads = []
    monkeypatch.setattr(TAIAForCausalLM, "from_pretrained", lambda *_, **__: loads.append(1))
    monkeypatch.setattr(tokenizer, "padding_side", "right")  # other tests share the tokenizer
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, choices, MODES, tokenizer=tokenizer, limit=2)
    assert not loads
    assert model.training
    assert model.inference_modules == "ffn"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert tokenizer.padding_side == "right"


def test_results_say_what_was_run(pico, tokenizer, choices, texts, tmp_path):
    seen = []
    out = tmp_path / "results.json"
    found = evaluate(
        pico.taia("llama"),
        [choices, texts],
        ["none", {"attention": 1, "ffn": 0.5}],
        tokenizer=tokenizer,
        limit=5,
        gen_kwargs={"max_gen_toks": 4},
        out=out,
        progress=lambda *step: seen.append(step),
    )
    assert Results.load(out) == found
    assert list(found.tasks) == ["choices", "texts"]
    assert list(found.tasks["choices"].modes) == ["none", "attention=1, ffn=0.5"]
    assert found.tasks["choices"].modes["attention=1, ffn=0.5"].setting == {"attention": 1.0, "ffn": 0.5}
    assert [task.metric for task in found.tasks.values()] == ["acc,none", "exact_match,none"]
    assert all(
        len(task.modes["none"].values[task.metric]) == 5 == len(set(task.items)) for task in found.tasks.values()
    )
    settings = dict(found.settings)
    assert settings.pop("inputs").keys() == {"tokenizer", "generation settings", "quantisation"}
    assert settings == {
        "limit": 5,
        "seed": 1234,
        "chat_template": False,
        "system_instruction": None,
        "gen_kwargs": {"max_gen_toks": 4},
    }
    assert found.environment["versions"]["torch"] == torch.__version__.partition("+")[0] or torch.__version__
    assert {"device", "name", "processes", "threads"} <= found.environment["hardware"].keys()
    assert found.model.base_model == str(pico.base("llama").resolve())
    assert found.model.adapter_sha256 == taia_hub.hub.sha256(pico.adapter("llama") / "adapter_model.safetensors")
    assert seen[-1] == ("evaluation", 20, 20)
    assert [step[1] for step in seen] == sorted(step[1] for step in seen)
    assert len({step[1] for step in seen}) > 5  # it moves within a task too


def test_a_second_run_does_only_what_is_missing(pico, tokenizer, choices, texts, tmp_path, monkeypatch):
    model, out = pico.taia("llama"), tmp_path / "results.json"
    keywords = {"tokenizer": tokenizer, "gen_kwargs": {"max_gen_toks": 4}, "out": out}
    evaluate(model, choices, ["none"], **keywords)
    ran = []
    run = taia_hub.evaluation.harness.HarnessTask.run
    monkeypatch.setattr(
        taia_hub.evaluation.harness.HarnessTask,
        "run",
        lambda self, session, advance: (
            ran.append((self.blank.key, model.status().inference_modules)) or run(self, session, advance)
        ),
    )
    first = evaluate(model, [choices, texts], ["none", "all"], **keywords)
    assert ran == [("choices", "all"), ("texts", "none"), ("texts", "all")]
    ran.clear()
    assert evaluate(model, [choices, texts], ["none", "all"], **keywords) == first
    assert not ran


def test_an_interrupted_run_ends_as_one_that_was_not(pico, tokenizer, choices, texts, tmp_path, monkeypatch):
    model, out = pico.taia("llama"), tmp_path / "results.json"
    keywords = {"tokenizer": tokenizer, "gen_kwargs": {"max_gen_toks": 4}}
    whole = evaluate(model, [choices, texts], MODES, **keywords)
    run = taia_hub.evaluation.harness.HarnessTask.run

    def interrupted(self, session, advance):
        if len(Results.load(out).tasks["choices"].modes) == 3 if out.exists() else False:
            raise KeyboardInterrupt
        return run(self, session, advance)

    with monkeypatch.context() as patch:
        patch.setattr(taia_hub.evaluation.harness.HarnessTask, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, [choices, texts], MODES, out=out, **keywords)
    assert list(Results.load(out).tasks["choices"].modes) == ["none", "attention", "ffn"]
    resumed = evaluate(model, [choices, texts], MODES, out=out, **keywords)

    def scores(found):
        return {key: {mode: one.values for mode, one in task.modes.items()} for key, task in found.tasks.items()}

    assert scores(resumed) == scores(whole)


def test_a_run_that_was_interrupted_inside_a_group_goes_on(pico, tokenizer, rolling, tmp_path, monkeypatch):
    task = (rolling / "rolling.yaml").read_text()
    (rolling / "second.yaml").write_text(task.replace("own_rolling", "own_second"))
    (rolling / "group.yaml").write_text("group: own_group\ntask:\n  - own_rolling\n  - own_second\n")
    keywords = {"tokenizer": tokenizer, "include_path": rolling, "out": tmp_path / "r.json"}
    run = taia_hub.evaluation.harness.HarnessTask.run

    def interrupted(self, session, advance):
        if self.blank.key == "own_second":
            raise KeyboardInterrupt
        return run(self, session, advance)

    with monkeypatch.context() as patch:
        patch.setattr(taia_hub.evaluation.harness.HarnessTask, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(pico.taia("llama"), "own_group", ["none"], **keywords)
    assert list(Results.load(tmp_path / "r.json").tasks) == ["own_rolling"]
    found = evaluate(pico.taia("llama"), "own_group", ["none"], **keywords)
    assert list(found.tasks) == ["own_rolling", "own_second"]


def test_changed_prompts_and_examples_are_refused(pico, tokenizer, choices, rolling, tmp_path, monkeypatch):
    out, hint = tmp_path / "r.json", "its prompts, examples, or"
    keywords = {"tokenizer": tokenizer, "include_path": rolling, "out": out}
    evaluate(pico.taia("llama"), "own_rolling", ["none"], **keywords)
    path = rolling / "rolling.yaml"
    path.write_text(path.read_text().replace('doc_to_text: ""', 'doc_to_text: "say"'))
    taia_hub.evaluation.catalogue._manager.cache_clear()
    with pytest.raises(ConfigError, match=hint):
        evaluate(pico.taia("llama"), "own_rolling", ["all"], **keywords)

    examples = write(tmp_path / "examples.jsonl", lambda number: choice(number + 10), count=4)
    keywords = {"tokenizer": tokenizer, "num_fewshot": 2, "fewshot_path": examples, "out": tmp_path / "shots.json"}
    evaluate(pico.taia("llama"), choices, ["none"], **keywords)
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")  # as `accelerate launch` sets it: each process draws examples of its own
        with pytest.raises(ConfigError, match=hint):
            evaluate(pico.taia("llama"), choices, ["all"], **keywords)
    write(examples, lambda number: choice(number + 11), count=4)
    with pytest.raises(ConfigError, match=hint):
        evaluate(pico.taia("llama"), choices, ["all"], **keywords)


def test_another_greatest_length_of_answers_is_refused(pico, tokenizer, tmp_path):
    (tmp_path / "prompts.txt").write_text("say a\nsay b\n")
    keywords = {"tokenizer": tokenizer, "out": tmp_path / "r.json"}
    evaluate(
        pico.taia("llama"), (), ["none"], units=[safety_task(tmp_path / "prompts.txt", max_new_tokens=2)], **keywords
    )
    longer = safety_task(tmp_path / "prompts.txt", max_new_tokens=3)
    with pytest.raises(ConfigError, match="its prompts, examples, or answers' greatest length"):
        evaluate(pico.taia("llama"), (), ["all"], units=[longer], **keywords)


def test_two_prompt_files_of_one_name_are_refused(pico, tokenizer, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "prompts.txt").write_text(f"say {folder}\n")
    units = [safety_task(tmp_path / folder / "prompts.txt") for folder in ("a", "b")]
    with pytest.raises(ConfigError, match="one would overwrite the other"):
        evaluate(pico.taia("llama"), (), ["none"], units=units, tokenizer=tokenizer)


def test_a_score_that_is_no_number_is_refused_and_the_rest_is_kept(pico, tokenizer, choices, rolling, tmp_path):
    model = pico.taia("llama")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and "mlp" in name:
                parameter.fill_(torch.nan)
    keywords = {"tokenizer": tokenizer, "include_path": rolling, "out": tmp_path / "r.json"}
    with pytest.raises(ConfigError, match="The task 'own_rolling' gave word_perplexity,none=nan"):
        evaluate(model, "own_rolling", ["none", "all"], **keywords)
    assert list(Results.load(tmp_path / "r.json").tasks["own_rolling"].modes) == ["none"]


def test_the_environment_of_every_run_is_kept(pico, tokenizer, choices, tmp_path, monkeypatch):
    out = tmp_path / "r.json"
    evaluate(pico.taia("llama"), choices, ["none"], tokenizer=tokenizer, out=out)
    monkeypatch.setattr(taia_hub.common.environment.metadata, "version", lambda package: "99")
    same = evaluate(pico.taia("llama"), choices, ["none"], tokenizer=tokenizer, out=out)
    assert "earlier" not in same.environment  # nothing was run
    found = evaluate(pico.taia("llama"), choices, ["none", "all"], tokenizer=tokenizer, out=out)
    assert found.environment["versions"]["torch"] == "99"
    assert found.environment["earlier"] == [same.environment]


def _template(model, tokenizer, base):
    tokenizer.chat_template = tokenizer.chat_template.replace("?", "!")


def _token(model, tokenizer, base):
    tokenizer.add_tokens(["sea"])


def _generation(model, tokenizer, base):
    model.generation_config.repetition_penalty = 1.5


def _weights(model, tokenizer, base):
    path = base / "model.safetensors"
    stat = path.stat()
    save_file({name: one + 1 for name, one in load_file(path).items()}, path, {"format": "pt"})
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _configuration(model, tokenizer, base):
    values = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**values, "rope_theta": 9.0}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_template, "the chat template is another now"),
        (_token, "the tokenizer is another now"),
        (_generation, "the generation settings are others now"),
        (_weights, "the weights are others"),
        (_configuration, "the configuration is another"),
    ],
)
def test_what_answers_depend_on_is_known_again(pico, tokenizer, choices, tmp_path, change, message):
    """Two chat templates or bases under one table would be compared item by item."""
    base, tokenizer = shutil.copytree(pico.base("llama"), tmp_path / "base"), copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{% for one in messages %}{{ one['content'] }} ? {% endfor %}"
    out, adapter = tmp_path / "r.json", pico.adapter("llama")
    model = TAIAForCausalLM.from_adapter(base, adapter)
    keywords = {"tokenizer": tokenizer, "out": out, "limit": 2}
    evaluate(model, choices, ["none"], **keywords)
    evaluate(TAIAForCausalLM.from_adapter(base, adapter), choices, ["none", "all"], **keywords)
    before = out.read_bytes()
    change(model, tokenizer, base)
    with pytest.raises(ConfigError, match=message):
        evaluate(model, choices, ["ffn"], **keywords)
    assert out.read_bytes() == before


def test_results_of_an_earlier_version_are_completed(pico, tokenizer, choices, tmp_path):
    out = tmp_path / "r.json"
    evaluate(pico.taia("llama"), choices, ["none"], tokenizer=tokenizer, out=out, limit=2)
    values = json.loads(out.read_text())
    del values["settings"]["inputs"], values["model"]["base_files"]
    out.write_text(json.dumps(values))
    found = evaluate(pico.taia("llama"), choices, ["none", "all"], tokenizer=tokenizer, out=out, limit=2)
    assert found.modes == ("none", "all")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit": 3}, "limit=None; now it is 3"),
        ({"seed": 1}, "seed=1234; now it is 1"),
        ({"gen_kwargs": {"max_gen_toks": 9}}, "gen_kwargs=None; now it is"),
    ],
)
def test_results_of_other_settings_are_refused(pico, tokenizer, choices, tmp_path, change, message):
    out = tmp_path / "results.json"
    evaluate(pico.taia("llama"), choices, ["none"], tokenizer=tokenizer, out=out)
    before = out.read_bytes()
    with pytest.raises(ConfigError, match=message):
        evaluate(pico.taia("llama"), choices, ["none", "all"], tokenizer=tokenizer, out=out, **change)
    assert out.read_bytes() == before
    evaluate(pico.taia("llama"), choices, ["all"], tokenizer=tokenizer, out=out, overwrite=True, **change)
    assert list(Results.load(out).tasks["choices"].modes) == ["all"]


def test_results_of_another_model_are_refused(pico, tokenizer, choices, tmp_path):
    out = tmp_path / "results.json"
    evaluate(pico.taia("llama"), choices, ["none"], tokenizer=tokenizer, out=out)
    other = pico.adapter("llama", label="other", seed=7)
    model = TAIAForCausalLM.from_adapter(pico.base("llama"), other)
    with pytest.raises(ConfigError, match=r"another model than .*: its adapter has the sha256"):
        evaluate(model, choices, ["all"], tokenizer=tokenizer, out=out)
    rescaled = shutil.copytree(pico.adapter("llama"), tmp_path / "rescaled")
    config_path = rescaled / "adapter_config.json"
    config = json.loads(config_path.read_text())
    config_path.write_text(json.dumps({**config, "lora_alpha": config["lora_alpha"] * 2}))
    model = TAIAForCausalLM.from_adapter(pico.base("llama"), rescaled)
    with pytest.raises(ConfigError, match=r"its adapter_config.json says something else"):
        evaluate(model, choices, ["all"], tokenizer=tokenizer, out=out)
    changed = pico.taia("llama")
    with torch.no_grad():
        next(p for name, p in changed.named_parameters() if "lora_B" in name).add_(1)
    with pytest.raises(ConfigError, match="its adapter has the sha256"):
        evaluate(changed, choices, ["all"], tokenizer=tokenizer, out=out)


def test_results_on_another_revision_of_the_base_are_refused(online, choices, tmp_path):
    out = tmp_path / "results.json"
    evaluate(online.taia, choices, ["none"], out=out)
    found = Results.load(out)
    assert found.model.base_revision == online.base_sha
    assert found.model.name == online.taia
    assert found.model.revision == online.api.model_info(online.taia).sha
    dataclasses.replace(found, model=dataclasses.replace(found.model, base_revision="0" * 40)).save(out)
    with pytest.raises(ConfigError, match=f"revision {online.base_sha[:12]}…, not 000000000000"):
        evaluate(online.taia, choices, ["all"], out=out)


def test_a_file_that_changed_is_refused(pico, tokenizer, choices, tmp_path):
    out = tmp_path / "results.json"
    evaluate(pico.taia("llama"), choices, ["none"], tokenizer=tokenizer, out=out)
    write(choices, choice, count=5)
    with pytest.raises(ConfigError, match=r"task 'choices' is not the one in .*: its data set changed"):
        evaluate(pico.taia("llama"), choices, ["all"], tokenizer=tokenizer, out=out)


def test_shots_stand_apart(pico, tokenizer, choices):
    found = evaluate(pico.taia("llama"), choices, ["none"], tokenizer=tokenizer, num_fewshot=[0, 2])
    assert {key: task.num_fewshot for key, task in found.tasks.items()} == {"choices@0": 0, "choices@2": 2}
    assert found.tasks["choices@0"].items == found.tasks["choices@2"].items


def test_groups_of_lm_eval_are_groups_of_the_results(tmp_path, rolling):
    (rolling / "group.yaml").write_text("group: own_group\ntask:\n  - own_rolling\ngroup_alias: Own\n")
    tasks, groups = load_tasks(EvaluationOptions(["own_group"], include_path=[rolling]))
    assert [task.blank.key for task in tasks] == ["own_rolling"]
    assert groups["own_group"].title == "Own"
    assert groups["own_group"].tasks == ("own_rolling",)
    assert not groups["own_group"].pooled


@pytest.mark.parametrize(
    ("tasks", "error", "message"),
    [
        (["comonsense_qa"], ConfigError, "no task 'comonsense_qa'. Did you mean 'commonsense_qa'"),
        (["no_such_*"], ConfigError, "No task matches 'no_such_"),
        (["missing.yaml"], RepositoryError, "no task file 'missing.yaml'"),
        (["missing.jsonl"], RepositoryError, "'missing.jsonl' cannot be read"),
        ([], ConfigError, "No task was given"),
    ],
)
def test_a_task_that_does_not_exist_is_refused_before_the_model_is_loaded(tasks, error, message):
    with pytest.raises(error, match=message):
        evaluate("no/model", tasks)


def test_a_bad_line_evaluates_nothing(pico, tokenizer, choices, tmp_path):
    lines = choices.read_text().splitlines()
    lines[2] = json.dumps({**choice(2), "answer": "Z"})
    lines[4] = "{"
    choices.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"choices.jsonl:3: the answer 'Z' is no letter from A to C(.|\n)*jsonl:5"):
        evaluate(pico.taia("llama"), choices, tokenizer=tokenizer, out=tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()


def test_a_broken_task_file_is_named(rolling):
    (rolling / "rolling.yaml").write_text("task: own_rolling\noutput_type: nonsense\ndataset_path: json\n")
    with pytest.raises((ConfigError, RepositoryError), match=r"(A task cannot be loaded|A data set cannot be read)"):
        evaluate("no/model", "own_rolling", include_path=rolling)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"modes": ["atention"]}, SettingError, "atention"),
        ({"modes": []}, ConfigError, "No mode was given"),
        ({"modes": ["none", {"ffn@9": 1}]}, SettingError, "ffn@9"),
        ({"limit": 0}, ConfigError, "limit=0"),
        ({"limit": 1.5}, ConfigError, "limit=1.5"),
        ({"limit": True}, ConfigError, "limit=True"),
        ({"seed": -1}, ConfigError, "seed=-1"),
        ({"seed": "x"}, ConfigError, "seed='x'"),
        ({"tasks": None}, ConfigError, "tasks=None"),
        ({"tasks": [3]}, ConfigError, "are no names or paths"),
        ({"modes": None}, ConfigError, "modes=None"),
        ({"modes": "nonsense"}, SettingError, "Unknown inference modules 'nonsense'"),
        ({"num_fewshot": "0"}, ConfigError, "num_fewshot='0'"),
        ({"num_fewshot": []}, ConfigError, "num_fewshot="),
        ({"gen_kwargs": "a=1"}, ConfigError, "gen_kwargs='a=1'"),
        ({"chat_template": True}, ConfigError, "no chat template"),
        ({"num_fewshot": 99}, ConfigError, "items to take examples from, not 99"),
        ({"num_fewshot": [-1]}, ConfigError, "no list of different numbers"),
        ({"dtype": "float32"}, ConfigError, "'dtype' has no use for a loaded model"),
    ],
)
def test_bad_arguments_are_refused(pico, tokenizer, choices, keywords, error, message):
    keywords = dict(keywords)
    with pytest.raises(error, match=message):
        evaluate(pico.taia("llama"), keywords.pop("tasks", choices), tokenizer=tokenizer, **keywords)


def test_without_lm_eval_the_extra_is_named(pico, tokenizer, choices, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError) as caught:
        evaluate(pico.taia("llama"), choices, tokenizer=tokenizer)
    assert "[eval]" in caught.value.hint


def test_prompts_are_a_task(pico, tokenizer, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the sea\nthe sun\nthe tree\n")
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("".join(json.dumps({"prompt": word, "reference": "x" * 99}) + "\n" for word in "abc"))
    model = pico.taia("llama")
    attack = safety_task(prompts, judge=lambda prompt, output: len(output) > 3, max_new_tokens=4)
    wins = win_rate_task(rows, judge=lambda prompt, a, b: float(len(a) > len(b)), max_new_tokens=4)
    found = evaluate(model, modes=["none", "all"], units=[attack, wins], tokenizer=tokenizer)
    task = found.tasks["attack_success_rate:prompts"]
    assert not task.higher_is_better
    assert set(task.modes["all"].values) == {"attack_success_rate", "refusal_rate"}
    assert "test_harness:" in task.version  # the judge is named: another one's numbers may not stand beside these
    assert found.tasks["win_rate:pairs"].modes["all"].scores == {"win_rate": 0.0}


@pytest.mark.parametrize("name", ["judges", "no_such_module:f", "math:no_such", "math:pi", ":f"])
def test_a_judge_that_is_not_there_is_refused(name):
    with pytest.raises(ConfigError, match="The judge"):
        find_judge(name)


def test_the_command_alone_finds_judges_of_the_working_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "judges_of_mine.py").write_text("pi = 3\n")
    (tmp_path / "prompts.txt").write_text("the sea\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", path := [one for one in sys.path if one not in ("", str(tmp_path))])
    before = list(path)
    with pytest.raises(ConfigError, match="cannot be imported: No module named"):
        find_judge("judges_of_mine:pi")
    assert path == before  # a library leaves the search path alone
    with pytest.raises(SystemExit):
        main(["eval", "org/model", "--prompts", "prompts.txt", "--judge", "judges_of_mine:pi"])
    assert "'judges_of_mine:pi' is no function" in " ".join(capsys.readouterr().err.split())


def test_vllm_commands(online, monkeypatch):
    monkeypatch.setattr("taia_hub.evaluation.vllm.choose_device", lambda: "cuda")
    assert "float32" not in "".join(vllm_commands(online.taia, ["mmlu"], ["all"]))  # its LoRAs there are of 16 bits
    monkeypatch.undo()
    lines = vllm_commands(online.taia, ["mmlu", "taia_svamp"], ["none", "all", "attention"], num_fewshot=[0, 5])
    assert len(lines) == 7
    model = f"pretrained={online.base},revision={online.base_sha},tokenizer={snapshot_download(online.taia)}"
    model += ",dtype=float32"  # which the base is saved in
    assert f"{model} --tasks mmlu,taia_svamp" in lines[0]
    assert "lora_local_path" not in lines[0]
    assert "adapter,max_lora_rank=8 " in lines[2]
    sha = online.api.model_info(online.taia).sha
    assert lines[4] == (
        f"taia export {online.taia} --mode attention --out ./adapter-attention --revision {sha} --engine vllm"
    )
    assert "lora_local_path=./adapter-attention,max_lora_rank=8 " in lines[5]
    with pytest.raises(ConfigError, match="takes no JSONL file"):
        vllm_commands(online.taia, ["a.jsonl"], ["all"])


def test_the_command_writes_completes_and_prints(online, choices, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(words):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0

    run(["eval", online.taia, "--task", str(choices), "--mode", "none", "--limit", "3"])
    assert "choices" in capsys.readouterr().out
    name = "org--model-taia.results.json"
    assert list(Results.load(Path(name)).tasks["choices"].modes) == ["none"]
    assert not Path(RESULTS_FILE).exists()
    run(["eval", online.taia, "--task", str(choices), "--limit", "3", "--json"])
    assert list(json.loads(capsys.readouterr().out)["tasks"]["choices"]["modes"]) == list(MODES)
    run(["eval", online.taia, "--task", "mmlu", "--backend", "vllm", "--mode", "none"])
    assert capsys.readouterr().out.startswith("lm_eval run --model vllm")
    Path(name).rename(RESULTS_FILE)  # as it was named before
    run(["eval", online.taia, "--task", str(choices), "--limit", "3", "--mode", "attention+ffn"])
    assert list(Results.load(Path(RESULTS_FILE)).tasks["choices"].modes) == [*MODES, "attention+ffn"]
    assert not Path(name).exists()
    found = Results.load(Path(RESULTS_FILE))
    found = dataclasses.replace(found, model=dataclasses.replace(found.model, name="org/other", adapter_sha256="ab"))
    found.save(Path(RESULTS_FILE))  # another model's
    run(["eval", online.taia, "--task", str(choices), "--limit", "3", "--mode", "none"])
    assert Results.load(Path(name)).model.name == online.taia


def test_results_of_another_model_are_refused_before_one_is_loaded(online, choices, tmp_path, monkeypatch):
    out = tmp_path / "results.json"
    results = evaluate(online.taia, choices, ["none"], out=out)
    other = dataclasses.replace(
        results, model=dataclasses.replace(results.model, name="org/other", adapter_sha256="ab")
    )
    other.save(out)
    before = out.read_bytes()
    monkeypatch.setattr(TAIAForCausalLM, "from_pretrained", None)
    with pytest.raises(ConfigError, match=f"results of 'org/other', another model than '{online.taia}'"):
        evaluate(online.taia, choices, ["none"], out=out)
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-fewshot", "a"], "is no list of numbers"),
        (["--num-fewshot", "²"], "is no list of numbers"),
        (["--judge", "a:b"], "--judge judges nothing without prompts"),
        (["--preference-judge", "a:b"], "--preference-judge judges nothing"),
        (["--batch-size", "foo"], "batch_size='foo' is no batch size"),
        (["--backend", "tgi"], "The backend 'tgi' is not known"),
        (["--win-rate", "x.jsonl"], "--win-rate needs a judge"),
        ([], "No task was given"),
    ],
)
def test_the_command_refuses_bad_words(words, message, capsys):
    with pytest.raises(SystemExit):
        main(["eval", "org/model", *words])
    assert message in capsys.readouterr().err


def test_two_processes_give_what_one_gives(pico, tokenizer, choices, tmp_path):
    folder = tmp_path / "model"
    pico.taia("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    out = tmp_path / "two.json"
    assert in_two_processes(functools.partial(evaluate, out=out), str(folder), str(choices)) == [None, None]
    two = Results.load(tmp_path / "two.json")
    one = evaluate(str(folder), choices)
    assert two.environment["hardware"]["processes"] == 2
    for mode in MODES:
        assert two.tasks["choices"].modes[mode].values == one.tasks["choices"].modes[mode].values


@pytest.mark.slow
def test_a_real_model_on_real_items(smollm2, tmp_path):
    """6 items each of two kinds, all four modes; `none` gives lm-eval's numbers on the bare base, item by item.

    Of every mode it is shown on a random model: `test_every_mode_scores_as_lm_eval_on_the_model_it_stands_for`.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    torch.manual_seed(0)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    tuned = get_peft_model(base, lora)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.mul_(0.4)
    tuned.save_pretrained(tmp_path / "adapter")
    data = Path(__file__).parents[1] / "data" / "eval"
    files = [tmp_path / "commonsense.jsonl", tmp_path / "numbers.jsonl"]
    for source, target in zip(("commonsense_qa_items.jsonl", "svamp_items.jsonl"), files, strict=True):
        shutil.copy(data / source, target)
    model = TAIAForCausalLM.from_adapter(smollm2, tmp_path / "adapter", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    keywords = {"gen_kwargs": {"max_gen_toks": 2}}
    found = evaluate(model, files, MODES, tokenizer=tokenizer, limit=6, out=tmp_path / "r.json", **keywords)

    bare = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    lm = HFLM(bare, tokenizer=AutoTokenizer.from_pretrained(smollm2), batch_size=8)
    for task in load_tasks(EvaluationOptions(files, limit=6))[0]:
        alone = simple_evaluate(lm, tasks=[task.task], limit=6, bootstrap_iters=0, apply_chat_template=True, **keywords)
        metric = task.blank.metric.partition(",")[0]
        samples = sorted(alone["samples"][task.blank.name], key=lambda sample: sample["doc_id"])
        ours = found.tasks[task.blank.key]
        assert ours.modes["none"].values[task.blank.metric] == tuple(float(row[metric]) for row in samples)
        assert ours.modes["none"].scores[task.blank.metric] == alone["results"][task.blank.name][task.blank.metric]
        assert len(ours.items) == 6
    values = [found.tasks["commonsense"].modes[mode].values["acc,none"] for mode in MODES]
    assert len(set(values)) > 1  # the modes do differ
    row = summarise(found).rows[0]
    assert set(row.scores) == set(MODES)
    assert 0 <= row.scores["none"].value <= 1
