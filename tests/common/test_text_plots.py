"""Plots of text: every point in its place, nothing beyond the width, numbers told apart."""

import pytest

from taia_hub.common.text_plots import Axis, bars, scatter


@pytest.mark.parametrize("values", [[0.0], [3.0, 3.0], [-1.0, 1.0], [1e-7, 2e-7], [0, 123456.0], [0.02, 0.021]])
def test_an_axis_has_a_few_round_numbers_within_its_ends(values):
    axis = Axis.over(values)
    assert 1 <= len(axis.ticks) <= 6
    assert all(axis.low - 1e-9 <= tick <= axis.high + 1e-9 for tick in axis.ticks)
    assert [float(text) for text in axis.texts] == pytest.approx(axis.ticks)
    assert len(set(axis.texts)) == len(axis.texts)
    assert {axis.place(axis.low, 9), axis.place(axis.high, 9)} == {0, 8}


@pytest.mark.parametrize("width", [30, 79])
def test_points_in_one_place_are_all_drawn(width):
    drawn = scatter([(mark, 1.0, 1.0) for mark in "ABC"] + [("D", 2.0, 0.0)], x="x", y="y", width=width)
    assert max(map(len, drawn.splitlines())) <= width
    (row,) = [line for line in drawn.splitlines() if "A" in line]
    assert {"B", "C"} <= set(row)
    assert drawn.count("D") == 1


def test_a_line_goes_under_the_points():
    drawn = scatter([("A", 0, 0), ("B", 1, 1)], x="", y="", line=[(0, 0), (1, 1)], width=30, height=6)
    assert drawn.count("A") == drawn.count("B") == 1
    assert drawn.count("·") >= 20


def test_bars_tell_nothing_zero_small_and_large_apart():
    row = bars({"r": [None, 0, 0.01, 0.5, 1, 1.01, -0.01]}).splitlines()[0]
    assert row == "r   ·▁▄█▲▼"


def test_long_rows_go_on_below_with_the_numbers_of_their_columns():
    lines = bars({"ffn": [1.0] * 100}, width=79).splitlines()
    assert max(map(len, lines)) < 80
    assert sum(line.count("█") for line in lines) == 100
    assert lines[1].split()[0] == "0"
    assert lines[3].split()[0] == "70"
