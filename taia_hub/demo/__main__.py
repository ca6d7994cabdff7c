"""The demo's own process, started by `taia_hub.demo.run_demo`: `python -m taia_hub.demo` with a task on its input.

The task is a line of JSON; events are lines of JSON on standard output, and whatever else is written there goes to
standard error. The process ends when its input does: when the one that started it is no more, however it ended.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from taia_hub.errors import TAIAError


def main() -> None:
    """Runs the stages and writes their events."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(**event: object) -> None:
        events.write(json.dumps(event) + "\n")

    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_input, daemon=True).start()
    try:
        from taia_hub.demo.inputs import Inputs

        inputs = Inputs.from_json(task["inputs"])  # before the seconds that the next imports take

        from transformers.utils import logging

        from taia_hub.demo.stages import run_stages

        logging.disable_progress_bar()
        report = run_stages(
            Path(task["folder"]),
            inputs,
            steps=task["steps"],
            seed=task["seed"],
            log=lambda said: send(log=said),
            progress=lambda *counts: send(progress=counts),
        )
    except Exception as error:
        hint = error.hint if isinstance(error, TAIAError) else None
        send(error=error.message if isinstance(error, TAIAError) else f"{type(error).__name__}: {error}", hint=hint)
        raise
    send(report=report.to_json())


def _end_with_the_input() -> None:
    while os.read(sys.stdin.fileno(), 1):  # not by its buffer, whose lock would be held when the interpreter ends
        pass
    os._exit(143)  # as the system's own end of a process; checkpoints stay


if __name__ == "__main__":
    main()
