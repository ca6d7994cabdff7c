"""Starting an engine on this machine: what is checked before, and what is passed on to it."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from taia_hub.common.installing import extra_command
from taia_hub.common.ports import check_port
from taia_hub.engines import ENGINES, Command, Engine
from taia_hub.errors import ConfigError, MissingDependencyError

logger = logging.getLogger(__name__)

_PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP")


def choose_engine(gguf: str | os.PathLike[str] | None) -> Engine:
    """Chooses the engine where none was named: llama.cpp for a GGUF, else the first of `ENGINES` that is installed.

    Raises:
        MissingDependencyError: If none is.
    """
    for engine in ENGINES.values():
        if engine.needs == "gguf" if gguf is not None else not _missing(engine):
            return engine
    raise MissingDependencyError(
        "No engine is installed here, and none was named.",
        f"transformers and llama.cpp come by {extra_command('serve')}   For a GPU install vllm or sglang as their own "
        "pages say; or name one with --engine and add --print.",
    )


def check_startable(engine: Engine, host: str, port: int, nodes: int) -> None:
    """Checks that an engine can be started from here, on one machine and a free port."""
    if nodes > 1:
        raise ConfigError(
            f"--nodes {nodes} cannot be started from here: each machine runs a command of its own.",
            "Add --print, and run what it says on each.",
        )
    check_installed(engine)
    check_port(host, port)


def check_installed(engine: Engine) -> None:
    """Checks that an engine can be started here.

    Raises:
        MissingDependencyError: If it, or a module that its server needs, is not installed.
    """
    if missing := _missing(engine):
        raise MissingDependencyError(
            f"The engine '{engine.name}' is not installed here: there is no module '{missing[0]}'.",
            f"Install it with: {engine.install}   or add --print, and run the command where it is installed.",
        )


def _missing(engine: Engine) -> list[str]:
    return [name for name in engine.modules if not _is_importable(name)]


def start(command: Command) -> subprocess.Popen[bytes]:
    """Starts a command, in a session of its own: Ctrl-C in this terminal does not reach it.

    Raises:
        MissingDependencyError: If the program is not there.
        RepositoryError: If a file that it reads cannot be written.
    """
    command.write_files()
    environment = {name: value for name, value in os.environ.items() if name not in command.without}
    environment.update(command.environment)
    words = [_program(command.words[0]), *command.words[1:]]
    return subprocess.Popen(words, cwd=command.folder, env=environment, start_new_session=True)


Check = Callable[[Callable[[], bool]], ConfigError | None]
"""Looks at a server that starts, as long as the function that it gets says that it runs; returns what is wrong."""


def run(command: Command, check: Check | None = None) -> int:
    """Runs a command until it ends, with its output; at Ctrl-C or SIGTERM it is asked to end, by SIGTERM.

    At SIGINT some servers would say that they were aborted. A second signal is passed on as it is: most end at once
    then. Returns the command's exit code; 0 where it ended by the signal that asked it to, 128 and the signal's number
    where another one ended it. A `check` runs beside it, and ends it where something is wrong.

    Raises:
        ConfigError: If the check found something wrong.
        MissingDependencyError: If the program is not there.
        RepositoryError: If a file that it reads cannot be written.

    Example:
        >>> run(Command((("python", "-c", "raise SystemExit(3)"),)))
        3
    """
    received: list[int] = []
    wrong: list[ConfigError] = []
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if child is not None:
            child.send_signal(number if received[1:] else signal.SIGTERM)

    with _handled(pass_on):
        child = start(command)
        if check is not None:
            threading.Thread(target=_look, args=(check, child, wrong), daemon=True).start()
        try:
            if received:  # before there was a process to ask
                child.terminate()
            code = child.wait()
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
    if wrong:
        raise wrong[0]
    if received and -code in (signal.SIGTERM, *received):
        return 0
    return 128 - code if code < 0 else code


def _look(check: Check, child: subprocess.Popen[bytes], wrong: list[ConfigError]) -> None:
    try:
        found = check(lambda: child.poll() is None)
    except OSError as error:
        if child.poll() is None:
            logger.warning("Whether the base is answered as the base was not checked: %s", error)
        return
    if found:
        wrong.append(found)
        child.terminate()


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    numbers = [getattr(signal, name) for name in _PASSED_ON if hasattr(signal, name)]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _program(word: str) -> str:
    """Finds the program of this Python's environment, or on the path."""
    if word == "python":
        return sys.executable
    beside = Path(sys.executable).with_name(word)
    found = str(beside) if beside.is_file() else shutil.which(word)
    if found is None:
        raise MissingDependencyError(f"There is no program '{word}' here.", "Install the engine, or add --print.")
    return found


def _is_importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a parent that fails, or a module without a spec
        return False
