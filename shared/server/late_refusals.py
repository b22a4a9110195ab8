"""Refusals that are told a moment late, so that a caller which calls again at once slows itself down."""

import asyncio
from collections import Counter

from hotslot.errors import QuotaExceededError

HEARS_AFTER_S = 1.0
MAX_WAITING, MAX_WAITING_OF_CALLER = 1_024, 512
"""Refused calls that wait to hear of it, of all and of one caller; further ones hear at once. Of each, up to
64 KiB are in gRPC's memory."""


def too_many(calls_per_s: float, setting: str) -> QuotaExceededError:
    """Error of a call that is one too many."""
    message = f"more than {calls_per_s:,g} calls a second ({setting}); make fewer, and come again in a moment"
    return QuotaExceededError(message, subject=setting, retry_after_s=HEARS_AFTER_S)


class LateRefusals:
    """Refused calls of one server that wait. Lives on its event loop."""

    def __init__(self) -> None:
        self._waiting: Counter[str] = Counter()

    async def wait(self, caller: str) -> None:
        """Wait until a refused call of a caller may hear of it, not at all where too many wait already."""
        if self._waiting.total() >= MAX_WAITING or self._waiting[caller] >= MAX_WAITING_OF_CALLER:
            return
        self._waiting[caller] += 1
        try:
            await asyncio.sleep(HEARS_AFTER_S)
        finally:
            self._waiting[caller] -= 1
            if not self._waiting[caller]:
                del self._waiting[caller]
