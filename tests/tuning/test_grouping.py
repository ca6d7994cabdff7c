"""Which modules share a weight, and what settings weights become."""

import pytest

from taia_hub.errors import ConfigError
from taia_hub.switch.settings import parse_published, parse_setting
from taia_hub.switch.switch import Site
from taia_hub.tuning.grouping import Grouping

SITES = [
    Site("lm_head", "other", None, "lora.Linear", 5),
    *(
        Site(f"model.layers.{layer}.{path}", role, layer, "lora.Linear", 10 + layer)
        for layer in range(4)
        for path, role in (("self_attn.q_proj", "attention"), ("mlp.up_proj", "ffn"), ("mlp.down_proj", "ffn"))
    ),
]


@pytest.mark.parametrize(
    ("by", "labels"),
    [
        ("role x layer", ["other", *(f"{role}@{layer}" for layer in range(4) for role in ("attention", "ffn"))]),
        ("role", ["attention", "ffn", "other"]),
        ("block:3", ["other", "attention@0-2", "ffn@0-2", "attention@3", "ffn@3"]),
        ("layer", ["*", "*@0", "*@1", "*@2", "*@3"]),
        ("attention,*.up_proj", ["*", "attention", "*.up_proj"]),
        (["ffn", "ffn@2-3", "attention", "other"], ["ffn", "ffn@2-3", "attention", "other"]),
    ],
)
def test_groups_are_what_their_selectors_select(by: str | list[str], labels: list[str]) -> None:
    grouping = Grouping(SITES, by)
    assert [group.label for group in grouping.groups] == labels
    assert sum(group.modules for group in grouping.groups) == len(SITES)
    assert sum(group.parameters for group in grouping.groups) == sum(site.parameters for site in SITES)
    weights = [round(0.1 + 0.07 * number, 2) for number in range(len(labels))]
    setting = grouping.setting(weights)
    assert setting.weights(SITES) == grouping.of_sites(weights)
    assert grouping.of_setting(setting) == tuple(weights)
    assert parse_published(setting.published) == setting


@pytest.mark.parametrize("mode", ["none", "attention", "ffn", "all"])
def test_a_mode_is_called_by_its_name(mode: str) -> None:
    grouping = Grouping(SITES)
    assert grouping.setting(grouping.of_setting(parse_setting(mode))).value == mode


def test_a_setting_is_as_short_as_it_can_be() -> None:
    grouping = Grouping(SITES)
    labels = [group.label for group in grouping.groups]
    weights = dict.fromkeys(labels, 0.0) | {"attention@1": 1.0, "attention@2": 1.0, "ffn@3": 0.251}
    assert grouping.setting([weights[label] for label in labels]).value == {"attention@1-2": 1.0, "ffn@3": 0.25}


def test_a_zero_over_a_wider_selector_stays() -> None:
    sites = [*SITES, Site("model.layers.1.norm", "other", 1, "lora.Linear", 1)]
    grouping = Grouping(sites)
    weights = [0.0 if group.label == "other@1" else 0.5 for group in grouping.groups]
    assert grouping.setting(weights).weights(sites) == grouping.of_sites(weights)
    assert grouping.setting(weights).value["other@1"] == 0.0


def test_weights_beyond_one_say_that_they_are_meant() -> None:
    setting = Grouping(SITES, "role").setting([1.5, -0.25, 0.0])
    assert setting.published == [["attention", 1.5], ["ffn", -0.25], ["allow_extrapolation", True]]


def test_what_acts_as_a_whole_is_a_group_of_its_own() -> None:
    whole = Site("score", "other", None, "ModulesToSaveWrapper", 8, whole_only="it is a copy")
    mixed = [whole, *SITES]  # lm_head is of its role
    grouping = Grouping(mixed, "role")
    assert [group.label for group in grouping.groups] == ["attention", "ffn", "other", "score"]
    assert grouping.whole == (False, False, False, True)
    weights = [0.5, 0.5, 0.5, 1.0]
    assert grouping.setting(weights).weights(mixed) == grouping.of_sites(weights)
    alone = Grouping([whole, *SITES[1:]], "role")
    assert [group.label for group in alone.groups] == ["attention", "ffn", "other"]
    assert alone.whole == (False, False, True)


def test_neighbours_are_layers_of_one_role() -> None:
    grouping = Grouping(SITES, "block:2")
    named = [(grouping.groups[a].label, grouping.groups[b].label) for a, b in grouping.neighbours]
    assert sorted(named) == [("attention@0-1", "attention@2-3"), ("ffn@0-1", "ffn@2-3")]


@pytest.mark.parametrize(
    ("by", "said"),
    [
        ("layers", "Did you mean 'layer'"),
        ("block:0", "block:4"),
        (["ffn", "ffn"], "'ffn' is left without"),
        ("ffn@7", "'ffn@7' is left without"),
        ([3], "cannot be put together by 3"),
    ],
)
def test_what_selects_nothing_is_refused(by: str | list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Grouping(SITES, by)
