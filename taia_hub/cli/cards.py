"""`taia card`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taia_hub.cli.shared import Json, Message, Repository, Revision, Token, Trust, echo_json


def card(
    repo: Repository,
    write: Annotated[bool, typer.Option("--write", help="Write the card into the folder.")] = False,
    push: Annotated[bool, typer.Option("--push", help="Publish the card, and the files given, in one commit.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Check every fact on the card that is there; exit status 1 if it lies.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Write or publish without showing the difference.")] = False,
    variant: Annotated[str, typer.Option(help="Template: model_card, short, or one of --template-dir.")] = "model_card",
    template_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Templates of your own; they come before ours.")
    ] = None,
    repo_id: Annotated[str | None, typer.Option(help="Hub id that the card of a folder shows.")] = None,
    license_: Annotated[str | None, typer.Option("--license", help="Licence; the base model's by default.")] = None,
    license_name: Annotated[str | None, typer.Option(help="Its name, with --license other.")] = None,
    license_link: Annotated[str | None, typer.Option(help="Link to it, with --license other.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="Code of a language, as in en; repeat it.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Hub id of a training data set; repeat it.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="One more tag; repeat it.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Example prompt for the Hub's page; repeat it.")] = None,
    results: Annotated[Path | None, typer.Option(metavar="FILE", help="Results of `taia eval`.")] = None,
    analysis: Annotated[Path | None, typer.Option(metavar="FILE", help="Numbers of `taia analyze`.")] = None,
    training: Annotated[Path | None, typer.Option(metavar="FILE", help="How it was trained, as JSON.")] = None,
    figures: Annotated[Path | None, typer.Option(metavar="DIR", help="Figures of `taia analyze`.")] = None,
    message: Message = None,
    revision: Revision = None,
    token: Token = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Make the card of a repository again, or check it. Prints it unless --write or --push says where it goes.

    What you changed on the card stays.
    """
    from taia_hub.repository import card_updating

    request = card_updating.CardRequest(
        repo_id=repo_id,
        template=variant,
        template_dir=template_dir,
        license=license_,
        license_name=license_name,
        license_link=license_link,
        language=tuple(language or ()),
        datasets=tuple(dataset or ()),
        tags=tuple(tag or ()),
        widget=tuple(prompt or ()),
        results=results,
        analysis=analysis,
        training=training,
        figures=figures,
    )
    card_updating.refuse_contradictions(repo, write=write, push=push, check=check)
    if check:
        findings = card_updating.check_repository_card(
            repo, request, revision=revision, token=token, trust_remote_code=trust_remote_code
        )
        wrong = sum(not finding.ok for finding in findings)
        if as_json:
            echo_json([vars(finding) for finding in findings])
        else:
            for finding in findings:
                typer.echo(str(finding))
            typer.echo(f"{len(findings)} facts checked, {wrong} wrong.")
        raise typer.Exit(1 if wrong else 0)
    made = card_updating.make_card(repo, request, revision=revision, token=token, trust_remote_code=trust_remote_code)
    for sentence in made.kept:
        typer.echo(f"Kept: {sentence}.", err=True)
    if not (write or push):
        echo_json({"card": made.text, "kept": made.kept}) if as_json else typer.echo(made.text, nl=False)
        return
    changed = made.difference()
    if not changed and not made.others:
        echo_json({"where": None}) if as_json else typer.echo(f"The card of {repo} is up to date.")
        return
    if not yes:
        typer.echo(changed, nl=False, err=as_json)
        for name in made.others:
            typer.echo(f"and {name}", err=as_json)
        typer.confirm("Publish this?" if push else "Write this?", abort=True, err=as_json)
    where = card_updating.publish_card(made, message, token, revision) if push else card_updating.write_card(made)
    echo_json({"where": where}) if as_json else typer.echo(f"{'Published' if push else 'Written to'} {where}")
