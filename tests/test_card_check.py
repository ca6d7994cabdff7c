"""Checking a card, and `taia card`: printing, writing, publishing, and files of another model."""

import dataclasses
import json
import re

import pytest
import yaml
from card_samples import ADAPTER_SHA, BASE_SHA, EVERYTHING, NOTHING, RESULTS, SHA, render, results, task
from huggingface_hub import ModelCard
from typer import Typer
from typer.testing import CliRunner

from taia_hub import TAIAForCausalLM, card_updating, cards, hub
from taia_hub.card_files import SideFiles, read_results, read_training
from taia_hub.cli.cards import card
from taia_hub.errors import ConfigError, RepositoryError, TAIAError
from taia_hub.results import ModelIdentity

FILES = frozenset({"config.json", "taia_results.json", "figures/scores.png", "figures/update_norms.png"})
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
    assert not [finding for finding in findings if not finding.ok]
    checked = " ".join(finding.what for finding in findings)
    for what in (
        "metadata base_model",
        "model-index acc (TAIA, attention",
        "Average, TAIA",
        "sha256",
        "Python compiles",
    ):
        assert what in checked, what
    assert all(1 <= finding.line <= card_text.count("\n") for finding in findings)


def test_a_card_that_knows_nothing_tells_the_truth():
    facts = cards.CardFacts(NOTHING, None, frozenset({"config.json"}))
    assert wrong(render("nothing"), facts) == []


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("**0.582**", "**0.682**", "MATH, TAIA `attention`"),
        ("± 0.047", "± 0.001", "± standard error"),
        ("| SVAMP | 0 | 100 |", "| SVAMP | 0 | 999 |", "SVAMP, items"),
        ("| SVAMP | 0 | 100 |", "| GSM8K | 0 | 100 |", "row GSM8K"),
        ("| SVAMP | 0 | 100 |", "| SVAMP | 5 | 100 |", "row SVAMP"),
        ("TAIA `attention` | TAIF", "TAIA `other` | TAIF", "TAIA `other`"),
        ("      value: 0.54\n", "      value: 0.99\n", "model-index"),
        ("        task: svamp\n", "        task: gsm8k\n", "model-index"),
        (f"| base model revision | `{BASE_SHA}`", f"| base model revision | `{SHA}`", "base model revision"),
        (f'revision="{BASE_SHA}"', f'revision="{"1" * 40}"', "revision"),
        (f"`{ADAPTER_SHA}`", f"`{'1' * 64}`", f"sha256 of {WEIGHTS}"),
        ("`" + "e" * 64 + "`", "`" + "1" * 64 + "`", "sha256"),
        ("figures/scores.png", "figures/gone.png", "link to figures/gone.png"),
        ("huggingface.co/org/base)", "huggingface.co/org/other)", "link to org/other"),
        ("base_model: org/base\n", "base_model: org/other\n", "metadata base_model"),
        ("base_model_relation: adapter\n", "base_model_relation: merge\n", "metadata base_model_relation"),
        ("library_name: peft\n", "", "metadata library_name"),
        ("- taia\n", "", "metadata tags"),
        ("license: other\n", "", "metadata license"),
        ("with model.using(", "with model.using", "Python compiles"),
        ('CausalLM.from_pretrained("org/model-taia")', 'CausalLM.from_pretrained("org/x")', "loads org/x"),
        ('model="org/model-taia"', 'model="org/x"', "loads org/x"),
        ("by default `attention`", "by default `all`", "published setting"),
        ("| attention | 8 |", "| attention | 9 |", "attention, adapted modules"),
        ("| 1,234,567 | 16 |", "| 1,234,567 | 64 |", "attention, rank"),
    ],
)  # fmt: skip
def test_a_lie_is_found_on_its_line(text, old, new, what):
    assert old in text
    if what == "± standard error":
        lied = text.replace(old, new, 1)
        assert any("standard error" in what and new in (finding.found or "") for finding in wrong(lied))
        return
    lied = text.replace(old, new, 1)
    found = wrong(lied)
    hits = [finding for finding in found if what in finding.what]
    assert hits, found
    lines = lied.split("\n")
    changed = next(index for index, line in enumerate(text.split("\n")) if old.split("\n")[0] in line)
    if new and what != "TAIA `other`":
        near = 6 if what == "model-index" else 1  # the line of the value, a few above its arguments
        assert any(abs((hit.line or 0) - 1 - changed) <= near for hit in hits), (hits, lines[changed])


def test_a_wrong_mode_or_score_is_not_recommended(text):
    section = text.split("## Which mode to use\n")[1].split("\n## ")[0]
    assert wrong(text.replace(section, section.replace("`attention`", "`all`", 1)))[0].what == "recommended mode"
    score = re.search(r"\(([\d.]+)\)", section)[1]
    assert wrong(text.replace(section, section.replace(score, "0.999")))[0].what == "its score"


