"""Recipes: what they accept, what they refuse and why, and that they come back from YAML as they were."""

import pytest
import yaml

from taia_hub.errors import ConfigError, RepositoryError, SettingError
from taia_hub.training import TrainingRecipe
from taia_hub.training.recipe import recipe_names


def test_the_defaults_are_those_of_the_paper():
    one = TrainingRecipe()

    assert (one.rank, one.alpha, one.dropout, one.learning_rate) == (16, 32, 0.05, 2e-4)
    assert (one.scheduler, one.warmup_ratio, one.weight_decay) == ("cosine", 0.03, 0.0)
    assert (one.epochs, one.batch_size, one.max_length, one.method) == (1.0, 64, 3072, "lora")
    assert (one.experts, one.top_k, one.balance_loss) == (4, 2, 0.0)


def test_a_recipe_comes_back_from_yaml(tmp_path):
    one = TrainingRecipe(
        base="org/base",
        in_domain=("a.jsonl",),
        ood=("org/set@main:train",),
        ood_ratio=0.25,
        schedule="linear",
        rank={"attention": 4, "ffn": 64},
        train_modules="attention+ffn@0-7",
        inference_modules={"attention": 1, "ffn@0-7": 0.5},
        report_to=("trackio",),
        description="Ünïcode: yes",
    )
    (tmp_path / "recipe.yaml").write_text(one.to_yaml(), encoding="utf-8")

    assert TrainingRecipe.from_yaml(tmp_path / "recipe.yaml") == one
    assert TrainingRecipe.load(tmp_path / "recipe.yaml") == one


def test_numbers_that_yaml_takes_for_texts_are_read():
    assert TrainingRecipe.from_mapping(yaml.safe_load("learning_rate: 2e-4")).learning_rate == 2e-4


def test_one_text_stands_for_a_list_of_one():
    assert TrainingRecipe(data="a.jsonl").data == ("a.jsonl",)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rnak": 3}, "Did you mean 'rank'"),
        ({"rank": True}, "rank is True"),
        ({"rank": 0}, "whole number from 1"),
        ({"rank": 2.0}, "rank is 2.0"),
        ({"rank": {"attention": 4}}, "says nothing of ffn"),
        ({"rank": {"attention": 4, "ffn": 4, "other": 4}}, "role 'other'"),
        ({"alpha": {"atention": 4, "ffn": 4}}, "Did you mean 'attention'"),
        ({"alpha": {"attention": 4, "ffn": -1}}, "alpha.ffn is -1"),
        ({"learning_rate": "fast"}, "no number"),
        ({"learning_rate": True}, "learning_rate is True"),
        ({"learning_rate": 0}, "nothing would be learnt"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"dropout": 1}, "below 1"),
        ({"noise_ratio": 1.5}, "from 0 to 1"),
        ({"method": "lorra"}, "Did you mean 'lora'"),
        ({"scheduler": "cosin"}, "Did you mean 'cosine'"),
        ({"dtype": "float16"}, "Choose one of auto, float32, bfloat16"),
        ({"method": ["lora"]}, "no text"),
        ({"packing": "yes"}, "true or false"),
        ({"batch_size": 64, "micro_batch_size": 5}, "does not divide.*\n.*1, 2, 4, 8, 16, 32, 64"),
        ({"method": "molora", "experts": 2, "top_k": 3}, "more than the 2 experts"),
        ({"data": "a", "in_domain": "b"}, "not both"),
        ({"ood": "b"}, "without in_domain"),
        ({"in_domain": "a", "ood_ratio": 0.5}, "there is no ood"),
        ({"data": [1]}, "list of texts"),
        ({"base": 7}, "no text"),
        ({"seed": -1}, "from 0"),
        ({"train_modules": "none"}, "nothing would be trained"),
        ({"train_modules": "atention"}, "atention"),
        ({"train_modules": {"ffn": 0.5}}, "weights have no meaning"),
        ({"train_modules": "ffn@7-3"}, "rising range"),
        ({"inference_modules": "tahia"}, "Unknown inference modules"),
    ],
)
def test_a_wrong_value_is_named(values, message):
    with pytest.raises((ConfigError, SettingError), match=f"(?s){message}"):
        TrainingRecipe.from_mapping(values)


def test_a_wrong_value_in_a_file_names_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("rank: many\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: rank is 'many'"):
        TrainingRecipe.from_yaml(path)
    path.write_text("rank: [\n")
    with pytest.raises(ConfigError, match="no YAML"):
        TrainingRecipe.from_yaml(path)
    path.write_text("- a\n")
    with pytest.raises(ConfigError, match="holds list"):
        TrainingRecipe.from_yaml(path)
    with pytest.raises(RepositoryError, match="cannot be read"):
        TrainingRecipe.from_yaml(tmp_path / "nowhere.yaml")


def test_every_shipped_recipe_is_found_by_name():
    for name in recipe_names():
        assert TrainingRecipe.load(name).base, name
    assert TrainingRecipe.load("toa").train_modules == "attention"
    with pytest.raises(ConfigError, match="Did you mean 'toa'"):
        TrainingRecipe.load("toaa")


def test_what_the_user_must_bring_is_named():
    with pytest.raises(ConfigError, match="no base model"):
        TrainingRecipe(data="a.jsonl").check_complete()
    with pytest.raises(ConfigError, match="no data"):
        TrainingRecipe(base="org/base").check_complete()


def test_the_published_default_follows_the_method():
    assert TrainingRecipe().published == "attention"
    assert TrainingRecipe(method="full").published == "attention+other"
    assert TrainingRecipe(method="full", inference_modules="attention").published == "attention"


def test_replacing_a_field_checks_it():
    assert TrainingRecipe().replace(rank=4).rank == 4
    with pytest.raises(ConfigError, match="no field 'ranks'"):
        TrainingRecipe().replace(ranks=4)
