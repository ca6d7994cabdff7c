"""`taia merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from taia_hub.cli.options import options_of, reading
from taia_hub.cli.printing import echo
from taia_hub.cli.shared import (
    Json,
    Message,
    OtherBase,
    Overwrite,
    Private,
    Push,
    Source,
    Update,
    check_dtype,
    echo_json,
    files_on,
    folder,
    modes,
    progress,
    published,
)
from taia_hub.errors import ConfigError

_SHOWN = ("setting", "modules", "written", "reused", "bytes", "dtype", "sha256", "notes")


@options_of(Source)
def merge(
    repo: Update,
    out: Annotated[Path | None, folder("New folder for the merged model.")] = None,
    push: Push = None,
    mode: Annotated[list[str] | None, modes("attention", "one")] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="dtype of the weights, as in bfloat16; by default the base's.", callback=reading(check_dtype)
        ),
    ] = "auto",
    base: OtherBase = None,
    overwrite: Overwrite = False,
    message: Message = None,
    private: Private = None,
    as_json: Json = False,
    **how: Any,
) -> None:
    """Merge a mode into a plain model that any engine serves, shard by shard in little memory.

    Its numbers are those of PEFT's own merge, in the base's dtype; a LoRA on a tied head is written untied. Tokenizer,
    generation configuration and a card come along. Quantised weights are refused, and so are methods that take the
    base's weights apart (OSF, FRoD, AdaMSS, PSOFT). A merge that was interrupted goes on when the same command is given
    again.

    taia merge org/model-taia --mode attention --out model-attention

    taia merge ./model-taia --mode all --push org/model-all --private
    """
    from taia_hub import hub
    from taia_hub.merging import merge as run
    from taia_hub.merging.publishing import push_merged

    if (out is None) == (push is None):
        raise ConfigError("Give a folder with --out, or a Hub id with --push.", "One of the two, not both.")
    setting, source = _one(mode or ["attention"]), files_on(repo, base, how["revision"], how["token"])
    with progress("Finished shards stay; the same command goes on from there." if out else "") as bars:
        if out is not None:
            report = run(source, out, setting, dtype=dtype, overwrite=overwrite, progress=bars, **how)
            where = str(out)
        else:
            commit = hub.Commit(message, private=private, token=how.pop("token"))
            report, done = push_merged(source, str(push), setting, commit, dtype=dtype, progress=bars, **how)
            where = done.commit_url
    if as_json:
        echo_json({"where": where, **{name: getattr(report, name) for name in _SHOWN}})
        return
    echo(report.to_text())
    if report.is_new:
        echo(f"Written to {where}" if out else published(done))


def _one(modes: list[Any]) -> Any:
    if len(modes) > 1:
        raise ConfigError(
            f"--mode came {len(modes)} times, and a merged model is of one.",
            "Merge each mode into a folder of its own.",
        )
    return modes[0]
