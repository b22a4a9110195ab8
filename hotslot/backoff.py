"""Pauses between attempts.

A class of our own rather than a library's: the loops here go on with streams that broke, begin anew after any progress
and wait at least as long as a server asks. Retry libraries repeat one call whole and keep the count to themselves.
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses that double from `first_s` up to `max_s`, shortened by up to a half at random, so that callers part."""

    first_s: float
    max_s: float

    def pause_s(self, pauses_before: int) -> float:
        """Seconds to wait after that many pauses in a row."""
        return min(self.max_s, self.first_s * 2.0 ** min(pauses_before, 64)) * random.uniform(0.5, 1.0)
