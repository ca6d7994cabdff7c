"""`taia compare`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from taia_hub.cli.compare_output import Output, compare_prompt, compare_prompts
from taia_hub.cli.options import options_of, taken
from taia_hub.cli.printing import echo
from taia_hub.cli.shared import (
    Answering,
    Json,
    Loading,
    MaxNewTokens,
    Source,
    Update,
    load_model,
    modes,
    one_prompt,
    parse_mode,
    read_answering,
    read_prompt,
    say_device,
)
from taia_hub.errors import ConfigError, RepositoryError, SettingError, closest
from taia_hub.switch.modes import TUNED, canonical_mode

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FORMATS = ("text", "json", "markdown", "html")
_SUFFIXES = {".json": "json", ".md": "markdown", ".html": "html", ".htm": "html"}
_PAGE_OPTIONS = {"repo", "words", "ui", "mode", "port", "share", "device", "revision", "token", "trust_remote_code"}
_NOT_WITH = {"--prompt": {"port", "share", "overwrite"}, "--file": {"port", "share"}}
_FLAGS = {"as_json": "--json", "output_format": "--format"}


@options_of(Loading)
@options_of(Answering)
def compare(
    context: typer.Context,
    repo: Update,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[REPO|DIR]... [PROMPT]",
            help="More models, set side by side (a model without an adapter too), and the prompt, in quotes.",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="The prompt, as an option; '-' reads it from standard input.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="JSONL", help='Prompts, one a line: {"prompt": …} or {"messages": […]}.')
    ] = None,
    ui: Annotated[bool, typer.Option("--ui", help="Open a page in the browser.")] = False,
    mode: Annotated[list[str] | None, modes("none, attention and all; of several models each one's own")] = None,
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
    """Compare what the modes of a model answer, or several models: one prompt, a file of prompts, or on a page.

    All modes answer in one batch. Greedy answers have the tokens of their single runs; a sampled one does not depend on
    what stands beside it. Shown are the answers, where they part, their entropies and how likely each mode finds each.
    With --file the table of a run that was stopped is completed by the same command.

    A word that is a folder here or looks like owner/name is a model; anything else is the prompt. Several models are
    loaded one after the other, so that one at a time is in memory; how likely one finds another's answer is not told.

    The page (it needs the extra `space`) has a column a mode and one for a weight between TAIA and vanilla, differences
    word by word, a conversation, votes (blind, if you like) and the update's size by layer; programs call /compare with
    `gradio_client`. Environment variables are its limits: TAIA_MAX_NEW_TOKENS, TAIA_MAX_PROMPT_CHARACTERS,
    TAIA_MAX_SECONDS, TAIA_QUEUE_SIZE, TAIA_VOTES, TAIA_VOTES_DATASET, TAIA_DTYPE.

    taia compare somebody/lora "Why is the sky blue?" --against none

    taia compare somebody/lora somebody/other-lora "Why is the sky blue?"

    taia compare org/model-taia --file prompts.jsonl
    """
    models, text = split_words([repo, *(words or ())])
    prompt = one_prompt(text, prompt)
    if len(models) > 1:
        _check_models(models, prompt, file=file, ui=ui, revision=fields["revision"])
    _check_task(context, prompt=prompt, file=file, ui=ui)
    question = read_prompt(prompt) if prompt is not None else ""
    from taia_hub.compare import DEFAULT_MODES, stream_compare

    source = taken(Source, fields)
    wanted: Sequence[Any] = mode or DEFAULT_MODES
    if len(models) == 1:
        wanted, against = _resolved(wanted, against, repo, source)
    labels = _labels(wanted)
    if ui:
        _open_page(repo, modes=labels, port=port, share=share, device=fields["device"], **source)
        return
    shown = _format(output_format, as_json, out if file is None else None)
    limits: dict[str, Any] = {"max_new_tokens": max_new_tokens, "measures": measures}
    how = read_answering(**taken(Answering, fields), **limits)
    load: Callable[..., tuple[Any, Any]] = partial(load_model, **fields, **source)
    if len(models) > 1:
        candidates = _candidates(models, mode or (), source["token"])
        against = _find_column(against, candidates)
        start = partial(_stream_models, candidates, load, question, how)
        compare_prompt(start, Output(shown, out, against))
        return
    against = _find(against, labels) if against is not None else None
    if file is None:
        compare_prompt(lambda: stream_compare(*load(repo), question, wanted, **how), Output(shown, out, against))
    elif shown not in ("text", "json"):
        raise ConfigError(f"--format {shown} has no meaning with --file: results are JSONL.", "Leave it out.")
    else:
        known = partial(_known, repo, fields["dtype"], source)
        rest: dict[str, Any] = {"overwrite": overwrite, "reference": against or labels[0], "as_json": shown == "json"}
        compare_prompts(partial(load, repo), known, file, out, wanted, how, **rest)


def split_words(words: Sequence[str]) -> tuple[list[str], str | None]:
    """Tells the models among the words of a command line from the prompt, of which there is one or none.

    Raises:
        ConfigError: If there are several prompts, or a word may be a path or a prompt.

    Example:
        >>> split_words(["org/a", "org/b", "Why is the sky blue?"])
        (['org/a', 'org/b'], 'Why is the sky blue?')
    """
    models, prompts = [words[0]], []
    for word in words[1:]:
        if os.path.isdir(word) or _HUB_ID.fullmatch(word):
            models.append(word)
        elif re.fullmatch(r"~\S*|\S*/\S*", word):
            raise ConfigError(
                f"'{word}' is no folder here, and no Hub id.",
                "Correct the path; if it is the prompt, give it with --prompt.",
            )
        else:
            prompts.append(word)
    if len(prompts) > 1:
        raise ConfigError(
            f"There are {len(prompts)} prompts: {', '.join(map(repr, prompts))}.",
            f'Put the prompt in quotes: "{" ".join(prompts)}". A model is a folder, or owner/name on the Hub.',
        )
    return models, prompts[0] if prompts else None


def _check_models(models: Sequence[str], prompt: str | None, *, revision: str | None, **tasks: Any) -> None:
    """Checks what has no meaning with several models."""
    taken_for = f"'{models[1]}' was taken for a model, as it is a folder here or looks like owner/name"
    if prompt is None and not any(tasks.values()):
        raise ConfigError("There is no prompt.", f"{taken_for}; if it is the prompt, give it with --prompt.")
    given = [f"--{name}" for name, value in {**tasks, "revision": revision}.items() if value]
    if given:
        raise ConfigError(
            f"{given[0]} takes one model, and {len(models)} came.", f"Name one. {taken_for}; a prompt may be an option."
        )


def _candidates(models: Sequence[str], modes: Sequence[Any], token: str | None) -> Any:
    from taia_hub.compare.models import find_candidates

    try:
        return find_candidates(models, modes, token=token)
    except (ConfigError, RepositoryError) as error:
        more = "A word that is a folder here, or looks like owner/name, is a model: give such a prompt with --prompt."
        raise type(error)(error.message, " ".join(filter(None, [error.hint, more]))) from error


def _stream_models(candidates: Any, load: Any, prompt: str, how: dict[str, Any]) -> Any:
    from taia_hub.compare.models import stream_models

    return stream_models(candidates, lambda one: load(one.name, plain=not one.settings), prompt, **how)


def _find_column(against: str | None, candidates: Any) -> str | None:
    """Finds the column that the others are compared with, by its label, or by a model that has one column."""
    labels = [label for one in candidates for label in one.labels]
    if against is None or against in labels:
        return against
    for one in candidates:
        if against in (one.title, one.name) and len(one.labels) == 1:
            return str(one.labels[0])
    raise SettingError(
        f"--against '{against}' is none of the columns.{closest(against, labels)}",
        f"Choose {', '.join(map(repr, labels))}.",
    )


def _known(repo: str, dtype: str, source: dict[str, Any]) -> tuple[Any, Any]:
    """Says which model it is, and what its answers depend on besides, without loading it."""
    from taia_hub.evaluation.environment import identify_files, known_inputs

    place = {"revision": source["revision"], "token": source["token"]}
    inputs = known_inputs(repo, **place, trust_remote_code=source["trust_remote_code"])
    return identify_files(repo, dtype=dtype, **place), inputs


def _check_task(context: typer.Context, **tasks: Any) -> None:
    """Checks that one thing is asked for, with options that mean something to it."""
    given = [f"--{name}" for name, value in tasks.items() if value is not None and value is not False]
    hint = "Give it in quotes after the model, or give --prompt TEXT, --file prompts.jsonl, or --ui for a page."
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


def _resolved(
    modes: Sequence[Any], against: str | None, repo: str, source: dict[str, Any]
) -> tuple[Sequence[Any], str | None]:
    """Puts what a repository publishes in the place of `tuned`."""
    named = canonical_mode(against or "")
    if TUNED not in (*modes, named):
        return modes, against
    from taia_hub.hub import HubAccess
    from taia_hub.repository.update_files import open_repository

    published = open_repository(repo, HubAccess(token=source["token"]), revision=source["revision"]).config.setting
    return (
        [published.value if mode == TUNED else mode for mode in modes],
        published.label if named == TUNED else against,
    )


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
    from taia_hub.page import PageSettings, launch_page
    from taia_hub.switch.modes import MODES

    other = [mode for mode in modes if mode not in MODES]
    if other:
        raise SettingError(f"The page cannot begin with the mode '{other[0]}'.", f"Choose {', '.join(MODES)}.")
    settings = PageSettings.from_environment()
    echo(f"Votes are kept in {settings.votes_place} (TAIA_VOTES names another file).", err=True)
    launch_page(repo, modes=modes, settings=settings, on_load=say_device, **options)
