"""Ends work that is not wanted any more: long work on a thread asks, again and again, whether to go on."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from hotslot.errors import RequestCancelledError, RequestDeadlineError

T = TypeVar("T")
_working = threading.local()


class Wish:
    """Wish of a caller for a piece of work; asked on the work's thread, withdrawn from any."""

    def __init__(self, left_s: float | None = None) -> None:
        self._until_s = None if left_s is None else time.monotonic() + left_s
        self._is_withdrawn = False

    def withdraw(self) -> None:
        """Take the wish back, as no caller waits any more."""
        self._is_withdrawn = True

    def check(self) -> None:
        """Raises RequestCancelledError and RequestDeadlineError when no caller waits."""
        if self._is_withdrawn:
            raise RequestCancelledError("the caller has gone, so the work was ended; nothing was changed")
        if self._until_s is not None and time.monotonic() >= self._until_s:
            raise RequestDeadlineError("the deadline passed while the work was under way; nothing was changed")

    def work(self, function: Callable[[], T]) -> T:
        """Do the work on this thread, as long as it is wanted."""
        self.check()
        _working.wish = self
        try:
            return function()
        finally:
            _working.wish = None


def stop_if_unwanted() -> None:
    """End the work that this thread does, when no caller waits for it; called where work is long and may be ended.

    Raises RequestCancelledError and RequestDeadlineError.
    """
    wish: Wish | None = getattr(_working, "wish", None)
    if wish is not None:
        wish.check()
