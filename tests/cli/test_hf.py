"""`hf taia …`: the console script that `hf extensions install` looks for, run the way `hf` runs it."""

import datetime
import sys
from pathlib import Path

import pytest
from huggingface_hub.cli import extensions

import taia_hub

ROOT = Path(taia_hub.__file__).parents[1]


@pytest.fixture
def hf(tmp_path, monkeypatch, capfd):
    """Installs the script as pip writes it, and returns what runs `hf WORDS` for a command that `hf` does not know."""
    scripts = (ROOT / "pyproject.toml").read_text().partition("[project.scripts]")[2].partition("\n\n")[0]
    entry = next(line.split('"')[1] for line in scripts.splitlines() if line.startswith("hf-taia"))
    module, _, function = entry.partition(":")
    folder = tmp_path / "extensions" / "hf-taia"
    script = folder / "venv/bin/hf-taia"
    script.parent.mkdir(parents=True)
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    script.chmod(0o755)
    monkeypatch.setattr(extensions, "EXTENSIONS_ROOT", tmp_path / "extensions")
    monkeypatch.setattr(extensions.constants, "HF_HUB_DISABLE_UPDATE_CHECK", True)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    extensions.ExtensionManifest(
        owner="somebody",
        repo="hf-taia",
        repo_id="somebody/hf-taia",
        short_name="taia",
        executable_path=str(script),
        type="python",
        installed_at=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    ).save(folder)

    def run(*words):
        status = extensions.dispatch_unknown_top_level_extension([*words], {"auth", "download"})
        return status, *capfd.readouterr()

    return run


def test_hf_runs_the_commands(hf):
    status, out, err = hf("taia", "compare", "--help")
    assert (status, err) == (0, "")
    assert out.startswith("Usage: hf taia compare")


def test_hf_gets_the_exit_status_and_the_message(hf):
    status, out, err = hf("taia", "compare", "org/model-taia")
    assert (status, out) == (1, "")
    assert err.startswith("Error: There is no prompt")
    assert "Traceback" not in err
