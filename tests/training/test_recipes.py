"""The shipped recipes: found, whole, of the paper's numbers, and made into runs."""

from importlib import resources
from pathlib import Path

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder

import taia_hub
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.evaluation.tasks import TITLES
from taia_hub.reproducing import load_recipe
from taia_hub.reproducing.planning import list_differences, plan_runs
from taia_hub.training import TrainingRecipe
from taia_hub.training.recipe import RECIPES, recipe_names

NAMES = (
    *("data-scaling", "full", "lora", "lora-cot", "molora", "noisy-data"),
    *("ood-mixing-added", "ood-mixing-general", "ood-mixing-medical"),
    *("rank-sweep", "safety-benign", "safety-harmful", "safety-identity-shift", "taif", "toa"),
)
TABLE_2 = ("taia_math", "taia_bbh", "taia_commonsense_qa", "taia_logiqa", "taia_svamp", "taia_mmedbench", "mmlu")


@pytest.fixture
def items(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text('{"instruction": "say a", "output": "a"}\n')
    return str(path)


def brought(recipe, items):
    return {name: items for name in recipe.bring if name != "prompts"}


def test_every_recipe_of_the_paper_ships():
    assert recipe_names() == NAMES
    files = resources.files("taia_hub.training") / "recipes"
    for name in NAMES:
        assert (files / f"{name}.yaml").is_file()
        assert (files / "paper" / f"{name}.yaml").is_file()


def test_the_wheel_holds_every_recipe():
    root = Path(taia_hub.__file__).parents[1]
    found = {file.distribution_path for file in WheelBuilder(str(root)).recurse_included_files()}
    wanted = {f"taia_hub/training/recipes/{folder}{name}.yaml" for name in NAMES for folder in ("", "paper/")}
    assert wanted <= found


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_whole(name, items):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert "arXiv 2405.20192" in recipe.reference
    assert "\n" not in recipe.description
    assert recipe.tasks or "prompts" in recipe.bring
    assert set(recipe.tasks) <= set(TITLES)
    runs = plan_runs(recipe, brought(recipe, items))
    assert tuple(runs) == recipe.labels
    assert len({run.to_yaml() for run in runs.values()}) == len(runs)
    for table in recipe.paper:
        assert "github.com/pixas/TAIA_LLM" in table.source
        assert table.precision == "exact" or table.precision == "read off a picture, ±0.2"
        assert set(table.numbers) == set(recipe.labels)
        for modes in table.numbers.values():
            assert set(modes) == {"none", "all", "attention"}
            assert len({tuple(row) for row in modes.values()}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_what_is_trained_is_a_plain_training_recipe(name):
    trained = TrainingRecipe.load(name)
    assert trained.name == name
    assert trained.base in ("Qwen/Qwen1.5-1.8B-Chat", "meta-llama/Llama-2-7b-chat-hf")


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("safety") and name != "full"])
def test_hyperparameters_are_those_of_the_released_script(name):
    trained = TrainingRecipe.load(name)
    assert (trained.rank, trained.alpha, trained.dropout, trained.learning_rate) == (16, 32, 0.05, 2e-4)
    assert (trained.scheduler, trained.warmup_ratio, trained.weight_decay) == ("cosine", 0.03, 0.0)
    assert (trained.epochs, trained.max_length) == (1, 3072)
    assert trained.batch_size == (4 if name == "molora" else 64)


@pytest.mark.parametrize(
    ("name", "rate", "epochs", "batch"),
    [("harmful", 1e-3, 10, 10), ("identity-shift", 1e-3, 20, 10), ("benign", 2e-4, 1, 32)],
)
def test_hyperparameters_of_the_safety_runs(name, rate, epochs, batch):
    trained = TrainingRecipe.load(f"safety-{name}")
    assert (trained.rank, trained.alpha) == (32, 64)
    assert (trained.learning_rate, trained.epochs, trained.batch_size) == (rate, epochs, batch)


def test_rows_of_table_2_have_the_averages_of_the_paper():
    for name in ("lora", "lora-cot"):
        (table,) = load_recipe(name).paper
        remarks = " ".join(table.remarks)
        rows = {**table.numbers[name], **table.others}
        for label, row in rows.items():
            assert set(row) == {"taia_paper", *TABLE_2}
            mean = sum(row[task] for task in TABLE_2) / len(TABLE_2)
            if label not in remarks:  # the recipe says where the paper's own average is off
                assert row["taia_paper"] == pytest.approx(mean, abs=0.011), (name, label)


def test_numbers_stand_where_the_paper_has_them():
    (table,) = load_recipe("lora").paper
    assert table.find("lora", "attention", "taia_paper") == 35.21
    assert table.find("lora", "ffn", "taia_paper") is None
    (table,) = load_recipe("safety-harmful").paper
    assert table.find("safety-harmful", "all", "attack_success_rate:my_prompts") == 84.59
    small, large = load_recipe("ood-mixing-medical").paper
    assert (small.find("ood-80", "all", "taia_mmedbench_zh"), large.find("ood-80", "all", "taia_mmedbench_zh")) == (
        32.4,
        52.8,
    )
    (table,) = load_recipe("data-scaling").paper
    assert table.find("1800k", "attention", "taia_paper@0") == 40.5


