"""The base model as GGUF, for llama.cpp: the user's file, one on the Hub, or written from the base's own weights."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import Any, cast

from huggingface_hub import constants

from taia_hub import hub
from taia_hub.common.progress import Progress
from taia_hub.common.resuming import Mark, digest, sole, whole_folder
from taia_hub.engines import Engine
from taia_hub.engines.gguf_base import (
    GGUF_TYPES,
    GGUFType,
    read_base_vocabulary,
    read_parameters,
    write_gguf_base,
)
from taia_hub.engines.gguf_lora import HOW_TO_GET_A_GGUF, Base, read_base
from taia_hub.engines.gguf_match import check_gguf_base
from taia_hub.errors import ConfigError, RepositoryError, UnsupportedUpdateError, closest

MARKER = "taia_gguf.json"
FILE = "base.gguf"
_ADDRESS = re.compile(r"(?:hf://)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?/(?P<file>[^@]+\.gguf)")
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf")
_WAYS = f"Give --gguf a file, ORG/REPO/FILE.gguf on the Hub, or a type to write it in: {', '.join(GGUF_TYPES)}."


def check_gguf(engine: Engine, gguf: str | os.PathLike[str] | None) -> None:
    """Checks what can be known of `--gguf` before anything is opened.

    Raises:
        ConfigError: If it is no file, no GGUF, no address and no type, or the engine needs none.
    """
    if engine.needs != "gguf" and gguf is not None:
        raise ConfigError(f"--gguf has no meaning with --engine {engine.name}.", "Leave it out.")
    if gguf is None or str(gguf) in GGUF_TYPES:
        return
    path = Path(gguf)
    is_here = hub.is_path(str(gguf)) or os.path.exists(path) or os.path.isdir(path.parent)
    if not is_here and (address := _ADDRESS.fullmatch(str(gguf))):
        if _PART.search(address["file"]):
            raise ConfigError(f"'{gguf}' is one part of several.", "Take a file that is whole, or leave --gguf out.")
        return
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "is no file" if os.path.exists(path) else "is not there"
        near = "" if path.suffix else closest(str(gguf).lower(), GGUF_TYPES)
        raise ConfigError(f"There is no GGUF file '{gguf}': it {what}.{near}", f"{_WAYS} {HOW_TO_GET_A_GGUF}")
    with hub.disk_errors(path), path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ConfigError(f"'{gguf}' is no GGUF file.", f"{_WAYS} {HOW_TO_GET_A_GGUF}")


def base_gguf(
    base: hub.Source,
    gguf: str | os.PathLike[str] | None = None,
    *,
    access: hub.HubAccess,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Base:
    """Returns the header of a base model's GGUF file on this disk, which is read once.

    A file that is given, or fetched, must be of this base. One that is written lies in the Hub's cache, for all
    repositories of the base, and is found there the next time.

    Args:
        base: The base model; its configuration must be on this disk.
        gguf: What `--gguf` says: a file, an address on the Hub, a type to write; None writes the base's own type.
        access: How the Hub is reached.
        trust_remote_code: Whether the base model's own code may run.
        progress: Called with the stage, what is done of it and what there is.

    Raises:
        UnsupportedUpdateError: If it cannot be written here; the hint names files on the Hub.
        UpdateMismatchError: If the file is of another model.
        RepositoryError: If files are missing or out of reach, or the disk is full.
    """
    if gguf is None or str(gguf) in GGUF_TYPES:
        kind = None if gguf is None else cast(GGUFType, str(gguf))
        try:
            return read_base(_written(base, kind, access, trust_remote_code, progress))
        except UnsupportedUpdateError as error:
            there = hub.quantised_from(base.name) if base.revision else []
            ways = f"On the Hub are: {', '.join(f'--gguf {one}' for one in there)}. " if there else ""
            raise UnsupportedUpdateError(
                error.message, f"{ways}Or serve merged models with --engine transformers. {error.hint}"
            ) from error
    path = Path(gguf).absolute()
    if not path.is_file():
        path = _fetched(str(gguf), access)
    return check_gguf_base(path, base, access)


def _fetched(address: str, access: hub.HubAccess) -> Path:
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise ConfigError(f"There is no GGUF file '{address}'.", f"{_WAYS} {HOW_TO_GET_A_GGUF}")
    repo, file, what = found["repo"], found["file"], "GGUF of the base model"
    source = hub.fetch(repo, [glob.escape(file)], revision=found["revision"], access=access, what=what, local=False)
    if not (source.folder / file).is_file():
        there = sorted(name for name in hub.names_at(source, access, what=what) if name.endswith(".gguf"))
        raise RepositoryError(
            f"'{repo}' has no file '{file}'.", f"It has {', '.join(there[:10]) or 'no GGUF file'}. {_WAYS}"
        )
    return source.folder / file


def _written(
    base: hub.Source, kind: GGUFType | None, access: hub.HubAccess, trust_remote_code: bool, progress: Progress | None
) -> Path:
    """Writes the base once, under a lock; what can be known is checked before its weights are fetched."""
    from transformers import AutoConfig

    what = "base model"
    with hub.foreign_errors(base.name, what=what, revision=base.revision):
        config: Any = AutoConfig.from_pretrained(base.folder, trust_remote_code=trust_remote_code)
    read_parameters(config, f"{what} '{base.name}'")
    made_from = {"layout": 1, "base": hub.base_print(base), "type": kind}
    name = f"{Path(base.name).name}-{digest(made_from)[:12]}"
    target = Path(constants.HF_HOME) / "taia-serving" / "bases" / name
    mark = Mark(target / MARKER, {"made_from": made_from})
    with hub.disk_errors(target), sole(target.with_name(f".{name}.lock")):
        path = target / FILE
        if not (mark.fits() and path.is_file() and path.stat().st_size == mark.read().get("size")):
            # the tokenizer first, which tells at once whether it can be done
            code = ("*.py",) if trust_remote_code else ()
            wanted = (hub.CONFIG, hub.GENERATION, *hub.TOKENIZER_FILES, *code)
            there = hub.fetch(base.name, wanted, revision=base.revision, access=access, what=what)
            vocabulary = read_base_vocabulary(there, trust_remote_code=trust_remote_code)
            whole = hub.fetch_model(base.name, code, revision=base.revision, access=access, what=what)
            with whole_folder(mark) as (folder, facts):
                made = write_gguf_base(
                    whole,
                    folder / FILE,
                    dtype=kind,
                    vocabulary=vocabulary,
                    trust_remote_code=trust_remote_code,
                    progress=progress,
                )
                facts["size"] = made.size
    return path
