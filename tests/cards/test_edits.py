"""A person's edits of a card survive when it is made again."""

import dataclasses
import re

import pytest
import yaml

from taia_hub import cards
from taia_hub.cards.edits import ABSENT, decide
from taia_hub.cards.sections import key_hashes
from taia_hub.errors import ConfigError
from tests.card_samples import EVERYTHING, FOLDER, GOLDEN, NOTHING, RESULTS, render, results, task

OTHER = dataclasses.replace(EVERYTHING, results=results(task("svamp", "SVAMP", 40)), license_fields={"license": "mit"})


@pytest.fixture(scope="module")
def old():
    return render("everything")


@pytest.fixture(scope="module")
def new():
    return cards.render_card(OTHER)


def metadata(text):
    return yaml.safe_load(text.split("---\n")[1])


def section(text, title):
    return text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def headings(text):
    return re.findall(r"^## (.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_card_that_nobody_touched_is_replaced_as_a_whole(name, new):
    assert cards.merge_cards(render(name), render(name)).text == render(name)
    assert cards.merge_cards(render(name), new) == cards.Merged(new, ())
    assert cards.merge_cards(None, new) == cards.Merged(new, ())


def test_a_section_of_ones_own_stays_where_it_was(old, new):
    edited = old.replace("## Modes\n", "## My warning\n\nDo not | use `this`.\n\n## Modes\n")
    merged = cards.merge_cards(edited, new)
    titles = headings(merged.text)
    assert titles[titles.index("My warning") + 1] == "Modes"
    assert "Do not | use `this`." in section(merged.text, "My warning")
    assert merged.kept == ("your section 'My warning' stays",)
    assert merged.text.replace("## My warning\n\nDo not | use `this`.\n\n", "") == new
    assert cards.merge_cards(merged.text, new).text == merged.text


@pytest.mark.parametrize("where", ["start", "end"])
def test_sections_at_the_ends_stay(old, new, where):
    own = "## Mine\n\nText."
    edited = (
        old.replace("# org/model-taia\n", f"{own}\n\n# org/model-taia\n") if where == "start" else f"{old}\n{own}\n"
    )
    merged = cards.merge_cards(edited, new).text
    assert own in merged
    assert merged.replace(f"{own}\n\n", "").replace(f"\n{own}\n", "") == new


def test_several_sections_keep_their_order(old, new):
    edited = old.replace("## Modes\n", "## One\n\n1\n\n## Two\n\n2\n\n## Modes\n") + "\n# Three\n\n3\n"
    merged = cards.merge_cards(edited, new).text
    assert re.findall(r"^#+ (One|Two|Modes|Citation|Three)$", merged, re.MULTILINE) == [
        "One",
        "Two",
        "Modes",
        "Citation",
        "Three",
    ]


def test_a_section_after_one_that_is_gone_stays(old):
    edited = old.replace("## Limits\n", "## Mine\n\nText.\n\n## Limits\n")
    merged = cards.merge_cards(edited, cards.render_card(NOTHING)).text
    assert headings(merged) == ["Use", "Modes", "Mine", "Limits", "Citation"]


def test_a_generated_section_that_was_changed_stays_and_says_so(old, new):
    edited = old.replace("TAIA leans on", "This model leans on")
    merged = cards.merge_cards(edited, new)
    assert "This model leans on" in merged.text
    assert "TAIA leans on" not in merged.text
    assert merged.kept == ("section 'Limits' stays as you changed it; delete it to get the generated one",)
    again = cards.merge_cards(merged.text, new)
    assert again.text == merged.text
    assert metadata(merged.text) == metadata(new)


def test_a_changed_section_that_is_no_longer_generated_stays(old):
    edited = old.replace("Best in bold", "Best is bold")
    merged = cards.merge_cards(edited, cards.render_card(dataclasses.replace(EVERYTHING, results=None)))
    assert "Best is bold" in merged.text
    assert "no longer generated" in merged.kept[0]
    assert "## Which mode to use" not in merged.text


def test_a_changed_heading_does_not_double_the_section(old, new):
    merged = cards.merge_cards(old.replace("## Limits\n", "## What to mind\n"), new).text
    assert "What to mind" in headings(merged)
    assert "Limits" not in headings(merged)


def test_a_section_whose_marker_was_removed_takes_the_place_of_ours(old, new):
    edited = re.sub(r"<!-- taia:section limits .*? -->\n", "", old).replace("TAIA leans on", "It leans on")
    merged = cards.merge_cards(edited, new)
    assert headings(merged.text).count("Limits") == 1
    assert "It leans on" in merged.text


def test_a_deleted_section_comes_back_as_generated(old, new):
    start = old.index("## Limits")
    edited = old[:start] + old[old.index("## Provenance") :]
    assert cards.merge_cards(edited, new).text == new


def test_a_subsection_makes_the_section_a_persons(old, new):
    edited = old.replace("\n## Modes\n", "\n### With a GPU\n\nFast.\n\n## Modes\n")
    assert "### With a GPU\n\nFast." in cards.merge_cards(edited, new).text


def test_a_heading_in_code_is_no_section(old, new):
    edited = old.replace("## Modes\n", "## Mine\n\n```\n## Limits\n```\n\n## Modes\n")
    merged = cards.merge_cards(edited, new).text
    assert "## Mine\n\n```\n## Limits\n```\n" in merged
    assert cards.merge_cards(merged, new).text == merged


# Cards of version 0.1, with longer markers


@pytest.fixture(scope="module")
def aged():
    return (FOLDER / "everything-0.1.md").read_text(encoding="utf-8")


def test_an_old_card_that_nobody_touched_is_brought_up_to_date(aged, new):
    assert metadata(aged)["library_name"] == "peft"  # of which the Hub shows a broken snippet
    assert cards.is_generated(aged)
    assert cards.title_of(aged) == "org/model-taia"
    assert cards.merge_cards(aged, new) == cards.Merged(new, ())


def test_an_edit_of_an_old_card_stays(aged, new):
    edited = aged.replace("## Modes\n", "## Mine\n\nText.\n\n## Modes\n").replace("TAIA leans on", "It leans on")
    edited = edited.replace("license: other", "license: gpl-3.0").replace("pipeline_tag: text-generation\n", "")
    edited = edited.replace("## Citation\n", f"## Citation\n\n{YOURS}\n", 1)
    merged = cards.merge_cards(edited, new)
    for text in ("## Mine\n\nText.\n", "It leans on", YOURS):
        assert text in merged.text
    found = metadata(merged.text)
    assert (found["license"], "pipeline_tag" in found, found["library_name"]) == ("gpl-3.0", False, "taia-hub")
    assert "taia:section" not in merged.text
    assert "taia:metadata" not in merged.text
    assert cards.merge_cards(merged.text, new).text == merged.text


def test_markers_are_short(new):
    marks = re.findall(r"<!--.*?-->", new)
    assert len(marks) == 1 + len(re.findall(r"^##? ", new, re.MULTILINE))
    assert all(len(mark) <= 40 for mark in marks[1:])


def test_a_title_that_was_changed_does_not_change_whose_card_it_is(old):
    for title in ("# My great model", "# Great-Model"):
        assert cards.title_of(old.replace("# org/model-taia", title, 1)) == "org/model-taia"


# Between the markers

YOURS = "<!-- taia:yours -->\nMy own words.\n\n## Even a heading\n<!-- /taia:yours -->"


@pytest.mark.parametrize("title", ["Which mode to use", "Results", "Use", "Modes", "Limits", "Citation"])
def test_text_between_the_markers_stays_while_the_section_is_renewed(old, new, title):
    edited = old.replace(f"## {title}\n", f"## {title}\n\n{YOURS}\n", 1)
    merged = cards.merge_cards(edited, new)
    assert YOURS in merged.text
    assert merged.text.index(YOURS) > merged.text.index(f"## {title}\n")
    assert re.sub(r"\n+", "\n", merged.text.replace(YOURS, "")) == re.sub(r"\n+", "\n", new)
    assert cards.merge_cards(merged.text, new).text == merged.text
    assert cards.merge_cards(merged.text, old).text.count("My own words.") == 1


def test_text_between_the_markers_stays_after_its_line(old, new):
    edited = old.replace("Several modes in one batch", f"{YOURS}\n\nSeveral modes in one batch")
    merged = cards.merge_cards(edited, new).text
    assert merged.index("    ...\n") < merged.index(YOURS) or merged.index("```\n") < merged.index(YOURS)
    assert YOURS in section(merged, "Use") + merged


def test_text_between_the_markers_survives_its_section(old):
    edited = old.replace("Best in bold", f"{YOURS}\n\nBest in bold")
    without = cards.render_card(dataclasses.replace(EVERYTHING, results=None))
    merged = cards.merge_cards(edited, without)
    assert YOURS in merged.text
    assert "though the section is no longer generated" in merged.kept[0]
    assert YOURS in cards.merge_cards(merged.text, without).text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- taia:yours -->\nnever closed", r"Line (\d+) of the card opens .* never closed"),
        ("<!-- /taia:yours -->", r"Line (\d+) of the card closes .* not open"),
    ],
)
def test_a_marker_alone_is_an_error_with_its_line(old, new, text, message):
    edited = old.replace("\n## Modes\n", f"\n{text}\n\n## Modes\n")
    with pytest.raises(ConfigError, match=message) as caught:
        cards.merge_cards(edited, new)
    assert edited.split("\n")[int(re.search(r"\d+", caught.value.message)[0]) - 1] == text.split("\n")[0]
    assert "on a line of its own" in caught.value.hint


