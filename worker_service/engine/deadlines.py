"""Deadlines of sequences: which must be looked at now."""

import heapq
from collections.abc import Iterator

from worker_service.engine.messages import SequenceId


class Deadlines:
    """Times at which sequences must be looked at, earliest first. Those of sequences that ended stay until due."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, SequenceId]] = []

    def add(self, due_s: float, sequence_id: SequenceId) -> None:
        """Look at a sequence then."""
        heapq.heappush(self._heap, (due_s, sequence_id))

    def due(self, now_s: float) -> Iterator[SequenceId]:
        """The sequences whose time has come; each is forgotten with that. Do not `add` meanwhile."""
        while self._heap and self._heap[0][0] <= now_s:
            yield heapq.heappop(self._heap)[1]
