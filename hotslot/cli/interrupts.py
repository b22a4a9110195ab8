"""Ctrl-C that is never lost: Python drops an exception that is raised in the middle of some object's end."""

import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol


class Pause(Protocol):
    """Wait so long at most; True where the descriptor became readable."""

    def __call__(self, timeout_s: float, descriptor: int | None = None) -> bool: ...


@contextmanager
def interruptible_pauses() -> Iterator[Pause]:
    """Yield a pause of so many seconds: a readable descriptor ends it, with True, a Ctrl-C with KeyboardInterrupt.

    A Ctrl-C ends it too that came before and was lost, and one that comes as it begins: signals write to a socket that
    the pause looks at, since an exception that is dropped on the way there would be heard at the end of the wait alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield _pause  # Signals are the main thread's.
        return
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    def pause(timeout_s: float, descriptor: int | None = None) -> bool:
        until_s = time.monotonic() + timeout_s
        while not noted:
            left_s = max(0.0, until_s - time.monotonic())
            ready = select.select([heard, *(() if descriptor is None else (descriptor,))], [], [], left_s)[0]
            if heard in ready:
                heard.recv(4096)  # Of any signal; the next round sees whether it was this one.
            elif ready or not left_s:
                return bool(ready)
        raise KeyboardInterrupt

    heard, told = socket.socketpair()
    with heard, told:
        told.setblocking(False)
        handler_before = signal.signal(signal.SIGINT, note)
        told_before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        try:
            yield pause
        finally:
            signal.set_wakeup_fd(told_before)
            signal.signal(signal.SIGINT, handler_before)


def _pause(timeout_s: float, descriptor: int | None = None) -> bool:
    if descriptor is None:
        time.sleep(timeout_s)
        return False
    return bool(select.select([descriptor], [], [], timeout_s)[0])
