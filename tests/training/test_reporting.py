"""The report at the end of a training: what is measured, what it may cost, and that it goes on after a kill."""

import dataclasses
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM

from taia_hub import TAIAForCausalLM, cards
from taia_hub.errors import ConfigError
from taia_hub.repository import card_updating
from taia_hub.repository.card_request import CardRequest
from taia_hub.results import Results
from taia_hub.results.retained import HOLDOUT, KEPT, KL, LOSS, RETENTION
from taia_hub.retaining import measure, read_texts
from taia_hub.retaining.tasks import blank_retention
from taia_hub.training import TrainingRecipe, plan_training, report_plan, reporting, running, train
from taia_hub.training.data import prepare_data
from taia_hub.training.encoding import Encoder
from taia_hub.training.report_plan import _fitting, report_settings, report_words

LABELS = ["none", "attention", "ffn", "all"]


@pytest.fixture(scope="module")
def base(pico, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "llama"
    shutil.copytree(pico.base("llama"), folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    """240 questions, each another one, whose answers can be learnt."""
    rng = random.Random(0)
    asked = {"".join(rng.choices("abcdefgh", k=rng.randint(4, 9))) for _ in range(300)}
    path = tmp_path_factory.mktemp("items") / "items.jsonl"
    answers = ["the cat", "a dog", "no", "yes, the hat"]
    rows = [{"prompt": one, "completion": answers[ord(one[0]) % 4]} for one in sorted(asked)[:240]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def recipe(base, items):
    return TrainingRecipe(
        base=base, data=(items,), batch_size=16, rank=4, alpha=8, learning_rate=3e-2, max_steps=6, dtype="float32"
    )


@pytest.fixture(scope="module")
def reported(recipe, tmp_path_factory):
    """A training with the whole report, which is only read."""
    return train(recipe, out=tmp_path_factory.mktemp("reported") / "model", report=True)


# --- What is measured ----------------------------------------------------------------------------------------------
def check_report(done, recipe, tokenizer, labels):
    """Checks the results of a training against the repository, loaded as a user does, and its own held-out items."""
    found = Results.load(done.folder / "taia_results.json")
    assert found == done.results
    held, texts = found.tasks[HOLDOUT], found.tasks[RETENTION]
    assert texts.prompts_sha256 == blank_retention(read_texts(), ()).prompts_sha256  # `taia eval --retention` goes on
    assert list(held.modes) == list(texts.modes) == labels
    rows = prepare_data(recipe).held_out
    assert len(rows) == len(held.items) == 16
    encoded = [Encoder(tokenizer).encode(row["messages"]) for row in rows]
    model = AutoModelForCausalLM.from_pretrained(done.folder, dtype=found.model.dtype)
    settings = [mode.setting for mode in held.modes.values()]
    for mode, losses in zip(held.modes.values(), measure(model, encoded, settings, divergence=False), strict=True):
        assert mode.values[LOSS] == pytest.approx(losses.nats, rel=1e-4)
    assert held.modes["all"].scores[LOSS] < held.modes["none"].scores[LOSS] - 0.3
    assert set(texts.modes["all"].scores) == {KL, LOSS, KEPT}
    assert texts.modes["none"].scores[KL] == 0
    assert texts.modes["all"].scores[KL] > 0
    assert "lm-eval" not in found.environment["versions"]


def test_modes_are_measured_on_held_out_items_and_general_texts(reported, recipe, tokenizer):
    check_report(reported, recipe, tokenizer, LABELS)
    record = json.loads((reported.folder / "taia_training.json").read_text())
    assert record["composition"]["held_out"]["items"] == 16
    assert record["items"] == 96
    assert record["hyperparameters"]["held out"] == "16 items"


@pytest.mark.parametrize("method", ["molora", "full"])
def test_every_method_is_measured_as_it_is_loaded(recipe, tokenizer, tmp_path, method):
    one = recipe.replace(method=method, learning_rate=1e-2)
    done = train(one, out=tmp_path / "out", report=True)
    check_report(done, one, tokenizer, LABELS if method == "molora" else [*LABELS, "attention+other"])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_results_name_the_base_as_the_repository_does(taia, base, recipe, tmp_path, monkeypatch, method):
    monkeypatch.chdir(Path(base).parent)
    one = recipe.replace(base=f"./{Path(base).name}", method=method, max_steps=1)
    done = train(one, out=tmp_path / "out", report=True)
    config = json.loads((done.folder / "config.json").read_text())
    assert done.results.model.base_model == config["base_model_name_or_path"]
    status, _, err = taia("card", done.folder, "--check")
    assert (status, "another model" in err) == (0, False), err


def test_the_report_changes_no_weight_and_is_on_the_card(reported, recipe, tmp_path):
    plain = train(recipe, out=tmp_path / "plain", report=False)
    name = "adapter/adapter_model.safetensors"
    assert (plain.folder / name).read_bytes() == (reported.folder / name).read_bytes()
    assert plain.results is None
    assert not (plain.folder / "taia_results.json").exists()
    card = (reported.folder / "README.md").read_text()
    assert (
        card.index("## Which mode to use") < card.index("| mode | loss | gain | keeps, % | KL |") < card.index("## Use")
    )
    assert "`all`" in card.partition("## Which mode to use")[2].partition("| mode |")[0]
    assert "| held out | `16 items` |" in card
    assert "Which mode to use" not in (plain.folder / "README.md").read_text()


def test_the_card_with_a_report_holds(reported):
    findings = card_updating.check_repository_card(str(reported.folder), CardRequest())
    assert findings
    assert not [str(one) for one in findings if not one.ok or one.warning]


def test_a_finished_training_shows_its_report_again(reported, recipe):
    again = train(recipe, out=reported.folder)
    assert not again.is_new
    assert again.results == reported.results


def test_what_another_training_reported_goes_with_it(reported, recipe, tmp_path):
    folder = shutil.copytree(reported.folder, tmp_path / "model")
    done = train(recipe.replace(seed=1), out=folder, resume=False, report=False)
    assert done.is_new
    assert not (folder / "taia_results.json").exists()


def test_settings_that_are_published_are_measured_too():
    assert report_settings(TrainingRecipe()) == ("none", "attention", "ffn", "all")
    assert report_settings(TrainingRecipe(inference_modules={"ffn": 0.5}))[4] == {"ffn": 0.5}
    assert report_settings(TrainingRecipe(inference_modules="TAIF")) == ("none", "attention", "ffn", "all")


def test_packed_and_noisy_mixtures_are_measured_on_whole_and_right_answers(recipe, items, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"prompt": f"h{'g' * n}", "completion": "no"}) + "\n" for n in range(60)))
    one = recipe.replace(
        data=(),
        in_domain=items,
        ood=str(other),
        ood_ratio=0.2,
        noise_ratio=0.5,
        packing=True,
        max_length=100,
        max_steps=2,
    )
    done = train(one, out=tmp_path / "out", report=True)
    rows = prepare_data(one).held_out["messages"]
    answers = ["the cat", "a dog", "no", "yes, the hat"]
    assert all(turns[1]["content"] == answers[ord(turns[0]["content"][0]) % 4] for turns in rows)
    assert len(done.results.tasks[HOLDOUT].items) == 16
    assert done.results.tasks[HOLDOUT].dataset.path == "items.jsonl"


