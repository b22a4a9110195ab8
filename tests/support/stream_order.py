"""Order between a device's two streams, steps and copies into slots, so that neither meets the other half-way.

The engine frees slots and blocks as soon as it knows that a sequence ended, while a step that was launched before still
reads them. Blocks are written by later steps only, which their stream keeps in order; slots by copies, which wait here.
"""

from typing import Any, Protocol


class Stream(Protocol):
    """A stream of a device, as torch has them."""

    def record_event(self) -> Any:
        """Event that happens when all that was given to the stream so far has run."""
        ...

    def wait_event(self, event: Any) -> None:
        """Let what is given to the stream from now on run after the event."""
        ...


class StreamOrder:
    """Events between the streams; no call waits.

    **Invariant**: a copy runs after every step that was launched before it was given, and a step after every copy that
    was given before it was launched.
    """

    def __init__(self, steps: Stream, copies: Stream) -> None:
        self.steps = steps
        self.copies = copies
        self._last_step: Any = None
        self._last_copy: Any = None

    def before_step(self) -> None:
        """Call before a step's first launch."""
        if self._last_copy is not None:
            self.steps.wait_event(self._last_copy)
            self._last_copy = None

    def after_step(self) -> None:
        """Call after a step's last launch."""
        self._last_step = self.steps.record_event()

    def before_copy(self) -> None:
        """Call before copies are given."""
        if self._last_step is not None:
            self.copies.wait_event(self._last_step)
            self._last_step = None

    def after_copy(self) -> None:
        """Call after copies were given."""
        self._last_copy = self.copies.record_event()
