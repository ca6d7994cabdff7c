"""`taia tune`."""

from __future__ import annotations

import dataclasses
import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from taia_hub.cli.options import filled, options_of, taken
from taia_hub.cli.printing import echo
from taia_hub.cli.shared import Json, Loading, Message, Overwrite, Private, Update, echo_json, folder, load_model
from taia_hub.cli.shared import progress as shown
from taia_hub.cli.shared import published as said_published
from taia_hub.errors import ConfigError
from taia_hub.tuning.options import TuningOptions

_RESULT = "Result"


@options_of(Loading)
@options_of(TuningOptions)
def tune(
    repo: Update,
    target: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="What the model shall be good at: items that `taia train` takes, or a data set on the Hub, 20 or more "
            "that were not trained on.",
        ),
    ],
    retain: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Texts on which it shall stay as the base is: paragraphs (.txt), or JSONL of 'text' or of items. By "
            "default general texts that come with taia-hub.",
        ),
    ] = None,
    write: Annotated[
        bool,
        typer.Option(
            "--write", help="Publish the setting in the folder's config.json, with its card.", rich_help_panel=_RESULT
        ),
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="[REPO]",
            help="Publish the setting on the Hub, in one commit: in the repository itself or, of an adapter, in REPO, "
            "which is made of it.",
            rich_help_panel=_RESULT,
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        folder("Folder for taia_tuning.json and the figures; of an adapter, a TAIA repository with them.", _RESULT),
    ] = None,
    overwrite: Overwrite = False,
    message: Message = None,
    private: Private = None,
    as_json: Json = False,
    **fields: Any,
) -> None:
    """Find which part of the update to keep: the front of what a target gains against what everything else loses.

    Each role in each layer gets a weight in [0, 1], searched by descent: the loss is differentiable in the weights, so
    that a candidate costs no merge and no other model. Half of the items are searched on, on the other half every
    candidate is measured with intervals, the plain modes among them. A tuned setting is recommended where it beats them
    beyond noise; else a plain mode is, and the reason is told.

    Without --write, --push or --out the result is only printed. What was found stays in a folder here, whose name ends
    with .tuning, so that the same command goes on where it was stopped, and publishes without a second search. A
    published setting is called tuned everywhere: `taia export REPO --mode tuned`.

    taia tune ./model-taia --target items.jsonl

    taia tune ./model-taia --target items.jsonl --retain texts.txt --by role --budget 10 --write

    taia tune org/model-taia --target items.jsonl --push

    taia tune org/lora --target items.jsonl --out lora-tuned
    """
    from taia_hub import hub
    from taia_hub.repository.update_files import open_repository
    from taia_hub.tuning.publishing import Destination, hold_the_same

    loading = taken(Loading, fields)
    options = TuningOptions(**filled(fields))
    where = Destination(write, push, out, overwrite)
    if push is None:
        for given, names in ((private, "--private and --public are"), (message, "--message is")):
            if given is not None:
                raise ConfigError(f"{names} for --push.", "Leave it out.")
    if loading["revision"] is not None and os.path.isdir(repo):
        raise ConfigError(f"--revision is for a repository on the Hub, and '{repo}' is a folder.", "Leave it out.")
    access = hub.HubAccess(token=loading["token"])
    found = open_repository(repo, access, revision=loading["revision"])
    commit = hub.Commit(message, private=private, token=access.token)
    if not found.is_plain:
        commit = dataclasses.replace(commit, revision=loading["revision"])
    how = {**fields, "revision": loading["revision"], "dtype": loading["dtype"]}
    state = where.out if where.out is not None and not found.is_plain else _state(repo, target, retain, how)
    where.check(found, commit, state)
    _check_inputs(target, retain, loading["token"], draws=where.is_somewhere)
    if found.is_plain and where.out is not None and hold_the_same(where.out, state):
        where = dataclasses.replace(where, overwrite=True)  # what more minutes find replaces what is there
    tuned = _searched(repo, target, retain, options, state, overwrite, loading)
    if os.environ.get("RANK", "0") != "0":  # of several processes, the first one writes and tells
        return
    trusted = {"trust_remote_code": loading["trust_remote_code"]}
    result = _published(found, repo, tuned, where, state, commit, access, trusted)
    if as_json:
        echo_json({**tuned.to_json(), **result["json"], "kept": str(state)})
        return
    echo(tuned)
    echo()
    command = _onward(found, tuned, access, **trusted) if result["place"] else None
    for line in [*result["said"], *_next(repo, tuned, where, state, result, plain=found.is_plain, command=command)]:
        echo(line)


def _check_inputs(target: str, retain: Path | None, token: str | None, *, draws: bool) -> None:
    """Refuses what the files tell before a model is loaded, and says which packages are missing."""
    from taia_hub.common.imports import check_importable
    from taia_hub.retaining import read_texts
    from taia_hub.training.sources import read_sources
    from taia_hub.tuning.items import FEWEST

    check_importable("datasets", "trl", extra="tune", feature="`taia tune`")
    if draws:
        check_importable("matplotlib", extra="tune", feature="A figure of the front")
    (source,) = read_sources([target], token=token)
    counts = {f"The target '{target}'": len(source.dataset)}
    if retain is not None:
        counts[f"The retained texts '{retain}'"] = len(read_texts(retain).items)
    for what, count in counts.items():
        if count < FEWEST:
            raise ConfigError(
                f"{what} has {count} items; {FEWEST} are the fewest.",
                "One half is searched on, the other one tells whether it is more than noise.",
            )


