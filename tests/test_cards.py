import dataclasses
import socket
from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest
from huggingface_hub import ModelCard

from taia_hub import cards
from taia_hub.configuration_taia import PAPER
from taia_hub.policy import MODES

GOLDEN = Path(__file__).parent / "data" / "model_card.md"
PARTS = {"attention": cards.RolePart(8, 1_234_567), "ffn": cards.RolePart(6, 960), "other": cards.RolePart(0, 0)}
DATA = cards.CardData(
    repo_id="org/model-taia",
    base_model="org/base",
    base_revision="0123456789abcdef0123456789abcdef01234567",
    method="LORA",
    parts=PARTS,
    default="attention",
    license_fields={"license": "other", "license_name": "pico-1.0", "license_link": "https://example.org/pico"},
    tags=("medical",),
)


def rendered(**values):
    text = cards.render_card(dataclasses.replace(DATA, **values))
    return ModelCard(text)


def test_the_golden_card():
    """The whole text; write it anew with `GOLDEN.write_text(cards.render_card(DATA))` when the change is meant."""
    assert cards.render_card(DATA) == GOLDEN.read_text(encoding="utf-8")


def test_the_metadata_is_what_the_hub_reads():
    data = ModelCard.load(GOLDEN).data.to_dict()
    assert data == {
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "license": "other",
        "license_link": "https://example.org/pico",
        "license_name": "pico-1.0",
        "pipeline_tag": "text-generation",
        "tags": ["taia", "peft", "lora", "medical", "base_model:adapter:org/base"],
    }


def test_a_card_needs_no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("A card asked for the network.")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert rendered().data.base_model == "org/base"


@pytest.mark.parametrize("missing", [field.name for field in dataclasses.fields(cards.CardData)])
def test_a_value_that_is_missing_is_an_error_and_no_gap(missing):
    values = {field.name: getattr(DATA, field.name) for field in dataclasses.fields(DATA)}
    del values[missing]
    with pytest.raises((jinja2.UndefinedError, AttributeError)):
        cards.render_card(SimpleNamespace(**values))


def test_a_missing_number_of_a_part_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="modules"):
        cards.render_card(dataclasses.replace(DATA, parts={"ffn": SimpleNamespace(parameters=3)}))


def test_numbers_stand_in_their_rows():
    text = rendered().text
    assert "| attention | 8 | 1,234,567 |" in text
    assert "| ffn | 6 | 960 |" in text


def test_every_mode_is_explained():
    text = rendered().text
    assert [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")] == list(MODES)
    assert PAPER in text


def test_the_published_default_is_shown():
    assert "`attention=1, ffn@0-7=0.5`" in rendered(default="attention=1, ffn@0-7=0.5").text


def test_a_local_base_is_not_named():
    card = rendered(base_model=None, base_revision=None)
    assert "base_model" not in card.data.to_dict()
    assert "base_model:adapter" not in card.content
    assert "None" not in card.content


def test_a_base_without_a_licence_leaves_none():
    assert "license" not in rendered(license_fields={}).content


def test_a_pointer_names_the_adapters_repository():
    text = rendered(adapter_repo="org/adapter").text
    assert "https://huggingface.co/org/adapter" in text
    assert 'subfolder="adapter"' not in text
    assert "org/adapter" not in rendered().text


def test_tags_are_not_repeated():
    assert rendered(tags=("taia", "x", "x")).data.tags == ["taia", "peft", "lora", "x", "base_model:adapter:org/base"]


@pytest.mark.parametrize("tag", ["a: b", "- x", "#1", "'", '"', "{x}", "yes", "1.0", "---", "数据"])
def test_metadata_is_quoted(tag):
    assert tag in rendered(tags=(tag,)).data.tags
    assert rendered(license_fields={"license": "other", "license_name": tag}).data.license_name == tag


def test_the_snippet_runs_as_python():
    blocks = rendered().text.split("```python\n")[1:]
    assert blocks
    for block in blocks:
        compile(block.split("```")[0], "card", "exec")


def test_a_card_is_ours_until_its_mark_is_removed():
    text = cards.render_card(DATA)
    assert cards.is_generated(text)
    assert not cards.is_generated(text.replace(cards.MARK, ""))
    assert not cards.is_generated("# Somebody's card")


def test_the_templates_are_found_in_a_checkout_and_in_a_wheel(tmp_path, monkeypatch):
    assert (cards.templates_dir() / "model_card.md.j2").is_file()
    package = tmp_path / "taia_hub"
    (package / "cards").mkdir(parents=True)
    monkeypatch.setattr(cards, "__file__", str(package / "cards" / "__init__.py"))
    assert cards.templates_dir() == tmp_path / "templates"
    (package / "_templates").mkdir()
    assert cards.templates_dir() == package / "_templates"
