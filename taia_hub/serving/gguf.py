"""The base model as GGUF, for llama.cpp: the user's file."""

from __future__ import annotations

import os
from pathlib import Path

from taia_hub import hub
from taia_hub.common.progress import Progress
from taia_hub.engines import Engine
from taia_hub.engines.gguf_lora import HOW_TO_GET_A_GGUF
from taia_hub.errors import ConfigError
from taia_hub.repository.update_files import Repository


def check_gguf(engine: Engine, gguf: str | os.PathLike[str] | None) -> None:
    """Checks what can be known of `--gguf` before anything is opened.

    Raises:
        ConfigError: If it is missing, no file or no GGUF, or the engine needs none.
    """
    if engine.needs != "gguf":
        if gguf is not None:
            raise ConfigError(f"--gguf has no meaning with --engine {engine.name}.", "Leave it out.")
        return
    if gguf is None:
        raise ConfigError("llama.cpp needs the base model as GGUF.", f"Give it with --gguf FILE. {HOW_TO_GET_A_GGUF}")
    path = Path(gguf)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise ConfigError(f"There is no GGUF file '{gguf}': it {what}.", HOW_TO_GET_A_GGUF)
    with hub.disk_errors(path), path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ConfigError(f"'{gguf}' is no GGUF file.", HOW_TO_GET_A_GGUF)


def base_gguf(
    files: Repository,
    gguf: str | os.PathLike[str] | None = None,
    *,
    access: hub.HubAccess,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Returns the base model of a repository as a GGUF file on this disk.

    Args:
        files: The repository; its base model is meant.
        gguf: What `--gguf` says.
        access: How the Hub is reached.
        trust_remote_code: Whether the base model's own code may run.
        progress: Called with the stage, what is done of it and what there is.
    """
    return Path(gguf or "").absolute()
