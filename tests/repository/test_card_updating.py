"""Nothing that a person wrote on a card is lost, whatever their editor or the disk did."""

import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import hf_hub_download

from taia_hub import TAIAForCausalLM, cards, cli, hub
from taia_hub.analysis import draw_tuning_front
from taia_hub.cards._yaml import rewrite
from taia_hub.common.atomic import write_atomically
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.evaluation.environment import identify_files
from taia_hub.repository.card_request import CardRequest
from taia_hub.repository.card_updating import check_repository_card, link_space, make_card, write_card
from taia_hub.results import ModelIdentity, Tuned
from taia_hub.switch.settings import parse_setting
from tests.card_samples import EVERYTHING, RESULTS, render
from tests.tuning_samples import tuned

MARK = "<!-- taia:yours -->"


@pytest.fixture
def folder(online, tmp_path):
    """A TAIA repository in a folder."""
    online.model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def card_of(text):
    return text.split("---\n", 2)


def test_a_damaged_card_on_the_hub_stays(online, repo_id, caplog):
    model = online.model()
    model.push_to_hub(repo_id)
    text = Path(hf_hub_download(repo_id, "README.md")).read_text()
    damaged = text.replace("## Modes\n", "## Mine\n\nPRECIOUS\n\n## Modes\n") + f"\n{MARK}\nMore of mine\n"
    online.api.upload_file(path_or_fileobj=damaged.encode(), path_in_repo="README.md", repo_id=repo_id)
    model.inference_modules = "all"
    model.push_to_hub(repo_id)
    assert Path(hf_hub_download(repo_id, "README.md")).read_text() == damaged
    assert "The model card stays as it is" in caplog.text


def test_a_card_that_is_no_utf8_costs_nobody_a_model(folder, caplog, capsys):
    path = folder / "README.md"
    path.write_bytes(path.read_bytes() + "\n## Müller\n".encode("latin-1"))
    before = path.read_bytes()
    TAIAForCausalLM.from_pretrained(folder).save_pretrained(folder)
    assert path.read_bytes() == before
    assert "is no UTF-8" in caplog.text
    for words in (["--write", "--yes"], ["--check"]):
        with pytest.raises(SystemExit):
            cli.main(["card", str(folder), *words])
        assert "is no UTF-8" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_card_that_is_a_folder_is_said_so(folder):
    (folder / "README.md").unlink()
    (folder / "README.md").mkdir()
    with pytest.raises(ConfigError, match="is a folder, where the card belongs"):
        make_card(str(folder), CardRequest())


def test_the_mark_of_an_encoding_is_no_edit():
    text = render("everything")
    assert cards.merge_cards("\ufeff" + text, text) == cards.Merged(text, ())


def test_comments_of_the_metadata_stay():
    text = render("everything")
    commented = text.replace("---\n", "---\n# mine: do not touch\n", 1).replace("\ntags:\n", "\ntags:  # these\n", 1)
    assert cards.merge_cards(commented, text).text == commented
    changed = cards.merge_cards(commented.replace("\ntags:", "\nmood: good\ntags:", 1), text).text
    assert card_of(changed)[1].startswith("# mine: do not touch\nbase_model:")
    assert yaml.safe_load(card_of(changed)[1])["mood"] == "good"


def test_comments_stay_beside_values_that_change():
    text = render("everything")
    commented = (
        text.replace("library_name: taia-hub", "# above\nlibrary_name: taia-hub  # beside")
        .replace("\ntags:\n", "\ntags:  # of the tags\n  # among them\n")
        .replace("---\n", "---\nmood: |\n  # no comment\n  'nor #this'\n", 1)
    )
    commented = commented.replace("\nwidget:\n", "\nwidget:  # gone\n")
    commented = commented.replace("\n---\n", "\n# at the end\n---\n", 1)
    new = cards.render_card(dataclasses.replace(EVERYTHING, tags=("new",), widget=()))
    merged = cards.merge_cards(commented, new).text
    block = card_of(merged)[1]
    assert "# above\nlibrary_name: taia-hub  # beside\n" in block
    assert yaml.safe_load(block)["mood"] == "# no comment\n'nor #this'\n"
    for comment in ("# of the tags", "# among them", "# gone", "# at the end", "# no comment", "#this"):
        assert block.count(comment) == 1, comment
    assert cards.merge_cards(merged, new).text == merged


