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
    Push,
    Revision,
    Token,
    Trust,
    check_dtype,
    echo_json,
    files_on,
    modes,
    parse_folder,
    parse_mode,
    progress,
)
from taia_hub.errors import ConfigError

_SHOWN = ("setting", "modules", "written", "reused", "bytes", "dtype", "sha256", "notes")


def merge(
    repo: Annotated[
        str, typer.Argument(metavar="REPO|DIR", help="Hub id or folder of a TAIA repository or PEFT adapter.")
    ],
    out: Annotated[
        Path | None, typer.Option(parser=parse_folder, metavar="DIR", help="New folder for the merged model.")
    ] = None,
    push: Push = None,
    mode: Annotated[list[str] | None, modes("attention", "one")] = None,
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

    Its numbers are those of PEFT's own merge, in the base's dtype; a LoRA on a tied head is written untied. Tokenizer,
    generation configuration and a card come along. Quantised weights are refused, and so are methods that take the
    base's weights apart (OSF, FRoD, AdaMSS, PSOFT). A merge that was interrupted goes on when the same command is given
    again.

    taia merge org/model-taia --mode attention --out model-attention
    """
    from taia_hub import hub
    from taia_hub.merging import merge as run
    from taia_hub.merging.publishing import check_repository, publish_merged

    if (out is None) == (push is None):
        raise ConfigError("Give a folder with --out, or a Hub id with --push.", "One of the two, not both.")
    setting, source = _one(mode), files_on(repo, base, revision, token)
    how: dict[str, Any] = {
        "revision": revision,
        "dtype": check_dtype(dtype),
        "token": token,
        "trust_remote_code": trust_remote_code,
    }
    if out is not None:
        with progress("Finished shards stay; the same command goes on from there.") as bars:
            report, where = run(source, out, setting, progress=bars, **how), str(out)
    else:
        repo_id = check_repository(str(push), token, used=[repo])
        with tempfile.TemporaryDirectory(prefix="taia-merge-") as scratch:
            with progress() as bars:
                report = run(source, Path(scratch) / "model", setting, repo_id=repo_id, progress=bars, **how)
            commit = publish_merged(report, repo_id, hub.Commit(message, private=private, token=token))
        where = commit.commit_url
    if as_json:
        echo_json({"where": where, **{name: getattr(report, name) for name in _SHOWN}})
        return
    typer.echo(report.to_text())
    typer.echo(f"{'Published' if push else 'Written to'} {where}")


def _one(modes: list[str] | None) -> Any:
    if modes and len(modes) > 1:
        raise ConfigError(
            f"--mode came {len(modes)} times, and a merged model is of one.",
            "Merge each mode into a folder of its own.",
        )
    return parse_mode(modes[0] if modes else "attention")
