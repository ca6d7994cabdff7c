"""Values that show themselves: printed, at the prompt, in a notebook."""

import dataclasses
from types import SimpleNamespace

from taia_hub.compare import compare
from taia_hub.results import ModelIdentity, Results


def in_a_notebook(value):
    html = value._repr_html_()
    assert "<script" not in html
    return html


def test_the_status_is_a_table(pico):
    model = pico.taia("llama")
    shown = str(model.status())
    lines = shown.splitlines()
    assert lines[0] == "inference modules: attention"
    assert lines[1].split() == ["role", "adapted", "acting", "masked", "weights", "parameters"]
    assert lines[2].split()[:4] == ["attention", "8", "8", "0"]
    assert lines[3].split()[:4] == ["ffn", "6", "0", "6"]
    assert "<pre>inference modules" in in_a_notebook(model.status())
    model.fuse({"attention": 1, "ffn": 0.5})
    assert str(model.status()).splitlines()[0] == "inference modules: attention=1, ffn=0.5, fused into the weights"


def test_reports_show_what_was_done(pico, tmp_path):
    model = pico.taia("llama")
    assert "Fused 'all' into 14 modules" in str(model.fuse("all"))
    model.unfuse()
    merged = model.merge(tmp_path / "merged", inference_modules="all")
    assert str(merged).startswith("Merged under 'all': 8 attention, 6 ffn modules.")
    exported = model.export_adapter(tmp_path / "lora", inference_modules="attention")
    assert "8 attention modules, rank 4" in str(exported)
    assert "vllm" in in_a_notebook(exported)


def test_a_comparison_and_results_show_themselves_and_nothing_in_them_is_markup(pico, tokenizer):
    evil = "<script>alert(1)</script>"
    found = compare(pico.taia("llama"), tokenizer, "the", ["none", "all"], max_new_tokens=2, chat=False)
    found = dataclasses.replace(found, answers=tuple(dataclasses.replace(one, text=evil) for one in found.answers))
    assert "&lt;script&gt;" in in_a_notebook(found)
    assert str(found) == found.to_markdown()
    results = Results(ModelIdentity(evil, None, "org/base", None, "ab", "float32"))
    assert str(results) == "Nothing was evaluated."
    status = dataclasses.replace(pico.taia("llama").status(), unplaced=(evil,))
    assert "&lt;script&gt;" in in_a_notebook(status)


def test_a_repr_is_one_line_and_computes_nothing_while_ipython_shows_the_text(monkeypatch):
    results, shown = Results(ModelIdentity("org/model", None, "org/base", None, "ab", "float32")), []
    results._repr_pretty_(SimpleNamespace(text=shown.append), cycle=False)
    assert shown == ["Nothing was evaluated."]
    monkeypatch.setattr(Results, "to_text", None)
    assert repr([results]) == "[<Results: print it to see it>]"


def test_an_analysis_explains_its_columns_and_concludes(pico):
    from taia_hub.analysis.examining import examine

    shown = str(examine(str(pico.adapter("llama")), base=str(pico.base("llama"))))
    for column in ("‖ΔW‖ F", "‖ΔW‖ 2", "eff. rank", "stable rank"):
        assert [line for line in shown.splitlines() if line.startswith(f"{column}: ")]
    assert "F / base:" not in shown
    last = shown.splitlines()[-1]
    assert last.startswith("By squared norm the update is ")
    assert "mode attention keeps" in last
