"""`taia reproduce`: a recipe of the paper, trained, evaluated and set beside the paper's table."""
# ruff: noqa: RUF009 - `asked` makes a field

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from taia_hub.cli.options import filled, options_of
from taia_hub.cli.printing import echo
from taia_hub.cli.shared import Json, Source, echo_json, modes, parse_folder, progress
from taia_hub.common.fields import asked
from taia_hub.common.text_tables import amount, byte_size
from taia_hub.errors import ConfigError
from taia_hub.evaluation.options import check_batch_size


def _change(text: str) -> tuple[str, Any]:
    """Reads `FIELD=VALUE`; the value is YAML, so that numbers, true and mappings are what they look like."""
    import yaml

    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise ConfigError(f"--set '{text}' is no FIELD=VALUE.", "As in --set learning_rate=1e-3.")
    try:
        return name.strip().replace("-", "_"), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set '{text}' has a value that cannot be read.", "Quote it as YAML wants it.") from error


@dataclass(frozen=True)
class _Changes:
    """What is done otherwise than in the paper; the names are keywords of `taia_hub.reproducing.reproduce`."""

    base: str | None = asked(None, "Another base model than the paper's.")
    data: tuple[str, ...] = asked((), "Training data: a file, or a data set on the Hub; repeat it.")
    in_domain: tuple[str, ...] = asked((), "Data in the domain, for recipes that mix.")
    ood: tuple[str, ...] = asked((), "Data out of the domain, for recipes that mix.")
    steps: int | None = asked(None, "Most optimizer steps a run.", least=1)
    changes: tuple[str, ...] = asked(
        (), "Another field of training; repeat it.", flags="--set", metavar="FIELD=VALUE", read=_change
    )
    runs: tuple[str, ...] = asked((), "A run, where the recipe has several; repeat it.", flags="--run")
    tasks: tuple[str, ...] = asked((), "A task as in taia eval, in place of the recipe's; repeat it.", flags="--task")
    prompts: Path | None = asked(None, "Prompts whose successful attacks are counted.")
    limit: int | None = asked(None, "Most items a task.", least=1)
    batch_size: str = asked("8", "Rows a forward pass of the evaluation, auto or auto:N.", read=check_batch_size)


@options_of(Source, "token", "trust_remote_code")
@options_of(_Changes)
def reproduce(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Name of a recipe (--list shows them), or a YAML file.")
    ] = None,
    list_recipes: Annotated[bool, typer.Option("--list", help="Show the recipes and end.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for models, results and the table; reproduction-RECIPE by default.")
    ] = None,
    mode: Annotated[list[str] | None, modes("the recipe's")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and print what would be done.")] = False,
    as_json: Json = False,
    **fields: Any,
) -> None:
    """Train a recipe of the paper, evaluate every mode, and set the paper's table beside yours.

    The paper's numbers stand in the table where they are known, beside yours with intervals and with what differs from
    the paper's setting. A reproduction goes on where it was stopped.

    taia reproduce --list

    taia reproduce lora --base org/small --data items.jsonl --steps 100 --limit 200 --dry-run

    taia reproduce lora --base org/small --data items.jsonl --steps 100 --task commonsense_qa --limit 200 --out lora
    """
    if list_recipes:
        _echo_recipes(as_json)
        return
    if recipe is None:
        raise ConfigError("No recipe was named.", "Choose one of `taia reproduce --list`, or give a YAML file.")
    from taia_hub.reproducing import load_recipe
    from taia_hub.reproducing import reproduce as run

    loaded = load_recipe(recipe)
    folder = parse_folder(out) if out is not None else Path(f"reproduction-{loaded.name}")
    options = filled({**fields, "modes": mode, "changes": dict(fields["changes"] or ())})
    if dry_run:
        options["on_plan"] = lambda plans: _end_with(plans, as_json)
    with progress(f"What was finished is in '{folder}'; the same command does the rest.") as bars:
        done = run(loaded, out=folder, progress=bars, **options)
    if as_json:
        echo_json(done.table.to_json())
        return
    echo(done.table.to_text())
    echo(f"Written to '{folder}': table.md, table.json, and a TAIA repository a run.", err=True)


def _end_with(plans: Any, as_json: bool) -> None:
    """Prints what each run would do, and ends before it is done."""
    if as_json:
        echo_json({label: plan and dataclasses.asdict(plan) for label, plan in plans.items()})
        raise typer.Exit
    for label, plan in plans.items():
        if plan is None:
            echo(f"{label}: trained already")
            continue
        data = f"{amount(plan.items, 'item')}, about {plan.tokens:,} tokens"
        trained = f"{sum(plan.trained.values()):,} of {plan.base_parameters:,} parameters on {plan.device}"
        echo(f"{label}: {amount(plan.steps, 'step')}, {data}; {trained}, about {byte_size(plan.memory.total)}")
        for line in (*plan.notes, *plan.warnings):
            echo(f"  {line}")
    echo("Nothing was trained: leave --dry-run out to do it.")
    raise typer.Exit


def _echo_recipes(as_json: bool) -> None:
    from taia_hub.common.text_tables import aligned
    from taia_hub.reproducing.recipe import load_recipe
    from taia_hub.training.recipe import recipe_names

    found = [load_recipe(name) for name in recipe_names()]
    if as_json:
        echo_json([{"name": one.name, "description": one.description, "runs": one.labels} for one in found])
        return
    echo(aligned([[one.name, one.description] for one in found], left=(0, 1)))
