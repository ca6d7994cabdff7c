"""A tuning from end to end, on updates of which it is known what is useful."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import taia_hub
from taia_hub.common.labels import Encoded
from taia_hub.errors import ConfigError, SettingError
from taia_hub.results import Tuned
from taia_hub.tuning import searching, work
from tests.tuning.conftest import EVERY, USEFUL, a_second_a_look, general, rows, with_update

TUNING: dict[str, Any] = {"tokenizer": object(), "points": 2}


@pytest.mark.parametrize("seed", range(4))
def test_the_useful_part_is_found_among_noise(trained_base: Any, seed: int) -> None:
    model = with_update(trained_base, USEFUL, seed)
    tuned = taia_hub.tune(model, rows(120, seed, 2), general(80, seed), **TUNING)
    weights = dict(zip([group.label for group in tuned.groups], tuned.recommended.weights, strict=True))
    assert tuned.recommended.kind == "tuned"
    assert all(
        (weight > 0.8) if label in ("attention@0", "ffn@1") else (weight < 0.2) for label, weight in weights.items()
    )
    assert tuned.choice.beats_plain
    assert tuned.recommended.gain["all"].low > 0


@pytest.mark.parametrize("seed", range(2))
def test_all_is_recommended_where_every_part_is_useful(trained_base: Any, seed: int) -> None:
    model = with_update(trained_base, EVERY, seed, steps=60)
    tuned = taia_hub.tune(model, rows(80, seed, 2), general(80, seed), **TUNING)
    assert tuned.choice.label == "all"
    assert "no tuned setting beats it beyond noise" in tuned.choice.reason


@pytest.mark.parametrize("seed", range(2))
def test_none_is_recommended_where_the_target_needs_nothing(trained_base: Any, seed: int) -> None:
    model = with_update(trained_base, [], seed)
    tuned = taia_hub.tune(model, rows(80, seed, 0), general(80, 7 + seed), **TUNING)
    assert tuned.choice.label == "none"
    assert not tuned.choice.beats_plain
    none = tuned.candidate("none")
    assert (none.retention.value, none.retention.high, none.kept.value) == (0.0, 0.0, 1.0)
    assert none.on_front


def test_nothing_of_the_model_changes(update: Any) -> None:
    before = {name: tensor.clone() for name, tensor in update.state_dict().items()}
    flags = [parameter.requires_grad for parameter in update.parameters()]
    update.train()
    try:
        taia_hub.tune(update, rows(20, 1, 2), general(20, 2), by="role", **TUNING)
        assert update.training
    finally:
        update.eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in update.state_dict().items())
    assert [parameter.requires_grad for parameter in update.parameters()] == flags
    assert all(parameter.grad is None for parameter in update.parameters())
    assert update.inference_modules == "all"


def test_what_is_recommended_is_a_setting_of_the_model(update: Any) -> None:
    tuned = taia_hub.tune(update, rows(40, 1, 2), general(40, 2), **TUNING)
    for one in tuned.candidates:
        with update.using(one.parsed):
            assert update.status()
    assert Tuned.from_json(json.loads(json.dumps(tuned.to_json()))) == tuned


def test_common_weights_and_modes_are_candidates(update: Any) -> None:
    tuned = taia_hub.tune(update, rows(20, 1, 2), general(20, 2), by="role", **TUNING)
    labels = [one.label for one in tuned.candidates]
    assert labels[:7] == ["none", "attention", "ffn", "all", "all at 0.25", "all at 0.5", "all at 0.75"]
    assert tuned.candidate("all at 0.5").weights == (0.5, 0.5)
    assert {group.label for group in tuned.groups} == {"attention", "ffn"}


class _Stopped(Exception):
    """What a killed run raises here."""


def _stop_after(steps: int) -> Any:
    def told(stage: str, done: int, total: int) -> None:
        if stage == "search" and done == steps:
            raise _Stopped

    return told


def test_an_interrupted_search_ends_as_one_that_ran_through(update: Any, tmp_path: Path) -> None:
    inputs = rows(24, 1, 2), general(24, 2)
    options: dict[str, Any] = {"tokenizer": object(), "points": 3, "by": "role"}
    whole = taia_hub.tune(update, *inputs, **options)
    for steps in (5, 13, 20):  # in the first point, in the second, in the third
        with pytest.raises(_Stopped):
            taia_hub.tune(update, *inputs, out=tmp_path, progress=_stop_after(steps), **options)
        assert not (tmp_path / "taia_tuning.json").exists()
    calls = list[tuple[str, int, int]]()
    resumed = taia_hub.tune(update, *inputs, out=tmp_path, progress=lambda *told: calls.append(told), **options)
    assert dataclasses.replace(resumed, seconds=whole.seconds) == whole
    assert calls[0] == ("search", 18, 24), "the two points that were found are not searched again"
    assert calls[-1] == ("report", 24, 24)


def test_progress_counts_the_first_point_that_is_searched_again(update: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    better = searching.Search.better
    again = lambda search, state, gain: better(search, state, gain) or (None if state.again else state.found[-1])  # noqa: E731
    monkeypatch.setattr(searching.Search, "better", again)
    calls = list[tuple[str, int, int]]()
    options: dict[str, Any] = {"tokenizer": object(), "points": 2, "by": "role"}
    tuned = taia_hub.tune(update, rows(20, 1, 2), general(20, 2), progress=lambda *told: calls.append(told), **options)
    done = [call[1] for call in calls if call[0] == "search"]
    assert done == list(range(1, 10 + 7 + 10 + 1))
    assert ("search", tuned.steps, tuned.steps) in calls


def test_a_finished_tuning_is_not_done_again(update: Any, tmp_path: Path) -> None:
    inputs = rows(20, 1, 2), general(20, 2)
    first = taia_hub.tune(update, *inputs, out=tmp_path, by="role", **TUNING)
    again = taia_hub.tune(update, *inputs, out=tmp_path, by="role", progress=_never, **TUNING)
    assert again == first == Tuned.load(tmp_path)


def _never(*told: Any) -> None:
    raise AssertionError(told)


def test_a_folder_of_another_tuning_is_left_alone(update: Any, tmp_path: Path) -> None:
    first = taia_hub.tune(update, rows(20, 1, 2), general(20, 2), out=tmp_path, by="role", **TUNING)
    with pytest.raises(ConfigError, match="the target items are others"):
        taia_hub.tune(update, rows(20, 5, 2), general(20, 2), out=tmp_path, by="role", **TUNING)
    assert Tuned.load(tmp_path) == first
    other = taia_hub.tune(update, rows(20, 5, 2), general(20, 2), out=tmp_path, by="role", overwrite=True, **TUNING)
    assert Tuned.load(tmp_path) == other != first


def test_a_budget_too_small_for_a_step_is_refused(update: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="budget is too small"):
        taia_hub.tune(update, rows(20, 1, 2), general(20, 2), out=tmp_path / "new", budget=1e-5, **TUNING)
    assert not (tmp_path / "new").exists()


def test_a_budget_ends_the_search_and_says_so(update: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    a_second_a_look(monkeypatch)
    tuned = taia_hub.tune(update, rows(20, 1, 2), general(20, 2), by="role", budget=0.5, tokenizer=object())
    assert not tuned.complete
    assert tuned.steps < 38
    assert any(one.kind == "tuned" for one in tuned.candidates)
    assert "The budget ended the search" in tuned.to_text()


def _ends_at(step: int) -> Any:
    """Lets the budget be over after so many steps, whatever was planned."""
    left = iter([False] * (step - 1))
    return lambda self, report: self.asked.budget is not None and next(left, True)


def test_a_search_that_its_budget_ended_goes_on_with_more(
    update: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = rows(20, 1, 2), general(20, 2)
    options: dict[str, Any] = {"tokenizer": object(), "points": 3, "by": "role", "out": tmp_path}
    monkeypatch.setattr(work.Work, "is_over", _ends_at(14))  # of 10 + 7 + 7: the second point counts, cut short
    first = taia_hub.tune(update, *inputs, budget=100, **options)
    assert not first.complete
    assert taia_hub.tune(update, *inputs, budget=50, progress=_never, **options) == first, "there is no more time"
    steps = list[int]()
    second = taia_hub.tune(update, *inputs, progress=lambda stage, done, total: steps.append(done), **options)
    assert second.complete
    assert second.seconds > first.seconds
    assert steps[0] == 15, "the first point is not searched again"
    assert second.steps == 14 + 7 + 7, "the second one is, and the third"
    assert taia_hub.tune(update, *inputs, budget=1, progress=_never, **options) == second == Tuned.load(tmp_path)


def test_a_search_of_too_few_steps_is_done_again_with_more_time(
    update: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = rows(20, 1, 2), general(20, 2)
    options: dict[str, Any] = {"tokenizer": object(), "points": 3, "by": "role", "out": tmp_path}
    with monkeypatch.context() as patch:
        a_second_a_look(patch)
        first = taia_hub.tune(update, *inputs, budget=0.3, **options)
    assert not first.complete
    second = taia_hub.tune(update, *inputs, budget=100, **options)
    assert (second.complete, second.steps) == (True, 10 + 7 + 7)
    assert sum(one.kind == "tuned" for one in second.candidates) == 3


def test_items_on_both_sides_are_told_and_left_out(update: Any) -> None:
    target = rows(20, 1, 2)
    tuned = taia_hub.tune(update, target, [*general(20, 2), *target[:3]], by="role", **TUNING)
    assert tuned.notes[0].startswith("3 of the retained items stand in the target too")
    assert (tuned.retain.left_out, tuned.retain.search + tuned.retain.report) == (3, 20)


@pytest.mark.parametrize("few", ["target", "retained"])
def test_too_few_items_are_refused(update: Any, few: str) -> None:
    sides = rows(19 if few == "target" else 20, 1, 2), general(18 if few == "retained" else 20, 2)
    with pytest.raises(ConfigError, match=f"{few} items; 20 are the fewest"):
        taia_hub.tune(update, *sides, **TUNING)


def test_an_item_whose_loss_is_no_number_is_named(update: Any) -> None:
    model = copy.deepcopy(update)
    model.get_input_embeddings().weight.data[31] = torch.inf
    wrong = Encoded([31, 3, 4], [-100, 3, 4])
    usual = [row for row in rows(60, 1, 2) if 31 not in row.input_ids][:25]
    usual_too = [row for row in general(90, 2) if 31 not in row.input_ids][:25]
    with pytest.raises(ConfigError, match="is no number"):
        taia_hub.tune(model, usual, [*usual_too, *([wrong] * 1)], seed=1, **TUNING)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": "rolle"}, "Modules cannot be put together by 'rolle'. Did you mean 'role'?"),
        ({"by": ["*.no_such"]}, "'*.no_such' is left without an adapted module"),
        ({"objective": "accuracy"}, "The objective is 'accuracy'"),
        ({"points": 0}, "points is 0"),
        ({"budget": -1}, "The budget is -1"),
        ({"limit": 3}, "limit is 3"),
        ({"dtype": "float32"}, "'dtype' has no use for a loaded model"),
    ],
)
def test_wrong_options_are_refused_before_any_work(update: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        taia_hub.tune(update, rows(20, 1, 2), general(20, 2), progress=_never, **{**TUNING, **options})
    assert said in str(caught.value)


def test_a_fused_model_is_refused(update: Any) -> None:
    with update.fused("all"), pytest.raises(SettingError, match="fused"):
        taia_hub.tune(update, rows(20, 1, 2), general(20, 2), **TUNING)


@pytest.mark.parametrize(("given", "place"), [({}, "cuda:7"), ({"device_map": None}, None)])
def test_a_model_by_name_goes_where_there_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], place: str | None
) -> None:
    def loaded(name: str, **loading: Any) -> None:
        raise _Stopped(name, loading)

    monkeypatch.setattr("taia_hub.tuning.running.place", lambda: "cuda:7")
    monkeypatch.setattr("taia_hub.modeling_taia.TAIAForCausalLM.from_pretrained", loaded)
    with pytest.raises(_Stopped) as caught:
        taia_hub.tune("org/model", rows(20, 1, 2), dtype="float32", **given)
    assert caught.value.args == ("org/model", {"dtype": "float32", "device_map": place})


def test_extrapolation_looks_beyond_what_was_trained(trained_base: Any) -> None:
    model = with_update(trained_base, EVERY, 0, steps=4)  # there is more to gain in the same direction
    inputs = rows(40, 1, 2), general(40, 2)
    tuned = taia_hub.tune(model, *inputs, by="role", allow_extrapolation=True, **TUNING)
    assert max(tuned.recommended.weights) > 1.2
    assert tuned.recommended.setting[-1] == ["allow_extrapolation", True]
    assert tuned.recommended.gain["all"].low > 0
    within = taia_hub.tune(model, *inputs, by="role", **TUNING)
    assert max(max(one.weights) for one in within.candidates) == 1.0


def test_the_loss_can_count_as_what_is_lost(update: Any) -> None:
    tuned = taia_hub.tune(update, rows(40, 1, 2), general(40, 2), objective="loss", **TUNING)
    assert tuned.objective == "loss"
    assert tuned.candidate("none").retention.value == 0.0
    assert tuned.candidate("all").retention.value > 0.1
    found = [one for one in tuned.candidates if one.kind == "tuned"]
    assert found[-1].retention.value < found[0].retention.value
