"""`taia train`."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from taia_hub.cli.shared import Json, Private, Token, echo_json, parse_folder, parse_mode
from taia_hub.errors import ConfigError

_DATA, _WHAT, _HOW, _HERE, _OUT = "Data", "What is trained", "How it is trained", "Devices and memory", "Result"


def _option(text: str, panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False, **more)


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]", help="A YAML file, or a recipe that ships with taia-hub.", show_default=False
        ),
    ] = None,
    base: Annotated[str | None, _option("Hub id or folder of the base model.", _WHAT)] = None,
    base_revision: Annotated[str | None, _option("Branch, tag or commit of the base model.", _WHAT)] = None,
    data: Annotated[
        list[str] | None, _option("File or Hub data set (id@revision:split); repeat it.", _DATA, metavar="DATA")
    ] = None,
    in_domain: Annotated[
        list[str] | None, _option("Data in the domain, to be mixed with --ood; repeat it.", _DATA, metavar="DATA")
    ] = None,
    ood: Annotated[list[str] | None, _option("Data out of the domain; repeat it.", _DATA, metavar="DATA")] = None,
    ood_ratio: Annotated[float | None, _option("Share of items out of the domain, 0 to 1.", _DATA)] = None,
    schedule: Annotated[
        str | None, _option("uniform, or linear: the share out of the domain falls to 0.", _DATA)
    ] = None,
    mixing: Annotated[str | None, _option("replace: a fixed total; add: on top of the in-domain items.", _DATA)] = None,
    total: Annotated[int | None, _option("Items of an epoch.", _DATA)] = None,
    noise_ratio: Annotated[float | None, _option("Share of items that get another item's answer.", _DATA)] = None,
    max_length: Annotated[int | None, _option("Longest item in tokens; 3072 by default.", _DATA)] = None,
    packing: Annotated[bool | None, _option("Several items share a sequence.", _DATA, "--packing/--no-packing")] = None,
    assistant_only_loss: Annotated[
        bool | None,
        _option("The loss covers the answers only, or everything.", _DATA, "--assistant-only-loss/--whole-loss"),
    ] = None,
    method: Annotated[str | None, _option("lora (the default), molora or full.", _WHAT)] = None,
    train_modules: Annotated[
        str | None, _option("all (the default), attention, ffn, or as in attention+ffn@0-7.", _WHAT)
    ] = None,
    rank: Annotated[str | None, _option("Rank, or as in attention=4,ffn=64; 16 by default.", _WHAT)] = None,
    alpha: Annotated[str | None, _option("alpha of the scaling alpha / rank, likewise; 32 by default.", _WHAT)] = None,
    dropout: Annotated[float | None, _option("Dropout of the LoRA pairs; 0.05 by default.", _WHAT)] = None,
    experts: Annotated[int | None, _option("Experts of an FFN layer (molora); 4 by default.", _WHAT)] = None,
    top_k: Annotated[int | None, _option("Experts that a token uses (molora); 2 by default.", _WHAT)] = None,
    balance_loss: Annotated[float | None, _option("Weight of the load-balancing loss (molora).", _WHAT)] = None,
    learning_rate: Annotated[float | None, _option("Highest learning rate; 2e-4 by default.", _HOW)] = None,
    scheduler: Annotated[str | None, _option("cosine (the default), linear, constant, …", _HOW)] = None,
    warmup_ratio: Annotated[
        float | None, _option("Share of the steps in which it rises; 0.03 by default.", _HOW)
    ] = None,
    weight_decay: Annotated[float | None, _option("Weight decay of AdamW.", _HOW)] = None,
    epochs: Annotated[float | None, _option("Passes over the items; 1 by default.", _HOW)] = None,
    max_steps: Annotated[int | None, _option("Most optimizer steps.", _HOW)] = None,
    batch_size: Annotated[
        int | None, _option("Items of an optimizer step, over all devices; 64 by default.", _HOW)
    ] = None,
    seed: Annotated[int | None, _option("Of weights, dropout, order and noise.", _HOW)] = None,
    micro_batch_size: Annotated[
        int | None, _option("Items of a forward pass; as many as fit by default.", _HERE)
    ] = None,
    dtype: Annotated[str | None, _option("auto (the default), bfloat16 or float32.", _HERE)] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        _option(
            "Compute activations twice to save memory.", _HERE, "--gradient-checkpointing/--no-gradient-checkpointing"
        ),
    ] = None,
    save_steps: Annotated[int | None, _option("Steps between two checkpoints.", _HERE)] = None,
    report_to: Annotated[
        list[str] | None, _option("Tracker: trackio, wandb, tensorboard, …; repeat it.", _HERE, metavar="TRACKER")
    ] = None,
    trust_remote_code: Annotated[
        bool | None, _option("Let the base model's own code run.", _WHAT, "--trust-remote-code")
    ] = None,
    mode: Annotated[str | None, _option("The published default: a mode, or a JSON mapping.", _OUT)] = None,
    out: Annotated[
        Path | None, _option("Folder to write the repository to.", _OUT, metavar="DIR", parser=parse_folder)
    ] = None,
    push: Annotated[str | None, _option("Hub id to publish it to.", _OUT, metavar="REPO")] = None,
    restart: Annotated[bool, _option("Throw an earlier run in DIR away.", _OUT, "--restart")] = False,
    dry_run: Annotated[bool, _option("Check everything and print the plan.", _OUT, "--dry-run")] = False,
    private: Private = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Train a TAIA repository: LoRA, MoLoRA or full fine-tuning of a base model on JSONL or Hub data.

    Flags win over the recipe. A run that was stopped goes on when the same command is given again.
    """
    given = {
        "base": base,
        "base_revision": base_revision,
        "data": data,
        "in_domain": in_domain,
        "ood": ood,
        "ood_ratio": ood_ratio,
        "schedule": schedule,
        "mixing": mixing,
        "total": total,
        "noise_ratio": noise_ratio,
        "max_length": max_length,
        "packing": packing,
        "assistant_only_loss": assistant_only_loss,
        "method": method,
        "train_modules": train_modules,
        "rank": _by_role("--rank", rank),
        "alpha": _by_role("--alpha", alpha),
        "dropout": dropout,
        "experts": experts,
        "top_k": top_k,
        "balance_loss": balance_loss,
        "learning_rate": learning_rate,
        "scheduler": scheduler,
        "warmup_ratio": warmup_ratio,
        "weight_decay": weight_decay,
        "epochs": epochs,
        "max_steps": max_steps,
        "batch_size": batch_size,
        "seed": seed,
        "micro_batch_size": micro_batch_size,
        "dtype": dtype,
        "gradient_checkpointing": gradient_checkpointing,
        "save_steps": save_steps,
        "report_to": report_to,
        "trust_remote_code": trust_remote_code,
        "inference_modules": parse_mode(mode) if mode else None,
    }
    _run(
        recipe,
        {name: value for name, value in given.items() if value is not None and value != []},
        out=out,
        push=push,
        private=private,
        token=token,
        restart=restart,
        dry_run=dry_run,
        as_json=as_json,
    )


