"""Runs the demo in a process of its own, beside the Hub that it talks to.

huggingface_hub reads the address of the Hub, the token and the cache folder from the environment when it is imported.
A child process gets its own, so that the user's Hub, token and cache are neither used nor touched.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taia_hub.common.progress import Progress, ProgressBars
from taia_hub.demo.report import DemoReport
from taia_hub.errors import ConfigError, TAIAError
from taia_hub.local_hub import LocalHub

DEFAULT_STEPS = 40
DEFAULT_ITEMS = 64

_CLIENT_SETTINGS = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_")


def run_demo(
    folder: str | os.PathLike[str],
    *,
    steps: int = DEFAULT_STEPS,
    items: int = DEFAULT_ITEMS,
    seed: int = 0,
    log: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> DemoReport:
    """Fine-tunes a small model, publishes it to a Hub in a folder, loads it from there and compares its modes.

    Running it again uses the finished base and adapter again. About six minutes and 1 GB of disk on two CPU cores.

    Args:
        folder: Holds the Hub, the models and the cache; made if need be.
        steps: Training steps of 8 items, at least 1.
        items: Held-out items that are measured in each domain, at least 1; the samples hold 24, 64 and 48.
        seed: Of training and bootstrap.
        log: Called with a line before each stage.
        progress: Called as the long stages go on; bars on standard error when None.

    Returns:
        What was made and measured; also written to `report.json` in the folder.

    Raises:
        ConfigError: `steps` or `items` is below 1.
        MissingDependencyError: The extra `demo` is not installed.
        TAIAError: A stage failed; the message is that of the failure.

    Example:
        >>> report = run_demo("taia-demo", steps=4)  # doctest: +SKIP
        >>> print(report.to_text())  # doctest: +SKIP
    """
    for name, value in (("training steps", steps), ("held-out items", items)):
        if value < 1:
            raise ConfigError(f"The number of {name} must be at least 1, not {value}.", "Leave it out for the default.")
    folder = Path(folder)
    # Weights go in a stream: within the commit they would fill the memory of both sides.
    with LocalHub(folder / "hub", large_files="lfs") as hub:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_CLIENT_SETTINGS)}
        environment |= hub.environment() | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        # So that the child imports this very package, even where it is not installed.
        paths = [str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        bars = ProgressBars()
        try:
            values = _run_child([folder, steps, items, seed], environment, log or _ignore, progress or bars)
        finally:
            bars.close()
    (folder / "report.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return DemoReport.from_json(values)


def _run_child(
    arguments: list[Any],
    environment: dict[str, str],
    log: Callable[[str], None],
    progress: Progress,
) -> dict[str, Any]:
    """Runs `python -m taia_hub.demo` and returns its report; its events are lines of JSON on its standard output."""
    log_file = Path(arguments[0]) / "demo.log"
    last: dict[str, Any] = {}
    command = [sys.executable, "-m", "taia_hub.demo", *map(str, arguments)]
    with (
        log_file.open("w", encoding="utf-8") as errors,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as child,
    ):
        try:
            for line in child.stdout or ():
                match json.loads(line):
                    case {"log": said}:
                        log(said)
                    case {"progress": [stage, done, total]}:
                        progress(stage, done, total)
                    case outcome:
                        last = outcome
        except BaseException:
            child.terminate()
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
