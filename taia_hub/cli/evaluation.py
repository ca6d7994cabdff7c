"""`taia eval`."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from taia_hub.cli.jobs import On, Print, is_job, job, kept
from taia_hub.cli.options import filled, options_of, taken
from taia_hub.cli.printing import echo
from taia_hub.cli.shared import Json, Loading, Update, echo_json, modes, progress, say_device
from taia_hub.errors import ConfigError, TAIAError
from taia_hub.evaluation.options import EvaluationOptions


@options_of(Loading)
@options_of(EvaluationOptions, first=True)
def evaluate(
    context: typer.Context,
    repo: Update,
    mode: Annotated[list[str] | None, modes("all four")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Results file, completed if it is there. By default OWNER--NAME.results.json, or taia_results.json in "
            "DIR."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Throw earlier results away.")] = False,
    max_gen_toks: Annotated[int | None, typer.Option(min=1, help="Longest generated answer, in tokens.")] = None,
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
    retention: Annotated[
        str | None,
        typer.Option(
            metavar="[FILE]",
            help="Behind REPO: measure what each mode keeps of the base, on shipped general texts; or on a file of "
            "paragraphs, a .jsonl of texts or of items as `taia train` takes them, or a task or group of lm-eval.",
            show_default=False,
        ),
    ] = None,
    backend: Annotated[
        str, typer.Option(metavar="hf|vllm", help="hf evaluates here; vllm prints the commands that evaluate there.")
    ] = "hf",
    on: On = None,
    print_only: Print = False,
    as_json: Json = False,
    **fields: Any,
) -> None:
    """Evaluate a repository under several modes with lm-evaluation-harness.

    The model is loaded once; under none the numbers are those of the bare base model. The table has standard errors and
    differences to none and all with paired bootstrap intervals over the items; it says what is within noise. Results
    are written after every mode of every task; a second run does only what is missing. `accelerate launch` shares the
    items out. taia_paper is the paper's seven benchmarks. --retention says how many of the base's most likely next
    tokens a mode keeps, with its divergence from the base (KL) and its loss in nats a token; it needs no --task.

    Every line of a JSONL file is checked before anything runs. Its answer_type is choice (with choices, decided by the
    likelihood of their letters), number, latex or text:
    {"id": "1", "question": "What is 2 + 1.5?", "answer": "3.5", "answer_type": "number"} or {"id": "2", "question":
    "Where do fish live?", "answer": "A", "answer_type": "choice", "choices": ["water", "trees"]}

    taia eval org/model-taia --task my_items.jsonl --limit 100

    taia eval org/model-taia --retention --out kept.json

    taia eval org/model-taia --task commonsense_qa --mode attention --backend vllm

    taia eval org/model-taia --task taia_paper --on hf-jobs --print
    """
    from taia_hub.common.devices import place
    from taia_hub.evaluation import evaluate as run
    from taia_hub.evaluation.prompts import prompt_units
    from taia_hub.results import summarise, to_text

    if backend not in ("hf", "vllm"):
        raise ConfigError(f"The backend '{backend}' is not known.", "Choose hf or vllm.")
    loading = taken(Loading, fields)
    fields |= {"modes": mode or None, "num_fewshot": _numbers(fields["num_fewshot"])}
    given = filled({**fields, "gen_kwargs": {"max_gen_toks": max_gen_toks} if max_gen_toks else None})
    options = EvaluationOptions(**given)
    if is_job(on, print_only):
        if backend != "hf":
            raise ConfigError(f"--backend {backend} prints commands itself.", "Leave --on hf-jobs out, or --backend.")
        echo(_job(context, repo, options, (prompts, win_rate), (judge, preference_judge), out, retention))
        return
    if backend == "vllm":
        lines = _commands(
            repo, options, prompts, win_rate, retention, revision=loading["revision"], token=loading["token"]
        )
        echo_json(lines) if as_json else echo("\n".join(lines))
        return
    loading["device_map"] = place(loading.pop("device"), loading["device_map"])
    if "" not in sys.path:
        sys.path.insert(0, "")  # judges stand in the working folder
    kept = False if retention is None else retention or True
    units = prompt_units(prompts, judge, win_rate, preference_judge, limit=options.limit)
    target = out or _results_file(repo)
    with progress(f"What was finished is in '{target}'; the same command does the rest.") as bars:
        how = {
            "units": units,
            "retention": kept,
            "out": target,
            "overwrite": overwrite,
            "progress": bars,
            "on_load": say_device,
        }
        results = run(repo, **given, **loading, **how)
    echo_json(results.to_json()) if as_json else echo(to_text(summarise(results)))


def _job(
    context: typer.Context,
    repo: str,
    options: EvaluationOptions,
    texts: tuple[Path | None, ...],
    judges: tuple[str | None, ...],
    out: Path | None,
    retention: str | None,
) -> str:
    """Returns what evaluates elsewhere, with the results where they stay; what is only here is refused."""
    from taia_hub.evaluation.retention import names_file
    from taia_hub.hub import check_repo_id

    for folder, what in ((repo, "repository"), *((str(one), "--include-path") for one in options.include_path)):
        if os.path.isdir(folder):
            raise ConfigError(
                f"The {what} '{folder}' is a folder, which a job does not see.",
                "Publish it with `taia push`, and name that."
                if what == "repository"
                else "Name a task's file instead.",
            )
    if own := [judge for judge in judges if judge and not judge.startswith("taia_hub.")]:
        raise ConfigError(
            f"The judge '{own[0]}' is code of this machine, which a job does not have.", "Evaluate with it here."
        )
    check_repo_id(repo)
    general = Path(retention) if retention and names_file(retention) else None
    named = [one for one in (*map(Path, options.tasks), options.fewshot_path, *texts, general) if one is not None]
    if not (options.tasks or any(texts) or retention is not None):
        raise ConfigError("No task was given.", "Name one of lm-eval, such as 'commonsense_qa', or a JSONL file.")
    if gone := [one for one in named if (one.suffix == ".jsonl" or one is general) and not os.path.isfile(one)]:
        raise ConfigError(f"There is no file '{gone[0]}' here, to be sent along.", "Check the path.")
    target = kept((out or _results_file(repo)).name)
    note = f"The results stay in the bucket, in the folder that the start names, as {Path(target).name}."
    files = [one for one in named if os.path.isfile(one)]
    return job(context, "eval", files=files, instead=("--out", target), notes=[note])


def _results_file(repo: str) -> Path:
    """Names the file of a model's results: in its folder, or here after its Hub id, or here as it was named before."""
    from taia_hub.results import RESULTS_FILE, Results

    if os.path.isdir(repo):
        return Path(repo, RESULTS_FILE)
    general = Path(RESULTS_FILE)
    with contextlib.suppress(TAIAError):  # a damaged one may be anybody's
        if general.is_file() and Results.load(general).model.name == repo:
            return general
    return Path(f"{repo.replace('/', '--')}.results.json")


