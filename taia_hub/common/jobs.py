"""A command line of taia-hub as a job on the Hub: a script with its dependencies, and what runs it there.

Written for `hf jobs uv run` of huggingface_hub 2.4 (cli/jobs.py, hf_api.py): words that are files here are sent along
and named by their place there; what follows `--` is the script's, the rest would be read by `hf` itself; and the folder
of the files, at `DATA`, is a bucket that stays.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from taia_hub.common.installing import requirement, wheel_requirement
from taia_hub.common.shell import comment

DATA = "/data"
"""Where a job sees the files that came with it, in the bucket `jobs-artifacts` of whoever starts it."""

FILE_ENDS = (".py", ".sh", ".yaml", ".yml", ".toml")
"""What `hf` takes for the name of a file that must be here, whatever the word is for."""

LONGEST_WORD = 255
"""The longest name of a file, in bytes; `hf` asks the disk for every word, which fails at a longer one."""

FLAVOR = "a10g-large"
SCRIPT = "taia_job.py"
_WHEELS = "taia-wheel"


def job_script(extra: str) -> str:
    """Returns a script with its dependencies as comments (PEP 723), whose words are those of a `taia` command.

    Example:
        >>> print(job_script("train").splitlines()[0])
        # /// script
    """
    needed = requirement(extra) or wheel_requirement(extra, f"/{_WHEELS}")
    return (
        "# /// script\n"
        '# requires-python = ">=3.11"\n'  # as transformers and trl do
        f'# dependencies = ["{needed}"]\n'
        "# ///\n"
        '"""Runs the command line of taia-hub with the words of this script."""\n\n'
        "from taia_hub.cli import main\n\n"
        "main()\n"
    )


def job_commands(words: Sequence[str], extra: str, notes: Sequence[str] = ()) -> str:
    """Returns what a shell runs to start a command as a job: the script is written, and handed to `hf jobs uv run`.

    Args:
        words: The command and its words, such as `["train", "--push", "org/model-taia", …]`.
        extra: The extra of taia-hub that the command needs.
        notes: What to know, a line each.
    """
    run = ["hf", "jobs", "uv", "run", "--flavor", FLAVOR, "--timeout", "12h", "--secrets", "HF_TOKEN"]
    lines = [
        "# Hugging Face Jobs, by `hf` of huggingface_hub 2.4, which reads this command; no job was started.",
        f"# --flavor {FLAVOR} is one GPU with 24 GB: `hf jobs hardware` lists others. --timeout ends the job.",
        *map(comment, notes),
    ]
    if requirement(extra) is None:
        clone = Path(__file__).parents[2]
        here = (clone / "pyproject.toml").is_file()
        lines += [
            "# No package index has taia-hub yet: its wheel goes along."
            + ("" if here else " Put the folder of a clone in place of CLONE."),
            f"pip wheel --no-deps --wheel-dir {_WHEELS} {shlex.quote(str(clone)) if here else 'CLONE'}",
        ]
        run += ["--volume", f"./{_WHEELS}:/{_WHEELS}"]
    return "\n".join(
        [
            *lines,
            f"cat > {SCRIPT} <<'END'\n{job_script(extra)}END",
            f"{shlex.join(run)} -- {SCRIPT} \\\n    {shlex.join(words)}",
        ]
    )