# Metadata


def test_a_key_that_was_set_changed_or_removed_stays_so(old, new):
    edited = old.replace("license: other\n", "license: gpl-3.0\n").replace("pipeline_tag: text-generation\n", "")
    edited = edited.replace("tags:\n- taia\n", "thumbnail: https://example.org/x.png\ntags:\n- mine\n- taia\n")
    merged = cards.merge_cards(edited, new)
    found = metadata(merged.text)
    assert found["license"] == "gpl-3.0"
    assert found["thumbnail"] == "https://example.org/x.png"
    assert found["tags"][0] == "mine"
    assert "pipeline_tag" not in found
    assert found["model-index"] == metadata(new)["model-index"]
    assert "license_name" not in found  # ours, and no longer generated
    assert set(merged.kept) == {
        "metadata 'license' stays as you set it",
        "metadata 'tags' stays as you set it",
        "metadata 'thumbnail' stays as you set it",
        "metadata 'pipeline_tag' stays removed",
    }
    assert metadata(cards.merge_cards(merged.text, new).text) == found


def test_what_is_asked_for_now_wins_and_stays(old, new):
    edited = old.replace("license: other\n", "license: gpl-3.0\n").replace("tags:\n", "tags:\n- mine\n")
    asked = dataclasses.replace(EVERYTHING, license_fields={"license": "mit"}, tags=("asked",))
    merged = cards.merge_cards(edited, cards.render_card(asked), given=("license", "tags")).text
    assert metadata(merged)["license"] == "mit"
    assert {"mine", "asked"} <= set(metadata(merged)["tags"])
    again = metadata(cards.merge_cards(merged, new).text)
    assert again["license"] == "mit"
    assert "asked" in again["tags"]
    first = cards.merge_cards(None, cards.render_card(asked), given=("license",)).text
    assert metadata(cards.merge_cards(first, cards.render_card(EVERYTHING)).text)["license"] == "mit"


