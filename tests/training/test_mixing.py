"""Mixing data from out of the domain in: numbers of items, shares, schedules, and what a seed decides."""

import json

import numpy as np
import pytest

from taia_hub.errors import ConfigError
from taia_hub.training.composition import Composition, plot_composition
from taia_hub.training.data import prepare_data
from taia_hub.training.mixing import (
    Shares,
    choose,
    held_out_size,
    hold_out,
    order_annealed,
    order_uniform,
    plan_shares,
    training_length,
)
from taia_hub.training.recipe import TrainingRecipe


@pytest.fixture
def files(tmp_path):
    """Two files in the domain with 60 and 40 items, and one out of it with 120."""
    sizes = {"one": 60, "two": 40, "out": 120}
    for name, size in sizes.items():
        items = [{"prompt": f"{name} {number}?", "completion": f"{name} {number}!"} for number in range(size)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, items)))
    return {name: str(tmp_path / f"{name}.jsonl") for name in sizes}


def mix(files, ood_ratio=0.2, **fields):
    inside = (files["one"], files["two"])
    return prepare_data(
        TrainingRecipe(base="org/base", in_domain=inside, ood=(files["out"],), ood_ratio=ood_ratio, **fields)
    )


def questions(data):
    return [row["messages"][0]["content"] for row in data.train]


def is_ood(data):
    return np.array([source == "out.jsonl" for source in data.train["source"]])


# --- How many items ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("there", "asked", "expected"),
    [
        # The settings of the paper's Figure 1, in thousands: (a) and (b) a fixed total of 20, (c) 20 kept
        ((20, 20), {"ood_ratio": 0.6}, (8, 12)),
        ((20, 20), {"ood_ratio": 0.75}, (5, 15)),
        ((20, 20), {"ood_ratio": 1.0}, (0, 20)),
        ((20, 20), {"ood_ratio": 0.0}, (20, 0)),
        ((20, 80), {"ood_ratio": 0.8, "mixing": "add"}, (20, 80)),
        ((20, 80), {"ood_ratio": 0.5, "mixing": "add"}, (20, 20)),
        ((20, 80), {"mixing": "add"}, (20, 0)),
        ((20, 5), {"ood_ratio": 0.5, "total": 10}, (5, 5)),
        ((100, 100), {"ood_ratio": 0.29, "total": 50}, (35, 15)),  # 14.5, though 0.29 * 50 is 14.499…
        ((9, 0), {"total": 4}, (4, 0)),
    ],
)
def test_the_numbers_of_items(there, asked, expected):
    assert plan_shares(*there, **asked) == Shares(*expected)


@pytest.mark.parametrize(
    ("there", "asked", "match"),
    [
        ((100, 10), {"ood_ratio": 0.2}, "There are 10 out-of-domain items; 100 items, 0.2 of them .*, need 20"),
        ((100, 10), {"ood_ratio": 0.2, "mixing": "add"}, "There are 10 out-of-domain items; 125 items, .* need 25"),
        ((10, 90), {"ood_ratio": 0.2, "total": 50}, "There are 10 in-domain items; 50 items, 0.2 of them .*, need 40"),
        ((10, 0), {"total": 50}, "There are 10 items; 50 items need 50"),
        ((10, 10), {"ood_ratio": 0.2, "total": 5, "mixing": "add"}, "total is 5 with mixing 'add'"),
        ((10, 10), {"ood_ratio": 1.0, "mixing": "add"}, "ood_ratio is 1 with mixing 'add'"),
    ],
)
def test_what_cannot_be_mixed_is_refused_with_the_numbers(there, asked, match):
    with pytest.raises(ConfigError, match=match):
        plan_shares(*there, **asked)


def test_fewer_items_are_among_more_and_a_seed_decides_which():
    drawn = choose(1000, 300, seed=4)
    assert len(set(drawn)) == 300
    assert choose(1000, 100, seed=4).tolist() == drawn[:100].tolist()
    assert choose(1000, 300, seed=5).tolist() != drawn.tolist()
    assert choose(1000, 300, seed=4, group=1).tolist() != drawn.tolist()


def test_the_length_of_a_training():
    assert [training_length(10, epochs) for epochs in (1, 2.5, 0.26, 0.001)] == [10, 25, 3, 1]
    assert training_length(10, 2, max_items=8) == 8
    assert training_length(10, 2, max_items=80) == 20


# --- What is held out ----------------------------------------------------------------------------------------------
def test_the_number_of_items_that_are_held_out():
    assert [held_out_size(count, None) for count in (1, 199, 200, 800, 801, 30_000, 10**6)] == [
        *(0, 0, 16, 16, 16, 600, 1000)
    ]
    assert [held_out_size(*one) for one in ((100, 0.0), (100, 0.3), (10, 0.01), (10, 0.99), (1, 0.5))] == [
        *(0, 30, 1, 9, 0)
    ]


