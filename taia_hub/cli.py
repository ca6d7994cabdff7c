"""The command line: parse, call, print. Errors are a message and a hint; `--debug` shows the traceback."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from taia_hub import __version__
from taia_hub.demo.runner import DEFAULT_ITEMS, DEFAULT_STEPS
from taia_hub.errors import ConfigError, RepositoryError, TAIAError

app = typer.Typer(
    name="taia",
    help="TAIA on the Hugging Face Hub: train all parameters, infer with only the attention updates.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
hub_app = typer.Typer(help="A loopback Hub in a folder, for work offline and for tests.", no_args_is_help=True)
app.add_typer(hub_app, name="hub")

Repository = Annotated[str, typer.Argument(metavar="REPO|DIR", help="Hub id or folder of a TAIA repository.")]
Token = Annotated[str | None, typer.Option(help="Access token; the stored one by default.", show_default=False)]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Private = Annotated[bool | None, typer.Option("--private/--public", help="Visibility of a new repository.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Let the base model's own code run.")]
Message = Annotated[str | None, typer.Option("--message", "-m", help="Commit message.", show_default=False)]

_ROW = "{:<12}{:>10}{:>16}{:>12}"


def print_version(wanted: bool) -> None:
    """Prints the version and ends, when it is asked for."""
    if wanted:
        typer.echo(f"taia-hub {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Takes the options that stand before the command."""


@app.command()
def create(
    base: Annotated[str, typer.Argument(help="Hub id (or folder) of the base model.")],
    adapter: Annotated[str, typer.Argument(help="Hub id or folder of a PEFT adapter.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write the repository to.")] = None,
    push: Annotated[str | None, typer.Option(metavar="REPO", help="Hub id to publish it to.")] = None,
    mode: Annotated[str, typer.Option(help="The published default: a mode, or a JSON mapping.")] = "attention",
    base_revision: Annotated[str | None, typer.Option(help="Revision of the base model.")] = None,
    adapter_revision: Annotated[str | None, typer.Option(help="Revision of the adapter.")] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Point to the adapter on the Hub instead of copying it.")
    ] = False,
    convert_pickle: Annotated[
        bool, typer.Option("--convert-pickle", help="Convert adapter_model.bin to safetensors; nothing in it is run.")
    ] = False,
    private: Private = None,
    token: Token = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Make a TAIA repository from a base model and any PEFT adapter."""
    from taia_hub.creating import create_repository

    created = create_repository(
        base,
        adapter,
        out=out,
        push=push,
        inference_modules=parse_mode(mode),
        base_revision=base_revision,
        adapter_revision=adapter_revision,
        link=link,
        convert_pickle=convert_pickle,
        private=private,
        token=token,
        trust_remote_code=trust_remote_code,
    )
    where = str(created.folder) if created.commit is None else created.commit.commit_url
    if as_json:
        echo_json({"where": where, "status": dataclasses.asdict(created.status)})
        return
    for role, status in created.status.roles.items():
        typer.echo(f"{role:<12}{status.adapted:>6} modules{status.parameters:>16,} parameters")
    typer.echo(f"{'Published' if created.commit else 'Written to'} {where}")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a TAIA repository.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Hub id to publish it to.")],
    message: Message = None,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    private: Private = None,
    token: Token = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Publish a saved TAIA repository in one commit."""
    from taia_hub.publishing import push_folder

    commit = push_folder(
        folder,
        repo,
        commit_message=message,
        revision=revision,
        create_pr=create_pr,
        private=private,
        token=token,
        trust_remote_code=trust_remote_code,
    )
    url = commit.pr_url or commit.commit_url
    echo_json({"url": url, "commit": commit.oid}) if as_json else typer.echo(f"Published {url}")


