"""Runs the demo in a process of its own, beside the Hub that it talks to.

huggingface_hub reads the address of the Hub, the token and the cache folder from the environment when it is imported.
A child process gets its own, so that the user's Hub, token and cache are neither used nor touched.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from taia_hub._version import __version__
from taia_hub.common.atomic import write_atomically
from taia_hub.common.imports import check_importable
from taia_hub.common.progress import Progress, ProgressBars
from taia_hub.common.resuming import Mark, digest
from taia_hub.demo.base import gguf_path
from taia_hub.demo.inputs import FOLDER_MARK, find_inputs
from taia_hub.demo.report import DemoReport
from taia_hub.errors import ConfigError, TAIAError
from taia_hub.local_hub import LocalHub

DEFAULT_STEPS = 24
DEFAULT_ITEMS = 20

_CLIENT_SETTINGS = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_")
_NEEDED = ("starlette", "uvicorn", "trl", "datasets", "matplotlib")


def run_demo(
    folder: str | os.PathLike[str],
    *,
    model: str | None = None,
    data: Sequence[str] = (),
    steps: int = DEFAULT_STEPS,
    items: int = DEFAULT_ITEMS,
    seed: int = 0,
    log: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> DemoReport:
    """Fine-tunes a small model, publishes it to a Hub in a folder, loads it from there and compares its modes.

    Running it again uses what is finished. About three minutes and 1 GB of disk on two CPU cores.

    Args:
        folder: Holds the Hub, the models, the cache and the report; made if need be.
        model: Hub id or folder of the user's own base model instead of SmolLM2-135M.
        data: The user's own items instead of medical ones, as `taia train` takes them; some are held out.
        steps: Training steps of 4 items, at least 1.
        items: Held-out items that are measured in each domain, at least 1; the samples hold 24, 64 and 48.
        seed: Of training and bootstrap.
        log: Called with what a person wants to read on the way.
        progress: Called as the long stages go on; bars, or lines, on standard error when None.

    Returns:
        What was made and measured; also in the folder as `report.json`, and as `report.html`, `report.md`, `report.png`
        and `report.svg` for people.

    Raises:
        ConfigError: `steps` or `items` is below 1, items are wrong or too few, or the folder holds another demo.
        MissingDependencyError: The extra `demo` is not installed.
        RepositoryError: The folder cannot be written or has too little space, or the model cannot be found.
        TAIAError: A stage failed; the message is that of the failure.

    Example:
        >>> report = run_demo("taia-demo", steps=4)  # doctest: +SKIP
        >>> print(report.to_text())  # doctest: +SKIP
    """
    for name, value in (("training steps", steps), ("held-out items", items)):
        if value < 1:
            raise ConfigError(f"The number of {name} must be at least 1, not {value}.", "Leave it out for the default.")
    log = log or _ignore
    folder = Path(folder)
    check_importable(*_NEEDED, extra="demo", feature="The demo")
    if model is None:
        gguf_path()
    inputs = find_inputs(folder, model=model, data=data, steps=steps, items=items, seed=seed)
    for note in inputs.notes:
        log(f"Note: {note}")
    task = {"folder": str(folder), "inputs": inputs.to_json(), "steps": steps, "seed": seed}
    # A digest: the report is there to be shown, and the items may be private.
    finished = Mark(folder / "report.json", {"made_from": digest({**task, "version": __version__})})
    if finished.fits() and (folder / "model").is_dir() and (folder / "report.html").is_file():
        log("This very demo is finished already; name another folder with --dir to do it again.")
        return DemoReport.from_json(finished.read())
    log(f"Tuning {inputs.model} in {folder}. Ctrl-C stops it; the same command goes on from what is finished.")
    Mark(folder / FOLDER_MARK, inputs.identity()).write()
    # Weights go in a stream: within the commit they would fill the memory of both sides.
    with LocalHub(folder / "hub", large_files="lfs") as hub:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_CLIENT_SETTINGS)}
        environment |= hub.environment() | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        # So that the child imports this very package, even where it is not installed.
        paths = [str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        bars = ProgressBars()
        try:
            values = _run_child(task, folder / "demo.log", environment, log, progress or bars)
        finally:
            bars.close()
    write_atomically(finished.path, json.dumps({**values, **finished.asked}, indent=2) + "\n")
    return DemoReport.from_json(values)


def _run_child(
    task: Mapping[str, Any],
    log_file: Path,
    environment: dict[str, str],
    log: Callable[[str], None],
    progress: Progress,
) -> dict[str, Any]:
    """Runs `python -m taia_hub.demo` and returns its report; its events are lines of JSON on its standard output.

    It ends with its standard input, which the system closes when this process ends, however it does.
    """
    last: dict[str, Any] = {}
    command, pipe = [sys.executable, "-m", "taia_hub.demo"], subprocess.PIPE
    with (
        log_file.open("w", encoding="utf-8") as errors,
        subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=errors, text=True) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(task) + "\n")
            child.stdin.flush()
            for line in child.stdout:
                match json.loads(line):
                    case {"log": said}:
                        log(said)
                    case {"progress": [stage, done, total]}:
                        progress(stage, done, total)
                    case outcome:
                        last = outcome
        except BrokenPipeError:  # it ended at once: its status says more
            pass
        except BaseException:
            child.kill()
            raise
    if "report" in last:
        return last["report"]
    hint = f"The whole log is in {log_file}."
    if "error" in last:
        raise TAIAError(f"The demo failed. {last['error']}", last["hint"] or hint)
    raise TAIAError(
        f"The demo's process ended without a report, with exit status {child.returncode}.",
        f"{hint} A status of -9 usually means that the memory did not suffice.",
    )


def _ignore(said: str) -> None:
    pass
