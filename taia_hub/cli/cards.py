"""`taia card`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from taia_hub.cli.options import filled, options_of, taken
from taia_hub.cli.printing import echo
from taia_hub.cli.shared import Json, Message, Source, Update, echo_json, published
from taia_hub.errors import safe_text
from taia_hub.repository.card_request import CardRequest


@options_of(Source)
@options_of(CardRequest)
def card(
    repo: Update,
    write: Annotated[bool, typer.Option("--write", help="Write the card into the folder.")] = False,
    push: Annotated[bool, typer.Option("--push", help="Publish the card, and the files given, in one commit.")] = False,
    pr: Annotated[
        bool, typer.Option("--pr", "--create-pr", help="With --push: as a pull request, for somebody else's model.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Check every fact on the card that is there; exit status 1 if it lies.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="With --check: every fact, and where words differ.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Write or publish without showing the difference.")] = False,
    message: Message = None,
    as_json: Json = False,
    **fields: Any,
) -> None:
    """Make the card of a repository again, or check it. Prints it unless --write or --push says where it goes.

    It says what the model is, which mode to use as far as the results tell, scores by mode with intervals, snippets,
    method and ranks by role, provenance with hashes, limits and citation; what is not known is absent. What you changed
    stays: sections that you edited or added, metadata keys that you set, and text between `<!-- taia:yours -->` and
    `<!-- /taia:yours -->`. What changes is shown first, and asked about.

    The card of a plain adapter stays its author's: it gets one section, with the modes and how to load them.

    taia card ./model-taia --write --yes

    taia card org/model-taia --check

    taia card somebody/lora --push --pr
    """
    from taia_hub import hub
    from taia_hub.repository import card_updating

    source = taken(Source, fields)
    request = CardRequest(**filled(fields))
    access = hub.HubAccess(token=source.pop("token"))
    card_updating.refuse_contradictions(repo, write=write, push=push, check=check, pr=pr)
    if check:
        _echo_findings(card_updating.check_repository_card(repo, request, access, **source), as_json, verbose)
    made = card_updating.make_card(repo, request, access, pr=pr, **source)
    for sentence in made.kept:
        echo(f"Kept: {sentence}.", err=True)
    if not (write or push):
        echo_json({"card": made.text, "kept": made.kept}) if as_json else echo(made.text, nl=False)
        return
    if not made.difference() and not made.others:
        echo_json({"where": None}) if as_json else echo(f"The card of {repo} is up to date.")
        return
    if not yes:
        _ask(made, "Propose this?" if pr else "Publish this?" if push else "Write this?", as_json)
    if push:
        commit = hub.Commit(message, token=access.token, revision=source["revision"], create_pr=pr)
        done = card_updating.publish_card(made, commit)
        where, said = done.pr_url or done.commit_url, published(done)
    else:
        where = card_updating.write_card(made)
        said = f"Written to {where}"
    echo_json({"where": where}) if as_json else echo(said)


def _echo_findings(findings: Sequence[Any], as_json: bool, verbose: bool) -> NoReturn:
    """Prints what is wrong, or all that was checked, and ends with exit status 1 where something is wrong."""
    wrong = [finding for finding in findings if not finding.ok]
    if as_json:
        echo_json([vars(finding) for finding in findings])
    else:
        for finding in findings if verbose else wrong:
            echo(str(finding))
        warnings = sum(finding.ok and finding.warning for finding in findings)
        said = f"checked {len(findings) - warnings} facts: {len(wrong) or 'none'} "
        said += "are wrong" if len(wrong) > 1 else "is wrong"
        if warnings and not verbose:
            said += (
                f"; {warnings} {'passage differs' if warnings == 1 else 'passages differ'} in words alone (-v shows)"
            )
        echo(said)
        if wrong:
            echo("`taia card` with --write or --push renews what nobody changed by hand.", err=True)
    raise typer.Exit(1 if wrong else 0)


_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def _ask(made: Any, question: str, as_json: bool) -> None:
    for line in made.difference().splitlines():
        plain = os.environ.get("NO_COLOR") or line.startswith(("+++", "---"))
        typer.secho(safe_text(line), fg=None if plain else _COLOURS.get(line[:1]), err=as_json)
    for name in made.others:
        echo(f"and {name}", err=as_json)
    typer.confirm(question, abort=True, err=as_json)
