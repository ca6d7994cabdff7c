"""The files of a Space that compares the modes of a model: values in, files out; a person's edits stay."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import Requirement

from taia_hub import cards
from taia_hub.common.shipped import shipped
from taia_hub.errors import ConfigError
from taia_hub.space.package import NAME, SpacePackage

CARD = "README.md"
REQUIREMENTS = "requirements.txt"
STATE = ".taia_space.json"
"""Holds the sha256 of each file as it was written, which tells it from one that a person changed."""

ZERO = "zero-a10g"
_ZERO_PYTHON = "3.12.12"  # ZeroGPU has Pythons of its own; transformers no longer runs on its older one, 3.10.13
_ZERO_TORCH = ("2.8.0", "2.9.1", "2.10.0", "2.11.0", "2.12.1", "2.13.0")  # hub-docs, spaces-zerogpu.md
_HALF_CARD = 38  # GiB of weights: a call on ZeroGPU is lent half a card of 95 GiB, unless it asks for all of it
_HARDWARE = ((76, ZERO), (260, "a100x4"))
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
    package: SpacePackage,
    *,
    title: str | None = None,
    hardware: str | None = None,
    python: str | None = None,
) -> dict[str, bytes]:
    """Renders the files of a Space: path to content.

    `versions` (package to version) names at least Gradio; `package` is how taia-hub comes. Without `hardware`, what is
    suggested to whoever copies the Space goes by the model's size; ZeroGPU has Python and torch of its own.

    Raises:
        ConfigError: If the title is empty.
    """
    name = model.repo_id.rpartition("/")[2]
    title = f"{name}: TAIA side by side" if title is None else title
    if not title.strip():
        raise ConfigError("The title of the Space is empty.", "Give some words, or leave it out.")
    hardware = hardware or suggested_hardware(model.bytes)
    on_zero = hardware.startswith("zero-")
    readme = cards.render_card(
        cards.SpaceCardData(
            title=title,
            sdk_version=versions["gradio"],
            models=tuple(model.revisions),
            revisions=model.revisions,
            preload=model.preload,
            licenses=model.licenses,
            python_version=_ZERO_PYTHON if on_zero else python,
            hardware=hardware,
            short_description="Base, TAIA, TAIF and vanilla answer side by side",
            license="apache-2.0",
            tags=("comparison", "text-generation"),
        )
    )
    files = {path.relative_to(app_folder()).as_posix(): path.read_bytes() for path in _app_files()}
    if on_zero and "torch" in versions:
        versions = {**versions, "torch": zero_torch(versions["torch"])}
    files[REQUIREMENTS] = pinned(files[REQUIREMENTS].decode(), versions, package.requirements).encode()
    return {**package.files, **files, CARD: readme.encode()}


def suggested_hardware(size: int) -> str:
    """Suggests hardware for weights of `size` bytes at 16 bits, so that they take at most four fifths of the memory.

    ZeroGPU up to 76 GiB (a card of 95 GiB), `a100x4` up to 260 GiB (320 GB), `a100x8` above.

    Example:
        >>> suggested_hardware(16 * 2**30), suggested_hardware(140 * 2**30)
        ('zero-a10g', 'a100x4')
    """
    return next((name for limit, name in _HARDWARE if size <= limit * 2**30), _LARGEST)


def zero_size(size: int) -> str | None:
    """Returns how much of ZeroGPU's card a call on weights of `size` bytes asks for: `"xlarge"` is all of it.

    None leaves it at half the card. The whole one takes twice as much of a visitor's quota.

    Example:
        >>> zero_size(16 * 2**30), zero_size(60 * 2**30)
        (None, 'xlarge')
    """
    return "xlarge" if size > _HALF_CARD * 2**30 else None


def zero_torch(version: str) -> str:
    """Returns the version of torch among those of ZeroGPU that is nearest to another one.

    Example:
        >>> zero_torch("2.13.0+cpu"), zero_torch("2.12.0"), zero_torch("2.14.1")
        ('2.13.0', '2.12.1', '2.13.0')
    """

    def release(text: str) -> tuple[int, int]:
        major, minor = text.split(".")[:2]
        return int(major), int(minor)

    major, minor = release(version)
    return min(_ZERO_TORCH, key=lambda one: (abs(release(one)[0] - major), abs(release(one)[1] - minor)))


def pinned(requirements: str, versions: Mapping[str, str], package: Iterable[str] = ()) -> str:
    r"""Pins each requirement of a file of bare names to a version; what is not known stays without one.

    The line of taia-hub becomes the lines `package` that bring it, without those whose names are in the file.

    Example:
        >>> pinned("torch\npeft[x]\nspaces", {"torch": "2.13.0+cpu", "peft": "0.21.2"}).split()
        ['torch==2.13.0', 'peft[x]==0.21.2', 'spaces']
    """
    matches = [(line, _REQUIREMENT.fullmatch(line)) for line in requirements.splitlines()]
    named = {match["name"].lower() for _, match in matches if match} - {NAME}
    lines: list[str] = []
    for line, match in matches:
        if match and match["name"] == NAME:
            lines += [one for one in package if Requirement(one).name.lower() not in named]
            continue
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
