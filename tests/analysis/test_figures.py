"""Figures: what they draw, whether everybody can read them, and that equal numbers give equal bytes."""

import math
import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from taia_hub.analysis import (
    Analysis,
    Curve,
    HiddenStates,
    ModuleUpdate,
    Subject,
    UpdateAnalysis,
    draw_figures,
    draw_residual_rank,
    draw_scores,
    draw_similarity,
    draw_update_norms,
)
from taia_hub.analysis import figures as figures_module
from taia_hub.analysis._style import BACKGROUND, PALETTE, TEXT, looks
from taia_hub.errors import ConfigError, MissingDependencyError, RepositoryError
from taia_hub.results import DatasetSource, ModelIdentity, ModeScores, Results, TaskResults, summarise

MODES = ("none", "attention", "ffn", "all")


def module(layer, role, size, base=None):
    return ModuleUpdate(f"layers.{layer}.{role}", role, layer, "Linear", 8, (4, 4), 1, size, size, 1.0, 1.0, base, base)


UPDATE = UpdateAnalysis(
    "LORA",
    tuple(module(layer, role, size) for layer in (0, 1) for role, size in (("attention", 1.0 + layer), ("ffn", 0.5))),
)


def curve(last):
    return Curve((1.0, 0.9, last), (0.0, 0.01, 0.02))


def hidden_states(modes=MODES):
    grid = tuple(np.linspace(0.8, 1, 64).tolist())
    values = {mode: tuple(math.exp(-((x - 0.9) ** 2) * 900 * (n + 1)) for x in grid) for n, mode in enumerate(modes)}
    similarity = {mode: Curve((1.0, 1.0, 1.0), (0.0,) * 3) if mode == "none" else curve(0.9) for mode in modes}
    ranks = {mode: curve(0.5 + n / 10) for n, mode in enumerate(modes)}
    return HiddenStates(3, 40, 512, "ab12", similarity, ranks, grid, values, values)


def task(name, scores, metric="acc", items=20):
    per_item = {mode: tuple(float(n < round(score * items)) for n in range(items)) for mode, score in scores.items()}
    share = metric == "acc"
    modes = {
        mode: ModeScores(mode, {metric: score}, {metric: per_item[mode]} if share else {}, 1.0)
        for mode, score in scores.items()
    }
    hashes = tuple(str(n) for n in range(items))
    return TaskResults(name, name, 0, None, metric, share, DatasetSource("x"), "1", "", hashes, modes)


def summary(*tasks):
    model = ModelIdentity("m", None, "b", None, None, "float32")
    return summarise(Results(model, tasks={one.key: one for one in tasks}), resamples=50)


SCORES = summary(
    task("maths", dict(zip(MODES, (0.2, 0.6, 0.5, 0.4), strict=True))),
    task("perplexity", dict(zip(MODES, (12.0, 9.0, 10.0, 11.0), strict=True)), metric="ppl"),
)


@pytest.fixture
def axes(monkeypatch):
    """The axes of every figure that is drawn, to look at what is on them."""
    drawn = []
    write = figures_module.write

    def watched(figure, *rest):
        drawn.append(figure.axes)
        return write(figure, *rest)

    monkeypatch.setattr(figures_module, "write", watched)
    return drawn


