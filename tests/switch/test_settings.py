import json
import math
import random
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import taia_hub
from taia_hub.errors import SettingError, TAIAError
from taia_hub.roles import ROLES
from taia_hub.switch.settings import MODES, Setting, mode_title, parse_published, parse_setting


@dataclass
class Module:
    path: str
    role: str
    layer: int | None


MODULES = [
    Module(f"model.layers.{layer}.{name}", role, layer)
    for layer in range(4)
    for name, role in [("self_attn.q_proj", "attention"), ("mlp.up_proj", "ffn")]
] + [Module("lm_head", "other", None)]


def acting(setting):
    weights = parse_setting(setting).weights(MODULES)
    return {module.path: weight for module, weight in zip(MODULES, weights, strict=True) if weight}


def paths(role, layers=range(4)):
    return {module.path: 1.0 for module in MODULES if module.role == role and module.layer in layers}


# What a setting selects


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("attention", paths("attention")),
        ("ffn", paths("ffn")),
        ("none", {}),
        ("all", {module.path: 1.0 for module in MODULES}),
        ("other", {"lm_head": 1.0}),
        ("attention+other", {**paths("attention"), "lm_head": 1.0}),
        ({"attention": 1}, paths("attention")),
        ({}, {}),
        ({"ffn@1": 1}, paths("ffn", [1])),
        ({"ffn@1-2": 1}, paths("ffn", [1, 2])),
        ({"ffn@2-99": 1}, paths("ffn", [2, 3])),
        ({"model.layers.3.mlp.*": 1.0}, paths("ffn", [3])),
        ({"*.mlp.*": 1.0}, paths("ffn")),
        ({"*": 1.0}, {module.path: 1.0 for module in MODULES}),
        ({"model.layers.[01].mlp.up_proj": 1.0}, paths("ffn", [0, 1])),
        ({"ffn": 1, "ffn@1-3": 0}, paths("ffn", [0])),
        ({"lm_head": 0.5}, {"lm_head": 0.5}),
    ],
)
def test_a_setting_selects_by_role_layer_and_glob(setting, expected):
    assert acting(setting) == expected


def test_later_entries_override_earlier_ones():
    assert acting({"ffn": 1, "model.layers.0.*": 0.25})["model.layers.0.mlp.up_proj"] == 0.25
    assert acting({"model.layers.0.*": 0.25, "ffn": 1})["model.layers.0.mlp.up_proj"] == 1.0


def test_the_four_modes_are_roles():
    assert set(MODES) == {"attention", "ffn", "all", "none"}
    assert MODES["all"] == ROLES


@pytest.mark.parametrize("weight", [0, 1, 0.5, np.float32(0.5), np.int64(1), Fraction(1, 2)])
def test_any_real_number_in_the_range_is_a_weight(weight):
    setting = parse_setting({"ffn": weight})
    assert setting.published == [["ffn", float(weight)]]
    assert type(setting.entries[0].weight) is float


def test_a_parsed_setting_parses_to_itself():
    setting = parse_setting({"ffn": 0.5})
    assert parse_setting(setting) is setting


@pytest.mark.parametrize(
    ("setting", "label"),
    [
        ("attention", "attention"),
        ({"ffn": 0.5, "other": 1}, "ffn=0.5, other=1"),
        ({"ffn": 0.12345671}, "ffn=0.12345671"),
        ({}, "none"),
    ],
)
def test_a_setting_has_a_short_label(setting, label):
    assert parse_setting(setting).label == label


def test_a_slug_is_never_too_long_for_a_folder_and_tells_settings_apart():
    long = [{f"model.layers.{layer}.mlp.*": weight for layer in range(12)} for weight in (0.5, 0.25)]
    one, other = (parse_setting(setting).slug for setting in long)
    assert one != other
    assert one.startswith("model.layers.0.mlp.-0.5-model.layers.1.mlp.-0.5")
    assert max(map(len, (one, other))) <= 64
    assert len(parse_setting({"möd" * 99: 1}).slug.encode()) <= 64


