"""`taia serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taia_hub.cli.shared import Repository, Revision, Token, Trust, modes, parse_folder, parse_modes, progress
from taia_hub.errors import ConfigError


def print_guide(wanted: bool) -> None:
    """Prints how to serve many modes and ends, when it is asked for."""
    if wanted:
        typer.echo((Path(__file__).parents[1] / "serving" / "guide.md").read_text(encoding="utf-8"), nl=False)
        raise typer.Exit


def serve_model(
    repo: Repository,
    flags: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ENGINE FLAGS]", help="Further flags, passed on to the engine.")
    ] = None,
    engine: Annotated[str, typer.Option(help="vllm, sglang, llama.cpp or transformers.", show_default=False)] = ...,  # type: ignore[assignment]
    mode: Annotated[list[str] | None, modes("the repository's own")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the model; requests ask for NAME:MODE.", show_default=False)
    ] = None,
    gguf: Annotated[
        Path | None, typer.Option(metavar="FILE", help="llama.cpp: the base model as GGUF.", show_default=False)
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is open to the network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="GPUs that each layer is cut over.")] = 1,
    data_parallel: Annotated[int, typer.Option(min=1, help="Copies of the model.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines; above 1 with --print and --head.")] = 1,
    head: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="With --nodes: the first machine.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=parse_folder,
            metavar="DIR",
            help="Folder for the files of the modes, used again by the next start; by default in the Hub's cache.",
            show_default=False,
        ),
    ] = None,
    print_only: Annotated[
        bool,
        typer.Option("--print", help="Prepare the files, print the exact commands for a shell, and start nothing."),
    ] = False,
    guide: Annotated[
        bool,
        typer.Option("--guide", help="Print how to serve modes on many machines.", callback=print_guide, is_eager=True),
    ] = False,
    revision: Revision = None,
    token: Token = None,
    trust_remote_code: Trust = False,
) -> None:
    """Serve modes of a repository with an engine: each is a model NAME:MODE of its OpenAI API, until Ctrl-C.

    vLLM and SGLang hold the base once and a LoRA a mode; llama.cpp takes the base as GGUF; transformers serves a merged
    model a mode, which needs no further engine. Flags of the engine itself follow after `--`.

    taia serve org/model-taia --engine vllm --mode attention --mode all --print

    taia serve org/model-taia --engine transformers --mode attention

    taia serve org/model-taia --engine llama.cpp --gguf base.gguf --mode attention
    """
    from taia_hub.serving import check_installed, check_port, find_engine, plan_serving, run

    found = find_engine(engine)
    if not print_only:
        if nodes > 1:
            raise ConfigError(
                f"--nodes {nodes} cannot be started from here: each machine runs a command of its own.",
                "Add --print, and run what it says on each.",
            )
        check_installed(found)
        check_port(host, port)
    with progress() as bars:
        plan = plan_serving(
            repo,
            engine,
            parse_modes(mode),
            name=name,
            revision=revision,
            out=out,
            gguf=gguf,
            host=host,
            port=port,
            tensor_parallel=tensor_parallel,
            data_parallel=data_parallel,
            nodes=nodes,
            head=head,
            extra=flags or (),
            token=token,
            trust_remote_code=trust_remote_code,
            progress=bars,
        )
    if print_only:
        for command in plan.commands:
            command.write_files()
        typer.echo(plan.text())
        return
    typer.echo(f"Models at http://{host}:{port}/v1: {', '.join(plan.models)}. Ctrl-C ends it.", err=True)
    raise typer.Exit(run(plan.commands[-1]))
