"""`taia create`, `push` and `info`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from taia_hub.cli.options import options_of, reading
from taia_hub.cli.printing import echo
from taia_hub.cli.shared import (
    Json,
    Message,
    Overwrite,
    Private,
    Push,
    Source,
    Update,
    echo_json,
    folder,
    next_step,
    parse_folder,
    parse_mode,
    progress,
    published,
)
from taia_hub.common.parsing import parse_json
from taia_hub.common.text_tables import aligned, amount, byte_size
from taia_hub.errors import ConfigError


def _parse_compress(text: str) -> Any:
    """Reads a rank, a share or a JSON object of either by role; what they may be is checked where they are used."""
    try:
        return parse_json(text)
    except ValueError as error:
        raise ConfigError(
            f"--compress {text!r} is no number and no JSON object.",
            """Write --compress 16, --compress 0.9 or --compress '{"attention": 32, "ffn": 0.9}'.""",
        ) from error


@options_of(Source, "token", "trust_remote_code")
def create(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[BASE] ADAPTER",
            help="Hub id or folder of the base model (by default the one that the adapter names), and of a PEFT "
            "adapter, or with --dense of a full fine-tune.",
        ),
    ],
    out: Annotated[Path | None, folder("Folder to write the repository to.")] = None,
    push: Push = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="The published default: a mode, or a JSON mapping; attention, or with --dense attention+other.",
            show_default=False,
            callback=reading(parse_mode),
        ),
    ] = None,
    base_revision: Annotated[str | None, typer.Option(help="Revision of the base model.")] = None,
    adapter_revision: Annotated[str | None, typer.Option(help="Revision of the adapter.")] = None,
    subfolder: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Folder of the adapter in its repository; NAME@FOLDER says the same."),
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Point to the adapter on the Hub instead of copying it.")
    ] = False,
    convert_pickle: Annotated[
        bool,
        typer.Option(
            "--convert-pickle",
            help="Convert adapter_model.bin, or the authors' MoLoRA files, to safetensors; nothing in them is run.",
        ),
    ] = False,
    dense: Annotated[
        bool, typer.Option("--dense", help="The second argument is a full fine-tune: keep the tensors that differ.")
    ] = False,
    compress: Annotated[
        str | None,
        typer.Option(
            metavar="RANK|SHARE|JSON",
            callback=reading(_parse_compress),
            help="With --dense: make a LoRA of the difference, of this rank (16), with this share of its squared norm "
            """(0.9), or either by role: '{"attention": 32, "ffn": 0.9}'. What was lost is reported.""",
        ),
    ] = None,
    refine: Annotated[
        str | None,
        typer.Option(
            metavar="norm|dg-hard",
            help="Take off the update what looks like noise: norm cuts each matrix of a LoRA to the components nearest "
            "to the base weight; dg-hard, with --dense, to those above the noise. What was kept is reported.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    private: Private = None,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Make a TAIA repository from a base model and any PEFT adapter, or a full fine-tune.

    Neither is loaded: the adapter is copied or linked; a fine-tune is read shard by shard beside its base, and the
    tensors that differ are kept as they are: mode none is then the base and all the fine-tune, bit for bit.

    taia create org/lora --push org/model-taia

    taia create org/base ./lora --out model-taia

    taia create org/base org/base-instruct --dense --compress 0.9 --out model-taia

    taia create org/base ./lora --refine norm --out model-taia
    """
    from taia_hub import hub
    from taia_hub.repository.creating import create_from_finetuned, create_repository

    *given, adapter = models
    if len(given) > 1 or (dense and not given):
        raise ConfigError(
            f"{amount(len(models), 'model')} came: {', '.join(models)}.",
            "Type `taia create BASE FINETUNED --dense`." if dense else "Type `taia create [BASE] ADAPTER`.",
        )
    base = given[0] if given else None
    adapter = f"{adapter}@{subfolder}" if subfolder else adapter
    if dense and (link or convert_pickle or subfolder):
        option = "--link" if link else "--convert-pickle" if convert_pickle else "--subfolder"
        raise ConfigError(
            f"{option} is for adapters, and has no meaning with --dense.",
            "Leave one of the two out.",
        )
    if compress is not None and not dense:
        raise ConfigError("--compress is for full fine-tunes.", "Give --dense as well.")
    options |= {"out": out, "push": push, "base_revision": base_revision, "overwrite": overwrite}
    options["commit"] = hub.Commit(private=private, token=options.pop("token"))
    options |= {} if mode is None else {"inference_modules": mode}
    with progress() as bars:
        options |= {"refine": refine, "progress": bars}
        if dense:
            options |= {"finetuned_revision": adapter_revision, "compress": compress}
            created = create_from_finetuned(str(base), adapter, **options)
        else:
            options |= {"adapter_revision": adapter_revision, "link": link, "convert_pickle": convert_pickle}
            created = create_repository(base, adapter, **options)
    _echo_created(created, as_json)


