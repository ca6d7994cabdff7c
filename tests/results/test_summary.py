"""The results file, paired statistics and the summary."""

import dataclasses
import json

import numpy as np
import pytest

from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.results import (
    DatasetSource,
    Group,
    ModelIdentity,
    ModeScores,
    Results,
    TaskResults,
    summarise,
    to_text,
)
from taia_hub.results.statistics import combine, resample
from taia_hub.results.text import recommendation_text
from taia_hub.switch.settings import parse_setting

MODEL = ModelIdentity("org/model-taia", "a" * 40, "org/base", "b" * 40, "c" * 64, "float32")


def task(name, metric="acc,none", higher_is_better=True, asked=None, shots=0, **values):
    items = tuple(f"{name}-{number}" for number in range(len(next(iter(values.values())))))
    modes = {
        label: ModeScores(label, {metric: float(np.mean(row))}, {metric: tuple(map(float, row))}, 1.0)
        for label, row in values.items()
    }
    source = DatasetSource("org/data")
    return TaskResults(name, name.title(), shots, asked, metric, higher_is_better, source, "1", "", items, modes)


def results(*tasks, **groups):
    return Results(MODEL, {"versions": {}}, {"seed": 0}, {task.key: task for task in tasks}, groups)


def rows(found):
    return {row.key: row for row in summarise(found).rows}


def test_the_file_comes_back_as_it_was(tmp_path):
    found = results(task("a", none=[0, 1], all=[1, 1]), task("b", asked=3, shots=3, none=[0.5]))
    found = dataclasses.replace(found, groups={"both": Group("Both", ("a", "b@3"), pooled=True)})
    found.save(tmp_path / "sub" / "results.json")
    assert Results.load(tmp_path / "sub" / "results.json") == found
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["results.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    results().save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RepositoryError, match="No space left"):
        results(task("a", none=[1])).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_from_before_long_labels_were_shortened_gets_todays(tmp_path):
    setting = {f"ffn@{layer}": layer / 32 for layer in range(32)}
    parsed = parse_setting(setting)
    value = json.loads(json.dumps(results(task("a", none=[0, 1])).to_json()))
    modes = value["tasks"]["a"]["modes"]
    modes[parsed.whole_label] = {**modes["none"], "setting": setting}
    modes["*@0-3=0.2 to 1"] = {**modes["none"], "setting": {"*@0-3": [0.2, 1]}}
    read = Results.from_json(value, "file")
    assert list(read.tasks["a"].modes) == ["none", parsed.label, "*@0-3=0.2 to 1"]
    assert list(Results.from_json(json.loads(json.dumps(read.to_json())), "file").tasks["a"].modes)[1] == parsed.label


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.pop("format"), "no results file of this version"),
        (lambda value: value.update(format=99), "its format is 99"),
        (lambda value: value["model"].pop("dtype"), "damaged: TypeError"),
        (lambda value: value["tasks"]["a"]["items"].pop(), "another number of values than of items"),
        (lambda value: value["tasks"]["a"]["modes"]["none"]["scores"].clear(), "lacks its metric"),
        (lambda value: value["tasks"]["a"]["modes"]["none"]["scores"].update({"acc,none": 0.99}), "the mean 0.5"),
        (lambda value: value["tasks"]["a"]["modes"]["none"]["scores"].update({"acc,none": "x"}), "no number"),
        (lambda value: value["tasks"]["a"]["modes"]["none"]["values"].update({"acc,none": [0, "x"]}), "no number"),
        (lambda value: value["tasks"]["a"]["modes"]["none"]["scores"].update({"f1": float("nan")}), "no number"),
        (lambda value: value["tasks"]["a"]["modes"]["none"].update(setting={"ffn": 0.5}), "has the setting"),
        (
            lambda value: value["tasks"]["a"]["modes"].update(
                tuned={**value["tasks"]["a"]["modes"]["none"], "setting": "tuned"}
            ),
            "damaged: .*'tuned' names the setting",
        ),
        (lambda value: value.update(settings=[]), "where a mapping belongs"),
        (lambda value: value["tasks"].update(z=value["tasks"].pop("a")), "stands under 'z'"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change, message):
    value = json.loads(json.dumps(results(task("a", none=[0, 1])).to_json()))
    change(value)
    (tmp_path / "r.json").write_text(json.dumps(value))
    with pytest.raises(ConfigError, match=message):
        Results.load(tmp_path / "r.json")


def test_half_a_file_is_refused(tmp_path):
    (tmp_path / "r.json").write_text('{"format": 1, "mod')
    with pytest.raises(ConfigError, match="is no JSON"):
        Results.load(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapter_sha256": "d" * 64}, "adapter has the sha256 dddd"),
        ({"base_revision": "e" * 40}, "revision eeeeeeeeeeee…, not bbbb"),
        ({"dtype": "bfloat16"}, "runs in bfloat16, not float32"),
        ({"name": "folder", "revision": None}, None),
    ],
)
def test_results_of_another_model_are_told_apart(change, message):
    found = MODEL.difference(dataclasses.replace(MODEL, **change))
    assert (message in found) if message else found is None


