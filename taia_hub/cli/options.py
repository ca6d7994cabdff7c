"""Options of a command made from the fields of a dataclass, so that name, type, default and help are written once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

Command = TypeVar("Command", bound=Callable[..., None])


def options_of(made: type[Any]) -> Callable[[Command], Command]:
    """Gives a command an option for each field of a dataclass that has a help text, in place of its `**fields`.

    Args:
        made: The dataclass. `help` in a field's metadata is what the option says; `panel`, `metavar`, `choices`,
            `least` (less is a usage error) and `flags` (for `--name`, or `--name/--no-name`) are optional. A tuple is
            an option that is repeated; what is neither text, number, path nor bool comes as a text, for the command to
            read.
    """

    def give(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True).parameters
        kinds = get_type_hints(made)
        shown = [one for one in fields(made) if one.metadata.get("help") and one.name not in own]
        parameters = [_parameter(one, kinds[one.name]) for one in shown]
        parameters += [one.replace(kind=one.KEYWORD_ONLY) for one in own.values() if one.kind is not one.VAR_KEYWORD]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
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
        show_default=default not in (None, ""),
    )
    annotation = Annotated[kind, option]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def filled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that have a value, for a dataclass to be made of them: what is repeated as a tuple."""
    given = {name: value for name, value in fields.items() if value is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def typed(context: typer.Context) -> set[str]:
    """Returns the names of the parameters that were given on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
