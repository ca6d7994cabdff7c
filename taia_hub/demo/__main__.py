"""The demo's own process, started by `taia_hub.demo.run_demo`: `python -m taia_hub.demo FOLDER STEPS ITEMS SEED`.

Events are lines of JSON on standard output; whatever else is written there goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from transformers.utils import logging

from taia_hub.demo.stages import run_stages
from taia_hub.errors import TAIAError


def main() -> None:
    """Runs the stages and writes their events."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(**event: object) -> None:
        events.write(json.dumps(event) + "\n")

    folder, steps, items, seed = sys.argv[1:]
    logging.disable_progress_bar()
    try:
        report = run_stages(
            Path(folder),
            steps=int(steps),
            items=int(items),
            seed=int(seed),
            log=lambda said: send(log=said),
            progress=lambda *counts: send(progress=counts),
        )
    except Exception as error:
        hint = error.hint if isinstance(error, TAIAError) else None
        send(error=error.message if isinstance(error, TAIAError) else f"{type(error).__name__}: {error}", hint=hint)
        raise
    send(report=report.to_json())


if __name__ == "__main__":
    main()
