"""The command line: parse, call, print. Errors are a message and a hint; `--debug` shows the traceback."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from taia_hub._version import __version__
from taia_hub.errors import TAIAError, by_name

__all__ = ["app", "main"]

COMMANDS = {
    "create": ("repositories.create", "Make a repository of a base model and an adapter or fine-tune."),
    "push": ("repositories.push", "Publish a saved repository in one commit."),
    "info": ("repositories.info", "Show what a repository holds, by role, without loading weights."),
    "generate": ("generation.generate", "Answer a prompt under one mode or several."),
    "compare": ("comparing.compare", "Compare the modes' answers: in the terminal, a file or a page."),
    "chat": ("chatting.chat", "Talk with a model, and change its mode in mid-talk."),
    "train": ("training.train", "Train a repository by LoRA, MoLoRA or full fine-tuning."),
    "eval": ("evaluation.evaluate", "Evaluate a repository under several modes with lm-eval."),
    "reproduce": ("reproducing.reproduce", "Train a row of the paper, and set its table beside yours."),
    "analyze": ("analysis.analyze", "Measure an update by layer and role, and what its modes do."),
    "check": ("checking.check", "Say which engines take an adapter as it is, and why not."),
    "export": ("exporting.export", "Write a mode as a plain LoRA, for engines and PEFT."),
    "merge": ("merging.merge", "Merge a mode into a plain model."),
    "serve": ("serving.serve_model", "Serve modes with vLLM, SGLang, llama.cpp or transformers."),
    "card": ("cards.card", "Make a repository's card again, or check every fact on it."),
    "demo": ("demonstration.demo", "Tune a small model, publish it on this disk, compare its modes."),
    "hub": ("demonstration.hub_app", "A loopback Hub in a folder, for work offline and for tests."),
    "space": ("spaces.space_app", "Spaces on the Hub that compare the modes of a model."),
}
"""Command to where it is, in this package, and its line in the list of commands."""


class _Commands(TyperGroup):
    """Loads a command when it is called: `taia --help` needs no more than the lines."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in COMMANDS:
            self.commands[args[0]] = _load(args[0])
        return super().resolve_command(ctx, args)


def _load(name: str) -> Any:
    module, _, attribute = COMMANDS[name][0].partition(".")
    found = getattr(import_module(f"{__name__}.{module}"), attribute)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False)
        alone.command(name)(found)
        found = alone
    for one in found.registered_commands:  # let their help flow to the terminal's width
        paragraphs = inspect.cleandoc(one.callback.__doc__ or "").split("\n\n")
        one.help = "\n\n".join(" ".join(lines.split()) for lines in paragraphs)
    return typer.main.get_command(found)


app = typer.Typer(
    name="taia",
    help="TAIA on the Hugging Face Hub: train all parameters, infer with only the attention updates.",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text: rich takes as long to import as everything else here
)
for _name, (_, _line) in COMMANDS.items():
    app.command(_name, help=_line)(lambda: None)


def _print_version(wanted: bool) -> None:
    """Prints the version and ends, when it is asked for."""
    if wanted:
        typer.echo(f"taia-hub {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Takes the options that stand before the command."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        arguments: The words after `taia`; those of the process by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # PEFT calls what transformers deprecates: nothing that whoever types a command can act on
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        app(words, prog_name="taia")
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        sys.exit(130)
    except Exception as error:
        if "--debug" in words:
            raise
        message, hint = _said(error)
        typer.echo(f"Error: {message}", err=True)
        typer.echo(f"Hint: {hint}", err=True)
        sys.exit(1)


def _said(error: Exception) -> tuple[str, str]:
    if isinstance(error, TAIAError):
        return error.message, error.hint or "Run `taia --help`, or `taia --debug ...` for the traceback."
    return by_name(f"{type(error).__name__}: {error}"), "`taia --debug ...` shows the traceback."
