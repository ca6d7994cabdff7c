"""What the commands share: options that mean the same everywhere, and how input is read."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from taia_hub.errors import ConfigError, closest

_HUB = "Hub and output"

Repository = Annotated[str, typer.Argument(metavar="REPO|DIR", help="Hub id or folder of a TAIA repository.")]
Token = Annotated[
    str | None, typer.Option(help="Access token; the stored one by default.", show_default=False, rich_help_panel=_HUB)
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of the repository.", show_default=False, rich_help_panel=_HUB)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=_HUB)]
Private = Annotated[
    bool | None, typer.Option("--private/--public", help="Visibility of a new repository.", rich_help_panel=_HUB)
]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let the base model's own code run.", rich_help_panel=_HUB)
]
System = Annotated[str | None, typer.Option(help="System message.", show_default=False)]
Raw = Annotated[bool, typer.Option("--raw", help="Continue the prompt as it is, without the chat template.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option(min=0, help="0 is greedy.")]
Seed = Annotated[int, typer.Option(help="Seed of the sampling.")]
Dtype = Annotated[str, typer.Option(help="dtype of the base model, as in bfloat16.")]
DeviceMap = Annotated[str | None, typer.Option(help="Where the model goes, as in auto or cuda.", show_default=False)]
Push = Annotated[str | None, typer.Option(metavar="REPO", help="Hub id to publish it to.", show_default=False)]
Message = Annotated[
    str | None, typer.Option("--message", "-m", help="Commit message.", show_default=False, rich_help_panel=_HUB)
]

OtherBase = Annotated[
    str | None, typer.Option(help="Base model, where the one named there is not at hand.", show_default=False)
]


def modes(by_default: str, repeated: str = "repeat it for several") -> Any:
    """Makes the option `--mode`."""
    text = "A mode (none, attention, ffn, all), roles joined by '+', or a JSON mapping of selectors to weights"
    return typer.Option("--mode", help=f"{text}; {repeated}. By default {by_default}.", show_default=False)


def parse_folder(text: str | Path) -> Path:
    """Reads the path of a folder, or a default; an unset shell variable must not mean the working folder."""
    if not str(text).strip():
        raise ConfigError("The folder's name is empty.", "Name a folder; '.' is this one.")
    return Path(text)


def files_on(repo: str, base: str | None, revision: str | None, token: str | None) -> Any:
    """Returns what is exported or merged: the repository as it is named, or its files on another base model."""
    if base is None:
        return repo
    if not base.strip():
        raise ConfigError("The base model's name is empty.", "Name a base model, or leave --base out.")
    from taia_hub import hub
    from taia_hub.repository.update_files import open_repository

    access = hub.HubAccess(token=token)
    return open_repository(repo, access, revision=revision, base=base).with_weights(access)


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


def parse_modes(texts: list[str] | None, default: Sequence[Any] = ()) -> list[Any]:
    """Reads the modes of a command line, or gives the default ones."""
    return [parse_mode(text) for text in texts] if texts else list(default)


def read_prompt(text: str) -> str:
    """Reads a prompt from the command line: a text, or '-' for standard input."""
    try:
        if text == "-":
            if sys.stdin.isatty():
                typer.echo("Type the prompt; Ctrl-D on a line of its own ends it.", err=True)
            text = sys.stdin.read()
        text.encode()
    except UnicodeError as error:
        raise ConfigError("The prompt is not UTF-8.", "Convert it, as with iconv.") from error
    if not text.strip():
        raise ConfigError("The prompt is empty.", "Give a text with --prompt, or '-' and text on standard input.")
    return text


def load_model(
    repo: str,
    *,
    dtype: str,
    device_map: str | None,
    revision: str | None,
    token: str | None,
    trust_remote_code: bool,
) -> tuple[Any, Any]:
    """Loads a TAIA repository that is to answer, and its tokenizer."""
    from taia_hub.modeling_taia import TAIAForCausalLM
    from taia_hub.repository.tokenizer import load_tokenizer

    loading: dict[str, Any] = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
    model = TAIAForCausalLM.from_pretrained(repo, dtype=check_dtype(dtype), device_map=device_map, **loading)
    return model, load_tokenizer(model, token=token, trust_remote_code=trust_remote_code)


def read_sampling(temperature: float, **narrowing: float | None) -> dict[str, Any]:
    """Makes keywords of `generate`; what narrows the choice (top_p, top_k) has no meaning where it is greedy."""
    given = {name: value for name, value in narrowing.items() if value is not None}
    if temperature:
        return {"do_sample": True, "temperature": temperature, **given}
    if given:
        name = next(iter(given)).replace("_", "-")
        raise ConfigError(f"--{name} has no meaning without sampling.", "Add a --temperature above 0.")
    return {"do_sample": False}


@contextlib.contextmanager
def progress(stopped: str = "", bars: Any = None) -> Iterator[Any]:
    """Shows how far work is, on bars of its own or these; `stopped` says what stays where Ctrl-C ends it."""
    from taia_hub.common.progress import ProgressBars

    bars = bars or ProgressBars()
    try:
        yield bars
    except KeyboardInterrupt:
        bars.close()
        if stopped:
            typer.echo(stopped, err=True)
        raise
    finally:
        bars.close()


def echo_json(value: Any) -> None:
    """Prints a value as indented JSON."""
    typer.echo(json.dumps(value, indent=2, default=str))
