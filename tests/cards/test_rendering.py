"""Rendering: golden cards, metadata, escaping of nasty text, and templates of a user's own."""

import dataclasses
import re
import socket
from types import SimpleNamespace

import jinja2
import pytest
import yaml
from huggingface_hub import ModelCard, SpaceCard, eval_result_entries_to_yaml, parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results

from taia_hub import cards
from taia_hub.cards import rendering, snippets, tables
from taia_hub.errors import ConfigError
from taia_hub.hub.config import PAPER
from taia_hub.results import Results, summarise
from taia_hub.switch.modes import MODES
from taia_hub.switch.settings import parse_setting
from tests.card_samples import (
    BASE_SHA,
    EVERYTHING,
    FOLDER,
    GOLDEN,
    HELD_OUT,
    KEPT,
    MERGED,
    NOTHING,
    REPORT,
    RESULTS,
    SPACE,
    render,
    results,
    task,
)
from tests.tuning_samples import tuned

NASTY = [
    '"]: x',
    "<script>alert(1)</script>",
    "two\nlines\n# and a heading\n---\n- item",
    "a | b | c",
    "`code` ``` fence",
    "```\n## out of the fence\n```",
    "](javascript:alert(1))",
    "![x](https://example.org/x.png)",
    "**bold** _it_ ~~gone~~ $x$",
    "<!-- taia:yours -->",
    "<!-- /taia:yours -->\n<!-- taia:section use 000000000000 -->",
    "-->",
    "&lt;b&gt; &amp; \\",
    "{{ card }} {% raw %}",
    "yes",
    "1.0",
    "- x",
    "1. x",
    "#1",
    "=",
    ": {a: b}",
    "'",
    "\x00\x1b[31m\u202e\u2028",
    "数据 é 👍🏽",
    "|",
    "\\",
    "\ud800",
]


def rendered(data=EVERYTHING, **values):
    return ModelCard(cards.render_card(dataclasses.replace(data, **values)))


def headings(text):
    """Lists the headings as CommonMark sees them, outside fenced code."""
    found, fence = [], None
    for line in text.split("\n---\n", 1)[1].splitlines():
        if match := re.match(r" {0,3}(`{3,}|~{3,})", line):
            fence = None if fence and line.strip() == fence else fence or match[1]
        elif fence is None and re.match(r" {0,3}(#{1,6})([ \t]|$)", line):
            found.append(line)
    return found


# The golden cards