@app.command()
def info(
    repo: Repository,
    revision: Revision = None,
    token: Token = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Show what a repository holds, by role, without loading weights."""
    from taia_hub.info import repository_info

    found = repository_info(repo, revision=revision, token=token, trust_remote_code=trust_remote_code)
    if as_json:
        echo_json(dataclasses.asdict(found))
        return
    typer.echo(f"repository  {found.name}{_at(found.revision)}")
    typer.echo(f"base model  {found.base_model}{_at(found.base_revision)}")
    dtypes = ", ".join(found.dtypes)
    typer.echo(f"update      {found.method} in {found.location}, {found.bytes / 2**20:.1f} MiB, {dtypes}")
    typer.echo(f"default     {found.inference_modules}\n")
    typer.echo(_ROW.format("role", "modules", "parameters", "MiB"))
    for role, part in found.roles.items():
        typer.echo(_ROW.format(role, part.modules, f"{part.parameters:,}", f"{part.bytes / 2**20:.1f}"))
    typer.echo("\n" + _ROW.format("mode", "", "acting", "").rstrip())
    for mode, acting in found.modes.items():
        typer.echo(_ROW.format(mode, "", f"{acting:,}", "").rstrip())
    if found.unplaced:
        typer.echo(f"\nCounted as other because their role could not be told: {', '.join(found.unplaced)}")


@app.command()
def generate(
    repo: Repository,
    prompt: Annotated[str, typer.Option(help="The prompt; '-' reads it from standard input.")],
    mode: Annotated[
        list[str] | None, typer.Option(help="A mode, or a JSON mapping; repeat it to see several side by side.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without the chat template.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    dtype: Annotated[str, typer.Option(help="dtype of the base model, as in bfloat16.")] = "auto",
    device_map: Annotated[str | None, typer.Option(help="Where the model goes, as in auto or cuda.")] = None,
    revision: Revision = None,
    token: Token = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Answer a prompt under one mode or several."""
    from transformers import AutoTokenizer, set_seed

    from taia_hub import TAIAForCausalLM
    from taia_hub.answering import answers

    modes = [parse_mode(text) for text in mode] if mode else None
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text:
        raise ConfigError("The prompt is empty.", "Give a text with --prompt, or '-' and text on standard input.")
    loading: dict[str, Any] = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
    model = TAIAForCausalLM.from_pretrained(repo, dtype=dtype, device_map=device_map, **loading)
    tokenizer = load_tokenizer(AutoTokenizer, repo, model, loading)
    set_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    found = answers(
        model,
        tokenizer,
        text,
        modes or [model.inference_modules],
        system=system,
        chat=not raw,
        max_new_tokens=max_new_tokens,
        **sampling,
    )
    if as_json:
        echo_json([dataclasses.asdict(answer) for answer in found])
        return
    for answer in found:
        typer.echo(f"[{answer.mode}]\n{answer.text}\n" if len(found) > 1 else answer.text)


@app.command()
def demo(
    directory: Annotated[Path, typer.Option("--dir", help="Folder for the Hub, the models and the cache.")] = Path(
        "taia-demo"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Training steps of 8 items.")] = DEFAULT_STEPS,
    items: Annotated[int, typer.Option(min=1, help="Held-out items that are measured in each domain.")] = DEFAULT_ITEMS,
    as_json: Json = False,
) -> None:
    """Fine-tune a small language model, publish it to a Hub on this disk, load it again and compare its modes."""
    from taia_hub.demo import run_demo

    report = run_demo(directory, steps=steps, items=items, log=lambda text: typer.echo(text, err=True))
    typer.echo(json.dumps(report.to_json(), indent=2) if as_json else report.to_text())


@hub_app.command()
def serve(
    folder: Annotated[Path, typer.Argument(help="Folder that holds the Hub; made if need be.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 picks a free one.")] = 8299,
    stream: Annotated[
        bool, typer.Option("--stream", help="Take weights as LFS streams: for files above a gigabyte, and datasets.")
    ] = False,
) -> None:
    """Serve a Hub from a folder, on this machine only, until Ctrl-C."""
    from taia_hub.local_hub import LocalHub

    hub = LocalHub(folder, port=port, large_files="lfs" if stream else "regular")
    hub.start()
    typer.echo(f"Serving {folder} at {hub.endpoint}. In another terminal:\n")
    for name, value in hub.environment().items():
        typer.echo(f"export {name}={shlex.quote(value)}")
    typer.echo("\nCtrl-C ends it.")
    hub.serve_forever()


def parse_mode(text: str) -> Any:
    """Reads a mode from the command line: a name, or a JSON mapping of selectors to weights."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"--mode {text!r} is no JSON: {error}.",
            """Quote it for the shell: --mode '{"attention": 1, "ffn": 0.5}'.""",
        ) from error


def load_tokenizer(auto: Any, repo: str, model: Any, keywords: dict[str, Any]) -> Any:
    """Loads the repository's tokenizer, or the base model's where it has none."""
    config = model.taia_config
    base = {**keywords, "revision": config.base_model_revision}
    for name, options_ in ((repo, keywords), (config.base_model_name_or_path, base)):
        with contextlib.suppress(OSError, ValueError):
            return auto.from_pretrained(name, **options_)
    raise RepositoryError(
        f"Neither '{repo}' nor its base model '{config.base_model_name_or_path}' has a tokenizer.",
        "Push one to the repository: tokenizer.push_to_hub(...).",
    )


def echo_json(value: Any) -> None:
    """Prints a value as indented JSON."""
    typer.echo(json.dumps(value, indent=2, default=str))


def _at(revision: str | None) -> str:
    return f" @ {revision[:8]}" if revision else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        arguments: The words after `taia`; those of the process by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # PEFT calls what transformers deprecates: nothing that whoever types a command can act on
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        app(words)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if "--debug" in words:
            raise
        message, hint = _said(error)
        typer.echo(f"Error: {message}", err=True)
        typer.echo(f"Hint: {hint}", err=True)
        sys.exit(1)


def _said(error: Exception) -> tuple[str, str]:
    if isinstance(error, TAIAError):
        return error.message, error.hint or "Run `taia --help`, or `taia --debug ...` for the traceback."
    return f"{type(error).__name__}: {error}", "`taia --debug ...` shows the traceback."


if __name__ == "__main__":
    main()