def test_no_question_that_comes_again_is_held_out():
    twice, once, outside = np.tile(np.arange(150), 2), np.arange(150, 190), np.arange(185, 205)
    questions = np.concatenate([twice, once, outside])  # of the five from 185 on, one is out of the domain
    inside = np.arange(340)
    held = hold_out(questions, inside, share=None, seed=0)
    assert len(held) == 16
    assert set(questions[held]) <= set(range(150, 185))
    assert len(hold_out(questions, inside, share=0.1, seed=0)) == 34
    assert len(hold_out(np.zeros(340), inside, share=None, seed=0)) == 0


def test_what_cannot_be_held_out_is_said_where_it_was_asked_for():
    apart, alike = np.arange(300), np.repeat(np.arange(150), 2)
    assert len(hold_out(apart, apart, share=None, seed=0, spare=12)) == 12
    assert len(hold_out(apart, apart, share=None, seed=0, spare=9)) == 0  # too few to tell anything
    with pytest.raises(ConfigError, match=r"holdout 0\.1 asks for 30 of 300 items; 12 can be .* 288 items are trained"):
        hold_out(apart, apart, share=0.1, seed=0, spare=12)
    with pytest.raises(ConfigError, match=r"0 can be held out: the others have a question that comes more than once"):
        hold_out(alike, apart, share=0.1, seed=0)


# --- In which order ------------------------------------------------------------------------------------------------
def test_every_epoch_has_every_item_once_in_an_order_of_its_own():
    order = order_uniform(np.arange(50), 125, seed=0).reshape(-1, 25)
    first, second, rest = order[:2].ravel(), order[2:4].ravel(), order[4]
    assert sorted(first) == sorted(second) == list(range(50))
    assert first.tolist() != second.tolist()
    assert len(set(rest)) == 25
    assert order_uniform(np.arange(50), 125, seed=1).tolist() != order.ravel().tolist()


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 0.5, 0.6, 0.8, 1.0])
@pytest.mark.parametrize("length", [1000, 2500, 137])
def test_annealing_is_linear_ends_in_the_domain_and_keeps_the_mean(ratio, length):
    ood = round(1000 * ratio)
    order = order_annealed(np.arange(1000 - ood), np.arange(1000 - ood, 1000), length, seed=0)
    outside = order >= 1000 - ood
    assert outside.sum() == pytest.approx(length * ratio, abs=0.5)
    place = (np.arange(length) + 0.5) / length
    if ratio <= 0.5:
        share = 2 * ratio * (1 - place)
    else:
        share = np.minimum(1, (1 - place) / (2 - 2 * ratio)) if ratio < 1 else np.ones(length)
    # At no position are there more or fewer of them than the line says, to the rounding of one item.
    assert np.abs(np.cumsum(outside) - np.cumsum(share)).max() < 1
    if length == 1000:
        assert sorted(order) == list(range(1000))
    if 0 < ratio < 1:
        tail = int(length * (1 - min(1, 2 - 2 * ratio) * 0.1))
        assert outside[tail:].sum() <= 1 + 0.1 * (length - tail)


def test_annealing_over_epochs_shows_every_item_as_often_as_there_are_epochs():
    order = order_annealed(np.arange(60), np.arange(60, 100), 300, seed=3)
    assert np.bincount(order).tolist() == [3] * 100
    inside = order[order < 60].reshape(3, 60)
    assert all(sorted(epoch) == list(range(60)) for epoch in inside)
    assert inside[0].tolist() != inside[1].tolist()


# --- From files to an order of training ----------------------------------------------------------------------------
def test_replacing_keeps_the_total_and_adding_keeps_the_domain(files):
    replaced, added = mix(files), mix(files, mixing="add")
    assert (len(replaced.train), is_ood(replaced).sum()) == (100, 20)
    assert (len(added.train), is_ood(added).sum()) == (125, 25)
    assert {one for one in questions(added) if not one.startswith("out")} == {
        f"{name} {number}?" for name, size in (("one", 60), ("two", 40)) for number in range(size)
    }
    assert len(set(questions(added))) == 125
    assert [one["items"] for one in added.datasets] == [60, 40, 25]
    assert added.composition.groups == {"one.jsonl": "in_domain", "two.jsonl": "in_domain", "out.jsonl": "ood"}
    assert added.composition.ood_share == 0.2
    with pytest.raises(ConfigError, match=r"There are 120 out-of-domain items; 1000 items, 0\.9 of them .* need 900"):
        mix(files, 0.9, mixing="add")


def test_the_same_seed_gives_the_same_items_in_the_same_order(files):
    first = mix(files, schedule="linear", epochs=1.5, noise_ratio=0.2)
    again = mix(files, schedule="linear", epochs=1.5, noise_ratio=0.2)
    other = mix(files, schedule="linear", epochs=1.5, noise_ratio=0.2, seed=1)
    assert first.train[:] == again.train[:]
    assert first.train._fingerprint == again.train._fingerprint
    assert first.composition == again.composition
    assert questions(other) != questions(first)
    assert is_ood(other).tolist() == is_ood(first).tolist()


