"""What a type checker, and so an editor, knows of the public functions."""

import subprocess
import sys
import typing
from pathlib import Path

import pytest

import taia_hub
from taia_hub.switch.modes import MODES

ROOT = Path(taia_hub.__file__).parents[1]
CODE = """
from collections.abc import Mapping

from taia_hub import Mode, TAIAForCausalLM, TAIAModel, evaluate
from taia_hub.compare import Comparison, compare
from taia_hub.results import Results

model = TAIAForCausalLM.from_pretrained("org/model-taia", inference_modules="all")
reveal_type(model)
reveal_type(TAIAModel.from_adapter("org/base", "org/adapter"))
reveal_type(TAIAForCausalLM.from_finetuned("org/base", "org/tuned"))
with model.using("attention") as inside:
    reveal_type(inside)
with model.using({"attention": 1, "ffn": 0.5}):
    reveal_type(model.status().roles["ffn"].acting)
model.eval()
model.generate(max_new_tokens=3)
mode: Mode = "attention"
model.inference_modules = mode
reveal_type(compare(model, None, "the", ["none", {"ffn": 0.5}]))
reveal_type(evaluate(model, ["task"], modes=["none"]))
wrong: Mode = "atention"  # wrong
model.using(3)  # wrong
TAIAForCausalLM.from_adapter("org/base", "org/adapter", inference_modules=0.5)  # wrong
"""


@pytest.mark.slow
def test_what_mypy_infers(tmp_path):
    path = tmp_path / "code.py"
    path.write_text(CODE)
    done = subprocess.run(  # in the repository, where mypy keeps what it knows of the packages
        [sys.executable, "-m", "mypy", str(path)], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    lines = [line for line in done.stdout.splitlines() if "code.py:" in line]
    shown = [line.split('"')[1].rpartition(".")[2] for line in lines if "Revealed type" in line]
    assert shown == [
        "TAIAForCausalLM",
        "TAIAModel",
        "TAIAForCausalLM",
        "TAIAForCausalLM",
        "int",
        "Comparison",
        "Results",
    ]
    errors = [line for line in lines if ": error: " in line]
    wrong = [number for number, line in enumerate(CODE.splitlines(), 1) if line.endswith("# wrong")]
    assert [int(line.split(":")[1]) for line in errors] == wrong
    assert len(wrong) == 3


def test_types_can_be_read_at_run_time():
    assert typing.get_args(taia_hub.Mode) == ("attention", "ffn", "all", "none")
    assert set(MODES) == set(typing.get_args(taia_hub.Mode))


def test_the_package_lists_its_own_names():
    assert dir(taia_hub) == sorted(taia_hub.__all__)
    assert all(getattr(taia_hub, name) is not None for name in dir(taia_hub))