@pytest.mark.parametrize(
    ("block", "comments"),
    [
        ("a: 'x #1'  # y # z", "# y # z\n"),
        ("a: |  # head\n  # text\n  more #text", "# head\n"),
        ("a: x#1", ""),
        ("{a: 1}  # flow", None),
    ],
)
def test_only_comments_are_comments(block, comments):
    expected = "a: 2\n# flow" if comments is None else f"{comments}a: 2"
    assert rewrite({"a": 2}, block) == expected


def test_comments_of_a_key_that_is_gone_stay():
    text = render("everything").replace("\nco2_eq_emissions:", "\n# weighed\nco2_eq_emissions:  # in grams\n ", 1)
    quiet = dataclasses.replace(EVERYTHING, training=None)
    assert "co2_eq_emissions" not in card_of(cards.render_card(quiet))[1]
    block = card_of(cards.merge_cards(render("everything"), cards.render_card(quiet)).text)[1]
    assert "co2_eq_emissions" not in block
    block = card_of(cards.merge_cards(text, cards.render_card(quiet)).text)[1]
    assert "\n# weighed\n# in grams\n" in block


def test_comments_of_the_folder_reach_the_hub():
    text = render("everything")
    mine = text.replace("library_name: taia-hub", "library_name: taia-hub  # mine")
    assert cards.merge_cards(text, cards.merge_cards(mine, text).text).text == mine


def test_an_alias_does_not_lose_its_anchor():
    text = render("everything")
    edited = text.replace("\nlanguage:\n", "\nlanguage: &them\n", 1)
    edited = edited.replace("\ntags:\n", "\nmine: *them # alias\ntags:\n", 1)
    new = cards.render_card(dataclasses.replace(EVERYTHING, language=("de",)))
    block = card_of(cards.merge_cards(edited, new).text)[1]
    assert yaml.safe_load(block)["mine"] == ["en", "zh"]
    assert yaml.safe_load(block)["language"] == ["de"]
    assert "# alias" in block


@pytest.mark.parametrize("key", ["my.key", "my key", "mine"])
def test_any_key_of_a_person_stays(key):
    text = render("everything")
    edited = text.replace("---\n", f"---\n{key}: 3\n", 1)
    merged = cards.merge_cards(edited, cards.render_card(EVERYTHING, "short"))
    assert yaml.safe_load(card_of(merged.text)[1])[key] == 3
    assert f"metadata '{key}' stays as you set it" in merged.kept


def test_norwegian_stays_norwegian():
    edited = render("nothing").replace("---\n", "---\nlanguage: no\n", 1)
    merged = cards.merge_cards(edited, render("everything")).text
    assert yaml.load(card_of(merged)[1], Loader=yaml.BaseLoader)["language"] == "no"
    assert "language: false" not in merged


def test_a_key_that_stands_twice_is_refused():
    edited = render("everything").replace("---\n", "---\nmood: good\nmood: bad\n", 1)
    with pytest.raises(ConfigError, match="the key 'mood' stands there twice"):
        cards.merge_cards(edited, render("everything"))


def test_a_region_between_like_lines_stays_where_it_is():
    text = render("everything")
    lines = text.split("\n")
    closing = next(number for number, line in enumerate(lines) if line == "```")
    edited = "\n".join(
        [*lines[: closing + 1], "", MARK, "After the first.", "<!-- /taia:yours -->", *lines[closing + 1 :]]
    )
    assert cards.merge_cards(edited, text).text == edited
    renewed = cards.merge_cards(edited, cards.render_card(dataclasses.replace(EVERYTHING, repo_id="org/other"))).text
    above = renewed[: renewed.index("After the first.")].split("\n")
    assert "org/other" in renewed
    assert above.count("```") == 1


