"""`taia merge`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from taia_hub.cli.shared import (
    Json,
    Message,
    OtherBase,
    Private,
    Revision,
    Token,
    Trust,
    check_dtype,
    echo_json,
    files_on,
    parse_folder,
    parse_mode,
)
from taia_hub.errors import ConfigError


def merge(
    repo: Annotated[
        str, typer.Argument(metavar="REPO|DIR", help="Hub id or folder of a TAIA repository or PEFT adapter.")
    ],
    out: Annotated[
        Path | None, typer.Option(parser=parse_folder, metavar="DIR", help="New folder for the merged model.")
    ] = None,
    push: Annotated[str | None, typer.Option(metavar="REPO", help="Hub id to publish it to.")] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(help="What acts: one mode, or a JSON mapping. By default attention.", show_default=False),
    ] = None,
    dtype: Annotated[str, typer.Option(help="dtype of the weights, as in bfloat16; by default the base's.")] = "auto",
    base: OtherBase = None,
    revision: Revision = None,
    message: Message = None,
    private: Private = None,
    token: Token = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Merge a mode into a plain model that any engine serves, shard by shard in little memory.

    A merge that was interrupted goes on when the same command is given again.
    """
    from taia_hub.common.progress import ProgressBars
    from taia_hub.merging import merge as run
    from taia_hub.merging.publishing import check_repository, publish_merged

    if (out is None) == (push is None):
        raise ConfigError("Give a folder with --out, or a Hub id with --push.", "One of the two, not both.")
    if mode and len(mode) > 1:
        raise ConfigError(
            f"--mode came {len(mode)} times, and a merged model is of one.", "Merge each mode into a folder of its own."
        )
    setting, bars = parse_mode(mode[0] if mode else "attention"), ProgressBars()
    how: dict[str, Any] = {
        "revision": revision,
        "dtype": check_dtype(dtype),
        "token": token,
        "trust_remote_code": trust_remote_code,
        "progress": bars,
    }
    source = files_on(repo, base, revision, token)
    try:
        if out is not None:
            report, where = run(source, out, setting, **how), str(out)
        else:
            repo_id = check_repository(str(push), token, used=[repo])
            with tempfile.TemporaryDirectory(prefix="taia-merge-") as scratch:
                report = run(source, Path(scratch) / "model", setting, repo_id=repo_id, **how)
                bars.close()
                commit = publish_merged(report, repo_id, commit_message=message, private=private, token=token)
                where = commit.commit_url
    except KeyboardInterrupt:
        bars.close()
        if out is not None:
            typer.echo("Finished shards stay; the same command goes on from there.", err=True)
        raise
    finally:
        bars.close()
    if as_json:
        echo_json(
            {
                "where": where,
                "setting": report.setting,
                "modules": dict(report.modules),
                "written": list(report.written),
                "reused": list(report.reused),
                "bytes": report.bytes,
                "dtype": report.dtype,
                "sha256": dict(report.sha256),
                "notes": list(report.notes),
            }
        )
        return
    typer.echo(report.to_text())
    typer.echo(f"{'Published' if push else 'Written to'} {where}")
