"""The page of a model on the Hub: the entry for huggingface.js, run by the Hub's own package, and how a card looks."""

import json
import os
import re
import shutil
import subprocess
from collections import Counter

import pytest
import yaml

from taia_hub import cards
from taia_hub.cards.metadata import LIBRARY
from taia_hub.cards.rendering import templates_dir
from tests.card_samples import EVERYTHING, FOLDER, GOLDEN, render

TASKS = "@huggingface/tasks@0.21.54"


@pytest.fixture(scope="module")
def entry():
    """The two parts of the entry: the function of the snippet, and the library."""
    text = (templates_dir() / "huggingface_js.ts").read_text(encoding="utf-8")
    _, snippet, library = re.split(r"^// --- model-libraries[\w-]*\.ts\n", text, flags=re.MULTILINE)
    return snippet, library


@pytest.fixture(scope="module")
def promised(entry):
    """The code that the page of org/model-taia shall show."""
    return re.search(r"`(.*)`", entry[0], re.DOTALL)[1].replace("${model.id}", "org/model-taia")


def test_the_promised_snippet_runs_as_it_is_and_counts_once(online, empty_cache, entry, promised, capsys):
    """In this process with an empty cache; `test_every_python_snippet_runs` starts a clean one."""
    (path,) = re.findall(r'countDownloads: `path:"([^"]+)"`', entry[1])
    online.hub.requests.clear()
    names = {}
    exec(compile(promised, "promised", "exec"), names)
    assert names["answer"].shape[1] > names["inputs"]["input_ids"].shape[1]
    assert "he capital of" in capsys.readouterr().out  # the pico tokenizer has no capitals
    counted = re.compile(rf"/org/model-taia/resolve/\w+/{re.escape(path)}")
    asked = Counter(method for method, url in online.hub.requests if counted.fullmatch(url))
    assert asked["GET"] == 1


PAGES = """
import { MODEL_LIBRARIES_UI_ELEMENTS as LIBRARIES, LOCAL_APPS } from "./out/index.js";
import { readFileSync } from "node:fs";
const said = JSON.parse(readFileSync(0, "utf8")).map((model) => ({
  name: LIBRARIES[model.library_name]?.prettyLabel,
  counted: LIBRARIES[model.library_name]?.countDownloads,
  snippets: LIBRARIES[model.library_name]?.snippets?.(model),
  apps: Object.keys(LOCAL_APPS).filter((key) => LOCAL_APPS[key].displayOnModelPage?.(model)),
  libraries: model.tags.filter((tag) => tag in LIBRARIES),
}));
console.log(JSON.stringify(said));
"""


def model_of(card, **config):
    """What the Hub knows of a model with a card, as its package takes it."""
    data = yaml.safe_load(card.split("---\n")[1])
    tags = [data["library_name"], *data["tags"], data["pipeline_tag"], "safetensors"]
    given = {"id": "org/model-taia", "inference": "", "config": config, "tags": tags}
    return {**given, **{name: data[name] for name in ("library_name", "pipeline_tag")}}


