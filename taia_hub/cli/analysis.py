"""`taia analyze`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from taia_hub.cli.options import options_of
from taia_hub.cli.printing import echo
from taia_hub.cli.shared import Json, Source, Update, check_dtype, echo_json, modes, progress, say_device
from taia_hub.common.fields import asked
from taia_hub.errors import ConfigError


@dataclass(frozen=True)
class _Examining(Source):
    """Keywords of `analysis.examining.examine`."""

    relative: bool = asked(False, "Norms relative to the base's weights; downloads and reads them.", flags="--relative")
    base: str | None = asked(None, "Base model, where the one named there is not at hand.")
    max_tokens: int = asked(512, "With --texts: tokens of a text that are kept.", least=2)
    dtype: str = asked("auto", "With --texts: dtype of the base model; auto is its own.", read=check_dtype)
    device: str | None = asked(None, "With --texts: cpu, cuda, cuda:1 or mps. By default a GPU, where there is one.")
    device_map: str | None = asked(None, "With --texts: transformers' own instead, such as auto for several GPUs.")


@options_of(_Examining)
def analyze(
    repo: Update,
    texts: Annotated[
        Path | None, typer.Option(help="Texts to run the modes on: one a line, or JSONL with a field 'text'.")
    ] = None,
    mode: Annotated[list[str] | None, modes("all four, with --texts")] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for figures as PNG and SVG; needs the extra `figures`.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File for the numbers, or a folder that gets taia_analysis.json.")
    ] = None,
    as_json: Json = False,
    **fields: Any,
) -> None:
    """Measure an update by layer and role, and what its modes do to hidden states.

    Frobenius and spectral norms and the effective rank (Roy & Vetterli 2007) come from the files alone: for the adapter
    of a 7B model a few seconds and 430 MiB, as no product of its factors is made. PEFT adapters only. With --texts also
    the cosine similarity of hidden states to the base model's, and the residual rank by layer that the paper shows.

    taia analyze org/model-taia

    taia analyze org/model-taia --texts texts.txt --figures figures --out .
    """
    from taia_hub.analysis import draw_figures, load_analysis
    from taia_hub.analysis.examining import examine, matching_results, read_texts
    from taia_hub.analysis.hidden import ALL_MODES
    from taia_hub.common.devices import place
    from taia_hub.common.imports import import_or_raise
    from taia_hub.results import summarise
    from taia_hub.results.analysis import analysis_path

    if mode and texts is None:
        raise ConfigError("--mode needs texts to run the modes on.", "Give them with --texts FILE.")
    if figures:
        import_or_raise("matplotlib", "figures", "--figures")  # before the work, not after it
    device = fields.pop("device")
    if texts:
        fields["device_map"] = place(device, fields["device_map"])
    older = load_analysis(out) if out and analysis_path(out).is_file() else None
    with progress() as bars:
        run_on = read_texts(texts) if texts else ()
        analysis = examine(repo, texts=run_on, modes=mode or ALL_MODES, progress=bars, on_load=say_device, **fields)
    if older:
        analysis = analysis.with_kept(older)
    if out:
        analysis.save(out)
    drawn: Sequence[Any] = ()
    if figures:
        results = matching_results(repo, analysis.subject.revision, analysis.subject, fields["token"])
        drawn = draw_figures(figures, analysis, summarise(results) if results else None)
    _echo(analysis, drawn, analysis_path(out) if out else None, as_json)


def _echo(analysis: Any, drawn: Sequence[Any], out: Path | None, as_json: bool) -> None:
    if as_json:
        shown = [{"png": str(figure.png), "svg": str(figure.svg), "alt": figure.alt} for figure in drawn]
        echo_json({**analysis.to_json(), "figures": shown})
        return
    echo(analysis.to_text())
    for figure in drawn:
        echo(f"\nDrew {figure.png} and {figure.svg.name}: {figure.alt}")
    if out:
        echo(f"\nWritten to {out}")
