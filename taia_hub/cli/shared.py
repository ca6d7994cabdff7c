"""What the commands share: options that mean the same everywhere, and how input is read."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from taia_hub.cli.options import EXTRAPOLATES, HUB, filled, offering, reading
from taia_hub.cli.printing import echo
from taia_hub.common.fields import asked
from taia_hub.errors import ConfigError, closest
from taia_hub.switch.modes import MODES, TUNED


def check_dtype(text: str) -> str:
    """Checks the name of a dtype."""
    allowed = ("auto", "float32", "bfloat16", "float16")
    if text not in allowed:
        raise ConfigError(f"--dtype {text!r} is not known.{closest(text, allowed)}", f"Choose {', '.join(allowed)}.")
    return text


Update = Annotated[
    str, typer.Argument(metavar="REPO|DIR", help="Hub id or folder of a TAIA repository or a PEFT adapter.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=HUB)]
Private = Annotated[
    bool | None, typer.Option("--private/--public", help="Visibility of a new repository.", rich_help_panel=HUB)
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace an earlier result in the folder; what you added stays, or you are asked to move it first.",
    ),
]
Push = Annotated[str | None, typer.Option(metavar="REPO", help="Hub id to publish it to.", show_default=False)]
Message = Annotated[
    str | None, typer.Option("--message", "-m", help="Commit message.", show_default=False, rich_help_panel=HUB)
]
OtherBase = Annotated[
    str | None, typer.Option(help="Base model, where the one named there is not at hand.", show_default=False)
]


@dataclass(frozen=True)
class Source:
    """Where and how a repository is read; the names are those of the functions' keywords."""

    revision: str | None = asked(None, "Branch, tag or commit of the repository.", panel=HUB)
    token: str | None = asked(None, "Access token; the stored one by default.", panel=HUB)
    trust_remote_code: bool = asked(False, "Let the base model's own code run.", panel=HUB, flags="--trust-remote-code")


@dataclass(frozen=True)
class Loading(Source):
    """How a model is loaded that is to answer."""

    dtype: str = asked(
        "auto",
        "dtype of the base model, as in bfloat16; auto is the checkpoint's own on every device, so that results of one "
        "machine are those of another.",
        read=check_dtype,
    )
    device: str | None = asked(
        None, "Where the model goes: cpu, cuda, cuda:1 or mps. By default a GPU, where there is one."
    )
    device_map: str | None = asked(None, "transformers' own instead, such as auto for several GPUs.")


@dataclass(frozen=True)
class Answering:
    """How a prompt is answered."""

    system: str | None = asked(None, "System message.")
    raw: bool = asked(False, "Continue the prompt as it is, without the chat template.", flags="--raw")
    temperature: float = asked(0.0, "0 is greedy.", least=0)
    top_p: float | None = asked(None, "Draw from this share of the probability.")
    top_k: int | None = asked(None, "Draw from this many tokens.", least=1)
    seed: int = asked(0, "Seed of the sampling.")


def modes(by_default: str, repeated: str = "repeat it for several") -> Any:
    """Makes the option `--mode`, whose values come as `parse_mode` reads them."""
    text = (
        "A mode (none, attention, ffn, all; or base, taia, taif, vanilla), tuned (what the repository publishes), "
        "roles joined by '+', or a JSON mapping of selectors to weights or ramps"
    )
    text = f"{text}; {repeated}. By default {by_default}."
    return typer.Option(
        "--mode", help=text, show_default=False, callback=reading(parse_mode), autocompletion=offering(*MODES, TUNED)
    )


def folder(text: str, panel: str | None = None) -> Any:
    """Makes an option that names a folder."""
    return typer.Option(parser=parse_folder, metavar="DIR", help=text, show_default=False, rich_help_panel=panel)


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


def parse_mode(text: str) -> Any:
    """Reads a mode from the command line: a name, or a JSON mapping; what is none is said before anything is loaded."""
    from taia_hub.switch.settings import parse_text

    try:
        return parse_text(text, allow_extrapolation=EXTRAPOLATES.get()).value
    except ConfigError as error:
        raise ConfigError(
            error.message, """Quote it for the shell: --mode '{"attention": 1, "ffn": 0.5}'."""
        ) from error


def one_prompt(argument: str | None, option: str | None) -> str | None:
    """Returns the prompt, which may be given as an argument or an option."""
    if argument is not None and option is not None:
        raise ConfigError("The prompt came twice: as an argument and with --prompt.", "Leave one out.")
    return option if argument is None else argument


def read_prompt(text: str) -> str:
    """Reads a prompt from the command line: a text, or '-' for standard input."""
    try:
        if text == "-":
            if sys.stdin.isatty():
                echo("Type the prompt; Ctrl-D on a line of its own ends it.", err=True)
            text = sys.stdin.read()
        text.encode()
    except UnicodeError as error:
        raise ConfigError("The prompt is not UTF-8.", "Convert it, as with iconv.") from error
    if not text.strip():
        raise ConfigError("The prompt is empty.", "Give a text with --prompt, or '-' and text on standard input.")
    return text


def load_model(
    repo: str, *, dtype: str, device: str | None, device_map: str | None, plain: bool = False, **source: Any
) -> tuple[Any, Any]:
    """Loads what is to answer, and its tokenizer, once the device is there.

    That is a TAIA repository or PEFT adapter, or a model without an update where it is `plain`.
    """
    from taia_hub.common.devices import place
    from taia_hub.compare.models import load_plain
    from taia_hub.modeling_taia import TAIAForCausalLM
    from taia_hub.repository.tokenizer import load_tokenizer

    loads = load_plain if plain else TAIAForCausalLM.from_pretrained
    model = loads(repo, dtype=dtype, device_map=place(device, device_map), **source)
    say_device(model)
    return model, load_tokenizer(model, token=source["token"], trust_remote_code=source["trust_remote_code"])


def say_device(model: Any) -> None:
    """Says on standard error where a loaded model runs, in the first of several processes."""
    from taia_hub.common.devices import placement

    if os.environ.get("RANK", "0") == "0":
        echo(placement(model), err=True)


def read_answering(system: str | None, raw: bool, seed: int, temperature: float, **given: Any) -> dict[str, Any]:
    """Makes keywords of `compare`; what narrows the choice (top_p, top_k) has no meaning where it is greedy."""
    narrowing = [name for name in ("top_p", "top_k") if given.get(name) is not None]
    if narrowing and not temperature:
        flag = narrowing[0].replace("_", "-")
        raise ConfigError(f"--{flag} has no meaning without sampling.", "Add a --temperature above 0.")
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    return {"system": system, "chat": not raw, "seed": seed, **filled(given), **sampling}


@contextlib.contextmanager
def progress(stopped: str = "") -> Iterator[Any]:
    """Shows how far work is; `stopped` says what stays where Ctrl-C ends it."""
    from taia_hub.common.progress import ProgressBars

    bars = ProgressBars()
    try:
        yield bars
    except KeyboardInterrupt:
        bars.close()
        if stopped:
            echo(stopped, err=True)
        raise
    finally:
        bars.close()


def published(commit: Any) -> str:
    """Says where something was published: the page first, or the pull request, and the commit behind it."""
    if commit.pr_url:
        return f"Proposed {commit.pr_url} (commit {commit.commit_url})"
    return f"Published {commit.repo_url} (commit {commit.commit_url})"


def next_step(where: str) -> None:
    """Says which command shows what was made."""
    echo(f'Next: taia compare {shlex.quote(where)} "Why is the sky blue?"')


def echo_json(value: Any) -> None:
    """Prints a value as indented JSON."""
    echo(json.dumps(value, indent=2, default=str))
