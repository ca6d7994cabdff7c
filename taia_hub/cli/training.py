"""`taia train`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from taia_hub.cli.jobs import On, Print, is_job, job
from taia_hub.cli.options import options_of, reading, typed
from taia_hub.cli.printing import echo
from taia_hub.cli.shared import Json, Private, Source, echo_json, folder, next_step, parse_mode, progress, published
from taia_hub.common.parsing import parse_json
from taia_hub.common.text_tables import amount, byte_size
from taia_hub.errors import ConfigError
from taia_hub.training.recipe import TrainingRecipe

_RESULT = "Result"


@options_of(Source, "token")
@options_of(TrainingRecipe, first=True)
def train(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="A YAML file, or a recipe that ships with taia-hub.", show_default=False),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="The published default: a mode, or a JSON mapping; attention by default, attention+other after full "
            "fine-tuning.",
            rich_help_panel=_RESULT,
            callback=reading(parse_mode),
        ),
    ] = None,
    out: Annotated[Path | None, folder("Folder to write the repository to.", _RESULT)] = None,
    push: Annotated[
        str | None, typer.Option(help="Hub id to publish it to.", rich_help_panel=_RESULT, metavar="REPO")
    ] = None,
    report: Annotated[
        bool | None,
        typer.Option(
            "--report/--no-report",
            help="Measure at the end, by mode, the loss on held-out items and what is kept of the base; by default as "
            "much as takes 5 % of the training's time, with --report all.",
            rich_help_panel=_RESULT,
            show_default=False,
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw an earlier run in DIR away.", rich_help_panel=_RESULT)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan.", rich_help_panel=_RESULT)
    ] = False,
    on: On = None,
    print_only: Print = False,
    private: Private = None,
    as_json: Json = False,
    **fields: Any,
) -> None:
    """Train a TAIA repository: LoRA, MoLoRA or full fine-tuning of a base model on your data.

    Items are Alpaca, ShareGPT, messages or prompt and completion, told by their content; every line is checked before
    anything is trained. Flags win over the recipe. A run that was stopped goes on when the same command is given again,
    on a CPU with the same final weights. Recipe, hashes of the data, versions, losses and time go into the repository
    and on its card, with what each mode gains on items that were held out, and keeps of the base on general text.

    For several devices there are ddp.yaml, fsdp.yaml and deepspeed.yaml (the last two read by accelerate in the tests,
    not run) in taia_hub/training/configs:
    accelerate launch --config_file taia_hub/training/configs/ddp.yaml -m taia_hub.training recipe.yaml --out model-taia

    taia train --base org/base --data items.jsonl --out model-taia

    taia train recipe.yaml --method molora --push org/model-taia --dry-run

    taia train recipe.yaml --data items.jsonl --push org/model-taia --on hf-jobs --print
    """
    from taia_hub.training import plan_training
    from taia_hub.training import train as run
    from taia_hub.training.running import check_target

    token = fields.pop("token")
    given = {name: fields[name] for name in typed(context) & fields.keys()}
    made = _recipe(recipe, given, mode)
    if is_job(on, print_only):
        echo(_job(context, made, recipe, push))
        return
    with progress("The checkpoints stay; the same command goes on from the last one.") as bars:
        if dry_run:
            plan = plan_training(made, out=out, push=push, token=token, report=report, progress=bars)
            _echo_plan(plan, made, as_json)
            return
        check_target(made, out, push)

        def show(plan: Any) -> None:
            bars.close()
            _echo_rows(plan, made, ("trained", "data", "steps", "device", "report"), err=True)

        target = {"out": out, "push": push, "private": private, "token": token}
        trained = run(made, **target, resume=not restart, report=report, progress=bars, on_plan=show)
    if os.environ.get("RANK", "0") == "0":  # of several processes, the first one tells
        _echo_trained(trained, as_json)
        if not as_json:
            next_step(trained.commit.repo_url.repo_id if trained.commit else str(trained.folder))


def _recipe(name: str | None, given: dict[str, Any], mode: Any) -> TrainingRecipe:
    for field in given.keys() & {"rank", "alpha"}:
        given[field] = _by_role(f"--{field}", given[field])
    if mode:
        given["inference_modules"] = mode
    if "data" in given:  # instead of what the recipe mixes, and the other way round
        given = {"in_domain": (), "ood": (), "ood_ratio": None, "schedule": "uniform", **given}
    elif "in_domain" in given:
        given = {"data": (), **given}
    return (TrainingRecipe.load(name) if name else TrainingRecipe()).replace(**given)


def _job(context: typer.Context, made: TrainingRecipe, recipe: str | None, push: str | None) -> str:
    """Returns what trains elsewhere; what is only here, or would be lost there, is refused."""
    from taia_hub.hub import check_repo_id
    from taia_hub.training.sources import parse_name

    made.check_complete()
    if push is None:
        raise ConfigError(
            "A job's disk is gone when it ends, and --push names no repository for the trained model.",
            "Add --push org/name; --out alone is lost there.",
        )
    check_repo_id(push)
    if os.path.isdir(made.base):
        raise ConfigError(
            f"The base model '{made.base}' is a folder, which a job does not see.", "Publish it, and name its Hub id."
        )
    files = [name for name in (*made.data, *made.in_domain, *made.ood) if isinstance(parse_name(name), Path)]
    if recipe is not None and Path(recipe).is_file():
        files.append(recipe)
    return job(context, "train", files=files, notes=["`taia train … --dry-run` says here what memory it needs."])


def _echo_trained(trained: Any, as_json: bool) -> None:
    from taia_hub.results.tradeoff import tradeoff
    from taia_hub.results.tradeoff_text import tradeoff_text

    if as_json:
        commit = trained.commit
        values = {field.name: getattr(trained, field.name) for field in dataclasses.fields(trained)}
        values["results"] = trained.results.to_json() if trained.results else None
        echo_json({**values, "commit": commit.oid if commit else None, "url": commit.commit_url if commit else None})
        return
    for note in trained.notes:
        echo(f"Note: {note}")
    if trained.is_new:
        echo(
            f"Trained {amount(trained.steps, 'step')}, {trained.tokens:,} tokens in {trained.seconds:,.0f} s "
            f"({trained.tokens_per_second:,.0f} tokens/s); loss {_loss(trained.first_loss)} -> "
            f"{_loss(trained.last_loss)}"
        )
    else:
        echo("This very training is finished already; --restart does it again.")
    if found := tradeoff(trained.results) if trained.results else None:
        echo(f"\n{tradeoff_text(found)}\n")
    if trained.folder:
        echo(f"Written to {trained.folder}")
    if trained.commit:
        echo(published(trained.commit))


def _echo_plan(plan: Any, recipe: TrainingRecipe, as_json: bool) -> None:
    if as_json:
        values = dataclasses.asdict(plan)
        values["memory"]["total"] = plan.memory.total
        echo_json({"plan": values, "recipe": recipe.to_mapping()})
        return
    _echo_rows(plan, recipe)


def _echo_rows(plan: Any, recipe: TrainingRecipe, names: Sequence[str] = (), *, err: bool = False) -> None:
    """Prints the rows of a plan with these names, or all of them, and what the user should know."""
    from taia_hub.training.report_plan import report_words

    trained = ", ".join(f"{role} {count:,}" for role, count in plan.trained.items())
    memory, free = plan.memory, plan.memory.available
    rows = {
        "base model": f"{recipe.base}, {plan.base_parameters:,} parameters",
        "trained": f"{recipe.method}, {recipe.train_modules}: {trained} parameters",
        "data": f"{amount(plan.items, 'item')}, about {plan.tokens:,} tokens, the longest {plan.longest:,}"
        + (f"; {plan.held_out:,} held out" if plan.held_out else ""),
        "steps": f"{plan.steps:,} of {amount(plan.batch_size, 'item')}: {amount(plan.processes, 'process', 'es')} x "
        f"{amount(plan.accumulation, 'forward pass', 'es')} x {amount(plan.micro_batch_size, 'item')}",
        "device": f"{plan.device}, {plan.dtype}"
        + (", activations computed twice" if plan.gradient_checkpointing else ""),
        "memory": f"about {byte_size(memory.total)} (weights {byte_size(memory.weights)}, optimizer "
        f"{byte_size(memory.optimizer)}, activations {byte_size(memory.activations)})"
        + (f" of {byte_size(free)} free" if free else ""),
        "report": report_words(plan),
    }
    for name, text in rows.items():
        if not names or name in names:
            echo(f"{name:<12}{text}", err=err)
    for note in () if names else plan.notes:  # after the training they are told with it
        echo(f"Note: {note}", err=err)
    for warning in plan.warnings:
        echo(f"Warning: {warning}", err=err)


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _by_role(name: str, text: str) -> Any:
    """Reads a number, or one a role: `attention=4,ffn=64`, or JSON."""
    hint = f"As in {name} 16, or {name} attention=4,ffn=64."
    try:
        if text.lstrip().startswith("{"):
            return parse_json(text)
        if "=" in text:
            return {role.strip(): int(number) for role, number in (pair.split("=") for pair in text.split(","))}
        return int(text)
    except ValueError as error:
        raise ConfigError(f"{name} '{text}' is no number, and none a role.", hint) from error
