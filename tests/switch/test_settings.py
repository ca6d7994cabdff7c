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
from taia_hub.switch.modes import MODES, mode_title
from taia_hub.switch.settings import Setting, parse_published, parse_setting, parse_text


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
        ({"*@1": 1}, {**paths("attention", [1]), **paths("ffn", [1])}),
        ({"*@2-99": 1}, {**paths("attention", [2, 3]), **paths("ffn", [2, 3])}),
    ],
)
def test_a_setting_selects_by_role_layer_and_glob(setting, expected):
    assert acting(setting) == expected


def test_later_entries_override_earlier_ones():
    assert acting({"ffn": 1, "model.layers.0.*": 0.25})["model.layers.0.mlp.up_proj"] == 0.25
    assert acting({"model.layers.0.*": 0.25, "ffn": 1})["model.layers.0.mlp.up_proj"] == 1.0


# A ramp


def by_layer(weights, roles=("attention", "ffn")):
    return {one.path: weights[one.layer] for one in MODULES if one.role in roles and weights.get(one.layer)}


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"*@0-3": [0.25, 1]}, by_layer({0: 0.25, 1: 0.5, 2: 0.75, 3: 1.0})),
        ({"*@0-3": (1, 0.25)}, by_layer({0: 1.0, 1: 0.75, 2: 0.5, 3: 0.25})),
        ({"ffn@1-3": [0, 1]}, by_layer({2: 0.5, 3: 1.0}, ["ffn"])),
        ({"*@0-1": [0.1, 0.7]}, by_layer({0: 0.1, 1: 0.7})),
        ({"*@0-6": [0.25, 1]}, by_layer({0: 0.25, 1: 0.375, 2: 0.5, 3: 0.625})),
        ({"*@0-3": [0.25, 1], "attention@2": 0}, by_layer({0: 0.25, 1: 0.5, 3: 1.0}) | by_layer({2: 0.75}, ["ffn"])),
        ({"*@0-3": [0.5, 0.5]}, by_layer(dict.fromkeys(range(4), 0.5))),
    ],
)
def test_a_ramp_is_linear_over_its_layers_with_both_ends(setting, expected):
    assert acting(setting) == expected


def test_a_ramp_meets_its_ends_and_rises_whatever_is_rounded():
    layers = [Module(f"l.{layer}.mlp", "ffn", layer) for layer in range(33)]
    generator = random.Random(0)
    for _ in range(50):
        start, end = sorted(generator.uniform(0, 1) for _ in "ab")
        weights = parse_setting({"ffn@0-32": [start, end]}).weights(layers)
        assert (weights[0], weights[-1]) == (start, end)
        assert list(weights) == sorted(weights)
        assert all(abs(one - (start + (end - start) * n / 32)) < 1e-15 for n, one in enumerate(weights))


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
        ({"*@0-7": [0.2, 1]}, "*@0-7=0.2 to 1"),
        ({"ffn": -0.5, "allow_extrapolation": True}, "ffn=-0.5"),
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


def test_the_label_of_a_long_setting_counts_its_weights_and_tells_it_from_others():
    rising = {f"ffn@{layer}": layer / 200 for layer in range(200)}
    labels = [parse_setting(rising | {"ffn@199": last}).label for last in (0.5, 0.75)]
    assert all(re.fullmatch(r"200 weights \([0-9a-f]{8}\)", label) for label in labels)
    assert labels[0] != labels[1]
    assert parse_setting(rising).whole_label.endswith("ffn@198=0.99, ffn@199=0.995")


def test_no_two_settings_have_one_label():
    """Labels are the keys of results."""
    settings = [
        *({"*.a=1, *.b": 1}, {"*.a": 1, "*.b": 1}, {"*.a=1": 1}, {"*.a": 1}, {"*.a,*.b": 1}),
        *({"ffn=1, *": 1}, {"ffn": 1, "*": 1}, {"*=0.2 to 1, *": 1}),
    ]
    parsed = [parse_setting(one) for one in settings]
    assert len({one.label for one in parsed}) == len({one.whole_label for one in parsed}) == len(settings)
    assert parsed[1].label == "*.a=1, *.b=1"
    assert re.fullmatch(r"\*\.a=1=1 \([0-9a-f]{8}\)", parsed[2].label)


