"""The cut of an update into parts, and the weights of the parts under a setting."""

import itertools
import json

import pytest

from taia_hub.engines.parts import Module, Part, Served, split
from taia_hub.errors import ConfigError, SettingError
from taia_hub.switch.settings import parse_setting

LAYERS = 4
PATHS = {
    "self_attn.q_proj": "attention",
    "self_attn.o_proj": "attention",
    "mlp.up_proj": "ffn",
    "mlp.down_proj": "ffn",
}
MODULES = (
    *(Module(f"model.layers.{layer}.{path}", PATHS[path], layer) for layer in range(LAYERS) for path in PATHS),
    Module("lm_head", "other", None),
)


def cut(*settings, modules=MODULES):
    return split(modules, [parse_setting(one) for one in settings])


def served(*settings, modules=MODULES):
    return Served("m", {"m": parse_setting("attention")}, cut(*settings, modules=modules))


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ((), ["attention", "ffn", "other"]),
        (("attention", "all", "none", "attention+other", "TAIF"), ["attention", "ffn", "other"]),
        (({"attention": 1, "ffn": 0.5},), ["attention", "ffn", "other"]),
        (({"attention": 1, "ffn@0-1": 0.5},), ["attention", "ffn@0-1", "ffn@2-3", "other"]),
        (({"ffn@1": 0.5}, {"attention@3": 1}), ["attention@0-2", "attention@3", "ffn@0+2-3", "ffn@1", "other"]),
        (({"ffn@0-1": 0.5, "ffn@2-3": 0.5},), ["attention", "ffn", "other"]),  # one weight after all
        (({"ffn": 0.5, "model.layers.2.mlp.*": 1},), ["attention", "ffn@0-1+3", "ffn@2", "other"]),
        (({"*_head": 1},), ["attention", "ffn", "other"]),
        (({"*@0-3": [0.25, 1]},), [*(f"{r}@{n}" for r in ("attention", "ffn") for n in range(4)), "other"]),
    ],
)
def test_an_update_is_cut_where_settings_tell_modules_apart(settings, labels):
    parts = cut(*settings)
    assert [part.label for part in parts] == labels
    assert sorted(module.path for part in parts for module in part.modules) == sorted(one.path for one in MODULES)


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ({"attention": 1, "ffn@0-1": 0.5},),
        ({"*.q_proj": 0.25, "other": 1},),
        ({"ffn@0-3": [-1, 1.5], "allow_extrapolation": True},),
        ({"*.layers.[13].mlp.up_proj": 1}, {"attention@0": 1, "*o_proj": 0.5}),
    ],
)
def test_the_setting_of_a_part_is_that_part_alone(settings):
    parts = cut(*settings)
    for part in parts:
        weights = dict(zip(MODULES, part.setting.weights(MODULES), strict=True))
        assert {module for module, weight in weights.items() if weight == 1} == set(part.modules)
        assert {weights[module] for module in MODULES if module not in part.modules} <= {0}
    given = served(*settings)
    for one in map(parse_setting, (*settings, "attention", "ffn", "all", "none", "other+ffn", {"ffn": 0.3})):
        expected = dict(zip(MODULES, one.weights(MODULES), strict=True))
        found = [weight for part, weight in zip(parts, given.weights(one), strict=True) for _ in part.modules]
        assert found == [expected[module] for part in parts for module in part.modules]


def test_parts_of_single_modules_have_names_that_are_their_own():
    one, other = cut({"*.q_proj": 1}), cut({"*.q_proj": 0.5})
    assert one == other  # the same files serve both
    labels = [part.label for part in one]
    assert len(set(labels)) == len(labels) == 4
    assert all(label.startswith(("attention-", "ffn", "other")) for label in labels)
    scattered = cut({f"ffn@{layer}": 1 for layer in range(0, 12, 2)}, modules=many(12))
    assert [len(part.label) for part in scattered] == [len("ffn-01234567")] * 2


def many(layers):
    return tuple(Module(f"h.{layer}.mlp", "ffn", layer) for layer in range(layers))


def test_a_module_that_is_wrapped_twice_is_one():
    doubled = [one for one in MODULES for _ in range(2)]
    assert split(doubled, []) == split(MODULES, [])


