"""What an engine is asked to serve, and the command that does it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from taia_hub.common.atomic import write_atomically
from taia_hub.common.fields import asked
from taia_hub.engines.parts import Part
from taia_hub.errors import ConfigError
from taia_hub.hub import disk_errors
from taia_hub.switch.settings import Setting

_NUMBER = re.compile(r"-[\d.]+")
HEAD_PORT = 6379
"""Where Ray's head listens."""


@dataclass(frozen=True)
class ServedMode:
    """A mode that is ready to be served.

    Attributes:
        label: What follows the colon of the model's name, such as `"attention"`; `"none"` is the base model, and no
            label stands for the name alone.
        path: The prepared file or folder; None where the engine serves the base itself.
        rank: Rank of the LoRA; 0 where there is none.
        setting: What it means, for an engine that weighs parts of the update.
    """

    label: str
    path: Path | None = None
    rank: int = 0
    setting: Setting | None = None


@dataclass(frozen=True)
class Order:
    """What is to be served, on which machines.

    Attributes:
        name: Name of the model, without a mode.
        base: Hub id or folder of the base model.
        revision: Commit of the base model; None for a folder.
        dtype: What the base model's numbers are saved in, by its `config.json`.
        modes: The modes, each prepared as the engine needs it; the base is among them only where it was asked for.
        parts: What the update was cut into, for an engine that weighs its parts in each request.
        gguf: The base model as GGUF, for llama.cpp.
        tokenizer: Folder of the tokenizer and the `generation_config.json`, where they are not the base model's.
        folder: Where files of the command itself may be written.
        extra: Flags for the engine, as the user wrote them.
    """

    name: str
    base: str
    revision: str | None = None
    dtype: str | None = None
    modes: tuple[ServedMode, ...] = ()
    parts: tuple[Part, ...] = ()
    host: str = asked("127.0.0.1", "Address to listen on; 0.0.0.0 is open to the network.")
    port: int = asked(8000, "Port to listen on.", least=1, most=65535)
    tensor_parallel: int = asked(1, "GPUs that each layer is cut over.", least=1)
    data_parallel: int = asked(1, "Copies of the model.", least=1)
    nodes: int = asked(1, "Machines; above 1 with --print and --head.", least=1)
    head: str | None = asked(None, "With --nodes: the first machine.", metavar="ADDRESS")
    gguf: Path | None = None
    tokenizer: Path | None = None
    folder: Path = Path()
    extra: tuple[str, ...] = ()
    trust_remote_code: bool = False

    @property
    def updates(self) -> tuple[ServedMode, ...]:
        """The modes other than the base model."""
        return tuple(mode for mode in self.modes if mode.label != "none")

    @property
    def computed_in(self) -> str | None:
        """What vLLM and SGLang compute in: as they are told, else 16 bits where the base is saved in 32."""
        given = given_word(self, "--dtype")
        if given in (None, "auto"):
            return "16 bits" if self.dtype == "float32" else self.dtype
        return "float32" if given == "float" else given

    @property
    def rank(self) -> int:
        """The largest rank of a LoRA; 0 where there is none."""
        return max((mode.rank for mode in self.updates), default=0)


