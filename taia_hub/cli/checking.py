"""`taia check`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from taia_hub.cli.options import options_of
from taia_hub.cli.printing import echo
from taia_hub.cli.shared import Json, Source, echo_json


@options_of(Source, "revision", "token")
def check(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="Hub id or folder of a PEFT adapter or an export.")],
    engine: Annotated[
        str | None, typer.Option(help="Ask vllm, sglang, tgi, lorax, llama.cpp or peft alone.", show_default=False)
    ] = None,
    as_json: Json = False,
    **source: Any,
) -> None:
    """Say which engines take an adapter as it is, and what the others refuse; exit code 1 where none takes it.

    No weights are loaded. What an engine refuses, `taia export` may write so that it takes it.

    taia check ./lora

    taia check org/adapter --engine vllm
    """
    from taia_hub import hub
    from taia_hub.engines.checking import check_adapter

    access = hub.HubAccess(token=source["token"])
    found = check_adapter(adapter, (engine,) if engine else (), revision=source["revision"], access=access)
    echo_json(found.to_dict()) if as_json else _print(found)
    if not found.taken_by:
        raise typer.Exit(1)


def _print(found: Any) -> None:
    for engine, verdict in found.verdicts.items():
        echo(f"{engine:<10}{'refuses it' if verdict.problems else 'takes it as it is'}")
        for reason, source in zip(verdict.problems, verdict.sources, strict=True):
            echo(f"  {reason}\n    by {source}")
        for note in () if verdict.problems else verdict.notes:
            echo(f"  note: {note}")
    if not found.base.modules:
        echo("The base model's tensors could not be read; whether layers lack an update was not looked at.")
    if len(found.taken_by) < len(found.verdicts):
        echo(
            f"Next: `taia export {found.name} --mode all --out DIR` writes it as a LoRA that every engine takes, where "
            "one can hold it; `taia merge`, with the same words, writes a whole model."
        )
