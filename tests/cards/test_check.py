"""Checking a card, and `taia card`: printing, writing, publishing, and files of another model."""

import dataclasses
import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from typer import Typer
from typer.testing import CliRunner

from taia_hub import TAIAForCausalLM, cards, hub
from taia_hub.cli.cards import card
from taia_hub.errors import ConfigError, RepositoryError, TAIAError
from taia_hub.repository import card_updating
from taia_hub.repository.side_files import SideFiles, read_results, read_training
from taia_hub.results import ModelIdentity
from tests.card_samples import ADAPTER_SHA, BASE_SHA, EVERYTHING, NOTHING, RESULTS, SHA, render, results, task

FILES = frozenset(
    {"config.json", "taia_results.json", "taia_tuning.json"}
    | {f"figures/{name}.png" for name in ("scores", "update_norms", "tuning_front")}
)
WEIGHTS = "adapter/adapter_model.safetensors"
FACTS = cards.CardFacts(EVERYTHING, "org/model-taia", FILES, {WEIGHTS: ADAPTER_SHA})


def wrong(text, facts=FACTS):
    return [finding for finding in cards.check_card(text, facts) if not finding.ok]


@pytest.fixture(scope="module")
def text():
    return render("everything")


# The pure check


@pytest.mark.parametrize("name", ["everything", "short"])
def test_a_card_as_it_was_made_tells_the_truth(name):
    card_text = render(name)
    findings = cards.check_card(card_text, FACTS)
    assert not [finding for finding in findings if not finding.ok or finding.warning]
    checked = " ".join(finding.what for finding in findings)
    for what in ("metadata base_model", "model-index.0.results.2.metrics.3.value", "| Average | 0", "sha256", "Python"):
        assert what in checked, what
    assert all(1 <= finding.line <= card_text.count("\n") for finding in findings)


def test_a_card_that_knows_nothing_tells_the_truth():
    facts = cards.CardFacts(NOTHING, None, frozenset({"config.json"}))
    assert wrong(render("nothing"), facts) == []


LIES = [
    ("+0.231 (+0.219", "+0.331 (+0.219"),
    ("| 95.7 % |", "| 99.7 % |"),
    ("on 160 items of `medical.jsonl`", "on 1600 items of `medical.jsonl`"),
    ("**0.582**", "**0.682**"),
    ("± 0.047", "± 0.001"),
    ("| SVAMP | acc | 0 | 100 |", "| SVAMP | acc | 0 | 999 |"),
    ("| SVAMP | acc | 0 | 100 |", "| GSM8K | acc | 0 | 100 |"),
    ("| SVAMP | acc | 0 | 100 |", "| SVAMP | acc | 5 | 100 |"),
    ("| task | metric", "| Task | metric"),
    ("| base | TAIA | TAIF", "| base | other | TAIF"),
    ("TAIA `attention`, TAIF", "TAIA `other`, TAIF"),
    ("+0.164 (", "+0.964 ("),
    ("`tuned 5`: `taia tune` compared", "`all`: `taia tune` compared"),
    ("      value: 0.54\n", "      value: 0.99\n"),
    ("        task: svamp\n", "        task: gsm8k\n"),
    ("num_fewshot: 0", "num_fewshot: 25"),
    ("type: acc", "type: f1"),
    ("type: org/svamp", "type: cais/mmlu"),
    ("(TAIA, attention; 0-shot)", "(base, none; 0-shot)"),
    (f"base) at `{BASE_SHA}`", f"base) at `{SHA}`"),
    (f'revision="{BASE_SHA}"', f'revision="{"d" * 40}"'),
    (f"`{ADAPTER_SHA}`", f"`{'1' * 64}`"),
    (ADAPTER_SHA, ADAPTER_SHA[:-1]),
    (ADAPTER_SHA, "DEADBEEF" * 8),
    ("e" * 64, "f" * 64),
    ("figures/scores.png", "figures/gone.png"),
    ("huggingface.co/org/base)", "huggingface.co/org/other)"),
    ("base_model: org/base\n", "base_model: org/other\n"),
    ("base_model_relation: adapter\n", "base_model_relation: merge\n"),
    ("license: other\n", "license: mit\n"),
    ("emissions: 12.5", "emissions: 0.0"),
    ("- org/medquad", "- evil/other"),
    ("language:\n- en", "language:\n- fr"),
    ("with model.using(", "with model.using"),
    ('CausalLM.from_pretrained("org/model-taia")', 'CausalLM.from_pretrained("org/x")'),
    ('model="org/model-taia"', 'model="org/x"'),
    ('model.inference_modules = "all"  # the vanilla', 'model.inference_modules = "ffn"  # the vanilla'),
    ("pip install .", "pip install evil"),
    ("vllm serve org/base", "vllm serve evil/base"),
    ("hf download org/model-taia", "hf download evil/model"),
    ("by default `attention`", "by default `all`"),
    ("by default `attention`", "by default\n`all`"),
    ("A LoRA fine-tune", "A IA3 fine-tune"),
    ("| adapted modules | 8 |", "| adapted modules | 9 |"),
    ("| rank | 16 |", "| rank | 64 |"),
    ("| 11.5 |", "| 1 |"),
    ("| 1.25 |", "| 0.0001 |"),
    ("0.0104", "0.9"),
    ("alpha 32", "alpha 999"),
    ("dropout 0.05", "dropout 0.9"),
    ("| `none` | none | the base model |", "| `none` | all | vanilla |"),
    ("`0.001`", "`0.1`"),
    ("| gpu | `NVIDIA H200`", "| gpu | `TPU v9`"),
    (": 480 items", ": 480,000 items"),
    ("licence `cc-by-4.0`", "licence `mit`"),
    ("`my notes`", "`your notes`"),
    ("on `NVIDIA H200`", "on `TPU`"),
    ("It took 4.7 minutes", "It took 900 hours"),
    ("`2.13.0`", "`1.0`"),
    ("lm-evaluation-harness 0.4.13", "lm-evaluation-harness 0.1"),
    ("2026-11-21", "1999-01-01"),
    ("| MATH | 0.364", "<!--\n\n| MATH | 0.364"),
    ("| MATH | 0.364", "GSM8K | 0.9 | 0.9 | 0.9 | 0.9\n| MATH | 0.364"),
]


