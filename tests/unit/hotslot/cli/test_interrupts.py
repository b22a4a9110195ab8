"""Pauses that a Ctrl-C ends, wherever it came: before them, in them, and where Python drops what it raises."""

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from hotslot.cli.interrupts import interruptible_pauses

LONG_S = 60.0
lossy = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class _Lossy:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


class _LateLoss:
    """A descriptor that loses a Ctrl-C as `select` asks for its number, behind every check before."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def fileno(self) -> int:
        _Lossy()
        return self.descriptor


def _soon() -> None:
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()


@lossy
@pytest.mark.parametrize("before", [_Lossy, _soon])
def test_a_ctrl_c_before_or_in_a_pause_ends_it(before: Callable[[], object]) -> None:
    with interruptible_pauses() as pause:

        def interrupted() -> None:
            # A busy machine may bring the one that comes soon before the pause.
            before()
            pause(LONG_S)

        with pytest.raises(KeyboardInterrupt):
            interrupted()


@lossy
def test_a_ctrl_c_that_is_lost_as_the_wait_begins_ends_it_all_the_same() -> None:
    reading, writing = os.pipe()
    begin_s = time.monotonic()
    with interruptible_pauses() as pause, pytest.raises(KeyboardInterrupt):
        pause(LONG_S, _LateLoss(reading))  # type: ignore[arg-type]
    assert time.monotonic() - begin_s < LONG_S, "heard at once, not at the end of the wait"
    os.close(reading)
    os.close(writing)


def test_a_pause_says_whether_there_is_something_to_read_and_other_signals_do_not_end_it() -> None:
    reading, writing = os.pipe()
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        with interruptible_pauses() as pause:
            assert not pause(0.0, reading)
            signal.raise_signal(signal.SIGUSR1)
            assert not pause(0.05, reading)
            os.write(writing, b"x")
            assert pause(LONG_S, reading)
    finally:
        signal.signal(signal.SIGUSR1, before)
        os.close(reading)
        os.close(writing)


def test_what_a_program_had_set_for_signals_is_set_again() -> None:
    handler = signal.getsignal(signal.SIGINT)
    with interruptible_pauses():
        assert signal.getsignal(signal.SIGINT) is not handler
    assert signal.getsignal(signal.SIGINT) is handler
    assert signal.set_wakeup_fd(-1) == -1


def test_other_threads_pause_without_signals() -> None:
    found: list[bool] = []

    def run() -> None:
        with interruptible_pauses() as pause:
            found.append(pause(0.0))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False]