def test_a_region_without_blank_lines_around_it_stays_as_it_is():
    text = render("everything")
    edited = text.replace("\n```\n", f"\n```\n{MARK}\nMine.\n<!-- /taia:yours -->\n", 1)
    edited = edited.replace("\n<!-- /taia:yours -->\n\n", "\n<!-- /taia:yours -->\n\n\n", 1)
    assert cards.merge_cards(edited, text).text == edited


def test_both_copies_of_a_section_stay():
    text = render("everything")
    start = text.index("## Limits\n")
    end = text.index("\n## ", start + 3)
    section = text[start:end]
    edited = text.replace(section, section + "\n\nFIRST EDIT\n") + "\n" + section + "\n\nSECOND EDIT\n"
    merged = cards.merge_cards(edited, text)
    assert "FIRST EDIT" in merged.text
    assert "SECOND EDIT" in merged.text
    assert cards.merge_cards(merged.text, text).text == merged.text


def test_the_order_of_a_person_stays():
    text = render("everything")
    start = text.index("## Limits\n")
    end = text.index("\n## ", start + 3) + 1
    section = text[start:end]
    moved = text.replace(section, "")
    at = moved.index("## Modes\n")
    moved = moved[:at] + section + moved[at:]
    assert cards.merge_cards(moved, text).text == moved


def test_a_full_disk_keeps_the_old_results(folder, tmp_path, monkeypatch):
    new = tmp_path / "new.json"
    made = make_card(str(folder), CardRequest())
    (folder / "taia_results.json").write_text('{"old": true}')
    new.write_text('{"new": true}')
    made = type(made)(made.source, made.text, made.before, (), {}, {"taia_results.json": new})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RepositoryError, match="no space is left"):
        write_card(made)
    assert (folder / "taia_results.json").read_text() == '{"old": true}'


def test_the_card_is_written_after_what_it_speaks_of(folder, tmp_path, monkeypatch):
    (tmp_path / "new.json").write_text("{}")
    made = make_card(str(folder), CardRequest())
    files, texts = {"taia_results.json": tmp_path / "new.json"}, {".eval_results/gsm8k.yaml": "new"}
    made = dataclasses.replace(made, files=files, texts=texts)
    written = []
    monkeypatch.setattr("taia_hub.repository.card_updating.write_together", written.extend)
    write_card(made)
    assert [path.name for path in written] == ["taia_results.json", "gsm8k.yaml", "README.md"]


def test_a_setting_is_published_with_the_card_that_says_so(folder):
    setting = parse_setting({"attention": 1, "ffn@0": 0.5})
    made = make_card(str(folder), CardRequest(), setting=setting)
    assert TAIAForCausalLM.from_pretrained(folder).inference_modules == "attention"  # nothing is written yet
    assert {hub.CONFIG, hub.MANIFEST} <= {*made.others}
    write_card(made)
    assert TAIAForCausalLM.from_pretrained(folder).inference_modules == setting.value
    assert make_card(str(folder), CardRequest()).others == ()


