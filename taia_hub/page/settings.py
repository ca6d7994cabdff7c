"""What the page takes from its environment: the model, and limits that keep it fair for many users."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from taia_hub.errors import ConfigError

MOST_COLUMNS = 4
_READERS: Mapping[str, Callable[[str], Any]] = {"int": int, "float": float, "Path": Path}


@dataclass(frozen=True)
class PageSettings:
    """Settings of the page; each can be given as an environment variable with the prefix `TAIA_`.

    Attributes:
        model_id: Hub id or folder of the TAIA repository; None for a box where the user names one.
        revision: Its revision.
        max_new_tokens: Longest answer that can be asked for, in tokens.
        max_prompt_characters: Longest prompt, in characters.
        max_seconds: Longest time for one comparison, in seconds; what there is by then is shown.
        queue_size: Most requests that wait; more are told to come back.
        votes: File that votes go to, a JSON object a line; by default one in HF_HOME.
        votes_dataset: Data set on the Hub that votes are uploaded to as well; needs a token.
        dtype: dtype of the base model; None for bfloat16 on CUDA and what is faster on a CPU.
    """

    model_id: str | None = None
    revision: str | None = None
    max_new_tokens: int = 512
    max_prompt_characters: int = 20_000
    max_seconds: float = 120.0
    queue_size: int = 32
    votes: Path = field(default_factory=lambda: Path(constants.HF_HOME) / "taia-votes" / "votes.jsonl")
    votes_dataset: str | None = None
    dtype: str | None = None

    @property
    def votes_place(self) -> str:
        """Where votes are kept, in words."""
        if self.votes_dataset:
            return f"the data set {self.votes_dataset} on the Hub"
        path, home = self.votes.absolute(), Path.home()
        return f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else str(path)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> PageSettings:
        """Reads settings from variables such as `TAIA_MODEL_ID`, those of the process by default.

        Raises:
            ConfigError: If a value has the wrong type.

        Example:
            >>> PageSettings.from_environment({"TAIA_MODEL_ID": "org/model-taia", "TAIA_QUEUE_SIZE": "8"}).queue_size
            8
        """
        environment = os.environ if environment is None else environment
        found: dict[str, Any] = {}
        for one in fields(cls):
            name = f"TAIA_{one.name.upper()}"
            text = environment.get(name, "").strip()
            if not text:
                continue
            try:
                found[one.name] = _READERS.get(str(one.type), str)(text)
            except ValueError as error:
                raise ConfigError(f"{name}={text!r} is no {one.type}.", "Correct the variable.") from error
        return cls(**found)
