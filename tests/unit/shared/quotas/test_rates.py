"""Rates of one process: never more than a minute's limit at once, give-backs, debts, shares."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotslot.contract.quotas import QuotaKind
from hotslot.errors import TenantQuotaError
from shared.quotas.limits import TenantLimits
from shared.quotas.rates import Rates

TOKENS, REQUESTS = QuotaKind.TOKENS_PER_MINUTE, QuotaKind.REQUESTS_PER_MINUTE


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def rates(clock: Clock, share: float = 1.0, **limits: int) -> Rates:
    return Rates(TenantLimits({QuotaKind(kind): limit for kind, limit in limits.items()}), share=share, clock=clock)


async def test_without_a_limit_nothing_is_charged_and_nothing_remembered() -> None:
    found = rates(Clock())
    assert await found.take("acme", TOKENS, 10**9) == 0
    found.give_back("acme", TOKENS, -(10**9))
    assert await found.used("acme", TOKENS) is None
    assert not found._buckets


async def test_a_minutes_worth_comes_at_once_and_then_as_time_passes() -> None:
    clock = Clock()
    found = rates(clock, requests_per_minute=60)
    for _ in range(60):
        await found.take("acme", REQUESTS, 1)
    with pytest.raises(TenantQuotaError) as refused:
        await found.take("acme", REQUESTS, 1)
    error = refused.value
    assert (error.subject, error.quota, error.limit, error.used) == ("acme", "requests_per_minute", 60, 60)
    assert error.retry_after_s == pytest.approx(1.0)
    await found.take("other", REQUESTS, 1)
    clock.now_s += error.retry_after_s or 0.0
    await found.take("acme", REQUESTS, 1)
    with pytest.raises(TenantQuotaError):
        await found.take("acme", REQUESTS, 1)


async def test_what_was_not_used_is_given_back_and_what_was_used_beyond_is_owed() -> None:
    clock = Clock()
    found = rates(clock, tokens_per_minute=100)
    async with found.charged("acme", TOKENS, 80) as charge:
        assert charge.amount == 80
        charge.used = 10
    assert await found._in_redis("acme", TOKENS, 0, 100) is None
    assert found._here("acme", TOKENS, 0, 100)[1] == 10
    with pytest.raises(ZeroDivisionError):
        async with found.charged("acme", TOKENS, 90):
            raise ZeroDivisionError
    assert found._here("acme", TOKENS, 0, 100)[1] == 10
    clock.now_s += 60
    # More than a minute's limit waits for a full bucket, and is served.
    async with found.charged("acme", TOKENS, 500) as charge:
        assert charge.amount == 100
        charge.used = 400
    assert found._here("acme", TOKENS, 0, 100)[1] == 400
    with pytest.raises(TenantQuotaError) as refused:
        await found.take("acme", TOKENS, 1)
    assert refused.value.retry_after_s == pytest.approx(180.6)


async def test_a_limit_of_zero_refuses_without_a_time() -> None:
    found = rates(Clock(), tokens_per_minute=0)
    with pytest.raises(TenantQuotaError) as refused:
        await found.take("acme", TOKENS, 1)
    assert refused.value.retry_after_s is None


async def test_a_share_is_what_this_process_allows() -> None:
    found = rates(Clock(), share=0.25, requests_per_minute=40)
    for _ in range(10):
        await found.take("acme", REQUESTS, 1)
    with pytest.raises(TenantQuotaError):
        await found.take("acme", REQUESTS, 1)


@settings(max_examples=60, deadline=None)
@given(
    limit=st.integers(1, 500),
    steps=st.lists(st.tuples(st.floats(0, 30), st.integers(1, 300), st.floats(0, 1)), max_size=60),
)
def test_over_any_time_no_more_is_used_than_a_minutes_limit_and_what_flows_in(
    limit: int, steps: list[tuple[float, int, float]]
) -> None:
    async def run() -> None:
        clock = Clock()
        found = rates(clock, tokens_per_minute=limit)
        used_at: list[tuple[float, int]] = []
        waits_s: list[float] = []
        for pause_s, most, part in steps:
            clock.now_s += pause_s
            try:
                async with found.charged("acme", TOKENS, most) as charge:
                    charge.used = round(part * min(most, limit))
            except TenantQuotaError as exc:
                waits_s.append(exc.retry_after_s or 0.0)
                continue
            used_at.append((clock.now_s, charge.used))
        assert all(0 < wait_s <= 60.001 for wait_s in waits_s)
        for first, (begin_s, _) in enumerate(used_at):
            used = 0
            for now_s, amount in used_at[first:]:
                used += amount
                assert used <= limit + (now_s - begin_s) * limit / 60 + 1e-6

    asyncio.run(run())