def test_a_tuning_goes_on_the_card_with_its_front_and_setting(folder, tmp_path):
    found = tuned(model=identify_files(str(folder)))
    found.save(tmp_path / "found.json")
    drawn = draw_tuning_front(found, tmp_path / "figures")
    request = CardRequest(tuning=tmp_path / "found.json", figures=tmp_path / "figures")
    write_card(make_card(str(folder), request, setting=found.recommended.parsed))
    assert Tuned.load(folder) == found
    assert (folder / "figures" / "tuning_front.svg").read_bytes() == drawn.svg.read_bytes()
    assert f"![{drawn.alt}](figures/tuning_front.png)" in (folder / "README.md").read_text()
    assert "The model loads with `tuned 2`." in (folder / "README.md").read_text()
    assert TAIAForCausalLM.from_pretrained(folder).inference_modules == found.recommended.parsed.value
    findings = check_repository_card(str(folder), CardRequest())
    assert not [one for one in findings if not one.ok or one.warning]
    assert "taia_tuning.json is of this model" in {one.what for one in findings}
    dataclasses.replace(found, model=tuned().model).save(folder)  # of another model: it, and its figures, are left out
    assert "taia_tuning.json is of this model" in {
        one.what for one in check_repository_card(str(folder), CardRequest()) if not one.ok
    }
    with pytest.raises(ConfigError, match="holds the tuning of another model"):
        make_card(str(folder), CardRequest())
    TAIAForCausalLM.from_pretrained(folder).save_pretrained(folder)
    assert "tuning_front" not in (folder / "README.md").read_text()


def test_a_plain_adapter_publishes_no_setting(online):
    with pytest.raises(RepositoryError, match="is no TAIA repository"):
        make_card(online.adapter, CardRequest(), setting=parse_setting("all"))


def test_a_side_file_that_is_no_utf8_is_replaced(folder):
    made = dataclasses.replace(make_card(str(folder), CardRequest()), texts={".eval_results/gsm8k.yaml": "new"})
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results" / "gsm8k.yaml").write_bytes(b"caf\xe9")
    assert made.others == (".eval_results/gsm8k.yaml",)
    write_card(made)
    assert made.others == ()


def test_a_card_that_is_no_utf8_is_not_linked_to_a_space(folder, monkeypatch):
    (folder / "README.md").write_bytes(b"caf\xe9")
    monkeypatch.setattr("taia_hub.hub.fetch", lambda name, *_, **__: hub.Source(name, folder, "a" * 40))
    with pytest.raises(ConfigError, match="is no UTF-8"):
        link_space("org/model", "org/space", None)