UNTUNED = dataclasses.replace(EVERYTHING, tuning=None)
UNTUNED_LIES = [
    ("over 210 items", "over 99,999 items"),
    ("`ffn` may be as good", "`none` may be as good"),
    ("`attention` has the best score", "`all` has the best score"),
]


@pytest.mark.parametrize(
    ("data", "old", "new"),
    [*((EVERYTHING, *lie) for lie in LIES), *((UNTUNED, *lie) for lie in UNTUNED_LIES)],
)
def test_a_lie_is_found_on_its_line(text, data, old, new):
    text = text if data is EVERYTHING else cards.render_card(data)
    assert old in text
    at = text.index(old)
    found = wrong(text.replace(old, new, 1), dataclasses.replace(FACTS, data=data))
    line = text[:at].count("\n") + 1
    first = line - old.startswith("- ")  # an item of a list is named at its key
    last = line + old.strip("\n").count("\n") + new.count("\n")
    assert any(first <= finding.line <= last for finding in found), [str(one) for one in found]


@pytest.mark.parametrize(
    "pattern",
    [
        r"\| SVAMP \| acc [^\n]*\n",
        r"\| SVAMP \|(?! acc)[^\n]*\n",
        r"### Differences.*?(?=\nEvaluated)",
        r"## Results.*?(?=\n## Use)",
        r"## Limits.*?(?=\n## Provenance)",
        r"- sha256 of[^\n]*\n",
        r"- base model:[^\n]*\n",
        r"model-index:.*?(?=---\n)",
        r"co2_eq_emissions:.*?(?=widget)",
        r"library_name: taia-hub\n",
        r"- taia\n",
        r"license: other\n",
    ],
)
def test_what_was_left_out_is_missed(text, pattern):
    shorter = re.sub(pattern, "", text, count=1, flags=re.DOTALL)
    assert shorter != text
    assert wrong(shorter)


def test_a_column_that_was_left_out_is_missed(text):
    lines = [re.sub(r"\|[^|]*\|$", "|", line) if line.count("|") == 6 else line for line in text.split("\n")]
    assert "| vanilla" not in "\n".join(lines).split("## Results")[1].split("### Differences")[0]
    assert len(wrong("\n".join(lines))) > 3


def test_a_limit_that_was_hidden_is_missed():
    few = dataclasses.replace(EVERYTHING, results=dataclasses.replace(RESULTS, settings={"limit": 20}))
    facts, said = dataclasses.replace(FACTS, data=few), cards.render_card(few)
    assert wrong(said, facts) == []
    for pattern in (r", the first 20 items of each task", r"- Only the first 20[^\n]*\n"):
        hidden = re.sub(pattern, "", said)
        assert hidden != said
        assert wrong(hidden, facts)


def test_a_difference_says_what_each_side_says_around_it(text):
    (found,) = wrong(text.replace("**0.582**", "**0.682**", 1))
    at = text.split("\n").index(next(line for line in text.split("\n") if line.startswith("| MATH | 0.364")))
    said, true = ("| **0.682** ± 0.047 |", "| **0.582** ± 0.047 |")
    assert str(found) == f"line {at + 1}: wrong: 'Results': the card says ± 0.046 {said}; the files say ± 0.046 {true}"


def test_how_a_paragraph_is_wrapped_does_not_count(text):
    wrapped = text.replace("update, and which part of it acts", "update,\nand which  part of it acts", 1)
    assert wrapped != text
    assert wrong(wrapped) == []


def test_a_line_of_code_counts_with_its_indent(text):
    assert wrong(text.replace("\n    print(mode, answer)", "\n  print(mode, answer)"))


def test_a_section_whose_marker_was_removed_is_still_held_to_what_it_says(text):
    bare = re.sub(r"<!-- taia:section results .*-->\n", "", text)
    assert [finding for finding in wrong(bare) if "missing" in finding.what] == []
    assert wrong(bare.replace("**0.582**", "**0.682**", 1))


def test_a_comment_that_looks_like_a_mark_hides_nothing(text):
    forged = "<!-- taia:section x 000000000000 --> 99 % <!-- -->"
    assert wrong(text.replace("Best in bold,", f"{forged}\n\nBest in bold,", 1))


def test_keys_that_a_person_asked_for_or_added_are_no_lies(text):
    asked = dataclasses.replace(EVERYTHING, license_fields={"license": "mit"})
    mine = cards.merge_cards(None, cards.render_card(asked), given=("license",)).text
    mine = mine.replace("tags:\n", "tags:\n- mine\n").replace("datasets:\n", "datasets:\n- org/more\n")
    mine = mine.replace("library_name: taia-hub\n", "library_name: taia-hub\nthumbnail: https://example.org/x.png\n")
    assert wrong(mine) == []
    assert [finding.what for finding in wrong(mine.replace("license: mit\n", ""))] == ["metadata license"]


def test_a_licence_is_held_to_the_one_that_was_published(text):
    assert [finding.what for finding in wrong(text.replace("license: other\n", "license: mit\n"))] == [
        "metadata license"
    ]


def test_a_list_of_licences_is_read():
    both = dataclasses.replace(EVERYTHING, license_fields={"license": ["apache-2.0", "mit"]})
    said = cards.render_card(both)
    assert ModelCard(said).data.license == ["apache-2.0", "mit"]
    assert wrong(said, dataclasses.replace(FACTS, data=both)) == []
    assert wrong(said.replace("- mit\n", ""), dataclasses.replace(FACTS, data=both))


def test_a_card_of_a_persons_own_template_is_compared_with_it(tmp_path):
    (tmp_path / "model_card.md.j2").write_text(
        '{% extends "taia/model_card.md.j2" %}{% block limits %}## Limits\n\nNone below 7.\n{% endblock %}'
    )
    own = cards.render_card(EVERYTHING, template_dir=tmp_path)
    assert wrong(own)
    assert wrong(own, dataclasses.replace(FACTS, template_dir=tmp_path)) == []


