"""The files of a Space that compares the modes of a model: values in, files out; a person's edits stay."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from taia_hub import cards
from taia_hub.common.shipped import shipped
from taia_hub.errors import ConfigError

CARD = "README.md"
REQUIREMENTS = "requirements.txt"
STATE = ".taia_space.json"
"""Holds the sha256 of each file as it was written, which tells it from one that a person changed."""

ZERO = "zero-a10g"
_ZERO_PYTHON = "3.12.12"  # ZeroGPU has Pythons of its own; transformers no longer runs on its older one, 3.10.13
_HARDWARE = ((1.2, "cpu-basic"), (56, ZERO), (76, "rtx-pro-6000"), (260, "a100x4"))
_LARGEST = "a100x8"
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)(?P<extras>\[[^\]]*\])?\s*")


@dataclass(frozen=True)
class SpaceModel:
    """The model whose modes a Space compares.

    Attributes:
        repo_id: Hub id of the TAIA repository.
        revision: Its commit sha.
        base_model: Hub id of the base model.
        base_revision: Commit sha of the base model.
        adapter_repo: Hub id of the repository that the update lies in, when it is another one.
        adapter_revision: Commit sha of that repository.
        preload: Hub id to the files that the build of the Space loads beforehand; it can read public ones only.
        licenses: Hub id to licence.
        bytes: Size of the base model's weights at 16 bits, or as they lie where they are smaller.
        closed: Hub ids that cannot be read without a token.
    """

    repo_id: str
    revision: str
    base_model: str
    base_revision: str
    adapter_repo: str | None = None
    adapter_revision: str | None = None
    preload: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    licenses: Mapping[str, str] = field(default_factory=dict)
    bytes: int = 0
    closed: tuple[str, ...] = ()

    @property
    def revisions(self) -> dict[str, str]:
        """Hub id to commit sha of all that is loaded."""
        elsewhere = {self.adapter_repo: self.adapter_revision or ""} if self.adapter_repo else {}
        return {self.repo_id: self.revision, self.base_model: self.base_revision, **elsewhere}

    @property
    def variables(self) -> dict[str, str]:
        """What the Space's app reads from its environment."""
        return {"TAIA_MODEL_ID": self.repo_id, "TAIA_REVISION": self.revision}


@dataclass(frozen=True)
class MergedSpace:
    """What changes in a Space that is brought up to date.

    Attributes:
        files: Path to new content, of the files that change.
        deleted: Paths of files of ours that are no longer there.
        kept: What of a person's stays, a sentence each.
    """

    files: Mapping[str, bytes]
    deleted: tuple[str, ...]
    kept: tuple[str, ...]


def space_files(
    model: SpaceModel,
    versions: Mapping[str, str],
    *,
    title: str | None = None,
    hardware: str | None = None,
    python: str | None = None,
) -> dict[str, bytes]:
    """Renders the files of a Space: path to content.

    `versions` (package to version) names at least Gradio. Without `hardware`, what is suggested to whoever copies the
    Space goes by the model's size; ZeroGPU has a Python of its own.

    Raises:
        ConfigError: If the title is empty.
    """
    name = model.repo_id.rpartition("/")[2]
    title = f"{name}: TAIA side by side" if title is None else title
    if not title.strip():
        raise ConfigError("The title of the Space is empty.", "Give some words, or leave it out.")
    hardware = hardware or suggested_hardware(model.bytes)
    readme = cards.render_card(
        cards.SpaceCardData(
            title=title,
            sdk_version=versions["gradio"],
            models=tuple(model.revisions),
            revisions=model.revisions,
            preload=model.preload,
            licenses=model.licenses,
            python_version=_ZERO_PYTHON if hardware.startswith("zero-") else python,
            hardware=hardware,
            short_description="Base, TAIA, TAIF and vanilla answer side by side",
            license="apache-2.0",
            tags=("comparison", "text-generation"),
        )
    )
    files = {path.relative_to(app_folder()).as_posix(): path.read_bytes() for path in _app_files()}
    files[REQUIREMENTS] = pinned(files[REQUIREMENTS].decode(), versions).encode()
    return {**files, CARD: readme.encode()}


def suggested_hardware(size: int) -> str:
    """Suggests hardware for weights of `size` bytes at 16 bits, so that they take at most four fifths of the memory.

    `cpu-basic` up to 1.2 GiB (0.6 billion parameters: more is too slow on two cores), ZeroGPU up to 56 GiB (70 GB),
    `rtx-pro-6000` up to 76 GiB (96 GB), `a100x4` up to 260 GiB (320 GB), `a100x8` above.

    Example:
        >>> suggested_hardware(270 * 2**20), suggested_hardware(16 * 2**30)
        ('cpu-basic', 'zero-a10g')
    """
    return next((name for limit, name in _HARDWARE if size <= limit * 2**30), _LARGEST)


