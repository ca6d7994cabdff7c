"""What the numbers say, and the report as values and text."""

import dataclasses
import json
from pathlib import Path

import pytest

from taia_hub.demo.losses import COMPARED, MODES, DomainLosses
from taia_hub.demo.report import DemoReport, conclusions, table_text
from taia_hub.results.statistics import Interval


def _domain(name: str, attention: float, ffn: float, full: float, width: float = 0.01) -> DomainLosses:
    values = {"none": 1.0, "attention": 1.0 + attention, "ffn": 1.0 + ffn, "all": 1.0 + full}
    near = {mode: Interval(value, value - 0.2, value + 0.2) for mode, value in values.items()}
    changes = {(a, b): values[a] - values[b] for a, b in COMPARED}
    return DomainLosses(name, 40, near, {pair: Interval(v, v - width, v + width) for pair, v in changes.items()})


def test_conclusions_say_what_taia_is_for():
    domains = [_domain("medical", -0.3, -0.4, -0.5), _domain("maths", -0.05, -0.005, 0.06)]
    said = conclusions(domains, "medical")
    assert said[1] == (
        "maths: against the base model, attention is better by 0.050, ffn shows no clear change, all is worse by "
        "0.060. Lowest: attention."
    )
    assert "paid for medical with maths" in said[2]
    assert "keeps 60% of the gain on medical and does better on maths, with no clear loss in any domain" in said[2]


def test_conclusions_name_another_mode_where_it_is_lowest():
    said = conclusions([_domain("medical", -0.3, -0.4, -0.5), _domain("short", -0.1, -0.2, -0.05)], "medical")
    assert said[1].endswith("Lowest: ffn.")
    assert "is not clearly worse than the base model in any other domain" in said[2]


def test_conclusions_admit_harm_elsewhere():
    domains = [_domain("medical", -0.3, -0.4, -0.5), _domain("maths", 0.02, 0.03, 0.06)]
    assert conclusions(domains, "medical")[2].endswith("does better on maths.")


def test_conclusions_say_where_the_other_half_does_better():
    medical = _domain("medical", -0.3, -0.4, -0.5)
    said = conclusions([medical, _domain("maths", -0.03, -0.05, 0.06)], "medical")
    assert said[3].startswith("Here ffn (TAIF) is lower still on maths")
    assert len(conclusions([medical, _domain("maths", -0.05, -0.03, 0.06)], "medical")) == 3


@pytest.mark.parametrize(
    ("medical", "maths", "reason"),
    [
        ((-0.3, -0.4, 0.0), (-0.05, 0.0, 0.06), "no clear gain in its own domain"),
        ((-0.3, -0.4, -0.5), (0.055, 0.0, 0.06), "attention is not clearly better than all"),
    ],
)
def test_conclusions_claim_nothing_that_the_intervals_do_not_show(medical, maths, reason):
    said = conclusions([_domain("medical", *medical), _domain("maths", *maths)], "medical")
    assert "do not show what TAIA is for" in said[2]
    assert reason in said[2]


def demo_report(folder: Path = Path("taia-demo")) -> DemoReport:
    answers = {mode: f"said by {mode}" for mode in MODES}
    return DemoReport(
        folder=folder,
        model_id="demo/model",
        base="org/base",
        data=("MedQuAD",),
        steps=4,
        tokens=1234,
        trained_domain="medical",
        domains=[_domain("medical", -0.3, -0.4, -0.5), _domain("maths", -0.05, 0.01, 0.06)],
        prompt="How much?",
        answers=answers,
        seconds={"training": 90.0},
        versions={"torch": "2.9"},
    )


def test_table_fits_a_terminal_and_marks_the_lowest():
    lines = table_text(demo_report().domains, "medical").splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[1:] for line in lines if line.startswith("  loss")] == [
        ["1.000", "0.700", "0.600", "0.500*"],
        ["1.000", "0.950*", "1.010", "1.060"],
    ]
    assert "-0.060..-0.040" in "\n".join(lines)


def test_report_survives_json():
    values = json.loads(json.dumps(demo_report().to_json()))
    assert DemoReport.from_json(values) == demo_report()
    assert values["conclusions"] == conclusions(demo_report().domains, "medical")


def test_text_holds_table_conclusions_answers_pages_and_commands():
    text = demo_report(Path("my demo")).to_text()
    parts = ["-0.060..-0.040", "What TAIA is for", "[ffn] TAIF\nsaid by ffn", "Took 1.5 minutes (training 90 s)"]
    parts += ["my demo/report.html", "taia compare 'my demo/model' --ui", "--prompt 'How much?' --against none"]
    for part in parts:
        assert part in text


def test_more_than_the_whole_gain_is_told_as_all_of_it():
    domains = [_domain("medical", -0.52, -0.4, -0.5), _domain("maths", -0.05, -0.005, 0.06)]
    assert "keeps 100% of the gain" in conclusions(domains, "medical")[2]


def test_a_prompt_that_nobody_would_type_is_none_to_type_next():
    for prompt in ("two\nlines", "long " * 100):
        (_, asked, _) = dataclasses.replace(demo_report(), prompt=prompt).next_commands()
        assert asked == "taia compare taia-demo/model --prompt 'Why is the sky blue?' --against none"