def test_a_setting_that_the_parts_cannot_say_names_the_way_out():
    with pytest.raises(SettingError, match=r"'ffn@0-1=1' tells modules apart .* 'ffn' would get the weights 0, 1") as e:
        served().weights(parse_setting({"ffn@0-1": 1}))
    assert """--mode '{"ffn@0-1": 1.0}'""" in e.value.hint
    mode = json.loads(e.value.hint.split("'")[1])
    assert served(mode).weights(parse_setting({"ffn@0-1": 1})) == (0, 1, 0, 0)
    with pytest.raises(SettingError, match="'ffn@9' matches none"):
        served().weights(parse_setting({"ffn@9": 1}))
    assert not served().takes(parse_setting({"ffn@9": 1}))


def test_an_update_that_acts_as_a_whole_takes_no_half_of_it():
    modules = (Module("l.attn", "attention", 0, "it multiplies"), Module("l.mlp", "ffn", 0))
    given = served(modules=modules)
    assert given.weights(parse_setting({"attention": 1, "ffn": 0.5})) == (1, 0.5)
    with pytest.raises(SettingError, match=r"weight 0.5 came for 'l.attn', which takes only 0 or 1: it multiplies"):
        given.weights(parse_setting({"attention": 0.5}))
    with pytest.raises(SettingError, match="which takes only 0 or 1"):
        split(modules, [parse_setting({"*": 0.5})])
    for weight in (1.5, -1):
        with pytest.raises(SettingError, match="which takes only 0 or 1"):
            given.weights(parse_setting({"attention": weight, "allow_extrapolation": True}))


def test_a_part_without_a_file_is_refused_only_where_it_would_act():
    attention, ffn, other = cut()
    given = Served("m", {}, (attention, Part(ffn.label, ffn.modules, ffn.selectors, refused="no experts."), other))
    assert given.weights(parse_setting("attention+other")) == (1, 0, 1)
    with pytest.raises(SettingError, match=r"'all' asks for the update of 'ffn', which is not served here: no experts"):
        given.weights(parse_setting("all"))


@pytest.mark.parametrize(
    ("model", "value"),
    [
        (None, "attention"),
        ("", "attention"),
        ("m", "attention"),
        ("m:mine", {"ffn": 0.5}),
        ("m:TAIF", "ffn"),
        ("m:attention+other", "attention+other"),
        ('m:{"attention": 1, "ffn": 0.5}', {"attention": 1, "ffn": 0.5}),
        ('m:{"*@0-3": [0, 1]}', {"*@0-3": [0, 1]}),
        ('m:{"ffn": -1, "allow_extrapolation": true}', {"ffn": -1, "allow_extrapolation": True}),
    ],
)
def test_names_of_models_are_settings(model, value):
    models = {"m": parse_setting("attention"), "m:mine": parse_setting({"ffn": 0.5})}
    assert Served("m", models, ()).setting(model).value == value


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("other", ConfigError, "There is no model 'other' here"),
        ("mm:attention", ConfigError, r"no model 'mm:attention' here. Did you mean 'm:attention'"),
        (["m"], ConfigError, "There is no model"),
        ("m:atention", SettingError, "Did you mean 'attention'"),
        ("m:", SettingError, "Unknown inference modules ''"),
        ("m:{attention: 1}", ConfigError, "is no JSON"),
        ('m:{"ffn": 2}', SettingError, "The weight of 'ffn' is 2"),
    ],
)
def test_what_is_no_model_is_said(model, error, message):
    given = Served("m", {"m": parse_setting("all"), "m:attention": parse_setting("attention")}, ())
    with pytest.raises(error, match=message):
        given.setting(model)


def test_what_is_served_comes_out_of_a_file_as_it_was(tmp_path):
    parts = cut({"attention": 1, "ffn@0-1": 0.5})
    written = [Part(one.label, one.modules, one.selectors, tmp_path / one.label, rank=4) for one in parts[:2]]
    models = {"m:x": parse_setting({"ffn": 0.5, "attention": 1}), "m": parse_setting("attention")}
    given = Served("m", models, (*written, *parts[2:]))
    again = Served.of(json.loads(json.dumps(given.to_dict())))
    assert again == given
    assert list(again.models) == list(models)


def test_every_pair_of_settings_is_served_by_the_cut_of_both():
    some = ["all", {"ffn@1-2": 0.5, "attention": 1}, {"*.up_proj": 0.1}, {"*": 1, "ffn@0": 0}, "other"]
    for pair in itertools.combinations(some, 2):
        assert all(served(*pair).takes(parse_setting(one)) for one in pair), pair
