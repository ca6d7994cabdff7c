"""What a mode keeps: in the results file, in the summary, in numbers and in words."""

import dataclasses
import json
import math

import pytest

from taia_hub.errors import ConfigError
from taia_hub.results import DatasetSource, ModeScores, Results, TaskResults, summarise, to_text
from taia_hub.results.retained import retained, retention_table, sentences
from taia_hub.results.statistics import resample
from tests.results.test_summary import results
from tests.results.test_summary import task as plain_task

TOKENS = tuple(4 + number % 7 for number in range(40))


def measured(name="retention", title="Retention on general text", items=40, **kl) -> TaskResults:
    """A task whose modes part from the base by `kl` nats a token, more or less, and lose a token an item for it."""
    weights, modes = TOKENS[:items], {}
    for label, apart in kl.items():
        values = {
            "kl": tuple(apart * one * (1 + 0.5 * math.sin(at)) for at, one in enumerate(weights)),
            "loss": tuple(2.0 * one + apart for one in weights),
            "kept": tuple(float(one - bool(apart)) for one in weights),
        }
        scores = {metric: sum(row) / sum(weights) for metric, row in values.items()}
        modes[label] = ModeScores(label, scores, values, 1.0)
    hashes = tuple(map(str, range(items)))
    return TaskResults(
        name, title, 0, None, "kl", False, DatasetSource("general_texts"), "1", "", hashes, modes, weights
    )


def test_the_file_keeps_the_weights_and_a_file_without_them_stays_as_it_was():
    found = results(measured(none=0, all=0.5), plain_task("a", none=[0, 1]))
    value = json.loads(json.dumps(found.to_json()))
    assert Results.from_json(value) == found
    assert value["tasks"]["retention"]["weights"] == list(TOKENS)
    assert "weights" not in value["tasks"]["a"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda task: task["weights"].pop(), "another number of weights than of items"),
        (lambda task: task["weights"].__setitem__(0, 1.5), "a weight that is no number of tokens"),
        (lambda task: task["weights"].__setitem__(0, -1), "a weight that is no number of tokens"),
        (lambda task: task.update(weights=[0] * 40), "no item with tokens"),
        (lambda task: task["weights"].__setitem__(0, 40), "its values have the mean"),
        (lambda task: task.pop("weights"), "its values have the mean"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message):
    value = json.loads(json.dumps(results(measured(none=0, all=0.5)).to_json()))
    change(value["tasks"]["retention"])
    with pytest.raises(ConfigError, match=message):
        Results.from_json(value)


def test_scores_are_means_a_token_with_paired_intervals():
    task = measured(none=0, attention=0.1, all=0.5)
    (row,) = summarise(results(task)).rows
    drawn = resample(
        [task.modes[mode].values["kl"] for mode in ("attention", "all")], weights=TOKENS, stream="retention"
    )
    assert row.scores["all"] == drawn.score(1)
    assert row.differences["attention", "all"] == drawn.difference(0, 1)
    assert row.scores["all"].value == pytest.approx(sum(task.modes["all"].values["kl"]) / sum(TOKENS))
    base, attention, whole = retained(task)
    assert (base.kept.low, base.kept.value, base.divergence.high) == (1.0, 1.0, 0.0)
    assert attention.kept.low < attention.kept.value < attention.kept.high < 1
    assert (whole.mode, whole.divergence) == ("all", drawn.interval(1))


def test_the_base_wins_nothing_by_keeping_itself():
    alone = summarise(results(measured(none=0, all=0.5)))
    assert (alone.rows[0].best, alone.rows[0].second, alone.recommendation) == ((), (), None)
    assert "name one mode" not in to_text(alone)
    beside = summarise(results(measured(none=0, all=0.5), plain_task("a", none=[0] * 30, all=[1] * 30)))
    assert beside.recommendation.mode == "all"
    assert "Mode all is best on A (1.000), beyond noise." in to_text(beside)


def test_what_is_kept_is_said_in_words():
    task = measured(none=0, attention=0.5)
    (line,) = sentences(task)
    kept = retained(task)[1].kept
    interval = f"({100 * kept.low:.1f} to {100 * kept.high:.1f})"
    share = f"{100 * (1 - 40 / sum(TOKENS)):.1f}"
    apart = task.modes["attention"].scores["kl"]
    assert line == f"attention keeps {share} % of the base's next tokens on general text {interval}, KL {apart:.3f}"
    assert line in to_text(summarise(results(task)))
    few = dataclasses.replace(measured(items=3, none=0, all=0.5), title="Retention on letters.txt")
    assert sentences(few)[0].startswith("all keeps 80.0 % of the base's next tokens on letters.txt, KL ")
    assert sentences(measured(items=1, none=0, all=0.5))[1].startswith("1 text is too few to say")
    assert sentences(few)[1] == "3 texts are too few to say how sure this is: give at least 10."


def test_the_table_has_a_line_a_mode():
    lines = retention_table(retained(measured(none=0, all=0.5))).splitlines()
    assert lines[1].split() == ["none", "100.0", "%", "100.0..100.0", "0.000", "0.000..0.000", "2.000", "2.000..2.000"]
    assert lines[2].startswith("all ")


def test_a_task_without_the_divergence_says_nothing():
    task = measured(none=0, all=0.5)
    modes = {
        label: dataclasses.replace(mode, values={"loss": mode.values["loss"]}) for label, mode in task.modes.items()
    }
    assert retained(dataclasses.replace(task, modes=modes)) == ()