def test_no_two_settings_have_one_slug():
    """Their files would share a folder, of which a running engine may read the other's."""
    rising = {f"ffn@{layer}": layer / 64 for layer in range(64)}
    settings = [
        *({glob: 1} for glob in ("*.q_proj", "?*.q_proj", "*[.]q_proj", "**.Q_PROJ", "*.q proj", "слой.*", "*", "?")),
        *({"*.k_proj": 1, "*.v_proj": weight} for weight in (0, 0.25)),
        *(rising | {"ffn@63": weight} for weight in (0, 1)),
        *("attention+other", {"attention": 1, "other": 1}, {"attention": 1}, "attention", "none"),
    ]
    slugs = [parse_setting(setting).slug for setting in settings]
    assert len({slug.lower() for slug in slugs}) == len(settings)
    assert all(re.fullmatch(r"[\w+][\w.+-]{0,63}", slug, re.ASCII) for slug in slugs)
    assert slugs[-5:] == ["attention+other", "attention-1-other-1", "attention-1", "attention", "none"]


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        *(("taia", "attention"), ("TAIF", "ffn"), ("Vanilla", "all"), ("BASE", "none")),
        *(("Attention", "attention"), ("FFN", "ffn"), ("ALL", "all"), ("None", "none")),
    ],
)
@pytest.mark.parametrize("parse", [parse_setting, parse_published])
def test_a_mode_may_be_called_as_the_paper_does_and_is_published_as_itself(parse, given, mode):
    setting = parse(given)
    assert (setting.published, setting.label, setting.value) == (mode, mode, mode)
    assert acting(given) == acting(mode)


def test_a_person_reads_the_papers_name_too():
    labels = ("none", "attention", "ffn", "all")
    assert [mode_title(one) for one in labels] == ["none (base)", "attention (TAIA)", "ffn (TAIF)", "all (vanilla)"]
    assert mode_title("attention+other") == "attention+other"


@pytest.mark.parametrize(("key", "meant"), [("taia", "attention"), ("TAIF@0-1", "ffn")])
def test_a_mode_of_the_paper_in_a_mapping_names_the_role(key, meant):
    assert f"Did you mean '{meant}'?" in refusal({key: 1}).message


# What is refused: what came, what is allowed, what to do


def refusal(value, parse=parse_setting):
    with pytest.raises(SettingError) as caught:
        parse(value)
    assert isinstance(caught.value, TAIAError)
    assert isinstance(caught.value, ValueError)
    return caught.value


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *(("atention", "attention"), ("fnn", "ffn"), ("al", "all"), ("nonee", "none"), ("othr", "other")),
        *(("TAIAA", "taia"), ("TAIFF", "taif"), ("vanila", "vanilla"), ("Bases", "base"), ("ATENTION", "attention")),
    ],
)
def test_an_unknown_mode_names_the_closest_one(name, meant):
    error = refusal(name)
    assert f"'{name}'" in error.message
    assert f"Did you mean '{meant}'?" in error.message
    assert "'attention', 'ffn', 'all', 'none'" in error.hint


@pytest.mark.parametrize("name", ["", " ", "TAIA+other", "ta ia", "attention,ffn", "attention ffn"])
def test_other_strings_are_refused(name):
    assert "Choose one of" in refusal(name).hint


def test_the_role_at_fault_in_a_sum_is_named():
    error = refusal("attention+atention")
    assert "'atention' in 'attention+atention'" in error.message
    assert "Did you mean 'attention'?" in error.message


@pytest.mark.parametrize("name", ["attention+attention", "all+other", "none+ffn", "attention+", "+"])
def test_sums_are_of_different_roles(name):
    assert f"'{name}'" in refusal(name).message


def test_a_role_that_comes_twice_is_said_so():
    assert "twice" in refusal("ffn+ffn").message


@pytest.mark.parametrize("mode", ["all", "none"])
def test_a_mode_that_is_no_role_is_said_so_in_a_sum(mode):
    error = refusal(f"{mode}+ffn")
    assert f"'{mode}' in '{mode}+ffn'" in error.message
    assert "Did you mean" not in error.message


@pytest.mark.parametrize(
    "weight",
    [-0.01, 1.01, math.nan, math.inf, -math.inf, True, False, "1", "half", None, [1.0], 1j],
)
def test_a_weight_is_a_number_from_0_to_1(weight):
    error = refusal({"ffn": weight})
    assert f"The weight of 'ffn' is {weight!r}" in error.message
    assert "from 0 (masked) to 1" in error.message
    assert error.hint


@pytest.mark.parametrize("key", ["", None, 3, ("ffn",)])
def test_a_selector_is_a_text(key):
    assert repr(key) in refusal({key: 1}).message


