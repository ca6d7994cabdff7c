"""What the commands share: options that mean the same everywhere, and how input is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from taia_hub.errors import ConfigError, closest

Repository = Annotated[str, typer.Argument(metavar="REPO|DIR", help="Hub id or folder of a TAIA repository.")]
Token = Annotated[str | None, typer.Option(help="Access token; the stored one by default.", show_default=False)]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Private = Annotated[bool | None, typer.Option("--private/--public", help="Visibility of a new repository.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Let the base model's own code run.")]
Message = Annotated[str | None, typer.Option("--message", "-m", help="Commit message.", show_default=False)]


def parse_folder(text: str | Path) -> Path:
    """Reads the path of a folder, or a default; an unset shell variable must not mean the working folder."""
    if not str(text).strip():
        raise ConfigError("The folder's name is empty.", "Name a folder; '.' is this one.")
    return Path(text)


def check_dtype(text: str) -> str:
    """Checks the name of a dtype."""
    allowed = ("auto", "float32", "bfloat16", "float16")
    if text not in allowed:
        raise ConfigError(f"--dtype {text!r} is not known.{closest(text, allowed)}", f"Choose {', '.join(allowed)}.")
    return text


def parse_mode(text: str) -> Any:
    """Reads a mode from the command line: a name, or a JSON mapping of selectors to weights."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"--mode {text!r} is no JSON: {error}.",
            """Quote it for the shell: --mode '{"attention": 1, "ffn": 0.5}'.""",
        ) from error


def echo_json(value: Any) -> None:
    """Prints a value as indented JSON."""
    typer.echo(json.dumps(value, indent=2, default=str))