def test_no_two_settings_have_one_slug():
    """Their files would share a folder, of which a running engine may read the other's."""
    rising = {f"ffn@{layer}": layer / 64 for layer in range(64)}
    settings = [
        *({glob: 1} for glob in ("*.q_proj", "?*.q_proj", "*[.]q_proj", "**.Q_PROJ", "*.q proj", "слой.*", "*", "?")),
        *({"*.k_proj": 1, "*.v_proj": weight} for weight in (0, 0.25)),
        *(rising | {"ffn@63": weight} for weight in (0, 1)),
        *({"attention@1-2": 0.5}, {"attention": 1, "*@2": 0.5}, {"*@1-2": 0.5}),
        *({"ffn@0-7": weight} for weight in (1, [0, 1], [1, 0], [0.2, 1])),
        *({"ffn@0-7": weight, "allow_extrapolation": True} for weight in (-1, [0, -1], [-1, 0], [-1, -1])),
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


@pytest.mark.parametrize(
    "ramp", [[0.2, 0.5, 1], [], [1], [0.2, math.nan], [True, 1], ["0", "1"], [0.2, None], [[0, 1], 1], {0: 0.2}]
)
def test_a_ramp_is_two_numbers_from_0_to_1(ramp):
    error = refusal({"*@0-3": ramp})
    assert "The weight of '*@0-3' is " in error.message
    assert '{"*@0-7": [0.2, 1]}' in error.hint


@pytest.mark.parametrize("key", ["ffn", "ffn@2", "*@2", "ffn@2-2", "*", "model.layers.*"])
def test_a_ramp_runs_over_at_least_two_layers(key):
    error = refusal({key: [0.2, 1]})
    assert f"'{key}' came with the two weights 0.2, 1" in error.message
    assert '{"*@0-7": [0.2, 1]}' in error.hint


# Extrapolation


@pytest.mark.parametrize("weight", [1.5, -1, 2, -2, [-1, 2], [0.5, 1.01]])
def test_a_weight_beyond_what_was_trained_is_said_to_be_meant(weight):
    given = {"ffn@0-3": weight}
    error = refusal(given)
    assert f"The weight of 'ffn@0-3' is {weight}" in error.message
    assert '"allow_extrapolation": true' in error.hint
    said = parse_setting({**given, "allow_extrapolation": True})
    assert said == parse_setting({"allow_extrapolation": True, **given})
    assert said == parse_setting(given, allow_extrapolation=True)
    assert said == parse_text(json.dumps(given), allow_extrapolation=True)
    assert said.extrapolates
    ends = weight if isinstance(weight, list) else [weight, weight]
    assert said.weights(MODULES)[1:8:6] == tuple(map(float, ends))


@pytest.mark.parametrize("weight", [2.5, -2.01, 10**400, math.nan, [0, 2.5], "1.5", True])
@pytest.mark.parametrize("is_allowed", [True, False])
def test_a_weight_beyond_2_is_none(weight, is_allowed):
    error = refusal({"ffn@0-3": weight, "allow_extrapolation": is_allowed})
    assert "The weight of 'ffn@0-3' is " in error.message
    assert "allow_extrapolation" not in error.hint
    assert ("from -2 to 2" in error.message) is is_allowed


@pytest.mark.parametrize("value", ["true", 1, 0, None, [True]])
def test_what_allows_extrapolation_is_true_or_false(value):
    assert f"'allow_extrapolation' is {value!r}" in refusal({"ffn": 1, "allow_extrapolation": value}).message


def test_what_allows_extrapolation_needs_a_weight_and_is_none():
    assert "alone" in refusal({"allow_extrapolation": True}).message
    assert "alone" in refusal([["allow_extrapolation", False]], parse_published).message
    assert "alone" in refusal([["allow_extrapolation", True]] * 2, parse_published).message
    assert refusal({"ffn": 1, "allow_extrapolations": True}).hint == "Did you mean 'allow_extrapolation'?"


def test_what_needs_no_extrapolation_is_the_same_without_it():
    plain = parse_setting({"ffn": 0.5})
    for allowed in (True, False):
        assert parse_setting({"ffn": 0.5, "allow_extrapolation": allowed}) == plain
    assert plain.value == {"ffn": 0.5}
    assert not plain.extrapolates


def test_only_zeros_do_not_act():
    for value in ({"ffn": 0}, {"*@0-3": [0, 0]}, {"ffn": -0.0}, "none", {}):
        assert not parse_setting(value).acts
    for value in ({"ffn": 0.1}, {"*@0-3": [0, 0.1]}, {"ffn": -1, "allow_extrapolation": True}, "all"):
        assert parse_setting(value).acts


@pytest.mark.parametrize("key", ["", None, 3, ("ffn",)])
def test_a_selector_is_a_text(key):
    assert repr(key) in refusal({key: 1}).message


@pytest.mark.parametrize(
    "key", ["ffn@", "ffn@x", "ffn@3-1", "*@5-2", "*@", "*@x", "ffn@-1", "ffn@1-", "ffn@1,2", "ffn@1.5"]
)
def test_layers_are_one_or_a_rising_range(key):
    error = refusal({key: 1})
    assert f"'{key}'" in error.message
    assert f"'{key.partition('@')[0]}@0-7'" in error.hint


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
    with pytest.raises(SettingError, match=r"'\*@7-9' matches none .* adapted modules are in layers 0-3") as caught:
        parse_setting({"*@7-9": [0, 1]}).weights(MODULES)
    assert "'*@0-3'" in caught.value.hint
    with pytest.raises(SettingError, match=r"'other@0' matches none") as caught:
        parse_setting({"other@0": 1}).weights(MODULES)
    assert caught.value.hint


def test_a_role_that_the_update_lacks_is_no_error():
    attention = [module for module in MODULES if module.role == "attention"]
    assert parse_setting("ffn").weights(attention) == (0.0,) * 4
    assert parse_setting({"ffn": 1}).weights(attention) == (0.0,) * 4


# The published form


@pytest.mark.parametrize(
    "value",
    [
        *("attention", "attention+other", {"other": 1, "attention": 0.1, "ffn@0-7": 0.3}, {"z": 1, "a": 0}, {}),
        {"*@0-29": [0.2, 1.0], "attention": 1},
        {"attention": 1.5, "ffn@0-7": [-1, 0.5], "allow_extrapolation": True},
    ],
)
def test_the_published_form_survives_json_with_its_order(value):
    published = json.loads(json.dumps(parse_setting(value).published, sort_keys=True))
    parsed = parse_published(published)
    assert parsed == parse_setting(value)
    assert parsed.value == value
    assert isinstance(value, str) or list(parsed.value) == list(value)


@pytest.mark.parametrize(
    "value", [[["ffn"]], [["ffn", 1, 2]], ["ffn", "attention"], [["ffn", 1.5]], ["ab"], [None], [["ffn", "1"]]]
)
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
    values = {
        key: [generator.random(), generator.uniform(-2, 2)]
        if "-" in key and key[-1] > key[-3] and generator.random() < 0.5
        else generator.choice([0, 1, 0.5, generator.random()])
        for key in keys
    }
    return (
        {**values, "allow_extrapolation": True}
        if parse_setting(values, allow_extrapolation=True).extrapolates
        else values
    )


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
        ({"*@0-1": [1, True]}, "The weight of '*@0-1' is [1, True]"),
        ({"*@0-1": [0.5, 1.5]}, "The weight of '*@0-1' is [0.5, 1.5]"),
        ({"ffn": 2.5, "allow_extrapolation": True}, "The weight of 'ffn' is 2.5"),
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


def test_a_setting_that_was_seen_is_not_taken_for_one_of_other_types(model):
    for seen, other in (({"ffn": 1}, {"ffn": True}), ({"*@0-1": [1, 1]}, {"*@0-1": [1, True]})):
        for _ in range(2):
            assert model._taia_switch.resolve(seen) is model._taia_switch.resolve(dict(seen))
            with pytest.raises(SettingError, match="True"):
                model._taia_switch.resolve(other)


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
    assert [path.name for path in paths if re.search('"TAIF[":]', path.read_text(encoding="utf-8"))] == ["modes.py"]


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


# What a ramp and weights beyond [0, 1] compute


def written_out(ramp, layers):
    """The same as entries of a layer each, by another arithmetic: exact for these numbers."""
    (start, end), steps = ramp, layers - 1
    return {f"*@{layer}": start + (end - start) * layer / steps for layer in range(layers)}


def test_as_many_entries_as_are_taken_work_at_every_door():
    value = {f"ffn@0-{layer}": layer / 2**11 for layer in range(1024)}
    setting = parse_setting(value)
    assert setting == parse_text(json.dumps(value)) == parse_published(json.loads(json.dumps(setting.published)))
    assert len(setting.label) <= 80
    assert len(setting.slug) <= 64
    assert setting.weights(MODULES)[1] == 1023 / 2**11
    extra = parse_setting({**value, "ffn@0-3": 2}, allow_extrapolation=True)
    assert parse_published(extra.published) == extra  # what allows it is no entry
    assert "1,025 entries" in refusal({**value, "attention": 1}).message


def test_gate_and_up_without_down_is_a_glob(model):
    """The split of arXiv 2510.08564."""
    with model.using({"*.gate_proj": 1, "*.up_proj": 1}):
        acting = model._taia_switch.acting().weights
    sites = model._taia_switch.sites
    assert [site.path.rpartition(".")[2] for site, one in zip(sites, acting, strict=True) if one] == 2 * [
        "gate_proj",
        "up_proj",
    ]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("ramp", [[0.25, 1], [1.5, -0.5]])
def test_a_ramp_computes_what_its_weights_by_layer_do(pico, name, ramp):
    model, ids = pico.taia(name), pico.ids()
    extrapolates = {"allow_extrapolation": True} if max(ramp) > 1 else {}
    with model.using({"*@0-1": ramp, **extrapolates}):
        logits = model(ids).logits
        assert "*@0-1" in str(model.status())
    with model.using({**written_out(ramp, 2), **extrapolates}):
        assert torch.equal(model(ids).logits, logits)
    with model.using("all"):
        assert not torch.equal(model(ids).logits, logits)


def test_rows_of_a_batch_take_ramps_and_weights_beyond_1(model, pico):
    settings = [
        "none",
        {"*@0-1": [0.25, 1]},
        {"attention": 1.5, "ffn": -1, "allow_extrapolation": True},
        {"*@0-1": [0.25, 0.75]},
    ]
    ids = pico.ids(rows=1).expand(4, -1)
    model.inference_modules = "attention"
    together = model(ids, inference_modules=settings).logits
    for row, setting in enumerate(settings):
        alone = model(ids[:1], inference_modules=setting).logits
        assert torch.allclose(together[row], alone[0], atol=1e-5)
    assert len({row.sum().item() for row in together}) == 4


def test_an_update_with_weight_minus_1_is_taken_away(model, pico):
    """To first order: of a small update, base minus update and base plus update lie around the base."""
    ids = pico.ids()
    extrapolates = {"allow_extrapolation": True}
    step = 2**-10
    plus, minus, base = (
        model(ids, inference_modules={"*": weight, **extrapolates}).logits for weight in (step, -step, 0)
    )
    assert not torch.equal(minus, base)
    assert torch.allclose(plus - base, base - minus, atol=0.05 * float((plus - base).abs().max()))


def test_the_status_tells_a_negative_weight_from_a_masked_one(model):
    model.inference_modules = {"attention": -1, "allow_extrapolation": True}
    part = model.status().roles["attention"]
    assert (part.acting, part.masked, dict(part.weights)) == (part.adapted, 0, {-1.0: part.adapted})
    with model._taia_switch.hold(model._taia_switch.resolve_rows([model.inference_modules, "none"])):
        assert model.status().roles["attention"].acting == part.adapted
