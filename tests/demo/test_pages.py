"""The report as pages: what stands in them, that nothing of a text acts, and the figure beside them."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from taia_hub.demo.pages import write_pages
from taia_hub.demo.report import conclusions
from tests.demo.test_report import demo_report

EVIL = "<script>alert(1)</script> | **x** `y`"


@pytest.fixture
def report(tmp_path):
    made = demo_report(tmp_path)
    made = dataclasses.replace(made, prompt=EVIL, answers={**made.answers, "all": EVIL}, base=EVIL)
    write_pages(made)
    return made


def test_both_pages_hold_table_answers_conclusions_and_commands(report):
    for ending in ("md", "html"):
        text = report.pages[ending].read_text()
        for part in ("-0.050", "(-0.060 to -0.040)", "said by ffn", "1,234 tokens", "torch 2.9", " --ui"):
            assert part in text, (ending, part)
        assert conclusions(report.domains, "medical")[2].split(":")[0] in text
        assert "<script>" not in text.partition("```")[0]


def test_the_lowest_loss_is_bold(report):
    rows = [line for line in report.pages["md"].read_text().splitlines() if line.startswith("| m")]
    assert [re.findall(r"\*\*(\S+)\*\*", row) for row in rows] == [["-0.500"], ["-0.050"]]


def test_the_page_needs_no_other_file_and_no_network(report):
    class Sources(HTMLParser):
        found: list[str] = []
        open: list[str] = []

        def handle_starttag(self, tag, attrs):
            self.found += [value for name, value in attrs if name in ("src", "href")]
            if tag not in ("meta", "img", "br"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    parser = Sources()
    page = report.pages["html"].read_text()
    parser.feed(page)
    assert [source.partition(",")[0] for source in parser.found] == ["data:image/svg+xml;base64"]
    assert parser.open == []
    assert "color-scheme:light dark" in page
    assert "@import" not in page
    assert "url(" not in page


def test_the_figure_lies_beside_and_says_its_numbers(report):
    assert report.pages["png"].read_bytes().startswith(b"\x89PNG")
    svg = report.pages["svg"].read_text()
    assert "attention +0.300 on medical, -0.050 on maths" in svg
    assert f"]({report.pages['png'].name})" in report.pages["md"].read_text()


def test_a_mode_of_the_base_model_is_a_point_too(tmp_path, monkeypatch):
    from taia_hub.analysis import figures

    seen = []
    monkeypatch.setattr(figures, "write", lambda figure, folder, name, alt: seen.append(figure))
    report = demo_report(tmp_path)
    change = {mode: report.domains[0].differences[mode, "none"] for mode in ("attention", "all")}
    names = {"none": "base", "attention": "TAIA", "all": "vanilla"}
    figures.draw_trade("medical", change, {"maths": change}, names, tmp_path, "x")
    (axis,) = seen[0].axes
    points = {bars.get_label(): bars.lines[0].get_xydata()[0].round(6).tolist() for bars in axis.containers}
    assert points == {"base": [0, 0], "TAIA": [0.3, -0.3], "vanilla": [0.5, -0.5]}