def test_the_version_that_wrote_a_card_is_taken_for_true():
    older = dataclasses.replace(EVERYTHING, taia_version="0.0.9")
    assert wrong(cards.render_card(older)) == []


def test_a_table_without_results_is_a_lie(text):
    facts = dataclasses.replace(FACTS, data=dataclasses.replace(EVERYTHING, results=None))
    assert {"'Results'", "'Which mode to use'", "metadata model-index"} <= {one.what for one in wrong(text, facts)}


def test_other_results_make_every_number_a_lie(text):
    other = results(*(task(f"{key}", one.title, 77) for key, one in RESULTS.tasks.items()), groups=RESULTS.groups)
    assert len(wrong(text, dataclasses.replace(FACTS, data=dataclasses.replace(EVERYTHING, results=other)))) > 20


def test_a_persons_own_text_is_not_checked_for_numbers(text):
    own = f"## Mine\n\n| part | adapted modules |\n| --- | --- |\n| attention | 99 |\n\n`{'7' * 64}`\n\n"
    assert wrong(text.replace("## Modes\n", f"{own}## Modes\n")) == []
    yours = f"\n<!-- taia:yours -->\n{'7' * 64}\n<!-- /taia:yours -->\n"
    assert wrong(text.replace("## Modes\n", f"## Modes\n{yours}")) == []


def test_a_persons_links_and_python_are_checked(text):
    links = "[there](README2.md) [here](#modes) [web](https://example.org) [nowhere](#nowhere) `[x](code.md)`"
    own = f"## Mine\n\n{links}\n\n```python\n1 +\n```\n\n"
    found = wrong(text.replace("## Modes\n", f"{own}## Modes\n"))
    assert [finding.what for finding in found] == [
        "link to README2.md, which is no file of the repository",
        "link to #nowhere, which is no heading of the card",
        "Python does not compile: invalid syntax",
    ]


def test_words_of_a_person_in_a_generated_section_are_only_a_warning(text):
    changed = text.replace("Best in bold", "The best one in bold")
    (found,) = [finding for finding in cards.check_card(changed, FACTS) if finding.warning]
    assert found.ok
    assert "warning: 'Results': the card says The best one in bold" in str(found)
    assert wrong(changed.replace("**0.582**", "**0.682**", 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# org/model-taia\n", "# My great model, version 2\n"),
        ("# org/model-taia\n", "# Great-Model\n"),
        ("## Limits\n", "## 3 things to mind\n"),
        ("### By part\n", "### All 2 parts\n"),
        ("\n## Use\n", "\nIt needs 7 GB.\n\n## Use\n"),
        ("Best in bold", "Use `ffn`.\n\nBest in bold"),
        ("Best in bold", "[here](https://example.org)\n\nBest in bold"),
        ("- Nothing but the tasks", "- Ask a doctor first, all 24 hours.\n- Nothing but the tasks"),
        ("A LoRA fine-tune of", "Made by 3 friends: a LoRA fine-tune of"),
        ("`tuned 5`: `taia tune` compared settings", "Take `tuned 5`: on 160 items `taia tune` compared settings"),
    ],
)
def test_what_a_person_says_beside_the_facts_is_no_lie(text, old, new):
    """`--write` keeps it, so a check that refused it would fail whoever uses both."""
    assert old in text
    changed = text.replace(old, new, 1)
    assert wrong(changed) == []
    assert [finding for finding in cards.check_card(changed, FACTS) if finding.warning]
    assert new.strip() in cards.merge_cards(changed, text).text


@pytest.mark.parametrize("fact", ["<b>Best</b>", "<!-- hidden", "| GSM8K | 0.9 | 0.9 | 0.9 | 0.9 |", "```\n0.9\n```"])
def test_what_looks_like_ours_and_is_not_is_a_lie(text, fact):
    assert wrong(text.replace("Best in bold", f"{fact}\n\nBest in bold"))


def test_a_fence_is_no_fact(text):
    findings = cards.check_card(text, FACTS)
    assert not [finding for finding in findings if re.search(r"': (`{3}|~{3})", finding.what)]
    assert wrong(text.replace("```bash\n", "", 1))


def test_a_card_of_somebody_elses_is_only_checked_for_what_anybody_may_say(text):
    own = re.sub(r"<!-- taia:.*-->\n", "", text).replace("**0.582**", "**0.682**", 1)
    assert wrong(own) == []
    assert "bears no mark" in " ".join(str(one) for one in cards.check_card(own, FACTS) if one.warning)


def test_an_unreadable_card_is_a_finding():
    assert "YAML cannot be read" in str(wrong("---\na: [\n---\n")[0])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "---\nmodel-index: 3\n---\n",
        "---\nmodel-index: [x]\ntags: taia\n---\n",
        "---\nmodel-index: [{results: [{metrics: [{}]}]}]\n---\n",
        "|\n|\n|",
        "```python\n",
        "# x\n<!-- taia:section x 000000000000 -->\n| task | items |\n| --- |\n| x\n|\n",
        "# x\n<!-- taia:section x 000000000000 -->\n| task | shots | items |\n| --- |\n| x\n|\n",
    ],
)
def test_any_text_can_be_checked(text):
    assert wrong(text)


def test_findings_say_what_they_mean():
    assert str(cards.Finding(3, "x", True)) == "line 3: ok: x"
    assert str(cards.Finding(3, "x", False, "1", "2")) == "line 3: wrong: x: the card says 2; the files say 1"
    assert str(cards.Finding(3, "x", True, "1", warning=True)) == (
        "line 3: warning: x: the card says nothing of it; the files say 1"
    )
    assert str(cards.Finding(None, "x", False, "1", "2")) == "files: wrong: x: expected 1, found 2"
    assert str(cards.Finding(3, "x", False)) == "line 3: wrong: x"


# `taia card`