def _echo_created(created: Any, as_json: bool) -> None:
    where = str(created.folder) if created.commit is None else created.commit.commit_url
    if as_json:
        report = dataclasses.asdict(created.report) if created.report else None
        made = {"where": where, "status": dataclasses.asdict(created.status), "report": report}
        echo_json({**made, "refinement": created.refinement.to_json() if created.refinement else None})
        return
    for role, status in created.status.roles.items():
        if status.adapted:
            echo(f"{role:<12}{amount(status.adapted, 'module'):>14}{status.parameters:>16,} parameters")
    if created.report:
        echo(created.report.to_text())
    if created.refinement:
        echo(created.refinement.to_text())
    if not created.is_new:
        echo(f"It is in {where} already, made from the same.")
    else:
        echo(published(created.commit) if created.commit else f"Written to {where}")
    next_step(created.commit.repo_url.repo_id if created.commit else where)


@options_of(Source, "token", "trust_remote_code")
def push(
    folder: Annotated[Path, typer.Argument(parser=parse_folder, metavar="DIR", help="Folder of a TAIA repository.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Hub id to publish it to.")],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="REPO", help="Hub id of the base model, where it is a folder here; its weights are compared."
        ),
    ] = None,
    message: Message = None,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    private: Private = None,
    as_json: Json = False,
    **access: Any,
) -> None:
    """Publish a saved TAIA repository in one commit.

    taia push ./model-taia org/model-taia

    taia push ./model-taia org/model-taia --base org/base
    """
    from taia_hub import hub
    from taia_hub.repository.publishing import push_folder

    how = hub.Commit(message, private=private, token=access["token"], revision=revision, create_pr=create_pr)
    commit = push_folder(folder, repo, how, base=base, trust_remote_code=access["trust_remote_code"])
    url = commit.pr_url or commit.commit_url
    if as_json:
        echo_json({"url": url, "commit": commit.oid})
        return
    echo(published(commit))
    if not create_pr:
        next_step(commit.repo_url.repo_id)


@options_of(Source)
def info(
    repo: Update,
    as_json: Json = False,
    **source: Any,
) -> None:
    """Show what a repository or adapter holds, by role, without loading weights.

    taia info org/model-taia --json

    taia info org/lora
    """
    from taia_hub import hub
    from taia_hub.repository.info import repository_info

    found = repository_info(repo, hub.HubAccess(token=source.pop("token")), **source)
    echo_json(dataclasses.asdict(found)) if as_json else echo(_said_of(found))


def _said_of(found: Any) -> str:
    """Lays out what a repository holds."""
    from taia_hub.hub.layout import method_name

    numbers = [f"{name} {_by_role(value)}" for name in ("rank", "alpha") if (value := getattr(found, name)) is not None]
    size, dtypes = byte_size(found.bytes), ", ".join(found.dtypes)
    rows = [
        ["repository" if found.inference_modules is not None else "adapter", f"{found.name}{_at(found.revision)}"],
        ["base model", f"{found.base_model}{_at(found.base_revision)}, {found.base_parameters:,} parameters"],
        ["tokenizer", found.tokenizer],
        ["update", ", ".join([f"{method_name(found.method)} in {found.location}", *numbers, size, dtypes])],
        *([name.replace("_", " "), _by_role(values)] for name, values in found.patterns.items()),
        *([["default", _default(found)]] if found.inference_modules is not None else []),
    ]
    parts = [
        [role, str(part.modules), f"{part.parameters:,}", byte_size(part.bytes)]
        for role, part in found.roles.items()
        if part.modules
    ]
    modes = [[mode, f"{acting:,}"] for mode, acting in found.modes.items()]
    said = [
        aligned(rows, left=(0, 1)),
        aligned([["role", "modules", "parameters", "size"], *parts]),
        aligned([["mode", "parameters that act"], *modes]),
    ]
    if found.vocabulary is not None:
        said.append(
            f"The update's vocabulary has {found.vocabulary} rows, not the base's number. Where its 'other' part is "
            "masked the base's own rows act, and a token beyond them is an error."
        )
    if found.unplaced:
        said.append(f"Counted as other because their role could not be told: {', '.join(found.unplaced)}")
    return "\n\n".join(said)


def _default(found: Any) -> str:
    """Writes the published setting in a few words, and whether it was tuned."""
    from taia_hub.switch.settings import parse_published

    label, tuning = parse_published(found.inference_modules).label, found.tuning
    if tuning is None:
        return label
    if tuning.published:
        return f"{label}, {'chosen by' if tuning.label == label else f'{tuning.label!r} of'} taia tune, {tuning.date}"
    return f"{label}; taia tune chose '{tuning.label}', {tuning.date}"


def _by_role(value: Any) -> str:
    """Writes a number, or one a role or module."""
    return ", ".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, dict) else str(value)


def _at(revision: str | None) -> str:
    return f" @ {revision[:8]}" if revision else ""
