"""The page in a real browser: what a person sees and does."""

import itertools
import json
import os
import shutil
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from taia_hub import TAIAForCausalLM
from taia_hub.page import PageSettings, launch_page

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.slow
PHONE = {"width": 390, "height": 844}
NASTY = "the <b>sea</b> **is** ${1+1} {{x}} <script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"


@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium: that of the system, or Playwright's own."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_api.sync_playwright() as playwright:
        if path is None and not Path(playwright.chromium.executable_path).exists():
            message = "No Chromium was found: install it, or run `python -m playwright install chromium`."
            if os.environ.get("CI"):
                pytest.fail(message)
            pytest.skip(message)
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def server(online, tmp_path, monkeypatch):
    """The page of a random model, answering at a pace that can be watched."""
    import taia_hub.page.answering as answering

    original = answering.stream_compare

    def watchable(*values, **keywords):
        for state in original(*values, **keywords):
            time.sleep(0.06)
            yield state

    monkeypatch.setattr(answering, "stream_compare", watchable)
    settings = PageSettings(online.taia, votes=tmp_path / "votes.jsonl")
    page = launch_page(settings=settings, token=online.hub.token, block=False, quiet=True)
    yield page
    page.close()


@pytest.fixture
def visit(chromium, server, tmp_path):
    """Opens the page; whatever the page's scripts complain of fails the test."""
    opened, complaints = [], []

    def open_(query="", **options):
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
        opened.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(server.local_url.rstrip("/") + "/" + query)
        page.wait_for_selector("#taia-prompt textarea")
        return page

    yield open_
    for context in opened:
        context.close()
    assert not complaints


def ask(page, prompt="and", length=8, wait=True):
    page.evaluate("window.scrollTo(0, 0)")
    if length is not None:
        set_length(page, length)
    turns = page.locator(".taia-turn").count()
    page.fill("#taia-prompt textarea", prompt)
    page.click("#taia-run")
    page.wait_for_function("n => document.querySelectorAll('.taia-turn').length > n", arg=turns)
    if wait:
        finish(page)


def set_length(page, length):
    if not page.is_visible("#taia-length input[type=number]"):
        page.click("#taia-settings > button")
        page.wait_for_selector("#taia-length input[type=number]", state="visible")
    page.fill("#taia-length input[type=number]", str(length))
    page.press("#taia-length input[type=number]", "Tab")


def finish(page):
    page.wait_for_function("document.querySelector('.taia-status').innerText.startsWith('Done')")


def status(page):
    return page.inner_text(".taia-status")


def names(page):
    return page.locator(".taia-turn:last-child .taia-column h3").all_inner_texts()


def answers(page):
    return page.locator(".taia-turn:last-child .taia-answer").all_inner_texts()


def look(page, name):
    """Keeps a picture of a state, for people to look at, where TAIA_SCREENSHOTS names a folder."""
    if os.environ.get("TAIA_SCREENSHOTS"):
        page.screenshot(path=Path(os.environ["TAIA_SCREENSHOTS"]) / f"{name}.png", full_page=True)


def test_all_columns_stream_at_once(visit):
    page = visit()
    look(page, "1-start")
    ask(page, length=40, wait=False)
    lengths = []
    for _ in range(3):
        page.wait_for_function(
            "n => [...document.querySelectorAll('.taia-answer')].length === 3 &&"
            "[...document.querySelectorAll('.taia-answer')].every(one => one.innerText.length > n)",
            arg=lengths[-1] if lengths else 0,
        )
        lengths.append(max(map(len, answers(page))))
        assert status(page).startswith("Answering")
    look(page, "2-streaming")
    assert page.get_attribute(".taia-column", "aria-busy") == "true"
    finish(page)
    assert names(page) == ["Base model", "TAIA: attention updates", "Vanilla: all updates"]
    assert page.input_value("#taia-prompt textarea") == ""
    page.click(".taia-turn summary")
    assert "Log-likelihood" in page.inner_text(".taia-turn table")
    look(page, "3-done")


def test_what_people_write_stays_text(visit):
    page = visit()
    ask(page, NASTY)
    assert page.inner_text(".taia-prompt") == NASTY
    assert page.evaluate("window.hacked") is None
    assert page.locator(".taia-board b, .taia-board img, .taia-board script").count() == 0
    page.fill("#taia-prompt textarea", "a " * 200)
    page.click("#taia-run")
    toast = page.wait_for_selector(".toast-body")
    assert "tokens; the model takes 128" in toast.inner_text()
    look(page, "4-error")


def test_the_weight_between_taia_and_vanilla_has_a_column(visit):
    page = visit()
    page.check("#taia-weighted input")
    page.fill("#taia-weight input[type=number]", "0.25")
    page.press("#taia-weight input[type=number]", "Tab")
    ask(page)
    assert names(page)[-1] == "FFN weight 0.25"
    for weight, mode in (("0", "TAIA: attention updates"), ("1", "Vanilla: all updates")):
        page.fill("#taia-weight input[type=number]", weight)
        page.press("#taia-weight input[type=number]", "Tab")
        ask(page, "and the sea")
        assert names(page)[-1] == f"FFN weight {weight}"
        assert len(answers(page)) == 4
        page.click("#taia-clear")
        page.wait_for_selector(".taia-empty")
        ask(page)
        assert answers(page)[-1] == answers(page)[names(page).index(mode)]
    look(page, "5-weight")


