"""`tuned`: the name of what a repository publishes, at every door that takes a mode, and in no file."""

import io
import json
import re
import shutil
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from taia_hub import TAIAForCausalLM, TrainingRecipe
from taia_hub.engines.parts import Served
from taia_hub.errors import SettingError
from taia_hub.results import Results
from taia_hub.switch.settings import parse_setting
from tests.conftest import logits, pico_tokenizer
from tests.evaluation.conftest import _environment, _task_files  # noqa: F401 - lm-eval's index is read once

MODULES = [
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
]
WEIGHTS = {
    f"model.layers.{layer}.{name}": round((7 * layer + place + 1) / 16, 4)
    for layer in range(2)
    for place, name in enumerate(MODULES)
}
"""A weight for each module, as a search may find them."""
LABEL = parse_setting(WEIGHTS).label
ASK = ("the sea", "--max-new-tokens", "4")


@pytest.fixture(scope="module")
def repo(pico, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "pico-taia"
    model = TAIAForCausalLM.from_adapter(pico.base("llama"), pico.adapter("llama"), inference_modules=WEIGHTS)
    model.save_pretrained(folder)
    pico_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def done(taia, here):
    """Runs a command that must succeed, and looks for the name in whatever it wrote; returns what it printed."""

    def run(*words):
        status, out, err = taia(*words)
        assert status == 0, err
        for path in here.rglob("*"):
            if path.suffix in (".json", ".jsonl", ".md"):
                text = path.read_text(encoding="utf-8")
                assert not re.search(r"""(setting|modes?|inference_modules)["']?(: |=|: ?\[)["']tuned""", text), path
        return out

    return run


@pytest.fixture(scope="module")
def expected(pico):
    return logits(pico.taia("llama"), pico.ids(), inference_modules=WEIGHTS)


def is_close(one, other):
    return torch.allclose(one, other, atol=1e-4)


def test_the_published_setting_has_a_label_of_a_line():
    assert re.fullmatch(r"14 weights \([0-9a-f]{8}\)", LABEL)


# Python


@pytest.mark.parametrize("name", ["tuned", "Tuned", "TUNED"])
def test_a_model_takes_the_name(repo, pico, expected, name):
    model, ids = TAIAForCausalLM.from_pretrained(repo, inference_modules="none"), pico.ids()
    assert model.inference_modules == "none"
    with model.using(name):
        assert torch.equal(logits(model, ids), expected)
        assert model.status().inference_modules == WEIGHTS
    rows = logits(model, ids, inference_modules=[name, "none"])
    assert is_close(rows[0], expected[0])
    with model.fused(name):
        assert is_close(logits(model, ids), expected)
        assert model.status().fused == WEIGHTS
    model.inference_modules = name
    assert model.inference_modules == WEIGHTS


def test_a_model_may_begin_with_it(repo, pico, expected):
    model = TAIAForCausalLM.from_pretrained(repo, inference_modules="tuned", is_trainable=True)
    assert model.inference_modules == WEIGHTS
    assert torch.equal(logits(model.eval(), pico.ids()), expected)


def test_it_follows_what_the_configuration_publishes(repo, pico):
    model = TAIAForCausalLM.from_pretrained(repo)
    with model.using("tuned"):
        pass
    model.taia_config.inference_modules = "ffn"
    with model.using("tuned"):
        assert model.status().inference_modules == "ffn"


def test_of_a_plain_adapter_it_is_what_that_loads_with(pico):
    model = TAIAForCausalLM.from_pretrained(pico.adapter("llama"))
    default = model.inference_modules
    model.inference_modules = "none"
    with model.using("tuned"):
        assert model.status().inference_modules == default == "attention"


def test_what_is_to_be_published_cannot_be_it(pico, tmp_path):
    base, adapter = pico.base("llama"), pico.adapter("llama")
    for make in (
        lambda: TAIAForCausalLM.from_adapter(base, adapter, inference_modules="tuned"),
        lambda: TrainingRecipe(inference_modules="tuned"),
        lambda: parse_setting("tuned").published,
        lambda: parse_setting("tuned").weights([]),
        lambda: parse_setting("tuned").acts,
    ):
        with pytest.raises(SettingError, match="'tuned' names the setting that a repository publishes, and none"):
            make()


@pytest.mark.parametrize("value", ["tuned+other", {"tuned": 1}, "tune"])
def test_it_is_a_mode_and_no_role(value):
    with pytest.raises(SettingError) as caught:
        parse_setting(value)
    assert "'tuned'" in str(caught.value)


# The command line


def test_info_shows_a_line(done, repo):
    assert re.search(rf"^default +{re.escape(LABEL)}$", done("info", repo), re.MULTILINE)
    assert json.loads(done("info", repo, "--json"))["inference_modules"] == [[key, one] for key, one in WEIGHTS.items()]


def test_export(done, repo, here, pico, expected):
    assert "pico-taia-tuned" in done("export", repo, "--mode", "tuned")
    base = AutoModelForCausalLM.from_pretrained(pico.base("llama"))
    assert is_close(logits(PeftModel.from_pretrained(base, here / "pico-taia-tuned").eval(), pico.ids()), expected)
    made = json.loads(done("export", repo, "--mode", "tuned", "--mode", "ffn", "--out", here / "two", "--json"))
    assert made["exports"]["tuned"]["setting"] == WEIGHTS
    assert f"`{LABEL}`" in (here / "two" / "README.md").read_text()
    assert "It is in" in done("export", repo, "--mode", "tuned")


def test_a_repository_that_publishes_another_setting_is_exported_anew(done, pico, here):
    for setting, layers in (({"*@0": 1}, "0"), ({"*@1": 1}, "1")):
        model = TAIAForCausalLM.from_adapter(pico.base("llama"), pico.adapter("llama"), inference_modules=setting)
        model.save_pretrained(here / "own")
        done("export", here / "own", "--mode", "tuned", "--out", here / "out", "--overwrite")
        found = load_file(here / "out" / "adapter_model.safetensors")
        acting = {name.split(".layers.")[1][0] for name, one in found.items() if "lora_B" in name and one.any()}
        assert acting == {layers}


def test_merge(done, repo, here, pico, expected):
    assert f"Merged under '{LABEL}'" in done("merge", repo, "--mode", "tuned", "--out", here / "merged")
    merged = AutoModelForCausalLM.from_pretrained(here / "merged").eval()
    assert is_close(logits(merged, pico.ids()), expected)
    assert "already" in done("merge", repo, "--mode", json.dumps(WEIGHTS), "--out", here / "merged")


def test_serve(done, repo, here):
    text = done("serve", repo, "--engine", "vllm", "--mode", "tuned", "--mode", "all", "--print", "--out", here / "v")
    assert "# Models: pico-taia:tuned, pico-taia:all, pico-taia:none" in text
    assert f"taia export {repo} --mode tuned --out {here}/v/adapters/tuned" in text
    assert len(load_file(here / "v" / "adapters" / "tuned" / "adapter_model.safetensors")) == 28
    # where no mode is named and what is published is long, that is its name
    text = done("serve", repo, "--engine", "vllm", "--print", "--out", here / "v")
    assert "# Models: pico-taia:tuned, pico-taia:none" in text
    text = done("serve", repo, "--engine", "transformers", "--mode", "tuned", "--print", "--out", here / "t")
    assert "pico-taia:tuned" in text
    assert (here / "t" / "merged" / "pico-taia:tuned" / "config.json").is_file()


def test_a_manifest(online, done, repo_id):
    model = online.model()
    model.taia_config.inference_modules = WEIGHTS
    model.push_to_hub(repo_id)
    for words in ((), ("--mode", "tuned")):
        text = done("serve", repo_id, *words, "--for", "kserve", "--print")
        name = repo_id.rpartition("/")[2]
        assert f"{name}:tuned" in text
        assert f"taia export {repo_id} --mode tuned --push {repo_id}-tuned" in " ".join(text.replace("#", "").split())


def test_a_name_of_a_served_model():
    models = {"m:ffn": parse_setting("ffn"), "m": parse_setting(WEIGHTS)}
    served = Served("m", models, ())
    assert served.setting("m:tuned").value == WEIGHTS
    assert served.known(parse_setting("tuned")) is models["m"]
    with pytest.raises(SettingError, match="none is at hand"):
        Served("n", {"m": parse_setting("ffn")}, ()).setting("n:tuned")


def test_eval(done, repo, here):
    (here / "items.jsonl").write_text(
        "".join(
            json.dumps({"id": str(n), "question": "the sea", "answer": "AB"[n % 2], "answer_type": "choice",
                        "choices": ["a b", "c d"]}) + "\n"
            for n in range(3)
        )
    )  # fmt: skip
    words = ("eval", repo, "--task", "items.jsonl", "--mode", "tuned", "--mode", "none", "--out", "found.json")
    assert LABEL in done(*words)
    (task,) = Results.load(here / "found.json").tasks.values()
    assert list(task.modes) == [LABEL, "none"]
    assert task.modes[LABEL].setting == WEIGHTS
    before = (here / "found.json").read_bytes()
    done(*words)  # nothing is missing
    assert (here / "found.json").read_bytes() == before


def test_eval_by_vllm(done, repo):
    text = done("eval", repo, "--task", "mmlu", "--mode", "tuned", "--backend", "vllm")
    assert f"taia export {repo} --mode tuned --out ./adapter-tuned" in text


def test_compare(done, repo, here):
    found = json.loads(done("compare", repo, *ASK, "--mode", "tuned", "--mode", "none", "--against", "tuned", "--json"))
    assert [(one["mode"], one["setting"]) for one in found["answers"]] == [(LABEL, WEIGHTS), ("none", "none")]
    (here / "p.jsonl").write_text('{"prompt": "the sea"}\n')
    words = ("compare", repo, "--file", "p.jsonl", "--out", "c.jsonl", "--mode", "tuned", "--mode", "none", *ASK[1:])
    assert LABEL in done(*words)
    before = (here / "c.jsonl").read_bytes()
    done(*words)
    assert (here / "c.jsonl").read_bytes() == before


def test_compare_several(done, repo, here, pico):
    adapter = shutil.copytree(pico.adapter("llama"), here / "adapter")
    pico_tokenizer().save_pretrained(adapter)
    out = done("compare", repo, adapter, "--prompt", *ASK, "--mode", "tuned", "--json", "--no-measures")
    labels = [one["mode"] for one in json.loads(out)["answers"]]
    assert [label.rpartition(": ")[2] for label in labels] == [LABEL, "attention"]


def test_generate_and_analyze(done, repo, here):
    found = json.loads(done("generate", repo, *ASK, "--mode", "tuned", "--json"))
    assert [one["mode"] for one in found] == [LABEL]
    (here / "t.txt").write_text("the sea\n")
    assert LABEL in done("analyze", repo, "--texts", "t.txt", "--mode", "tuned")


def test_chat(repo, monkeypatch, taia):
    monkeypatch.setattr(sys, "stdin", io.StringIO("the sea\n/mode none\n/mode tuned\n/exit\n"))
    status, _, err = taia("chat", repo, "--max-new-tokens", "4", "--mode", "tuned")
    assert status == 0
    assert err.count(f"in mode {LABEL}") == 2


def test_reproduce_has_none(taia, here):
    (here / "d.jsonl").write_text('{"prompt": "the", "completion": "sea"}\n' * 99)
    status, _, err = taia("reproduce", "lora", "--base", "b", "--data", "d.jsonl", "--mode", "tuned", "--out", "r")
    assert status == 1
    assert "'tuned' names the setting that a repository publishes" in err


def test_create_and_train_have_none(taia, here, pico):
    for words in (("create", pico.base("llama"), pico.adapter("llama"), "--out", "c"), ("train", "--out", "t")):
        status, _, err = taia(*words, "--mode", "tuned")
        assert status == 1
        assert "'tuned' names the setting that a repository publishes, and none is at hand here" in err
    assert not list(here.iterdir())
