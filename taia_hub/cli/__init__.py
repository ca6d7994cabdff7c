"""The command line: parse, call, print. Errors are a message and a hint; `--debug` shows the traceback.

A command's docstring is its help: paragraphs that begin with `taia ` are its examples, two or more.
"""

from __future__ import annotations

import errno
import inspect
import itertools
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from taia_hub._version import __version__
from taia_hub.cli.options import let_extrapolate, name_kinds
from taia_hub.cli.printing import SAFE_RECORDS, echo
from taia_hub.errors import TAIAError, by_name, short

__all__ = ["app", "main"]

COMMANDS = {
    "create": ("repositories.create", "Make a repository of a base model and an adapter or fine-tune."),
    "push": ("repositories.push", "Publish a saved repository in one commit."),
    "info": ("repositories.info", "Show what a repository holds, by role, without loading weights."),
    "generate": ("generation.generate", "Answer a prompt under one mode or several."),
    "compare": ("comparing.compare", "Compare the modes' answers: in the terminal, a file or a page."),
    "chat": ("chatting.chat", "Talk with a model, and change its mode in mid-talk."),
    "train": ("training.train", "Train a repository by LoRA, MoLoRA or full fine-tuning."),
    "tune": ("tuning.tune", "Find which part of the update to keep, for a target."),
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

GROUPS = {
    "Try it": ("demo", "compare", "chat", "generate"),
    "Make one": ("create", "train", "tune", "reproduce"),
    "Look into it": ("info", "eval", "analyze"),
    "Use it elsewhere": ("export", "merge", "serve", "check"),
    "Share it": ("push", "card", "space", "hub"),
}
"""The headings of the list of commands, and what stands under each."""

_FIRST = {"Try it": ("demo", "compare"), "Make one": ("create", "train"), "Use one": ("chat", "push")}
_ANYWHERE = ("--debug", "--version")


class _Command(TyperCommand):
    """Lists its options under the headings that they name, without the kinds of flags.

    An option whose metavar stands in brackets, as `--retention [FILE]`, may be given without a value: it is empty then.
    What stands behind it is its value: where an argument is missing for that, the error says so. It is given once.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        bare = {name for one in self.get_params(ctx) if str(one.metavar).startswith("[") for name in one.opts}
        words, taken = list[str](), list[tuple[str, str]]()
        names = [word.partition("=")[0] for word in args]
        if twice := sorted(name for name in bare if name.startswith("-") and names.count(name) > 1):
            raise typer.BadParameter(f"{twice[0]} is given more than once.", ctx)
        for word, following in itertools.zip_longest(args, args[1:]):
            words.append(word)
            if word in bare and word.startswith("-"):
                if following is None or following.startswith("-"):
                    words.append("")
                else:
                    taken.append((word, following))
        try:
            return super().parse_args(ctx, words)
        except typer.BadParameter as error:
            if not error.message and taken and error.param and error.param.param_type_name == "argument":  # missing
                word, following = taken[-1]
                error.message = (
                    f"'{following}' is taken for the value of {word}; if it is none, put {word} behind it: "
                    f"`{ctx.command_path} {following} {word}`."
                )
            raise

    def get_short_help_str(self, limit: int = 0) -> str:
        return str(self.help).partition("\n")[0]

    def get_help_option(self, ctx: Any) -> Any:
        found = super().get_help_option(ctx)
        if found is not None:
            found.metavar = ""
        return found

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [one for one in self.get_params(ctx) if one.param_type_name == "argument"]
        words = [(str(one.metavar), one.required or str(one.metavar).startswith("[")) for one in arguments]
        return ["[OPTIONS]", *(word if plain else f"[{word}]" for word, plain in words)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        headings: dict[str, list[tuple[str, str]]] = {}
        for one in self.get_params(ctx):
            is_option = one.param_type_name == "option"
            heading = getattr(one, "rich_help_panel", None) or ("Options" if is_option else "Arguments")
            if record := one.get_help_record(ctx):
                headings.setdefault(heading, []).append((record[0] if is_option else str(one.metavar), record[1]))
        for heading, records in headings.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class _Commands(TyperGroup):
    """Loads a command when it is called: `taia --help` needs no more than the lines."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in COMMANDS:
            self.commands[args[0]] = _load(args[0])
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        _write_commands(formatter, GROUPS)


def _write_commands(formatter: Any, groups: Mapping[str, Sequence[str]]) -> None:
    width = max(map(len, COMMANDS))
    for heading, names in groups.items():
        with formatter.section(heading):
            formatter.write_dl([(name.ljust(width), COMMANDS[name][1]) for name in names])


def _load(name: str) -> Any:
    module, _, attribute = COMMANDS[name][0].partition(".")
    found = getattr(import_module(f"{__name__}.{module}"), attribute)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False)
        alone.command(name)(found)
        found = alone
    found.rich_markup_mode = None
    for one in found.registered_commands:
        callback: Any = one.callback
        one.cls, one.help = _Command, _help(callback.__doc__ or "")
        name_kinds(callback)
    made = typer.main.get_command(found)
    for one in (made, *getattr(made, "commands", {}).values()):
        let_extrapolate(one)
    return made