def test_the_interval_of_a_mean_agrees_with_theory():
    values = np.random.default_rng(1).normal(0.3, 1.0, size=(1, 400))
    drawn = resample(values.tolist(), resamples=4000)
    interval, score = drawn.interval(0), drawn.score(0)
    assert score.standard_error == pytest.approx(values.std(ddof=1) / 20)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * score.standard_error, rel=0.06)
    assert interval.value == pytest.approx(values.mean())


def test_pairing_removes_what_makes_an_item_hard_for_all_modes():
    generator = np.random.default_rng(0)
    hard = generator.normal(size=500)
    drawn = resample([hard + 0.1 + generator.normal(0, 0.01, 500), hard])
    assert drawn.difference(0, 1).excludes_zero  # 0.1 is far below the noise of either score
    assert not drawn.interval(0).excludes_zero or drawn.interval(0).low < 0.1


def test_draws_are_the_same_again_and_independent_between_tasks():
    values = [[0, 1, 1, 0, 1, 0, 0, 1]]
    assert (resample(values, stream="a").drawn == resample(values, stream="a").drawn).all()
    assert (resample(values, stream="a").drawn != resample(values, stream="b").drawn).any()
    assert (resample(values, seed=1).drawn != resample(values, seed=2).drawn).any()


def test_weights_give_the_ratio_of_sums():
    drawn = resample([[2.0, 4.0]], weights=[1, 3])
    assert drawn.value[0] == 1.5
    assert drawn.interval(0).low == pytest.approx(4 / 3)
    assert drawn.interval(0).high == 2.0


def test_many_items_are_drawn_in_blocks():
    values = np.random.default_rng(0).integers(2, size=(2, 3000))
    drawn = resample(values.tolist(), resamples=1500)
    assert np.isfinite(drawn.drawn).all()
    assert drawn.drawn.std(axis=1) == pytest.approx(drawn.standard_error, rel=0.1)


def test_groups_pool_items_or_average_tasks():
    small, large = resample([[1.0]], stream="a"), resample([[0.0, 0.0, 1.0]], stream="b")
    assert combine([small, large], pooled=True).value[0] == pytest.approx(0.5)
    assert combine([small, large], pooled=False).value[0] == pytest.approx((1 + 1 / 3) / 2)


@pytest.mark.parametrize(("values", "message"), [([[]], "no items"), ([[1], [1, 2]], r"\[1, 2\] items")])
def test_no_items_or_unlike_items_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        resample(values)


def test_best_second_and_noise():
    clear = task("clear", none=[0] * 40, attention=[1] * 40, all=[1] * 20 + [0] * 20)
    row = rows(results(clear))["clear"]
    assert (row.best, row.second, row.within_noise) == (("attention",), ("all",), ())
    assert row.differences["attention", "none"].value == 1
    assert row.differences["all", "none"].excludes_zero
    assert set(row.differences) == {("attention", "none"), ("attention", "all"), ("all", "none")}
    close = rows(results(task("close", none=[0, 1, 0, 1], attention=[1, 1, 0, 0])))["close"]
    assert close.best == ("none", "attention")
    assert close.second == ()


def test_what_is_tied_has_no_place():
    clear = rows(results(task("clear", none=[0] * 40, attention=[1] * 40, all=[1] * 20 + [0] * 20)))["clear"]
    assert [clear.place(label) for label in clear.scores] == [None, 1, 2]
    second = rows(results(task("second", none=[0, 1], attention=[1, 1], all=[1, 0])))["second"]
    assert [second.place(label) for label in second.scores] == [None, 1, None]
    first = rows(results(task("first", none=[0, 0], attention=[1, 1], all=[1, 1])))["first"]
    assert [first.place(label) for label in first.scores] == [None, None, None]


def test_sums_in_another_order_are_tied():
    values = [0.1, 0.2, 0.3, 0.7, 0.15] * 7
    row = rows(results(task("f", metric="f1", none=values, attention=values[::-1], all=sorted(values))))["f"]
    assert len({score.value for score in row.scores.values()}) > 1, "the sums are the same to the last bit"
    assert len(row.best) == 3


def test_lower_can_be_better():
    row = rows(results(task("asr", metric="rate", higher_is_better=False, none=[0.0] * 9, all=[1.0] * 9)))["asr"]
    assert (row.best, row.second) == (("none",), ("all",))


def test_the_average_is_over_tasks_and_over_each_number_of_shots_alone():
    found = rows(
        results(
            task("a", none=[1, 1], all=[0, 1]),
            task("b", none=[0, 0, 0, 0], all=[0, 0, 0, 1]),
            task("a", asked=2, shots=2, none=[1, 1], all=[1, 1]),
            task("b", asked=2, shots=2, none=[1, 1, 1, 1], all=[0, 0, 0, 0]),
        )
    )
    assert found["average"].scores["none"].value == 0.5
    assert found["average"].scores["all"].value == pytest.approx((0.5 + 0.25) / 2)
    assert found["average@2"].scores["none"].value == 1.0
    assert found["average@2"].title == "Average, 2-shot"