def contrast(one, other):
    """The contrast of two colours after WCAG 2.1: 1 for equal ones, 21 for black and white."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(color):
    parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("color", PALETTE)
def test_every_colour_stands_out_from_the_ground(color):
    assert contrast(color, BACKGROUND) >= 3  # WCAG 2.1, 1.4.11: what is needed to understand a graphic
    assert contrast(TEXT, BACKGROUND) >= 7  # 1.4.6
    assert contrast("#ffffff", "#000000") == 21
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_colour_is_never_the_only_sign():
    found = looks([*MODES, "other", *(f"mode {n}" for n in range(20))])
    assert len({(look.marker, look.line, look.color) for look in found.values()}) == len(found)
    named = [found[mode] for mode in (*MODES, "other")]
    assert len({look.color for look in named}) == len({look.marker for look in named}) == 5
    by_color = {}
    for look in found.values():
        by_color.setdefault(look.color, []).append((look.marker, look.line))
    assert all(len(set(signs)) == len(signs) for signs in by_color.values())
    assert looks(["all"])["all"] == found["all"]  # the same in every figure


def drawings(folder):
    analysis = Analysis(Subject("r", None, "b", None, "ab12"), UPDATE, hidden_states())
    return draw_figures(folder, analysis, SCORES)


def test_all_figures_are_drawn_with_words(tmp_path):
    found = drawings(tmp_path / "new" / "figures")
    assert [figure.name for figure in found] == ["scores", "update_norms", "similarity", "residual_rank"]
    for figure in found:
        assert figure.png.read_bytes().startswith(b"\x89PNG")
        root = ElementTree.fromstring(figure.svg.read_bytes())
        assert root.tag.endswith("svg")
        assert len(figure.alt) > 40
        assert "\n" not in figure.alt
    assert "maths: none 0.200, attention 0.600" in found[0].alt
    assert "attention from 1 to 2, largest in layer 1" in found[1].alt
    assert "none 1, attention 0.9" in found[2].alt
    assert "all 0.8" in found[3].alt


def test_equal_numbers_give_equal_bytes_whatever_the_user_s_settings_are(tmp_path, monkeypatch):
    import matplotlib

    one = drawings(tmp_path / "one")
    before = dict(matplotlib.rcParams)
    matplotlib.rcParams.update({"font.size": 20, "savefig.transparent": True, "svg.hashsalt": None})
    mine = dict(matplotlib.rcParams)
    try:
        other = drawings(tmp_path / "other")
        assert dict(matplotlib.rcParams) == mine  # and the settings are theirs afterwards
    finally:
        matplotlib.rcParams.update(before)
    for first, second in zip(one, other, strict=True):
        assert first.png.read_bytes() == second.png.read_bytes()
        assert first.svg.read_bytes() == second.svg.read_bytes()
        assert not re.search(rb"<dc:date>|matplotlib\.org|20\d\d-\d\d-\d\d", first.svg.read_bytes())


def test_nothing_of_pyplot_s_global_state_is_used(tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # its import fails
    monkeypatch.delattr(matplotlib, "pyplot", raising=False)
    assert drawings(tmp_path)


def test_update_norms_are_drawn_by_layer_and_role(tmp_path, axes):
    draw_update_norms(UPDATE, tmp_path)
    ((axis,),) = axes
    lines = {line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axis.lines}
    assert lines == {"attention": ([0, 1], [1.0, 2.0]), "ffn": ([0, 1], [0.5, 0.5])}
    relative = UpdateAnalysis("LORA", (module(0, "ffn", 1.0, 4.0), module(3, "ffn", 1.0, 2.0)))
    figure = draw_update_norms(relative, tmp_path)
    assert [line.get_ydata().tolist() for line in axes[1][0].lines] == [[0.25, 0.5]]
    assert "relative" in figure.alt


def test_scores_have_error_bars_and_unlike_scores_their_own_axis(tmp_path, axes):
    draw_scores(SCORES, tmp_path)
    ((shares, other),) = axes
    assert [text.get_text() for text in shares.get_yticklabels()] == ["maths"]
    assert [text.get_text() for text in other.get_yticklabels()] == ["perplexity"]
    bars = {container.get_label(): container for container in shares.containers}
    assert list(bars) == list(MODES)
    row = SCORES.rows[0]
    for mode, bar in bars.items():
        point, _, (segments,) = bar.lines
        score = row.scores[mode]
        assert point.get_xdata()[0] == score.value
        left, right = segments.get_segments()[0][:, 0]
        assert (right - left) / 2 == pytest.approx(score.standard_error)
    assert "lower is better" in other.get_xlabel()
    assert "standard error" in shares.get_xlabel()
    assert "standard error" not in other.get_xlabel()


def test_the_similarity_of_the_base_is_a_line_at_one(tmp_path, axes):
    draw_similarity(hidden_states(), tmp_path)
    (panels,) = axes
    assert [axis.get_title(loc="left") for axis in panels] == ["last layer", "all layers"]
    for axis in panels:
        lines = {line.get_label(): line for line in axis.lines}
        assert set(lines) == {"none (all at 1)", "attention", "ffn", "all"}
        assert list(lines["none (all at 1)"].get_xdata()) == [1.0, 1.0]
        assert tuple(lines["ffn"].get_ydata()) == hidden_states().last_density["ffn"]


def test_residual_rank_is_drawn_by_layer(tmp_path, axes):
    draw_residual_rank(hidden_states(["all"]), tmp_path)
    ((axis,),) = axes
    assert axis.lines[0].get_ydata().tolist() == [1.0, 0.9, 0.5]


def test_names_of_users_are_drawn_as_they_are(tmp_path):
    names = ["a $\\frac{$", "<b> & \"'", "x" * 200]
    scores = summary(task(names[1], dict.fromkeys(names, 0.5)))
    found = draw_scores(scores, tmp_path)
    assert ElementTree.fromstring(found.svg.read_bytes()) is not None
    assert draw_similarity(hidden_states(names), tmp_path).png.is_file()


def test_many_tasks_are_summed_up_in_words(tmp_path):
    many = summary(*(task(f"task{n}", dict.fromkeys(MODES, 0.5)) for n in range(12)))
    alt = draw_scores(many, tmp_path).alt
    assert "Average" in alt
    assert "task3" not in alt


def test_nothing_to_draw_is_said(tmp_path):
    outside = UpdateAnalysis("LORA", (ModuleUpdate("lm_head", "other", None, "Linear", 8),))
    with pytest.raises(ConfigError, match="lies in a layer"):
        draw_update_norms(outside, tmp_path)
    with pytest.raises(ConfigError, match="no scores"):
        draw_scores(summary(), tmp_path)
    assert draw_figures(tmp_path, Analysis(Subject("r", None, "b", None, "x"), outside), summary()) == ()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RepositoryError, match="cannot be written"):
        draw_update_norms(UPDATE, tmp_path / "file" / "figures")


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match="matplotlib") as caught:
        draw_update_norms(UPDATE, tmp_path)
    assert "[figures]" in caught.value.hint
