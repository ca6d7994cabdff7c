"""`taia compare`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from taia_hub.cli.compare_output import Output, compare_prompt, compare_prompts
from taia_hub.cli.options import options_of, taken
from taia_hub.cli.shared import (
    Answering,
    Json,
    Loading,
    MaxNewTokens,
    Repository,
    Source,
    load_model,
    modes,
    parse_mode,
    read_answering,
    read_prompt,
)
from taia_hub.errors import ConfigError, SettingError, closest

_FORMATS = ("text", "json", "markdown", "html")
_SUFFIXES = {".json": "json", ".md": "markdown", ".html": "html", ".htm": "html"}
_PAGE_OPTIONS = {"repo", "ui", "mode", "port", "share", "device", "revision", "token", "trust_remote_code"}
_NOT_WITH = {"--prompt": {"port", "share", "overwrite"}, "--file": {"port", "share"}}
_FLAGS = {"as_json": "--json", "output_format": "--format"}


@options_of(Loading)
@options_of(Answering)
def compare(
    context: typer.Context,
    repo: Repository,
    prompt: Annotated[
        str | None, typer.Option(help="The prompt; '-' reads it from standard input.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="JSONL", help='Prompts, one a line: {"prompt": …} or {"messages": […]}.')
    ] = None,
    ui: Annotated[bool, typer.Option("--ui", help="Open a page in the browser.")] = False,
    mode: Annotated[list[str] | None, modes("none, attention and all")] = None,
    against: Annotated[
        str | None, typer.Option(metavar="MODE", help="Mark what differs from this one, word by word.")
    ] = None,
    max_new_tokens: MaxNewTokens = 256,
    measures: Annotated[
        bool, typer.Option("--measures/--no-measures", help="Entropies, and each answer's likelihood by each mode.")
    ] = True,
    output_format: Annotated[
        str | None,
        typer.Option("--format", help="text, json, markdown or html; by default what the name of --out says, or text."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File for the result; with --file one that is completed, by default NAME.compared.jsonl."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="With --file: throw earlier results away.")] = False,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="With --ui: port of the page.")] = None,
    share: Annotated[bool, typer.Option("--share", help="With --ui: a public link, made by Gradio.")] = False,
    as_json: Json = False,
    **fields: Any,
) -> None:
    """Compare what the modes of a repository answer: one prompt, a file of prompts, or on a page in the browser.

    All modes answer in one batch. Greedy answers have the tokens of their single runs; a sampled one does not depend on
    what stands beside it. Shown are the answers, where they part, their entropies and how likely each mode finds each.
    With --file the table of a run that was stopped is completed by the same command.

    The page (it needs the extra `space`) has a column a mode and one for a weight between TAIA and vanilla, differences
    word by word, a conversation, votes (blind, if you like) and the update's size by layer; programs call /compare with
    `gradio_client`. Environment variables are its limits: TAIA_MAX_NEW_TOKENS, TAIA_MAX_PROMPT_CHARACTERS,
    TAIA_MAX_SECONDS, TAIA_QUEUE_SIZE, TAIA_VOTES, TAIA_VOTES_DATASET, TAIA_DTYPE.

    taia compare org/model-taia --prompt "Why is the sky blue?" --against none

    taia compare org/model-taia --file prompts.jsonl
    """
    from taia_hub.compare import DEFAULT_MODES

    _check_task(context, prompt=prompt, file=file, ui=ui)
    wanted = mode or DEFAULT_MODES
    labels, source = _labels(wanted), taken(Source, fields)
    if ui:
        _open_page(repo, modes=labels, port=port, share=share, device=fields["device"], **source)
        return
    against = _find(against, labels) if against is not None else None
    shown = _format(output_format, as_json, out if file is None else None)
    limits: dict[str, Any] = {"max_new_tokens": max_new_tokens, "measures": measures}
    how = read_answering(**taken(Answering, fields), **limits)
    load = partial(load_model, repo, **fields, **source)
    if file is None:
        compare_prompt(load, read_prompt(prompt or ""), wanted, how, Output(shown, out, against))
    elif shown not in ("text", "json"):
        raise ConfigError(f"--format {shown} has no meaning with --file: results are JSONL.", "Leave it out.")
    else:
        how["overwrite"] = overwrite
        compare_prompts(load, file, out, wanted, how, reference=against or labels[0], as_json=shown == "json")


def _check_task(context: typer.Context, **tasks: Any) -> None:
    """Checks that one thing is asked for, with options that mean something to it."""
    given = [f"--{name}" for name, value in tasks.items() if value is not None and value is not False]
    hint = "Give --prompt TEXT, --file prompts.jsonl, or --ui for a page in the browser."
    if not given:
        raise ConfigError("There is no prompt.", hint)
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} do not go together.", hint)
    for name in context.params:
        source = context.get_parameter_source(name)
        idle = name not in _PAGE_OPTIONS if given[0] == "--ui" else name in _NOT_WITH[given[0]]
        if idle and source is not None and source.name == "COMMANDLINE":
            flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
            raise ConfigError(f"{flag} has no meaning with {given[0]}.", "Leave it out.")


def _labels(modes: Sequence[Any]) -> list[str]:
    from taia_hub.switch.settings import parse_setting

    return [parse_setting(mode).label for mode in modes]


def _find(against: str, labels: Sequence[str]) -> str:
    """Finds the mode that the others are compared with, by its label or as it was given."""
    label = against if against in labels else _labels([parse_mode(against)])[0]
    if label not in labels:
        raise SettingError(
            f"--against '{against}' is none of the modes.{closest(against, labels)}", f"Choose {', '.join(labels)}."
        )
    return label


def _format(name: str | None, as_json: bool, out: Path | None) -> str:
    if as_json and name not in (None, "json"):
        raise ConfigError(f"--json and --format {name} do not go together.", "Leave one out.")
    if as_json:
        return "json"
    if name is None:
        return _SUFFIXES.get(out.suffix.lower(), "text") if out else "text"
    if name not in _FORMATS:
        raise ConfigError(f"--format '{name}' is not known.{closest(name, _FORMATS)}", f"Choose {', '.join(_FORMATS)}.")
    return name


def _open_page(repo: str, *, modes: Sequence[str], **options: Any) -> None:
    from taia_hub.page import launch_page
    from taia_hub.switch.settings import MODES

    other = [mode for mode in modes if mode not in MODES]
    if other:
        raise SettingError(f"The page cannot begin with the mode '{other[0]}'.", f"Choose {', '.join(MODES)}.")
    launch_page(repo, modes=modes, **options)