def test_five_columns_are_refused(visit):
    page = visit()
    page.check("#taia-modes label:has-text('TAIF') input")
    page.check("#taia-weighted input")
    page.fill("#taia-prompt textarea", "the sea")
    page.click("#taia-run")
    assert "5 columns were chosen" in page.wait_for_selector(".toast-body").inner_text()
    assert page.input_value("#taia-prompt textarea") == "the sea"  # nothing is lost


def test_stop_in_the_middle(visit):
    import threading

    page = visit()
    ask(page, length=110, wait=False)
    page.wait_for_function("document.querySelectorAll('.taia-answer').length === 3")
    page.wait_for_timeout(400)
    page.click("#taia-stop")
    page.wait_for_function("document.querySelector('.taia-status').innerText.startsWith('Stopped')")
    look(page, "6-stopped")
    before = answers(page)
    page.wait_for_timeout(800)
    assert answers(page) == before
    assert not [thread for thread in threading.enumerate() if thread.name == "taia-decode"]
    ask(page, "and", length=4)
    assert len(page.locator(".taia-turn").all()) == 2


def test_a_conversation_goes_on_and_is_cleared(visit):
    page = visit()
    ask(page, "the sea", length=4)
    ask(page, "and", length=4)
    assert page.locator(".taia-prompt").all_inner_texts() == ["the sea", "and"]
    page.click("#taia-clear")
    page.wait_for_selector(".taia-empty")
    assert status(page) == "Ready."


def test_differences_are_marked(visit):
    page = visit()
    ask(page, length=20)
    assert page.locator(".taia-answer ins, .taia-answer del").count() == 0
    page.click("#taia-against input")
    page.click("ul[role=listbox] li:has-text('Base model')")
    page.wait_for_selector(".taia-answer ins")
    assert page.locator("section[aria-label='Base model'] ins").count() == 0
    look(page, "7-differences")


def test_vote_blind(visit, tmp_path):
    page = visit()
    assert page.inner_text(".taia-note").endswith(f"in {tmp_path / 'votes.jsonl'}.")
    page.click("#taia-settings > button")
    page.check("#taia-blind input")
    ask(page, length=12)
    assert names(page) == ["Answer A", "Answer B", "Answer C"]
    assert "Base model" not in page.inner_html("#taia-board")
    look(page, "8-blind")
    page.click("#taia-json")
    assert "hidden until you vote" in page.wait_for_selector(".toast-body").inner_text()
    page.check("#taia-choice label:has-text('Answer B') input")
    page.click("#taia-vote")
    page.wait_for_selector(".taia-chosen")
    assert sorted(names(page)) == ["Base model", "TAIA: attention updates", "Vanilla: all updates"]
    assert "Thank you" in status(page)
    look(page, "9-voted")
    (row,) = [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text().splitlines()]
    assert row["blind"]
    shown = {"Base model": "none", "TAIA: attention updates": "attention", "Vanilla: all updates": "all"}
    assert row["choice"] == shown[names(page)[1]]


def test_save_and_link(visit):
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    ask(page, "and\n the <b>", length=4)
    page.click("#taia-share")
    page.wait_for_function("document.querySelector('.taia-status').innerText.startsWith('Copied')")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.evaluate("window.location.href")
    assert parse_qs(urlsplit(copied).query)["prompt"] == ["and\n the <b>"]  # the last one: the box is empty again
    page.click("#taia-clear")
    page.wait_for_function("document.querySelectorAll('.taia-turn').length === 0")
    ask(page, length=4)
    with page.expect_download() as saved:
        page.click("#taia-json")
    found = json.loads(Path(saved.value.path()).read_text())
    assert found[0]["messages"] == [{"role": "user", "content": "and"}]
    with page.expect_download() as saved:
        page.click("#taia-markdown")
    assert "```text\nand\n```" in Path(saved.value.path()).read_text()
    page.fill("#taia-prompt textarea", "a & b?")
    page.check("#taia-modes label:has-text('TAIF') input")
    page.click("#taia-share")
    page.wait_for_function("window.location.search.includes('prompt=')")
    query = page.evaluate("window.location.search")
    other = visit(query)
    other.wait_for_function("document.querySelector('#taia-prompt textarea').value === 'a & b?'")
    assert other.is_checked("#taia-modes label:has-text('TAIF') input")


def test_reload_shows_nobody_elses_text(visit):
    page = visit()
    ask(page, "a secret", length=4)
    other = visit()
    assert "secret" not in other.content()
    page.reload()
    page.wait_for_selector("#taia-prompt textarea")
    assert "secret" not in page.inner_text("#taia-board")


