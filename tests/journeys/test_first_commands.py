"""A person's first commands: from nothing, with an adapter, with data, and with slips."""

import io
import json
import re
from pathlib import Path

import pytest
from huggingface_hub.utils import disable_progress_bars

from taia_hub.cli import COMMANDS
from tests.evaluation.conftest import _environment, _task_files  # noqa: F401 - lm-eval's index is read once

NEVER = re.compile(r"Traceback|snapshots/|models--|\bblobs/|404 Client Error|pip install (?!\")")
"""What nobody should read: a traceback, a path in the cache, the words of a library."""


@pytest.fixture
def step(taia, tmp_path, monkeypatch):
    """Runs a command in a folder of this journey, looks at its status and what it says; returns (output, error)."""
    monkeypatch.chdir(tmp_path)

    def run(*words, status=0, said="", typed=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        with disable_progress_bars():  # as in a process of its own, where they are late
            found, out, err = taia(*words)
        assert found == status, f"taia {' '.join(map(str, words))}\n{out}\n{err}"
        assert not NEVER.search(out + err), out + err
        lines = [line for line in (out + err).splitlines() if len(line) > 30]
        assert status == 0 or len(lines) == len(set(lines)), f"said twice:\n{out + err}"
        for part in [said] if isinstance(said, str) else said:
            assert part in out + err, f"{part!r} is not in\n{out + err}"
        return out, err

    return run


@pytest.fixture(scope="module")
def names(_published):
    """A name space that these journeys may write to, with a base model and two adapters."""
    online = _published
    online.push_base("trip/base")
    online.push_adapter("trip/lora", base="trip/base")
    return online


def test_from_nothing(step):
    out, _ = step(said=["demo", "compare", "taia --help"])
    shown = re.findall(r"^  ([a-z]+)  ", out, re.MULTILINE)
    for name in shown:
        step(name, "--help", said=["Usage: taia", "Examples:", f"taia {name}"])
    out, _ = step("--help")
    assert all(f"\n  {name}" in out for name in COMMANDS)
    step("-h", said="Try it:")
    step("--version", said="taia-hub ")
    step("hub", "--help", said="serve")
    step("space", "--help", said="create")
    step("reproduce", "--list", said="lora")


def test_somebody_with_an_adapter(names, step):
    few = ("--max-new-tokens", 3)
    step("info", "trip/lora", said=["trip/base", "attention", "ffn"])
    step("compare", "trip/lora", "the", *few, said=["base", "TAIA", "vanilla"])
    step("generate", "trip/lora", "the", *few, "--mode", "taia", "--mode", "base")
    step("chat", "trip/lora", *few, typed="the\n/mode all\nthe\n/mode\n/exit\n", said="all")
    step("create", "trip/lora", "--out", "model-taia", said=["Written to model-taia", "8 modules"])
    step("info", "model-taia", said="trip/base")
    step("push", "model-taia", "trip/model-taia", said="Published")
    step("card", "trip/model-taia", "--check", said="none is wrong")
    Path("items.jsonl").write_text(
        '{"id": "1", "question": "the", "answer": "A", "answer_type": "choice", "choices": ["end", "he"]}\n'
    )
    step("eval", "trip/model-taia", "--task", "items.jsonl", "--mode", "none", "--mode", "attention", said="items")
    assert Path("trip--model-taia.results.json").is_file()
    step("card", "trip/model-taia", "--results", "trip--model-taia.results.json", "--push", "--yes", said="Published")
    step("analyze", "trip/model-taia", said="By squared norm the update is")
    step("export", "trip/model-taia", "--mode", "attention", "--out", "lora-attention", said="takes it as it is")
    step("check", "lora-attention", said="peft")
    step("merge", "trip/model-taia", "--mode", "attention", "--out", "merged", said="Merged under 'attention'")
    step("space", "create", "trip/model-taia", "--dry-run", said="Written to")
    step("serve", "trip/model-taia", "--engine", "vllm", "--mode", "attention", "--print", said="vllm serve")


def test_somebody_with_data(names, step):
    Path("items.jsonl").write_text('{"prompt": "the", "completion": "end"}\n' * 16)
    small = ("--max-length", 16, "--rank", 2, "--batch-size", 4, "--max-steps", 2)
    training = ("train", "--base", "trip/base", "--data", "items.jsonl", *small, "--out", "trained")
    step(*training, "--dry-run", said=["items", "steps"])
    assert not Path("trained").exists()
    step(*training, said=["Trained 2 steps", "Written to ", "Next: taia compare"])
    step(*training, said="finished already")
    step("compare", "trained", "the", "--max-new-tokens", 2, "--json")
    step("push", "trained", "trip/trained", said="Published")
    step("info", "trip/trained", said="trip/base")
    step("card", "trip/trained", "--check", said="none is wrong")
    step("space", "create", "trip/trained", "--dry-run", "--out", "space", said="Written to space")


def test_with_slips(names, step, tmp_path):
    step("comapre", "trip/lora", "the", status=2, said="Did you mean 'compare'")
    step("info", status=2, said="Missing argument")
    step("info", "trip/lora", "--jsno", status=2, said="--json")
    step("info", "trip/lroa", status=1, said=["There is no folder 'trip/lroa' here", "Hint: "])
    step("compare", "trip/lora", status=1, said="There is no prompt")
    step("compare", "trip/lora", "the", "--mode", "atention", status=1, said="Did you mean 'attention'")
    step("compare", "trip/lora", "the", "--dtype", "float99", status=1, said="Choose")
    step("eval", "trip/lora", status=1, said="No task was given")
    step("eval", "trip/lora", "--task", "items.jsnl", status=1, said="items.jsnl")
    step("train", "--base", "trip/base", "--data", "absent.jsonl", "--out", "x", status=1, said="absent.jsonl")
    Path("broken.jsonl").write_text('{"prompt": "the"}\n{"prompt": "the", "completion":\n')
    step("train", "--base", "trip/base", "--data", "broken.jsonl", "--out", "x", status=1, said="broken.jsonl:2")
    step("create", "trip/lora", status=1, said="--out DIR or --push REPO")
    step("create", "trip/lora", "trip/base", "--out", "x", status=1, said="trip/lora")
    step("push", "absent", "trip/x", status=1, said="absent")
    step("export", "trip/lora", "--mode", "none", "--out", "x", status=1, said="Hint: ")
    step("merge", "trip/lora", status=1, said="--out")
    step("check", "trip/absent", status=1, said="trip/absent")
    step("card", "trip/lora", "--check", "--write", status=1, said="--check")
    step("serve", "trip/lora", "--engine", "vlm", status=1, said="vllm")
    step("analyze", "trip/lora", "--mode", "all", status=1, said="--texts")
    step("space", "create", "trip/absent", "--dry-run", status=1, said="trip/absent")
    step("hub", status=2, said="serve")
    step("chat", "trip/absent", status=1, said="trip/absent")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"broken.jsonl"}, left
    assert json.loads(step("info", "trip/lora", "--json")[0])["base_model"] == "trip/base"
