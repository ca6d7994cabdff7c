"""`taia export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from taia_hub.cli.shared import (
    Json,
    OtherBase,
    Private,
    Repository,
    Revision,
    Token,
    Trust,
    echo_json,
    files_on,
    modes,
    parse_folder,
    parse_modes,
    progress,
)
from taia_hub.errors import ConfigError


def export(
    repo: Repository,
    mode: Annotated[list[str] | None, modes("attention", "repeat it for a sub-folder each")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=parse_folder,
            metavar="DIR",
            help="New folder; by default NAME-MODE, or NAME-exports for several modes.",
            show_default=False,
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="REPO",
            help="Hub id to publish to, in one commit, which replaces earlier exports there. What you wrote into their "
            "cards stays and is named: look at what it says of the mode.",
            show_default=False,
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Largest rank of updates that are no LoRA.", show_default=False)
    ] = None,
    max_error: Annotated[
        float,
        typer.Option(min=0, help="Largest relative error of a module that is no LoRA; above it, nothing is written."),
    ] = 0.02,
    verify: Annotated[
        bool, typer.Option("--verify", help="Load the base model and compare the export's output with the mode's.")
    ] = False,
    engine: Annotated[
        list[str] | None, typer.Option(help="Refuse an export that this engine does not take; repeat it.")
    ] = None,
    base: OtherBase = None,
    revision: Revision = None,
    private: Private = None,
    token: Token = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Write what a mode computes as a plain LoRA, for vLLM, SGLang, TGI, LoRAX, llama.cpp and PEFT.

    It is made from files alone: no base model is loaded, and tensors go one at a time. All engines take it: one rank,
    one scale, plain module names. LoRAs keep their bytes where all modules share rank and scale; weights in [0, 1],
    rank-stabilised scaling and patterns are multiplied into them. Other methods, full fine-tunes too, become LoRAs by
    singular value decomposition, exactly where that is possible. MoE experts as parameters, routed experts of a MoLoRA
    and whole modules (`modules_to_save`) are refused. The report says of each engine which flag it needs, or why it
    refuses.

    taia export org/model-taia --mode attention --out attention-lora

    taia export org/model-taia --mode attention --mode all --push org/model-loras
    """
    from taia_hub import hub
    from taia_hub.exporting import export_adapters
    from taia_hub.exporting.publishing import push_adapters

    if out is not None and push is not None:
        raise ConfigError("--out and --push do not go together.", "Leave one out.")
    if push is None and private is not None:
        raise ConfigError("--private and --public are for --push.", "Leave it out.")
    settings, source = _folders(parse_modes(mode, ["attention"])), files_on(repo, base, revision, token)
    options: dict[str, Any] = {
        "revision": revision,
        "rank": rank,
        "max_error": max_error,
        "verify": verify,
        "engines": tuple(engine or ()),
        "trust_remote_code": trust_remote_code,
    }
    with progress() as bars:
        if push is not None:
            how = hub.Commit(private=private, token=token)
            commit, reports = push_adapters(source, push, settings, how, progress=bars, **options)
            where = commit.commit_url
        else:
            folder = out or _beside(repo, settings)
            reports = export_adapters(source, folder, settings, token=token, progress=bars, **options)
            where = str(folder)
    if as_json:
        echo_json({"where": where, "exports": {name or ".": one.to_dict() for name, one in reports.items()}})
        return
    for name, one in reports.items():
        _print(name, one)
    typer.echo(f"{'Published' if push else 'Written to'} {where}")


def _folders(modes: list[Any]) -> dict[str, Any]:
    """Gives each mode its folder: the root for one, a sub-folder each for several."""
    if len(modes) == 1:
        return {"": modes[0]}
    settings: dict[str, Any] = {}
    for mode in modes:
        if (name := _label(mode)) in settings:
            raise ConfigError(f"--mode {name} comes twice.", "Name each mode once.")
        settings[name] = mode
    return settings


def _label(mode: Any) -> str:
    from taia_hub.switch.settings import parse_setting

    return parse_setting(mode).slug


def _beside(repo: str, settings: dict[str, Any]) -> Path:
    """Names the folder of an export: in the working folder, or beside the repository where that lies within it."""
    label = _label(settings[""]) if "" in settings else "exports"
    source = Path(repo).resolve()
    if not source.is_dir():
        return Path(f"{repo.rpartition('/')[2]}-{label}")
    name = f"{source.name}-{label}"
    return source.with_name(name) if Path.cwd().is_relative_to(source) else Path(name)


def _print(name: str, report: Any) -> None:
    if name:
        typer.echo(f"{name}/")
    modules = ", ".join(f"{count} {role}" for role, count in report.modules.items())
    exact = "exact" if report.error is None else f"loses up to {report.error:.3g} of a module"
    typer.echo(
        f"  {modules} modules, rank {report.rank}, alpha {report.alpha}, {report.dtype}, "
        f"{report.bytes / 2**20:.1f} MiB, {exact}"
    )
    for engine, lines in report.engines.items():
        typer.echo(f"  {engine:<10}{'; '.join(lines) or 'takes it as it is'}")
    for note in report.notes:
        typer.echo(f"  note: {note}")
