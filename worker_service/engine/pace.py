"""Pace of the engine lately, and the time until a sequence could have its first token."""

from dataclasses import dataclass

from worker_service.engine.limits import EngineLimits

MEMORY = 0.1
"""Weight of the newest measurement in an average."""
ENOUGH_SAMPLES = 8
"""Below this nothing is estimated."""
OPTIMISM = 0.5
"""Part of the estimated wait that is held against a request: refusing one that would have made it is worse."""


@dataclass(slots=True)
class _Average:
    """An exponentially weighted mean."""

    value: float = 0.0
    count: int = 0

    def add(self, sample: float) -> None:
        self.count += 1
        self.value += (sample - self.value) * max(MEMORY, 1 / self.count)

    @property
    def known(self) -> float:
        """The mean; 0 while there are too few samples to say."""
        return self.value if self.count >= ENOUGH_SAMPLES else 0.0


class EnginePace:
    """Averages of what was measured. Every estimate errs to the quick side."""

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        self._step_s = _Average()
        self._full_step_s = _Average()
        self._row_s = _Average()

    @property
    def step_s(self) -> float:
        """Seconds of a step that is not full of prompts; 0 while not measured."""
        return self._step_s.known

    def stepped(self, duration_s: float, num_tokens: int) -> None:
        """A step took this long."""
        is_full = 2 * num_tokens > self._limits.max_step_tokens
        (self._full_step_s if is_full else self._step_s).add(duration_s)

    def left_row(self, duration_s: float) -> None:
        """A sequence that ended had its row for this long."""
        self._row_s.add(duration_s)

    def tokens_s(self, num_missing: int, num_tokens: int = 1) -> float:
        """Seconds that a row needs for what its prompt lacks and the first tokens of its answer, with no row beside it.

        `num_missing` tokens of the prompt are not in the prefix cache; the answer counts as far as `num_tokens`.
        """
        num_full, rest = divmod(num_missing, self._limits.max_step_tokens)
        return num_full * self._full_step_s.known + (num_tokens - 1 + (rest > 0)) * self._step_s.known

    def row_wait_s(self, num_before: int) -> float:
        """Seconds until a row is free for one before whom so many wait, all rows being taken."""
        return OPTIMISM * (num_before + 1) * self._row_s.known / self._limits.max_running