app = Typer()
app.command()(card)


@pytest.fixture
def taia_card():
    """Runs `taia card`; returns (exit status, output). An error of ours is raised."""

    def run(*words, answer=None):
        found = CliRunner().invoke(app, [str(word) for word in words], input=answer)
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        return found.exit_code, found.stdout

    return run


@pytest.fixture
def folder(online, tmp_path):
    online.model().save_pretrained(tmp_path / "model-taia")
    return tmp_path / "model-taia"


def results_of(folder, **changes):
    """Makes results of the model in a folder."""
    config = json.loads((folder / "config.json").read_text())
    model = ModelIdentity(
        "org/model-taia",
        None,
        config["base_model_name_or_path"],
        config["base_model_revision"],
        hub.sha256(folder / WEIGHTS),
        "float32",
    )
    return dataclasses.replace(RESULTS, model=dataclasses.replace(model, **changes))


def test_a_card_is_printed_and_nothing_is_written(taia_card, folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    status, out = taia_card(folder, "--language", "en", "--dataset", "org/data", "--tag", "x", "--prompt", "Hello")
    assert status == 0
    data = ModelCard(out).data.to_dict()
    assert (data["language"], data["datasets"], data["widget"]) == (["en"], ["org/data"], [{"text": "Hello"}])
    assert "x" in data["tags"]
    assert data["license_name"] == "pico-1.0"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_difference_is_shown_before_it_is_written(taia_card, folder):
    results_of(folder).save(folder / "taia_results.json")
    before = (folder / "README.md").read_text()
    status, out = taia_card(folder, "--write", answer="n\n")
    assert status == 1
    assert "+## Results" in out
    assert (folder / "README.md").read_text() == before
    status, out = taia_card(folder, "--write", answer="y\n")
    assert status == 0
    assert "## Results" in (folder / "README.md").read_text()
    assert "is up to date" in taia_card(folder, "--write")[1]


def test_yes_writes_at_once_and_the_card_then_holds(taia_card, folder):
    results_of(folder).save(folder / "other.json")
    status, out = taia_card(folder, "--write", "--yes", "--results", folder / "other.json", "--license", "mit")
    assert (status, "@@" in out) == (0, False)
    assert (folder / "taia_results.json").read_bytes() == (folder / "other.json").read_bytes()
    status, out = taia_card(folder, "--check")
    assert status == 0, out
    assert re.search(r"^checked \d+ facts: none is wrong$", out)  # and nothing else
    status, out = taia_card(folder, "--check", "-v")
    assert (status, "taia_results.json is of this model" in out) == (0, True)
    assert re.search(r"^checked \d+ facts: none is wrong$", out, re.MULTILINE)
    # what was asked for stays, through saving too
    TAIAForCausalLM.from_pretrained(folder).save_pretrained(folder)
    text = (folder / "README.md").read_text()
    assert ModelCard(text).data.license == "mit"
    assert "## Results" in text
    assert taia_card(folder, "--check")[0] == 0


def test_a_lie_ends_with_status_1(taia_card, folder):
    results_of(folder).save(folder / "taia_results.json")
    taia_card(folder, "--write", "--yes")
    path = folder / "README.md"
    path.write_text(path.read_text().replace("**0.582**", "**0.982**", 1))
    status, out = taia_card(folder, "--check")
    assert status == 1
    assert "the card says ± 0.046 | **0.982** ± 0.047 |; the files say ± 0.046 | **0.582** ± 0.047 |" in out
    assert re.search(r"^checked \d+ facts: 1 is wrong$", out, re.MULTILINE)
    assert len(out.splitlines()) == 2
    status, out = taia_card(folder, "--check", "--json")
    assert status == 1
    assert [finding["what"] for finding in json.loads(out) if not finding["ok"]] == ["'Results'"]


@pytest.mark.parametrize("title", ["# My great model 2", "# Great-Model"])
def test_a_title_and_words_that_are_kept_pass_the_check(taia_card, folder, title):
    path = folder / "README.md"
    path.write_text(
        path.read_text().replace("# model-taia\n", f"{title}\n").replace("## Limits\n", "## Mind these 3\n")
    )
    assert taia_card(folder, "--write", "--yes")[0] == 0
    assert path.read_text().count(f"\n{title}\n") == 1
    status, out = taia_card(folder, "--check")
    assert (status, len(out.splitlines())) == (0, 1), out
    assert re.search(r"none is wrong; 2 passages differ in words alone \(-v shows\)", out)
    assert "warning" in taia_card(folder, "--check", "-v")[1]


def test_a_difference_has_colours_where_they_are_shown(folder, monkeypatch):
    words = [str(folder), "--write", "--tag", "mine"]
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = CliRunner().invoke(app, words, input="n\n", color=True).stdout
    assert "\x1b[32m+- mine" in shown
    assert "\x1b[" not in CliRunner().invoke(app, words, input="n\n").stdout
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in CliRunner().invoke(app, words, input="n\n", color=True).stdout


def test_weights_that_changed_make_the_card_a_lie(taia_card, folder):
    taia_card(folder, "--write", "--yes")
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    status, out = taia_card(folder, "--check")
    assert status == 1
    assert f"taia_manifest.json: {WEIGHTS}" in out
    assert f"wrong: 'Provenance': the card says sha256 of `{WEIGHTS}`" in out


def test_a_persons_edits_stay_and_are_named(taia_card, folder):
    path = folder / "README.md"
    path.write_text(path.read_text().replace("## Modes\n", "## Mine\n\nText.\n\n## Modes\n"))
    results_of(folder).save(folder / "taia_results.json")
    found = CliRunner().invoke(app, [str(folder), "--write", "--yes"])
    assert "Kept: your section 'Mine' stays." in found.stderr
    assert "## Mine\n\nText.\n" in path.read_text()
    assert "## Results" in path.read_text()


def test_somebody_elses_card_is_left_alone(taia_card, folder):
    (folder / "README.md").write_text("# Mine\n")
    for words in ((), ("--write", "--yes")):
        with pytest.raises(ConfigError, match="not written by taia-hub"):
            taia_card(folder, *words)
    assert (folder / "README.md").read_text() == "# Mine\n"


def test_a_folder_without_a_card_gets_one_and_has_none_to_check(taia_card, folder):
    (folder / "README.md").unlink()
    with pytest.raises(RepositoryError, match=r"has no README\.md"):
        taia_card(folder, "--check")
    assert taia_card(folder, "--write", "--yes", "--repo-id", "org/named")[0] == 0
    assert cards.title_of((folder / "README.md").read_text()) == "org/named"
    taia_card(folder, "--write", "--yes", "--variant", "short")  # the id stays
    assert cards.title_of((folder / "README.md").read_text()) == "org/named"
    assert "## Limits" not in (folder / "README.md").read_text()


def test_a_folder_of_templates_is_used(taia_card, folder, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "model_card.md.j2").write_text("# {{ card.repo_id | md }}\n\nOurs.\n")
    assert "Ours." in taia_card(folder, "--template-dir", tmp_path / "own")[1]
    (tmp_path / "own" / "model_card.md.j2").write_text("# {{ card.repo_idd }}\n")
    with pytest.raises(ConfigError, match=r"model_card\.md\.j2:1 fails"):
        taia_card(folder, "--template-dir", tmp_path / "own")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--write", "--check"], "exclude each other"),
        (["--push"], "needs a Hub id"),
        (["--results", "nowhere.json"], "does not exist"),
        (["--figures", "nowhere"], "is no folder"),
        (["--variant", "shrt"], "Did you mean 'short'"),
        (["--language", "English"], "no code of a language"),
        (["--template-dir", "nowhere"], "does not exist"),
    ],
)
def test_words_that_cannot_be_followed_are_refused(taia_card, folder, words, message):
    with pytest.raises(TAIAError, match=message) as caught:
        taia_card(folder, *words)
    assert caught.value.hint


