"""Updates that act as a whole or not at all: groups are dropped one after the other."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peft import LoHaConfig

import taia_hub
from taia_hub.errors import ConfigError, SettingError
from taia_hub.modeling_taia import TAIAForCausalLM
from taia_hub.switch.learned import learned
from taia_hub.tuning import work
from taia_hub.tuning.dropping import Dropping, Sums
from taia_hub.tuning.grouping import Grouping
from taia_hub.tuning.measured import Measure
from taia_hub.tuning.processes import Processes
from taia_hub.tuning.searching import Point
from tests.conftest import Pico
from tests.tuning.conftest import LENGTH, USEFUL, a_second_a_look, general, rows, with_update

OPTIONS: dict[str, Any] = {"tokenizer": object()}


@pytest.fixture(scope="module")
def whole(pico: Pico) -> Any:
    config = LoHaConfig(r=2, alpha=4, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"])
    return TAIAForCausalLM.from_adapter(pico.base("llama"), pico.adapter("llama", config, "tuning-loha")).eval()


def test_such_an_update_takes_no_weights(whole: Any) -> None:
    import torch

    with pytest.raises(SettingError, match="takes only the numbers 0 or 1"):
        learned(whole._taia_switch, [torch.tensor(0.5)] * len(whole._taia_switch.sites))


def test_its_candidates_have_weights_of_0_and_1(whole: Any) -> None:
    tuned = taia_hub.tune(whole, rows(20, 1, 2), general(20, 2), points=3, **OPTIONS)
    assert {weight for one in tuned.candidates for weight in one.weights} == {0.0, 1.0}
    assert not any(one.kind == "common" for one in tuned.candidates)
    assert "takes only 0 or 1" in tuned.notes[-1]
    assert tuned.steps == 3
    assert tuned.complete


def test_what_costs_the_least_goes_first(trained_base: Any) -> None:
    """The two useful parts of four are what is left, where nothing between 0 and 1 is allowed."""
    model = with_update(trained_base, USEFUL, 0, noise=0.1)
    grouping = Grouping(model._taia_switch.sites)
    dropping = Dropping(Measure(model, Processes()), grouping, rows(30, 1, 2), general(30, 2), "kl")
    first = dropping.round((True,) * 4, 3)
    assert dropping.computed == (2 * 5 + 1) * 30 * LENGTH, "five settings on both sides, and the base on one"
    second = dropping.round([bool(one) for one in first.weights], 2)
    labels = [group.label for group in grouping.groups]
    left = {label for label, weight in zip(labels, second.weights, strict=True) if weight}
    assert sum(first.weights) == 3
    assert left == {"attention@0", "ffn@1"}


class _Sums(Dropping):
    """Sums that are written by hand: what the target loss grows by without a group, and what is given back."""

    def __init__(self, costs: list[tuple[float, float]]) -> None:
        self.costs = costs

    def sums(self, weights: Any) -> list[Sums]:
        gone = [[at for at, weight in enumerate(one) if not weight] for one in weights]
        return [
            Sums(2 + sum(self.costs[at][0] for at in one), 1 - sum(self.costs[at][1] for at in one)) for one in gone
        ]


@pytest.mark.parametrize(
    ("costs", "first"),
    [
        ([(0.3, 0.3), (0.1, 0.4), (0.2, 0.3)], 1),  # the least for what it gives back
        ([(1e-9, 1e-12), (0.2, 0.5), (0.1, 0.5)], 0),  # costs nothing that could be seen, and so little is noise
        ([(1e-9, -1e-12), (0.2, 0.5), (0.1, 0.5)], 0),
        ([(0.3, -0.1), (0.2, 0.5), (0.4, 0.5)], 1),
    ],
)
def test_the_price_of_nearly_nothing_does_not_count(costs: list[tuple[float, float]], first: int) -> None:
    point = _Sums(costs).round((True,) * 3, 9)
    assert point.weights.index(0.0) == first
    assert 0 <= point.trade_off < 10


@pytest.mark.parametrize(("price", "weights"), [(0.0, (0.5, 1.0, 0.0)), (1.0, (0.5, 0.0, 0.0))])
def test_a_point_is_tried_without_what_acts_as_a_whole(price: float, weights: tuple[float, ...]) -> None:
    dropping = _Sums([(0.1, 0.1), (0.1, 0.2), (-0.1, 0.0)])
    assert dropping.without(Point(price, (0.5, 1.0, 1.0), 2.0), [1, 2]).weights == weights


def test_what_acts_as_a_whole_is_held_while_the_others_are_searched(pico: Pico) -> None:
    """One such module among LoRA makes no greedy search of it, and no later group is without its weights."""
    folder = pico.adapter("llama", pico.lora("llama", modules_to_save=["lm_head"]), "tuning-head")
    model = TAIAForCausalLM.from_adapter(pico.base("llama"), folder).eval()
    tuned = taia_hub.tune(model, rows(20, 1, 2), general(20, 2), points=2, **OPTIONS)
    head = next(at for at, group in enumerate(tuned.groups) if "head" in group.label or group.modules == 1)
    found = [one for one in tuned.candidates if one.kind != "mode"]
    assert {one.weights[head] for one in found} <= {0.0, 1.0}
    assert any(0 < weight < 1 for one in found if one.kind == "tuned" for weight in one.weights)
    assert sum(one.kind == "common" for one in found) == 3
    assert tuned.steps == 17
    assert "takes only 0 or 1" in tuned.notes[-1]
    assert tuned.groups[head].label in tuned.notes[-1]


def test_it_goes_on_where_it_was_interrupted(whole: Any, tmp_path: Path) -> None:
    inputs = rows(20, 1, 2), general(20, 2)
    through = taia_hub.tune(whole, *inputs, points=3, **OPTIONS)
    rounds = list[int]()

    def told(stage: str, done: int, total: int) -> None:
        rounds.append(done)
        if stage == "report":
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            taia_hub.tune(whole, *inputs, points=3, out=tmp_path, progress=told, **OPTIONS)
    resumed = taia_hub.tune(whole, *inputs, points=3, out=tmp_path, **OPTIONS)
    assert rounds[:3] == [1, 2, 3]
    assert len(rounds) == 5, "the second time nothing was searched"
    assert resumed.candidates == through.candidates
    assert (resumed.steps, resumed.tokens) == (through.steps, through.tokens)


def test_with_more_time_than_before_all_rounds_are_done(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = rows(20, 1, 2), general(20, 2)
    with monkeypatch.context() as patch:
        patch.setattr(work.Work, "rounds", lambda self: 1)
        first = taia_hub.tune(whole, *inputs, points=3, budget=1, out=tmp_path, **OPTIONS)
    assert (first.complete, first.steps) == (False, 1)
    second = taia_hub.tune(whole, *inputs, points=3, out=tmp_path, **OPTIONS)
    assert (second.complete, second.steps) == (True, 3)
    assert second.candidates == taia_hub.tune(whole, *inputs, points=3, **OPTIONS).candidates


def test_the_first_process_plans_for_all() -> None:
    """Another one that was faster, or slower, plans no other rounds, and refuses no other budget."""
    here = {"seconds": 30.0, "most_rounds": 3, "scale": lambda: (1.0,), "tokens_to_search": lambda: 1}
    there = {"tokens_to_report": lambda: 1, "asked": SimpleNamespace(budget=1.0, grouping=SimpleNamespace(groups=[1]))}
    for planned, rounds in (((29.0, 2.0), 3), ((5.0, 2.0), 2)):
        processes = SimpleNamespace(first=lambda own, planned=planned: planned if isinstance(own, tuple) else own)
        assert work.Work.rounds(SimpleNamespace(processes=processes, **here, **there)) == rounds  # type: ignore[arg-type]
    slow = {**here, "seconds": 90.0}
    processes = SimpleNamespace(first=lambda own: (5.0, 2.0) if isinstance(own, tuple) else 2.5)
    assert work.Work.rounds(SimpleNamespace(processes=processes, **slow, **there)) == 2  # type: ignore[arg-type]


def test_a_budget_too_small_for_a_round_is_refused(whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    a_second_a_look(monkeypatch)
    with pytest.raises(ConfigError, match="budget is too small"):
        taia_hub.tune(whole, rows(20, 1, 2), general(20, 2), points=3, budget=0.01, **OPTIONS)