def test_a_key_of_ours_that_is_no_longer_known_goes(old):
    merged = metadata(cards.merge_cards(old, cards.render_card(NOTHING)).text)
    assert set(merged) == {"library_name", "pipeline_tag", "tags"}


def test_an_edit_of_the_new_card_wins_over_one_of_the_old(old, new):
    here = cards.merge_cards(old.replace("license: other", "license: here"), new).text
    here = here.replace("## Modes\n", "## Mine\n\nhere\n\n## Modes\n")
    there = old.replace("license: other", "license: there").replace("## Modes\n", "## Mine\n\nthere\n\n## Modes\n")
    there += "\n## Only there\n\nText.\n"
    both = cards.merge_cards(there, here).text
    assert metadata(both)["license"] == "here"
    assert section(both, "Mine").strip() == "here"
    assert "## Only there" in both


OURS, OTHER_HASH = key_hashes({"x": 1})["x"], "0" * 12
CHANGED, REMOVED = "stays as you set it", "stays removed"


@pytest.mark.parametrize(
    ("before", "written", "now", "asked", "value", "note"),
    [
        # ours: replaced, or dropped where it is no longer generated
        (1, OURS, 2, False, 2, None),
        (1, OURS, ABSENT, False, ABSENT, None),
        (ABSENT, None, 2, False, 2, None),
        # a person's: set, changed or removed
        (1, None, 2, False, 1, CHANGED),
        (1, None, ABSENT, False, 1, CHANGED),
        (1, OTHER_HASH, 2, False, 1, CHANGED),
        (1, OTHER_HASH, ABSENT, False, 1, CHANGED),
        (1, OTHER_HASH, 1, False, 1, None),
        (ABSENT, OURS, 2, False, ABSENT, REMOVED),
        (ABSENT, OURS, ABSENT, False, ABSENT, None),
        # asked for just now, or decided by a merge before
        (1, None, 2, True, 2, None),
        (1, OTHER_HASH, ABSENT, True, ABSENT, None),
        (ABSENT, OURS, 2, True, 2, None),
    ],
)
def test_whose_a_key_is(before, written, now, asked, value, note):
    assert decide(before, written, now, asked=asked) == (value, note)


