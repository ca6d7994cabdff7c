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
