"""Deadlines of sequences: which must be looked at now."""

import heapq
from collections.abc import Callable

from worker_service.engine.messages import SequenceId

MIN_ENTRIES = 1_000
"""Below this many it is not worth looking for those whose sequence has ended."""


class Deadlines:
    """Times at which sequences must be looked at, earliest first.

    Entries of ended sequences stay until due, but never more of them than of live ones (and a few more).
    """

    def __init__(self, is_live: Callable[[SequenceId], bool]) -> None:
        self._is_live = is_live
        self._heap: list[tuple[float, SequenceId]] = []
        self._most = MIN_ENTRIES

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, due_s: float, sequence_id: SequenceId) -> None:
        """Look at a sequence then."""
        heapq.heappush(self._heap, (due_s, sequence_id))
        if len(self._heap) > self._most:
            self._heap = [entry for entry in self._heap if self._is_live(entry[1])]
            heapq.heapify(self._heap)
            self._most = max(MIN_ENTRIES, 2 * len(self._heap))

    def due(self, now_s: float) -> list[SequenceId]:
        """The sequences whose time has come; each is forgotten with that."""
        found: list[SequenceId] = []
        while self._heap and self._heap[0][0] <= now_s:
            found.append(heapq.heappop(self._heap)[1])
        return found
