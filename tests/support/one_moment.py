"""Calls that come all at once, however long a busy machine takes to bring them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shared.server.call_pace import CallPace


@contextmanager
def one_moment() -> Iterator[None]:
    """A block in which time stands still for every pace of calls: those of a burst are as many as it has."""
    take, then_s = CallPace.take, time.monotonic()

    def taken_then(pace: CallPace, caller: str, now_s: float, weight: float = 1.0) -> bool:
        return take(pace, caller, then_s, weight)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CallPace, "take", taken_then)
        yield
