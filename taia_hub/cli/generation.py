"""`taia generate`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from taia_hub.cli.compare_output import say_notes, show_answers
from taia_hub.cli.options import options_of, taken
from taia_hub.cli.printing import echo
from taia_hub.cli.shared import (
    Answering,
    Json,
    Loading,
    MaxNewTokens,
    Update,
    echo_json,
    load_model,
    modes,
    one_prompt,
    read_answering,
    read_prompt,
)
from taia_hub.errors import ConfigError


@options_of(Loading)
@options_of(Answering)
def generate(
    repo: Update,
    text: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="The prompt; '-' reads it from standard input.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="The prompt, as an option.", show_default=False)] = None,
    mode: Annotated[list[str] | None, modes("the repository's own", "repeat it to see several side by side")] = None,
    max_new_tokens: MaxNewTokens = 128,
    as_json: Json = False,
    **fields: Any,
) -> None:
    """Answer a prompt under one mode or several, as it is written.

    taia generate org/model-taia "Why is the sky blue?"

    taia generate somebody/lora "Why is the sky blue?" --mode none --mode attention --temperature 0.7 --top-p 0.9
    """
    given = one_prompt(text, prompt)
    if given is None:
        raise ConfigError("There is no prompt.", 'Give it after the repository, in quotes: "Why is the sky blue?".')
    how = read_answering(**taken(Answering, fields), max_new_tokens=max_new_tokens, measures=False)
    given = read_prompt(given)
    from taia_hub.compare import stream_compare

    model, tokenizer = load_model(repo, **fields)
    wanted = mode or [model.inference_modules]
    states = stream_compare(model, tokenizer, given, wanted, **how)
    found, stopped = show_answers(states, len(wanted), quiet=as_json)
    if as_json and found:
        echo_json([{"mode": answer.mode, "text": answer.text.strip()} for answer in found.answers])
    say_notes(found)
    if stopped:
        echo("Stopped.", err=True)
        raise typer.Exit(130)