def test_a_sweep_becomes_one_run_a_label(items):
    runs = plan_runs(load_recipe("rank-sweep"), {})
    assert {label: (run.rank["attention"], run.rank["ffn"]) for label, run in runs.items()} == {
        "ar4_fr4": (4, 4),
        "ar4_fr64": (4, 64),
        "ar64_fr4": (64, 4),
    }
    assert runs["ar4_fr64"].name == "rank-sweep-ar4_fr64"
    assert [run.noise_ratio for run in plan_runs(load_recipe("noisy-data"), {}).values()] == [0, 0.1, 0.3, 0.5]
    added = load_recipe("ood-mixing-added")
    sizes = [20_000 * run.ood_ratio / (1 - run.ood_ratio) for run in plan_runs(added, brought(added, items)).values()]
    assert sizes == pytest.approx([0, 20_000, 40_000, 60_000, 80_000])
    scaling = load_recipe("data-scaling")
    runs = plan_runs(scaling, {"data": items}, ["10k", "1k"])
    assert [(label, run.total) for label, run in runs.items()] == [("1k", 1000), ("10k", 10000)]


def test_ratios_of_the_mixing_figures_are_the_papers(items):
    for name, ratios in (("medical", [0, 0.2, 0.4, 0.6, 0.8]), ("general", [0, 0.25, 0.5, 0.75, 1])):
        recipe = load_recipe(f"ood-mixing-{name}")
        runs = plan_runs(recipe, brought(recipe, items)).values()
        assert [run.ood_ratio for run in runs] == ratios
        assert {(run.total, run.mixing, run.schedule) for run in runs} == {(20000, "replace", "uniform")}


@pytest.mark.parametrize(
    ("name", "changes", "labels", "message"),
    [
        ("rank-sweep", {}, ["ar64_fr"], "no run 'ar64_fr'. Did you mean 'ar64_fr4'"),
        ("rank-sweep", {"rank": 8}, [], "differ in rank"),
        ("lora", {"rang": 8}, [], "no field 'rang'. Did you mean 'rank'?"),
        ("lora", {"in_domain": "ITEMS"}, [], "has no use for in_domain"),
        ("ood-mixing-added", {"data": "ITEMS"}, [], "has no use for data"),
        ("ood-mixing-added", {"in_domain": "ITEMS"}, [], "needs data that you bring. ood: CoT-Collection"),
        ("safety-harmful", {}, [], "100 harmful instructions.*ships no harmful data"),
        ("safety-identity-shift", {}, [], "ten items.*aoa_10"),
        ("lora-cot", {}, [], "needs data that you bring. data: CoT-Collection"),
    ],
)
def test_wrong_choices_are_refused(name, changes, labels, message, items):
    changes = {key: items if value == "ITEMS" else value for key, value in changes.items()}
    with pytest.raises(ConfigError, match=message):
        plan_runs(load_recipe(name), changes, labels)


def test_a_missing_file_of_data_is_refused(tmp_path):
    with pytest.raises(RepositoryError, match="is no file here"):
        plan_runs(load_recipe("lora"), {"data": str(tmp_path / "gone.jsonl")})


def test_an_unknown_recipe_names_the_closest():
    with pytest.raises(ConfigError, match=r"no recipe 'safety-harmfull'\. Did you mean 'safety-harmful'") as caught:
        load_recipe("safety-harmfull")
    assert all(name in caught.value.hint for name in NAMES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a/b"}, "no name of a folder"),
        ({"sweep": {"../x": {}}}, "no name of a folder"),
        ({"sweep": [1]}, "keys with values are expected"),
        ({"bring": {"dat": "text"}}, "has the key 'dat'. Did you mean 'data'"),
        ({"evaluation": {"tasks": "taia_paper"}}, "a list of texts is expected"),
        ({"paper": [{"table": "1"}]}, "lacks a key"),
        ({"description": None}, "a text is expected"),
    ],
)
def test_a_recipe_file_with_a_wrong_key_is_refused(change, message, tmp_path):
    fields = {"name": "own", "description": "Own.", "reference": "None", "base": "org/base", "data": ["org/data"]}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(fields))
    assert load_recipe(path).labels == ("own",)
    path.write_text(yaml.safe_dump({**fields, **change}))
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)


def test_a_recipe_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(RepositoryError, match="cannot be read"):
        load_recipe(tmp_path / "gone.yaml")
    (tmp_path / "bad.yaml").write_text("name: [")
    with pytest.raises(ConfigError, match="is no YAML"):
        load_recipe(tmp_path / "bad.yaml")


def test_what_differs_from_the_paper_is_said(items):
    recipe = load_recipe("lora")
    changes = {"base": "org/small", "data": items, "max_steps": 7, "learning_rate": 1e-3}
    lines = list_differences(
        recipe, plan_runs(recipe, changes), tasks=["own"], modes=["none", "all"], limit=5, dtype="float32"
    )
    text = "\n".join(lines)
    for line in (
        "base model: org/small (paper: Qwen/Qwen1.5-1.8B-Chat)",
        "training data: items.jsonl (paper: Alpaca-GPT4 (",
        "training ends after 7 optimizer steps (paper: 1 epoch)",
        "learning_rate: 0.001 (recipe: 0.0002)",
        "the base model runs in float32 (paper: bfloat16)",
        "tasks: own (paper: taia_paper)",
        "at most 5 items a task (paper: all)",
        "modes left out: attention, ffn",
        *recipe.remarks,
    ):
        assert line in text
    same = list_differences(
        recipe, plan_runs(recipe, {}), tasks=recipe.tasks, modes=recipe.modes, limit=None, dtype="bfloat16"
    )
    assert len(same) == 1 + len(recipe.remarks)


def test_the_two_files_of_a_recipe_share_no_key():
    for name in NAMES:
        files = (RECIPES / f"{name}.yaml", RECIPES / "paper" / f"{name}.yaml")
        training, paper = (set(yaml.safe_load(file.read_text(encoding="utf-8"))) for file in files)
        assert not training & paper
