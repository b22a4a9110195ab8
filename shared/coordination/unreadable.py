"""Passing over what lies in Redis in another form than ours: a log line for each, up to a bound, and no exception."""

import time
from collections.abc import Callable
from typing import TypeVar

import structlog

log = structlog.get_logger(__name__)

TOLD_FOR_S = 60.0
"""Time until the same place is told of again."""
MAX_TOLD = 1_024
MAX_SHOWN = 120
FORM_ERRORS = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)
"""Errors of decoding what is foreign: no JSON, another shape, missing parts, numbers beyond bounds, deep nesting."""
MAX_LINES = 32
"""Lines within TOLD_FOR_S: in many places at once may lie what is not ours."""

T = TypeVar("T")


class Unreadable:
    """One reader's memory of the places that it has told of."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told_at_s: dict[str, float] = {}
        self._window_s = -TOLD_FOR_S
        self._num_lines = 0
        self._num_withheld = 0

    def read(self, place: str, decode: Callable[[], T]) -> T | None:
        """Result of `decode`; None, and a log line, where it fails."""
        try:
            return decode()
        except FORM_ERRORS as exc:
            self._tell(place, exc)
            return None

    def _tell(self, place: str, exc: Exception) -> None:
        now_s = self._clock()
        if now_s - self._told_at_s.get(place, -TOLD_FOR_S) < TOLD_FOR_S:
            return
        if len(self._told_at_s) >= MAX_TOLD:
            self._told_at_s.clear()
        self._told_at_s[place] = now_s
        if now_s - self._window_s >= TOLD_FOR_S:
            self._window_s, self._num_lines = now_s, 0
        if self._num_lines >= MAX_LINES:
            self._num_withheld += 1
            return
        self._num_lines += 1
        withheld, self._num_withheld = self._num_withheld, 0
        why = f"{type(exc).__name__}: {exc}"
        log.warning("unreadable_in_redis", place=place[:MAX_SHOWN], why=why[:MAX_SHOWN], withheld=withheld)
