"""The gate of a process that keeps nothing of tenants: limits, and rates that may be counted in Redis."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from shared.coordination.connection import RedisConnection, RedisOptions
from shared.quotas.gate import QuotaGate
from shared.quotas.limits import TenantLimits
from shared.quotas.rates import Rates
from shared.quotas.settings import QuotaSettings
from shared.server.counters import Counters


@asynccontextmanager
async def opened_gate(
    settings: QuotaSettings, counters: Counters, redis: RedisOptions | None = None
) -> AsyncIterator[QuotaGate]:
    """The gate, until the block is left; Redis is asked where rates are limited. Raises InvalidRequestError."""
    limits = TenantLimits(settings.default_limits, settings.quotas_file)
    async with AsyncExitStack() as stack:
        connection = None
        if redis is not None and settings.limits_rates:
            connection = await stack.enter_async_context(RedisConnection(redis))
        rates = Rates(limits, connection, share=settings.quota_share_percent / 100)
        stack.push_async_callback(rates.settled)
        yield QuotaGate(limits, rates, counters)
