"""Pace of calls, decided without I/O: how many each caller may begin in a second, and at once."""

from dataclasses import dataclass

from cachetools import LRUCache

ROUNDING_S = 1e-6
MAX_CALLERS = 8_192
"""Callers whose calls are counted; of more, those that called longest ago begin anew."""


@dataclass(frozen=True, slots=True)
class HeldWeight:
    """Calls that one counts for until it ends, beyond those of all."""

    caller: str
    weight: float
    paid_s: float
    """Time by which they have been worked off, so that nothing is given back for them: calls that last would else save
    up for a flood."""


class CallPace:
    """Calls of each caller, by the virtual scheduling of ATM's generic cell rate algorithm (ITU-T I.371)."""

    def __init__(self, calls_per_s: float, burst: float, max_callers: int = MAX_CALLERS) -> None:
        """So many a second, of which `burst` may come at once."""
        self._interval_s = 1.0 / calls_per_s
        self._burst_s = burst * self._interval_s
        self._paid_until_s: LRUCache[str, float] = LRUCache(max_callers)

    def take(self, caller: str, now_s: float, weight: float = 1.0) -> bool:
        """Count a call that a caller may begin now, for as many as its weight; false where it may not."""
        until_s = max(self._paid_until_s.get(caller, 0.0), now_s) + weight * self._interval_s
        if until_s > now_s + self._burst_s + ROUNDING_S:
            return False
        self._paid_until_s[caller] = until_s
        return True

    def give_back(self, caller: str, weight: float) -> None:
        """A call counts for less than was taken."""
        if caller in self._paid_until_s:
            self._paid_until_s[caller] -= weight * self._interval_s

    def charge(self, caller: str, weight: float, now_s: float) -> None:
        """Count what cannot be refused any more; a caller never owes more than a burst."""
        until_s = max(self._paid_until_s.get(caller, 0.0), now_s) + weight * self._interval_s
        self._paid_until_s[caller] = min(until_s, now_s + self._burst_s)
