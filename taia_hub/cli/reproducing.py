"""`taia reproduce`: a recipe of the paper, trained, evaluated and set beside the paper's table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from taia_hub.cli.shared import Json, Token, Trust, echo_json, modes, parse_folder, parse_modes, progress
from taia_hub.errors import ConfigError


def reproduce(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Name of a recipe (--list shows them), or a YAML file.")
    ] = None,
    list_recipes: Annotated[bool, typer.Option("--list", help="Show the recipes and end.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for models, results and the table; reproduction-RECIPE by default.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Another base model than the paper's.", show_default=False)] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Training data: a file, or a data set on the Hub; repeat it.")
    ] = None,
    in_domain: Annotated[list[str] | None, typer.Option(help="Data in the domain, for recipes that mix.")] = None,
    ood: Annotated[list[str] | None, typer.Option(help="Data out of the domain, for recipes that mix.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Most optimizer steps a run.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Another field of training; repeat it.")
    ] = None,
    run: Annotated[list[str] | None, typer.Option(help="A run, where the recipe has several; repeat it.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="A task as in taia eval, in place of the recipe's; repeat it.")
    ] = None,
    mode: Annotated[list[str] | None, modes("the recipe's")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts whose successful attacks are counted.", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most items a task.")] = None,
    batch_size: Annotated[str, typer.Option(help="Rows a forward pass of the evaluation, auto or auto:N.")] = "8",
    token: Token = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Train a recipe of the paper, evaluate every mode, and set the paper's table beside yours.

    The paper's numbers stand in the table where they are known, beside yours with intervals and with what differs from
    the paper's setting. A reproduction goes on where it was stopped.

    taia reproduce --list

    taia reproduce lora --base org/small --data items.jsonl --steps 100 --task commonsense_qa --limit 200 --out lora
    """
    if list_recipes:
        _echo_recipes(as_json)
        return
    if recipe is None:
        raise ConfigError("No recipe was named.", "Choose one of `taia reproduce --list`, or give a YAML file.")
    from taia_hub.evaluation.options import check_batch_size
    from taia_hub.reproducing import reproduce as start
    from taia_hub.reproducing.recipe import load_recipe

    loaded = load_recipe(recipe)
    folder = parse_folder(out) if out is not None else Path(f"reproduction-{loaded.name}")
    with progress(f"What was finished is in '{folder}'; the same command does the rest.") as bars:
        done = start(
            loaded,
            out=folder,
            base=base,
            data=data or (),
            in_domain=in_domain or (),
            ood=ood or (),
            steps=steps,
            changes=dict(map(_change, change or ())),
            runs=run or (),
            tasks=task or (),
            modes=parse_modes(mode),
            prompts=prompts,
            limit=limit,
            batch_size=check_batch_size(batch_size),
            token=token,
            trust_remote_code=trust_remote_code,
            progress=bars,
        )
    if as_json:
        echo_json(done.table.to_json())
        return
    typer.echo(done.table.to_markdown())
    typer.echo(f"Written to '{folder}': table.md, table.json, and a TAIA repository a run.", err=True)


def _echo_recipes(as_json: bool) -> None:
    from taia_hub.common.text_tables import aligned
    from taia_hub.reproducing.recipe import load_recipe
    from taia_hub.training.recipe import recipe_names

    found = [load_recipe(name) for name in recipe_names()]
    if as_json:
        echo_json([{"name": one.name, "description": one.description, "runs": one.labels} for one in found])
        return
    typer.echo(aligned([[one.name, one.description] for one in found], left=(0, 1)))


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
