"""Options of a command made from the fields of a dataclass, so that name, type, default and help are written once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo


def reading(read: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Makes the callback of an option whose texts a function reads; its errors keep their hint, unlike a `parser`'s."""

    def callback(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [read(one) for one in value]
        return None if value is None else read(value)

    return callback


EXTRAPOLATES: ContextVar[bool] = ContextVar("taia_hub_extrapolate", default=False)
"""Whether the command that runs takes modes with weights from -2 to 2."""


def let_extrapolate(command: Any) -> None:
    """Gives a command that has `--mode` the flag `--extrapolate` behind it, which is read before."""
    for place, option in enumerate(command.params):
        if "--mode" in option.opts:
            carrier = typer.Typer(add_completion=False)
            carrier.command()(_extrapolate)
            flag = typer.main.get_command(carrier).params[0]
            flag.rich_help_panel = option.rich_help_panel  # type: ignore[attr-defined]
            command.params.insert(place + 1, flag)
            return


def _extrapolate(
    extrapolate: Annotated[
        bool,
        typer.Option(
            "--extrapolate",
            help="Let the weights of --mode go from -2 to 2, beyond what was trained.",
            metavar="",
            callback=lambda wanted: EXTRAPOLATES.set(wanted),
            is_eager=True,
            expose_value=False,
        ),
    ] = False,
) -> None:
    """Carries the flag; it is no command."""


def name_kinds(command: Callable[..., Any]) -> None:
    """Gives values without a metavar one that a person reads; a flag takes no value, and none is shown."""
    signature = inspect.signature(command, eval_str=True)
    for parameter in signature.parameters.values():
        kind, *information = get_args(parameter.annotation) or (parameter.annotation,)
        kinds = {kind, *get_args(kind), *(inner for one in get_args(kind) for inner in get_args(one))}
        for one in information:
            if isinstance(one, ArgumentInfo) and one.metavar is None:
                one.metavar = parameter.name.upper()
            elif isinstance(one, OptionInfo) and one.metavar is None:
                one.metavar = next((word for made, word in _KINDS.items() if made in kinds), None)
    _sign(command, list(signature.parameters.values()))


def _sign(command: Callable[..., Any], parameters: list[inspect.Parameter]) -> None:
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}


_KINDS = {bool: "", str: "TEXT", int: "N", float: "X", Path: "FILE"}


def offering(*words: str) -> Callable[[str], list[str]]:
    """Makes what the shell completes an option's value with."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


HUB = "Hub and output"
"""Panel of the options that every command ends with."""

Command = TypeVar("Command", bound=Callable[..., None])


def options_of(made: type[Any], *names: str, first: bool = False) -> Callable[[Command], Command]:
    """Gives a command an option for each field of a dataclass, or of `names` alone, as part of its `**fields`.

    `help` in a field's metadata is what the option says, and without it there is none; `panel`, `metavar`, `choices`,
    `least` (less is a usage error), `most`, `flags` (for `--name`, or `--name/--no-name`) and `read` (a function of the
    text) are optional. A tuple is an option that is repeated; what is neither text, number, path nor bool comes as a
    text, for the command to read. What the command declares itself is its own, and comes before the fields in its
    help, or behind them if they are `first`.
    """

    def give(command: Command) -> Command:
        signature, kinds = inspect.signature(command, eval_str=True), get_type_hints(made)
        own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        wanted = [one for one in fields(made) if one.metadata.get("help") and one.name in (names or kinds)]
        given = [_parameter(one, kinds[one.name]) for one in wanted if one.name not in signature.parameters]
        parameters = [one.replace(kind=one.KEYWORD_ONLY) for one in ([*given, *own] if first else [*own, *given])]
        _sign(command, parameters)
        return command

    return give


def _parameter(field: Field[Any], kind: Any) -> inspect.Parameter:
    default = None if field.default is MISSING else field.default
    if get_origin(kind) is tuple:
        kind, default = list[get_args(kind)[0]] | None, list(default or ()) or None  # type: ignore[misc]
    elif len([one for one in get_args(kind) if one is not NoneType]) > 1 or kind is Any:
        kind, default = str | None, None if default is None else str(default)
    option = typer.Option(
        *filter(None, [field.metadata.get("flags")]),
        help=field.metadata["help"],
        rich_help_panel=field.metadata.get("panel"),
        metavar=field.metadata.get("metavar") or "|".join(field.metadata.get("choices", ())) or None,
        min=field.metadata.get("least"),
        max=field.metadata.get("most"),
        callback=reading(field.metadata["read"]) if "read" in field.metadata else None,
        autocompletion=offering(*field.metadata["choices"]) if "choices" in field.metadata else None,
        show_default=default not in (None, ""),
    )
    annotation = Annotated[kind, option]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def taken(made: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """Takes the fields of a dataclass out of a command's values."""
    return {one.name: values.pop(one.name) for one in fields(made) if one.name in values}


def filled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that have a value, for a dataclass to be made of them: what is repeated as a tuple."""
    given = {name: value for name, value in fields.items() if value is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def typed(context: typer.Context) -> set[str]:
    """Returns the names of the parameters that were given on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