@dataclass(frozen=True)
class Command:
    """One command of a terminal.

    Attributes:
        lines: The words, grouped as they are printed: the program, then a flag with its values a line.
        where: On which machine it runs; empty for this one.
        folder: The folder that it runs in; None for any.
        environment: Variables that it needs.
        without: Variables that would change what it does, and are taken away when it is started here.
        files: Files that it reads, which are written before it: path and content.
    """

    lines: tuple[tuple[str, ...], ...]
    where: str = ""
    folder: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    files: Mapping[Path, str] = field(default_factory=dict)

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the command."""
        return tuple(word for line in self.lines for word in line)

    def write_files(self) -> None:
        """Writes the files that it reads."""
        for path, content in self.files.items():
            with disk_errors(path.parent):
                write_atomically(path, content)

    def shell(self) -> str:
        """Returns the command as a shell takes it, a flag a line, quoted."""
        first, *rest = (shlex.join(line) for line in self.lines)
        variables = "".join(f"{name}={shlex.quote(value)} " for name, value in self.environment.items())
        text = " \\\n    ".join([variables + first, *rest])
        if self.folder is not None:
            text = f"cd {shlex.quote(str(self.folder))} && {text}"
        return text


@dataclass(frozen=True)
class Engine:
    """An engine that serves models, and how it is asked to.

    Attributes:
        name: What `--engine` takes.
        version: The version whose sources the commands were written for.
        docs: Where it is documented.
        run_here: Whether the commands were run when they were written; otherwise they were checked against sources.
        install: How it is installed.
        needs: What it serves a mode from: a LoRA folder, a GGUF LoRA, or a merged model.
        serves_base: Whether it serves mode `none` at no cost beside the others.
        modules: Modules that must be importable here for it to start.
        managed: Flags that `taia serve` sets itself, written with dashes, and their aliases.
        spreading: Those that it sets besides for several machines.
        build: Makes the commands.
        models: Makes the name of a model in requests from the model's and the mode's.
        notes: Says what to know of an order.
        mixes_base: Whether some version answers for the base with a mode's LoRA, so that a started server is checked.
        largest_rank: The largest rank that it takes, and the flag that sets the limit; None where there is none.
    """

    name: str
    version: str
    docs: str
    run_here: bool
    install: str
    needs: Literal["adapter", "gguf", "merged"]
    serves_base: bool
    modules: tuple[str, ...]
    managed: tuple[str, ...]
    build: Callable[[Order], tuple[Command, ...]]
    models: Callable[[str, str], str]
    notes: Callable[[Order], tuple[str, ...]] = lambda order: ()
    mixes_base: bool = False
    largest_rank: tuple[int, str] | None = None
    spreading: tuple[str, ...] = ()

    def check(self, order: Order) -> None:
        """Refuses what cannot be served in this way; the files of the modes need not be there yet."""
        if order.extra and not order.extra[0].startswith("-"):
            raise ConfigError(
                f"'{order.extra[0]}' came first among {self.name}'s own flags, and is none.",
                "Flags begin with dashes, and their values follow, as in -- --seed 1.",
            )
        managed = (*self.managed, *(self.spreading if order.nodes > 1 else ()))
        for word in order.extra:
            flag = flag_of(word)
            if flag in managed or (len(flag) > 2 and any(one.startswith(flag) for one in managed)):  # abbreviated
                raise ConfigError(
                    f"{word.partition('=')[0]} is set by `taia serve`, and came among the engine's own flags.",
                    "Leave it out: --name, --mode, --host, --port, --tensor-parallel, --data-parallel and --nodes set "
                    "it.",
                )
        if order.nodes > 1 and not order.head:
            raise ConfigError(
                f"--nodes {order.nodes} needs the address of the first machine.", "Add it, as in --head 10.0.0.1."
            )
        self.build(order)

    def commands(self, order: Order) -> tuple[Command, ...]:
        """Checks an order, and makes the commands that serve it as they are run; the last one is the server here."""
        self.check(order)
        for mode in order.updates:
            if self.largest_rank and mode.rank > self.largest_rank[0]:
                limit, flag = self.largest_rank
                raise ConfigError(
                    f"The LoRA of mode '{mode.label}' has rank {mode.rank}; {self.name} takes at most {limit} "
                    f"({flag}).",
                    "Export it at a lower rank (`taia export --rank`), or serve the merged model with "
                    "--engine transformers.",
                )
        return self.build(order)

    def model_names(self, order: Order) -> tuple[str, ...]:
        """Returns the names that requests use for the modes of an order."""
        return tuple(self.models(order.name, mode.label) for mode in order.modes)


def taia_command(
    verb: str,
    repo: str,
    mode: str | Mapping[str, Any],
    out: str | Path,
    *words: str,
    revision: str | None = None,
) -> str:
    """Returns the command of a shell that makes the files of a mode.

    Example:
        >>> print(taia_command("export", "org/model", {"ffn": 0.5}, "./lora", "--engine", "vllm"))
        taia export org/model --mode '{"ffn": 0.5}' --out ./lora --engine vllm
    """
    text = mode if isinstance(mode, str) else json.dumps(mode)
    at = ["--revision", revision] if revision else []
    return shlex.join(["taia", verb, repo, "--mode", text, "--out", str(out), *at, *words])


def colon_name(name: str, label: str) -> str:
    """Returns `name:mode`, or the name alone where there is no label."""
    return f"{name}:{label}" if label else name


def one_machine(order: Order, engine: str) -> None:
    """Refuses several GPUs, copies or machines, which an engine cannot be spread over."""
    if order.tensor_parallel > 1 or order.data_parallel > 1 or order.nodes > 1:
        raise ConfigError(
            f"{engine} serves one copy on one machine; --tensor-parallel, --data-parallel and --nodes do not apply.",
            "Use --engine vllm or sglang, or start one server a machine behind a load balancer.",
        )


def server(order: Order, start: Sequence[str], *pairs: tuple[str, object], **values: Any) -> Command:
    """Makes the command of a server: how it starts, its flags, those of every server, and the user's."""
    common = ("--trust-remote-code", order.trust_remote_code), ("--host", order.host), ("--port", order.port)
    return Command((tuple(start), *flags(*pairs, *common), *extra_lines(order.extra)), **values)


