"""Processor seconds that the command line takes to start, beside those of what it stands on.

    python tests/benchmarks/bench_start.py [--runs 5]

Each start is a process of its own; its seconds are the user's and the system's, so that other work on the machine
counts little. `hub serve` is measured until it listens. The aim: at most 2.4 times `import typer, rich`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile

_LISTENS = "from taia_hub.local_hub import LocalHub; LocalHub.serve_forever = lambda hub: None; "
_TAIA = "import sys; sys.argv = ['taia', *{words}]; from taia_hub.cli import main; main()"
STARTS = {
    "import typer, rich": "import typer, rich",
    "import torch": "import torch",
    "import taia_hub": "import taia_hub",
    "from taia_hub import TAIAForCausalLM": "from taia_hub import TAIAForCausalLM",
    "taia --version": _TAIA.format(words=["--version"]),
    "taia --help": _TAIA.format(words=["--help"]),
    "taia train --help": _TAIA.format(words=["train", "--help"]),
    "taia hub serve": _LISTENS + _TAIA.format(words=["hub", "serve", "{folder}", "--port", "0"]),
}


def measure_start(code: str, runs: int = 5) -> float:
    """Returns the median of the processor seconds of so many processes that run the code."""
    return statistics.median(_seconds(code) for _ in range(runs))


def _seconds(code: str) -> float:
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        words = [sys.executable, "-c", code.replace("{folder}", folder)]
        quiet = [(os.POSIX_SPAWN_DUP2, nowhere.fileno(), 1), (os.POSIX_SPAWN_DUP2, nowhere.fileno(), 2)]
        process = os.posix_spawn(sys.executable, words, os.environ, file_actions=quiet)
        _, status, used = os.wait4(process, 0)
    if status:
        raise RuntimeError(f"{code} ended with {os.waitstatus_to_exitcode(status)}")
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measures every start and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    least = None
    for name, code in STARTS.items():
        seconds = measure_start(code, runs)
        least = least or seconds
        sys.stdout.write(f"{name:<38}{seconds:>8.2f} s{seconds / least:>8.1f} x\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
