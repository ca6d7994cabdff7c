"""`taia eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from taia_hub.cli.shared import Json, Repository, Revision, Token, Trust, check_dtype, echo_json, parse_mode
from taia_hub.errors import ConfigError


def evaluate(
    repo: Repository,
    task: Annotated[
        list[str] | None,
        typer.Option(help="A task or group of lm-eval, taia_paper, or a YAML or JSONL file; repeat it."),
    ] = None,
    mode: Annotated[
        list[str] | None, typer.Option(help="A mode, or a JSON mapping; repeat it. All four by default.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Results file; an existing one is completed. By default taia_results.json in DIR or here."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Throw earlier results away.")] = False,
    num_fewshot: Annotated[
        str | None, typer.Option(metavar="K[,K…]", help="Examples in the prompts, as in 0,1,2,3,4.", show_default=False)
    ] = None,
    fewshot_file: Annotated[
        Path | None, typer.Option(help="JSONL file that the examples of JSONL tasks come from.")
    ] = None,
    include_path: Annotated[list[Path] | None, typer.Option(help="Folder with more lm-eval task files.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most items a task.")] = None,
    batch_size: Annotated[str, typer.Option(help="Rows a forward pass, auto or auto:N.")] = "8",
    chat_template: Annotated[
        bool | None,
        typer.Option("--chat-template/--no-chat-template", help="By default where the tokenizer has one."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_gen_toks: Annotated[int | None, typer.Option(min=1, help="Longest generated answer, in tokens.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the examples.")] = 1234,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts whose refusals and successful attacks are counted.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="Judges attacks: (prompt, answer) -> bool or [0, 1].")
    ] = None,
    win_rate: Annotated[
        Path | None, typer.Option(help="JSONL of prompt and reference that answers are compared with.")
    ] = None,
    preference_judge: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="(prompt, a, b) -> how far a is preferred, [0, 1].")
    ] = None,
    backend: Annotated[
        str, typer.Option(help="hf evaluates here; vllm prints the commands that evaluate there.")
    ] = "hf",
    dtype: Annotated[str, typer.Option(help="dtype of the base model, as in bfloat16.")] = "auto",
    device_map: Annotated[str | None, typer.Option(help="Where the model goes, as in auto or cuda.")] = None,
    revision: Revision = None,
    token: Token = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Evaluate a repository under several modes with lm-evaluation-harness."""
    from taia_hub.common.progress import ProgressBars
    from taia_hub.evaluation import evaluate as run
    from taia_hub.evaluation import vllm_commands
    from taia_hub.evaluation.options import check_batch_size
    from taia_hub.evaluation.prompts import prompt_units
    from taia_hub.results import RESULTS_FILE, summarise, to_text

    if backend not in ("hf", "vllm"):
        raise ConfigError(f"The backend '{backend}' is not known.", "Choose hf or vllm.")
    modes = [parse_mode(text) for text in mode] if mode else ["none", "attention", "ffn", "all"]
    shots = _numbers(num_fewshot)
    rows = check_batch_size(batch_size)
    if backend == "vllm":
        here = {
            "--prompts": prompts,
            "--win-rate": win_rate,
            "--fewshot-file": fewshot_file,
            "--include-path": include_path,
        }
        if ignored := [name for name, value in here.items() if value]:
            raise ConfigError(
                f"{ignored[0]} cannot be part of commands for vLLM.",
                "Leave --backend vllm out; a task of your own is named by its YAML file: --task FILE.yaml.",
            )
        lines = vllm_commands(
            repo,
            task or [],
            modes,
            revision=revision,
            token=token,
            limit=limit,
            num_fewshot=shots or (None,),
            seed=seed,
            chat_template=chat_template is not False,
            system_instruction=system,
            max_gen_toks=max_gen_toks,
        )
        echo_json(lines) if as_json else typer.echo("\n".join(lines))
        return
    units = prompt_units(prompts, judge, win_rate, preference_judge, limit=limit)
    loading: dict[str, Any] = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
    target = out or (Path(repo) if Path(repo).is_dir() else Path()) / RESULTS_FILE
    bars = ProgressBars()
    try:
        results = run(
            repo,
            task or [],
            modes,
            units=units,
            num_fewshot=shots,
            fewshot_path=fewshot_file,
            include_path=include_path or (),
            limit=limit,
            batch_size=rows,
            chat_template=chat_template,
            system_instruction=system,
            gen_kwargs={"max_gen_toks": max_gen_toks} if max_gen_toks else None,
            seed=seed,
            out=target,
            overwrite=overwrite,
            progress=bars,
            dtype=check_dtype(dtype),
            device_map=device_map,
            **loading,
        )
    except KeyboardInterrupt:
        bars.close()
        typer.echo(f"What was finished is in '{target}'; the same command does the rest.", err=True)
        raise
    finally:
        bars.close()
    echo_json(results.to_json()) if as_json else typer.echo(to_text(summarise(results)))


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise ConfigError(f"--num-fewshot '{text}' is no list of numbers.", "As in --num-fewshot 0,1,2,3,4.")
    return [int(word) for word in words]
