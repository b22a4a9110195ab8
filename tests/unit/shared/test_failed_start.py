"""The pause of a process that could not start: a signal ends it, whenever it comes."""

import signal
import time
from collections.abc import Callable, Iterator

import pytest

from shared.failed_start import pause_before_end

LONG_S = 60.0


class _AtItsEnd:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("come", [lambda: signal.raise_signal(signal.SIGTERM), _AtItsEnd], ids=["plainly", "in an end"])
def test_a_signal_that_comes_while_the_reason_is_told_ends_the_pause(come: Callable[[], object]) -> None:
    begin_s = time.monotonic()
    with pause_before_end(LONG_S):
        come()
    assert time.monotonic() - begin_s < LONG_S


def test_a_pause_without_a_signal_takes_its_time_and_none_takes_none() -> None:
    begin_s = time.monotonic()
    with pause_before_end(0.2):
        pass
    assert time.monotonic() - begin_s >= 0.2
    handler = signal.getsignal(signal.SIGTERM)
    with pause_before_end(0.0):
        pass
    assert signal.getsignal(signal.SIGTERM) is handler