def _help(docstring: str) -> str:
    """Lets a docstring flow to the terminal's width, with the examples as they are behind it."""
    paragraphs = [" ".join(lines.split()) for lines in inspect.cleandoc(docstring).split("\n\n")]
    examples = [f"  {one}" for one in paragraphs if one.startswith("taia ")]
    told = [one for one in paragraphs if not one.startswith("taia ")]
    return "\n\n".join([*told, "\n".join(["\b", "Examples:", *examples])])


app = typer.Typer(
    name="taia",
    help="TAIA on the Hugging Face Hub: train all parameters, infer with only the attention updates.",
    cls=_Commands,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    rich_markup_mode=None,  # plain text: rich takes as long to import as everything else here
)
for _name, (_, _line) in COMMANDS.items():
    app.command(_name, help=_line)(lambda: None)


def _print_version(wanted: bool) -> None:
    """Prints the version and ends, when it is asked for."""
    if wanted:
        echo(f"taia-hub {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Takes the options that hold for every command, and shows whoever names none where to begin."""
    if context.invoked_subcommand is not None:
        return
    formatter = context.make_formatter()
    formatter.write_text("TAIA: train all parameters, infer with only the attention updates.")
    _write_commands(formatter, _FIRST)
    formatter.write_paragraph()
    formatter.write_text(
        f"`taia --help` lists all {len(COMMANDS)} commands, `taia COMMAND --help` explains one, with examples."
    )
    echo(formatter.getvalue(), nl=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        arguments: The words after `taia`; those of the process by default.
    """
    _quieten()
    if logging.lastResort is not None:
        logging.lastResort.addFilter(SAFE_RECORDS)  # what shows warnings where nobody set up logging
    words = _moved(sys.argv[1:] if arguments is None else arguments)
    # PEFT calls what transformers deprecates: nothing that whoever types a command can act on
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        app(words, prog_name="hf taia" if Path(sys.argv[0]).stem == "hf-taia" else "taia", obj=words)
    except KeyboardInterrupt:
        echo("Interrupted.", err=True)
        sys.exit(130)
    except Exception as error:
        if "--debug" in words:
            raise
        message, hint = _said(error)
        echo(f"Error: {message}", err=True)
        echo(f"Hint: {hint}", err=True)
        sys.exit(1)


def _quieten() -> None:
    """Keeps bars of work under three seconds off the screen, and what libraries tell programmers.

    Whoever sets one of these variables, or HF_HUB_DISABLE_PROGRESS_BARS=0, sees them. They are read at the import.
    """
    if "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ:
        os.environ.setdefault("TQDM_DELAY", "3")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _moved(words: Sequence[str]) -> list[str]:
    """Puts options that hold for every command before it, wherever they came; what follows `--` is an engine's."""
    end = words.index("--") if "--" in words else len(words)
    ours = [word for word in words[:end] if word in _ANYWHERE]
    return [*ours, *(word for word in words[:end] if word not in _ANYWHERE), *words[end:]]


def _said(error: Exception) -> tuple[str, str]:
    if isinstance(error, TAIAError):
        return error.message, error.hint or "Run `taia --help`, or add --debug for the traceback."
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{short(error.filename)} is longer than the name of a file may be.", "Give a file or a folder's name."
    return by_name(f"{type(error).__name__}: {error}"), "Add --debug for the traceback."
