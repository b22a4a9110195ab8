"""Guards against gRPC in a forked child: with a channel open at the fork, calls there hang for ever or crash.

gRPC prepares for a fork only while no thread is inside of it, which an open stream or a call on its way prevents.
Measured with one idle stream open: each child's first call outlived its deadline, or ended in a segmentation fault.
"""

import os
import weakref

from hotslot.errors import ForkedClientError


class ForkGuard:
    """Open channels of this process, and those that were open in its parent when it was forked."""

    def __init__(self) -> None:
        self._open: weakref.WeakSet[object] = weakref.WeakSet()
        self._inherited: list[object] = []
        """Held for good: ending them here would write to the parent's connections."""
        self._watches = False

    def opened(self, channel: object) -> None:
        """Note a channel that is open from now on."""
        if not self._watches:
            self._watches = True
            os.register_at_fork(after_in_child=self._forked)
        self._open.add(channel)

    def closed(self, channel: object) -> None:
        """Note its end; again is harmless."""
        self._open.discard(channel)

    def check(self) -> None:
        """Raise ForkedClientError when no call could be trusted in this process."""
        if self._inherited:
            raise ForkedClientError("a client of the parent process")

    def _forked(self) -> None:
        self._inherited.extend(self._open)
        self._open = weakref.WeakSet()


FORK_GUARD = ForkGuard()
"""The one of this process, since gRPC's own state is the process's."""
