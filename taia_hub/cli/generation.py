"""`taia generate`."""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated, Any

import typer

from taia_hub.cli.shared import Json, Repository, Revision, Token, Trust, check_dtype, echo_json, parse_mode
from taia_hub.errors import ConfigError


def generate(
    repo: Repository,
    prompt: Annotated[str, typer.Option(help="The prompt; '-' reads it from standard input.")],
    mode: Annotated[
        list[str] | None, typer.Option(help="A mode, or a JSON mapping; repeat it to see several side by side.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without the chat template.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    dtype: Annotated[str, typer.Option(help="dtype of the base model, as in bfloat16.")] = "auto",
    device_map: Annotated[str | None, typer.Option(help="Where the model goes, as in auto or cuda.")] = None,
    revision: Revision = None,
    token: Token = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Answer a prompt under one mode or several."""
    from transformers import set_seed

    from taia_hub import TAIAForCausalLM
    from taia_hub._tokenizer import load_tokenizer
    from taia_hub.answering import answers

    modes = [parse_mode(text) for text in mode] if mode else None
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text:
        raise ConfigError("The prompt is empty.", "Give a text with --prompt, or '-' and text on standard input.")
    loading: dict[str, Any] = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
    model = TAIAForCausalLM.from_pretrained(repo, dtype=check_dtype(dtype), device_map=device_map, **loading)
    tokenizer = load_tokenizer(model, token=token, trust_remote_code=trust_remote_code)
    set_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    found = answers(
        model,
        tokenizer,
        text,
        modes or [model.inference_modules],
        system=system,
        chat=not raw,
        max_new_tokens=max_new_tokens,
        **sampling,
    )
    if as_json:
        echo_json([dataclasses.asdict(answer) for answer in found])
        return
    for answer in found:
        typer.echo(f"[{answer.mode}]\n{answer.text}\n" if len(found) > 1 else answer.text)