def test_write_needs_a_folder(taia_card, online):
    with pytest.raises(ConfigError, match="--write needs a folder"):
        taia_card(online.taia, "--write")


# Files of another model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter_sha256": "1" * 64}, "adapter has the sha256 111111111111"),
        ({"adapter_sha256": None}, "adapter has the sha256 None"),
        ({"base_revision": "1" * 40}, "base model has the revision 111111111111"),
    ],
)
def test_results_of_another_model_or_base_are_refused(taia_card, folder, tmp_path, changes, message):
    results_of(folder, **changes).save(tmp_path / "results.json")
    with pytest.raises(ConfigError, match=f"of another model.*{message}") as caught:
        taia_card(folder, "--results", tmp_path / "results.json")
    assert "make it again" in caught.value.hint
    (tmp_path / "results.json").rename(folder / "taia_results.json")
    status, out = taia_card(folder, "--check")
    assert status == 1
    assert "wrong: taia_results.json is of this model" in out


def test_saving_leaves_results_of_another_model_out(folder, caplog):
    results_of(folder, adapter_sha256="1" * 64).save(folder / "taia_results.json")
    TAIAForCausalLM.from_pretrained(folder).save_pretrained(folder)
    assert "## Results" not in (folder / "README.md").read_text()
    assert "Left out of the model card" in caplog.text


def test_saving_shows_results_that_lie_there(folder):
    results_of(folder).save(folder / "taia_results.json")
    TAIAForCausalLM.from_pretrained(folder).save_pretrained(folder)
    assert "## Results" in (folder / "README.md").read_text()


def test_a_damaged_card_does_not_stop_saving(folder, caplog):
    path = folder / "README.md"
    path.write_text(path.read_text() + "\n<!-- taia:yours -->\n")
    before = path.read_text()
    TAIAForCausalLM.from_pretrained(folder).save_pretrained(folder)
    assert path.read_text() == before
    assert "The model card stays as it is" in caplog.text


def test_an_analysis_gives_norms_and_one_of_another_model_none(taia_card, folder, caplog):
    from taia_hub.analysis.examining import examine

    analysis = examine(str(folder))
    analysis.save(folder / "taia_analysis.json")
    (folder / "figures").mkdir()
    (folder / "figures" / "update_norms.png").write_bytes(b"\x89PNG")
    title = '<svg xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>Norms, falling.</dc:title></svg>'
    (folder / "figures" / "update_norms.svg").write_text(title)
    text = taia_card(folder)[1]
    norm = analysis.update.by_role["attention"].frobenius
    assert list(measures(text)) == ["adapted modules", "parameters", "rank", "effective rank", "Frobenius norm"]
    assert f"| {norm:.4g} |" in text
    assert "![Norms, falling.](figures/update_norms.png)" in text
    subject = dataclasses.replace(analysis.subject, adapter_sha256="1" * 64)
    dataclasses.replace(analysis, subject=subject).save(folder / "taia_analysis.json")
    with pytest.raises(ConfigError, match="the analysis of another model"):
        taia_card(folder)
    TAIAForCausalLM.from_pretrained(folder).save_pretrained(folder)
    assert "Left out of the model card" in caplog.text
    text = (folder / "README.md").read_text()
    assert "Frobenius" not in text
    assert "figures/" not in text


# What the card says of the update


def measures(said):
    """Reads the table of the update: a row's name to role to cell."""
    table = said[said.index("|  |") :].split("\n\n")[0].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {name: dict(zip(head[1:], cells, strict=True)) for name, *cells in rows}


@pytest.fixture
def updated(pico, tmp_path, taia_card):
    """Makes a TAIA folder of a configuration; returns it and the section of its card about the update."""

    def make(label, config, base="llama", analysed=False):
        from taia_hub.analysis.examining import examine

        folder = tmp_path / label
        TAIAForCausalLM.from_adapter(pico.base(base), pico.adapter(base, config, label=label)).save_pretrained(folder)
        saved = (folder / "README.md").read_text()
        assert saved.split("## Update")[1] == taia_card(folder)[1].split("## Update")[1]
        checked = taia_card(folder, "--check")[1]
        assert not [line for line in checked.splitlines() if ": wrong: " in line and "licen" not in line]
        if analysed:
            examine(str(folder)).save(folder / "taia_analysis.json")
        return folder, taia_card(folder)[1].split("## Update\n")[1].split("\n## ")[0]

    return make