def pinned(requirements: str, versions: Mapping[str, str]) -> str:
    r"""Pins each requirement of a file of bare names to a version; what is not known stays without one.

    Example:
        >>> pinned("torch\npeft[x]\nspaces", {"torch": "2.13.0+cpu", "peft": "0.21.2"}).split()
        ['torch==2.13.0', 'peft[x]==0.21.2', 'spaces']
    """
    lines = []
    for line in requirements.splitlines():
        match = _REQUIREMENT.fullmatch(line)
        version = versions.get(match["name"].lower()) if match else None
        # "+cpu" and the like name a build that only one index has
        lines.append(f"{line.strip()}=={version.partition('+')[0]}" if version else line)
    return "\n".join(lines) + "\n"


def required_packages() -> tuple[str, ...]:
    """Returns the names in the Space's requirements file."""
    lines = (app_folder() / REQUIREMENTS).read_text(encoding="utf-8").splitlines()
    return tuple(match["name"].lower() for line in lines if (match := _REQUIREMENT.fullmatch(line)))


def merge_space(new: Mapping[str, bytes], there: Mapping[str, bytes] | None, version: str) -> MergedSpace:
    """Brings a Space up to date and keeps what a person did to it; `there` is None for a new one.

    A file that nobody changed since it was written is replaced, or deleted where there is none of its name any more.
    One that a person changed or added stays; rename it to get ours again. The README is merged as model cards are.

    Raises:
        ConfigError: If the README or the state file that is there is damaged.
    """
    there = dict(there or {})
    recorded = written_files(there.get(STATE))
    result: dict[str, bytes] = {}
    hashes: dict[str, str] = {}
    kept: list[str] = []
    for name, content in sorted(new.items()):
        old = there.get(name)
        if name == CARD:
            content, sentences = _merged_readme(old, content)
            result[name] = content
            kept += sentences
        elif old is None or old == content or _hash(old) == recorded.get(name):
            result[name], hashes[name] = content, _hash(content)
        else:
            kept.append(f"{name} stays as you changed it; rename it to get the new one")
            hashes |= {name: recorded[name]} if name in recorded else {}
    gone = tuple(name for name in recorded if name not in new and name in there)
    deleted = tuple(name for name in gone if _hash(there[name]) == recorded[name])
    kept += [f"{name} stays as you changed it, though it is no longer needed" for name in gone if name not in deleted]
    state = {"version": 1, "taia_hub": version, "files": hashes}
    result[STATE] = (json.dumps(state, indent=2, sort_keys=True) + "\n").encode()
    changed = {name: content for name, content in result.items() if there.get(name) != content}
    return MergedSpace(changed, deleted, tuple(kept))


def app_folder() -> Path:
    """Returns the folder of the Space's app: in the package in a wheel, beside it in a checkout."""
    return shipped("spaces") / "compare"


def _app_files() -> list[Path]:
    """Lists what goes into every Space; the README is rendered."""
    found = [path for path in sorted(app_folder().rglob("*")) if path.is_file() and path.name != CARD]
    return [path for path in found if not any(part.startswith((".", "__")) for part in _parts(path))]


def _parts(path: Path) -> tuple[str, ...]:
    return path.relative_to(app_folder()).parts


def _merged_readme(old: bytes | None, new: bytes) -> tuple[bytes, list[str]]:
    if old is None:
        return new, []
    try:
        text = old.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"The Space's {CARD} is no UTF-8: {error}.", "Save it as UTF-8 in your editor.") from error
    if not cards.is_generated(text):
        return old, [f"{CARD} stays as you wrote it, and with it the versions that it names"]
    merged = cards.merge_cards(text, new.decode())
    return merged.text.encode(), [f"{CARD}: {sentence}" for sentence in merged.kept]


def written_files(state: bytes | None) -> dict[str, str]:
    """Reads from the state file of a Space what was written to it: path to sha256.

    Raises:
        ConfigError: If it is damaged.
    """
    if state is None:
        return {}
    try:
        files = json.loads(state)["files"]
        return {str(name): str(value) for name, value in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"The Space's {STATE} is damaged: {error!r}.", "Restore it from the Space's history, or make another Space."
        ) from error


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
