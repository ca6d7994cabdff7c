"""How taia-hub is installed is said in one place, and what it says works: without a compiler."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from taia_hub.common import installing
from taia_hub.common.installing import extra_command, install_command, requirement

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
PURE = "rouge-score,sqlitedict,word2number"
"""Dependencies of lm-eval without a wheel of the version that it takes: Python alone, so that nothing is compiled."""


@pytest.mark.parametrize(
    ("source", "plain", "with_extra"),
    [
        ("index", "pip install taia-hub", 'pip install "taia-hub[eval]"'),
        (
            "git+https://example.org/taia-hub",
            'pip install "taia-hub @ git+https://example.org/taia-hub"',
            'pip install "taia-hub[eval] @ git+https://example.org/taia-hub"',
        ),
        (None, "pip install .  # in a clone", 'pip install ".[eval]"  # in a clone'),
    ],
)
def test_the_line_follows_from_where_the_package_is(monkeypatch, source, plain, with_extra):
    monkeypatch.setattr(installing, "SOURCE", source)
    assert install_command().startswith(plain)
    assert install_command("eval").startswith(with_extra)
    found = with_extra.removeprefix('pip install "').removesuffix('"')
    assert requirement("eval") == (found if source else None)


def test_an_extra_is_added_to_the_clone_that_runs():
    assert extra_command("eval") == f'pip install -e "{ROOT}[eval]"'


def test_no_line_is_written_by_hand():
    own = re.compile(r"pip3? install[^\n]*taia[-_]hub|taia[-_]hub\[|taia[-_]hub @")
    files = [path for folder in ("taia_hub", "templates", "spaces") for path in (ROOT / folder).rglob("*")]
    written = [path for path in files if path.suffix in (".py", ".j2", ".md", ".txt", ".toml")]
    assert len(written) > 100
    found = {str(path.relative_to(ROOT)) for path in written if own.search(path.read_text(encoding="utf-8"))}
    assert found == {"taia_hub/common/installing.py", "spaces/compare/requirements.txt"}  # the latter names packages


def test_the_readme_says_the_same_lines():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line for line in re.findall(r"(?<!bin/)pip install [^\n`]+", text) if "vllm" not in line]
    assert len(lines) >= 3
    for line in lines:
        extra = re.search(r"\[(\w+)\]", line)
        assert line.startswith(install_command(extra[1] if extra else None).partition("  #")[0]), line


@pytest.mark.network
@pytest.mark.slow
def test_no_extra_needs_a_compiler():
    assert {"demo", "serve", "test"} < EXTRAS.keys()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    only = ["--only-binary=:all:", f"--no-binary={PURE}", "-c", "tests/constraints.txt"]
    # all at once: what is found for all is found for each, in a seventh of the time
    result = subprocess.run([*pip, *only, f".[{','.join(EXTRAS)}]"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
