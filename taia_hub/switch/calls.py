"""The calls of a model that run now, so that its weights change between calls alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from taia_hub.errors import SettingError

CHANGING = threading.RLock()  # one for all, because locks are neither copied nor pickled


class Calls:
    """Counts the running calls of one model, and holds back those that come while its weights change."""

    def __init__(self) -> None:
        self._running: set[object] = set()
        self._changed_by: int | None = None

    def begin(self) -> object:
        """Notes a call, once no other thread changes the weights; what it returns is for `end`."""
        call = object()
        self._running.add(call)  # before the question, so that either the change sees the call or the call the change
        while self._changed_by not in (None, threading.get_ident()):
            self._running.discard(call)
            with CHANGING:
                self._running.add(call)
        return call

    def end(self, call: object) -> None:
        """Notes that a call is over."""
        self._running.discard(call)

    @contextlib.contextmanager
    def between(self, what: str) -> Iterator[None]:
        """Changes weights in a block between calls; `CHANGING` is held.

        Raises:
            SettingError: If calls are running, which would go on with other weights; `what` says what came.
        """
        before, self._changed_by = self._changed_by, threading.get_ident()
        try:
            if number := len(self._running):
                raise SettingError(
                    f"The model was to be {what}, but {number} of its calls {'is' if number == 1 else 'are'} running: "
                    "they would go on with other weights.",
                    "Wait until generation has ended in every thread; settings need not: "
                    "`model.generate(..., inference_modules=mode)`.",
                )
            yield
        finally:
            self._changed_by = before