# --- What it may cost ------------------------------------------------------------------------------------------------
def test_a_report_takes_what_fits_or_ten_or_none():
    assert _fitting([10] * 40, [20] * 64, None) == (40, 64)
    assert _fitting([10] * 40, [20] * 64, 10_000) == (40, 64)
    assert _fitting([10] * 40, [20] * 64, 700) == (36, 17)  # a half each
    assert _fitting([10] * 40, [20] * 64, 380) == (38, 0)  # ten texts are more than a half, and all is the items'
    assert _fitting([10] * 12, [20] * 64, 480) == (12, 18)  # what the items leave is the texts'
    assert _fitting([10] * 40, [20] * 64, 99) == (0, 0)
    assert _fitting([], [20] * 64, 300) == (0, 15)
    assert _fitting([10] * 3, [], 30) == (3, 0)  # all there are


@pytest.mark.parametrize(("epochs", "held", "texts"), [(0.2, 0, 0), (3.0, 16, 0), (90.0, 16, 52)])
def test_the_plan_says_what_the_report_costs(recipe, epochs, held, texts):
    plan = plan_training(recipe.replace(epochs=epochs, max_steps=None))
    assert plan.held_out == 16
    assert (plan.report.items, plan.report.texts) == (held, texts)
    assert plan.report.share <= 0.05
    assert ("held-out items" in str(plan.notes)) == (held == 0)
    told = "16 items held out and none of them measured: --holdout 0 trains on them instead." in plan.notes
    assert told == (held == 0)
    assert ("general texts" in str(plan.notes)) == (texts == 0)
    assert report_words(plan).startswith("16 held-out items" if held else "none, because it would take too much of so")


def test_several_processes_train_and_one_measures(recipe):
    job = running.prepare_job(recipe, None, None, None)
    plan = plan_training(recipe.replace(epochs=60.0, max_steps=None))
    alone, _ = report_plan.plan_report(job, plan, None)
    shared, rows = report_plan.plan_report(job, dataclasses.replace(plan, processes=2), None)
    assert 0 < shared.report.texts < alone.report.texts
    assert len(rows.texts) == shared.report.texts
    assert shared.report.share <= 0.05


def test_no_report_is_no_plan_of_one(recipe):
    plan = plan_training(recipe, report=False)
    assert plan.report is None
    assert not [note for note in plan.notes if "report" in note]
    assert plan_training(recipe, report=True).report.share > 0.05


