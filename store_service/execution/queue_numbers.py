"""Numbers of a queue: how long calls waited in it, and those that it refused."""

from collections.abc import Iterator

from hotslot.errors import HotslotError, StoreBusyError
from shared.metrics.numbers import Measured, Spreads, Tally


class QueueNumbers:
    """Numbers of one queue; any thread may add."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waits = Spreads("hotslot_queue_wait_seconds", [(name,)])
        self._refusals = Tally("hotslot_queue_refusals_total", [(name, "busy"), (name, "late")])

    def refused(self, error: HotslotError) -> None:
        """A call was refused: too many wait, or its deadline would pass."""
        self._refusals.add(self._name, "busy" if isinstance(error, StoreBusyError) else "late")

    def waited(self, waited_s: float, refusal: HotslotError | None = None) -> None:
        """A call has waited for so long, and runs now or is refused after all."""
        self._waits.add(waited_s, self._name)
        if refusal is not None:
            self.refused(refusal)

    def readings(self, num_waiting: int) -> Iterator[Measured]:
        """Values now."""
        yield Measured("hotslot_queue_waiting", num_waiting, (self._name,))
        yield from self._waits.readings()
        yield from self._refusals.readings()
