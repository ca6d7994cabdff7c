"""`taia generate`."""

from __future__ import annotations

from typing import Annotated

import typer

from taia_hub.cli.shared import (
    DeviceMap,
    Dtype,
    Json,
    MaxNewTokens,
    Raw,
    Repository,
    Revision,
    Seed,
    System,
    Temperature,
    Token,
    Trust,
    echo_json,
    load_model,
    modes,
    parse_modes,
    read_prompt,
    read_sampling,
)


def generate(
    repo: Repository,
    prompt: Annotated[str, typer.Option(help="The prompt; '-' reads it from standard input.")],
    mode: Annotated[list[str] | None, modes("the repository's own", "repeat it to see several side by side")] = None,
    system: System = None,
    raw: Raw = False,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    revision: Revision = None,
    token: Token = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Answer a prompt under one mode or several.

    taia generate org/model-taia --prompt "Why is the sky blue?" --mode none --mode attention
    """
    from taia_hub.compare import compare

    wanted = parse_modes(mode)
    text = read_prompt(prompt)
    model, tokenizer = load_model(
        repo,
        dtype=dtype,
        device_map=device_map,
        revision=revision,
        token=token,
        trust_remote_code=trust_remote_code,
    )
    found = compare(
        model,
        tokenizer,
        text,
        wanted or [model.inference_modules],
        system=system,
        chat=not raw,
        seed=seed,
        measures=False,
        max_new_tokens=max_new_tokens,
        **read_sampling(temperature),
    ).answers
    if as_json:
        echo_json([{"mode": answer.mode, "text": answer.text.strip()} for answer in found])
        return
    for answer in found:
        said = answer.text.strip()
        typer.echo(f"[{answer.mode}]\n{said}\n" if len(found) > 1 else said)