def test_the_composition_is_what_the_order_holds(files, tmp_path):
    data = mix(files, 0.4, schedule="linear", epochs=2, noise_ratio=0.5)
    outside, composition = is_ood(data), data.composition
    assert composition.stretches["out.jsonl"] == tuple(int(part.sum()) for part in np.split(outside, 20))
    assert composition.stretches["out.jsonl"][0] == 8
    assert composition.stretches["out.jsonl"][-1] == 0
    assert np.sum(list(composition.stretches.values()), axis=0).tolist() == [10] * 20
    answers = data.train["messages"]
    wrong = [row[0]["content"][:-1] != row[1]["content"][:-1] for row in answers]
    assert composition.noisy == tuple(int(part.sum()) for part in np.split(np.array(wrong), 20))
    assert sum(composition.noisy) == 2 * composition.noise.items == 100
    assert Composition.from_json(composition.to_json()) == composition
    alt = plot_composition(composition, tmp_path / "mixed").alt
    assert "out.jsonl (OOD) 80 items, 80% of the first stretch and 0% of the last" in alt


def test_steps_end_the_training_and_the_annealing_with_it(files):
    data = mix(files, 0.4, schedule="linear", max_steps=5, batch_size=8)
    assert len(data.train) == 40
    assert is_ood(data).sum() == 16
    assert data.composition.distinct == sum(one["items"] for one in data.datasets) == 40
    assert not is_ood(data)[-3:].any()
    assert len(mix(files, max_steps=500).train) == 100
    assert len(mix(files, max_steps=2, batch_size=8, packing=True).train) == 100
    assert len(mix(files, epochs=0.1).train) == 10


def test_data_alone_is_taken_whole_or_as_a_sample(files):
    paths = tuple(files.values())
    whole = prepare_data(TrainingRecipe(base="x", data=paths, holdout=0))
    fewer = prepare_data(TrainingRecipe(base="x", data=paths, total=30, holdout=0))
    more = prepare_data(TrainingRecipe(base="x", data=paths, total=90, holdout=0))
    assert len(set(questions(whole))) == 220
    assert len(fewer.train) == 30
    assert set(questions(fewer)) < set(questions(more))
    assert whole.composition.groups == dict.fromkeys(["one.jsonl", "two.jsonl", "out.jsonl"], "data")
    only = prepare_data(TrainingRecipe(base="x", in_domain=paths[:1]))
    assert len(only.train) == 60


def test_held_out_items_are_of_the_domain_and_neither_trained_on_nor_anybodys_wrong_answer(files):
    fields = {"schedule": "linear", "epochs": 2, "noise_ratio": 1.0}
    data = mix(files, 0.4, holdout=0.2, **fields)

    held = data.held_out["messages"]
    asked, answered = ({turns[at]["content"] for turns in held} for at in (0, 1))
    assert len(asked) == 20
    assert {source.removesuffix(".jsonl") for source in data.held_out["source"]} == {"one", "two"}
    assert all(turns[0]["content"][:-1] == turns[1]["content"][:-1] for turns in held)  # no noise in them
    assert not asked & set(questions(data))
    assert not answered & {turns[1]["content"] for turns in data.train["messages"]}
    assert (len(data.train), is_ood(data).sum()) == (160, 64)  # a fixed total: as many as are left in the domain
    found = data.composition.held_out
    assert (found.items, found.by_source["out.jsonl"], sum(found.by_source.values())) == (20, 0, 20)
    assert Composition.from_json(data.composition.to_json()) == data.composition
    again, other = mix(files, 0.4, holdout=0.2, **fields), mix(files, 0.4, holdout=0.2, seed=1, **fields)
    assert again.held_out[:] == data.held_out[:]
    assert other.composition.held_out.sha256 != found.sha256


def test_a_fixed_total_goes_before_what_nobody_asked_to_hold_out(files):
    paths = tuple(files.values())
    whole = prepare_data(TrainingRecipe(base="x", data=paths, total=220))
    assert (len(whole.train), len(whole.held_out)) == (220, 0)
    assert "No items could be held out" in whole.notes[0]
    some = prepare_data(TrainingRecipe(base="x", data=paths, total=209))
    assert (len(some.train), len(some.held_out), some.notes) == (209, 11, ())
    with pytest.raises(ConfigError, match=r"holdout 0\.1 asks for 22 of 220 items; 0 can be held out: 220 items are"):
        prepare_data(TrainingRecipe(base="x", data=paths, total=220, holdout=0.1))


def test_few_items_are_trained_on_as_ever(files):
    """As versions without a hold-out did, whose trainings go on and whose records are read."""
    fewer = {key: value for key, value in mix(files).composition.to_json().items() if key != "held_out"}
    assert Composition.from_json(fewer) == mix(files, holdout=0).composition
    assert len(mix(files).held_out) == 0


def test_what_a_mixture_lacks_is_said(files):
    one, out = (files["one"],), (files["out"],)
    for fields, match in [
        ({}, "names no data"),
        ({"in_domain": one, "ood": out}, "ood without ood_ratio"),
        ({"data": one, "schedule": "linear"}, "'linear' changes the share of ood, and there is none"),
        ({"data": one, "total": 61}, "There are 60 items; 61 items need 61"),
    ]:
        with pytest.raises(ConfigError, match=match):
            prepare_data(TrainingRecipe(base="org/base", **fields))
