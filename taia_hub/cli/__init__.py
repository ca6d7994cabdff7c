"""The command line: parse, call, print. Errors are a message and a hint; `--debug` shows the traceback."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from taia_hub._version import __version__
from taia_hub.cli.analysis import analyze
from taia_hub.cli.cards import card
from taia_hub.cli.comparing import compare
from taia_hub.cli.demonstration import demo, serve
from taia_hub.cli.evaluation import evaluate
from taia_hub.cli.exporting import export
from taia_hub.cli.generation import generate
from taia_hub.cli.merging import merge
from taia_hub.cli.repositories import create, info, push
from taia_hub.cli.reproducing import reproduce
from taia_hub.cli.serving import serve_model
from taia_hub.cli.spaces import space_create
from taia_hub.cli.training import train
from taia_hub.errors import TAIAError

__all__ = ["app", "main"]

app = typer.Typer(
    name="taia",
    help="TAIA on the Hugging Face Hub: train all parameters, infer with only the attention updates.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
hub_app = typer.Typer(help="A loopback Hub in a folder, for work offline and for tests.", no_args_is_help=True)
space_app = typer.Typer(help="Spaces on the Hub that compare the modes of a model.", no_args_is_help=True)

app.command()(create)
app.command()(push)
app.command()(info)
app.command()(generate)
app.command()(compare)
app.command()(train)
app.command("eval")(evaluate)
app.command()(reproduce)
app.command()(analyze)
app.command()(export)
app.command()(merge)
app.command("serve")(serve_model)
app.command()(card)
app.command()(demo)
app.add_typer(hub_app, name="hub")
hub_app.command()(serve)
app.add_typer(space_app, name="space")
space_app.command("create")(space_create)


def print_version(wanted: bool) -> None:
    """Prints the version and ends, when it is asked for."""
    if wanted:
        typer.echo(f"taia-hub {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=print_version, is_eager=True)
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
        app(words)
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
    return f"{type(error).__name__}: {error}", "`taia --debug ...` shows the traceback."