def _run(
    name: str | None,
    given: dict[str, Any],
    *,
    out: Path | None,
    push: str | None,
    private: bool | None,
    token: str | None,
    restart: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    from taia_hub.training import TrainingRecipe, plan_training
    from taia_hub.training import train as run
    from taia_hub.training.running import check_target
    from taia_hub.training.telling import TrainingBars

    recipe = TrainingRecipe.load(name) if name else TrainingRecipe()
    if "data" in given:  # instead of what the recipe mixes, and the other way round
        given = {"in_domain": (), "ood": (), "ood_ratio": None, "schedule": "uniform", **given}
    elif "in_domain" in given:
        given = {"data": (), **given}
    recipe = recipe.replace(**given)
    bars = TrainingBars()
    if dry_run:
        try:
            plan = plan_training(recipe, out=out, push=push, token=token, progress=bars)
        finally:
            bars.close()
        echo_json(_plan_json(plan, recipe)) if as_json else _echo_plan(plan, recipe)
        return
    check_target(recipe, out, push)
    try:
        trained = run(recipe, out=out, push=push, private=private, token=token, resume=not restart, progress=bars)
    except KeyboardInterrupt:
        bars.close()
        typer.echo("The checkpoints stay; the same command goes on from the last one.", err=True)
        raise
    finally:
        bars.close()
    if os.environ.get("RANK", "0") != "0":
        return  # of several processes, the first one tells
    if as_json:
        commit = trained.commit
        values = {field.name: getattr(trained, field.name) for field in dataclasses.fields(trained)}
        echo_json({**values, "commit": commit.oid if commit else None, "url": commit.commit_url if commit else None})
        return
    for note in trained.notes:
        typer.echo(f"Note: {note}")
    if trained.is_new:
        typer.echo(
            f"Trained {_counted(trained.steps, 'step')}, {trained.tokens:,} tokens in {trained.seconds:,.0f} s "
            f"({trained.tokens_per_second:,.0f} tokens/s); loss {_loss(trained.first_loss)} -> "
            f"{_loss(trained.last_loss)}"
        )
    else:
        typer.echo("This very training is finished already; --restart does it again.")
    if trained.folder:
        typer.echo(f"Written to {trained.folder}")
    if trained.commit:
        typer.echo(f"Published {trained.commit.commit_url}")


def _plan_json(plan: Any, recipe: Any) -> dict[str, Any]:
    values = dataclasses.asdict(plan)
    values["memory"]["total"] = plan.memory.total
    return {"plan": values, "recipe": recipe.to_mapping()}


def _echo_plan(plan: Any, recipe: Any) -> None:
    trained = ", ".join(f"{role} {count:,}" for role, count in plan.trained.items())
    memory, free = plan.memory, plan.memory.available
    rows = {
        "base model": f"{recipe.base}, {plan.base_parameters:,} parameters",
        "trained": f"{recipe.method}, {recipe.train_modules}: {trained} parameters",
        "data": f"{plan.items:,} items, about {plan.tokens:,} tokens, the longest {plan.longest:,}",
        "steps": f"{plan.steps:,} of {plan.batch_size} items: {_counted(plan.processes, 'process', 'es')} x "
        f"{plan.accumulation} forward passes x {plan.micro_batch_size} items",
        "device": f"{plan.device}, {plan.dtype}"
        + (", activations computed twice" if plan.gradient_checkpointing else ""),
        "memory": f"about {memory.total / 2**30:.2f} GiB (weights {memory.weights / 2**30:.2f}, optimizer "
        f"{memory.optimizer / 2**30:.2f}, activations {memory.activations / 2**30:.2f})"
        + (f" of {free / 2**30:.2f} free" if free else ""),
    }
    for name, text in rows.items():
        typer.echo(f"{name:<12}{text}")
    for note in plan.notes:
        typer.echo(f"Note: {note}")


def _counted(count: int, noun: str, plural: str = "s") -> str:
    return f"{count:,} {noun}{plural * (count != 1)}"


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _by_role(name: str, text: str | None) -> Any:
    """Reads a number, or one a role: `attention=4,ffn=64`, or JSON."""
    if text is None:
        return None
    hint = f"As in {name} 16, or {name} attention=4,ffn=64."
    try:
        if text.lstrip().startswith("{"):
            return json.loads(text)
        if "=" in text:
            return {role.strip(): int(number) for role, number in (pair.split("=") for pair in text.split(","))}
        return int(text)
    except ValueError as error:
        raise ConfigError(f"{name} '{text}' is no number, and none a role.", hint) from error
