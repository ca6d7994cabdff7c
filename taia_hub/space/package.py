"""How a Space gets taia-hub: from an index, from git, or as a bundle of this package's source beside its app."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from taia_hub._version import __version__
from taia_hub.common import installing
from taia_hub.common.shipped import shipped
from taia_hub.errors import ConfigError, MissingDependencyError

NAME = "taia-hub"
BUNDLE = "bundle"
PACKAGE = Path(__file__).parents[1]
_SUFFIXES = {".py", ".j2", ".yaml", ".css"}
_OTHERS = {
    *("py.typed", "serving/guide.md", "training/configs/deepspeed.json", "evaluation/tasks/_generation_yaml"),
    *("demo/data/SOURCES.md", "demo/data/medical_train.jsonl", "demo/data/medical_heldout.jsonl"),
    *("demo/data/instructions_heldout.jsonl", "demo/data/maths_heldout.jsonl", "_templates/huggingface_js.ts"),
    *("retaining/data/SOURCES.md", "retaining/data/general_texts.jsonl"),
}
"""With these suffixes, all that ships: a clone may hold notes, data or weights besides, and a Space is public."""
_GIT = re.compile(r"git\+https://[^\s/#?@:]+(?::\d+)?/[^\s#?]+")
_ALLOWED = f"Give a version that an index has, git+https://HOST/PATH[@REVISION], or {BUNDLE} for the source itself."


@dataclass(frozen=True)
class SpacePackage:
    """How a Space gets taia-hub.

    Attributes:
        requirements: The lines of its requirements that bring it, or what a bundle needs.
        files: Path to content of what lies beside the app.
    """

    requirements: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)


def read_package(asked: str | None = None) -> SpacePackage:
    """Returns how a Space gets taia-hub.

    Args:
        asked: A version, a `git+https` address, or `"bundle"`; None for the running version where an index has it, and
            a bundle otherwise.

    Raises:
        ConfigError: If it is none of these, or pip finds no such version.
        MissingDependencyError: If a bundle is asked for and the package runs without being installed.
    """
    is_clone = (PACKAGE.parent / "pyproject.toml").is_file()
    if asked is None and installing.SOURCE == "index" and not is_clone:
        return SpacePackage((f"{NAME}[space]=={__version__}",))
    if asked is None or asked == BUNDLE:
        return SpacePackage(dependencies(), source_files())
    if "/" in asked or asked.startswith("git+"):
        return SpacePackage((f"{NAME}[space] @ {_checked_address(asked)}",))
    return SpacePackage((f"{NAME}[space]=={_checked_version(asked)}",))


def source_files() -> dict[str, bytes]:
    """Returns the files of this package, as they lie in a folder from which it can be imported."""
    roots = {PACKAGE.name: PACKAGE, f"{PACKAGE.name}/_templates": shipped("templates")}
    found = {}
    for prefix, root in roots.items():
        for path in sorted(root.rglob("*")):
            name = PurePosixPath(prefix, path.relative_to(root).as_posix())
            # what an editor left, and the app itself, which lies at the top of the Space
            private = any(part.startswith((".", "__pycache__")) or part == "_spaces" for part in name.parts)
            if (
                path.is_file()
                and not private
                and (path.suffix in _SUFFIXES or name.relative_to(PACKAGE.name).as_posix() in _OTHERS)
            ):
                found[str(name)] = path.read_bytes()
    return found


def dependencies(package: str = NAME, extra: str = "space") -> tuple[str, ...]:
    """Returns what an installed package needs with an extra, each pinned to its installed version.

    Raises:
        MissingDependencyError: If it, or something that it needs, is not installed.
    """
    try:
        lines = _needed(package, extra)
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingDependencyError(
            f"A Space with the source of {package} lists what that needs, and '{error.name}' is not installed here.",
            f"Install {package} with its extra `{extra}`, or give --package another value. {_ALLOWED}",
        ) from error
    return tuple(sorted(lines, key=str.lower))


def _needed(package: str, extra: str) -> set[str]:
    lines = set()
    for text in importlib.metadata.requires(package) or ():
        one = Requirement(text)
        if one.marker is not None and not one.marker.evaluate({"extra": extra}):
            continue
        if one.name == package:  # an extra that is made of others
            for other in one.extras:
                lines |= _needed(package, other)
            continue
        extras = f"[{','.join(sorted(one.extras))}]" if one.extras else ""
        lines.add(f"{one.name}{extras}=={importlib.metadata.version(one.name).partition('+')[0]}")
    return lines


def _checked_address(asked: str) -> str:
    if _GIT.fullmatch(asked):
        return asked
    if "@" in asked:  # not shown: what stands before it may be secret
        raise ConfigError(
            "The address of --package is of another form, or holds a name or a token, and everybody reads a Space's "
            "requirements.",
            f"Give one that needs none. {_ALLOWED}",
        )
    raise ConfigError(f"--package {asked!r} is an address of another form.", _ALLOWED)


def _checked_version(asked: str) -> str:
    """Asks pip, with its own settings, whether an index has a version."""
    try:
        version = str(Version(asked))
    except InvalidVersion as error:
        raise ConfigError(f"--package {asked!r} is no version.", _ALLOWED) from error
    words = ["install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet", "--retries", "1"]
    done = subprocess.run([sys.executable, "-m", "pip", *words, f"{NAME}=={version}"], capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        reason = next((line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")), "".join(said[-1:]))
        raise ConfigError(f"pip finds no {NAME} {version}: {reason}", _ALLOWED)
    return version