def lora(**options):
    import peft

    return peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM", **options})


@pytest.mark.parametrize("method", ["AdaLora", "OFT", "LoKr"])
def test_only_a_lora_has_ranks(updated, method):
    import peft

    options = {"AdaLora": {"total_step": 10}, "OFT": {"oft_block_size": 4}, "LoKr": {"r": 64}}[method]
    config = getattr(peft, f"{method}Config")(target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", **options)
    assert list(measures(updated(f"ranks-{method}", config)[1])) == ["adapted modules", "parameters"]


def test_modules_that_were_saved_whole_have_no_rank(updated):
    _, said = updated("ranks-saved", lora(modules_to_save=["lm_head"]))
    assert measures(said)["adapted modules"] == {"attention": "2", "ffn": "2", "other": "1"}
    assert measures(said)["rank"] == {"attention": "4", "ffn": "4", "other": ""}


def test_ranks_of_experts_are_those_of_the_analysis(updated, pico):
    from taia_hub.analysis import analyze_update

    folder, said = updated("ranks-experts", pico.lora("qwen3_moe", rank_pattern={"q_proj": 2}), base="qwen3_moe")
    expected = {}
    for module in analyze_update(str(folder)).modules:
        expected.setdefault(module.role, set()).add(module.rank)
    said_ranks = measures(said)["rank"]
    assert {role: {int(rank) for rank in ranks.split(", ")} for role, ranks in said_ranks.items()} == expected
    assert expected["attention"] == {2, 4}
    assert expected["ffn"] == {4}


def test_alphas_by_pattern_are_said_so(updated):
    _, said = updated("alphas", lora(lora_alpha=6, alpha_pattern={"q_proj": 64, "up_proj": 32}))
    assert "LoRA, alpha by pattern (`q_proj` 64, `up_proj` 32, elsewhere 6)." in said


def test_what_to_know_of_the_norms_is_said_under_them(updated):
    from taia_hub.analysis.measuring import DORA_NOTE

    _, said = updated("notes-dora", lora(use_dora=True), analysed=True)
    assert DORA_NOTE in said
    config = lora(target_modules=["q_proj", "up_proj", "embed_tokens"], modules_to_save=["lm_head"])
    _, said = updated("notes-saved", config, analysed=True)
    assert "No norms for lm_head: PEFT keeps a changed copy" in said
    assert measures(said)["adapted modules"]["other"] == "2"
    assert re.fullmatch(r"[\d.e-]+ of 1 modules", measures(said)["Frobenius norm"]["other"])
    assert "of 2 modules" not in said


def test_figures_are_shown_beside_what_they_were_drawn_from(taia_card, folder):
    from taia_hub.analysis.examining import examine

    (folder / "figures").mkdir()
    for name in ("scores", "update_norms", "mine"):
        (folder / "figures" / f"{name}.png").write_bytes(b"\x89PNG of another model")

    def shown():
        return re.findall(r"\]\(figures/(\w+)\.png\)", taia_card(folder)[1])

    assert shown() == []
    results_of(folder).save(folder / "taia_results.json")
    assert shown() == ["mine", "scores"]
    examine(str(folder)).save(folder / "taia_analysis.json")
    assert shown() == ["mine", "scores", "update_norms"]
    (folder / "taia_results.json").unlink()
    assert shown() == ["mine", "update_norms"]


def test_results_that_are_no_numbers_are_refused(folder, taia_card, tmp_path):
    found = results_of(folder)
    value = found.to_json()
    value["tasks"]["svamp"]["modes"]["all"]["scores"]["acc,none"] = float("nan")
    (tmp_path / "results.json").write_text(json.dumps(value))
    with pytest.raises(ConfigError, match="is damaged"):
        taia_card(folder, "--results", tmp_path / "results.json")


@pytest.mark.parametrize("option", ["--results", "--analysis"])
@pytest.mark.parametrize("text", ['{"a": 1}\n{"a": 2}\n', '{"a": 1}', "[1]", "", '{"format": 1}'])
def test_nobody_is_told_to_delete_a_file_that_was_given(taia_card, folder, tmp_path, option, text):
    path = tmp_path / "items.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"items\.jsonl") as caught:
        taia_card(folder, option, path)
    assert "delete" not in caught.value.hint.lower()
    assert ("taia eval" if option == "--results" else "taia analyze") in caught.value.hint
    assert '{"format": 1' in caught.value.hint
    assert path.read_text() == text


EXPECTED = ModelIdentity("m", None, "org/base", BASE_SHA, ADAPTER_SHA, "")


def test_a_damaged_results_file_is_said_so(tmp_path):
    (tmp_path / "x.json").write_text('{"format": 1}')
    with pytest.raises(ConfigError, match="is damaged"):
        read_results(tmp_path / "x.json", EXPECTED)


def test_training_is_read(tmp_path):
    path = tmp_path / "taia_training.json"
    value = dataclasses.asdict(EVERYTHING.training)
    path.write_text(json.dumps({"format": 1, **value, "more": 1}))
    assert read_training(path, EXPECTED) == EVERYTHING.training
    path.write_text("{}")
    assert read_training(path, EXPECTED) == cards.Training()


@pytest.mark.parametrize(
    "value",
    [
        {"datasets": [1]},
        {"datasets": [{}]},
        {"datasets": [{"name": None, "id": "org/x"}]},
        {"datasets": [{"name": 5}]},
        {"datasets": [{"name": "x", "id": "../x"}]},
        {"datasets": [{"name": "x", "items": "many"}]},
        {"datasets": [{"name": "x", "items": -1}]},
        {"datasets": [{"name": "x", "bytes": 1.5}]},
        {"datasets": [{"name": "x", "sha256": 5}]},
        {"datasets": [{"name": "x", "sha256": "A" * 64}]},
        {"hyperparameters": 3},
        {"hyperparameters": {"a": {"b": [1]}}},
        {"hyperparameters": {"a": float("nan")}},
        {"seconds": "long"},
        {"seconds": -5},
        {"seconds": True},
        {"seconds": float("inf")},
        {"datasets": 1},
        {"co2_eq_emissions": "x"},
        {"co2_eq_emissions": True},
        {"co2_eq_emissions": -1},
        {"co2_eq_emissions": {"emissions": "much"}},
        {"adapter_sha256": 5},
    ],
)
def test_a_damaged_training_file_is_said_so(tmp_path, value):
    path = tmp_path / "taia_training.json"
    path.write_text(json.dumps(value))
    with pytest.raises(ConfigError, match="is damaged"):
        read_training(path)


def test_training_of_another_model_is_refused(tmp_path):
    path = tmp_path / "taia_training.json"
    path.write_text(json.dumps({"adapter_sha256": "1" * 64}))
    with pytest.raises(ConfigError, match="the training of another model"):
        read_training(path, EXPECTED)


# On the Hub


@pytest.fixture
def pushed(online, repo_id, tmp_path):
    """A repository of this test's own, with its files on this disk."""
    model = online.model()
    model.push_to_hub(repo_id)
    model.save_pretrained(tmp_path / "files")
    online.hub.requests.clear()
    return tmp_path / "files"


def test_the_card_and_what_is_given_are_one_commit(taia_card, online, repo_id, pushed, tmp_path):
    results_of(pushed).save(tmp_path / "results.json")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "scores.png").write_bytes(b"\x89PNG")
    words = [repo_id, "--push", "--yes", "--results", tmp_path / "results.json", "--figures", tmp_path / "figures"]
    status, out = taia_card(*words, "--license", "mit")
    assert status == 0
    assert len(online.commits()) == 1
    assert "Published http" in out
    assert {"taia_results.json", "figures/scores.png"} <= set(online.api.list_repo_files(repo_id))
    text = ModelCard.load(repo_id).content
    assert "](figures/scores.png)" in text
    assert ModelCard(text).data.license == "mit"
    status, out = taia_card(repo_id, "--check", "--verbose")
    assert status == 0, out
    assert f"ok: 'Provenance': - sha256 of `{WEIGHTS}`:" in out
    assert "is up to date" in taia_card(repo_id, "--push")[1]