def test_held_out_items_that_cannot_be_encoded_are_refused_before_the_training(recipe, monkeypatch):
    def refuse(self, messages):
        raise ConfigError("no such thing", "Mend it.")

    job = running.prepare_job(recipe, None, None, None)
    plan = plan_training(recipe)
    monkeypatch.setattr(Encoder, "encode", refuse)
    with pytest.raises(ConfigError, match=r"In the data 'items\.jsonl': no such thing"):
        report_plan.plan_report(job, plan, None)


# --- Stopped, and gone wrong ------------------------------------------------------------------------------------------
def test_a_report_that_was_stopped_goes_on(recipe, reported, tmp_path, monkeypatch):
    class Stop(BaseException):
        pass

    def stop(stage, done, total):
        if stage == "report" and done > 30:  # in the texts
            raise Stop

    monkeypatch.setattr(reporting, "_CHUNK", 10)
    with pytest.raises(Stop):
        train(recipe, out=tmp_path / "out", report=True, progress=stop)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".training"}
    told, measured = [], []
    real = reporting.measure
    monkeypatch.setattr(
        reporting, "measure", lambda model, rows, *a, **k: (measured.append(len(rows)), real(model, rows, *a, **k))[1]
    )

    done = train(recipe, out=tmp_path / "out", report=True, progress=lambda *one: told.append(one))

    assert ("training", 5, 6) not in told
    assert sum(measured) == 68 - 26  # 16 items and a chunk of texts were there
    before, now = reported.results, done.results
    assert now.model == dataclasses.replace(before.model, name=now.model.name)
    for key, task in now.tasks.items():
        assert task.items == before.tasks[key].items
        for label, mode in task.modes.items():
            for metric, values in mode.values.items():
                assert values == pytest.approx(before.tasks[key].modes[label].values[metric], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: out of\nluck"), MemoryError("none left")])
def test_a_training_is_not_lost_for_its_report(recipe, tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(reporting, "measure", fail)
    done = train(recipe, out=tmp_path / "out", report=True)
    assert done.results is None
    assert any(f"The report could not be made: {' '.join(str(error).split())}" in note for note in done.notes)
    assert done.notes == tuple(json.loads((done.folder / "taia_training.json").read_text())["notes"])
    assert TAIAForCausalLM.from_pretrained(done.folder)


def test_a_sharded_model_has_no_report():
    rows = SimpleNamespace(__bool__=lambda self: True)
    found, note = reporting.make_report(SimpleNamespace(state_dict={}), rows, None, None, None, None)
    assert found is None
    assert "the model is sharded" in note


# --- The command ------------------------------------------------------------------------------------------------------
def test_the_command_says_the_cost_before_and_the_table_after(recipe, tmp_path, capsys):
    from taia_hub.cli import main

    words = ["train", "--base", recipe.base, "--data", recipe.data[0], "--batch-size", "16", "--rank", "4"]
    words += ["--out", str(tmp_path / "out"), "--max-steps", "2", "--report"]

    def told(*more):
        with pytest.raises(SystemExit) as ended:
            main([*words, *more])
        assert not ended.value.code
        return capsys.readouterr()

    dry = told("--dry-run").out
    assert "; 16 held out" in dry
    assert "16 held-out items and 52 general texts under 4 modes: about" in dry
    plan = json.loads(told("--dry-run", "--json").out)["plan"]
    assert (plan["held_out"], plan["report"]["items"]) == (16, 16)
    ran = told()
    assert "report      16 held-out items" in ran.err
    assert "mode        loss" in ran.out
    assert json.loads(told("--json").out)["results"]["tasks"].keys() == {HOLDOUT, RETENTION}
    assert "report      none" in told("--no-report", "--dry-run").out


def test_a_published_training_has_the_report_in_its_commit(online, repo_id, items, monkeypatch):
    rendered = []
    render = cards.render_card
    monkeypatch.setattr(cards, "render_card", lambda *a, **k: (rendered.append(1), render(*a, **k))[1])
    one = TrainingRecipe(base=online.base, data=(items,), batch_size=16, rank=2, max_steps=2)

    done = train(one, push=repo_id, report=True)

    assert len(rendered) == 1
    assert done.results.model.base_revision == online.base_sha
    assert {"README.md", "taia_results.json"} <= online.files(repo_id).keys()
    assert len(online.api.list_repo_commits(repo_id)) <= 2  # that of the repository itself, and this one
    assert "keeps, %" in Path(online.api.hf_hub_download(repo_id, "README.md")).read_text()


def test_a_report_needs_no_lm_eval(recipe, tmp_path):
    code = (
        "import sys; sys.modules['lm_eval'] = None\n"
        "from pathlib import Path; from taia_hub.training import TrainingRecipe, train\n"
        f"recipe = TrainingRecipe.from_yaml({str(tmp_path / 'recipe.yaml')!r})\n"
        f"print(len(train(recipe, out=Path({str(tmp_path / 'out')!r}), report=True).results.tasks))"
    )
    (tmp_path / "recipe.yaml").write_text(recipe.replace(max_steps=1).to_yaml())
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert ran.stdout.strip().endswith("2"), ran.stderr[-2000:]
