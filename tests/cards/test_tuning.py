"""What a card says of a tuned setting: the front in few rows, which to use, and whether it is published."""

import dataclasses
import re

from huggingface_hub import ModelCard

from taia_hub import cards
from taia_hub.cards.tuning import tuned_words
from taia_hub.results import TuningData
from tests.card_samples import EVERYTHING
from tests.tuning_samples import about, candidate, tuned


def card(found, **values):
    return dataclasses.replace(EVERYTHING, tuning=found, **values)


def section(data, template=None):
    text = cards.render_card(data, template)
    return text[text.index("## Tuned setting") :].partition("\n## ")[0]


def rows(found):
    return [line.split("|")[1].strip() for line in tuned_words(card(found)).table.splitlines()[2:]]


def test_the_table_has_plain_modes_the_chosen_one_and_an_even_choice_of_the_front():
    shown = rows(tuned(found=30, chosen="tuned 17"))
    assert len(shown) == 8
    assert shown[:4] == ["`none` (base)", "`attention` (TAIA)", "`ffn` (TAIF)", "`all` (vanilla)"]
    assert "**`tuned 17`**" in shown
    numbers = [int(re.search(r"\d+", one)[0]) for one in shown[4:]]
    assert numbers == sorted(numbers)
    assert numbers[0] < 15
    assert numbers[-1] > 20


def test_few_candidates_are_all_shown_but_those_that_others_beat():
    assert rows(tuned(found=2, chosen="attention")) == [
        "`none` (base)",
        "**`attention` (TAIA)**",
        "`ffn` (TAIF)",
        "`all` (vanilla)",
        "`tuned 1`",
        "`tuned 2`",
    ]


def test_what_is_gained_lost_and_kept_has_its_interval():
    (row,) = [line for line in tuned_words(card(tuned())).table.splitlines() if "TAIA" in line]
    assert row == "| `attention` (TAIA) | +0.231 (+0.219 to +0.243) | 0.0612 (0.0581 to 0.0643) | 95.7 % |"
    grown = tuned_words(card(tuned(objective="loss"))).table
    assert "loss above the base's" in grown.splitlines()[0]
    assert "+0.061 (+0.058 to +0.064)" in grown


def test_the_card_says_whether_the_setting_to_use_is_published():
    found = tuned(chosen="attention")
    assert "The model loads with `attention`.\n" in section(card(found))
    assert "The model loads with `all`, not with `attention`;" in section(card(found, default="all"))
    published = found.candidate("tuned 2").parsed.label
    assert "The model loads with `tuned 2`.\n" in section(card(tuned(), default=published))


def test_the_front_is_shown_once_and_only_where_its_figure_is():
    text = cards.render_card(EVERYTHING)
    assert text.count("(figures/tuning_front.png)") == 1
    assert "(figures/tuning_front.png)" in section(EVERYTHING)
    assert "(figures/scores.png)" in text.partition("## Anatomy")[2]
    assert "![" not in section(card(tuned(), figures=()))
    alone = tuple(one for one in EVERYTHING.figures if "tuning" in one.path)
    assert "## Anatomy" not in cards.render_card(card(tuned(), figures=alone))


def test_nothing_of_a_tuning_is_in_the_metadata():
    with_it, without = (ModelCard(cards.render_card(card(one))).data.to_dict() for one in (tuned(), None))
    assert with_it == without


def test_what_limits_the_numbers_is_said():
    few = TuningData("items.jsonl", "0a" * 32, 5, 5, 100)
    text = section(card(tuned(target=few, complete=False)), "short")
    for said in ("Fewer than 10 items tell nothing", "ended the search before its last point", "2 texts stand in the"):
        assert said in text
    assert "on 5 items of `items.jsonl` (the target) and 32 texts that ship with taia-hub (what is to be kept)" in text


def test_labels_and_reasons_of_anybody_show_as_they_are():
    odd = candidate("a|b`<b>", 0.1, 0.01, "all", tuned().candidates[3].weights, kind="tuned", on_front=True)
    found = tuned()
    choice = dataclasses.replace(found.choice, label=odd.label, reason="<script>x</script> | y", gain=about(0, 0))
    text = section(card(dataclasses.replace(found, candidates=(*found.candidates, odd), choice=choice)))
    assert "<script>" not in text
    assert "<b>" not in text
    assert "a\\|b" in text


def test_limits_know_what_a_tuning_measured():
    def limits(**values):
        return cards.render_card(card(tuned(), **values)).partition("## Limits")[2].partition("\n## ")[0]

    alone = limits(results=None)
    assert "No mode was evaluated" not in alone
    assert "Nothing was measured but the items and texts under *Tuned setting*" in alone
    assert "Nothing but the tasks above was evaluated" in limits()
    assert "; a tuning compared settings on other items." in limits()
