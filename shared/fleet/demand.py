"""Demand for a version, and the number of homes that it is worth.

A version's demand is the number of its sequences in flight, by the rows of a worker: 2.0 keeps two workers busy. Every
worker measures its own part, smooths it, and reports it in coarse steps beside the version's tier: in what a router
reads for a decision anyway. A router adds the parts up. So all of them see the same demand, without a further question.

The number of homes has hysteresis of three kinds: a part is lowered only after it was below for `dwell_s`; between
`lower_below` and `raise_above` for each home the number stays; and what it was is read off the placements
themselves, so that no router has to remember it or to agree on it with others.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hotslot.ids import Digest

_FORGOTTEN_BELOW = 1e-3


@dataclass(frozen=True, slots=True)
class DemandOptions:
    """Constants with which demand is measured and turned into homes."""

    smoothing_s: float = 20.0
    """Time constant of the moving averages."""
    step: float = 0.125
    """Demand is reported in multiples of this, and changes once it is three quarters of a step away."""
    dwell_s: float = 60.0
    """Time for which demand must be lower before a lower one is reported."""
    raise_above: float = 0.2
    """Demand for each home above which there will be one more. Well below 1: a version with several homes is what
    evens out the load, and another home costs no more than one load and one place in a host's memory."""
    lower_below: float = 0.13
    """Demand for each of one home less below which there will be one less."""


DEFAULT_DEMAND = DemandOptions()


def homes_for(demand: float, current: int, options: DemandOptions = DEFAULT_DEMAND) -> int:
    """Number of homes that a version should have when it has `current` ones; at least 1."""
    low, high = homes_range(demand, options)
    return min(max(current, low), high)


def homes_range(demand: float, options: DemandOptions = DEFAULT_DEMAND) -> tuple[int, int]:
    """The least and the largest number of homes that this demand is worth."""
    # A thousandth of tolerance: demand is a sum of reported steps, and 0.3 / 0.1 is not quite 3.
    return max(1, math.ceil(demand / options.raise_above - 1e-3)), 1 + int(demand / options.lower_below + 1e-3)


@dataclass(slots=True)
class _Part:
    """One version on this worker."""

    average: float = 0.0
    reported: float = 0.0
    below_since_s: float | None = None


class DemandMeter:
    """One worker's parts of the demand. Time is passed in."""

    def __init__(self, options: DemandOptions = DEFAULT_DEMAND) -> None:
        self._options = options
        self._parts: dict[Digest, _Part] = {}
        self._observed_at_s: float | None = None
        self._in_flight = 0.0

    @property
    def mean_in_flight(self) -> float:
        """The moving average of all sequences in flight."""
        return self._in_flight

    @property
    def tracked(self) -> int:
        """Versions that are remembered: those in use here, and lately."""
        return len(self._parts)

    def reported(self, digest: Digest) -> float:
        """The demand to report for a version: 0 or a multiple of the step."""
        part = self._parts.get(digest)
        return part.reported if part is not None else 0.0

    def observe(self, sequences: Mapping[Digest, int], in_flight: int, rows: int, now_s: float) -> list[Digest]:
        """Take in how many sequences of each version, and of all, are in flight; returns what to report anew."""
        elapsed_s = now_s - self._observed_at_s if self._observed_at_s is not None else 0.0
        self._observed_at_s = now_s
        keep = math.exp(-elapsed_s / self._options.smoothing_s)
        self._in_flight = in_flight + (self._in_flight - in_flight) * keep
        for digest in sequences:
            if digest not in self._parts:
                self._parts[digest] = _Part()
        changed, gone = [], []
        for digest, part in self._parts.items():
            now = sequences.get(digest, 0) / rows
            part.average = now + (part.average - now) * keep
            if self._report(part, now_s):
                changed.append(digest)
            if part.average < _FORGOTTEN_BELOW and not part.reported:
                gone.append(digest)
        for digest in gone:
            del self._parts[digest]
        return changed

    def _report(self, part: _Part, now_s: float) -> bool:
        """Up at once, down after the dwell time, and neither for less than three quarters of a step."""
        step = self._options.step
        distance = part.average - part.reported
        if abs(distance) < 0.75 * step:
            part.below_since_s = None
            return False
        if distance < 0:
            if part.below_since_s is None:
                part.below_since_s = now_s
            if now_s - part.below_since_s < self._options.dwell_s:
                return False
        part.below_since_s = None
        part.reported = step * round(part.average / step)
        return True