@pytest.mark.network
def test_the_hubs_own_package_shows_the_promised_snippet(tmp_path, entry, promised):
    """The entry is put into the package's sources, which are then checked and run: what the pull request does."""
    if os.environ.get("TAIA_TEST_NETWORK") != "1":
        pytest.skip("asks the index of npm: set TAIA_TEST_NETWORK=1")
    npm = shutil.which("npm") or pytest.skip("npm is not on the path")

    def run(*words, **options):
        done = subprocess.run(words, cwd=tmp_path, text=True, capture_output=True, timeout=300, **options)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return done.stdout

    (tmp_path / "package.json").write_text('{"type": "module"}')
    run(npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", TASKS, "typescript@5")
    package = tmp_path / "node_modules" / "@huggingface" / "tasks"
    shutil.copytree(package / "src", tmp_path / "src")
    snippets, libraries = tmp_path / "src" / "model-libraries-snippets.ts", tmp_path / "src" / "model-libraries.ts"
    snippets.write_text(f"{snippets.read_text()}\n{entry[0]}")
    start = "export const MODEL_LIBRARIES_UI_ELEMENTS = {\n"
    assert start in libraries.read_text()
    libraries.write_text(libraries.read_text().replace(start, start + entry[1]))
    options = ["--module", "nodenext", "--target", "es2022", "--strict", "--skipLibCheck", "--outDir", "out"]
    run("node", "node_modules/typescript/bin/tsc", *options, "src/index.ts")
    (tmp_path / "pages.mjs").write_text(PAGES)
    old = (FOLDER / "everything-0.1.md").read_text(encoding="utf-8")
    taia = {"model_type": "taia", "architectures": ["TAIALlamaForCausalLM"]}
    plain = {"peft": {"base_model_name_or_path": "org/base", "task_type": "CAUSAL_LM"}}
    exported = render("everything").replace(f"library_name: {LIBRARY}", "library_name: peft")
    models = [model_of(render("everything"), **taia), model_of(old, **taia), model_of(exported, **plain)]
    ours, before, export = json.loads(run("node", "pages.mjs", input=json.dumps(models)))
    assert ours == {
        "name": "TAIA",
        "counted": 'path:"config.json"',
        "snippets": [promised],
        "apps": [],  # none that would be offered and could not load it
        "libraries": [LIBRARY],
    }
    assert before["snippets"] == ["Task type is invalid."]  # what was wrong
    assert before["counted"] == 'path:"adapter_config.json"'  # a file that is not there
    assert 'PeftModel.from_pretrained(base_model, "org/model-taia")' in export["snippets"][0]


# How a card looks there

FILES = {"taia_results.json", "taia_tuning.json"}
FILES |= {f"figures/{name}.png" for name in ("tuning_front", "scores", "update_norms")}
PHONE = 48
"""Letters that fit beside each other at 390 px, three of them for the borders of each column."""


def tokens(text):
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable("table")
    blocks = parser.parse(text.split("\n---\n", 1)[1])
    return blocks, [child for block in blocks for child in block.children or ()]


def widths(text):
    """The letters that each table of a card needs at least: the longest word of each column."""
    blocks, _ = tokens(text)
    found, column = [], 0
    for index, block in enumerate(blocks):
        if block.type == "table_open":
            found.append([])
        elif block.type == "tr_open":
            column = 0
        elif block.type in ("th_open", "td_open"):
            shown = "".join(
                child.content for child in blocks[index + 1].children if child.type in ("text", "code_inline")
            )
            found[-1] += [0] * (column + 1 - len(found[-1]))
            found[-1][column] = max([found[-1][column], *map(len, re.split(r"[\s-]+", shown))])
            column += 1
    return [sum(columns) + 3 * len(columns) for columns in found]


@pytest.mark.parametrize("name", [*GOLDEN, "adapter"])
def test_a_card_fits_a_phone_and_shows_no_comment(name):
    text = cards.render_card(EVERYTHING, cards.ADAPTER) if name == "adapter" else render(name)
    assert all(width <= PHONE for width in widths(text)), widths(text)
    blocks, inline = tokens(text)
    html = [token.content for token in (*blocks, *inline) if token.type.startswith("html")]
    assert all(re.fullmatch(r"(<!--((?!-->).)*-->\s*)+", one, re.DOTALL) for one in html)
    shown = [token.content for token in inline if token.type in ("text", "code_inline")]
    assert not [one for one in shown if "<!--" in one]
    links = [dict(token.attrs).get("href") or dict(token.attrs).get("src") for token in inline if token.attrs]
    assert all(link.startswith("https://") or link in FILES for link in links), links


def test_a_wide_table_would_be_seen():
    old = (FOLDER / "everything-0.1.md").read_text(encoding="utf-8")
    assert max(widths(old)) > 2 * PHONE
