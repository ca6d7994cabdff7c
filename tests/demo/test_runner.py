"""The demo: samples, losses, intervals, conclusions, and the child process; once with the real model."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from taia_hub.common.chat import chat_tokens
from taia_hub.demo import DemoReport, base, run_demo, runner, stages
from taia_hub.demo.evaluation import (
    COMPARED,
    MODES,
    DomainLosses,
    Interval,
    ItemLoss,
    answer_losses,
    mode_table,
    summarise,
)
from taia_hub.demo.report import conclusions, table_text
from taia_hub.demo.samples import DOMAINS, TRAINED_DOMAIN, TRAINING_SAMPLE, Item, load_items
from taia_hub.errors import ConfigError, MissingDependencyError, RepositoryError, TAIAError
from taia_hub.local_hub import LocalHub
from taia_hub.training.encoding import IGNORED_LABEL, Encoder

DATA = Path(base.__file__).with_name("data")
ITEMS = [Item("1", "what is gout", "a joint"), Item("2", "who", "the cat and the dog"), Item("3", "why is it", "no")]


@pytest.fixture(scope="module")
def chat_tokenizer(tokenizer):
    clone = type(tokenizer).from_pretrained(_saved(tokenizer))
    clone.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}?{% else %} {{ m.content }}{{ eos_token }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %} {% endif %}"
    )
    return clone


def _saved(tokenizer, folder=None):
    folder = folder or Path(os.environ["HF_HOME"]) / "demo-tokenizer"
    tokenizer.save_pretrained(folder)
    return folder


# --- Samples -------------------------------------------------------------------------------------------------------
def test_held_out_items_are_not_trained_on():
    def plain(text):
        return " ".join(text.lower().split()).rstrip(" ?.")

    trained = load_items(TRAINING_SAMPLE)
    questions, answers = ({plain(getattr(item, name)) for item in trained} for name in ("question", "answer"))
    assert len(trained) == 480
    for sample in DOMAINS.values():
        for item in load_items(sample):
            assert plain(item.question) not in questions, item.id
            assert plain(item.answer) not in answers, item.id


def test_samples_are_small_named_once_and_have_a_source():
    sources = (DATA / "SOURCES.md").read_text()
    files = sorted(path.name for path in DATA.glob("*.jsonl"))
    assert files == sorted(f"{sample}.jsonl" for sample in (TRAINING_SAMPLE, *DOMAINS.values()))
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 900_000
    for name in files:
        items = load_items(name.removesuffix(".jsonl"))
        assert f"| `{name}` | {len(items)} |" in sources
        assert len({item.id for item in items}) == len(items)
    assert next(iter(DOMAINS)) == TRAINED_DOMAIN


# --- Tokens and losses ---------------------------------------------------------------------------------------------
def _encoded(tokenizer, item):
    return Encoder(tokenizer).encode(
        [{"role": "user", "content": item.question}, {"role": "assistant", "content": item.answer}]
    )


def _count(encoded):
    return sum(label != IGNORED_LABEL for label in encoded.labels)


def _plain_nats(model, item) -> float:
    """The item alone, all its logits, the loss by transformers."""
    with torch.no_grad():
        found = model(input_ids=torch.tensor([item.input_ids]), labels=torch.tensor([item.labels]))
    return found.loss.item() * _count(item)


def test_the_answer_and_the_end_mark_are_measured(chat_tokenizer):
    encoded = _encoded(chat_tokenizer, ITEMS[0])
    answer = [label for label in encoded.labels if label != IGNORED_LABEL]
    assert answer[-1] == chat_tokenizer.eos_token_id
    assert chat_tokenizer.decode(encoded.input_ids[: -len(answer)]) == "what is gout? "


def test_answer_losses_keep_the_order_of_the_items(pico, chat_tokenizer):
    model, done = pico.plain("llama"), []
    losses = answer_losses(model, chat_tokenizer, ITEMS, progress=lambda *counts: done.append(counts))
    encoded = [_encoded(chat_tokenizer, item) for item in ITEMS]
    assert [loss.tokens for loss in losses] == list(map(_count, encoded))
    assert [loss.nats for loss in losses] == pytest.approx([_plain_nats(model, item) for item in encoded], rel=1e-5)
    assert done == [("evaluation", 1, 3), ("evaluation", 2, 3), ("evaluation", 3, 3)]


def test_table_measures_each_mode_and_restores_the_setting(pico, chat_tokenizer):
    model, done = pico.taia("llama"), []
    domains = {"one": ITEMS[:2], "two": ITEMS[2:]}
    table = mode_table(model, chat_tokenizer, domains, progress=lambda *counts: done.append(counts))
    references = {
        "none": pico.plain("llama"),
        "all": pico.peft("llama", pico.adapter("llama")),
        "attention": pico.peft("llama", pico.narrowed("llama", "attention")),
    }
    encoded = [_encoded(chat_tokenizer, item) for item in ITEMS[:2]]
    tokens = sum(map(_count, encoded))
    for mode, reference in references.items():
        expected = sum(_plain_nats(reference, item) for item in encoded) / tokens
        assert table[0].losses[mode].value == pytest.approx(expected, rel=1e-5), mode
    assert [(one.domain, one.items) for one in table] == [("one", 2), ("two", 1)]
    assert done[-1] == ("evaluation", 12, 12)
    assert model.inference_modules == "attention"


# --- Intervals -----------------------------------------------------------------------------------------------------
def _alike(losses: list[ItemLoss]) -> dict[str, list[ItemLoss]]:
    return dict.fromkeys(MODES, losses)


def _losses(shift: dict[str, float]) -> dict[str, list[ItemLoss]]:
    hard = torch.rand(40, generator=torch.Generator().manual_seed(3)).mul(20).tolist()
    return {mode: [ItemLoss(nats + 10 * shift.get(mode, 0.0), 10) for nats in hard] for mode in MODES}


def test_differences_are_paired():
    table = summarise("x", _losses({"all": 0.5}))
    assert table.losses["all"].value - table.losses["none"].value == pytest.approx(0.5)
    assert table.losses["all"].high - table.losses["all"].low > 0.2
    change = table.differences["all", "none"]
    assert (change.value, change.low, change.high) == pytest.approx((0.5, 0.5, 0.5))
    assert table.differences["attention", "all"].value == pytest.approx(-0.5)


def test_interval_is_that_of_the_mean_over_items():
    nats = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 5
    table = summarise("x", _alike([ItemLoss(value, 1) for value in nats.tolist()]))
    half = 1.96 * nats.std().item() / math.sqrt(400)
    found = table.losses["none"]
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.02)
    assert summarise("x", _alike([ItemLoss(v, 1) for v in nats.tolist()])) == table


def test_loss_is_a_token_so_that_long_answers_count_more():
    losses = _alike([ItemLoss(2.0, 1), ItemLoss(6.0, 6)])
    assert summarise("x", losses).losses["all"].value == pytest.approx(8 / 7)


def test_domain_without_items_is_refused():
    with pytest.raises(ValueError, match="'x' has no items"):
        summarise("x", _alike([]))


# --- What the numbers say ------------------------------------------------------------------------------------------
def _domain(name: str, attention: float, ffn: float, full: float, width: float = 0.01) -> DomainLosses:
    values = {"none": 1.0, "attention": 1.0 + attention, "ffn": 1.0 + ffn, "all": 1.0 + full}
    near = {mode: Interval(value, value - 0.2, value + 0.2) for mode, value in values.items()}
    changes = {(a, b): values[a] - values[b] for a, b in COMPARED}
    return DomainLosses(name, 40, near, {pair: Interval(v, v - width, v + width) for pair, v in changes.items()})


def test_conclusions_say_what_taia_is_for():
    domains = [_domain("medical", -0.3, -0.4, -0.5), _domain("maths", -0.05, -0.005, 0.06)]
    said = conclusions(domains, "medical")
    assert said[1] == (
        "maths: against the base model, attention is better by 0.050, ffn shows no clear change, all is worse by "
        "0.060. Lowest: attention."
    )
    assert "paid for medical with maths" in said[2]
    assert "keeps 60% of the gain on medical and does better on maths, with no clear loss in any domain" in said[2]


def test_conclusions_name_another_mode_where_it_is_lowest():
    said = conclusions([_domain("medical", -0.3, -0.4, -0.5), _domain("short", -0.1, -0.2, -0.05)], "medical")
    assert said[1].endswith("Lowest: ffn.")
    assert "is not clearly worse than the base model in any other domain" in said[2]


def test_conclusions_admit_harm_elsewhere():
    domains = [_domain("medical", -0.3, -0.4, -0.5), _domain("maths", 0.02, 0.03, 0.06)]
    assert conclusions(domains, "medical")[2].endswith("does better on maths.")


def test_conclusions_say_where_the_other_half_does_better():
    medical = _domain("medical", -0.3, -0.4, -0.5)
    said = conclusions([medical, _domain("maths", -0.03, -0.05, 0.06)], "medical")
    assert said[3].startswith("Here ffn (TAIF) is lower still on maths")
    assert len(conclusions([medical, _domain("maths", -0.05, -0.03, 0.06)], "medical")) == 3


@pytest.mark.parametrize(
    ("medical", "maths", "reason"),
    [
        ((-0.3, -0.4, 0.0), (-0.05, 0.0, 0.06), "no clear gain in its own domain"),
        ((-0.3, -0.4, -0.5), (0.055, 0.0, 0.06), "attention is not clearly better than all"),
    ],
)
def test_conclusions_claim_nothing_that_the_intervals_do_not_show(medical, maths, reason):
    said = conclusions([_domain("medical", *medical), _domain("maths", *maths)], "medical")
    assert "do not show what TAIA is for" in said[2]
    assert reason in said[2]


def _report(folder: Path = Path("taia-demo")) -> DemoReport:
    domains = [_domain("medical", -0.3, -0.4, -0.5), _domain("maths", -0.05, 0.01, 0.06)]
    answers = {mode: f"said by {mode}" for mode in MODES}
    return DemoReport(folder, "demo/model", 4, "medical", domains, "How much?", answers, {"training": 90.0})


def test_table_fits_a_terminal_and_marks_the_lowest():
    lines = table_text(_report().domains, "medical").splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[1:] for line in lines if line.startswith("  loss")] == [
        ["1.000", "0.700", "0.600", "0.500*"],
        ["1.000", "0.950*", "1.010", "1.060"],
    ]
    assert "-0.060..-0.040" in "\n".join(lines)


def test_report_survives_json():
    values = json.loads(json.dumps(_report().to_json()))
    assert DemoReport.from_json(values) == _report()
    assert values["conclusions"] == conclusions(_report().domains, "medical")


def test_text_holds_table_conclusions_answers_and_next_steps():
    text = _report(Path("my demo")).to_text()
    parts = ["-0.060..-0.040", "What TAIA is for", "[ffn] TAIF\nsaid by ffn", "Took 1.5 minutes (training 90 s)"]
    parts += ["taia hub serve 'my demo/hub'", "taia generate demo/model --prompt 'How much?'"]
    for part in parts:
        assert part in text


# --- Training ------------------------------------------------------------------------------------------------------
@pytest.fixture
def chat_base(pico, chat_tokenizer, tmp_path, monkeypatch):
    """A random base model with a tokenizer that has a chat template, and four short items to train on."""
    pico.plain("llama").save_pretrained(tmp_path / "base")
    _saved(chat_tokenizer, tmp_path / "base")
    lines = [json.dumps({"prompt": item.question, "completion": item.answer}) for item in ITEMS * 6]
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(stages, "sample_path", lambda sample: tmp_path / "items.jsonl")
    monkeypatch.setattr(stages, "load_items", lambda sample: ITEMS * 6)
    return tmp_path / "base"


def test_training_is_deterministic_and_used_again(chat_base, tmp_path):
    def train(name, seed=0):
        steps = []
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        model = stages.train_model(
            str(chat_base), folder, steps=3, seed=seed, progress=lambda *counts: steps.append(counts)
        )
        trained = [counts for counts in steps if counts[0] == "training"]
        return trained, load_file(model / "adapter" / "adapter_model.safetensors")

    steps, first = train("one")
    assert steps == [("training", done, 3) for done in (1, 2, 3)]
    assert all(torch.equal(tensor, train("two")[1][name]) for name, tensor in first.items())
    again, same = train("one")
    assert again == []
    assert all(torch.equal(tensor, same[name]) for name, tensor in first.items())
    steps, other = train("one", seed=1)
    assert len(steps) == 3
    assert not all(torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_a_model_that_is_not_the_demos_stays(chat_base, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    for seed in (0, 1):
        with pytest.raises(RepositoryError, match=r"something else already \(mine"):
            stages.train_model(str(chat_base), tmp_path, steps=1, seed=seed)
    assert (tmp_path / "model" / "mine.txt").read_text() == "mine"


def test_adapter_names_its_base_and_adapts_every_linear_layer(chat_base, tmp_path):
    folder = stages.train_model(str(chat_base), tmp_path, steps=1, seed=0) / "adapter"
    config = PeftConfig.from_pretrained(str(folder))
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (16, 32, str(chat_base))
    expected = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.rpartition(".")[2] for name in config.target_modules} == expected
    assert all(tensor.any() for name, tensor in load_file(folder / "adapter_model.safetensors").items())


def test_training_lowers_the_loss(chat_base, chat_tokenizer, tmp_path):
    from taia_hub import TAIAForCausalLM

    model = TAIAForCausalLM.from_pretrained(stages.train_model(str(chat_base), tmp_path, steps=30, seed=0))
    table = mode_table(model, chat_tokenizer, {"trained": ITEMS})
    assert table[0].differences["all", "none"].value < -0.5


def test_steps_below_one_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        run_demo(tmp_path / "d", steps=0)
    assert list(tmp_path.iterdir()) == []


# --- The base model ------------------------------------------------------------------------------------------------
def test_base_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependencyError, match=r"needs the module 'gguf'.*\n.*taia-hub\[demo\]"):
        base.smollm2_base(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_base_says_which_weights_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(base, "GGUF_FILE", "absent.gguf")
    with pytest.raises(RepositoryError, match=r"no absent\.gguf"):
        base.smollm2_base(tmp_path)


@pytest.mark.slow
def test_base_is_the_real_model_in_float32(smollm2):
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert (type(model).__name__, model.dtype) == ("LlamaForCausalLM", torch.float32)
    assert not hasattr(model.config, "quantization_config")
    assert all(tensor.dtype == torch.bfloat16 for tensor in load_file(smollm2 / "model.safetensors").values())
    ids = chat_tokens(tokenizer, [{"role": "user", "content": "What is the capital of France?"}])
    answer = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
    assert "Paris" in tokenizer.decode(answer)


@pytest.mark.slow
def test_base_is_used_again(smollm2):
    before = (smollm2 / "model.safetensors").stat().st_mtime_ns
    assert base.smollm2_base(smollm2.parent) == smollm2
    assert (smollm2 / "model.safetensors").stat().st_mtime_ns == before


# --- The child process ---------------------------------------------------------------------------------------------
@pytest.fixture
def child(tmp_path, monkeypatch):
    """Puts a script in the place of the demo's process."""

    def use(code: str) -> Path:
        script = tmp_path / "child"
        script.write_text(f"#!{sys.executable}\nimport json, os, sys\n{code}\n")
        script.chmod(0o755)
        monkeypatch.setattr(runner.sys, "executable", str(script))
        return tmp_path / "demo"

    return use