def test_a_difference_is_a_line_each_also_where_the_last_newline_is_missing(folder):
    path = folder / "README.md"
    path.write_text(path.read_text().rstrip("\n"))
    assert make_card(str(folder), CardRequest()).difference().endswith("\n }\n-```\n+```\n")


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    write_atomically(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == "new"


def test_json_is_json(folder, capsys, monkeypatch):
    monkeypatch.setattr("typer.confirm", lambda *_, **__: True)
    cli_main = cli.main

    def run(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli_main(["card", str(folder), "--write", "--json", *words])
        assert not ended.value.code
        return json.loads(capsys.readouterr().out)

    assert run("--tag", "mine")["where"].endswith("README.md")
    assert run()["where"] is None


def test_the_question_does_not_stand_in_the_json(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(["card", str(folder), "--write", "--json", "--tag", "mine"])
    assert not ended.value.code
    out, err = capsys.readouterr()
    assert list(json.loads(out)) == ["where"]
    assert "Write this?" in err
    assert "+- mine" in err


def test_a_data_set_that_is_no_id_is_refused(folder, capsys):
    with pytest.raises(SystemExit):
        cli.main(["card", str(folder), "--dataset", "my data"])
    assert "'my data' is no Hub id" in capsys.readouterr().err


def test_prompts_keep_their_lines():
    text = cards.render_card(dataclasses.replace(EVERYTHING, widget=("two\nlines", "one")))
    assert yaml.safe_load(card_of(text)[1])["widget"] == [{"text": "two\nlines"}, {"text": "one"}]


@pytest.mark.parametrize(
    ("words", "markdown"),
    [
        ("see https://evil.example/a_b*c.", "see `https://evil.example/a_b*c`."),
        ("(HTTP://evil.example)", "(`HTTP://evil.example`)"),
        ("ftp://evil.example|www.evil.example", "`ftp://evil.example`\\|`www.evil.example`"),
        ("https://evil.example/?a=1&b=<2>", "`https://evil.example/?a=1`&amp;b=&lt;2&gt;"),
        ("`www.evil.example`", "\\``www.evil.example`\\`"),
        ("mailto:me.too+x@evil.example!", "mailto:`me.too+x@evil.example`!"),
        ("ffn@0-7 and @you, a://b", "ffn@0-7 and @you, a://b"),
    ],
)
def test_no_address_of_a_text_becomes_a_link(words, markdown):
    assert cards.escaping.text(words) == markdown
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark")
    inline = parser.parseInline(markdown)[0].children
    assert "".join(token.content for token in inline) == words


def test_a_model_whose_name_is_an_address_is_known_by_its_card():
    assert (
        cards.title_of(cards.render_card(dataclasses.replace(EVERYTHING, repo_id="www.org/model"))) == "www.org/model"
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('{% extends "model_card.md.j2" %}', "extends itself"),
        ('{% extends "taia/model_card.md.j2" %}{% block titel %}x{% endblock %}', "Did you mean 'title'"),
        (b"\xff\xfe", "is no UTF-8"),
    ],
)
def test_a_template_that_cannot_work_is_said_so(tmp_path, source, message):
    (tmp_path / "model_card.md.j2").write_bytes(source if isinstance(source, bytes) else source.encode())
    with pytest.raises(ConfigError, match=message):
        cards.render_card(EVERYTHING, template_dir=tmp_path)


def test_a_link_to_a_space_keeps_the_comments():
    text = render("everything").replace("---\n", "---\n# mine: do not touch\n", 1)
    linked = cards.with_space(text, "own/space")
    assert "# mine: do not touch\n" in card_of(linked)[1]
    assert yaml.safe_load(card_of(linked)[1])["taia_space"] == "own/space"


# The card of a plain adapter

THEIRS = "---\nlicense: mit\ntags:\n- peft\n---\n# My adapter\n\nMine, and `mine`.\n\n## How I made it\n\nBy hand.\n"


@pytest.fixture
def lora(online, repo_id):
    """Somebody's adapter on the Hub, with a card of its own."""
    online.push_adapter(repo_id)
    online.api.upload_file(path_or_fileobj=THEIRS.encode(), path_in_repo="README.md", repo_id=repo_id)
    online.hub.requests.clear()
    return repo_id


def taia(*words):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    return ended.value.code or 0


def results_of(name, base, base_sha):
    sha = hub.sha256(Path(hf_hub_download(name, "adapter_model.safetensors")))
    model = ModelIdentity(name, None, base, base_sha, sha, "float32")
    return dataclasses.replace(RESULTS, model=model)


def test_a_plain_adapters_card_gets_a_section_and_stays(online, lora, capsys, empty_cache):
    assert taia("card", lora) == 0
    said = capsys.readouterr().out
    assert said.startswith(THEIRS)
    section = said.removeprefix(THEIRS)
    assert section.startswith("\n## Modes (TAIA)\n")
    assert "| `attention` | attention | TAIA |" in section
    assert "| adapted modules | 8 | 6 |" in section
    assert not online.commits()
    (code,) = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    names = {}
    exec(compile(code, "section", "exec"), names)
    assert names["model"].inference_modules == "all"
    assert names["tokenizer"]("the")["input_ids"]


def test_a_pull_request_brings_card_results_and_figures_in_one_commit(online, lora, tmp_path, capsys):
    results_of(lora, online.base, online.base_sha).save(tmp_path / "results.json")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "scores.png").write_bytes(b"\x89PNG")
    before = online.api.model_info(lora).sha
    words = ["--results", tmp_path / "results.json", "--figures", tmp_path / "figures"]
    online.hub.requests.clear()
    assert taia("card", lora, "--push", "--pr", "--yes", *words) == 0
    assert f"Proposed {online.hub.endpoint}/{lora}/discussions/1 (commit http" in capsys.readouterr().out
    assert len(online.commits()) == 1
    assert online.api.model_info(lora).sha == before  # main is as it was
    files = online.api.list_repo_files(lora, revision="refs/pr/1")
    assert {"taia_results.json", "figures/scores.png"} <= set(files)
    text = Path(hf_hub_download(lora, "README.md", revision="refs/pr/1")).read_text()
    assert text.startswith(THEIRS)
    assert "### Results" in text
    assert "#### By part" in text
    assert "](figures/scores.png)" in text
    assert not re.search(r"^## (?!Modes|How I)", text, re.MULTILINE)
    # as one who may write there: the same again changes nothing, and other results replace the section
    assert taia("card", lora, "--push", "--yes", *words) == 0
    assert Path(hf_hub_download(lora, "README.md")).read_text() == text
    assert f"Published {online.hub.endpoint}/{lora} (commit http" in capsys.readouterr().out
    assert taia("card", lora, "--push", "--yes") == 0
    assert "up to date" in capsys.readouterr().out


def test_what_its_author_does_to_the_section_stays(lora, online, capsys):
    made = make_card(lora, CardRequest())
    later = made.text + "\n## More of mine\n\nText.\n"
    new = cards.render_card(dataclasses.replace(EVERYTHING, repo_id=lora), cards.ADAPTER)
    merged = cards.with_modes(later, new).text
    assert merged.startswith(THEIRS)
    assert merged.endswith("\n## More of mine\n\nText.\n")
    assert "### Results" in merged
    assert cards.with_modes(merged, new).text == merged
    edited = later.replace("| mode | updates", "| my mode | updates")
    kept = cards.with_modes(edited, new)
    assert kept.text == edited
    assert kept.kept == ("section 'Modes (TAIA)' stays as you changed it; delete it to get the generated one",)
    last = "| `none` | none | the base model |"
    yours = later.replace(last, f"{last}\n\n{MARK}\nMy.\n<!-- /taia:yours -->")
    assert "My." in cards.with_modes(yours, new).text
    windows = cards.with_modes(later.replace("\n", "\r\n"), new).text
    assert windows.replace("\r\n", "\n") == merged
    assert "\n" not in windows.replace("\r\n", "")
    bare = re.sub(r"<!-- taia:modes-taia .*-->\n", "", later)
    assert cards.with_modes(bare, new).text == bare


def test_metadata_of_somebodys_adapter_is_not_touched(lora, capsys):
    assert taia("card", lora, "--license", "apache-2.0") == 1
    assert "keeps its metadata (license)" in capsys.readouterr().err


def test_an_adapter_without_a_card_gets_one(online, tmp_path, capsys):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(hf_hub_download(online.adapter, name), tmp_path)
    assert taia("card", tmp_path, "--write", "--yes", "--repo-id", "org/lora", "--tag", "mine") == 0
    text = (tmp_path / "README.md").read_text()
    metadata = yaml.safe_load(card_of(text)[1])
    assert (metadata["library_name"], metadata["base_model"]) == ("peft", online.base)
    assert "mine" in metadata["tags"]
    assert "# org/lora\n" in text
    assert 'TAIAForCausalLM.from_pretrained("org/lora")' in text
    assert taia("card", tmp_path, "--write") == 0
    assert "up to date" in capsys.readouterr().out


def test_who_may_not_write_is_told_of_pull_requests(lora, online, capsys):
    online.hub.fail = lambda method, path: 403 if path.endswith("/commit/main") else None
    try:
        assert taia("card", lora, "--push", "--yes") == 1
    finally:
        online.hub.fail = None
    assert f"`taia card {lora} --push --pr`" in capsys.readouterr().err
    assert taia("card", lora, "--pr") == 1
    assert "--pr says how --push publishes" in capsys.readouterr().err