def _commands(
    repo: str,
    options: EvaluationOptions,
    prompts: Path | None,
    win_rate: Path | None,
    retention: str | None,
    **source: Any,
) -> list[str]:
    """Returns the commands for vLLM; what only works here is refused."""
    from taia_hub.evaluation import vllm_commands

    if retention is not None:
        raise ConfigError(
            "--retention compares the logits of the modes on one loaded model, which vLLM does not give.",
            "Leave --backend vllm out, and give --retention in a run of its own.",
        )
    here = {
        "--prompts": prompts,
        "--win-rate": win_rate,
        "--fewshot-file": options.fewshot_path,
        "--include-path": options.include_path,
    }
    if ignored := [name for name, value in here.items() if value]:
        raise ConfigError(
            f"{ignored[0]} cannot be part of commands for vLLM.",
            "Leave --backend vllm out; a task of your own is named by its YAML file: --task FILE.yaml.",
        )
    return vllm_commands(
        repo,
        options.tasks,
        options.modes,
        limit=options.limit,
        num_fewshot=options.shots,
        seed=options.seed,
        chat_template=options.chat_template is not False,
        system_instruction=options.system_instruction,
        max_gen_toks=(options.gen_kwargs or {}).get("max_gen_toks"),
        **source,
    )


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise ConfigError(f"--num-fewshot '{text}' is no list of numbers.", "As in --num-fewshot 0,1,2,3,4.")
    return tuple(int(word) for word in words)
