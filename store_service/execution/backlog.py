"""Decides which calls are worth beginning when more come than can be answered: state in, decision out."""

from hotslot.errors import HotslotError, RequestDeadlineError, StoreBusyError

MEMORY = 0.1
"""Weight of the last call in the mean of their durations."""
MIN_RETRY_AFTER_S = 0.25


class Backlog:
    """The calls that wait for one of `num_threads`, and how long that will take them."""

    def __init__(self, num_threads: int, max_wait_s: float) -> None:
        self._num_threads = num_threads
        self._max_wait_s = max_wait_s
        self._num_waiting = 0
        self._num_running = 0
        self._mean_s = 0.0

    @property
    def num_waiting(self) -> int:
        """Calls that wait."""
        return self._num_waiting

    @property
    def expected_wait_s(self) -> float:
        """Wait of a call that came now, going by how long calls took lately."""
        if self._num_waiting + self._num_running < self._num_threads:
            return 0.0
        return (self._num_waiting + 1) * self._mean_s / self._num_threads

    def arrive(self, left_s: float | None) -> HotslotError | None:
        """A call comes, whose caller waits for so long: it waits from now on, or is refused with this."""
        if left_s is not None and left_s <= 0:
            return _too_late()
        wait_s = self.expected_wait_s
        if wait_s > self._max_wait_s or (left_s is not None and wait_s > left_s):
            return self._busy(wait_s)
        self._num_waiting += 1
        return None

    def begin(self, waited_s: float, left_s: float | None) -> HotslotError | None:
        """The turn of a call that waited: it runs from now on, or ends with this."""
        self._num_waiting -= 1
        if left_s is not None and left_s <= 0:
            return _too_late()
        # The expected wait is a mean: a call that waited a little longer is served.
        if waited_s > 2 * self._max_wait_s:
            return self._busy(waited_s)
        self._num_running += 1
        return None

    def leave(self) -> None:
        """The caller of a call that waited has gone."""
        self._num_waiting -= 1

    def end(self, took_s: float) -> None:
        """A call that ran has ended."""
        self._num_running -= 1
        self._mean_s += MEMORY * (took_s - self._mean_s) if self._mean_s else took_s

    def _busy(self, wait_s: float) -> StoreBusyError:
        # The expected wait is bounded: after one call that took very long no caller is sent away for as long.
        retry_after_s = max(MIN_RETRY_AFTER_S, min(wait_s, 2 * self._max_wait_s))
        return StoreBusyError(f"the store is busy: the call would wait for {wait_s:.1f} s", retry_after_s=retry_after_s)


def _too_late() -> RequestDeadlineError:
    return RequestDeadlineError("the deadline passed before the store came to the call; nothing was done")
