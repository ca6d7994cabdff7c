"""`taia space create`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from taia_hub.cli.options import options_of
from taia_hub.cli.printing import echo
from taia_hub.cli.shared import Json, Private, Source, echo_json, folder
from taia_hub.errors import ConfigError

space_app = typer.Typer(
    help="Spaces on the Hub that compare the modes of a model.", no_args_is_help=True, add_completion=False
)
space_app.callback()(lambda: None)  # a group, though of one command


@space_app.command("create")
@options_of(Source, "revision", "token")
def space_create(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Hub id of a TAIA repository.")],
    space: Annotated[
        str | None, typer.Option(metavar="ID", help="Hub id of the Space; REPO-compare by default.", show_default=False)
    ] = None,
    package: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION|GIT|bundle",
            help="How it gets taia-hub: a version, a git+https address, or the source beside its app; by default this "
            "version where an index has it, else bundle.",
            show_default=False,
        ),
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(
            help="Hardware to ask for; a new Space asks for zero-a10g where the model fits, an old one stays as it is.",
            show_default=False,
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the Space.", show_default=False)] = None,
    link: Annotated[bool, typer.Option("--link/--no-link", help="Link the model's card to the Space.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the Space to a folder; publish nothing.")] = False,
    out: Annotated[Path | None, folder("That folder; named as the Space by default.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Make a public Space without asking.")] = False,
    private: Private = None,
    as_json: Json = False,
    **source: Any,
) -> None:
    """Make a Space that compares the modes of a model, or bring it up to date.

    It is README, pinned requirements and an app, in one commit, and is linked on the model's card; a public one is
    asked about. Free personal accounts may host two on ZeroGPU, which a new one asks for where the model fits. What you
    changed in the Space, and your own files there, stay. Variables of the Space are its limits, as of
    `taia compare --ui`.

    taia space create org/model-taia --dry-run

    taia space create org/model-taia --private
    """
    from taia_hub import hub
    from taia_hub.space import making as space_making

    if out is not None and not dry_run:
        raise ConfigError("--out is the folder of --dry-run.", "Add --dry-run, or leave --out out.")
    if dry_run:
        out = out or Path((space or f"{repo}-compare").rpartition("/")[2])
    commit = hub.Commit(private=private, token=source["token"])
    how = {"space_id": space, "revision": source["revision"], "package": package, "hardware": hardware}
    plan = space_making.plan_space(repo, commit, **how, title=title, out=out)
    if plan.makes_public and not yes:
        _ask(plan.space_id, plan.model.closed)
    done = space_making.write_space(plan) if dry_run else space_making.publish_space(plan, link=link)
    _echo(done, dry_run, as_json)


def _echo(done: Any, dry_run: bool, as_json: bool) -> None:
    if as_json:
        echo_json(dataclasses.asdict(done))
        return
    for sentence in done.kept:
        echo(f"Kept: {sentence}.", err=True)
    for sentence in done.warnings:
        echo(f"Warning: {sentence}", err=True)
    if not done.files and not done.deleted:
        echo(f"{done.url} is up to date.")
    else:
        echo(f"{'Written to' if dry_run else 'Published'} {done.url}")
    if done.card_commit:
        echo(f"Linked from the model's card: {done.card_commit}")


def _ask(space_id: str, closed: tuple[str, ...]) -> None:
    """Asks before a Space is made that everybody sees."""
    if not is_terminal():
        raise ConfigError(
            f"'{space_id}' would be a public Space, and nobody is there to be asked.",
            "Give --yes to make it public, or --private.",
        )
    names = " and ".join(f"'{name}'" for name in closed)
    shown = f" It would show the name of {names}, which not everybody may read." if closed else ""
    typer.confirm(f"Make the public Space '{space_id}'?{shown}", abort=True, err=True)


def is_terminal() -> bool:
    """Tells whether somebody can be asked."""
    return sys.stdin.isatty()
