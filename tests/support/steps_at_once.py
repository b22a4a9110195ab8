"""Base of model runners that compute a step when it is launched, as a worker on CPU does."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from functools import cached_property

from worker_service.engine.messages import Computed, Segment


class StepsAtOnce(ABC):
    """Launches by `run`, and keeps results until they are collected, first in first out."""

    depth = 0

    @cached_property
    def _results(self) -> deque[list[Computed]]:
        """Those of steps that were launched and not collected."""
        return deque()

    @abstractmethod
    def run(self, segments: Sequence[Segment]) -> list[Computed]:
        """Compute one step."""

    def launch(self, segments: Sequence[Segment]) -> None:
        self._results.append(self.run(segments))

    def collect(self) -> list[Computed]:
        return self._results.popleft()
