"""`taia serve`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from taia_hub.cli.options import offering, options_of
from taia_hub.cli.printing import echo
from taia_hub.cli.shared import Source, Update, folder, modes, progress
from taia_hub.engines import Order
from taia_hub.errors import ConfigError


def _print_guide(wanted: bool) -> None:
    """Prints how to serve many modes and ends, when it is asked for."""
    if wanted:
        echo((Path(__file__).parents[1] / "serving" / "guide.md").read_text(encoding="utf-8"), nl=False)
        raise typer.Exit


@options_of(Source)
@options_of(Order)
def serve_model(
    repo: Update,
    flags: Annotated[
        list[str] | None, typer.Argument(metavar="-- ENGINE FLAGS", help="Further flags, passed on to the engine.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="vllm, sglang, llama.cpp or transformers; by default the first that is installed, llama.cpp with "
            "--gguf.",
            show_default=False,
        ),
    ] = None,
    mode: Annotated[list[str] | None, modes("the repository's own")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the model; requests ask for NAME:MODE.", show_default=False)
    ] = None,
    gguf: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|TYPE",
            help="llama.cpp: the base model as GGUF: a file, ORG/REPO/FILE.gguf on the Hub, or a type to write it in "
            "(float32, bfloat16, float16, q8_0); by default it is written as its weights are, and kept.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        folder("Folder for the files of the modes, used again by the next start; by default in the Hub's cache."),
    ] = None,
    print_only: Annotated[
        bool,
        typer.Option("--print", help="Prepare the files, print the exact commands for a shell, and start nothing."),
    ] = False,
    platform: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="kserve|ray-serve|llm-d|dynamo",
            help="With --print: the manifest with which this platform serves the modes by vLLM, in place of commands.",
            show_default=False,
            autocompletion=offering("kserve", "ray-serve", "llm-d", "dynamo"),
        ),
    ] = None,
    guide: Annotated[
        bool,
        typer.Option(
            "--guide", help="Print how to serve modes on many machines.", callback=_print_guide, is_eager=True
        ),
    ] = False,
    **fields: Any,
) -> None:
    """Serve modes of a repository with an engine: each is a model NAME:MODE of its OpenAI API, until Ctrl-C.

    vLLM and SGLang hold the base once and a LoRA a mode; transformers serves a merged model a mode, which needs no
    further engine. llama.cpp takes the base as GGUF, which is written once, and a LoRA a role: every setting is there
    in each request, as the model NAME:SETTING or in the field inference_modules; --mode says which are listed first and
    how the LoRAs are cut. Flags of the engine follow after `--`.

    taia serve org/model-taia

    taia serve org/model-taia --engine vllm --mode attention --mode all --print

    taia serve org/model-taia --engine llama.cpp --gguf q8_0 --mode attention

    taia serve org/model-taia --mode attention --mode all --for kserve --print
    """
    if platform is not None:
        given = {**fields, "name": name, "out": out, "extra": flags or ()}
        echo(_manifest(repo, platform, engine, mode or (), gguf, print_only, given), nl=False)
        return
    from taia_hub.serving import check_gguf, check_startable, choose_engine, find_engine, plan_serving, run

    found = choose_engine(gguf) if engine is None else find_engine(engine)
    check_gguf(found, gguf)
    if not print_only:
        check_startable(found, fields["host"], fields["port"], fields["nodes"])
    fields |= {"name": name, "out": out, "gguf": gguf, "extra": flags or ()}
    with progress() as bars:
        plan = plan_serving(repo, found.name, mode or (), progress=bars, **fields)
    if print_only:
        for command in plan.commands:
            command.write_files()
        echo(plan.text())
        return
    for note in plan.notes:
        echo(note, err=True)
    echo(f"{found.name} serves at {plan.url}: {', '.join(plan.models)}. Ctrl-C ends it.", err=True)
    if code := run(plan.commands[-1], plan.check):
        own = f"; its flags here are {shlex.join(flags)}" if flags else ""
        echo(f"Error: {found.name} ended with exit code {code}.\nHint: Its lines above say why{own}.", err=True)
    raise typer.Exit(code)


def _manifest(
    repo: str,
    platform: str,
    engine: str | None,
    modes: Sequence[Any],
    gguf: str | None,
    print_only: bool,
    fields: dict[str, Any],
) -> str:
    """Returns the manifest for a platform; what says where a server of ours would run is refused."""
    from taia_hub.serving.handover import hand_over
    from taia_hub.serving.platforms import find_platform

    find_platform(platform)
    if not print_only:
        raise ConfigError(
            f"--for {platform} writes a manifest, and nothing is started on a cluster from here.",
            "Add --print, and give what it says to that platform.",
        )
    if engine not in (None, "vllm") or gguf is not None:
        what = "--gguf" if gguf is not None else f"--engine {engine}"
        raise ConfigError(f"--for {platform} is served by vLLM; {what} does not apply.", "Leave it out.")
    for option in ("host", "port", "nodes", "head"):
        default = Order.__dataclass_fields__[option].default
        if fields.pop(option) != default:
            raise ConfigError(
                f"--{option} has no meaning with --for {platform}, which places its servers itself.",
                "Leave it out; --data-parallel is the number of servers, --tensor-parallel the GPUs of each.",
            )
    with progress() as bars:
        return hand_over(repo, platform, modes, **fields, progress=bars)