def test_why_shows_the_update_by_layer(visit):
    page = visit()
    page.click("#taia-why > button")
    page.wait_for_selector("#taia-figure img")
    page.wait_for_function("document.querySelector('#taia-figure-text').innerText.length > 40")
    look(page, "10-why")


def test_a_phone_has_one_column_and_no_sideways_scrolling(visit):
    page = visit(viewport=PHONE, has_touch=True)
    ask(page, length=12)
    boxes = [box.bounding_box() for box in page.locator(".taia-column").all()]
    assert len({round(box["x"]) for box in boxes}) == 1
    assert all(above["y"] + above["height"] <= below["y"] for above, below in itertools.pairwise(boxes))
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    look(page, "11-phone")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_in_light_and_dark(visit, scheme):
    page = visit("?__theme=" + scheme, color_scheme=scheme)
    ask(page, length=12)
    look(page, f"12-{scheme}")
    for selector in (".taia-answer", ".taia-figures", ".taia-status", "#taia-run", "#taia-modes label span"):
        assert contrast(page, selector) >= 4.5, selector


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_keyboards_focus_can_be_seen_on_every_control(visit, scheme):
    page = visit("?__theme=" + scheme, color_scheme=scheme)
    assert page.evaluate("document.activeElement.closest('#taia-prompt') !== null")  # where a person begins
    page.click("#taia-settings > button")
    page.wait_for_selector("#taia-length input[type=number]", state="visible")
    page.focus("#taia-modes input")  # the first of all
    seen, places = set(), set()
    for _ in range(60):
        page.keyboard.press("Tab")
        kind, width, style, drawn = page.evaluate(
            """() => {
              const one = document.activeElement, look = getComputedStyle(one);
              document.querySelectorAll("[data-seen]").forEach(other => other.removeAttribute("data-seen"));
              one.setAttribute("data-seen", "");
              const box = one.getBoundingClientRect();
              return [`${one.tagName} ${one.type || ""}`, parseFloat(look.outlineWidth), look.outlineStyle,
                      box.width >= 8 && box.height >= 8 && look.opacity !== "0"];
            }"""
        )
        if kind.startswith("BODY"):
            break
        seen.add(kind)
        places.add(page.evaluate("document.activeElement.closest('[id^=taia-]')?.id"))
        name = page.evaluate("document.activeElement.outerHTML.slice(0, 160)")
        assert width >= 2, name
        assert style == "solid", name
        assert drawn, name
        end = time.monotonic() + 2  # buttons change their colours by and by
        while contrast(page, "[data-seen]", "outlineColor") < 3:
            assert time.monotonic() < end, name
    look(page, f"13-focus-{scheme}")
    wanted = {"INPUT checkbox", "INPUT range", "INPUT number", "TEXTAREA textarea", "BUTTON submit"}
    assert wanted <= seen
    assert {"taia-modes", "taia-weight", "taia-prompt", "taia-run", "taia-blind", "taia-seed"} <= places


def contrast(page, selector, colour="color"):
    """The contrast of a text, or an outline, with what is behind it, after WCAG 2.2."""
    return page.evaluate(
        """([selector, colour]) => {
          const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
          const read = colour => {
            canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data];
          };
          const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          const element = document.querySelector(selector);
          let behind = colour === "color" ? element : element.parentElement, ground = [0, 0, 0, 0];
          while (behind && ground[3] < 255) { ground = read(getComputedStyle(behind).backgroundColor);
                                              behind = behind.parentElement; }
          const values = [light(read(getComputedStyle(element)[colour])), light(ground)].sort((a, b) => b - a);
          return (values[0] + 0.05) / (values[1] + 0.05);
        }""",
        [selector, colour],
    )


def test_the_keyboard_is_enough(visit):
    page = visit()
    set_length(page, 4)
    page.focus("#taia-prompt textarea")
    page.keyboard.type("the sea")
    page.keyboard.press("Enter")
    finish(page)
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea, select")].filter(one => one.offsetParent)
             .filter(one => !(one.innerText || one.getAttribute("aria-label") || one.title || one.labels?.length
                              || one.closest("label")))
             .map(one => one.outerHTML.slice(0, 200))"""
    )
    assert not unnamed


def test_a_real_model_answers(chromium, smollm2, tmp_path):
    """SmolLM2-135M with a random update: four columns, the base's own words in the first."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
    TAIAForCausalLM.from_adapter(smollm2, tmp_path / "adapter").save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(tmp_path / "model")
    settings = PageSettings(str(tmp_path / "model"), votes=tmp_path / "votes.jsonl", dtype="float32")
    server = launch_page(settings=settings, modes=["none", "attention", "ffn", "all"], block=False, quiet=True)
    page = chromium.new_context(viewport={"width": 1280, "height": 1000}).new_page()
    try:
        page.set_default_timeout(120_000)
        page.goto(server.local_url)
        page.wait_for_selector("#taia-prompt textarea")
        ask(page, "What is the capital of France?", length=8)
        assert len(names(page)) == 4
        assert "Paris" in answers(page)[0]
        look(page, "13-real")
    finally:
        page.context.close()
        server.close()