@pytest.mark.parametrize("key", ["ffn@", "ffn@x", "ffn@3-1", "ffn@-1", "ffn@1-", "ffn@1,2", "ffn@1.5"])
def test_layers_are_one_or_a_rising_range(key):
    error = refusal({key: 1})
    assert f"'{key}'" in error.message
    assert "'ffn@0-7'" in error.hint


def test_a_misspelt_role_at_layers_names_the_closest_one():
    assert "Did you mean 'ffn'?" in refusal({"fnn@0-3": 1}).message


@pytest.mark.parametrize("mode", ["all", "none"])
def test_a_mode_in_a_mapping_points_to_the_selector_for_everything(mode):
    assert "'*'" in refusal({mode: 1}).hint


def test_a_mapping_takes_one_selector_at_a_time():
    assert "'attention+other'" in refusal({"attention+other": 0.5}).message


@pytest.mark.parametrize("value", [["none", "attention"], ("none", "all"), []])
def test_a_list_means_one_setting_a_row(value):
    error = refusal(value)
    assert f"A list of {len(value)} settings" in error.message
    assert "one setting a row" in error.hint
    assert "generate" in error.hint


@pytest.mark.parametrize("value", [None, 1, 0.5, True, b"attention", {"attention"}, object()])
def test_anything_else_is_refused_with_what_is_allowed(value):
    error = refusal(value)
    assert type(value).__name__ in error.message
    assert "'attention', 'ffn', 'all', 'none'" in error.hint


@pytest.mark.parametrize("key", ["model.layers.9.mlp.*", "mlp", "*.MLP.*", "model.layers.0.mlp"])
def test_a_glob_that_matches_nothing_is_refused(key):
    with pytest.raises(SettingError, match="matches none of the model's 9 adapted modules") as caught:
        parse_setting({key: 1}).weights(MODULES)
    assert "model.layers.0.self_attn.q_proj" in caught.value.hint


def test_a_misspelt_role_in_a_mapping_names_the_closest_one():
    with pytest.raises(SettingError, match="Did you mean 'attention'"):
        parse_setting({"atention": 1}).weights(MODULES)


def test_layers_that_no_adapted_module_is_in_are_refused():
    with pytest.raises(SettingError, match=r"'ffn@7-9' matches none .* ffn modules are in layers 0-3") as caught:
        parse_setting({"ffn@7-9": 1}).weights(MODULES)
    assert "'ffn@0-3'" in caught.value.hint
    with pytest.raises(SettingError, match=r"'other@0' matches none") as caught:
        parse_setting({"other@0": 1}).weights(MODULES)
    assert caught.value.hint


def test_a_role_that_the_update_lacks_is_no_error():
    attention = [module for module in MODULES if module.role == "attention"]
    assert parse_setting("ffn").weights(attention) == (0.0,) * 4
    assert parse_setting({"ffn": 1}).weights(attention) == (0.0,) * 4


# The published form


@pytest.mark.parametrize(
    "value", ["attention", "attention+other", {"other": 1, "attention": 0.1, "ffn@0-7": 0.3}, {"z": 1, "a": 0}, {}]
)
def test_the_published_form_survives_json_with_its_order(value):
    published = json.loads(json.dumps(parse_setting(value).published, sort_keys=True))
    parsed = parse_published(published)
    assert parsed == parse_setting(value)
    assert parsed.value == value
    assert isinstance(value, str) or list(parsed.value) == list(value)


@pytest.mark.parametrize("value", [[["ffn"]], [["ffn", 1, 2]], ["ffn", "attention"], ["ab"], [None], [["ffn", "1"]]])
def test_published_pairs_of_another_form_are_refused(value):
    refusal(value, parse_published)


def test_a_selector_that_comes_twice_in_published_pairs_is_refused():
    assert "'ffn'" in refusal([["ffn", 1], ["attention", 1], ["ffn", 0]], parse_published).message


def random_setting(generator):
    roles = generator.sample(list(ROLES), generator.randint(1, 3))
    if generator.random() < 0.3:
        return generator.choice([*MODES, "+".join(roles)])
    keys = [
        generator.choice(
            [
                role,
                f"{role}@{generator.randint(0, 9)}",
                f"{role}@{generator.randint(0, 4)}-{generator.randint(4, 9)}",
                f"model.layers.{generator.randint(0, 9)}.*",
            ]
        )
        for role in roles
    ]
    return {key: generator.choice([0, 1, 0.5, generator.random()]) for key in keys}


