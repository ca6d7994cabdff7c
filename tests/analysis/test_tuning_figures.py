"""Figures of a tuning: every number in its place with its interval, words for those who do not see them."""

import dataclasses
import sys
from xml.etree import ElementTree

import pytest

from taia_hub.analysis import draw_tuning, draw_tuning_front, draw_tuning_weights, tuning_figures
from taia_hub.analysis._style import BACKGROUND
from taia_hub.errors import MissingDependencyError
from taia_hub.results import WeightGroup
from tests.analysis.test_figures import contrast
from tests.tuning_samples import tuned


@pytest.fixture
def axes(monkeypatch):
    """The axes of every figure that is drawn; nothing is written, which takes most of the time."""
    drawn = []
    monkeypatch.setattr(tuning_figures, "write", lambda figure, folder, name, alt: drawn.append((figure.axes, alt)))
    return drawn


def test_both_figures_are_written_with_words_and_equal_bytes(tmp_path):
    again = draw_tuning_weights(tuned(), tmp_path / "2")
    for one in draw_tuning(tuned(), tmp_path / "1"):
        assert one.png.read_bytes().startswith(b"\x89PNG")
        assert one.alt in ElementTree.fromstring(one.svg.read_bytes()).find(".//{*}title").text
    assert again.png.read_bytes() == one.png.read_bytes()
    assert again.svg.read_bytes() == one.svg.read_bytes()
    assert sorted(path.name for path in (tmp_path / "1").iterdir()) == [
        f"tuning_{name}.{ending}" for name in ("front", "weights") for ending in ("png", "svg")
    ]


def test_every_candidate_stands_where_it_gains_and_loses(tmp_path, axes):
    found = tuned()
    draw_tuning_front(found, tmp_path)
    ((axis,), alt) = axes[0]
    points, bars = set(), 0
    for container in axis.containers:
        line, _, segments = container.lines
        points |= set(zip(map(float, line.get_xdata()), map(float, line.get_ydata()), strict=True))
        bars += sum(len(one.get_segments()) for one in segments)
    assert points == {(one.retention.value, one.gain["none"].value) for one in found.candidates}
    assert bars == 2 * len(found.candidates)
    (star,) = [line for line in axis.lines if line.get_marker() == "*"]
    chosen = found.recommended
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (chosen.retention.value, chosen.gain["none"].value)
    assert star.get_label() == "to use: tuned 2"
    named = {text.get_text() for text in axis.texts}
    assert named == {"better", "none (base)", "attention (TAIA)", "ffn (TAIF)", "all (vanilla)"}
    assert axis.get_xlabel() == "lost elsewhere: KL to the base on 32 retained texts (nats a token)"
    assert axis.get_ylabel() == "gained: target loss below the base's (nats a token)"
    assert "attention gains +0.231 and loses 0.0612" in alt
    assert alt.endswith("To use: tuned 2.")


def test_a_grown_loss_is_called_so(tmp_path, axes):
    draw_tuning_front(tuned(objective="loss"), tmp_path)
    ((axis,), alt) = axes[0]
    assert "loss above the base's" in axis.get_xlabel()
    assert "how much their loss grows" in alt


def test_weights_are_drawn_by_role_with_a_row_a_candidate(tmp_path, axes):
    found = tuned(layers=3)
    draw_tuning_weights(found, tmp_path)
    (attention, ffn, _), alt = axes[0]
    assert [axis.get_title(loc="left") for axis in (attention, ffn)] == ["attention", "ffn"]
    assert [text.get_text() for text in ffn.get_yticklabels()] == ["tuned 1", "★ tuned 2", "tuned 3"]
    assert ffn.yaxis_inverted(), "the first row is above"
    values = ffn.collections[0].get_array()
    assert values.shape == (3, 3)
    assert values[1].tolist() == list(found.recommended.weights[1::2])
    assert "Of tuned 2: attention from 0.50 to 0.50" in alt


def test_a_chosen_mode_is_drawn_with_the_front(tmp_path, axes):
    draw_tuning_weights(tuned(chosen="attention", found=20), tmp_path)
    (attention, ffn, _), _ = axes[0]
    rows = [text.get_text() for text in attention.get_yticklabels()]
    assert "★ attention" in rows
    assert len(rows) == 8
    assert attention.collections[0].get_array()[rows.index("★ attention")].tolist() == [1, 1]
    assert ffn.collections[0].get_array()[rows.index("★ attention")].tolist() == [0, 0]


def test_weights_outside_zero_and_one_have_colours_of_their_own(tmp_path, axes):
    found = tuned()
    odd = [
        dataclasses.replace(one, weights=tuple(2 * weight - 0.5 for weight in one.weights)) for one in found.candidates
    ]
    draw_tuning_weights(dataclasses.replace(found, candidates=tuple(odd)), tmp_path)
    drawn = axes[0][0][0].collections[0]
    below, zero, above = (drawn.cmap(drawn.norm(value)) for value in (-0.4, 0.0, 0.4))
    assert min(zero) > 0.98
    assert below[0] > below[2]
    assert above[2] > above[0]


def test_groups_of_no_layer_are_named_below(tmp_path, axes):
    found = tuned()
    names = ("*.down_proj", "*.up_proj", "*.q_proj")
    groups = (*(WeightGroup(name, name, None, None, 2, 8) for name in names), *found.groups[3:])
    draw_tuning_weights(dataclasses.replace(found, groups=groups), tmp_path)
    (ffn, others, _), _ = axes[0]
    assert ffn.get_title(loc="left") == "ffn"
    assert others.get_title(loc="left") == "outside the layers"
    assert [text.get_text() for text in others.get_xticklabels()] == list(names)


def test_the_quiet_colour_stands_out_too():
    assert contrast(tuning_figures._QUIET, BACKGROUND) >= 4.5


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match="matplotlib"):
        draw_tuning(tuned(), tmp_path)