# Somebody else's card


@pytest.mark.parametrize("text", ["", "# Mine\n", "---\ntags: [x]\n---\n# Mine\n", "---\n", "no heading"])
def test_somebody_elses_card_is_refused(text, new):
    with pytest.raises(ConfigError, match="not written by taia-hub") as caught:
        cards.merge_cards(text, new)
    assert "Rename it" in caught.value.hint


def test_a_card_is_ours_until_its_mark_is_removed(old):
    assert cards.is_generated(old)
    assert not cards.is_generated(old.replace(cards.MARK, ""))
    assert not cards.is_generated("# Somebody's card")


def test_broken_yaml_is_said_so(old, new):
    with pytest.raises(ConfigError, match="YAML cannot be read"):
        cards.merge_cards(old.replace("license: other", "license: [other"), new)


def test_line_endings_of_windows_are_no_edit(old, new):
    assert cards.merge_cards(old.replace("\n", "\r\n"), new) == cards.Merged(new, ())


def test_space_at_the_ends_of_lines_is_no_edit(old, new):
    assert cards.merge_cards(old.replace("\n\n", "  \n\n\n"), new) == cards.Merged(new, ())


def test_the_title_tells_the_id_of_a_card_of_ours(old):
    assert cards.title_of(old) == "org/model-taia"
    assert cards.title_of(cards.render_card(dataclasses.replace(EVERYTHING, repo_id="org/a_b__c"))) == "org/a_b__c"
    assert cards.title_of("# org/model\n") is None


def test_results_change_and_edits_stay_through_many_rounds(old):
    text = old.replace("## Modes\n", "## Mine\n\nText.\n\n## Modes\n").replace("license: other", "license: mit")
    for items in (10, 20, 30, 40):
        data = dataclasses.replace(EVERYTHING, results=results(task("svamp", "SVAMP", items)))
        text = cards.merge_cards(text, cards.render_card(data)).text
        assert text.count("## Mine") == 1
        assert f"| {items} |" in text
    assert cards.merge_cards(text, old).text.count("Text.") == 1
    assert RESULTS.tasks.keys() <= {
        metric["args"]["task"]
        for one in metadata(cards.merge_cards(text, old).text)["model-index"][0]["results"]
        for metric in one["metrics"]
    }
