"""What was measured as a task of a results file."""

import pytest

from taia_hub.errors import ConfigError
from taia_hub.results import DatasetSource, ModelIdentity, Results, summarise
from taia_hub.retaining import Losses, measure, task_results
from taia_hub.retaining.tasks import blank_task
from tests.retaining.test_measuring import _rows


def _task(settings, losses, items, **keywords):
    seconds = keywords.pop("seconds", 0.0)
    given = {"name": "retention", "title": "Retention on x", "metric": "kl", "dataset": DatasetSource("x"), **keywords}
    return task_results(blank_task(items, **given), settings, losses, seconds=seconds)


def test_what_was_measured_comes_back_from_a_results_file(pico):
    rows, settings = _rows(pico), ["none", {"attention": 0.5}, "all"]
    losses = measure(pico.taia("llama"), rows, settings)
    task = _task(settings, losses, [row.input_ids for row in rows], seconds=3.0)
    model = ModelIdentity("m", None, "b", None, None, "float32")
    found = Results.from_json(Results(model, tasks={task.key: task}).to_json())
    assert found.tasks["retention"] == task
    (row,) = summarise(found).rows
    for one, label in zip(losses, ("none", "attention=0.5", "all"), strict=True):
        mode = task.modes[label]
        assert mode.scores == {"loss": one.loss, "kl": one.divergence, "kept": one.kept}
        assert mode.seconds == 1.0
        assert row.scores[label].value == pytest.approx(one.divergence)
    assert task.weights == losses[0].tokens
    assert [one == task.items[2] for one in task.items] == [False, False, True, False, True, False]  # two are alike


def test_losses_alone_have_no_divergence():
    task = _task(["all"], [Losses((1, 3), (2.0, 6.0))], ["a", "b"], metric="loss")
    assert (task.modes["all"].scores, task.higher_is_better) == ({"loss": 2.0}, False)


def test_no_token_is_no_task():
    with pytest.raises(ConfigError, match="no token to measure"):
        _task(["all"], [Losses((0,), (0.0,))], ["a"])
