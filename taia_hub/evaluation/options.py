"""What is evaluated and how: the options of `evaluate` and of `taia eval`, checked before anything is loaded."""
# ruff: noqa: RUF009 - `asked` makes a field

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taia_hub.common.fields import asked, documented
from taia_hub.errors import ConfigError
from taia_hub.switch.modes import MODES
from taia_hub.switch.settings import Setting, parse_setting

DEFAULT_MODES = ("none", "attention", "ffn", "all")


@documented
@dataclass(frozen=True)
class EvaluationOptions:
    """The keywords of `evaluate` that say what is measured; one task, mode, folder or number may stand for a list.

    Example:
        >>> EvaluationOptions("mmlu", "all", num_fewshot=5).shots
        (5,)
    """

    tasks: tuple[str, ...] = asked(
        (), "A task or group of lm-eval, taia_paper, or a YAML or JSONL file; repeat it.", flags="--task"
    )
    modes: tuple[Any, ...] = field(
        default=DEFAULT_MODES, metadata={"doc": "Settings: mode names, or mappings of selectors to weights."}
    )
    num_fewshot: int | Sequence[int] | None = asked(None, "Examples in the prompts, as in 0,1,2,3,4.", metavar="K[,K…]")
    fewshot_path: Path | None = asked(
        None, "JSONL file that the examples of JSONL tasks come from.", flags="--fewshot-file"
    )
    include_path: tuple[Path, ...] = asked((), "Folder with more lm-eval task files.")
    limit: int | None = asked(None, "Most items a task.", least=1)
    batch_size: int | str = asked(8, "Rows a forward pass, auto or auto:N.")
    chat_template: bool | None = asked(
        None, "By default where the tokenizer has one.", flags="--chat-template/--no-chat-template"
    )
    system_instruction: str | None = asked(None, "System message.", flags="--system")
    gen_kwargs: Mapping[str, Any] | None = field(
        default=None, metadata={"doc": "Keywords of generation that override those of the tasks."}
    )
    seed: int = asked(1234, "Seed of the examples.")
    settings: Mapping[str, Setting] = field(init=False, repr=False, metadata={"doc": "Label to setting, of the modes."})
    shots: tuple[int | None, ...] = field(
        init=False, repr=False, metadata={"doc": "Numbers of examples in the prompts; None is each task's own."}
    )

    def __post_init__(self) -> None:
        tasks = [self.tasks] if isinstance(self.tasks, (str, Path)) else self.tasks
        if not isinstance(tasks, Sequence) or not all(isinstance(name, (str, Path)) for name in tasks):
            raise ConfigError(
                f"tasks={tasks!r} are no names or paths of tasks.", 'As in ["commonsense_qa", "own.jsonl"].'
            )
        modes = [self.modes] if isinstance(self.modes, (str, Mapping)) else self.modes
        if not isinstance(modes, Sequence):
            raise ConfigError(f"modes={modes!r} is no list of modes.", f"Choose from {', '.join(MODES)}.")
        if self.limit is not None and (not _is_int(self.limit) or self.limit < 1):
            raise ConfigError(f"limit={self.limit!r} is no number of items from 1 up.", "Leave it out to take all.")
        if not _is_int(self.seed) or not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed={self.seed!r} is no whole number from 0 to 2^32 - 1.", "1234 is lm-eval's own.")
        if self.gen_kwargs is not None and not isinstance(self.gen_kwargs, Mapping):
            raise ConfigError(f"gen_kwargs={self.gen_kwargs!r} is no mapping.", 'As in {"max_gen_toks": 64}.')
        shots: list[Any] = list(self.num_fewshot) if isinstance(self.num_fewshot, (list, tuple)) else [self.num_fewshot]
        wrong = [one for one in shots if one is not None and not (_is_int(one) and one >= 0)]
        if wrong or not shots or len(set(shots)) < len(shots):
            raise ConfigError(
                f"num_fewshot={self.num_fewshot!r} is no list of different numbers from 0 up.", "As in 0,1,2,3,4."
            )
        settings = {setting.label: setting for setting in map(parse_setting, modes)}
        if not settings:
            raise ConfigError("No mode was given.", f"Choose from {', '.join(MODES)}, or leave `modes` out.")
        folders = [self.include_path] if isinstance(self.include_path, (str, Path)) else self.include_path
        read = {
            "tasks": tuple(map(str, tasks)),
            "modes": tuple(modes),
            "settings": settings,
            "shots": tuple(shots),
            "fewshot_path": Path(self.fewshot_path) if self.fewshot_path else None,
            "include_path": tuple(map(Path, folders)),
            "batch_size": check_batch_size(self.batch_size),
            "gen_kwargs": dict(self.gen_kwargs) if self.gen_kwargs else None,
        }
        for name, value in read.items():
            object.__setattr__(self, name, value)


def check_batch_size(batch_size: int | str) -> int | str:
    """Reads a number from 1 up, `"auto"` for the largest that fits, or `"auto:N"`, which looks for it N times.

    Example:
        >>> check_batch_size("8"), check_batch_size("auto:4")
        (8, 'auto:4')
    """
    text = str(batch_size)
    if isinstance(batch_size, (int, str)) and re.fullmatch(r"0*[1-9][0-9]*|auto(:0*[1-9][0-9]*)?", text):
        return int(text) if text.isdecimal() else text
    raise ConfigError(
        f"batch_size={batch_size!r} is no batch size.", "Give a number from 1 up, 'auto', or 'auto:N' as in 'auto:4'."
    )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
