"""Quotas as HTTP clients meet them: 429 in OpenAI's form, charged once, tokens given back."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from openai import RateLimitError

from hotslot.contract.quotas import QuotaKind
from shared.quotas.gate import QuotaGate
from shared.quotas.limits import TenantLimits
from shared.quotas.rates import Rates
from shared.server.counters import QUOTA_REFUSALS, Counters
from tests.support.gateway import served

pytestmark = pytest.mark.integration

TOKENS, REQUESTS = QuotaKind.TOKENS_PER_MINUTE, QuotaKind.REQUESTS_PER_MINUTE
CHAT: dict[str, Any] = {"model": "bot", "messages": [{"role": "user", "content": "hello"}]}


def worker_gate(**limits: int) -> QuotaGate:
    """A worker's gate, where no time passes."""
    found = TenantLimits({QuotaKind(kind): limit for kind, limit in limits.items()})
    return QuotaGate(found, Rates(found, clock=lambda: 1.0), Counters())


async def tokens_used(gate: QuotaGate) -> int:
    return gate.rates._here("default", TOKENS, 0, gate.limits.of("default")[TOKENS])[1]


async def test_a_request_beyond_the_minutes_limit_is_429_with_a_time(tmp_path: Path) -> None:
    async with served(tmp_path, quota_requests_per_minute=2) as it:
        http = await it.http()
        for _ in range(2):
            assert (await http.get("/v1/models")).status_code == 200
        refused = await http.post("/v1/chat/completions", json=CHAT)
        assert refused.status_code == 429
        error = refused.json()["error"]
        assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", "TENANT_QUOTA_EXCEEDED", None)
        assert "may have 2 requests per minute and has 2" in error["message"]
        assert 1 <= int(refused.headers["retry-after"]) <= 31
        assert int(refused.headers["retry-after-ms"]) <= 30_000
        assert refused.headers["x-should-retry"] == "true"
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/v1/models", headers={"hotslot-tenant": "other"})).status_code == 200
        gate = it.gateway.gateway.gate
        assert gate is not None
        assert gate.counters.snapshot()[QUOTA_REFUSALS, "requests_per_minute"] == 1


async def test_a_request_is_charged_by_the_gateway_alone(tmp_path: Path) -> None:
    gate = worker_gate(requests_per_minute=1)
    async with served(tmp_path, gate=gate, quota_requests_per_minute=100) as it:
        http = await it.http()
        for _ in range(5):
            assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert gate.rates._here("default", REQUESTS, 0, 1)[1] == 0


async def test_tokens_are_charged_with_the_most_and_what_was_not_generated_comes_back(tmp_path: Path) -> None:
    gate = worker_gate(tokens_per_minute=200)
    async with served(tmp_path, gate=gate) as it:
        sdk = await it.sdk()
        answer = await sdk.chat.completions.create(**CHAT, max_tokens=100, stop=["l"])
        assert answer.usage is not None
        assert answer.usage.completion_tokens < 100
        assert await tokens_used(gate) == answer.usage.total_tokens
        several = await sdk.chat.completions.create(**CHAT, max_tokens=5, n=3)
        assert several.usage is not None
        assert await tokens_used(gate) == answer.usage.total_tokens + several.usage.total_tokens
        before = await tokens_used(gate)
        with pytest.raises(RateLimitError) as refused:
            await sdk.chat.completions.create(**CHAT, max_tokens=190)
        assert refused.value.code == "TENANT_QUOTA_EXCEEDED"
        assert await tokens_used(gate) == before
        it.worker.assert_nothing_is_held()


async def test_a_caller_that_leaves_is_charged_with_what_was_generated(tmp_path: Path) -> None:
    gate = worker_gate(tokens_per_minute=10_000)
    async with served(tmp_path, gate=gate) as it:
        sdk = await it.sdk()
        stream = await sdk.chat.completions.create(**CHAT, max_tokens=60, stream=True)
        async for _ in stream:
            break
        await stream.close()
        async with asyncio.timeout(60):
            while it.worker.parts.engine.open_sequences or await tokens_used(gate) > 500:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert 1 < await tokens_used(gate) <= 200


async def test_a_quota_that_time_does_not_fill_is_not_tried_again(tmp_path: Path) -> None:
    async with served(tmp_path, gate=worker_gate(tokens_per_minute=0)) as it:
        http = await it.http()
        refused = await http.post("/v1/chat/completions", json=CHAT)
        assert refused.status_code == 429
        assert "retry-after" not in refused.headers
        assert refused.headers["x-should-retry"] == "false"