@pytest.mark.parametrize("name", GOLDEN)
def test_the_golden_cards(name):
    """The whole texts; `python tests/card_samples.py` writes them anew when a change is meant."""
    assert render(name) == (FOLDER / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", GOLDEN)
def test_no_card_has_an_empty_heading_a_gap_or_a_placeholder(name):
    text = render(name)
    body = re.sub(r"<!-- taia:section .*? -->\n", "", text.split("\n---\n", 1)[1])
    assert not re.search(r"^(#+) .*\n+(?=\1 |\Z)", body, re.MULTILINE)
    for word in ("None", "undefined", "More Information", " nan ", "[]", "()", "{}", "| |"):
        assert word not in body.replace("|  |", ""), word
    assert "\n\n\n" not in body
    assert not re.search(r"[ \t]+$", text, re.MULTILINE)


def test_what_is_not_known_leaves_no_trace():
    text = render("nothing")
    assert headings(text) == ["# model-taia", "## Use", "## Modes", "## Limits", "## Citation"]
    assert set(ModelCard(text).data.to_dict()) == {"library_name", "pipeline_tag", "tags"}


@pytest.mark.parametrize(
    "field",
    [one.name for one in dataclasses.fields(cards.CardData) if one.default is not dataclasses.MISSING]
    + ["license_fields", "language", "datasets", "tags", "widget", "figures", "adapter_config"],
)
def test_each_optional_fact_may_be_absent(field):
    default = getattr(NOTHING, field)
    text = cards.render_card(dataclasses.replace(EVERYTHING, **{field: default}))
    assert "None" not in text
    assert "\n\n\n" not in text


def test_a_card_needs_no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("A card asked for the network.")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    for name in GOLDEN:
        assert render(name)


def test_rendering_twice_gives_the_same_bytes():
    assert all(render(name) == render(name) for name in GOLDEN)


@pytest.mark.parametrize("missing", [field.name for field in dataclasses.fields(cards.CardData)])
def test_a_value_that_is_missing_is_an_error_and_no_gap(missing):
    values = {field.name: getattr(EVERYTHING, field.name) for field in dataclasses.fields(EVERYTHING)}
    del values[missing]
    with pytest.raises((jinja2.UndefinedError, AttributeError)):
        cards.render_card(SimpleNamespace(**values))


# Metadata


def test_the_metadata_is_what_the_hub_reads():
    data = ModelCard(render("everything")).data.to_dict()
    data.pop("model-index")
    assert data == {
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "co2_eq_emissions": {"emissions": 12.5, "source": "codecarbon", "hardware_used": "NVIDIA H200"},
        "datasets": ["org/medquad"],
        "language": ["en", "zh"],
        "library_name": "taia-hub",
        "license": "other",
        "license_link": "https://example.org/pico",
        "license_name": "pico-1.0",
        "pipeline_tag": "text-generation",
        "tags": ["taia", "lora", "medical", "base_model:adapter:org/base"],
        "widget": [{"text": "What helps against a cold?"}],
        "taia_space": "org/model-taia-compare",
    }


def test_the_model_index_has_one_result_a_task_and_mode():
    _, found = model_index_to_eval_results(yaml.safe_load(render("everything").split("---\n")[1])["model-index"])
    values = {(one.metric_args["task"], one.metric_args["inference_modules"]): one.metric_value for one in found}
    assert values == {
        (key, mode): round(scores.scores[one.metric], 6)
        for key, one in RESULTS.tasks.items()
        for mode, scores in one.modes.items()
    }
    assert all(one.metric_args["inference_modules"] in one.metric_name for one in found)


def test_other_shots_of_one_data_set_stay_apart_in_the_model_index():
    both = results(task("svamp", "SVAMP", 10, shots=1, asked=1), task("svamp", "SVAMP", 10, shots=4, asked=4))
    (model,) = yaml.safe_load(rendered(results=both).content.split("---\n")[1])["model-index"]
    names = [metric["name"] for result in model["results"] for metric in result["metrics"]]
    assert len(set(names)) == len(names) == 8


def test_a_local_base_is_not_named():
    card = rendered(base_model=None, base_revision=None)
    assert "base_model" not in card.data.to_dict()
    assert "base_model:adapter" not in card.content
    assert "PeftModel" not in card.content


@pytest.mark.parametrize("tag", ["a: b", "- x", "#1", "'", '"', "{x}", "yes", "1.0", "---", "数据"])
def test_metadata_is_quoted(tag):
    assert tag in rendered(tags=(tag,)).data.tags
    assert rendered(license_fields={"license": "other", "license_name": tag}).data.license_name == tag


def test_tags_are_not_repeated():
    card = rendered(tags=("taia", "x", "x"))
    assert card.data.tags == ["taia", "lora", "x", "base_model:adapter:org/base"]


@pytest.mark.parametrize("language", ["English", "e", "en_US", "", "en\n- x"])
def test_a_language_is_a_code(language):
    with pytest.raises(ConfigError, match="no code of a language"):
        rendered(language=(language,))


def test_other_cards_are_read_by_the_hubs_own_classes():
    merged, space = ModelCard(render("merged")), SpaceCard(render("space"))
    assert merged.data.base_model == "org/base"
    assert merged.data.base_model_relation == "finetune"
    assert space.data.sdk == "gradio"
    assert space.data.models == ["org/model-taia", "org/base"]
    assert len(space.data.short_description) <= 60


def test_registered_benchmarks_get_a_file_of_their_own():
    gsm8k = task("gsm8k", "GSM8K", 1319, metric="exact_match,strict-match", shots=5, path="openai/gsm8k", name="main")
    whole = results(gsm8k, task("svamp", "SVAMP", 10))
    files = cards.eval_results_files(whole, "org/model-taia")
    assert list(files) == [".eval_results/gsm8k.yaml"]
    entries = yaml.safe_load(files[".eval_results/gsm8k.yaml"])
    score = gsm8k.modes["attention"].scores["exact_match,strict-match"]
    assert entries[0] == {
        "dataset": {"id": "openai/gsm8k", "task_id": "gsm8k", "revision": "d" * 40},
        "value": round(100 * score, 4),
        "date": "2026-11-21",
        "source": {
            "url": "https://huggingface.co/org/model-taia/blob/main/taia_results.json",
            "name": "Scores of every item",
        },
        "notes": "inference_modules: attention (TAIA: attention updates), 5-shot",
    }
    read = parse_eval_result_entries(entries)  # as the Hub's own client does
    assert yaml.safe_load(files[".eval_results/gsm8k.yaml"]) == eval_result_entries_to_yaml(read)
    asked = cards.eval_results_files(whole, "org/model-taia", "a" * 40)[".eval_results/gsm8k.yaml"]
    assert yaml.safe_load(asked)[0]["source"]["url"] == f"https://huggingface.co/org/model-taia/tree/{'a' * 40}"
    assert cards.same_scores(asked, files[".eval_results/gsm8k.yaml"])
    assert not cards.same_scores(asked.replace("value: ", "value: 1"), asked)
    for folder in (None, "model-taia"):
        assert "source" not in cards.eval_results_files(whole, folder)[".eval_results/gsm8k.yaml"]
    assert [entry["notes"].split()[1] for entry in entries] == ["attention", "ffn", "all"]
    assert cards.eval_results_files(dataclasses.replace(whole, settings={"limit": 20})) == {}
    part = results(task("gsm8k", "GSM8K", 20, metric="exact_match,strict-match"))
    assert cards.eval_results_files(part) == {}
    assert cards.eval_results_files(None) == {}


# What it says


def test_every_mode_is_explained_and_the_paper_named():
    text = render("everything")
    section = text.split("## Modes\n")[1].split("\n## ")[0]
    assert [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")] == list(MODES)
    assert PAPER in text
    assert "`attention=1, ffn@0-7=0.5`" in rendered(default="attention=1, ffn@0-7=0.5").content


def test_the_table_shows_what_the_results_say():
    text = render("everything")
    for row in summarise(RESULTS).rows:
        line = next(
            line for line in text.splitlines() if line.startswith(f"| {tables.MEMBER * row.depth}{row.title} |")
        )
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert f"| {tables.MEMBER * row.depth}{row.title} | acc | 0 | {row.items} |" in text
        for mode, cell in zip(summarise(RESULTS).modes, cells[1:], strict=True):
            score = row.scores[mode]
            assert f"{score.value:.3f}" in cell
            assert f"± {score.standard_error:.3f}" in cell
            assert cell.startswith("**") == (row.best == (mode,))
            assert bool(re.match(r"\*[^*]", cell)) == (row.second == (mode,) and len(row.best) == 1)


def test_the_mode_to_use_is_hedged_when_it_is_within_noise():
    few = results(task("svamp", "SVAMP", 10))
    assert summarise(few).recommendation.within_noise
    section = rendered(results=few, tuning=None).content.split("## Which mode to use\n")[1].split("\n## ")[0]
    assert "may be as good" in section
    assert "within noise" in section
    many = results(task("svamp", "SVAMP", 3000))
    section = rendered(results=many, tuning=None).content.split("## Which mode to use\n")[1].split("\n## ")[0]
    assert "beyond noise" in section
    assert "may be as good" not in section


def test_a_tie_is_not_the_best():
    value = 25 * (0.0,) + 25 * (1.0,)

    def tied(**modes):
        one = task("svamp", "SVAMP", 50)
        return results(
            dataclasses.replace(
                one,
                modes={
                    label: dataclasses.replace(
                        one.modes[label], scores={"acc,none": sum(values) / 50}, values={"acc,none": values}
                    )
                    for label, values in modes.items()
                },
            )
        )

    def said(found):
        text = rendered(results=found, default="all", tuning=None).content
        return text.split("## Which mode to use\n")[1].split("\n## ")[0], text.split("## Results\n")[1].split("###")[0]

    choice, table = said(tied(none=value, attention=value[::-1], ffn=value, all=value))
    assert "All evaluated modes have the same score on SVAMP (0.500)" in choice
    assert "best" not in choice
    assert "model.inference_modules" not in choice
    assert "*" not in table
    choice, table = said(tied(none=50 * (0.0,), attention=value, ffn=value, all=20 * (1.0,) + 30 * (0.0,)))
    assert "`attention` and `ffn` have the same score, the best on SVAMP (0.500), but\n`all` may be as good" in choice
    assert "*" not in table
    choice, table = said(tied(none=value, attention=50 * (1.0,), ffn=value, all=50 * (0.0,)))
    assert "`attention`: it is best on SVAMP (1.000), beyond noise" in choice
    assert "**1.000**" in table
    assert "*0.500*" not in table  # two are second


def test_results_that_name_no_mode_say_so():
    unlike = results(task("svamp", "SVAMP", 10), dataclasses.replace(task("xsum", "XSum", 10), higher_is_better=False))
    assert summarise(unlike).recommendation is None
    assert "do not name one mode" in rendered(results=unlike, tuning=None).content


def test_the_default_that_is_not_recommended_is_said_so():
    text = rendered(default="all", tuning=None).content
    assert 'model.inference_modules = "attention"' in text.split("## Results")[0]
    assert "model loads with" not in rendered(tuning=None).content


def choices(**values):
    """What a card says under "Which mode to use", but for the table."""
    text = rendered(**{"tuning": None, **values}).content.partition("## Which mode to use")[2].partition("\n#")[0]
    return " ".join(line for line in text.splitlines() if line[:1] not in "|<")


def test_limits_name_what_a_training_reports():
    limits = rendered(tuning=None, results=REPORT).content.partition("## Limits")[2].partition("\n## ")[0]
    assert "- Nothing but the items and texts above was evaluated" in limits


def test_a_card_recommends_one_mode():
    """A training's report, an evaluation and a tuning each speak for another one."""
    evaluated = results(HELD_OUT, KEPT, task("svamp", "SVAMP", 100, {"none": 0.2, "attention": 0.5, "ffn": 0.9}))
    assert "`attention` where the model shall stay closer" in choices(results=REPORT)
    assert "`all` for the trained task alone" in choices(results=REPORT)

    said = choices(results=evaluated, default="all")
    assert said.strip().startswith("`ffn`: it is best on SVAMP (0.890), beyond noise over 100 items.")
    assert "`ffn` keeps 95.2 % of the base model's answers on general text" in said
    assert "closer" not in said
    assert "trained task alone" not in said
    assert 'The model loads with `all`; `model.inference_modules = "ffn"` changes it.' in said

    both = {"results": evaluated, "tuning": EVERYTHING.tuning, "default": "all"}
    said = choices(**both)
    assert said.strip().startswith("`tuned 5`: `taia tune` compared settings on items of their own; *Tuned setting*")
    assert not [word for word in ("`ffn`", "`attention`", "`all`") if word in said]
    assert "The model loads with `all`, not with `tuned 5`" in rendered(**both).content
    assert "`ffn` keeps" in choices(**{**both, "tuning": tuned(chosen="ffn")})

    alike = task("svamp", "SVAMP", 100, {"none": 1.0, "all": 1.0})
    assert "the same score" in choices(results=results(alike))
    said = choices(results=results(HELD_OUT, KEPT, alike))
    assert "`all` for the trained task alone" in said
    assert "the same score" not in said


def test_limits_name_what_was_not_evaluated():
    text = rendered(results=results(task("svamp", "SVAMP", 10, {"none": 0.2, "all": 0.4}), limit=10)).content
    assert "of the modes not `attention` and `ffn`" in text
    assert "Only the first 10 items" in text


def test_results_without_tasks_are_no_results():
    assert "## Results" not in rendered(results=Results(RESULTS.model)).content


def test_a_pointer_names_the_adapters_repository():
    text = rendered(adapter_repo="org/adapter", adapter_revision="b" * 40, adapter_path="").content
    assert "https://huggingface.co/org/adapter" in text
    assert f'PeftModel.from_pretrained(base, "org/adapter", revision="{"b" * 40}")' in text
    assert "--lora-modules taia=adapter\n" in text
    assert "org/adapter" not in render("everything")


@pytest.mark.parametrize(
    ("config", "vllm", "llama_cpp"),
    [
        ({"r": 16}, 16, True),
        ({"r": 24}, 32, True),
        ({"r": 4096}, None, True),
        ({"r": 8, "use_rslora": True}, 8, False),
        ({"r": 8, "use_dora": True}, None, False),
        ({"r": 8, "bias": "all"}, None, False),
        ({"r": 8, "modules_to_save": ["lm_head"]}, None, False),
        ({"r": 8, "target_parameters": ["mlp.experts"]}, None, False),
        ({"r": 8, "rank_pattern": {"q_proj": 4}}, 8, False),
        ({"r": 8, "rank_pattern": {"q_proj": 24}}, 32, False),
        ({"r": 8, "alpha_pattern": {"q_proj": 4}}, 8, False),
        ({"peft_type": "LOHA", "r": 8}, None, False),
        ({}, None, True),
    ],
)
def test_engines_that_would_not_serve_the_update_are_not_named(config, vllm, llama_cpp):
    data = dataclasses.replace(EVERYTHING, adapter_config={"peft_type": "LORA", **config})
    found = snippets.engines(data)
    assert (found.vllm_rank, found.llama_cpp) == (vllm, llama_cpp)
    text = cards.render_card(data)
    assert ("vllm serve" in text) == (vllm is not None)
    assert ("convert_lora_to_gguf" in text) == llama_cpp


@pytest.mark.parametrize(
    "option",
    [
        {"alora_invocation_tokens": [3]},
        {"layer_replication": [[0, 2]]},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"target_parameters": ["mlp.experts.up_proj"]},
        {"trainable_token_indices": [3]},
        {"use_bdlora": {"nblocks": 2}},
        {"use_dora": True},
        {"use_qalora": True},
    ],
)
def test_a_lora_beyond_the_plain_one_is_not_served(option):
    config = {"peft_type": "LORA", "r": 8, **option}
    found = snippets.engines(dataclasses.replace(EVERYTHING, adapter_config=config))
    assert (found.peft, found.vllm_rank, found.llama_cpp) == (True, None, False)


def test_a_rank_of_one_has_the_limit_of_one():
    config = {"peft_type": "LORA", "r": 1}
    assert snippets.engines(dataclasses.replace(EVERYTHING, adapter_config=config)).vllm_rank == 1


def test_an_update_of_embeddings_or_the_head_is_not_served():
    parts = {**EVERYTHING.parts, "other": cards.RolePart(1, 64, (16,))}
    found = snippets.engines(dataclasses.replace(EVERYTHING, parts=parts))
    assert (found.peft, found.vllm_rank, found.llama_cpp) == (True, None, False)


def recommending(setting):
    """A card whose results are best under a setting, and its label."""
    label = parse_setting(setting).label
    one = task("svamp", "SVAMP", 400, {"none": 0.2, "attention": 0.3, label: 0.9, "all": 0.3})
    modes = {**one.modes, label: dataclasses.replace(one.modes[label], setting=setting)}
    return rendered(results=results(dataclasses.replace(one, modes=modes)), tuning=None).content, label


def test_weights_that_are_too_many_for_a_line_are_where_they_can_be_read():
    text, label = recommending({f"ffn@{layer}": layer / 60 for layer in range(60)})
    assert f"the weights of `{label}` stand in `taia_results.json`" in text
    assert "ffn@17" not in text
    assert max(map(len, text.splitlines())) < 400


@pytest.mark.parametrize(
    "setting",
    [
        {"attention": 1.0, "ffn@0-1": 0.5},
        {"*@0-1": [0.25, 1], "ffn": -1, "allow_extrapolation": True},
    ],
)
def test_a_mapping_that_is_recommended_is_a_line_that_runs(setting):
    text, label = recommending(setting)
    line = re.search(r"`(model\.inference_modules = .*?)` changes it", text)[1]
    model = SimpleNamespace()
    exec(line, {"model": model})
    assert model.inference_modules == setting
    assert parse_setting(model.inference_modules).label == label


# Nasty text

_DATASET = cards.DatasetFacts


def everywhere(nasty):
    """Puts a text into every place of a card that takes text."""
    nasty_task = dataclasses.replace(task("svamp", "SVAMP", 10), title=nasty, version=nasty)
    modes = {**nasty_task.modes, nasty or "x": nasty_task.modes["all"]}
    evaluated = results(dataclasses.replace(nasty_task, modes=modes))
    evaluated = dataclasses.replace(
        evaluated, environment={"versions": {"lm-eval": nasty}, "hardware": {"name": nasty}, "date": nasty}
    )
    return dataclasses.replace(
        EVERYTHING,
        repo_id=nasty,
        default=nasty,
        method=nasty,
        base_model=nasty,
        license_fields={"license": nasty, "license_name": nasty, "license_link": nasty},
        tags=(nasty,),
        widget=(nasty,),
        datasets=(nasty,),
        adapter_path=nasty,
        adapter_config={"peft_type": "LORA", "r": 8, "lora_alpha": nasty, "lora_dropout": nasty},
        parts={nasty: cards.RolePart(1, 2, (3,), 0.5)},
        training=cards.Training(
            datasets=(_DATASET(nasty, nasty, nasty, 1, 2, nasty, nasty), _DATASET(nasty, url=nasty)),
            hyperparameters={nasty: nasty},
            hardware={nasty: nasty},
            versions={nasty: nasty},
            co2_eq_emissions={nasty: nasty},
        ),
        figures=(cards.Figure(f"figures/{nasty}.png", nasty),),
        results=evaluated,
        taia_version=nasty,
    )


@pytest.mark.parametrize("nasty", NASTY)
def test_no_text_breaks_out_of_its_place(nasty):
    text = cards.render_card(everywhere(nasty))
    plain = cards.render_card(everywhere("harmless"))
    assert [len(line.split()[0]) for line in headings(text)] == [len(line.split()[0]) for line in headings(plain)]
    assert headings(text)[1:] == headings(plain)[1:]
    assert text.count("\n```") == plain.count("\n```")
    assert len(cards.merge_cards(text, text).kept) == 0
    body = text.split("\n---\n", 1)[1]
    ours = [mark for mark in re.findall(r"<!--.*?-->", body) if mark.startswith("<!-- taia:")]
    assert len(ours) == len(re.findall(r"<!--.*?-->", plain.split("\n---\n", 1)[1]))
    for line in body.splitlines():
        if not line.startswith("<!-- taia:"):
            assert "<" not in line, line
    links = re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```$", "", body, flags=re.MULTILINE | re.DOTALL))
    assert not re.search(r"(?<!\\)\]\((?!https?://|figures/|taia_results|taia_tuning|\))", links)
    for line, other in zip(_table_lines(text), _table_lines(plain), strict=True):
        assert len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"(?<!\\)\|", other)), line


@pytest.mark.parametrize("nasty", NASTY)
def test_a_markdown_parser_sees_the_same_structure_whatever_the_text(nasty):
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable("table")

    def structure(text):
        blocks = parser.parse(text.split("\n---\n", 1)[1])
        inline = [child for block in blocks for child in block.children or ()]
        html = [token.content for token in (*blocks, *inline) if token.type.startswith("html")]
        links = [str(dict(token.attrs).get("href", "")) for token in inline if token.type == "link_open"]
        assert all(content.lstrip().startswith("<!-- taia:") for content in html)
        assert all(link.startswith("https://") or link in ("taia_results.json", "taia_tuning.json") for link in links)
        return [block.type for block in blocks]

    # a code span and plain text are both inline: what stands in one place is still one place
    assert structure(cards.render_card(everywhere(nasty))) == structure(cards.render_card(everywhere("harmless")))


@pytest.mark.parametrize("nasty", NASTY)
def test_metadata_gives_nasty_text_back_on_one_line(nasty):
    metadata = ModelCard(cards.render_card(everywhere(nasty)), ignore_metadata_errors=False).data.to_dict()
    wanted = cards.escaping.plain(nasty)
    if wanted:
        assert metadata["license_name"] == wanted
        assert wanted in metadata["tags"]
        assert metadata["widget"][0]["text"].split() == wanted.split()
    assert metadata["library_name"] == "taia-hub"


@pytest.mark.parametrize("nasty", NASTY)
def test_python_of_a_nasty_card_still_compiles_and_names_the_text(nasty):
    text = cards.render_card(everywhere(nasty))
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        compile(block.encode("utf-8", "replace"), "card", "exec")
    if "\ud800" not in nasty:
        names = {}
        found = re.search(r"AutoTokenizer\.from_pretrained\((.*)\)$", blocks[0], re.MULTILINE)
        exec(f"name = {found[1]}", names)
        assert names["name"] == nasty


@pytest.mark.parametrize("nasty", NASTY)
def test_other_cards_take_nasty_text_too(nasty):
    merged = dataclasses.replace(MERGED, repo_id=nasty, source=nasty, setting=nasty, dtype=nasty, sha256={nasty: nasty})
    space = dataclasses.replace(SPACE, title=nasty, models=(nasty,), short_description=nasty)
    for data, original in ((merged, MERGED), (space, SPACE)):
        text, plain = cards.render_card(data), cards.render_card(original)
        assert len(headings(text)) == len(headings(plain))
        assert headings(text)[1:] == headings(plain)[1:]
        assert yaml.safe_load(text.split("---\n")[1])
        for line in text.split("\n---\n", 1)[1].splitlines():
            assert line.startswith("<!-- taia:") or "<" not in line, line


def _table_lines(text):
    return [line for line in text.splitlines() if line.startswith("|")]


# Templates


def test_a_users_template_overrides_a_block(tmp_path):
    (tmp_path / "model_card.md.j2").write_text(
        '{% extends "taia/model_card.md.j2" %}\n'
        "{% block limits %}\n## Limits\n\nOurs: {{ card.repo_id | md }}.\n{% endblock %}"
    )
    text = cards.render_card(EVERYTHING, template_dir=tmp_path)
    assert "Ours: org/model-taia.\n" in text
    assert "leans on what the base model knows" not in text
    assert text.split("## Limits")[0] == render("everything").split("## Limits")[0]


def test_a_users_partial_overrides_ours(tmp_path):
    (tmp_path / "sections").mkdir()
    (tmp_path / "sections" / "citation.md.j2").write_text("## Cite us\n\nPlease.\n")
    text = cards.render_card(EVERYTHING, template_dir=tmp_path)
    assert text.endswith("\nPlease.\n")
    assert "bibtex" not in text


def test_a_user_may_add_a_template(tmp_path):
    (tmp_path / "tiny.md.j2").write_text("# {{ card.repo_id | md }}\n\nTiny.\n")
    assert "Tiny." in cards.render_card(EVERYTHING, "tiny", tmp_path)
    with pytest.raises(ConfigError, match=r"no template 'shrt'\. Did you mean 'short'"):
        cards.render_card(EVERYTHING, "shrt")


@pytest.mark.parametrize(
    ("source", "line", "message"),
    [
        ("# x\n\n{{ card.repo }}\n", 3, "has no attribute 'repo'"),
        ("# x\n{{ summry }}\n", 2, "'summry' is undefined.* Did you mean 'summary'"),
        ("# x\n\n\n{% if card %}\n", 4, "broken: Unexpected end of template"),
        ("# x\n{{ card.repo_id | shout }}\n", 2, "No filter named 'shout'"),
        ('# x\n{% include "nowhere.md.j2" %}\n', 2, "asks for 'nowhere.md.j2'"),
        ("# x\n{{ card.repo_id + 1 }}\n", 2, "fails: can only concatenate"),
        ("# x\n{{ 1 / 0 }}\n", 2, "fails: division by zero"),
    ],
)
def test_a_broken_template_is_named_with_its_line(tmp_path, source, line, message):
    path = tmp_path / "model_card.md.j2"
    path.write_text(source)
    with pytest.raises(ConfigError, match=f"{re.escape(str(path))}:{line} .*{message}") as caught:
        cards.render_card(EVERYTHING, template_dir=tmp_path)
    assert "Mend the file" in caught.value.hint


def test_a_broken_partial_is_named_with_its_own_line(tmp_path):
    (tmp_path / "sections").mkdir()
    (tmp_path / "sections" / "use.md.j2").write_text("## Use\n\n{{ nothing }}\n")
    with pytest.raises(ConfigError, match=r"sections/use\.md\.j2:3 fails: 'nothing' is undefined"):
        cards.render_card(EVERYTHING, template_dir=tmp_path)


def test_a_template_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        cards.render_card(EVERYTHING, template_dir=tmp_path / "no")


def test_the_templates_are_found_in_a_checkout_and_in_a_wheel(tmp_path, monkeypatch):
    assert (rendering.templates_dir() / "model_card.md.j2").is_file()
    package = tmp_path / "taia_hub"
    (package / "cards").mkdir(parents=True)
    monkeypatch.setattr(rendering, "__file__", str(package / "cards" / "rendering.py"))
    assert rendering.templates_dir() == tmp_path / "templates"
    (package / "_templates").mkdir()
    assert rendering.templates_dir() == package / "_templates"


def test_shas_on_the_card_are_whole():
    assert BASE_SHA in render("everything")
    assert EVERYTHING.adapter_sha256 in render("everything")
