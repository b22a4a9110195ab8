"""Pace of the gateway's requests: as many a second as an API key, or an address without one, may make."""

import time

from shared.server.call_pace import CallPace
from shared.server.counters import BOUND_REFUSALS, Counters
from shared.server.late_refusals import LateRefusals, too_many

SETTING = "gateway_max_calls_per_s"


class PacedRequests:
    """Pace of one gateway's callers. Lives on its event loop."""

    def __init__(self, calls_per_s: float, counters: Counters) -> None:
        """0 is no bound."""
        self._pace = CallPace(calls_per_s, calls_per_s) if calls_per_s else None
        self._refusals = LateRefusals()
        self._counters = counters
        self._error = too_many(calls_per_s, SETTING)

    async def admit(self, caller: str) -> None:
        """Let a request in; one too many hears late that it is. Raises QuotaExceededError."""
        if self._pace is None or self._pace.take(caller, time.monotonic()):
            return
        self._counters.add(BOUND_REFUSALS, SETTING)
        await self._refusals.wait(caller)
        raise self._error
