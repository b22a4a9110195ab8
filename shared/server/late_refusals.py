"""Refusals that are told a moment late, so that a caller which calls again at once slows itself down."""

import asyncio
import time
from collections import Counter

from hotslot.errors import QuotaExceededError

HEARS_AFTER_S = 1.0
APART_S = 0.008
"""Least time between two refusals that a caller hears of: calls that came all at once do not come so again."""
MAX_WAITING, MAX_WAITING_OF_CALLER = 1_024, 512
"""Refused calls that wait to hear of it, of all and of one caller; further ones hear at once. Of each, up to
64 KiB are in gRPC's memory."""
LATEST_S = APART_S * MAX_WAITING_OF_CALLER


def too_many(calls_per_s: float, setting: str) -> QuotaExceededError:
    """Error of a call that is one too many."""
    message = f"more than {calls_per_s:,g} calls a second ({setting}); make fewer, and come again in a moment"
    return QuotaExceededError(message, subject=setting, retry_after_s=HEARS_AFTER_S)


class LateRefusals:
    """Refused calls of one server that wait. Lives on its event loop."""

    def __init__(self) -> None:
        self._waiting: Counter[str] = Counter()
        self._last_s: dict[str, float] = {}
        """Times at which callers hear of the last of their refusals that wait."""

    async def wait(self, caller: str) -> None:
        """Wait until a refused call of a caller may hear of it, not at all where too many wait already."""
        if self._waiting.total() >= MAX_WAITING or self._waiting[caller] >= MAX_WAITING_OF_CALLER:
            return
        now_s = time.monotonic()
        soonest_s = now_s + HEARS_AFTER_S
        # Those that were given up meanwhile have their turns, too, of which there are no more than may wait.
        hears_s = min(max(soonest_s, self._last_s.get(caller, 0.0) + APART_S), soonest_s + LATEST_S)
        self._last_s[caller] = hears_s
        self._waiting[caller] += 1
        try:
            await asyncio.sleep(hears_s - now_s)
        finally:
            self._waiting[caller] -= 1
            if not self._waiting[caller]:
                del self._waiting[caller], self._last_s[caller]
