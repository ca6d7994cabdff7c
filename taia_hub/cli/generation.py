"""`taia generate`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from taia_hub.cli.options import options_of, taken
from taia_hub.cli.shared import (
    Answering,
    Json,
    Loading,
    MaxNewTokens,
    Repository,
    echo_json,
    load_model,
    modes,
    read_answering,
    read_prompt,
)


@options_of(Loading)
@options_of(Answering)
def generate(
    repo: Repository,
    prompt: Annotated[str, typer.Option(help="The prompt; '-' reads it from standard input.")],
    mode: Annotated[list[str] | None, modes("the repository's own", "repeat it to see several side by side")] = None,
    max_new_tokens: MaxNewTokens = 128,
    as_json: Json = False,
    **fields: Any,
) -> None:
    """Answer a prompt under one mode or several.

    taia generate org/model-taia --prompt "Why is the sky blue?" --mode none --mode attention
    """
    from taia_hub.compare import compare

    how = read_answering(**taken(Answering, fields), max_new_tokens=max_new_tokens, measures=False)
    text = read_prompt(prompt)
    model, tokenizer = load_model(repo, **fields)
    found = compare(model, tokenizer, text, mode or [model.inference_modules], **how).answers
    if as_json:
        echo_json([{"mode": answer.mode, "text": answer.text.strip()} for answer in found])
        return
    for answer in found:
        said = answer.text.strip()
        typer.echo(f"[{answer.mode}]\n{said}\n" if len(found) > 1 else said)
