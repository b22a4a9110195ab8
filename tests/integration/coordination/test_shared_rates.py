"""Rates that several processes count together in a real Valkey, and what one does while it is away."""

import asyncio
from functools import partial
from typing import Any

import pytest

from hotslot.contract.quotas import QuotaKind
from hotslot.errors import TenantQuotaError
from shared.coordination.connection import RedisConnection, RedisOptions
from shared.coordination.keys import rate_key
from shared.quotas.limits import TenantLimits
from shared.quotas.rates import Rates

pytestmark = pytest.mark.integration

TOKENS, REQUESTS = QuotaKind.TOKENS_PER_MINUTE, QuotaKind.REQUESTS_PER_MINUTE


def process(redis: RedisConnection | None, limit: int = 50, share: float = 1.0) -> Rates:
    return Rates(TenantLimits({TOKENS: limit, REQUESTS: limit}), redis, share=share)


async def test_processes_share_one_bucket(redis: RedisConnection) -> None:
    workers = [process(redis) for _ in range(3)]
    waits_s: list[float] = []

    async def ask(number: int) -> bool:
        try:
            await workers[number % 3].take("acme", REQUESTS, 1)
        except TenantQuotaError as exc:
            waits_s.append(exc.retry_after_s or 0.0)
            return False
        return True

    taken = sum(await asyncio.gather(*(ask(number) for number in range(90))))
    assert 50 <= taken <= 55  # some flow in meanwhile
    assert all(0 < wait_s <= 60 for wait_s in waits_s)
    assert await workers[0].take("other", REQUESTS, 1) == 1
    assert await workers[1].used("acme", REQUESTS) in range(45, 51)


async def test_what_is_given_back_is_there_for_all_and_a_debt_is_too(redis: RedisConnection) -> None:
    one, two = process(redis), process(redis)
    async with one.charged("acme", TOKENS, 500) as charge:
        assert charge.amount == 50
        with pytest.raises(TenantQuotaError):
            await two.take("acme", TOKENS, 20)
        charge.used = 5
    await one.settled()
    assert await two.take("acme", TOKENS, 40) == 40
    async with asyncio.timeout(60):
        two.give_back("acme", TOKENS, 40)
        await two.settled()
    async with one.charged("acme", TOKENS, 10) as charge:
        charge.used = 100
    await one.settled()
    with pytest.raises(TenantQuotaError) as refused:
        await two.take("acme", TOKENS, 10)
    assert refused.value.retry_after_s is not None
    assert refused.value.retry_after_s > 60


async def test_a_bucket_ends_by_itself_and_what_is_none_of_ours_is_a_full_one(redis: RedisConnection) -> None:
    key = rate_key("acme", TOKENS.value)
    it = process(redis)
    await it.take("acme", TOKENS, 25)
    left_ms = await redis.run(lambda client: client.pttl(key), [key])
    assert 25_000 < left_ms <= 32_000
    for foreign in ("text", "nan", "-inf", "1e300"):
        await redis.run(lambda client: client.delete(key), [key])
        if foreign == "text":
            await redis.run(lambda client: client.set(key, "mine", ex=60), [key])
        else:
            fields = {"level": foreign, "time_ms": "99999999999999"}
            await redis.run(partial(set_fields, key, fields), [key])
            await redis.run(lambda client: client.expire(key, 60), [key])
        assert await it.take("acme", TOKENS, 50) == 50, foreign
        with pytest.raises(TenantQuotaError):
            await it.take("acme", TOKENS, 50)


def set_fields(key: str, fields: dict[str, str], client: Any) -> Any:
    return client.hset(key, mapping=fields)


async def test_while_redis_is_away_a_process_allows_its_share(redis: RedisConnection) -> None:
    async with RedisConnection(RedisOptions("redis://127.0.0.1:9")) as away:
        it = process(away, share=0.2)
        for _ in range(10):
            assert await it.take("acme", REQUESTS, 1) == 1
        with pytest.raises(TenantQuotaError):
            await it.take("acme", REQUESTS, 1)
        async with it.charged("acme", TOKENS, 5) as charge:
            charge.used = 1
        await it.settled()
        assert it._here("acme", TOKENS, 0, 10)[1] == 1
