"""The benchmark of tuning: it runs, and what it measures is the same for all."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
WORDS = ("the hen", "a leg", "the path", "this and that", "an old oak", "few", "the thaw", "hut")


@pytest.fixture
def bench(pico, tokenizer, tmp_path, monkeypatch, capsys):
    """Runs the script on a small model; returns what it prints and the numbers."""
    base, data, out = tmp_path / "base", tmp_path / "items.jsonl", tmp_path / "numbers.json"
    shutil.copytree(pico.base("llama"), base)
    tokenizer.save_pretrained(base)
    items = [
        {
            "id": f"{first}{second}",
            "messages": [{"role": "user", "content": first}, {"role": "assistant", "content": second}],
        }
        for first in WORDS
        for second in WORDS
    ]
    data.write_text("\n".join(map(json.dumps, items)))
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("bench_tuning")
    named = ["--base", base, "--adapter", pico.adapter("llama"), "--data", data, "--json", out]

    def run(*words):
        monkeypatch.setattr(sys, "argv", list(map(str, ("bench_tuning.py", *named, *words))))
        module.main()
        return capsys.readouterr().out, json.loads(out.read_text())

    run.module = module
    return run


def test_candidates_cost_less_than_merges_and_are_the_same(bench):
    printed, found = bench("--rows", "candidate", "--items", 4, "--candidates", 3, "--rounds", 1)

    assert printed.count("| a candidate ") == len(found["rows"]) == 6
    switch, *_ = found["rows"]
    assert switch["against"] == "merged by PEFT, written, loaded anew"
    assert switch["value"] < 0.5  # a tenth of a thousandth where nothing else runs
    assert all(row["value"] > 0 for row in found["rows"])


def test_candidates_that_are_not_the_same_end_it(bench, monkeypatch):
    merged = bench.module.Merged.in_place
    monkeypatch.setattr(
        bench.module.Merged, "in_place", lambda self, weights, items: merged(self, dict.fromkeys(weights, 1), items)
    )
    with pytest.raises(RuntimeError, match="The losses of one candidate differ"):
        bench("--rows", "candidate", "--items", 4)


@pytest.fixture
def texts(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"{one} {other} {one}"}) for one in WORDS for other in WORDS[:4]))
    return file


def test_searches_are_judged_on_the_same_items(bench, texts, monkeypatch):
    import numpy as np

    given = {}

    def random_search(model, grouping, target, retain, *, tokens, seed):
        given[seed] = tokens, len(target), len(retain)
        return [grouping.setting(np.random.default_rng(seed).random(len(grouping.groups))) for _ in range(3)]

    monkeypatch.setattr(bench.module, "by_tpe", random_search)
    printed, found = bench("--rows", "search", "--seeds", 2, "--limit", 24, "--retain", texts)

    area, loss = found["rows"]
    assert given.keys() == {0, 1}
    assert all((target, retain) == (12, 12) and tokens > 1000 for tokens, target, retain in given.values())
    assert area["low"] <= area["value"] <= area["high"]
    assert loss["against"] == "`tune`"
    assert printed.count("seed ") == 2


def test_hypervolume_and_target_loss_of_fronts(bench):
    searches = importlib.import_module("searches")
    setting = searches.parse_setting("all")
    none, whole, better, worse = (
        searches.Point(setting, *values) for values in ((2.0, 0.0), (1.0, 0.2), (1.5, 0.0), (1.8, 0.1))
    )
    assert searches.hypervolume([none, whole, worse, better], none, whole) == pytest.approx(0.5)
    assert searches.hypervolume([none, whole, worse], none, whole) == pytest.approx(0.2 * 0.5)
    assert searches.hypervolume([searches.Point(setting, 0.5, 0.0)], none, whole) == pytest.approx(1.5)
    assert searches.target_at([none, whole, worse, better], 0.1) == 1.5


def test_tpe_begins_with_the_plain_modes_and_spends_what_it_may(bench, pico):
    pytest.importorskip("optuna")
    searches = importlib.import_module("searches")
    model = pico.taia("llama")
    rows = [searches.Encoded(ids, ids) for ids in pico.ids(4).tolist()]
    grouping = searches.Grouping(model._taia_switch.sites)
    with searches.counted(model) as spent:
        front = searches.by_tpe(model, grouping, rows, rows, tokens=8 * 56, seed=0)
    assert "none" in [setting.value for setting in front]
    assert spent.forward >= 8 * 56
    assert spent.backward == 0


@pytest.mark.slow
def test_memory_is_that_of_two_processes(bench, texts):
    _, found = bench("--rows", "memory", "--limit", 24, "--retain", texts)
    whole, _ = found["rows"]
    assert 0.5 < whole["value"] < 2
    assert whole["note"].count("MiB") == 2