def _searched(
    repo: str,
    target: str,
    retain: Path | None,
    options: TuningOptions,
    state: Path,
    overwrite: bool,
    loading: dict[str, Any],
) -> Any:
    from taia_hub import tuning

    keywords = {one.name: getattr(options, one.name) for one in dataclasses.fields(options)}
    with shown() as bars:
        model, tokenizer = load_model(repo, **loading)
        how = {"out": state, "overwrite": overwrite, "tokenizer": tokenizer, "progress": bars}
        try:
            return tuning.tune(model, target, retain, **keywords, **how)
        except KeyboardInterrupt:
            bars.close()
            if state.is_dir():
                echo(f"What was found so far is in '{state}'; the same command goes on from there.", err=True)
            raise


def _name(repo: str) -> str:
    """Names what belongs to a repository here: after its Hub id, or its folder."""
    return Path(repo).resolve().name if os.path.isdir(repo) else repo.replace("/", "--")


def _state(repo: str, target: str, retain: Path | None, how: dict[str, Any]) -> Path:
    """Names the folder that keeps a search, one for each repository, items and options but the minutes."""
    from taia_hub.common.resuming import digest

    named = [repo, target, *([] if retain is None else [str(retain)])]
    whole = [str(Path(one).resolve()) if os.path.exists(one) else one for one in named]
    options = {name: value for name, value in how.items() if name != "budget"}
    return Path(f"{_name(repo)}-{digest([whole, options])[:8]}.tuning")


def _published(
    found: Any,
    repo: str,
    tuned: Any,
    where: Any,
    state: Path,
    commit: Any,
    access: Any,
    trusted: dict[str, Any],
) -> dict[str, Any]:
    """Does what was asked for with the result: what is said of it, as lines and as JSON, and where it is now."""
    from taia_hub.tuning.publishing import create_tuned, hold_the_same, push_tuned, save_tuned, write_tuned

    if found.is_plain and where.out is not None and hold_the_same(where.out, state):
        place, url = str(where.out), str(where.out)
        said = f"{where.out} holds this tuning already; nothing was written."
    elif found.is_plain and (where.push or where.out):
        made = create_tuned(found, tuned, where, commit, **trusted)
        place = made.commit.repo_url.repo_id if made.commit else str(made.folder)
        said = said_published(made.commit) if made.commit else f"Written to {made.folder}"
        url = made.commit.commit_url if made.commit else str(made.folder)
    elif where.write:
        url = write_tuned(repo, tuned, access, **trusted)
        place, said = (
            repo,
            f"{repo} publishes '{tuned.choice.label}' now: config.json, card, taia_tuning.json, figures.",
        )
    elif where.push is not None:
        done = push_tuned(repo, tuned, access, commit, **trusted)
        url, place, said = done.commit_url, repo, said_published(done)
    elif where.out is not None:
        drawn = save_tuned(tuned, where.out)
        figures = [str(path) for path in drawn]
        said = f"Written to {where.out}: taia_tuning.json, {', '.join(path.name for path in drawn)}"
        return {"said": [said], "json": {"where": str(where.out), "figures": figures}, "place": None}
    else:
        return {"said": [], "json": {"where": None}, "place": None}
    return {"said": [said], "json": {"where": url}, "place": place}


def _onward(found: Any, tuned: Any, access: Any, **trusted: Any) -> str | None:
    """Names the command that writes the setting for other engines; None where only this package serves it."""
    from taia_hub.errors import SettingError, TAIAError
    from taia_hub.exporting.plan import acting_modules
    from taia_hub.hub.layout import DENSE, MOLORA
    from taia_hub.repository.opening import open_update

    if found.kind is DENSE:  # a LoRA would be an approximation of it
        return "merge"
    try:
        update = open_update(found.with_weights(access, verify=False), access=access, lean=True, **trusted)
        acting_modules(update, tuned.recommended.parsed)
    except SettingError:  # nothing acts: it is the base model
        return None
    except TAIAError:  # no plain LoRA holds it
        return None if found.kind is MOLORA else "merge"
    return "export"


def _next(
    repo: str, tuned: Any, where: Any, state: Path, result: dict[str, Any], *, plain: bool, command: str | None
) -> list[str]:
    """Says which commands go on from here; `command` is that of `_onward`."""
    if place := result["place"]:
        quoted = shlex.quote(place)
        lines = [f'Next: taia compare {quoted} "Why is the sky blue?"']
        if command:
            lines.append(f"      taia {command} {quoted} --mode tuned --out {shlex.quote(f'{_name(place)}-tuned')}")
        return lines
    how = "--push REPO" if plain else "--write" if os.path.isdir(repo) else "--push"
    lines = [f"Kept in {state}:", f"the same command with {how} or --out DIR needs no search."]
    if where.is_somewhere:
        lines.clear()
    setting = tuned.recommended.parsed
    if isinstance(setting.value, str):
        lines.append(f'Next: taia compare {shlex.quote(repo)} "Why is the sky blue?" --mode {setting.value}')
    return lines