def test_child_talks_to_the_hub_of_the_folder_only(child, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "the-users-own")
    monkeypatch.setenv("HF_HUB_CACHE", "/the/users/own")
    report = json.dumps(_report().to_json())
    demo = child(
        f"json.dump(dict(os.environ), open({str(tmp_path / 'env')!r}, 'w'))\nprint({{'report': 0}} and "
        f"json.dumps({{'report': json.loads({report!r})}}))"
    )
    assert run_demo(demo) == _report()
    environment = json.loads((tmp_path / "env").read_text())
    assert environment["HF_ENDPOINT"].startswith("http://127.0.0.1:")
    assert environment["HF_HOME"].startswith(str(demo))
    assert environment["HF_TOKEN"] not in ("", "the-users-own")
    assert "HF_HUB_CACHE" not in environment
    assert os.environ["HF_TOKEN"] == "the-users-own"
    assert json.loads((demo / "report.json").read_text())["model_id"] == "demo/model"


def test_childs_events_reach_the_caller(child):
    demo = child(
        f"for e in ({{'log': 'first'}}, {{'progress': ['training', 1, 2]}}, {{'report': json.loads("
        f"{json.dumps(_report().to_json())!r})}}): print(json.dumps(e))"
    )
    said, counts = [], []
    run_demo(demo, log=said.append, progress=lambda *count: counts.append(count))
    assert (said, counts) == (["first"], [("training", 1, 2)])


