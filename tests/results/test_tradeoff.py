"""What modes gain and keep: read out of results, judged, and said in words."""

import random

import pytest

from taia_hub.results import DatasetSource, ModelIdentity, ModeScores, Results, TaskResults, summarise
from taia_hub.results.retained import HOLDOUT, KEPT, KL, LOSS, RETENTION
from taia_hub.results.statistics import resample
from taia_hub.results.tradeoff import tradeoff
from taia_hub.results.tradeoff_text import tradeoff_note, tradeoff_rows, tradeoff_text, tradeoff_words

GAINS = {"none": 0.0, "attention": 0.28, "ffn": 0.36, "all": 0.48}
KEEPS = {"none": 1.0, "attention": 0.98, "ffn": 0.95, "all": 0.92}


def weighed(name, values, metric):
    """Makes a task of mode to metric to the sums of its items, each of another number of tokens."""
    count = len(next(iter(next(iter(values.values())).values())))
    tokens = tuple(random.Random(name).randint(20, 80) for _ in range(count))
    modes = {}
    for mode, found in values.items():
        sums = {key: tuple(t * one for t, one in zip(tokens, each, strict=True)) for key, each in found.items()}
        modes[mode] = ModeScores(mode, {key: sum(one) / sum(tokens) for key, one in sums.items()}, sums, 0.0)
    hashes, source = tuple(map(str, range(count))), DatasetSource("items.jsonl")
    return TaskResults(name, name, 0, None, metric, False, source, "1", "", hashes, modes, tokens)


def results(gains=GAINS, keeps=KEEPS, items=40, texts=40, noise=0.1):
    """Makes results whose items differ in what they gain and keep; 0 items leave a task out."""
    draw = random.Random(0)
    found = Results(ModelIdentity("org/m", None, "org/base", None, None, "float32"))
    if items:
        hard = [draw.uniform(1, 4) for _ in range(items)]  # far more than any gain: paired, it counts nothing
        losses = {mode: [one - gain + draw.gauss(0, noise) for one in hard] for mode, gain in gains.items()}
        found = found.with_task(weighed(HOLDOUT, {mode: {LOSS: one} for mode, one in losses.items()}, LOSS))
    if texts:
        kept = {
            mode: {KEPT: [min(1, one + (one < 1) * draw.gauss(0, 0.01)) for _ in range(texts)], KL: [1 - one] * texts}
            for mode, one in keeps.items()
        }
        found = found.with_task(weighed(RETENTION, kept, KL))
    return found


def test_gains_and_what_is_kept_are_paired_draws_of_means_a_token():
    one = results()
    found = tradeoff(one)
    held, kept = one.tasks[HOLDOUT], one.tasks[RETENTION]
    losses = [held.modes[mode].values[LOSS] for mode in ("none", "all")]
    drawn = resample(losses, weights=held.weights, stream=HOLDOUT)
    assert found.modes["all"].gain == drawn.difference(0, 1)
    assert found.modes["all"].gain.high - found.modes["all"].gain.low < 0.15
    assert found.modes["all"].loss == pytest.approx(sum(losses[1]) / sum(held.weights))
    assert found.modes["none"].gain is None
    alone = resample([kept.modes["ffn"].values[KEPT]], weights=kept.weights, stream=RETENTION)
    assert found.modes["ffn"].kept == alone.interval(0)
    assert found.modes["ffn"].divergence == pytest.approx(0.05)
    assert (found.items, found.texts, list(found.modes)) == (40, 40, list(GAINS))


