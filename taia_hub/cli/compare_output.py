"""What `taia compare` shows and writes, for one prompt and for a file of them."""

from __future__ import annotations

import contextlib
import html
import io
import json
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from taia_hub.cli.shared import echo_json

if TYPE_CHECKING:
    from rich.console import Console

    from taia_hub.compare import Comparison
    from taia_hub.compare.files import ComparedPrompt


@dataclass(frozen=True)
class Output:
    """How a result is shown (text, json, markdown or html), where, and which mode the others are compared with."""

    format: str
    out: Path | None
    against: str | None


def compare_prompt(
    load: Callable[[], tuple[Any, Any]], prompt: str, modes: Sequence[Any], how: Mapping[str, Any], output: Output
) -> None:
    """Compares the answers to one prompt: as columns that grow, or all at once where there is no terminal.

    Model and tokenizer are loaded when everything else is checked; `how` are keywords of `stream_compare`.
    """
    from taia_hub.compare import stream_compare
    from taia_hub.compare.keeping import check_out
    from taia_hub.compare.tables import figures
    from taia_hub.compare.terminal import is_terminal, make_console

    if output.out is not None:
        check_out(output.out)
    console = make_console(sys.stdout)
    draws = is_terminal(sys.stdout) and (output.format == "text" or output.out is not None)
    try:
        state = _last(stream_compare(*load(), prompt, modes, **how), console if draws else None, output.against)
    except KeyboardInterrupt:
        typer.echo("Stopped." if output.out is None else f"Stopped; '{output.out}' was not written.", err=True)
        raise typer.Exit(130) from None
    if output.format == "text" or draws:
        for note in state.notes:
            typer.echo(note, err=True)
    if draws:
        console.print(figures(state, output.against or state.modes[0]))
    if output.out is not None:
        _write(output.out, _rendered(state, output))
    elif not draws:
        typer.echo(_rendered(state, output), nl=False)


def _last(states: Generator[Comparison, None, None], console: Console | None, against: str | None) -> Comparison:
    """Returns the last state of a comparison; each is drawn on the console, if there is one."""
    from taia_hub.compare.terminal import LiveColumns

    state: Any = None
    with contextlib.closing(states), LiveColumns(console, against) if console else contextlib.nullcontext() as columns:
        try:
            for state in states:
                if columns:
                    columns.show(state)
        finally:
            if columns and state:
                columns.finish(state)
    return state


def compare_prompts(
    load: Callable[[], tuple[Any, Any]],
    file: Path,
    out: Path | None,
    modes: Sequence[Any],
    how: Mapping[str, Any],
    *,
    reference: str,
    as_json: bool,
) -> None:
    """Compares the answers to the prompts of a file, and shows a table of them.

    The comparisons go to a file beside the prompts, unless `out` names another one; `how` are keywords of
    `compare_file`, and `reference` is the mode that the others part from.
    """
    from taia_hub.common.progress import ProgressBars
    from taia_hub.compare.files import compare_file, read_prompts
    from taia_hub.compare.keeping import check_out
    from taia_hub.compare.tables import overview
    from taia_hub.compare.terminal import make_console
    from taia_hub.evaluation.environment import identify

    total, done = len(read_prompts(file, how["system"])), 0  # bad lines are told before a model is loaded
    out = out or file.with_name(f"{file.stem}.compared.jsonl")
    check_out(out)
    bars = ProgressBars()

    def progress(stage: str, at: int, of: int) -> None:
        nonlocal done
        done = at
        bars(stage, at, of)

    try:
        model, tokenizer = load()
        found = compare_file(model, tokenizer, file, out, identify(model), modes, progress=progress, **how)
    except KeyboardInterrupt:
        bars.close()
        typer.echo(f"Stopped: {done} of {total} prompts are in '{out}'. The same command goes on from there.", err=True)
        raise typer.Exit(130) from None
    finally:
        bars.close()
    typer.echo(f"{total} prompts are in '{out}'.", err=True)
    if as_json:
        echo_json(_summary(found, out, reference))
    else:
        console = make_console(sys.stdout)
        console.print(overview([(one.line.name, one.comparison) for one in found], reference))


def _summary(found: Sequence[ComparedPrompt], out: Path, reference: str) -> dict[str, Any]:
    """Makes the table of a file as JSON values."""
    from taia_hub.compare.tables import mean_speeds

    prompts = [
        {
            "line": one.line.number,
            "id": one.line.id,
            "modes": {
                answer.mode: {
                    "tokens": len(answer.tokens),
                    "tokens_per_second": answer.tokens_per_second,
                    "shared_tokens": one.comparison.parting(answer.mode, reference).token,
                    "same": one.comparison.parting(answer.mode, reference).same,
                }
                for answer in one.comparison.answers
            },
        }
        for one in found
    ]
    speeds = mean_speeds([one.comparison for one in found])
    return {"out": str(out), "against": reference, "prompts": prompts, "mean_tokens_per_second": speeds}


def _rendered(comparison: Comparison, output: Output) -> str:
    """Writes a comparison in the format that was asked for; nothing in it acts in a terminal."""
    from taia_hub.compare.tables import figures
    from taia_hub.compare.terminal import make_console, plain_answers, safe_text

    if output.format == "json":
        return json.dumps(comparison.to_json(), indent=2) + "\n"
    if output.format == "markdown":
        return safe_text(comparison.to_markdown(output.against))
    if output.format == "html":
        title = html.escape(comparison.model or "Comparison")
        head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        body = safe_text(comparison.to_html(output.against))
        return f"<!doctype html>\n<html>\n<head>{head}<title>{title}</title></head>\n<body>\n{body}</body>\n</html>\n"
    table = io.StringIO()
    make_console(table).print(figures(comparison, output.against or comparison.modes[0]))
    return f"{plain_answers(comparison, output.against)}\n{table.getvalue()}"


def _write(path: Path, text: str) -> None:
    from taia_hub.common.atomic import write_atomically
    from taia_hub.compare.keeping import unwritable

    try:
        write_atomically(path, text)
    except OSError as error:
        raise unwritable(path, error) from error
    typer.echo(f"Written to '{path}'.", err=True)
