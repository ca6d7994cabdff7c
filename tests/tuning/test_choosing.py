"""The front and the choice, on losses that are written by hand."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from taia_hub.retaining import Losses
from taia_hub.switch.settings import parse_setting
from taia_hub.tuning.choosing import Proposal, judge

SETTINGS = {"none": "none", "attention": "attention", "ffn": "ffn", "all": "all", "tuned 1": {"ffn@0": 0.5}}
NOISE = np.random.default_rng(0).normal(size=60)


def judged(points: Mapping[str, tuple[float, float]], spread: float = 0.01, **options: Any) -> Any:
    """Judges proposals of these target losses and divergences; items differ by as much as `spread`."""
    proposals, target, retain = [], [], []
    for number, (label, (loss, lost)) in enumerate(points.items()):
        kind = "tuned" if label.startswith("tuned") else "mode"
        proposals.append(Proposal(label, kind, parse_setting(SETTINGS.get(label, label)), (float(number),)))
        own = np.random.default_rng(number).normal(size=60) * spread
        nats = tuple((10 * (loss + own + 0.5 * NOISE)).tolist())
        kl = tuple((10 * lost * (1 + own)).tolist())
        target.append(Losses((10,) * 60, nats))
        retain.append(Losses((10,) * 60, tuple((20 + np.array(kl)).tolist()), kl, (int(lost > 0),) * 60))
    return judge(proposals, target, retain, **{"objective": "kl", "seed": 0, **options})


PLAIN = {"none": (3.0, 0.0), "attention": (2.5, 0.2), "ffn": (2.8, 0.3), "all": (2.3, 0.5)}


@pytest.mark.parametrize(
    ("points", "label", "beats"),
    [
        (PLAIN, "all", False),
        ({**PLAIN, "attention": (2.3, 0.2)}, "attention", False),
        ({**PLAIN, "all": (2.999, 0.5), "attention": (3.0, 0.1), "ffn": (3.001, 0.1)}, "none", False),
        ({**PLAIN, "tuned 1": (2.3, 0.3)}, "tuned 1", True),  # keeps more
        ({**PLAIN, "tuned 1": (2.2, 0.5)}, "tuned 1", True),  # fits better
        ({**PLAIN, "tuned 1": (2.4, 0.1)}, "all", False),  # a point of the front, and no better than `all` in both
        ({**PLAIN, "tuned 1": (2.3, 0.48)}, "all", False),  # a fiftieth less is not worth it
        ({**PLAIN, "tuned 1": (2.27, 0.6)}, "all", False),  # nor is a little more gained for more lost
        ({**PLAIN, "tuned 1": (2.1, 0.6)}, "tuned 1", True),  # a tenth more gained is
    ],
)
def test_the_choice_is_by_the_rule(points: dict[str, tuple[float, float]], label: str, beats: bool) -> None:
    found = judged(points)
    assert (found.choice.label, found.choice.beats_plain) == (label, beats)
    assert found.choice.plain == (label if not beats else "all")
    assert found.choice.reason.startswith(f"Use {label}")
    assert ("no tuned setting beats it" in found.choice.reason) != beats


def test_noise_hides_what_is_better() -> None:
    assert judged({**PLAIN, "tuned 1": (2.2, 0.5)}, spread=2.0).choice.beats_plain is False


def noisy(
    rng: np.random.Generator, gives_up: float, items: int, tuned: int = 1, spread: float = 0.15, keeps: float = 0.02
) -> Any:
    """Judges tuned proposals that keep more than `all` and give up so much of what it gains, item by item about so."""
    tokens, base = (20,) * items, rng.normal(2.5, 0.5, items)
    gained = base - rng.normal(0.3, 0.2, items)
    proposals = [Proposal(mode, "mode", parse_setting(mode), ()) for mode in ("none", "all")]
    proposals += [Proposal(f"tuned {at}", "tuned", parse_setting({"*": at / 10}), ()) for at in range(tuned)]
    target = [base, gained, *(gained + rng.normal(0.3 * gives_up, spread, items) for _ in range(tuned))]
    lost = [np.zeros(items), *(rng.normal(kl, 0.02, items) for kl in (0.1, *[keeps] * tuned))]
    return judge(
        proposals,
        [Losses(tokens, tuple(20 * one)) for one in target],
        [Losses(tokens, (60.0,) * items, tuple(20 * one), (0,) * items) for one in lost],
        objective="kl",
        seed=0,
        resamples=400,
    )


@pytest.mark.parametrize(("items", "gives_up"), [(10, 0.2), (10, 0.5), (32, 0.2)])
def test_what_gives_up_much_is_not_chosen_for_keeping_more(items: int, gives_up: float) -> None:
    rng = np.random.default_rng(0)
    assert sum(noisy(rng, gives_up, items).choice.beats_plain for _ in range(40)) <= 4


def test_what_fits_as_well_is_chosen_for_keeping_more() -> None:
    choice = noisy(np.random.default_rng(0), 0.0, 32, spread=0.02).choice
    assert choice.beats_plain
    assert "fits the target as well, to within 0.03" in choice.reason


def test_a_mode_that_gives_up_much_is_not_the_best_for_keeping_more() -> None:
    points = {**PLAIN, "attention": (2.42, 0.2)}  # a sixth of what `all` gains, which few noisy items do not tell
    assert judged(points, spread=0.5).choice.label == "all"


def test_the_best_of_five_that_are_noise_is_rarely_called_better() -> None:
    rng = np.random.default_rng(0)
    called = sum(noisy(rng, 0.0, 60, tuned=5, spread=1.0, keeps=0.1).choice.beats_plain for _ in range(100))
    assert called <= 7


def test_the_front_is_what_nothing_beats_in_both() -> None:
    found = judged({**PLAIN, "tuned 1": (2.4, 0.2)}, spread=0.0)
    assert [one.label for one in found.candidates if one.on_front] == ["none", "all", "tuned 1"]


def test_numbers_are_those_of_the_items() -> None:
    found = {one.label: one for one in judged({**PLAIN, "tuned 1": (2.3, 0.3)}).candidates}
    one = found["tuned 1"]
    assert one.target.value == pytest.approx(2.3 + 0.5 * NOISE.mean(), abs=0.01)
    assert one.gain["none"].value == pytest.approx(0.7, abs=0.01)
    assert one.gain["none"].low > 0.68, "what makes an item hard for both cancels"
    assert one.target.high - one.target.low > 0.1
    assert one.saved["all"].value == pytest.approx(0.2, abs=0.01)
    assert (one.kept.value, found["none"].kept.value) == (0.9, 1.0)
    assert list(one.gain) == ["none", "attention", "ffn", "all"]


def test_the_loss_that_grew_counts_where_it_is_asked_for() -> None:
    found = judged(PLAIN, objective="loss").candidates
    assert [round(one.retention.value, 2) for one in found] == [0.0, 0.2, 0.3, 0.5]