@pytest.mark.parametrize(
    ("changes", "best", "keeper", "recommended"),
    [
        ({}, "all", "attention", "attention"),
        # under half of the gain it is named, and not recommended; one with half goes before it
        ({"gains": {**GAINS, "attention": 0.1}}, "all", "ffn", "ffn"),
        ({"gains": {**GAINS, "attention": 0.1, "ffn": 0.12}}, "all", "attention", "all"),
        ({"gains": {**GAINS, "attention": 0.0}}, "all", "ffn", "ffn"),
        ({"gains": {**GAINS, "attention": 0.6}}, "attention", None, "attention"),
        ({"gains": {**GAINS, "attention": 0.475}}, "attention", None, "attention"),  # as much as all, within noise
        ({"keeps": {**KEEPS, "all": 0.99}}, "all", None, "all"),
        ({"gains": dict.fromkeys(GAINS, 0.0)}, "none", None, "none"),
        ({"gains": {"none": 0.0, "attention": -0.3, "ffn": -0.2, "all": -0.5}}, "none", None, "none"),
        ({"texts": 9}, "all", None, "all"),
        ({"texts": 0}, "all", None, "all"),
        ({"items": 9}, None, None, None),
        ({"items": 0}, None, None, None),
    ],
)
def test_which_mode_the_numbers_speak_for(changes, best, keeper, recommended):
    found = tradeoff(results(**changes))
    assert (found.best, found.keeper, found.recommended) == (best, keeper, recommended)
    text = tradeoff_text(found)  # whatever it is, it can be said
    assert best is None or best in text.splitlines()[-1] or best in text.splitlines()[-2]


def test_words_name_the_mode_its_gain_and_what_it_keeps():
    first, second = tradeoff_words(tradeoff(results()), "`{}`".format)
    assert first.startswith("`attention` where the model shall stay closer to what it was: it keeps 98.")
    assert first.endswith("with 57 % of the gain on held-out items.")
    assert second.startswith("`all` for the trained task alone: it gains most on held-out items, 0.48")
    (alike,) = tradeoff_words(tradeoff(results({**GAINS, "attention": 0.475})))
    assert "attention gains as much on held-out items as all, within noise, 0.47" in alike
    best, more = tradeoff_words(tradeoff(results({**GAINS, "attention": 0.1, "ffn": 0.0})))
    assert best.startswith("all gains most")
    assert more.startswith("attention keeps more, 98.0 %")
    assert "with 20 % of that gain" in more
    assert tradeoff_words(tradeoff(results(dict.fromkeys(GAINS, 0.0)))) == (
        "No mode answers the held-out items better than none, the base model, beyond noise.",
    )


def test_what_was_not_measured_is_said_and_has_no_column():
    kept, gained = tradeoff(results(items=0)), tradeoff(results(texts=0))
    assert tradeoff_words(kept)[-1] == "No held-out items of the training show what the modes gain."
    assert tradeoff_words(kept)[0].startswith(
        "attention keeps 97.9 % of the base model's answers on general text (97.7 to"
    )
    assert len(tradeoff_words(kept)) == 4
    assert tradeoff_rows(kept)[0] == ["mode", "keeps, %", "KL"]
    assert tradeoff_words(gained)[-1] == "What the modes keep of the base model was not measured."
    assert tradeoff_rows(gained)[0] == ["mode", "loss", "gain"]
    assert "keeps" not in tradeoff_note(gained)
    assert tradeoff(results(items=0, texts=0)) is None
    assert tradeoff(results({"all": 1.0}, {"all": 0.9})) is None  # there is nothing to choose


def test_held_out_items_and_what_is_kept_decide_only_where_nothing_else_was_evaluated():
    own = results()
    assert summarise(own).recommendation is None
    assert summarise(own).traded == tradeoff(own)
    assert str(own).endswith("\n".join(tradeoff_words(tradeoff(own))))
    modes = {mode: ModeScores(mode, {"acc": value}, {"acc": (value,) * 12}, 0.0) for mode, value in KEEPS.items()}
    own = own.with_task(TaskResults("x", "X", 0, None, "acc", True, DatasetSource("x"), "1", "", ("i",) * 12, modes))
    assert summarise(own).recommendation.row.key == "x"
    assert tradeoff_words(tradeoff(own))[0] not in str(own)


def test_few_items_have_no_intervals():
    found = tradeoff(results(items=9, texts=40))
    cells = dict(zip(tradeoff_rows(found)[0], tradeoff_rows(found)[2], strict=True))
    assert "(" not in cells["gain"]
    assert "(" in cells["keeps, %"]
    assert "Fewer than 10 tell nothing" in tradeoff_note(found)
    assert "9 held-out items cannot tell which mode gains." in tradeoff_words(found)
    assert "Fewer" not in tradeoff_note(tradeoff(results()))
