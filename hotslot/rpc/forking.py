"""Guards against gRPC in a forked child: with a channel open at the fork, calls there hang for ever or crash.

Measured with one idle stream open: each child's first call outlived its deadline, or ended in a segmentation fault.
gRPC's threads outlive its last channel by some milliseconds, and a child that is forked meanwhile fares as badly (10 of
600), so a fork waits for their end. Its own support of forks is no help: see `fork_support`.
"""

import os
import time
import weakref
from contextlib import suppress
from pathlib import Path

from hotslot.errors import ForkedClientError

ENDING_S = 1.0
PAUSE_S = 0.001
GRPC_THREADS = {"event_engine", "grpc_shutdown", "lifeguard"}
TASKS = Path("/proc/self/task")


class ForkGuard:
    """Open channels of this process, and those that were open in its parent when it was forked."""

    def __init__(self) -> None:
        self._open: weakref.WeakSet[object] = weakref.WeakSet()
        self._inherited: list[object] = []
        """Held for good: ending them here would write to the parent's connections."""
        self._watches = False
        self._closed_s = 0.0

    def opened(self, channel: object) -> None:
        """Note a channel that is open from now on."""
        if not self._watches:
            self._watches = True
            os.register_at_fork(before=self._await_end_of_grpc, after_in_child=self._forked)
        self._open.add(channel)

    def closed(self, channel: object) -> None:
        """Note its end; again is harmless."""
        self._open.discard(channel)
        self._closed_s = time.monotonic()

    def check(self) -> None:
        """Raise ForkedClientError when no call could be trusted in this process."""
        if self._inherited:
            raise ForkedClientError("a client of the parent process")

    def _await_end_of_grpc(self) -> None:
        # Threads that are there later serve channels of others, or one that was dropped without being closed.
        while not self._open and time.monotonic() < self._closed_s + ENDING_S and _thread_names() & GRPC_THREADS:
            time.sleep(PAUSE_S)

    def _forked(self) -> None:
        self._inherited.extend(self._open)
        self._open = weakref.WeakSet()


def _thread_names() -> set[str]:
    """Names of this process's threads; none where the system doesn't tell them (it does on Linux)."""
    names = set()
    for task in TASKS.glob("*/comm"):
        # One may end between being listed and being read.
        with suppress(OSError):
            names.add(task.read_text().strip())
    return names


FORK_GUARD = ForkGuard()
"""The one of this process, since gRPC's own state is the process's."""
