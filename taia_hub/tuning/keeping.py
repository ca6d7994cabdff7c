"""What a tuning leaves in its folder: how far it is, then what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taia_hub.common.resuming import Mark, changed_inputs
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.results.tuning import TUNING_FILE, Tuned

STATE_FILE = ".taia_tuning_state.json"
"""Beside the tuning file: what it was made from, and what an interrupted search goes on from."""


@dataclass(frozen=True)
class Keeper:
    """Keeps the state of a search in a folder, or nowhere; `finished` is what lies there and is not to be done again.

    A search that its budget ended goes on where a later one has more minutes; `state` then holds those of the earlier
    one as `budget`.
    """

    folder: Path | None
    mark: Mark | None = None
    finished: Tuned | None = None
    state: Mapping[str, Any] | None = None
    is_first: bool = True

    @classmethod
    def of(
        cls,
        out: str | Path | None,
        inputs: Mapping[str, Any],
        *,
        budget: float | None = None,
        overwrite: bool = False,
        is_first: bool = True,
    ) -> Keeper:
        """Looks into the folder `out`; of several processes the first one alone writes.

        `budget` are the minutes that there are now, None for as many as it takes.

        Raises:
            ConfigError: If it holds a tuning of other inputs, or one that nothing is known of.
            RepositoryError: If it cannot be written.
        """
        if out is None:
            return cls(None)
        folder = Path(out)
        if folder.exists() and not folder.is_dir():
            raise RepositoryError(f"'{folder}' is a file.", "Give a folder for the tuning.")
        mark, done = Mark(folder / STATE_FILE, dict(inputs)), folder / TUNING_FILE
        if overwrite or not (mark.path.exists() or done.exists()):
            return cls(folder, mark, is_first=is_first)
        if not mark.fits():
            raise _other(folder, mark, inputs)
        known = mark.read()
        state = known.get("state")
        if known.get("done") and done.is_file():
            found = Tuned.load(done)
            if found.complete or (budget is not None and budget <= (state or {}).get("budget", 0.0)):
                return cls(folder, mark, found, None, is_first)
        return cls(folder, mark, None, state, is_first)

    def keep(self, state: Mapping[str, Any]) -> None:
        """Writes down how far the search is.

        Raises:
            RepositoryError: If it cannot be written.
        """
        self._write(state=state, done=False)

    def finish(self, tuned: Tuned, *, budget: float | None = None) -> None:
        """Writes the tuning file, then that all is done within a budget; of a search that it ended, the state stays.

        Raises:
            RepositoryError: If they cannot be written.
        """
        if self.folder is not None and self.is_first:
            tuned.save(self.folder / TUNING_FILE)
            state = None
            if self.mark is not None and not tuned.complete:
                known = self.mark.read() if self.mark.fits() else {}
                state = {**(known.get("state") or {}), "budget": budget, "seconds": tuned.seconds}
            self._write(state=state, done=True)

    def _write(self, **facts: Any) -> None:
        if self.mark is None or not self.is_first:
            return
        try:
            self.mark.write(**facts)
        except OSError as error:
            raise RepositoryError(
                f"The folder '{self.folder}' cannot be written: {error}.", "Name another one with --out."
            ) from error


def _other(folder: Path, mark: Mark, inputs: Mapping[str, Any]) -> ConfigError:
    elsewhere = "move the folder elsewhere, or throw it away with --overwrite."
    try:
        changed = changed_inputs(mark.read(), dict(inputs))
    except ConfigError as error:
        return ConfigError(error.message, f"{elsewhere[0].upper()}{elsewhere[1:]}")
    return ConfigError(
        f"'{folder}' holds another tuning: {changed or 'what it was made from is not known'}.",
        f"Give the same inputs as before, {elsewhere}",
    )