@pytest.mark.parametrize("seed", range(100))
def test_random_settings_survive_the_way_to_a_file_and_back(seed):
    value = random_setting(random.Random(seed))
    setting = parse_setting(value)
    assert isinstance(setting, Setting)
    back = parse_published(json.loads(json.dumps(setting.published)))
    assert back == setting
    assert back.value == value
    assert parse_setting(back.value) == setting


# On a loaded model


@pytest.fixture(scope="module")
def model(pico):
    return pico.taia("llama")


def ways(model, ids):
    """The ways in which a setting for the whole batch reaches a model."""

    def using(value):
        with model.using(value):
            pytest.fail("The block was entered.")

    return {
        "setter": lambda value: setattr(model, "inference_modules", value),
        "using": using,
        "forward": lambda value: model(ids, inference_modules=value),
        "generate": lambda value: model.generate(ids, inference_modules=value, max_new_tokens=1),
    }


@pytest.mark.parametrize("way", ["setter", "using", "forward", "generate"])
@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("atention", "Unknown inference modules 'atention'. Did you mean 'attention'?"),
        ({"ffn": 1.5}, "The weight of 'ffn' is 1.5"),
        ({"ffn": -0.1}, "The weight of 'ffn' is -0.1"),
        ({"ffn": math.nan}, "The weight of 'ffn' is nan"),
        ({"ffn": True}, "The weight of 'ffn' is True"),
        ({"ffn": "0.5"}, "The weight of 'ffn' is '0.5'"),
        ({"model.layers.9.*": 1}, "matches none of the model's 14 adapted modules"),
        ({"ffn@2-5": 1}, "ffn modules are in layers 0-1"),
        (3, "Inference modules cannot be 3"),
    ],
)
def test_a_bad_setting_changes_nothing(model, pico, way, value, match):
    ids = pico.ids()
    model.inference_modules = {"ffn": 0.5}
    before = model(ids).logits
    with pytest.raises(SettingError) as caught:
        ways(model, ids)[way](value)
    assert match in caught.value.message
    assert caught.value.hint
    assert model.inference_modules == {"ffn": 0.5}
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("way", ["setter", "using"])
def test_a_list_is_for_calls_alone(model, pico, way):
    model.inference_modules = "attention"
    with pytest.raises(SettingError, match="A list of 2 settings") as caught:
        ways(model, pico.ids())[way](["none", "all"])
    assert "generate" in caught.value.hint
    assert model.inference_modules == "attention"


@pytest.mark.parametrize("way", ["forward", "generate"])
@pytest.mark.parametrize("rows", [[], ["all"], ["all", "none", "ffn"]])
def test_a_list_of_the_wrong_length(model, pico, way, rows):
    ids = pico.ids()
    model.inference_modules = "attention"
    before = model(ids).logits
    with pytest.raises(SettingError, match=f"{len(rows)} settings? .*2 rows") as caught:
        ways(model, ids)[way](rows)
    assert caught.value.hint
    assert torch.equal(model(ids).logits, before)


def test_a_bad_setting_in_a_list_is_named(model, pico):
    with pytest.raises(SettingError, match=r"'al'.*Did you mean 'all'"):
        model(pico.ids(), inference_modules=["none", "al"])


def test_the_papers_names_of_modes_stand_in_one_table():
    paths = Path(taia_hub.__file__).parent.rglob("*.py")
    assert [path.name for path in paths if re.search('"TAIF[":]', path.read_text(encoding="utf-8"))] == ["settings.py"]


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ({f"model.layers.{number}.*": 1 for number in range(2000)}, "2,000 entries"),
        ([[f"model.layers.{number}.*", 1] for number in range(2000)], "2,000 entries"),
        ({"*" * 10_000: 1}, "selector of inference modules cannot be"),
        ("x" * 10_000, "a text of 10,000 characters"),
        ({"ffn": 10**400}, "The weight of 'ffn' is"),
        ({"ffn": "x" * 100_000}, "The weight of 'ffn' is"),
        ([["ffn", [[[[[[[[[[1]]]]]]]]]]]], "The weight of 'ffn' is"),
        ([{"x" * 10_000: 1}], "a pair of selector and weight"),
    ],
)
def test_what_anybody_sends_is_bounded(value, match):
    with pytest.raises(SettingError, match=match) as caught:
        parse_published(value) if isinstance(value, list) else parse_setting(value)
    assert len(str(caught.value)) < 2_000