def test_members_of_a_group_count_once():
    found = summarise(
        results(
            task("x", none=[1], all=[0]),
            task("y", none=[1, 1, 1], all=[0, 0, 0]),
            task("z", none=[0], all=[0]),
            g=Group("G", ("x", "y"), pooled=True),
        )
    )
    assert [(row.key, row.depth) for row in found.rows] == [("g", 0), ("x", 1), ("y", 1), ("z", 0), ("average", 0)]
    assert found.rows[-1].scores["none"].value == 0.5


def test_unlike_tasks_are_not_averaged():
    found = summarise(results(task("a", none=[1], all=[0]), task("p", metric="perplexity", none=[20.0], all=[30.0])))
    assert [row.key for row in found.rows] == ["a", "p"]
    assert found.recommendation is None
    assert "look at each task" in recommendation_text(found)


def test_a_score_without_values_of_items_has_no_interval():
    plain = task("f1", none=[0, 1], all=[1, 1])
    modes = {label: dataclasses.replace(mode, values={}) for label, mode in plain.modes.items()}
    row = rows(results(dataclasses.replace(plain, modes=modes)))["f1"]
    assert row.scores["all"].value == 1
    assert row.scores["all"].standard_error is None
    assert row.differences == {}
    assert row.within_noise == ("none",)


def test_the_recommendation_is_hedged_within_noise():
    sure = summarise(results(task("a", none=[0] * 30, attention=[1] * 30)))
    assert sure.recommendation.mode == "attention"
    assert recommendation_text(sure) == "Mode attention is best on A (1.000), beyond noise."
    unsure = summarise(results(task("a", none=[0, 1, 0, 1, 1], all=[1, 1, 0, 1, 0], attention=[1, 1, 1, 0, 1])))
    assert unsure.recommendation.within_noise == ("none", "all")
    assert "may be as good: over 5 items" in recommendation_text(unsure)


def test_attention_wins_a_tie():
    tied = summarise(results(task("a", none=[0] * 10, all=[1] * 10, attention=[1] * 10)))
    assert tied.recommendation.mode == "attention"
    assert tied.recommendation.within_noise == tied.recommendation.tied == ("all",)
    assert recommendation_text(tied) == "Modes attention, all have the same score, the best on A (1.000)."


def test_text_marks_the_best_and_names_noise():
    values = {"none": [0, 0, 1, 1] * 3, "all": [0, 0, 1, 0] * 3, "attention": [0, 0, 0, 0] * 3}
    text = to_text(summarise(results(task("a", **values))))
    assert "0.500 ±0.151*" in text
    assert "0.250 ±0.131'" in text
    assert "A: all less none -0.250 [-0.500, +0.000] (within noise)" in text


def test_a_tie_of_all_is_no_winner():
    tied = summarise(results(task("a", none=[1, 0] * 6, all=[0, 1] * 6)))
    assert recommendation_text(tied) == "All modes score the same on A (0.500)."


def test_very_few_items_tell_nothing():
    few = summarise(results(task("a", none=[0] * 9, attention=[1] * 9)))
    assert few.rows[0].differences == {}
    assert few.rows[0].within_noise == ("none",)
    assert "may be as good: over 9 items" in recommendation_text(few)
    assert "Fewer than 10 items tell nothing about a difference: A." in to_text(few)
    assert summarise(results(task("a", none=[0] * 10, attention=[1] * 10))).rows[0].within_noise == ()


def test_a_group_of_an_interrupted_run_is_read_and_not_averaged(tmp_path):
    half = results(task("x", none=[1], all=[0]), task("z", none=[0], all=[0]), g=Group("G", ("x", "y"), pooled=True))
    half.save(tmp_path / "results.json")
    found = summarise(Results.load(tmp_path / "results.json"))
    assert [(row.key, row.depth) for row in found.rows] == [("x", 0), ("z", 0)]
    assert found.recommendation is None


def test_an_average_is_over_the_modes_that_all_tasks_have():
    found = summarise(results(task("a", none=[1], ffn=[0], all=[0]), task("b", none=[0], all=[1])))
    average = found.rows[-1]
    assert {label: score.value for label, score in average.scores.items()} == {"none": 0.5, "all": 0.5}
    assert found.modes == ("none", "ffn", "all")
    apart = summarise(results(task("a", none=[1]), task("b", all=[1])))
    assert [row.key for row in apart.rows] == ["a", "b"]


def test_a_table_for_people_has_the_papers_names():
    text = to_text(summarise(results(task("a", none=[0, 1], attention=[1, 1], all=[1, 0]))))
    assert [name in text.splitlines()[0] for name in ("none (base)", "attention (TAIA)", "all (vanilla)")] == [True] * 3