def test_a_push_that_changes_nothing_but_the_weights_keeps_results_off_the_card(online, repo_id, pushed, tmp_path):
    import torch

    results_of(pushed).save(tmp_path / "results.json")
    online.api.upload_file(path_or_fileobj=tmp_path / "results.json", path_in_repo="taia_results.json", repo_id=repo_id)
    model = TAIAForCausalLM.from_pretrained(repo_id)
    model.push_to_hub(repo_id)
    assert "## Results" in ModelCard.load(repo_id).content
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name).add_(1)
    model.push_to_hub(repo_id)
    assert "## Results" not in ModelCard.load(repo_id).content


def test_registered_benchmarks_are_published_with_a_push(online, repo_id, pushed, tmp_path):
    gsm8k = task("gsm8k", "GSM8K", 1319, metric="exact_match,strict-match", shots=5, path="openai/gsm8k", name="main")
    found = dataclasses.replace(results(gsm8k), model=results_of(pushed).model)
    found.save(tmp_path / "results.json")
    online.api.upload_file(path_or_fileobj=tmp_path / "results.json", path_in_repo="taia_results.json", repo_id=repo_id)
    TAIAForCausalLM.from_pretrained(repo_id).push_to_hub(repo_id)
    with open(online.api.hf_hub_download(repo_id, ".eval_results/gsm8k.yaml")) as file:
        assert yaml.safe_load(file)[0]["dataset"]["id"] == "openai/gsm8k"


BOARD = ".eval_results/gsm8k.yaml"


@pytest.fixture
def leading(online, repo_id, pushed, tmp_path, taia_card):
    """A repository with a score on a leaderboard, and somebody else's beside it; returns its results."""
    gsm8k = task("gsm8k", "GSM8K", 1319, metric="exact_match,strict-match", shots=5, path="openai/gsm8k", name="main")
    found = dataclasses.replace(results(gsm8k), model=results_of(pushed).model)
    found.save(tmp_path / "results.json")
    other = yaml.safe_dump([{"dataset": {"id": "org/x", "task_id": "x"}, "value": 1.0}]).encode()
    online.api.upload_file(path_or_fileobj=other, path_in_repo=".eval_results/x.yaml", repo_id=repo_id)
    assert taia_card(repo_id, "--push", "--yes", "--results", tmp_path / "results.json")[0] == 0
    assert BOARD in online.api.list_repo_files(repo_id)
    assert taia_card(repo_id, "--check")[0] == 0
    return found


@pytest.mark.parametrize("own", [False, True])
def test_scores_of_old_weights_leave_the_leaderboard_with_them(online, repo_id, leading, own):
    import torch

    if own:
        online.api.upload_file(path_or_fileobj=b"# Mine", path_in_repo="README.md", repo_id=repo_id)
    model = TAIAForCausalLM.from_pretrained(repo_id)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name).add_(1)
    online.hub.requests.clear()
    model.push_to_hub(repo_id)
    assert len(online.commits()) == 1
    assert {name for name in online.api.list_repo_files(repo_id) if "eval_results" in name} == {".eval_results/x.yaml"}


def test_scores_of_replaced_results_leave_the_leaderboard(taia_card, online, repo_id, leading, tmp_path):
    later = dataclasses.replace(results(task("svamp", "SVAMP", 20)), model=leading.model)
    later.save(tmp_path / "later.json")
    found = CliRunner().invoke(app, [repo_id, "--push", "--results", str(tmp_path / "later.json")], input="y\n")
    assert f"and {BOARD}" in found.stdout
    assert {name for name in online.api.list_repo_files(repo_id) if "eval_results" in name} == {".eval_results/x.yaml"}
    assert "is up to date" in taia_card(repo_id, "--push")[1]