def several(count: int) -> int | None:
    """Returns a number where it is above one: the value of a flag that is left out for one."""
    return count if count > 1 else None


def flag_of(word: str) -> str:
    """Returns the flag of a word as the managed ones are written, without its value, with dashes; else the word.

    Example:
        >>> flag_of("--max_lora_rank=8"), flag_of("-tp"), flag_of("a_value")
        ('--max-lora-rank', '-tp', 'a_value')
    """
    name = word.partition("=")[0]
    return name.replace("_", "-") if name.startswith("--") else name


def unless_given(order: Order, flag: str, value: object) -> tuple[str, object]:
    """Returns a flag with a value, or without one where the user gives the flag."""
    return flag, None if any(flag_of(word) == flag for word in order.extra) else value


def given_number(order: Order, flag: str, *, hint: str) -> int | None:
    """Reads the number that the user gave a flag, written with dashes; None where the flag was not given."""
    if (value := given_word(order, flag)) is None:
        return None
    if not value.isdecimal():
        raise ConfigError(f"{flag} {value!r} is no number.", hint)
    return int(value)


def given_word(order: Order, flag: str) -> str | None:
    """Returns the first word that the user gave a flag, written with dashes; None where the flag was not given."""
    for index, word in enumerate(order.extra):
        if flag_of(word) == flag:
            _, equals, value = word.partition("=")
            return value if equals else "".join(order.extra[index + 1 : index + 2])
    return None


def check_rank(order: Order, flag: str, given: int | None, enough: int) -> None:
    """Refuses a limit of the user's that a LoRA is above, and names one that is enough."""
    if given is not None and given < order.rank:
        raise ConfigError(
            f"{flag} {given} is below rank {order.rank} of the LoRA.", f"Give {flag} {enough}, or leave it out."
        )


def flags(*pairs: tuple[str, object]) -> tuple[tuple[str, ...], ...]:
    """Makes a line a flag: None and False leave it out, True gives it alone, a sequence gives it several values.

    Example:
        >>> flags(("--port", 8000), ("--revision", None), ("--enable-lora", True), ("--lora-modules", ["a=b", "c=d"]))
        (('--port', '8000'), ('--enable-lora',), ('--lora-modules', 'a=b', 'c=d'))
    """
    lines: list[tuple[str, ...]] = []
    for flag, value in pairs:
        if value is None or value is False:
            continue
        if value is True:
            lines.append((flag,))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            lines.append((flag, *map(str, value)))
        else:
            lines.append((flag, str(value)))
    return tuple(lines)


def extra_lines(words: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Groups a user's words into a flag and its values a line.

    Example:
        >>> extra_lines(["--seed", "-1", "--enforce-eager"])
        (('--seed', '-1'), ('--enforce-eager',))
    """
    lines: list[list[str]] = []
    for word in words:
        if (word.startswith("-") and not _NUMBER.fullmatch(word)) or not lines:
            lines.append([word])
        else:
            lines[-1].append(word)
    return tuple(map(tuple, lines))
