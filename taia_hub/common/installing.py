"""How taia-hub is installed: the one place that says it, for cards, hints and Spaces."""

from __future__ import annotations

from pathlib import Path

from taia_hub._version import __version__

SOURCE: str | None = None
"""Where anyone gets it: `"index"` once a package index has it, or an address such as `"git+https://…"`.

None as long as there is neither: a clone is what works then.
"""


def requirement(extra: str | None = None) -> str | None:
    """Returns taia-hub as a line of a requirements file, for any machine; None where only a clone has it.

    Example:
        >>> requirement("eval") is None or requirement("eval").startswith("taia-hub[eval]")
        True
    """
    if SOURCE is None:
        return None
    name = f"taia-hub[{extra}]" if extra else "taia-hub"
    return name if SOURCE == "index" else f"{name} @ {SOURCE}"


def install_command(extra: str | None = None) -> str:
    """Returns the line that installs taia-hub on a machine that does not have it, for cards and documents.

    Example:
        >>> install_command("eval")
        'pip install ".[eval]"  # in a clone of taia-hub, which no package index has yet'
    """
    found = requirement(extra)
    if found is None:
        place = f'".[{extra}]"' if extra else "."
        return f"pip install {place}  # in a clone of taia-hub, which no package index has yet"
    return f'pip install "{found}"' if found != "taia-hub" else f"pip install {found}"


def wheel_requirement(extra: str, folder: str) -> str:
    """Returns the requirement of this version's wheel in a folder, by its absolute path.

    Example:
        >>> wheel_requirement("eval", "/wheels").startswith("taia-hub[eval] @ file:///wheels/taia_hub-")
        True
    """
    return f"taia-hub[{extra}] @ file://{folder}/taia_hub-{__version__}-py3-none-any.whl"


def extra_command(extra: str) -> str:
    """Returns the line that adds an extra to the taia-hub that runs here, from any folder and without an index.

    Of an installed package pip reads the extras where it stands; a clone is named by its folder.

    Example:
        >>> "[eval]" in extra_command("eval")
        True
    """
    root = Path(__file__).parents[2]
    if (root / "pyproject.toml").is_file():
        return f'pip install -e "{root}[{extra}]"'
    return f'pip install "taia-hub[{extra}]"'
