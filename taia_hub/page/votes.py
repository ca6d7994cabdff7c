"""Votes for the better answer: a JSON object a line, and with a token in a data set on the Hub."""

from __future__ import annotations

import datetime
import json
import logging
import threading
import uuid
from pathlib import Path
from typing import Any

from taia_hub.errors import RepositoryError
from taia_hub.page.conversation import Turns, histories_of

logger = logging.getLogger(__name__)


class Votes:
    """Keeps votes in a file, made with its folder at the first vote.

    It is uploaded every few minutes to the data set on the Hub `dataset`, if any, which needs a token.
    """

    def __init__(self, path: Path, dataset: str | None = None, token: str | None = None) -> None:
        self._lock: Any = threading.Lock()
        self.path = path
        if dataset:
            from huggingface_hub import CommitScheduler

            # Several copies of a Space write to one data set: each has a file of its own.
            self.path = path.with_name(f"{path.stem}-{uuid.uuid4().hex[:12]}{path.suffix}")
            folder = path.parent / f"{path.stem}.upload"
            self.path = folder / self.path.name
            folder.mkdir(parents=True, exist_ok=True)
            try:
                scheduler = CommitScheduler(
                    repo_id=dataset,
                    repo_type="dataset",
                    folder_path=folder,
                    path_in_repo="votes",
                    token=token,
                    private=True,
                    every=5,
                )
            except OSError as error:
                raise RepositoryError(
                    f"Votes cannot go to the data set '{dataset}': {error}.", "Check TAIA_VOTES_DATASET and the token."
                ) from error
            self._lock = scheduler.lock

    def add(self, turns: Turns) -> None:
        """Appends the vote of the latest turn, with the conversation that each mode had before."""
        turn = turns[-1]
        choice, comparison = -1 if turn.vote is None else turn.vote, turn.comparison
        histories = histories_of(turns[:-1], comparison.modes)
        record = {
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "model": comparison.model,
            "revision": comparison.revision,
            "messages": [dict(message) for message in comparison.messages],
            "answers": [
                {
                    "mode": answer.mode,
                    "setting": answer.setting,
                    "history": histories[answer.mode],
                    "text": answer.text,
                }
                for answer in turn.columns
            ],
            "choice": turn.columns[choice].mode if choice >= 0 else None,
            "blind": turn.blind,
            "generation": dict(comparison.generation),
        }
        try:
            with self._lock:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as error:
            logger.error("A vote could not be written to %s: %s", self.path, error)
            raise RepositoryError("The vote could not be written.", "Tell who runs this page.") from error
