"""Bars on a terminal, and lines elsewhere: at the pace of a clock that the tests move."""

import io
from types import SimpleNamespace

import pytest

from taia_hub.common import progress
from taia_hub.common.progress import ProgressBars


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the bars read, as a list of one number; other threads keep the real clock, or they would wait."""
    now = [1000.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def _lines(clock, steps, seconds):
    """Counts `steps` of `seconds` each and returns the lines."""
    bars = ProgressBars(stream := io.StringIO())
    for step in range(1, steps + 1):
        bars("training", step, steps)
        bars.note(loss=1.5)
        clock[0] += seconds
    bars.close()
    return stream.getvalue().splitlines()


def test_a_line_every_ten_seconds_where_there_is_no_terminal(clock):
    lines = _lines(clock, 60, 1.0)
    assert lines[0] == "training 11/60, 49 s left, loss 1.5"
    assert [line.split("/")[0] for line in lines] == [f"training {step}" for step in (11, 21, 31, 41, 51, 60)]
    assert lines[-1] == "training 60/60, loss 1.5"


def test_short_work_says_nothing(clock):
    assert _lines(clock, 100, 0.09) == []


def test_hours_give_no_thousands_of_lines(clock):
    assert 50 < len(_lines(clock, 36_000, 1.0)) < 200


def test_a_step_of_minutes_is_told_at_once(clock):
    assert len(_lines(clock, 5, 120.0)) == 4


def test_each_stage_has_its_own_time(clock):
    bars = ProgressBars(stream := io.StringIO())
    bars("one", 1, 2)
    clock[0] += 9
    bars("two", 1, 3)
    clock[0] += 9
    bars("two", 2, 3)
    assert stream.getvalue() == ""


def test_the_end_is_told_once(clock):
    bars = ProgressBars(stream := io.StringIO())
    for done in (1, 2, 3, 3, 3, 3):
        bars("search", done, 3)
        clock[0] += 20
    assert [line.split(",")[0] for line in stream.getvalue().splitlines()] == ["search 2/3", "search 3/3"]


def test_a_terminal_has_a_bar(clock):
    stream = io.StringIO()
    stream.isatty = lambda: True
    bars = ProgressBars(stream)
    bars("training", 1, 2)
    bars.note(loss=1.25)
    bars("training", 2, 2)
    bars.close()
    assert "training: 100%" in stream.getvalue()
    assert "loss 1.25" in stream.getvalue()