def test_a_leaderboard_file_that_was_changed_is_a_lie(taia_card, online, repo_id, leading):
    with open(online.api.hf_hub_download(repo_id, BOARD), encoding="utf-8") as file:
        forged = re.sub(r"value: .*", "value: 99.9", file.read()).encode()
    online.api.upload_file(path_or_fileobj=forged, path_in_repo=BOARD, repo_id=repo_id)
    status, out = taia_card(repo_id, "--check")
    assert status == 1
    assert f"files: wrong: {BOARD} holds the scores of taia_results.json" in out


def test_scores_in_a_folder_go_with_its_results(taia_card, folder):
    gsm8k = task("gsm8k", "GSM8K", 1319, metric="exact_match,strict-match", shots=5, path="openai/gsm8k", name="main")
    dataclasses.replace(results(gsm8k), model=results_of(folder).model).save(folder / "taia_results.json")
    for remake in (
        lambda: taia_card(folder, "--write", "--yes"),
        lambda: TAIAForCausalLM.from_pretrained(folder).save_pretrained(folder),
    ):
        taia_card(folder, "--write", "--yes")
        assert (folder / BOARD).is_file()
        (folder / "taia_results.json").rename(folder / "kept.json")
        remake()
        assert not (folder / BOARD).exists()
        (folder / "kept.json").rename(folder / "taia_results.json")


def test_a_list_of_licences_is_inherited_as_a_list(online, repo_id):
    from taia_hub.configuration_taia import TAIAConfig
    from taia_hub.repository.reading import base_license

    online.api.create_repo(repo_id)
    card_text = b"---\nlicense:\n- apache-2.0\n- mit\n---\n# Base\n"
    online.api.upload_file(path_or_fileobj=card_text, path_in_repo="README.md", repo_id=repo_id)
    fields = base_license(TAIAConfig(base_model_name_or_path=repo_id), None)
    said = cards.render_card(dataclasses.replace(NOTHING, license_fields=fields))
    assert ModelCard(said).data.license == ["apache-2.0", "mit"]


def test_edits_on_the_hub_survive_a_push_of_the_model(online, repo_id, pushed):
    text = ModelCard.load(repo_id).content
    text = text.replace("## Modes\n", "## Mine\n\nText.\n\n## Modes\n").replace("license: other", "license: mit")
    text = text.replace("tags:\n", "tags:\n- mine\n")
    online.api.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=repo_id)
    TAIAForCausalLM.from_pretrained(repo_id).push_to_hub(repo_id, tags=["new"])
    card = ModelCard.load(repo_id)
    assert "## Mine\n\nText.\n" in card.content
    assert card.data.license == "mit"
    assert card.data.license_name is None  # that of the base's licence
    assert {"new", "mine"} <= set(card.data.tags)


def test_a_card_made_for_another_commit_is_not_published(online, repo_id, pushed):
    made = card_updating.make_card(repo_id, card_updating.CardRequest(license="mit"))
    online.api.upload_file(path_or_fileobj=b"x", path_in_repo="NEWS", repo_id=repo_id)
    with pytest.raises(RepositoryError, match="another commit while this one was made"):
        card_updating.publish_card(made, hub.Commit())
    assert ModelCard.load(repo_id).data.license == "other"


def test_ranks_by_role_come_from_the_file_where_a_pattern_makes_them_differ(taia_card, online, repo_id, tmp_path):
    online.push_adapter(f"{repo_id}-adapter", rank_pattern={r".*\.mlp\..*": 2})
    model = TAIAForCausalLM.from_adapter(online.base, f"{repo_id}-adapter")
    model.push_to_hub(repo_id)
    text = ModelCard.load(repo_id).content
    assert measures(text)["rank"] == {"attention": "4", "ffn": "2"}
    assert "--enable-lora --max-lora-rank 8 " in text
    assert taia_card(repo_id)[1] == text
    assert taia_card(repo_id, "--check")[0] == 0


@pytest.mark.parametrize("forged", ["README.md", "both"])
def test_a_forged_hash_of_a_pointers_weights_is_found(taia_card, online, repo_id, forged):
    from taia_hub.repository.creating import create_repository

    create_repository(online.base, online.adapter, push=repo_id, link=True)
    sha = re.search(r"sha256 of.*`([0-9a-f]{64})`", ModelCard.load(repo_id).content)[1]
    for name in ("README.md", "taia_manifest.json") if forged == "both" else (forged,):
        with open(online.api.hf_hub_download(repo_id, name), encoding="utf-8") as file:
            said = file.read().replace(sha, "1" * 64).encode()
        online.api.upload_file(path_or_fileobj=said, path_in_repo=name, repo_id=repo_id)
    status, out = taia_card(repo_id, "--check")
    assert status == 1
    assert "wrong: 'Provenance'" in out
    assert ("wrong: taia_manifest.json" in out) == (forged == "both")


def test_a_pointers_card_holds(taia_card, online, repo_id):
    from taia_hub.repository.creating import create_repository

    create_repository(online.base, online.adapter, push=repo_id, link=True)
    status, out = taia_card(repo_id, "--check", "-v")
    assert status == 0, out
    assert "ok: 'Without taia-hub': model = PeftModel.from_pretrained(base, \"org/adapter\"" in out


def test_side_files_of_a_folder_come_before_others(tmp_path):
    (tmp_path / "a" / "figures").mkdir(parents=True)
    (tmp_path / "a" / "figures" / "x.png").write_bytes(b"a")
    (tmp_path / "b").mkdir()
    for name in ("a", "b"):
        (tmp_path / name / "taia_results.json").write_text("{}")
    (tmp_path / "b" / "taia_training.json").write_text("{}")
    found = SideFiles.of(tmp_path / "a").over(SideFiles.of(tmp_path / "b"))
    assert found.results == tmp_path / "a" / "taia_results.json"
    assert found.training == tmp_path / "b" / "taia_training.json"
    assert list(found.figures) == ["figures/x.png"]
