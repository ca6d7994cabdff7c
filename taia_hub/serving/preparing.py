"""The files that an engine serves a mode from: made once, used again, whole or not there."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from taia_hub import hub
from taia_hub.common.progress import Progress
from taia_hub.common.resuming import Mark, digest, sole, whole_folder
from taia_hub.engines import LOADERS, Engine, ServedMode, taia_command
from taia_hub.engines.gguf_lora import Base, write_gguf_lora
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.exporting import export_adapter
from taia_hub.merging import merge
from taia_hub.repository.update_files import Repository
from taia_hub.switch.modes import TUNED
from taia_hub.switch.settings import Setting

MARKER = "taia_serving.json"
GGUF_LORA = "adapter.gguf"


@dataclass(frozen=True)
class Preparing:
    """What files of modes are made from, for which engine, and where they go; `gguf` heads the base for llama.cpp."""

    files: Repository
    engine: Engine
    name: str
    folder: Path
    gguf: Base | None = None
    token: str | bool | None = None
    trust_remote_code: bool = False
    progress: Progress | None = None

    @property
    def models(self) -> Path:
        """The folder that an engine runs in where folders are names of models."""
        return self.folder / "merged"

    def place(self, label: str) -> Path:
        """Returns the folder of a mode's files."""
        if self.engine.needs == "merged":
            return self.models / f"{self.name}:{label}"
        return self.folder / ("adapters" if self.engine.needs == "adapter" else "gguf") / label

    def by_hand(self, label: str, setting: Setting) -> str:
        """Returns the command that makes what a mode is served from; of a GGUF LoRA, the LoRA that it is made of."""
        place = self.place(label)
        if self.engine.needs == "gguf":  # the GGUF LoRA itself is in that place
            place = place.with_name(f"{label}-lora")
        words = ("--trust-remote-code",) if self.trust_remote_code else ()
        verb = "merge" if self.engine.needs == "merged" else "export"
        mode = TUNED if label == TUNED else setting.value
        return taia_command(verb, self.files.name, mode, place, *words, revision=self.files.revision)

    @contextlib.contextmanager
    def sole(self) -> Iterator[None]:
        """Waits until nobody else prepares files in the folder, and says of a disk what is wrong with it."""
        with hub.disk_errors(self.folder), sole(self.folder / ".lock"):
            yield


def default_folder(files: Repository, name: str) -> Path:
    """Returns where prepared files go by default: in the Hub's cache, a folder an update; it need not be there."""
    return Path(constants.HF_HOME) / "taia-serving" / f"{name}-{digest(_identity(files))[:12]}"


def prepare(preparing: Preparing, setting: Setting, label: str | None = None) -> ServedMode:
    """Makes the files of a mode, or finds those that were made before from the same; the mode is ready to be served.

    It is named by its `label`, by default the setting's.

    Raises:
        TAIAError: If the mode cannot be exported or merged, or the folder cannot be written or holds other files.
    """
    label = label or setting.slug
    if label == "none":
        return ServedMode(label, _link_base(preparing) if preparing.engine.needs == "merged" else None)
    target = preparing.place(label)
    made_from = {**_made_from(preparing), "setting": setting.published}
    with preparing.sole():
        rank = kept(target, made_from, lambda folder: _write(preparing, setting, folder))
    path = target / GGUF_LORA if preparing.engine.needs == "gguf" else target
    return ServedMode(label, path.absolute(), rank)


def kept(target: Path, made_from: Any, write: Callable[[Path], int]) -> int:
    """Finds a folder of files that were made before and are whole, or makes it; returns the rank that `write` did.

    Raises:
        RepositoryError: If the folder holds other files.
    """
    mark = Mark(target / MARKER, {"made_from": made_from})
    known = _read(mark)
    if known.get("files") != _sizes(target) or not mark.fits():
        if not known and target.exists() and any(target.iterdir()):
            raise _foreign(target)
        with whole_folder(mark) as (folder, known):
            known |= {"rank": write(folder), "files": _sizes(folder)}
    return int(known["rank"])


def _write(preparing: Preparing, setting: Setting, folder: Path) -> int:
    files, needs = preparing.files, preparing.engine.needs
    common: dict[str, Any] = {
        "token": preparing.token,
        "trust_remote_code": preparing.trust_remote_code,
        "progress": preparing.progress,
    }
    if needs == "merged":
        merge(files, folder, setting, repo_id=f"{preparing.name}:{setting.slug}", **common)
        return 0
    engines = (preparing.engine.name,) if preparing.engine.name in LOADERS else ()
    if needs == "adapter":
        return export_adapter(files, folder, setting, engines=engines, **common).rank
    assert preparing.gguf is not None
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent) as exported:
        export_adapter(files, Path(exported) / "lora", setting, engines=engines, **common)
        return write_gguf_lora(Path(exported) / "lora", preparing.gguf, folder / GGUF_LORA).rank


def _link_base(preparing: Preparing) -> Path:
    """Gives the base the name of a mode, by a link to where its files are."""
    base = preparing.files.base
    access = hub.HubAccess(token=preparing.token)
    whole = hub.fetch_model(base.name, hub.TOKENIZER_FILES, revision=base.revision, access=access, what="base model")
    link = preparing.place("none")
    with preparing.sole():
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            link.unlink()
        elif link.exists():
            raise _foreign(link)
        link.symlink_to(whole.folder.resolve(), target_is_directory=True)
    return link.absolute()


def _made_from(preparing: Preparing) -> dict[str, Any]:
    files = preparing.files
    made: dict[str, Any] = {"layout": 1, **_identity(files)}
    if files.base.revision is None:
        made["base_files"] = hub.folder_print(files.base.folder)
    if files.revision is None:  # its own tokenizer, chat template and settings of generation
        made["beside"] = hub.folder_print(files.root, hub.ANSWER_PARTS)
    if preparing.gguf is not None:
        header = dataclasses.asdict(preparing.gguf)  # all that a GGUF LoRA depends on
        made["gguf"] = digest({name: value for name, value in header.items() if name != "path"})
    return made


def _identity(files: Repository) -> dict[str, Any]:
    """Says which update and which base these are; what has no commit is known by its hash."""
    identity: dict[str, Any] = {"base": files.base.name, "base_revision": files.base.revision}
    if files.revision:
        return {**identity, "source": files.name, "revision": files.revision}
    names = (files.kind.config, files.kind.weights)
    return {**identity, "update": {name: hub.sha256(files.folder / name) for name in names}}


def _sizes(folder: Path) -> dict[str, int]:
    """Returns the sizes of a mode's files, which tell one that was cut short or deleted since."""
    return {path.name: path.stat().st_size for path in sorted(folder.glob("*")) if path.name != MARKER}


def _read(mark: Mark) -> dict[str, Any]:
    try:
        known = mark.read()
        damaged = mark.path.is_file() and not ("made_from" in known and isinstance(known.get("rank"), int))
    except ConfigError:
        damaged = True
    if damaged:
        raise RepositoryError(
            f"'{mark.path}', which says what '{mark.path.parent}' was prepared from, is damaged.",
            "Move that folder elsewhere, and it is prepared again; or name another one with --out.",
        )
    return known


def _foreign(path: Path) -> RepositoryError:
    return RepositoryError(
        f"'{path}' holds files that were not prepared for serving.", "Name another folder with --out."
    )
