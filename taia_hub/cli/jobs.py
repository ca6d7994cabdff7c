"""`--on hf-jobs`: a command of ours as a job on the Hub, for the commands that take long."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from taia_hub.cli.options import offering
from taia_hub.common.jobs import DATA, FILE_ENDS, LONGEST_WORD, job_commands
from taia_hub.common.shell import split_options
from taia_hub.errors import ConfigError, closest, short

_PLACES = ("hf-jobs",)
_PANEL = "Elsewhere"

On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="hf-jobs",
        help="With --print: a script and the command that run this on Hugging Face Jobs, in place of running it here.",
        show_default=False,
        rich_help_panel=_PANEL,
        autocompletion=offering(*_PLACES),
    ),
]
Print = Annotated[
    bool,
    typer.Option("--print", help="With --on: print what runs it there, and start nothing.", rich_help_panel=_PANEL),
]


def is_job(on: str | None, print_only: bool) -> bool:
    """Tells whether a command is printed as a job, and refuses a place that is not known."""
    if on is None:
        if print_only:
            raise ConfigError("--print is for --on, and was given alone.", "Add --on hf-jobs, or leave it out.")
        return False
    if on not in _PLACES:
        raise ConfigError(f"The place '{on}' is not known.{closest(on, _PLACES)}", f"Choose {', '.join(_PLACES)}.")
    if not print_only:
        raise ConfigError(f"Nothing is started on {on} from here.", "Add --print, and run what it says in a shell.")
    return True


def job(
    context: typer.Context,
    extra: str,
    *,
    files: Iterable[str | os.PathLike[str]] = (),
    instead: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """Returns what starts the command of a context as a job.

    Args:
        context: Of the command, whose words are those that were typed.
        extra: The extra of taia-hub that it needs.
        files: Files of this machine that it reads.
        instead: An option and its value, in place of the one that was typed, or added.
        notes: What to know of it.

    Raises:
        ConfigError: If a token would be shown, a file is not among the words and would stay here, or a word that means
            something else is a file.
    """
    dropped = ("--on", *instead[:1])
    typed = split_options(context.find_root().obj or sys.argv[1:])  # `hf` knows a file by a word of its own
    words = [word for word in _without(typed, dropped) if word != "--print"]
    if "--token" in words:
        raise ConfigError(
            "The token of --token would be shown, and stay in the shell's history.",
            "Leave it out: the job has the stored one (`hf auth login`), as its secret HF_TOKEN.",
        )
    sent = [Path(one) for one in files]
    if left := [one for one in sent if one not in map(Path, words)]:
        raise ConfigError(
            f"The file '{left[0]}' is named in a recipe, and would stay on this machine.",
            "Name it on the command line, which sends it along, or publish it as a data set and name that.",
        )
    if stray := [word for word in words if os.path.isfile(word) and Path(word) not in sent]:
        raise ConfigError(
            f"'{stray[0]}' is also the name of a file here, which `hf` would send along in its place.",
            "Give the command in another folder.",
        )
    told = [f"Sent along to the private bucket jobs-artifacts of yours: {', '.join(map(str, sent))}"] if sent else []
    words += instead
    for word in words:
        if len(os.fsencode(max(word.split("/"), key=len))) > LONGEST_WORD:
            raise ConfigError(
                f"{short(word)} is longer than the name of a file may be, and `hf` looks whether each word is one.",
                "Say it shorter, or in a recipe.",
            )
        if word.endswith(FILE_ENDS) and not os.path.isfile(word):
            raise ConfigError(
                f"'{word}' is no file here, and `hf` sends along each word that ends so.",
                "Check the path, or name it with another ending.",
            )
    return job_commands(words, extra, [*told, *notes])


def kept(name: str) -> str:
    """Returns where a job writes a file that stays: beside its script, in the bucket."""
    return f"{DATA}/{name}"


def _without(words: Sequence[str], options: Sequence[str]) -> list[str]:
    """Takes options away, each with its value."""
    found = []
    skip = False
    for word in words:
        if not skip and word not in options:
            found.append(word)
        skip = not skip and word in options
    return found