def test_childs_error_is_the_demos(child):
    demo = child("print(json.dumps({'error': 'No room.', 'hint': 'Free some.'}))\nsys.exit(1)")
    with pytest.raises(TAIAError, match=r"The demo failed\. No room\.\nFree some\.") as caught:
        run_demo(demo)
    assert caught.value.hint == "Free some."
    assert not (demo / "report.json").exists()


def test_child_that_dies_is_an_error(child):
    with pytest.raises(TAIAError, match=r"exit status -9\.\n.*demo\.log"):
        run_demo(child("os.kill(os.getpid(), 9)"))


def test_folder_in_use_is_an_error(tmp_path):
    with LocalHub(tmp_path / "hub"), pytest.raises(RepositoryError):
        run_demo(tmp_path)


@pytest.mark.slow
def test_real_child_reports_an_unexpected_error(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "taia_hub.demo", str(tmp_path), "many", "1", "0"],
        env={**os.environ, "PYTHONPATH": str(Path(runner.__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    event = json.loads(done.stdout)
    assert done.returncode == 1
    assert event["error"].startswith("ValueError: invalid literal")
    assert "Traceback" in done.stderr


# --- The real thing ------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_demo_end_to_end(tmp_path, smollm2):
    folder = tmp_path / "taia-demo"
    folder.mkdir()
    (folder / "base").symlink_to(smollm2)
    said = []
    report = run_demo(folder, steps=2, items=4, log=said.append)
    assert len(said) == 5
    assert [one.domain for one in report.domains] == list(DOMAINS)
    assert set(report.answers) == set(MODES)
    assert all(report.answers.values())
    assert report.domains[0].losses["none"].value == pytest.approx(2.4, abs=0.8)
    assert report.domains[0].differences["all", "none"].high < 0
    shown = _with_hub(folder, "-m", "taia_hub.cli", "info", report.model_id)
    assert "demo/SmolLM2-135M-Instruct" in shown
    config = PeftConfig.from_pretrained(str(folder / "model" / "adapter"))
    assert config.base_model_name_or_path == "demo/SmolLM2-135M-Instruct"
    # A second push of base and model from the finished folders is a commit or nothing, never an error.
    again = (
        "from pathlib import Path; from taia_hub import TAIAForCausalLM; from taia_hub.demo import stages;"
        f"folder = Path({str(folder)!r}); stages.publish_base(folder / 'base');"
        "model = TAIAForCausalLM.from_adapter(stages.BASE_ID, folder / 'model' / 'adapter');"
        "print(model.push_to_hub(stages.MODEL_ID).oid)"
    )
    assert len(_with_hub(folder, "-c", again).strip()) == 40


def _with_hub(folder: Path, *arguments: str) -> str:
    with LocalHub(folder / "hub") as hub:
        environment = {**os.environ, **hub.environment(), "PYTHONPATH": str(Path(runner.__file__).parents[2])}
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
