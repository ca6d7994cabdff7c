"""`taia demo` and `taia hub serve`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from taia_hub.cli.printing import echo
from taia_hub.cli.shared import Json, parse_folder


def demo(
    directory: Annotated[
        Path,
        typer.Option("--dir", parser=parse_folder, metavar="DIR", help="Folder for the Hub, the models and the cache."),
    ] = Path("taia-demo"),
    model: Annotated[
        str | None,
        typer.Option(help="Hub id or folder of your own base model, instead of SmolLM2-135M.", show_default=False),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Your own items, as for taia train, instead of medical ones; repeat it.", show_default=False),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of 4 items.")] = 24,
    items: Annotated[int, typer.Option(min=1, help="Held-out items that are measured in each domain.")] = 20,
    as_json: Json = False,
) -> None:
    """Fine-tune a small language model, publish it to a Hub on this disk, load it again and compare its modes.

    It takes about three minutes and 1 GB of disk on two CPU cores, needs no account, and ends in a page to share:
    DIR/report.html. With --model and --data it is your own model and your own items, some of which are held out; beside
    them maths and instructions are measured. The same command again uses what is finished.

    taia demo

    taia demo --data items.jsonl --dir my-demo
    """
    from taia_hub.demo import run_demo

    report = run_demo(
        directory,
        model=model,
        data=data or (),
        steps=steps,
        items=items,
        log=lambda text: echo(text, err=True),
    )
    echo(json.dumps(report.to_json(), indent=2) if as_json else f"\n{report.to_text()}")


hub_app = typer.Typer(
    help="A loopback Hub in a folder, for work offline and for tests.", no_args_is_help=True, add_completion=False
)
hub_app.callback()(lambda: None)  # a group, though of one command


@hub_app.command()
def serve(
    folder: Annotated[Path, typer.Argument(help="Folder that holds the Hub; made if need be.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 picks a free one.")] = 8299,
    stream: Annotated[
        bool, typer.Option("--stream", help="Take weights as LFS streams: for files above a gigabyte, and datasets.")
    ] = False,
) -> None:
    """Serve a Hub from a folder, on this machine only, until Ctrl-C. Other programs find it by the variables it prints.

    taia hub serve ./my-hub

    taia hub serve ./my-hub --port 0 --stream
    """
    from taia_hub.local_hub import LocalHub

    hub = LocalHub(folder, port=port, large_files="lfs" if stream else "regular")
    hub.start()
    echo(f"Serving {folder} at {hub.endpoint}. In another terminal:\n")
    for name, value in hub.environment().items():
        echo(f"export {name}={shlex.quote(value)}")
    echo("\nCtrl-C ends it.")
    hub.serve_forever()
