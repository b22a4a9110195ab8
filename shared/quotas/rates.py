"""Rates of tenants: charged where a request is taken, in Redis for a whole fleet, or as this process's share.

Nothing is asked for each token: a request is charged once, with the most that it may use, and gives back the rest.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
from cachetools import LRUCache

from hotslot.contract.quotas import QuotaKind
from hotslot.errors import CoordinationUnavailableError, TenantQuotaError
from shared.coordination.connection import RedisConnection
from shared.coordination.keys import rate_key
from shared.coordination.rate_functions import charge
from shared.quotas.buckets import Bucket, full, refilled, wait_s
from shared.quotas.limits import TenantLimits

log = structlog.get_logger(__name__)

MAX_BUCKETS = 16_384
"""Tenants and kinds that are remembered; one that is forgotten begins with a full bucket."""
PATIENCE_S = 1.0
"""Longest wait for Redis, in which a request would otherwise be taken by the process's own share."""
MAX_ASKED = 4
"""Questions to Redis at the same time, which shares its connections with others; more wait."""
AWAY_S = 5.0
"""Time for which Redis is not asked again after it did not answer."""


@dataclass(slots=True)
class Charge:
    """Charge of one request."""

    amount: int
    """0 where nothing is limited."""
    used: int = 0


class Rates:
    """Buckets of one process. Lives on the event loop."""

    def __init__(
        self,
        limits: TenantLimits,
        redis: RedisConnection | None = None,
        *,
        share: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`share` is that of this process where Redis does not count for all."""
        self._limits = limits
        self._redis = redis
        self._share = share
        self._clock = clock
        self._buckets: LRUCache[tuple[str, QuotaKind], Bucket] = LRUCache(MAX_BUCKETS)
        self._away_until_s = -math.inf
        self._asking = asyncio.Semaphore(MAX_ASKED)
        self._giving: set[asyncio.Task[None]] = set()

    async def take(self, tenant: str, kind: QuotaKind, amount: int) -> int:
        """Charge a tenant; returns what was charged, which is no more than a minute's limit, and 0 without one.

        Raises TenantQuotaError with the time after which there is enough.
        """
        limit = self._limits.of(tenant).get(kind)
        if limit is None or amount <= 0:
            return 0
        if limit == 0:
            raise _refused(tenant, kind, 0, 0, None)
        # More than fits the bucket waits for a full one, or it could never be served.
        charged = min(amount, limit)
        answer = await self._in_redis(tenant, kind, charged, limit)
        if answer is None:
            own = self._own(limit)
            answer = self._here(tenant, kind, min(charged, own), own)
        waits_s, used = answer
        if waits_s > 0:
            raise _refused(tenant, kind, limit, used, waits_s)
        return charged

    @asynccontextmanager
    async def charged(self, tenant: str, kind: QuotaKind, most: int) -> AsyncIterator["Charge"]:
        """Charge the most that the block may use, and give back what it did not. Raises TenantQuotaError."""
        charge = Charge(await self.take(tenant, kind, most))
        try:
            yield charge
        finally:
            if charge.amount:
                self.give_back(tenant, kind, charge.amount - charge.used)

    def give_back(self, tenant: str, kind: QuotaKind, amount: int) -> None:
        """Return what was charged and not used; what was used beyond it is owed with a negative amount."""
        limit = self._limits.of(tenant).get(kind)
        if not limit or not amount:
            return
        if self._redis is None or self._clock() < self._away_until_s:
            self._give_here(tenant, kind, amount, limit)
            return
        giving = asyncio.ensure_future(self._give(tenant, kind, amount, limit))
        self._giving.add(giving)
        giving.add_done_callback(self._giving.discard)

    async def used(self, tenant: str, kind: QuotaKind) -> int | None:
        """Use of a minute's limit now; None without a limit, and where only other processes count."""
        limit = self._limits.of(tenant).get(kind)
        if limit is None:
            return None
        answer = await self._in_redis(tenant, kind, 0, limit)
        if answer is not None:
            return answer[1]
        if kind is QuotaKind.TOKENS_PER_MINUTE:
            return None  # Workers' own.
        own = self._own(limit)
        return self._here(tenant, kind, 0, own)[1]

    async def settled(self) -> None:
        """Wait until what was given back is in Redis."""
        if self._giving:
            await asyncio.wait(self._giving)

    def _own(self, limit: int) -> int:
        return max(1, math.ceil(limit * self._share))

    def _here(self, tenant: str, kind: QuotaKind, amount: int, limit: int) -> tuple[float, int]:
        """Time to wait, and what is used, by this process's own buckets; takes the amount where there is none."""
        now_s, key = self._clock(), (tenant, kind)
        bucket = refilled(self._buckets.get(key) or full(limit, now_s), limit, now_s)
        waits_s = wait_s(bucket, amount, limit) if amount else 0.0
        if not waits_s:
            bucket = Bucket(bucket.level - amount, now_s)
        self._buckets[key] = bucket
        return waits_s, max(0, math.ceil(limit - bucket.level))

    def _give_here(self, tenant: str, kind: QuotaKind, amount: int, limit: int) -> None:
        key, now_s, own = (tenant, kind), self._clock(), self._own(limit)
        bucket = refilled(self._buckets.get(key) or full(own, now_s), own, now_s)
        self._buckets[key] = Bucket(min(float(own), bucket.level + amount), now_s)

    async def _in_redis(
        self, tenant: str, kind: QuotaKind, amount: int, limit: int, *, owed: bool = False
    ) -> tuple[float, int] | None:
        """The same by Redis, where all processes count; None while it does not answer."""
        if self._redis is None:
            return None
        try:
            # Its turn is waited for beside the time for the answer: a burst is no sign that Redis is away.
            async with self._asking:
                if self._clock() < self._away_until_s:
                    return None
                async with asyncio.timeout(PATIENCE_S):
                    return await charge(
                        self._redis,
                        bucket=rate_key(tenant, kind.value),
                        prefix="",
                        amount=amount,
                        limit=limit,
                        is_owed=int(owed),
                    )
        except (CoordinationUnavailableError, TimeoutError) as exc:
            if self._clock() < self._away_until_s:
                return None
            self._away_until_s = self._clock() + AWAY_S
            log.warning("rates_counted_here", why=str(exc) or "Redis did not answer in time")
            return None

    async def _give(self, tenant: str, kind: QuotaKind, amount: int, limit: int) -> None:
        if await self._in_redis(tenant, kind, -amount, limit, owed=True) is None:
            self._give_here(tenant, kind, amount, limit)


def _refused(tenant: str, kind: QuotaKind, limit: int, used: int, waits_s: float | None) -> TenantQuotaError:
    advice = "ask the operator for more" if waits_s is None else f"try again in {max(waits_s, 0.001):.3g} s"
    return TenantQuotaError(tenant, kind.value, limit, used, advice=advice, retry_after_s=waits_s)
