"""`taia export`."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from taia_hub.cli.options import filled, options_of
from taia_hub.cli.printing import echo
from taia_hub.cli.shared import (
    Json,
    OtherBase,
    Overwrite,
    Private,
    Source,
    Update,
    echo_json,
    files_on,
    folder,
    modes,
    progress,
    published,
)
from taia_hub.errors import ConfigError
from taia_hub.exporting.options import ExportOptions, by_folder, default_folder


@options_of(Source)
@options_of(ExportOptions)
def export(
    repo: Update,
    mode: Annotated[list[str] | None, modes("attention", "repeat it for a sub-folder, or a repository, each")] = None,
    out: Annotated[Path | None, folder("New folder; by default NAME-MODE, or NAME-exports for several modes.")] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="REPO",
            help="Hub id to publish to, in one commit, which replaces earlier exports there; several modes go to "
            "REPO-MODE each, and into a collection. What you wrote into their cards stays and is named: look at what "
            "it says of the mode.",
            show_default=False,
        ),
    ] = None,
    base: OtherBase = None,
    overwrite: Overwrite = False,
    private: Private = None,
    as_json: Json = False,
    **fields: Any,
) -> None:
    """Write what a mode computes as a plain LoRA, for vLLM, SGLang, TGI, LoRAX, llama.cpp and PEFT.

    It is made from files alone: no base model is loaded, and tensors go one at a time. All engines take it: one rank,
    one scale, plain module names. LoRAs keep their bytes where all modules share rank and scale; other
    weights, rank-stabilised scaling and patterns are multiplied into them. Other methods, full fine-tunes too, become
    LoRAs by singular value decomposition, exactly where that is possible. MoE experts as parameters, routed experts of
    a MoLoRA and whole modules (`modules_to_save`) are refused. The report says of each engine which flag it needs, or
    why it refuses.

    taia export org/model-taia --mode attention --out attention-lora

    taia export org/model-taia --mode attention --mode ffn --push org/model
    """
    from taia_hub import hub
    from taia_hub.exporting import export_adapters
    from taia_hub.exporting.publishing import push_adapters

    if out is not None and push is not None:
        raise ConfigError("--out and --push do not go together.", "Leave one out.")
    if push is None and private is not None:
        raise ConfigError("--private and --public are for --push.", "Leave it out.")
    settings = by_folder(mode or ["attention"])
    source = files_on(repo, base, fields["revision"], fields["token"])
    with progress() as bars:
        revision = fields.pop("revision")
        options = ExportOptions(**filled(fields), progress=bars)
        if push is not None:
            how = hub.Commit(private=private, token=options.token)
            pushed = push_adapters(source, push, settings, how, options, revision=revision)
            reports = dict(pushed.reports)
            commits = list(pushed.commits.values())
            where = pushed.collection or commits[0].commit_url
            said = [*map(published, commits), *([f"Published {where}"] if pushed.collection else [])]
        else:
            where = str(out or default_folder(repo, settings))
            reports = export_adapters(source, where, settings, options, revision=revision, overwrite=overwrite)
            is_new = next(iter(reports.values())).is_new
            said = [f"Written to {where}" if is_new else f"It is in {where} already, made from the same."]
    if as_json:
        echo_json({"where": where, "exports": {name or ".": one.to_dict() for name, one in reports.items()}})
        return
    for name, one in reports.items():
        _print(name if push or not name else f"{name}/", one)
    for line in said:
        echo(line)


def _print(name: str, report: Any) -> None:
    if name:
        echo(name)
    echo(textwrap.indent(report.to_text(), "  "))