def test_a_hedge_that_was_removed_is_missed():
    few = dataclasses.replace(EVERYTHING, results=results(task("svamp", "SVAMP", 10)))
    hedged = cards.render_card(few)
    facts = dataclasses.replace(FACTS, data=few)
    assert wrong(hedged, facts) == []
    section = hedged.split("## Which mode to use\n")[1].split("\n## ")[0]
    said = "\n".join(section.split("\n")[:2]) + "\n`attention` has the best score on SVAMP.\n"
    assert [finding.what for finding in wrong(hedged.replace(section, said), facts)] == ["its hedge"]


def test_a_row_that_was_left_out_is_missed(text):
    lines = [line for line in text.split("\n") if not line.startswith("| SVAMP |")]
    assert [finding.what for finding in wrong("\n".join(lines))] == ["row SVAMP"]


def test_a_table_without_results_is_a_lie(text):
    facts = dataclasses.replace(FACTS, data=dataclasses.replace(EVERYTHING, results=None))
    assert {"a results file of this model", "a task and mode of the results file"} <= {
        finding.expected for finding in wrong(text, facts)
    }


def test_other_results_make_every_number_a_lie(text):
    other = results(*(task(f"{key}", one.title, 77) for key, one in RESULTS.tasks.items()), groups=RESULTS.groups)
    assert len(wrong(text, dataclasses.replace(FACTS, data=dataclasses.replace(EVERYTHING, results=other)))) > 20


def test_a_persons_own_text_is_not_checked_for_numbers(text):
    own = f"## Mine\n\n| part | adapted modules |\n| --- | --- |\n| attention | 99 |\n\n`{'7' * 64}`\n\n"
    assert wrong(text.replace("## Modes\n", f"{own}## Modes\n")) == []
    yours = f"\n<!-- taia:yours -->\n{'7' * 64}\n<!-- /taia:yours -->\n"
    assert wrong(text.replace("## Modes\n", f"## Modes\n{yours}")) == []


def test_a_persons_links_and_python_are_checked(text):
    links = "[there](README2.md) [here](#modes) [web](https://example.org) `[x](code.md)`"
    own = f"## Mine\n\n{links}\n\n```python\n1 +\n```\n\n"
    found = wrong(text.replace("## Modes\n", f"{own}## Modes\n"))
    assert [finding.what for finding in found] == ["link to README2.md", "Python compiles"]


def test_a_section_that_somebody_changed_is_still_checked(text):
    changed = text.replace("Best in bold", "The best one in bold").replace("**0.582**", "**0.682**", 1)
    assert [finding.found[:9] for finding in wrong(changed)] == ["**0.682**"]


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
    assert str(cards.Finding(3, "x", False, "1", "2")) == "line 3: wrong: x: expected 1, found 2"
    assert str(cards.Finding(None, "x", False, "1")) == "files: wrong: x: expected 1, found nothing"


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
    TAIAForCausalLM.from_pretrained(online.taia).save_pretrained(tmp_path / "model-taia")
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
    assert re.search(r"\d+ facts checked, 0 wrong\.", out)
    assert "taia_results.json is of this model" in out
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
    assert "found **0.982** ± 0.047" in out
    assert "1 wrong." in out
    status, out = taia_card(folder, "--check", "--json")
    assert status == 1
    assert [finding["what"] for finding in json.loads(out) if not finding["ok"]] == ["MATH, TAIA `attention`"]


def test_weights_that_changed_make_the_card_a_lie(taia_card, folder):
    taia_card(folder, "--write", "--yes")
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    status, out = taia_card(folder, "--check")
    assert status == 1
    assert f"taia_manifest.json: {WEIGHTS}" in out
    assert f"wrong: sha256 of {WEIGHTS}" in out


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
    assert "| part | adapted modules | parameters | rank | effective rank | Frobenius norm |" in text
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
        {"hyperparameters": 3},
        {"seconds": "long"},
        {"datasets": 1},
        {"co2_eq_emissions": "x"},
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
    model = TAIAForCausalLM.from_pretrained(online.taia)
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
    status, out = taia_card(repo_id, "--check")
    assert status == 0, out
    assert f"ok: sha256 of {WEIGHTS}" in out
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
        card_updating.publish_card(made, None, None)
    assert ModelCard.load(repo_id).data.license == "other"


def test_ranks_by_role_come_from_the_file_where_a_pattern_makes_them_differ(taia_card, online, repo_id, tmp_path):
    online.push_adapter(f"{repo_id}-adapter", rank_pattern={r".*\.mlp\..*": 2})
    model = TAIAForCausalLM.from_adapter(online.base, f"{repo_id}-adapter")
    model.push_to_hub(repo_id)
    text = ModelCard.load(repo_id).content
    ranks = dict(re.findall(r"^\| (attention|ffn) \| \d+ \| [\d,]+ \| (\d+) \|", text, re.MULTILINE))
    assert ranks == {"attention": "4", "ffn": "2"}
    assert "vllm" not in text
    assert taia_card(repo_id)[1] == text
    assert taia_card(repo_id, "--check")[0] == 0


def test_a_pointers_card_holds(taia_card, online, repo_id):
    from taia_hub.creating import create_repository

    create_repository(online.base, online.adapter, push=repo_id, link=True)
    status, out = taia_card(repo_id, "--check")
    assert status == 0, out
    assert "ok: loads org/adapter" in out


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
