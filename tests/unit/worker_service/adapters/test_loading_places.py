"""Requests that wait for adapters to be loaded: as many as there are rows, and some more, shared between tenants."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from hotslot.errors import QueueFullError
from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.ids import TenantId, digest_of
from hotslot.references import parse_reference
from tests.support.echo_model import EchoDecoder
from tests.support.engine_bench import small_limits
from tests.support.waiting import until
from tests.unit.worker_service.adapters.test_pinning import NoStore, Slots
from worker_service.adapters.holdings import Holdings
from worker_service.adapters.loader import Loader, LoaderLimits
from worker_service.adapters.tiers import AdapterTiers
from worker_service.adapters.version import AdapterVersion

MANIFEST = Manifest(digest_of(b"base"), digest_of(b"weights"), 10, "F32", (AdapterModule("q_proj", 8, 2.0),))
ACME, ZETA = TenantId("acme"), TenantId("zeta")


class Requests:
    """All hold one cold version, which is not loaded before the gate opens."""

    def __init__(self, num_rows: int, max_waiting: int) -> None:
        self.decoder = EchoDecoder()
        self.decoder.gate.clear()
        holdings = Holdings(1_000)
        loader = Loader(NoStore(), self.decoder, holdings, LoaderLimits(), ThreadPoolExecutor(1))
        limits = small_limits(max_running=num_rows, max_waiting=max_waiting, max_step_tokens=64)
        self.tiers = AdapterTiers(holdings, loader, Slots(), limits)

    async def hold(self, tenant: TenantId) -> str:
        """Why it is refused, if it is."""
        version = AdapterVersion(tenant, parse_reference("one"), MANIFEST.digest, MANIFEST)
        try:
            async with self.tiers.hold([version]):
                return ""
        except QueueFullError as exc:
            return exc.message

    async def all_at_once(self, *tenants: TenantId) -> list[str]:
        tasks = [asyncio.create_task(self.hold(tenant)) for tenant in tenants]
        await until(lambda: self.tiers.num_loading + sum(task.done() for task in tasks) == len(tasks))
        self.decoder.gate.set()
        return await asyncio.gather(*tasks)


async def test_a_tenant_alone_may_have_as_many_wait_for_a_load_as_there_are_rows() -> None:
    refused = await Requests(num_rows=16, max_waiting=0).all_at_once(*[ACME] * 18)
    assert refused == [*[""] * 16, *["16 requests wait for adapters to be loaded already; at most 16 may"] * 2]


async def test_beyond_the_rows_the_last_places_are_for_other_tenants() -> None:
    *of_acme, newcomer = await Requests(num_rows=16, max_waiting=18).all_at_once(*[ACME] * 32, ZETA)
    assert of_acme == [
        *[""] * 31,
        "31 requests wait for adapters to be loaded already; "
        "this tenant has 31 of 34 places, and the last 3 are for other tenants",
    ]
    assert newcomer == ""
