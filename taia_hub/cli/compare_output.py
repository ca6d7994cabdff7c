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

from taia_hub.cli.printing import echo
from taia_hub.cli.shared import echo_json
from taia_hub.errors import TAIAError

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


def compare_prompt(start: Callable[[], Generator[Comparison, None, None]], output: Output) -> None:
    """Compares the answers to one prompt: as columns that grow, or all at once where there is no terminal.

    `start` loads what answers, once everything else is checked.
    """
    from taia_hub.compare.keeping import check_out
    from taia_hub.compare.tables import figures
    from taia_hub.compare.terminal import is_terminal, make_console

    if output.out is not None:
        check_out(output.out)
    console = make_console(sys.stdout)
    draws = is_terminal(sys.stdout) and (output.format == "text" or output.out is not None)
    try:
        states = start()
    except KeyboardInterrupt:
        state, stopped = None, True
    else:
        state, stopped = show_columns(states, console, output.against) if draws else follow(states)
    if output.format == "text" or draws:
        say_notes(state)
    if state and draws and not stopped:
        console.print(figures(state, output.against or state.modes[0]))
    if state and output.out is not None and not stopped:
        write_result(output.out, _rendered(state, output))
    elif state and not draws and output.out is None:
        echo(_rendered(state, output), nl=False)
    if stopped:
        echo("Stopped." if output.out is None else f"Stopped; '{output.out}' was not written.", err=True)
        raise typer.Exit(130)


def follow(
    states: Generator[Comparison, None, None], show: Callable[[Comparison], object] | None = None
) -> tuple[Comparison | None, bool]:
    """Goes through the states of a comparison and shows each.

    Returns:
        The last state, None where Ctrl-C came before the first, and whether it came.
    """
    state: Comparison | None = None
    with contextlib.closing(states):
        try:
            for state in states:
                if show:
                    show(state)
        except KeyboardInterrupt as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # the second one, while the first was obeyed
                raise
            states.close()
            return state, True
    return state, False


def show_columns(
    states: Generator[Comparison, None, None], console: Console, against: str | None = None
) -> tuple[Comparison | None, bool]:
    """Draws the answers of a comparison as they grow; returned is what `follow` returns."""
    from taia_hub.compare.terminal import LiveColumns

    with LiveColumns(console, against) as columns:
        state, stopped = follow(states, columns.show)
        if state:
            columns.finish(state)
    return state, stopped


def show_answers(
    states: Generator[Comparison, None, None], count: int, *, quiet: bool = False
) -> tuple[Comparison | None, bool]:
    """Writes one answer as it grows, or `count` of them: as columns, or all at once where there is no terminal.

    Where it is `quiet` nothing is written; returned is what `follow` returns.
    """
    from taia_hub.compare.terminal import LiveText, is_terminal, make_console, plain_answers

    if quiet:
        return follow(states)
    if count == 1:
        text = LiveText(sys.stdout)
        state, stopped = follow(states, lambda one: text.show(one.answers[0].text))
        text.finish(state.answers[0].text if state else "")
        return state, stopped
    if is_terminal(sys.stdout):
        return show_columns(states, make_console(sys.stdout))
    state, stopped = follow(states)
    echo(plain_answers(state) if state else "", nl=False)
    return state, stopped


def say_notes(*states: Comparison | None) -> None:
    """Says on standard error what the reader of comparisons should know, each note once."""
    for note in dict.fromkeys(note for state in states if state for note in state.notes):
        echo(note, err=True)


def compare_prompts(
    load: Callable[[], tuple[Any, Any]],
    known: Callable[[], tuple[Any, Any]],
    file: Path,
    out: Path | None,
    modes: Sequence[Any],
    how: Mapping[str, Any],
    *,
    overwrite: bool,
    reference: str,
    as_json: bool,
) -> None:
    """Compares the answers to the prompts of a file, and shows a table of them.

    The comparisons go to a file beside the prompts, unless `out` names another one; `how` are keywords of
    `compare_file`, and `reference` is the mode that the others part from. `known` says which model it is, and
    what its answers depend on besides, without loading it, so that a file that is complete needs none.
    """
    from taia_hub.common.progress import ProgressBars
    from taia_hub.compare.files import compare_file, complete_file, read_prompts
    from taia_hub.compare.keeping import check_out
    from taia_hub.compare.tables import overview
    from taia_hub.compare.terminal import is_terminal, make_console
    from taia_hub.evaluation.environment import identify

    total, done = len(read_prompts(file, how["system"])), 0  # bad lines are told before a model is loaded
    out = out or file.with_name(f"{file.stem}.compared.jsonl")
    check_out(out)
    found = None
    if out.exists() and not overwrite:
        with contextlib.suppress(TAIAError):  # said again, by the model itself
            identity, inputs = known()
            found = complete_file(file, out, identity, inputs, modes, **how)
    bars = ProgressBars()

    def progress(stage: str, at: int, of: int) -> None:
        nonlocal done
        done = at
        bars(stage, at, of)

    try:
        if found is None:
            model, tokenizer = load()
            identity, more = identify(model), {"overwrite": overwrite, "progress": progress, **how}
            found = compare_file(model, tokenizer, file, out, identity, modes, **more)
    except KeyboardInterrupt:
        bars.close()
        echo(f"Stopped: {done} of {total} prompts are in '{out}'. The same command goes on from there.", err=True)
        raise typer.Exit(130) from None
    finally:
        bars.close()
    say_notes(*(one.comparison for one in found))
    echo(f"{total} prompts are in '{out}'.", err=True)
    if as_json:
        echo_json(_summary(found, out, reference))
    else:
        console = make_console(sys.stdout)
        width = console.width if is_terminal(sys.stdout) else 120
        console.print(overview([(one.line.name, one.comparison) for one in found], reference, width))


def _summary(found: Sequence[ComparedPrompt], out: Path, reference: str) -> dict[str, Any]:
    """Makes the table of a file as JSON values."""
    from taia_hub.compare.tables import count_different, count_others, mean_likelihoods, mean_speeds

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
    comparisons = [one.comparison for one in found]
    return {
        "out": str(out),
        "against": reference,
        "prompts": prompts,
        "different": count_different(comparisons),
        "different_from_against": count_others(comparisons, reference),
        "mean_tokens_per_second": mean_speeds(comparisons),
        "mean_log_likelihoods": mean_likelihoods(comparisons),
    }


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


def write_result(path: Path, text: str) -> None:
    """Writes a file whole, and says so."""
    from taia_hub.common.atomic import write_atomically
    from taia_hub.compare.keeping import unwritable

    try:
        write_atomically(path, text)
    except OSError as error:
        raise unwritable(path, error) from error
    echo(f"Written to '{path}'.", err=True)
